"""Lab 4 against a real Ollama server, wherever one answers at OLLAMA_HOST.

    pytest tests/live -m ollama

Nothing else is needed: the models of the library are pulled if they are not there, and stay. The server is left running
and as it was otherwise: what these tests made is removed, what they loaded is unloaded. The files that they upload stay
as blobs that no name uses, until the server starts anew: it has no way to remove one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lib.engines.ollama import OllamaEngine
from lib.errors import Offline
from lib.settings import Settings
from lib.workbench import Workbench
from tests.ollama_lab import *  # noqa: F403  the tests
from tests.ollama_lab import LIBRARY, opened

pytestmark = pytest.mark.ollama


@pytest.fixture(scope="module")
def bench(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """A workbench beside the real server."""
    host = Settings(_env_file=None).ollama_host
    engine = OllamaEngine(host)
    status = engine.status()
    if status.state == "stopped":
        pytest.skip(f"no Ollama server at {status.address}: {status.incident}")
    # Asked for only now: what is skipped fetches no model.
    files: list[Path] = [request.getfixturevalue(name) for name in ("default_model", "stock")]
    made = opened(tmp_path_factory.mktemp("ollama-lab") / "home", *files, host)
    for name in LIBRARY:
        try:
            for _ in made.engine("ollama").ensure(name):
                pass
        except Offline as error:
            pytest.skip(f"{name} is not there, and Ollama has no network: {error}")
    yield made
    made.close()
    made.store.close()
