"""Jobs as rows: every change of a state is one transaction that locks the job's row before it looks.

States: ``queued`` → ``running`` → ``done``, ``failed``, ``cancelled`` or
``interrupted``. A cancelled job whose process is still ending has no
``finished_at`` yet.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, func, or_, select, update
from sqlalchemy.orm import Session

from lib.store.tables import AskerRow, JobRow, RunCard, now

ACTIVE = ("queued", "running")
# A learner and the prediction made, in the predicted fact's own unit.
MakeCard = Callable[[str, float | None], RunCard]


@dataclass(frozen=True)
class JobRecord:
    """A job and who waits for it, as the database had them in one moment."""

    row: JobRow
    askers: tuple[AskerRow, ...]

    @property
    def learners(self) -> tuple[str, ...]:
        """Those who still want it, first asked first."""
        return tuple(one.learner for one in self.askers if not one.withdrawn)


class JobTable:
    """The jobs of every queue, over the store's sessions."""

    def __init__(self, session: Callable[[], AbstractContextManager[Session]], insert: Callable[..., Any]) -> None:
        self._session = session
        self._insert = insert

    def submit(
        self, queue: str, lab: str, step: str, parameters: Mapping[str, Any], learner: str, prediction: float | None
    ) -> int:
        """Ask for a step; the id of the job, shared with whoever asked for the same and has no result yet."""
        key = key_of(lab, step, parameters)
        same = and_(JobRow.queue == queue, JobRow.key == key, JobRow.state.in_(ACTIVE))
        values = {"queue": queue, "key": key, "lab": lab, "step": step, "parameters": dict(parameters)}
        asker = {"prediction": prediction, "asked_at": now(), "withdrawn": False, "hidden": False}
        while True:
            with self._session() as session:
                new = self._insert(JobRow).values(**values, state="queued", created_at=now())
                session.execute(new.on_conflict_do_nothing())
                job_id = session.scalar(select(JobRow.id).where(same))
                if job_id is None or not self._lock(session, job_id):
                    continue  # the one that was active has just ended, its cards are written: a new one it is
                join = self._insert(AskerRow).values(job_id=job_id, learner=learner, **asker)
                session.execute(join.on_conflict_do_update(index_elements=["job_id", "learner"], set_=asker))
                return job_id

    def withdraw(self, job_id: int, learner: str) -> None:
        """Take a learner off; a job that nobody wants any more is cancelled."""
        with self._session() as session:
            if not self._lock(session, job_id):
                return
            _of_asker(session, job_id, learner, withdrawn=True)
            wanted = select(func.count()).where(AskerRow.job_id == job_id, AskerRow.withdrawn.is_(False))
            if session.scalar(wanted):
                return
            job = session.get_one(JobRow, job_id)
            # A running one has ended only when its process is gone; the worker sees to that.
            job.finished_at = now() if job.state == "queued" else None
            job.state = "cancelled"

    def hide(self, job_id: int, learner: str) -> None:
        """Do not show a learner again how a job ended."""
        with self._session() as session:
            _of_asker(session, job_id, learner, hidden=True)

    def claim(self, queue: str) -> JobRecord | None:
        """Start the job whose turn it is; only the worker of the queue does this."""
        with self._session() as session:
            waiting = self._waiting(session, queue)
            for record in waiting:
                turn = (session.scalar(select(func.max(JobRow.turn)).where(JobRow.queue == queue)) or 0) + 1
                started = {"state": "running", "turn": turn, "started_at": now()}
                here = and_(JobRow.id == record.row.id, JobRow.state == "queued")
                if _changed(session, update(JobRow).where(here).values(**started)):
                    return record
        return None

    def note_process(self, job_id: int, pid: int) -> None:
        """Keep which process runs a job."""
        with self._session() as session:
            session.execute(update(JobRow).where(JobRow.id == job_id).values(pid=pid))

    def report(self, job_id: int, progress: Mapping[str, Any] | None) -> bool:
        """Keep a running job's progress, if there is news; whether somebody still wants it."""
        running = and_(JobRow.id == job_id, JobRow.state == "running")
        with self._session() as session:
            if progress is None:
                return bool(session.scalar(select(func.count()).where(running)))
            return _changed(session, update(JobRow).where(running).values(progress=dict(progress)))

    def finish(self, job_id: int, make_card: MakeCard) -> bool:
        """Mark a running job done and write a run card for each asker, all or nothing."""
        with self._session() as session:
            if not self._end(session, job_id, "done"):
                return False
            for asker in session.scalars(select(AskerRow).where(AskerRow.job_id == job_id)):
                if not asker.withdrawn:
                    card = make_card(asker.learner, asker.prediction)
                    session.add(card)
                    asker.card_id = card.id
            return True

    def keep(self, job_id: int, make_card: MakeCard) -> None:
        """Write a run card of what a job had measured that did not come to its end.

        For those who still wanted it; when it ended because nobody did, for all who had asked.
        """
        with self._session() as session:
            askers = session.scalars(select(AskerRow).where(AskerRow.job_id == job_id)).all()
            for asker in [one for one in askers if not one.withdrawn] or askers:
                session.add(make_card(asker.learner, asker.prediction))

    def end(self, job_id: int, state: str, error: Mapping[str, Any] | None = None) -> bool:
        """Mark a running job failed or interrupted; False if it was cancelled before."""
        with self._session() as session:
            return self._end(session, job_id, state, error)

    def interrupt_all(self, queue: str) -> list[int]:
        """Mark what a dead worker left as running; gives back the processes that may be left of it."""
        running = and_(JobRow.queue == queue, JobRow.state == "running")
        with self._session() as session:
            left = select(JobRow.pid).where(JobRow.queue == queue, _occupies(), JobRow.pid.is_not(None))
            pids = [pid for pid in session.scalars(left) if pid is not None]
            session.execute(update(JobRow).where(running).values(state="interrupted", finished_at=now()))
            stopping = and_(JobRow.queue == queue, _occupies())
            session.execute(update(JobRow).where(stopping).values(finished_at=now()))
            return pids

    def fail_waiting(self, queue: str, error: Mapping[str, Any]) -> None:
        """Mark every waiting job failed: there is no way to run them."""
        with self._session() as session:
            waiting = and_(JobRow.queue == queue, JobRow.state == "queued")
            session.execute(update(JobRow).where(waiting).values(state="failed", error=dict(error), finished_at=now()))

    def newest(self, queue: str, lab: str, step: str, learner: str) -> JobRecord | None:
        """The newest job of a step that a learner asked for; None when it is hidden: older ones are past."""
        of_step = and_(JobRow.queue == queue, JobRow.lab == lab, JobRow.step == step)
        query = select(JobRow, AskerRow.hidden).join(AskerRow, AskerRow.job_id == JobRow.id)
        query = query.where(AskerRow.learner == learner, of_step).order_by(JobRow.id.desc()).limit(1)
        with self._session() as session:
            found = session.execute(query).first()
            return None if found is None or found.hidden else self._records(session, [found[0]])[0]

    def get(self, job_id: int) -> JobRecord:
        """One job."""
        with self._session() as session:
            return self._records(session, [session.get_one(JobRow, job_id)])[0]

    def active(self, queue: str) -> tuple[JobRecord, ...]:
        """What runs or is ending, then what waits, in the order in which it will run."""
        with self._session() as session:
            query = select(JobRow).where(JobRow.queue == queue, _occupies()).order_by(JobRow.turn)
            return (*self._records(session, session.scalars(query).all()), *self._waiting(session, queue))

    def ended(self, queue: str, limit: int) -> tuple[JobRecord, ...]:
        """What ended last, newest first."""
        ended = and_(JobRow.queue == queue, JobRow.finished_at.is_not(None))
        query = select(JobRow).where(ended).order_by(JobRow.finished_at.desc(), JobRow.id.desc()).limit(limit)
        with self._session() as session:
            return tuple(self._records(session, session.scalars(query).all()))

    def count(self, queue: str) -> tuple[int, int]:
        """How many jobs occupy the machine, and how many wait."""
        with self._session() as session:
            here = JobRow.queue == queue
            occupying = session.scalar(select(func.count()).where(here, _occupies())) or 0
            return occupying, session.scalar(select(func.count()).where(here, JobRow.state == "queued")) or 0

    def _waiting(self, session: Session, queue: str) -> list[JobRecord]:
        query = select(JobRow).where(JobRow.queue == queue, JobRow.state == "queued").order_by(JobRow.id)
        records = self._records(session, session.scalars(query).all())
        learners = {one for record in records for one in record.learners}
        turns = (
            select(AskerRow.learner, func.max(JobRow.turn))
            .join(JobRow, AskerRow.job_id == JobRow.id)
            .where(AskerRow.learner.in_(learners), JobRow.queue == queue, JobRow.turn.is_not(None))
            .group_by(AskerRow.learner)
        )
        served = {one: turn or 0 for one, turn in session.execute(turns)} if records else {}
        return in_turn(records, served)

    @staticmethod
    def _records(session: Session, rows: Sequence[JobRow]) -> list[JobRecord]:
        query = select(AskerRow).where(AskerRow.job_id.in_([row.id for row in rows]))
        askers = session.scalars(query.order_by(AskerRow.asked_at)).all() if rows else []
        return [JobRecord(row, tuple(one for one in askers if one.job_id == row.id)) for row in rows]

    @staticmethod
    def _lock(session: Session, job_id: int) -> bool:
        """Hold an active job's row until the transaction ends; False if it is active no more."""
        active = and_(JobRow.id == job_id, JobRow.state.in_(ACTIVE))
        return _changed(session, update(JobRow).where(active).values(state=JobRow.state))

    @staticmethod
    def _end(session: Session, job_id: int, state: str, error: Mapping[str, Any] | None = None) -> bool:
        ended = {"state": state, "error": dict(error) if error else None, "finished_at": now()}
        running = and_(JobRow.id == job_id, JobRow.state == "running")
        if _changed(session, update(JobRow).where(running).values(**ended)):
            return True
        stopping = and_(JobRow.id == job_id, JobRow.finished_at.is_(None))
        session.execute(update(JobRow).where(stopping).values(finished_at=now()))
        return False


def key_of(lab: str, step: str, parameters: Mapping[str, Any]) -> str:
    """What makes two requests the same: the step and its checked parameters."""
    return hashlib.sha256(json.dumps([lab, step, parameters], sort_keys=True).encode()).hexdigest()


def in_turn(records: Iterable[JobRecord], served: Mapping[str, int]) -> list[JobRecord]:
    """Jobs in the order in which they will run: who was served longest ago comes first, own jobs as asked.

    ``served`` has the number of each learner's last turn; who is not in it was never served.
    """
    left, last, order = sorted(records, key=lambda one: one.row.id), dict(served), list[JobRecord]()
    turn = max(last.values(), default=0)
    while left:
        first = min(left, key=lambda one: (min((last.get(name, 0) for name in one.learners), default=0), one.row.id))
        left.remove(first)
        order.append(first)
        turn += 1
        last.update(dict.fromkeys(first.learners, turn))
    return order


def in_utc(moment: datetime | None) -> datetime | None:
    """A moment out of the database, which SQLite gives back without its zone."""
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def _occupies() -> ColumnElement[bool]:
    """Runs, or was cancelled and its process is still ending."""
    return or_(JobRow.state == "running", and_(JobRow.state == "cancelled", JobRow.finished_at.is_(None)))


def _of_asker(session: Session, job_id: int, learner: str, **values: object) -> None:
    here = and_(AskerRow.job_id == job_id, AskerRow.learner == learner)
    session.execute(update(AskerRow).where(here).values(**values))


def _changed(session: Session, statement: Any) -> bool:
    return bool(session.execute(statement, execution_options={"synchronize_session": False}).rowcount)  # type: ignore[attr-defined]
