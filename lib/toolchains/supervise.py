"""Stands between Bancada and a process that may be deep in native code, and ends what is below it.

Reads its job as one JSON line: command, folder, environment, and the line to
pass on, if any. When its standard input closes, because the parent is dead
or has cancelled, it kills the process and everything below it at once; a
thread of the process itself could not while native code holds the
interpreter. Runs as a script of Bancada's own Python.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress

_ending = threading.Lock()


def main() -> None:
    """Run the job; the exit status is the process's own, 128 + its number for a signal."""
    _adopt_orphans()
    job = json.loads(_read_line())
    request = job["request"]
    process = subprocess.Popen(
        job["command"],
        cwd=job["cwd"],
        env=job["environment"],
        stdin=subprocess.DEVNULL if request is None else subprocess.PIPE,
    )
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if request is not None and process.stdin is not None:
        with suppress(OSError):  # it died before it read
            process.stdin.write(request.encode() + b"\n")
            process.stdin.flush()
    import psutil  # noqa: F401  ready when the end comes

    code = process.wait()
    # The process is gone; what it started is not its parent's to keep.
    _end_everything()
    if sys.platform == "win32":
        os._exit(ctypes.c_int(code).value)  # a crash's status there is larger than an int
    os._exit(128 - code if code < 0 else code)


def _read_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        block = os.read(0, 1 << 16)
        if not block:
            os._exit(1)
        line += block
    return line


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    _end_everything()
    os._exit(1)


def _end_everything() -> None:
    """Kill all that lives below this process; again, for what was being started meanwhile."""
    # Imported while the process works: it need not wait for what only its end needs.
    import psutil

    with _ending:
        for _ in range(100):
            alive = []
            for one in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    if one.status() != psutil.STATUS_ZOMBIE:
                        alive.append(one)
            if not alive:
                return
            for one in alive:
                with suppress(psutil.Error):
                    one.kill()
            time.sleep(0.01)


def _adopt_orphans() -> None:
    """On Linux a process whose parent has ended comes below this one, so that it is found."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


if __name__ == "__main__":
    main()
