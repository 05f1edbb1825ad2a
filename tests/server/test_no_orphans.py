"""However the app ends, the engine's process ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx2
import pytest

from lib.engines.address import free_port
from tests.server.helpers import end, engine_children, is_alive, read_line, start_python, wait_until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")

GONE_S = 60.0
ENDS = [signal.SIGKILL, signal.SIGINT, signal.SIGTERM]
HOLDER = """
import time
from lib.workbench import Workbench

bench = Workbench.open(_env_file=None)
engine = bench.engine("embedded")
for _ in engine.ensure(bench.settings.default_model):
    pass
print(engine.status().pid, flush=True)
while True:
    time.sleep(1)
"""
LOADER = """
from lib.workbench import Workbench

bench = Workbench.open(_env_file=None)
for progress in bench.engine("embedded").ensure(bench.settings.default_model):
    if progress.what == "load":
        print(bench.engine("embedded").status().pid, flush=True)
        while True:
            pass
"""

StartHere = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run_here(home: Path) -> Iterator[StartHere]:
    """Starts Python with that home; nothing it starts outlives the test."""
    with ExitStack() as stack:

        def one(*arguments: str, **options: object) -> subprocess.Popen[str]:
            process = start_python(
                *arguments, environment={"BANCADA_HOME": str(home), "BANCADA_LANGUAGE": "en"}, **options
            )
            stack.callback(end, process)
            return process

        yield one


@pytest.fixture
def watched() -> Iterator[list[int]]:
    """Processes to kill when a test fails to see them gone."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("how", ENDS, ids=lambda how: how.name)
def test_the_engine_ends_with_the_process_that_started_it(
    run_here: StartHere, watched: list[int], how: signal.Signals
) -> None:
    parent = run_here("-c", HOLDER)
    child = int(read_line(parent.stdout))
    watched.append(child)
    assert is_alive(child)
    parent.send_signal(how)
    wait_until("the engine is gone", lambda: not is_alive(child), GONE_S)
    parent.wait(GONE_S)


def test_the_engine_ends_even_when_it_was_still_loading(run_here: StartHere, watched: list[int]) -> None:
    parent = run_here("-c", LOADER)
    child = int(read_line(parent.stdout))
    watched.append(child)
    parent.kill()
    wait_until("the engine is gone", lambda: not is_alive(child), GONE_S)


def visit(port: int) -> object:
    """Open the first page as a browser does: a websocket that asks for a run of the script."""
    from streamlit.proto.BackMsg_pb2 import BackMsg
    from websockets.sync.client import connect

    address = f"ws://127.0.0.1:{port}/_stcore/stream"
    socket_ = connect(
        address,
        origin=f"http://127.0.0.1:{port}",
        subprotocols=["streamlit"],
        max_size=None,
        legacy=True,
        open_timeout=60,
    )
    message = BackMsg()
    message.rerun_script.query_string = ""
    socket_.send(message.SerializeToString())
    return socket_


@pytest.mark.parametrize("how", ENDS, ids=lambda how: how.name)
def test_the_engine_ends_with_the_app(
    run_here: StartHere, watched: list[int], tmp_path: Path, how: signal.Signals
) -> None:
    port = free_port()
    options = ["--server.port", str(port), "--server.headless", "true", "--server.fileWatcherType", "none"]
    with (tmp_path / "app.log").open("w") as log:
        app = run_here("-m", "streamlit", "run", "app.py", *options, stdout=log, stderr=subprocess.STDOUT)

    def healthy() -> bool:
        assert app.poll() is None, (tmp_path / "app.log").read_text()
        with suppress(httpx2.HTTPError), httpx2.Client(trust_env=False) as client:
            return client.get(f"http://127.0.0.1:{port}/_stcore/health").status_code == 200
        return False

    wait_until("the app answers", healthy)
    tab = visit(port)
    (child,) = wait_until("the app started its engine", lambda: engine_children(app.pid))
    watched.append(child)
    app.send_signal(how)
    wait_until("the engine is gone", lambda: not is_alive(child), GONE_S)
    wait_until("the app is gone", lambda: app.poll() is not None, GONE_S)
    tab.close()


def test_ctrl_c_at_the_command_line_says_stopped_and_leaves_nothing(run_here: StartHere, watched: list[int]) -> None:
    command = run_here("-m", "lib.cli", "run", "choose.measure")
    (child,) = wait_until("the engine runs", lambda: engine_children(command.pid))
    watched.append(child)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=GONE_S)
    assert command.returncode == 130
    assert said.strip()
    assert len(said.strip().splitlines()) == 1
    assert "Traceback" not in said
    wait_until("the engine is gone", lambda: not is_alive(child), GONE_S)
