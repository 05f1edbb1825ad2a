"""The child of a job: performs one step and says what came out.

Reads settings and request as two JSON lines, writes JSON lines of progress and
partial results, and last the result or the error. ``cancel`` on standard input closes the step,
which then cleans up; so does its end, after which this process and all below
it are gone within moments. It knows nothing of learners and predictions.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Generator
from contextlib import closing, suppress
from dataclasses import asdict
from typing import IO, Any

import psutil

from lib.course.labs import find_step, labs
from lib.course.performed import Performed
from lib.course.result import Progress
from lib.course.run import only_ours, perform
from lib.errors import BancadaError, Cancelled
from lib.jobs.processes import GONE_S, kill_all, settings_from_json
from lib.pipes import read_line
from lib.workbench import Workbench

SAY_S = 0.1
NICEST = 19


class Wire:
    """What the worker hears of this process, and what it asks of it."""

    def __init__(self, answers: IO[str]) -> None:
        self.cancelled = threading.Event()
        self._answers = answers
        self._said = 0.0

    def say(self, **message: object) -> None:
        """One line to the worker; a worker that is dead is noticed by ``listen``."""
        with suppress(OSError):
            print(json.dumps(message), file=self._answers, flush=True)

    def drive(self, events: Generator[Progress | Performed, None, Performed]) -> Performed:
        """Run a step to its end, telling of its progress and of what it has measured so far; raises Cancelled."""
        with closing(events):
            while not self.cancelled.is_set():
                try:
                    progress = next(events)
                except StopIteration as stop:
                    outcome: Performed = stop.value
                    return outcome
                if isinstance(progress, Performed):
                    self.say(partial=progress.to_json())
                elif time.monotonic() - self._said >= SAY_S:
                    self.say(progress=asdict(progress))
                    self._said = time.monotonic()
        raise Cancelled

    def listen(self) -> None:
        """Cancel when told to; when the worker is gone, cancel too, and soon after end everything."""
        while line := read_line():
            if line.strip() == b"cancel":
                self.cancelled.set()
        self.cancelled.set()
        time.sleep(GONE_S)
        with suppress(psutil.Error):
            kill_all(psutil.Process().children(recursive=True))
        os._exit(1)


def main() -> None:
    """Entry point: settings and request on standard input, the outcome on standard output."""
    wire = Wire(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    # A library may print: answers have a stream of their own.
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    with suppress(psutil.Error, OSError):
        psutil.Process().nice(NICEST if os.name == "posix" else psutil.BELOW_NORMAL_PRIORITY_CLASS)
    labs()  # imported now, while nobody waits yet
    settings, request = read_line(), read_line()
    if not request:
        return
    threading.Thread(target=wire.listen, daemon=True).start()
    _perform(wire, settings, json.loads(request))


def _perform(wire: Wire, settings: bytes, request: dict[str, Any]) -> None:
    workbench = Workbench(settings_from_json(settings))
    try:
        with only_ours():
            step = find_step(request["step"])
            performed = wire.drive(perform(step, workbench, request["parameters"]))
        wire.say(result=performed.to_json())
    except BancadaError as error:
        wire.say(error=error.record())
    finally:
        workbench.close()


if __name__ == "__main__":
    main()
