"""A generator of progress with a bar: on a terminal, as a widget in a notebook, and silent in a log file."""

from __future__ import annotations

import sys
from collections.abc import Generator
from typing import TypeVar

from tqdm.auto import tqdm

from lib.course.result import Progress
from lib.text import Words

T = TypeVar("T")
_FORMAT = "{desc} {percentage:3.0f} % |{bar:30}| {elapsed}"


def drain(events: Generator[Progress, None, T], words: Words) -> T:
    """Run ``events`` to the end, showing each piece of progress; gives back the return value."""
    silent = not sys.stderr.isatty() and "ipykernel" not in sys.modules
    with tqdm(total=1.0, leave=False, disable=silent, bar_format=_FORMAT, delay=0.3) as bar:
        while True:
            try:
                progress = next(events)
            except StopIteration as stop:
                outcome: T = stop.value
                return outcome
            bar.n = progress.share
            bar.set_description_str(f"{words(f'progress.{progress.what}')} {progress.detail}")
