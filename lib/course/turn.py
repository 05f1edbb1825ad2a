"""The machine's turn: of all processes, one measures at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from lib.course.result import Progress
from lib.errors import CannotWrite

LOOK_S = 0.2


def take_turn(folder: Path, until: ExitStack) -> Iterator[Progress]:
    """Wait until no other process measures, and keep the turn until ``until`` is closed; raises CannotWrite.

    The turn is a lock of the system on a file: it comes back however its holder dies.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "turn.lock", thread_local=False)
        while True:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                yield Progress(0, 0, "wait_for_turn")
                time.sleep(LOOK_S)
            else:
                until.callback(lock.release)
                return
    except OSError as error:
        raise CannotWrite(path=folder, why=error.strerror or str(error)) from error
