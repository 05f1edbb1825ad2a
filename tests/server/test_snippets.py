"""The programs that learners take home run as they stand, whatever was typed into the prompt."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lib.engines.snippets import KEY, ChatRequest, curl, javascript, python
from tests.conftest import missing
from tests.server.test_endpoint import Scripted, says

Run = Callable[[str, Path], list[str]]
TEXT = "It's `50 %` of $HOME \\ \"ação\" 🙂 ${x} </script> {y} %s\nsecond line é '''"
ANSWER = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": "olá 🙂"}}]}).encode()


def run_python(code: str, folder: Path) -> list[str]:
    (folder / "it.py").write_text(code, encoding="utf-8")
    return [sys.executable, "it.py"]


def run_node(code: str, folder: Path) -> list[str]:
    (folder / "it.mjs").write_text(code, encoding="utf-8")
    return ["node", "it.mjs"]


def run_curl(code: str, folder: Path) -> list[str]:
    (folder / "it.sh").write_text(code, encoding="utf-8")
    return ["bash", "it.sh"]


@pytest.fixture
def server() -> Iterator[Scripted]:
    with ExitStack() as stack:
        made = Scripted(says("200 OK", "application/json", ANSWER))
        stack.callback(made.close)
        yield made


@pytest.mark.parametrize("wants_key", [False, True])
@pytest.mark.parametrize(
    ("write", "run", "needs"),
    [(python, run_python, "python3"), (javascript, run_node, "node"), (curl, run_curl, "curl")],
    ids=["python", "javascript", "curl"],
)
def test_a_snippet_sends_what_the_learner_sent(
    server: Scripted,
    tmp_path: Path,
    write: Callable[[ChatRequest], str],
    run: Run,
    needs: str,
    wants_key: bool,
) -> None:
    if shutil.which(needs) is None:
        missing(needs)
    options = {"temperature": 0.2, "seed": 7, "max_tokens": 16, "stop": ["END"]}
    request = ChatRequest(server.address, "smollm2:135m", [{"role": "user", "content": TEXT}], options, wants_key)
    environment = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    done = subprocess.run(
        run(write(request), tmp_path),
        cwd=tmp_path,
        env=environment | {KEY: "sk-mine", "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    head, _, body = server.requests[-1].partition(b"\r\n\r\n")
    assert json.loads(body) == request.body
    assert (b"sk-mine" in head) is wants_key
    assert "sk-mine" not in write(request)
    # cURL shows the whole answer.
    said = json.loads(done.stdout)["choices"][0]["message"]["content"] if write is curl else done.stdout.strip()
    assert said == "olá 🙂"
