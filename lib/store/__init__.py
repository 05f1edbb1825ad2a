"""The one store: run cards and answers, on SQLite by default, PostgreSQL by URL.

Every acknowledged write is on disk (``synchronous=FULL``). SQLite's write-ahead
log is used only where the linked SQLite is free of the WAL-reset corruption
(3.51.3 and later, which ``pysqlite3`` brings); elsewhere the slower rollback
journal keeps the same promise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from filelock import FileLock
from sqlalchemy import URL, ColumnElement, Engine, Select, and_, create_engine, event, func, make_url, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from lib.errors import CannotWrite, DatabaseBusy, DiskFull, NotADatabase
from lib.store.jobs import JobTable, in_utc
from lib.store.tables import Answer, RunCard, now

try:
    import pysqlite3 as sqlite
except ImportError:
    import sqlite3 as sqlite

__all__ = ["Answer", "RunCard", "Store", "sqlite_is_safe_for_wal"]

BUSY_S = 5.0
MIGRATIONS = Path(__file__).parent / "migrations"
# For how long a deleted run card can be brought back.
KEPT_DELETED = timedelta(days=30)
# A database takes no more than some ten thousand values in one statement.
_AT_ONCE = 5000
_IS_KEPT = RunCard.deleted_at.is_(None)
_WIPED: Mapping[str, Any] = {
    "parameters": {},
    "prediction": None,
    "result": "",
    "versions": {},
    "machine": {},
    "model_sha256": None,
}
# The databases that can be used, and how each inserts.
_INSERTS: Mapping[str, Callable[..., Any]] = {"sqlite": sqlite_insert, "postgresql": postgresql_insert}


def sqlite_is_safe_for_wal() -> bool:
    """Whether the linked SQLite has the fix for the WAL-reset race (3.51.3)."""
    version: tuple[int, ...] = sqlite.sqlite_version_info
    return version >= (3, 51, 3)


class Store:
    """Opens and migrates the database at ``url``; raises PlaceError kinds."""

    def __init__(self, url: str, busy_s: float = BUSY_S) -> None:
        parsed = _parsed(url)
        self.url = parsed.render_as_string(hide_password=True)
        self._busy_s = busy_s
        self._path: Path | None = None
        arguments: dict[str, Any] = {}
        if parsed.get_backend_name() == "sqlite":
            self._path = Path(parsed.database or "")
            arguments = {"module": sqlite, "connect_args": {"timeout": busy_s}}
            _make_folder(self._path.parent)
        try:
            self._engine: Engine = create_engine(parsed, **arguments)
        except ImportError as error:  # the driver is the learner's to install
            raise CannotWrite(path=self.url, why=str(error)) from error
        if self._path is not None:
            event.listen(self._engine, "connect", _tune_sqlite)
        self._migrate()

    def close(self) -> None:
        """Give back every connection."""
        self._engine.dispose()

    @cached_property
    def jobs(self) -> JobTable:
        """The jobs that were asked for."""
        return JobTable(self._session, _INSERTS[self._engine.dialect.name])

    def add_card(self, card: RunCard) -> str:
        """Keep a run card; gives back its id."""
        with self._session() as session:
            session.add(card)
            session.flush()
            return card.id

    def cards(
        self, learner: str, lab: str | None = None, step: str | None = None, limit: int | None = 200
    ) -> list[RunCard]:
        """A learner's run cards, newest first; ``limit`` None gives every one."""
        with self._session() as session:
            return list(session.scalars(_newest_first(select(RunCard), learner, lab, step).limit(limit)))

    def card_ids(self, learner: str, lab: str | None = None) -> list[str]:
        """The ids of all of a learner's run cards, newest first: what a card holds is read only where it is needed."""
        with self._session() as session:
            return list(session.scalars(_newest_first(select(RunCard.id), learner, lab)))

    def cards_of(self, learner: str, ids: Iterable[str]) -> list[RunCard]:
        """A learner's run cards of these ids, in their order; ids that are unknown or deleted are passed over."""
        wanted, found = list(ids), dict[str, RunCard]()
        with self._session() as session:
            for part in _parts(wanted):
                query = select(RunCard).where(RunCard.learner == learner, RunCard.id.in_(part), _IS_KEPT)
                found |= {card.id: card for card in session.scalars(query)}
        return [found[one] for one in wanted if one in found]

    def delete_cards(self, learner: str, ids: Iterable[str]) -> int:
        """Take a learner's own run cards away, together, so that they can come back together; gives back how many.

        They are no longer seen from here on. What they held is wiped at the first deletion that
        comes ``KEPT_DELETED`` later; only that the step was done stays for ever (``steps_done``).
        """
        moment, changed = now(), 0
        with self._session() as session:
            forgotten = RunCard.deleted_at < moment - KEPT_DELETED
            session.execute(update(RunCard).where(forgotten, RunCard.result != "").values(**_WIPED))
            for part in _parts(list(ids)):
                own = update(RunCard).where(RunCard.learner == learner, RunCard.id.in_(part), _IS_KEPT)
                changed += session.execute(own.values(deleted_at=moment)).rowcount  # type: ignore[attr-defined]
        return changed

    def restore_cards(self, learner: str, ids: Iterable[str]) -> int:
        """Bring a learner's own deleted run cards back, as long as they are not wiped; gives back how many."""
        changed = 0
        with self._session() as session:
            for part in _parts(list(ids)):
                own = update(RunCard).where(RunCard.learner == learner, RunCard.id.in_(part), _can_come_back())
                changed += session.execute(own.values(deleted_at=None)).rowcount  # type: ignore[attr-defined]
        return changed

    def deletions(self, learner: str) -> list[tuple[datetime, list[str]]]:
        """What a learner deleted and can have back: each deletion's moment in UTC and card ids, the last one first."""
        query = select(RunCard.deleted_at, RunCard.id).where(RunCard.learner == learner, _can_come_back())
        found: dict[datetime, list[str]] = {}
        with self._session() as session:
            for moment, card_id in session.execute(query.order_by(RunCard.deleted_at.desc())):
                found.setdefault(in_utc(moment).astimezone(UTC), []).append(card_id)  # type: ignore[union-attr]
        return list(found.items())

    def count_cards(self, learner: str, lab: str) -> int:
        """How many run cards a learner has of a lab."""
        query = select(func.count()).where(RunCard.learner == learner, RunCard.lab == lab, _IS_KEPT)
        with self._session() as session:
            return session.scalar(query) or 0

    def steps_done(self, learner: str, lab: str) -> set[str]:
        """The steps of a lab that a learner has run at least once.

        Runs whose cards were deleted count too: who tidies up a measurement has still done the step.
        """
        query = select(RunCard.step).where(RunCard.learner == learner, RunCard.lab == lab).distinct()
        with self._session() as session:
            return set(session.scalars(query))

    def answer(self, learner: str, lab: str, question: str, given: str, correct: bool) -> Answer:
        """Keep the newest answer to a question and count the attempt."""
        key = {"learner": learner, "lab": lab, "question": question}
        values = {"given": given, "correct": correct, "answered_at": now()}
        # Insert and update are each one statement, so that no attempt of another tab or process is lost.
        statement = _INSERTS[self._engine.dialect.name](Answer).values(**key, **values, attempts=1)
        update = {**values, "attempts": Answer.attempts + 1}
        with self._session() as session:
            session.execute(statement.on_conflict_do_update(index_elements=list(key), set_=update))
            return session.get_one(Answer, key)

    def answers(self, learner: str, lab: str) -> dict[str, Answer]:
        """A learner's newest answers in a lab, by question."""
        query = select(Answer).where(Answer.learner == learner, Answer.lab == lab)
        with self._session() as session:
            return {row.question: row for row in session.scalars(query)}

    def _migrate(self) -> None:
        # Two processes that open a new database at once must not both create it.
        lock: Any = FileLock(f"{self._path}.lock") if self._path else _no_lock()
        with self._translated(), lock, self._engine.connect() as connection:
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            logging.getLogger("alembic").setLevel(logging.WARNING)
            command.upgrade(config, "head")
            connection.commit()

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with self._translated(), Session(self._engine, expire_on_commit=False) as session, session.begin():
            yield session

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (OperationalError, DatabaseError) as error:
            raise self._ours(str(error.orig)) from error
        except OSError as error:
            raise CannotWrite(path=self._path or self.url, why=error.strerror or str(error)) from error

    def _ours(self, message: str) -> Exception:
        place = str(self._path or self.url)
        known: tuple[tuple[str, Callable[[], Exception]], ...] = (
            ("locked", lambda: DatabaseBusy(path=place, seconds=self._busy_s)),
            ("not a database", lambda: NotADatabase(path=place)),
            ("malformed", lambda: NotADatabase(path=place)),
            ("disk is full", lambda: DiskFull(path=place, need="–", free="0")),
        )
        return next((make() for text, make in known if text in message), CannotWrite(path=place, why=message))


def _newest_first(query: Select[Any], learner: str, lab: str | None, step: str | None = None) -> Select[Any]:
    query = query.where(RunCard.learner == learner, _IS_KEPT)
    if lab is not None:
        query = query.where(RunCard.lab == lab)
    if step is not None:
        query = query.where(RunCard.step == step)
    return query.order_by(RunCard.finished_at.desc())


def _can_come_back() -> ColumnElement[bool]:
    return and_(RunCard.deleted_at >= now() - KEPT_DELETED, RunCard.result != "")


def _parts(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), _AT_ONCE):
        yield ids[start : start + _AT_ONCE]


def _tune_sqlite(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA journal_mode={'WAL' if sqlite_is_safe_for_wal() else 'DELETE'}")
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
        known = parsed.get_backend_name() in _INSERTS
    except (SQLAlchemyError, ValueError) as error:
        raise CannotWrite(path=url.rsplit("@", 1)[-1], why=str(error)) from error
    if not known:
        raise CannotWrite(path=parsed.render_as_string(hide_password=True), why=f"not one of {', '.join(_INSERTS)}")
    return parsed


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWrite(path=folder, why=error.strerror or str(error)) from error


@contextmanager
def _no_lock() -> Iterator[None]:
    yield
