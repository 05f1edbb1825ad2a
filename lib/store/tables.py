"""The tables, as SQLAlchemy sees them. Their history is in ``migrations/``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, DateTime, Float, ForeignKey, Index, Integer, String, Text, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """What every table derives from."""


def now() -> datetime:
    """This moment in UTC."""
    return datetime.now(UTC)


class RunCard(Base):
    """One run of a step: what ran, on what, and what was measured. ``deleted_at`` while it can be brought back."""

    __tablename__ = "run_cards"
    __table_args__ = (Index("ix_run_cards_learner_lab_step", "learner", "lab", "step", "finished_at"),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    learner: Mapped[str] = mapped_column(String(64))
    lab: Mapped[str] = mapped_column(String(40))
    step: Mapped[str] = mapped_column(String(40))
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    prediction: Mapped[float | None] = mapped_column(Float)
    result: Mapped[str] = mapped_column(Text)
    versions: Mapped[dict[str, str]] = mapped_column(JSON)
    machine: Mapped[dict[str, Any]] = mapped_column(JSON)
    model_sha256: Mapped[str | None] = mapped_column(String(64))
    duration_s: Mapped[float] = mapped_column(Float)
    finished_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)
    deleted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class Answer(Base):
    """A learner's newest answer to a quiz question or an exercise."""

    __tablename__ = "answers"

    learner: Mapped[str] = mapped_column(String(64), primary_key=True)
    lab: Mapped[str] = mapped_column(String(40), primary_key=True)
    question: Mapped[str] = mapped_column(String(40), primary_key=True)
    given: Mapped[str] = mapped_column(Text)
    correct: Mapped[bool]
    attempts: Mapped[int] = mapped_column(Integer, default=1)
    answered_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=now)


class JobRow(Base):
    """A long step that somebody asked for. ``turn`` numbers the jobs that a queue has started, in order."""

    __tablename__ = "jobs"
    __table_args__ = (
        # The same work asked for twice is one row while it waits or runs.
        Index(
            "uq_jobs_active",
            "queue",
            "key",
            unique=True,
            sqlite_where=text("state IN ('queued', 'running')"),
            postgresql_where=text("state IN ('queued', 'running')"),
        ),
        Index("ix_jobs_queue_state", "queue", "state"),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    queue: Mapped[str] = mapped_column(String(32))
    key: Mapped[str] = mapped_column(String(64))
    lab: Mapped[str] = mapped_column(String(40))
    step: Mapped[str] = mapped_column(String(40))
    parameters: Mapped[dict[str, Any]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(12))
    turn: Mapped[int | None] = mapped_column(Integer)
    pid: Mapped[int | None] = mapped_column(Integer)
    progress: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    started_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    finished_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))


class AskerRow(Base):
    """Who asked for a job, with the prediction made for it. ``hidden`` once the learner has seen how it ended."""

    __tablename__ = "job_askers"
    __table_args__ = (Index("ix_job_askers_learner", "learner", "job_id"),)

    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    learner: Mapped[str] = mapped_column(String(64), primary_key=True)
    prediction: Mapped[float | None] = mapped_column(Float)
    asked_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    withdrawn: Mapped[bool] = mapped_column(default=False)
    hidden: Mapped[bool] = mapped_column(default=False)
    card_id: Mapped[str | None] = mapped_column(String(32))
