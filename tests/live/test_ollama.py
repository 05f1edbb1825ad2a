"""The contract of engines against a real Ollama server, wherever one answers at OLLAMA_HOST.

    pytest tests/live -m ollama

Nothing else is needed: the model is pulled if it is not there. The server is left running; what these tests loaded is unloaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lib.engines.ollama import OllamaEngine
from lib.errors import Offline
from lib.settings import Settings
from tests.contract import *  # noqa: F403  the tests
from tests.contract import Case, drain

pytestmark = pytest.mark.ollama
MODEL = os.environ.get("BANCADA_LIVE_OLLAMA_MODEL", "smollm2:135m")


@pytest.fixture(scope="module")
def engine() -> Iterator[OllamaEngine]:
    """The real server."""
    made = OllamaEngine(Settings(_env_file=None).ollama_host)
    status = made.status()
    if status.state == "stopped":
        pytest.skip(f"no Ollama server at {status.address}: {status.incident}")
    yield made
    made.release()


@pytest.fixture(scope="module")
def made(engine: OllamaEngine) -> Case:
    """The server with the model loaded."""
    case = Case(engine, MODEL, None, comes_back=False, embedder="all-minilm:latest")
    try:
        drain(case)
    except Offline as error:
        pytest.skip(f"{MODEL} is not there, and Ollama has no network: {error}")
    return case


@pytest.fixture
def fresh(engine: OllamaEngine) -> Case:
    """The server with nothing of these tests loaded."""
    engine.release()
    return Case(engine, MODEL, None, comes_back=False, embedder="all-minilm:latest")
