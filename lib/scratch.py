"""Room for files that nobody needs when the work is over: gone at its end or, after a kill, when the next begins."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from lib.errors import CannotWrite


@contextmanager
def scratch(home: Path) -> Iterator[Path]:
    """An empty folder under ``home``, removed with everything in it; raises CannotWrite."""
    parent = home / "scratch"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _sweep(parent)
        folder = Path(tempfile.mkdtemp(prefix=f"{os.getpid()}-", dir=parent))
    except OSError as error:
        raise CannotWrite(path=parent, why=error.strerror or str(error)) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sweep(parent: Path) -> None:
    """Remove what processes left that were killed."""
    for folder in parent.iterdir():
        owner = folder.name.split("-")[0]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)
