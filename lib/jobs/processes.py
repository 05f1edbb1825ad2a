"""Starting and ending the processes below the app, and the words that pass between them."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from pydantic import SecretStr

from lib.errors import CannotWrite
from lib.settings import Settings

ROOT = Path(__file__).parent.parent.parent
LOG_KEPT_S = 7 * 86400.0
# How long the child of a job may clean up when the app or its worker is gone.
GONE_S = 3.0
# How long the system may take over the end of a process that has been killed: an engine's memory is large.
DEAD_S = 10.0


def start(module: str, log: Path, answers: bool = True) -> subprocess.Popen[bytes]:
    """A Python process that ends with its standard input; its errors go to ``log``. Raises CannotWrite."""
    # 0x200 is Windows' CREATE_NEW_PROCESS_GROUP, a name that other systems do not have.
    group: dict[str, Any] = {"creationflags": 0x200} if os.name == "nt" else {"start_new_session": True}
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stderr:
            return subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if answers else subprocess.DEVNULL,
                stderr=stderr,
                **group,  # Ctrl-C is for the app, whose end then ends this process in order.
            )
    except OSError as error:
        raise CannotWrite(path=log.parent, why=error.strerror or str(error)) from error


def tell(process: subprocess.Popen[bytes], line: str) -> None:
    """Write a line to a process; that it is dead shows elsewhere."""
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()


def end_tree(process: subprocess.Popen[bytes]) -> None:
    """Kill a process, its group and all below it, and wait for its end."""
    below: list[psutil.Process] = []
    with suppress(psutil.Error):
        below = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    if os.name == "posix":
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    kill_all(below)
    process.wait()


def end_leftovers(pids: Iterable[int]) -> None:
    """See to the end of children whose worker was killed: they end by themselves, unless native code holds them."""
    left = []
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid)
            if "lib.jobs.child" in process.cmdline():
                left.append(process)
    _, hanging = psutil.wait_procs(left, timeout=GONE_S + 1)
    for one in hanging:
        with suppress(psutil.Error):
            kill_all([*one.children(recursive=True), one])


def end_orphans() -> None:
    """Kill what is still below this process and wait until it is gone, its memory with it; nobody else waits for it."""
    deadline = time.monotonic() + DEAD_S
    while time.monotonic() < deadline:
        if os.name == "posix":
            with suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
        left: list[psutil.Process] = []
        with suppress(psutil.Error):
            left = psutil.Process().children(recursive=True)
        if not left:
            return
        kill_all(left)
        time.sleep(0.02)


def kill_all(processes: Iterable[psutil.Process]) -> None:
    """Kill processes; one that is gone is fine."""
    for one in processes:
        with suppress(psutil.Error):
            one.kill()


def adopt_orphans() -> None:
    """On Linux a process whose parent has died comes below this one, which can then end it."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def how_it_ended(code: int | None) -> str:
    """A signal's name or an exit status."""
    if code is None or code >= 0:
        return f"exit status {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def forget_old_logs(logs: Path) -> None:
    """Remove the logs of jobs of a week ago."""
    # Another process may remove the same one at the same time.
    with suppress(OSError):
        for log in (*logs.glob("job-*.log"), *logs.glob("jobs-*.log")):
            if time.time() - log.stat().st_mtime > LOG_KEPT_S:
                log.unlink()


def settings_as_json(settings: Settings) -> str:
    """The settings for a process of ours, in one line; secrets go through a pipe, never onto a command line."""
    values = settings.model_dump()
    secrets = {name: value.get_secret_value() for name, value in values.items() if isinstance(value, SecretStr)}
    return json.dumps(settings.model_dump(mode="json") | secrets)


def settings_from_json(text: str | bytes) -> Settings:
    """What ``settings_as_json`` wrote; no environment of its own has a say."""
    return Settings(**json.loads(text) | {"_env_file": None})
