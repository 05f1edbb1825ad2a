"""A process below a supervisor: its output line by line, its end with everything below it."""

from __future__ import annotations

import json
import os
import queue
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import psutil

SUPERVISOR = Path(__file__).parent / "supervise.py"
LINE_BYTES = 4 << 20
LOG_KEPT_S = 7 * 86400.0
STOP_S = 5.0
# What would make another Python look for its packages in this one's places.
_OF_THIS_PYTHON = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


class Supervised:
    """A running command. ``lines`` gives what it writes to standard output, then None.

    ``log`` takes what it writes to standard error; ``subprocess.STDOUT`` puts that among the lines.
    """

    def __init__(
        self,
        command: Sequence[str],
        cwd: Path,
        environment: Mapping[str, str],
        log: BinaryIO | int,
        request: str | None = None,
    ) -> None:
        # 0x200 is Windows' CREATE_NEW_PROCESS_GROUP, a name that other systems do not have.
        group: dict[str, Any] = {"creationflags": 0x200} if os.name == "nt" else {"start_new_session": True}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(SUPERVISOR)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            bufsize=0,  # a buffer's lock, held by a reading thread, would stop the interpreter from ending
            **group,  # Ctrl-C is for the app, which then stops the process in order.
        )
        self.lines: queue.Queue[bytes | None] = queue.Queue(maxsize=256)
        self._stopped = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        job = {"command": list(command), "cwd": str(cwd), "environment": dict(environment), "request": request}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # its end tells why
            _write(self._process.stdin.fileno(), json.dumps(job).encode() + b"\n")

    def how(self) -> str:
        """How it ended, after its last line: a signal's name or an exit status; empty for 0."""
        try:
            code = self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            return "it closed its output and went on"
        number = code - 128 if code > 128 else -code
        with suppress(ValueError):
            return signal.Signals(number).name
        return f"exit status {code}" if code else ""

    def stop(self) -> None:
        """End it and everything below it."""
        self._stopped.set()
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._kill()
        if not sys.is_finalizing():  # then no thread goes on
            self._reader.join(STOP_S)
        self._process.stdout.close()

    def _kill(self) -> None:
        """What the supervisor should have done."""
        with suppress(psutil.Error):
            for one in psutil.Process(self._process.pid).children(recursive=True):
                with suppress(psutil.Error):
                    one.kill()
        self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        """Lines as they come; the end of output, or a line that is too long, is the last."""
        assert self._process.stdout is not None
        rest = b""
        while block := os.read(self._process.stdout.fileno(), 1 << 16):
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                self._put(line + b"\n")
            if len(rest) > LINE_BYTES:
                break
        if rest:
            self._put(rest)
        self._put(None)

    def _put(self, line: bytes | None) -> None:
        while not self._stopped.is_set():
            with suppress(queue.Full):
                self.lines.put(line, timeout=0.2)
                return


def _write(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def clean_environment() -> dict[str, str]:
    """This process's environment without what belongs to its Python, and without Bancada's own settings."""
    mine = (*_OF_THIS_PYTHON, "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    return {name: value for name, value in os.environ.items() if name not in mine and not name.startswith("BANCADA_")}


def new_log(logs: Path, name: str) -> Path:
    """The path of a new log; logs of a week ago go."""
    logs.mkdir(parents=True, exist_ok=True)
    # Another workbench may remove the same one at the same time.
    with suppress(OSError):
        for old in logs.glob("toolchain-*.log"):
            if time.time() - old.stat().st_mtime > LOG_KEPT_S:
                old.unlink()
    return logs / f"toolchain-{name}-{os.getpid()}-{secrets.token_hex(3)}.log"
