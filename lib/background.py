"""Work in a thread of its own: it goes on when the browser tab that asked for it closes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator
from typing import Generic, TypeVar

from lib.course.result import Progress
from lib.errors import BancadaError, Cancelled, Unforeseen

T = TypeVar("T")


class Background(Generic[T]):
    """Runs a generator of Progress to its end; its return value is the ``outcome``."""

    def __init__(self, events: Generator[Progress, None, T], name: str) -> None:
        self.progress = Progress(0, 0, "starting")
        self.outcome: T | None = None
        self.error: BancadaError | None = None
        self.started = time.monotonic()
        self._events = events
        self._cancel = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    @property
    def running(self) -> bool:
        """Whether the thread is still at work."""
        return self._thread.is_alive()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started

    def cancel(self) -> None:
        """Ask the work to stop at its next piece of progress."""
        self._cancel.set()

    def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the end."""
        self._thread.join(timeout_s)

    def _work(self) -> None:
        try:
            while not self._cancel.is_set():
                self.progress = next(self._events)
            self._events.close()
            self.error = Cancelled()
        except StopIteration as stop:
            self.outcome = stop.value
        except BancadaError as error:
            self.error = error
        except Exception as error:
            # A defect must end as an error card, not as a progress bar that stands still.
            logging.getLogger(__name__).exception("a run failed")
            self.error = Unforeseen(why=f"{type(error).__name__}: {error}")
