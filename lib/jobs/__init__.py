"""Long steps as jobs: asked for by anybody, run one at a time, in a process of their own.

``Jobs`` is what the app uses. Its worker (``worker.py``) runs each job in a
child (``child.py``); both end when the app does, however it ends. That a
worker lives is a lock of the system on a file, never a clock.
"""

from __future__ import annotations

import logging
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from lib.errors import BancadaError, CannotWrite, JobDied, from_record
from lib.jobs.processes import end_leftovers, forget_old_logs, how_it_ended, settings_as_json, start, tell
from lib.store.jobs import JobRecord, JobTable, in_utc

if TYPE_CHECKING:
    from lib.course.lab import Step
    from lib.course.result import Progress
    from lib.workbench import Workbench

LOOK_S = 1.0
# A worker that cannot even start is tried this often before the waiting jobs are given up.
STARTS = 3


@dataclass(frozen=True)
class Job:
    """A job as one learner sees it; ``before`` counts the jobs that come first while it waits."""

    id: int
    lab: str
    step: str
    parameters: Mapping[str, Any]
    state: str
    learners: tuple[str, ...]
    error: BancadaError | None
    prediction: float | None
    before: int
    started_at: datetime | None
    finished_at: datetime | None
    raw_progress: Mapping[str, Any] | None

    @property
    def active(self) -> bool:
        """Whether something will still happen to it."""
        return self.state in ("queued", "running", "stopping")

    @property
    def elapsed_s(self) -> float:
        """Seconds from its start to its end, or to now."""
        if self.started_at is None:
            return 0.0
        return max(0.0, ((self.finished_at or datetime.now(UTC)) - self.started_at).total_seconds())

    @property
    def progress(self) -> Progress:
        """Its newest progress."""
        from lib.course.result import Progress  # brings pandas, which the worker can do without

        return Progress.from_json(self.raw_progress) if self.raw_progress else Progress(0, 0, "starting")


class Jobs:
    """The jobs of this machine: asking, withdrawing, looking, and seeing to it that they run."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench
        self._worker: subprocess.Popen[bytes] | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._wake = threading.Event()
        self._closed = False
        self._watcher: threading.Thread | None = None

    @cached_property
    def queue(self) -> str:
        """This machine's queue: machines that share a database each run their own jobs."""
        return queue_of(self._workbench.settings.jobs_dir)

    @property
    def _table(self) -> JobTable:
        return self._workbench.store.jobs

    def submit(self, learner: str, step: Step, given: Mapping[str, object], prediction: float | None = None) -> Job:
        """Ask for a step; who asks for what is already asked for shares it. Raises BadParameter."""
        from lib.course.run import plain, predicted  # with it come charts, which the worker can do without

        parameters, base = plain(step.check(given)), predicted(step, prediction)
        return self._submit(step.lab.id, step.id, parameters, learner, base)

    def again(self, job: Job, learner: str) -> Job:
        """Ask once more for a job that ended, with the learner's own prediction for it."""
        return self._submit(job.lab, job.step, job.parameters, learner, job.prediction)

    def newest(self, learner: str, step: Step) -> Job | None:
        """The learner's newest job of a step, waiting, running or ended; None when there is none to show."""
        record = self._table.newest(self.queue, step.lab.id, step.id, learner)
        return self._job(record, learner) if record else None

    def get(self, job_id: int, learner: str | None = None) -> Job:
        """One job."""
        return self._job(self._table.get(job_id), learner)

    def active(self) -> tuple[Job, ...]:
        """What runs, then what waits in the order in which it will run."""
        records = self._table.active(self.queue)
        return tuple(_seen(record, None, before) for before, record in enumerate(records))

    def ended(self, limit: int = 10) -> tuple[Job, ...]:
        """What ended last, newest first."""
        return tuple(_seen(record, None, 0) for record in self._table.ended(self.queue, limit))

    def cancel(self, job_id: int, learner: str) -> None:
        """Take a learner off a job; it is stopped when nobody else wants it."""
        self._table.withdraw(job_id, learner)

    def hide(self, job_id: int, learner: str) -> None:
        """Do not show the learner again how a job ended."""
        self._table.hide(job_id, learner)

    def recover(self) -> bool:
        """Mark what a dead worker left as interrupted, and see to the end of its child; False when a worker lives."""
        try:
            with worker_lock(self._workbench.settings.jobs_dir, 0):
                pids = self._table.interrupt_all(self.queue)
        except Timeout:
            return False
        end_leftovers(pids)
        return True

    def start_watching(self) -> None:
        """From now on a thread sees to it that a worker lives while there is work."""
        if self._watcher is None:
            self._watcher = threading.Thread(target=self._watch, name="jobs", daemon=True)
            self._watcher.start()

    def close(self) -> None:
        """Stop watching; the worker ends, and with it what it runs."""
        self._closed = True
        self._wake.set()
        if self._watcher is not None:
            self._watcher.join()
        if self._worker is not None:
            assert self._worker.stdin is not None
            self._worker.stdin.close()
            self._worker.wait()

    def _submit(
        self, lab: str, step: str, parameters: Mapping[str, Any], learner: str, prediction: float | None
    ) -> Job:
        job_id = self._table.submit(self.queue, lab, step, parameters, learner, prediction)
        self._wake.set()
        return self.get(job_id, learner)

    def _job(self, record: JobRecord, learner: str | None) -> Job:
        before = 0
        if record.row.state == "queued":
            ids = [one.row.id for one in self._table.active(self.queue)]
            before = ids.index(record.row.id) if record.row.id in ids else 0
        return _seen(record, learner, before)

    def _watch(self) -> None:
        told = ""
        while not self._closed:
            try:
                self._look()
            except Exception as error:
                # A database that is busy or a disk that is full may be well again in a second.
                if str(error) != told:
                    foreseen = isinstance(error, BancadaError)
                    logging.getLogger(__name__).warning("cannot look after the jobs: %s", error, exc_info=not foreseen)
                told = str(error)
            self._wake.wait(LOOK_S)
            self._wake.clear()

    def _look(self) -> None:
        occupying, waiting = self._table.count(self.queue)
        if self._worker is not None and self._worker.poll() is not None:
            self._bury(self._worker.returncode)
        if self._worker is not None or not occupying + waiting:
            return
        if self.recover() and waiting and time.monotonic() >= self._retry_at:
            forget_old_logs(self._workbench.logs)
            self._worker = start("lib.jobs.worker", self._log, answers=False)
            tell(self._worker, settings_as_json(self._workbench.settings))

    def _bury(self, code: int) -> None:
        self._worker = None
        self._failures = self._failures + 1 if code > 0 else 0
        self._retry_at = time.monotonic() + (2.0**self._failures if self._failures else 0.0)
        if self._failures >= STARTS:
            self._table.fail_waiting(self.queue, JobDied(how=how_it_ended(code), log=self._log).record())
            self._failures = 0

    @property
    def _log(self) -> Path:
        return self._workbench.logs / f"jobs-{os.getpid()}.log"


def queue_of(folder: Path) -> str:
    """The name of the machine's queue, made when it is first asked for; raises CannotWrite."""
    path = folder / "queue"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "queue.lock"):
            if not path.exists():
                path.write_text(uuid.uuid4().hex, encoding="ascii")
            return path.read_text(encoding="ascii")
    except OSError as error:
        raise CannotWrite(path=folder, why=error.strerror or str(error)) from error


@contextmanager
def worker_lock(folder: Path, patience_s: float) -> Iterator[None]:
    """What the living worker holds; raises Timeout while another process does, and CannotWrite."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / "worker.lock", thread_local=False)
        lock.acquire(timeout=patience_s)
    except OSError as error:
        if isinstance(error, Timeout):
            raise
        raise CannotWrite(path=folder, why=error.strerror or str(error)) from error
    try:
        yield
    finally:
        lock.release()


def _seen(record: JobRecord, learner: str | None, before: int) -> Job:
    row = record.row
    own = next((one for one in record.askers if one.learner == learner), None)
    state = "stopping" if row.state == "cancelled" and row.finished_at is None else row.state
    if own is not None and own.withdrawn and state != "stopping":
        state = "cancelled"
    return Job(
        id=row.id,
        lab=row.lab,
        step=row.step,
        parameters=row.parameters,
        state=state,
        learners=record.learners or tuple(one.learner for one in record.askers),
        error=from_record(row.error) if row.error else None,
        prediction=own.prediction if own else None,
        before=before,
        started_at=in_utc(row.started_at),
        finished_at=in_utc(row.finished_at),
        raw_progress=row.progress,
    )
