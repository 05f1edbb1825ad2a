"""Files that several processes make and use: waiting for one's turn at a file, and telling it from another."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from pathlib import Path

from filelock import FileLock, Timeout

from lib.course.result import Progress
from lib.errors import CannotWrite

LOOK_S = 0.3


def acquired(lock: FileLock, waiting: Progress) -> Generator[Progress, None, None]:
    """Take a lock, yielding ``waiting`` while another process has it; the caller releases it."""
    while not lock.is_locked:
        try:
            lock.acquire(timeout=LOOK_S)
        except Timeout:
            yield waiting


def link(source: Path, place: Path) -> None:
    """Let a file stand at a second place: as a link, or as a copy where the system grants no link.

    Raises CannotWrite.
    """
    for make in (place.symlink_to, place.hardlink_to, lambda file: shutil.copyfile(file, place)):
        try:
            make(source)
            return
        except OSError as error:
            failed = error
    raise CannotWrite(path=place, why=failed.strerror or str(failed)) from failed


def stamp(path: Path) -> list[int]:
    """What tells a file from another of its name without reading it: size in bytes, time of change in ns."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]
