"""What a step gives back: data only. Page, notebook and terminal each draw it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import TypeVar

import pandas as pd

Outcome = TypeVar("Outcome")
Value = int | float | str | bool | tuple[str, ...] | None
Facts = Mapping[str, Value]


@dataclass(frozen=True)
class Progress:
    """A step's news while it runs: ``done`` of ``total`` in the unit that ``what`` names.

    ``what`` is a key of the lab's words under ``progress``; ``total`` 0 means unknown.
    """

    done: float
    total: float
    what: str
    detail: str = ""

    @property
    def share(self) -> float:
        """Done as a share of the total, 0 to 1."""
        return min(1.0, max(0.0, self.done / self.total)) if self.total > 0 else 0.0


@dataclass(frozen=True)
class Note:
    """A sentence to show: a key of the lab's words under ``notes``, and what fills it."""

    key: str
    parameters: Mapping[str, object] = field(default_factory=dict)


def note(key: str, /, **parameters: object) -> Note:
    """A note, its parameters as keywords."""
    return Note(key, parameters)


@dataclass(frozen=True)
class Result:
    """Facts (a name's suffix is the unit: ``peak_bytes``), an optional table, and notes.

    Column names of the table follow the same rule. ``more`` holds what a chart
    needs beside the table; it is kept with the run and never shown as such.
    """

    facts: Facts = field(default_factory=dict)
    table: pd.DataFrame | None = None
    notes: tuple[Note, ...] = ()
    more: Facts = field(default_factory=dict)

    def to_json(self) -> str:
        """The whole result as JSON, for the store."""
        table = (
            None
            if self.table is None
            else json.loads(self.table.to_json(orient="split", index=False, double_precision=15))
        )
        notes = [{"key": one.key, "parameters": dict(one.parameters)} for one in self.notes]
        return json.dumps(
            {"facts": dict(self.facts), "table": table, "notes": notes, "more": dict(self.more)}, ensure_ascii=False
        )

    @staticmethod
    def from_json(text: str) -> Result:
        """The result that ``to_json`` wrote; lists come back as tuples."""
        raw = json.loads(text)
        table = None
        if raw["table"] is not None:
            table = pd.DataFrame(raw["table"]["data"], columns=raw["table"]["columns"])
        notes = tuple(Note(one["key"], one["parameters"]) for one in raw["notes"])
        return Result(_tuples(raw["facts"]), table, notes, _tuples(raw["more"]))


def _tuples(raw: Mapping[str, object]) -> dict[str, Value]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}  # type: ignore[misc]


def part_of(events: Iterator[Progress | Outcome], done: int = 0, parts: int = 1) -> Generator[Progress, None, Outcome]:
    """Pass on the progress of one of several equal parts, and give back the last event, its outcome."""
    outcome: Outcome | None = None
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Progress):
                yield Progress((done + event.share) / parts, 1, event.what, event.detail)
            else:
                outcome = event
    assert outcome is not None
    return outcome


def outcome(events: Generator[Progress, None, Outcome]) -> Generator[Progress | Outcome, None, None]:
    """The same work as a stream whose last event is its outcome, as ``part_of`` takes it."""
    yield (yield from events)
