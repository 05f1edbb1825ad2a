"""Files that several processes make and use: waiting for one's turn at a file, and telling it from another."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

from filelock import FileLock, Timeout

from lib.course.result import Progress

LOOK_S = 0.3


def acquired(lock: FileLock, waiting: Progress) -> Generator[Progress, None, None]:
    """Take a lock, yielding ``waiting`` while another process has it; the caller releases it."""
    while not lock.is_locked:
        try:
            lock.acquire(timeout=LOOK_S)
        except Timeout:
            yield waiting


def stamp(path: Path) -> list[int]:
    """What tells a file from another of its name without reading it: size in bytes, time of change in ns."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
