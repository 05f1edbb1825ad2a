"""The one store: run cards and answers, on SQLite by default, PostgreSQL by URL.

Every acknowledged write is on disk (``synchronous=FULL``). SQLite's write-ahead
log is used only where the linked SQLite is free of the WAL-reset corruption
(3.51.3 and later, which ``pysqlite3`` brings); elsewhere the slower rollback
journal keeps the same promise.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from filelock import FileLock
from sqlalchemy import URL, Engine, create_engine, event, func, make_url, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.exc import DatabaseError, OperationalError, SQLAlchemyError
from sqlalchemy.orm import Session

from lib.errors import CannotWrite, DatabaseBusy, DiskFull, NotADatabase
from lib.store.jobs import JobTable
from lib.store.tables import Answer, RunCard, now

try:
    import pysqlite3 as sqlite
except ImportError:
    import sqlite3 as sqlite

__all__ = ["Answer", "RunCard", "Store", "sqlite_is_safe_for_wal"]

BUSY_S = 5.0
MIGRATIONS = Path(__file__).parent / "migrations"
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

    def cards(self, learner: str, lab: str | None = None, step: str | None = None, limit: int = 200) -> list[RunCard]:
        """A learner's run cards, newest first."""
        query = select(RunCard).where(RunCard.learner == learner)
        if lab is not None:
            query = query.where(RunCard.lab == lab)
        if step is not None:
            query = query.where(RunCard.step == step)
        with self._session() as session:
            return list(session.scalars(query.order_by(RunCard.finished_at.desc()).limit(limit)))

    def count_cards(self, learner: str, lab: str) -> int:
        """How many run cards a learner has of a lab."""
        query = select(func.count()).where(RunCard.learner == learner, RunCard.lab == lab)
        with self._session() as session:
            return session.scalar(query) or 0

    def steps_done(self, learner: str, lab: str) -> set[str]:
        """The steps of a lab that a learner has run at least once."""
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
