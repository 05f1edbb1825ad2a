"""The worker: runs the machine's jobs one after another, each in a child of its own.

Reads its settings as one JSON line and lives as long as its standard input
stays open; without work it ends by itself. While it lives it holds the
worker's lock, which the system takes back however it dies.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

from filelock import Timeout

from lib.course.performed import Performed
from lib.errors import DatabaseBusy, JobDied, PlaceError
from lib.jobs import queue_of, worker_lock
from lib.jobs.processes import (
    GONE_S,
    adopt_orphans,
    end_leftovers,
    end_orphans,
    end_tree,
    how_it_ended,
    settings_as_json,
    settings_from_json,
    start,
    tell,
)
from lib.pipes import read_line
from lib.settings import Settings
from lib.store import Store
from lib.store.jobs import JobRecord

START_S = 5.0
IDLE_S = 10.0
LOOK_S = 0.2
WRITE_S = 0.4
# How long a child may take to end: after a cancel, and after its last word.
CANCEL_S = 5.0
EXIT_S = 5.0
BUSY_S = 60.0
# Errors whose cause is in the child's log.
ASKED_ABOUT = ("job-died", "unforeseen")

T = TypeVar("T")


class Child:
    """A child process, started ahead of its job: its imports take longer than many a step."""

    def __init__(self, settings: Settings) -> None:
        self.log = settings.logs_dir / f"job-{os.getpid()}-{time.time_ns():x}.log"
        self.process = start("lib.jobs.child", self.log)
        self.says: queue.Queue[dict[str, Any] | None] = queue.Queue()
        # What the step had measured when it last told.
        self.partial: str | None = None
        threading.Thread(target=self._listen, daemon=True).start()

    def end(self, patience_s: float) -> None:
        """Cancel its step, give it time to clean up, then kill what is left."""
        tell(self.process, "cancel")
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(patience_s)
        self.bury()

    def bury(self) -> None:
        """See to it that nothing of it is left."""
        end_tree(self.process)
        end_orphans()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def forget(self) -> None:
        """Remove its log: nothing happened that somebody will ask about."""
        self.log.unlink(missing_ok=True)

    def _listen(self) -> None:
        with suppress(ValueError, OSError):  # closed while it was read, or cut off in the middle of a line
            for line in self.process.stdout:  # type: ignore[union-attr]
                said = json.loads(line)
                self.partial = said.get("partial", self.partial)
                self.says.put(said)
        self.says.put(None)


class Worker:
    """One worker's life."""

    def __init__(self, settings: Settings, app_is_gone: threading.Event) -> None:
        self._settings = settings
        self._gone = app_is_gone
        self._child = Child(settings)
        self._store = Store(settings.store_url)
        self._table = self._store.jobs
        self._queue = queue_of(settings.jobs_dir)

    def work(self) -> None:
        """Run jobs until the app is gone or there has been nothing to do for a while."""
        try:
            end_leftovers(self._patiently(lambda: self._table.interrupt_all(self._queue)))
            idle_since = time.monotonic()
            while not self._gone.is_set() and time.monotonic() - idle_since < IDLE_S:
                record = self._patiently(lambda: self._table.claim(self._queue))
                if record is None:
                    self._gone.wait(LOOK_S)
                    continue
                self._run(record)
                if not self._gone.is_set():
                    self._child = Child(self._settings)
                idle_since = time.monotonic()
        finally:
            self._child.bury()
            self._child.forget()
            self._store.close()

    def _run(self, record: JobRecord) -> None:
        job_id, child = record.row.id, self._child
        self._patiently(lambda: self._table.note_process(job_id, child.process.pid))
        request = {"step": f"{record.row.lab}.{record.row.step}", "parameters": record.row.parameters}
        tell(child.process, settings_as_json(self._settings))
        tell(child.process, json.dumps(request))
        outcome = self._follow(job_id, child)
        error = outcome.get("error")
        made = Performed.from_json(outcome["result"]) if "result" in outcome else None
        if made is None or not self._patiently(lambda: self._table.finish(job_id, made.card)):
            # Kept first: whoever sees that the job has ended looks for the card at once.
            if (measured := outcome.get("result", child.partial)) is not None:
                self._patiently(lambda: self._table.keep(job_id, Performed.from_json(measured).card))
            self._patiently(lambda: self._table.end(job_id, "failed" if error else "interrupted", error))
        if error is None or error["id"] not in ASKED_ABOUT:
            child.forget()

    def _follow(self, job_id: int, child: Child) -> dict[str, Any]:
        """What a child's step came to, after its end: result, error, or nothing when it was stopped."""
        news: dict[str, Any] | None = None
        written = time.monotonic()
        while True:
            try:
                said = child.says.get(timeout=LOOK_S)
            except queue.Empty:
                said = {}
            if said is None or "result" in said or "error" in said:
                return self._last_word(said, child)
            news = said.get("progress", news)
            if self._gone.is_set():
                child.end(GONE_S)
                return {}
            if time.monotonic() - written >= WRITE_S:
                wanted, news, written = self._is_wanted(job_id, news), None, time.monotonic()
                if not wanted:
                    child.end(CANCEL_S)
                    return {}

    def _last_word(self, said: dict[str, Any] | None, child: Child) -> dict[str, Any]:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(EXIT_S)
        code = child.process.poll()
        child.bury()
        return said or {"error": JobDied(how=how_it_ended(code), log=child.log).record()}

    def _is_wanted(self, job_id: int, news: dict[str, Any] | None) -> bool:
        try:
            return self._table.report(job_id, news)
        except PlaceError:
            return True  # progress is not worth a run; whether the database is well again, the end will show

    def _patiently(self, write: Callable[[], T]) -> T:
        """Do what must not be lost because another process holds the database for a while."""
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                return write()
            except DatabaseBusy:
                if time.monotonic() > deadline:
                    raise


def main() -> None:
    """Entry point: settings on standard input."""
    line = read_line()
    if not line:
        return
    settings, gone = settings_from_json(line), threading.Event()
    threading.Thread(target=_wait_for_the_end_of, args=(gone,), daemon=True).start()
    adopt_orphans()
    with suppress(Timeout), worker_lock(settings.jobs_dir, START_S):
        Worker(settings, gone).work()


def _wait_for_the_end_of(app_is_gone: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    app_is_gone.set()


if __name__ == "__main__":
    main()
    sys.exit(0)
