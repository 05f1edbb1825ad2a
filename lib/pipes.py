"""Reading from the process that started this one."""

from __future__ import annotations

import os


def read_line() -> bytes:
    """The next line of standard input, or nothing at its end; unbuffered, so that a thread can read on."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return b""
        line += byte
    return line
