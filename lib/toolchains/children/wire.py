"""The wire between Bancada and a toolchain's child: one request in, JSON lines out. Standard library only.

A child is a stand-alone script in this folder, run by the toolchain's own
Python: it imports its stack and this module, never ``lib``.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

_lock = threading.Lock()
_answers: BinaryIO | None = None


class Refused(Exception):
    """Ends the request with one of Bancada's errors: its ``id`` and what its sentences need."""

    def __init__(self, id: str, **parameters: object) -> None:
        super().__init__(id)
        self.id = id
        self.parameters = parameters


def serve(handlers: Mapping[str, Callable[[dict[str, Any]], dict[str, Any]]]) -> None:
    """Answer the one request of standard input by ``handlers[op]``, then end the process.

    When standard input closes before that, the parent is dead or has cancelled, and the process ends at once.
    """
    global _answers
    _answers = os.fdopen(os.dup(1), "wb")
    requests = os.dup(0)
    # What a library prints belongs into the log, and one that asks a question must read an end of file.
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    sys.stdout = sys.stderr
    request = _read(requests)
    threading.Thread(target=_end_with_parent, args=(requests,), daemon=True).start()
    try:
        answer = {"result": handlers[request["op"]](request)}
        line = _line(answer)
    except Refused as refused:
        line = _line({"error": {"id": refused.id, "parameters": refused.parameters}})
    except BaseException as error:  # converters end by sys.exit, too
        traceback.print_exc()
        why = f"{type(error).__name__}: {error}"
        line = _line({"error": {"id": "child-failed", "parameters": {"why": why[:4000]}}})
    _write(line)
    # Native libraries are known to crash or hang while the interpreter is taken down.
    os._exit(0)


def progress(done: float, total: float, what: str, detail: str = "") -> None:
    """Tell how far it is; ``what`` is a key of the words under ``progress``."""
    _write(_line({"progress": {"done": float(done), "total": float(total), "what": what, "detail": detail}}))


def peak_bytes() -> int:
    """The most memory that this process had resident so far."""
    if sys.platform == "win32":
        return _windows_peak_bytes()
    if sys.platform == "linux":
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def _read(requests: int) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        block = os.read(requests, 1 << 16)
        if not block:
            os._exit(1)
        line += block
    request: dict[str, Any] = json.loads(line)
    return request


def _end_with_parent(requests: int) -> None:
    while os.read(requests, 4096):
        pass
    os._exit(1)


def _line(message: Mapping[str, object]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _write(line: bytes) -> None:
    if _answers is None:  # the handler is called by hand, without a parent
        return
    with _lock:
        _answers.write(line)
        _answers.flush()


def _windows_peak_bytes() -> int:
    counters = (ctypes.c_size_t * 9)()  # PROCESS_MEMORY_COUNTERS: two 32-bit fields, then PeakWorkingSetSize
    windll = ctypes.__dict__["windll"]
    current = windll.kernel32.GetCurrentProcess
    current.restype = ctypes.c_void_p
    read = windll.kernel32.K32GetProcessMemoryInfo
    read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
    read(current(), ctypes.byref(counters), ctypes.sizeof(counters))
    return int(counters[1])
