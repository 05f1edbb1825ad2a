"""What a step gives back: data only. Page, notebook and terminal each draw it."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import pandas as pd

Outcome = TypeVar("Outcome")
Value = int | float | str | bool | tuple[str, ...] | None
Facts = Mapping[str, Value]


class Part(NamedTuple):
    """One of several things that a step works on at the same time: its name, and how far it is in bytes."""

    name: str
    done: float
    total: float

    @property
    def share(self) -> float:
        """Done as a share of the total, 0 to 1."""
        return _share(self.done, self.total)


@dataclass(frozen=True)
class Progress:
    """A step's news while it runs: ``done`` of ``total`` in the unit that ``what`` names.

    ``what`` is a key of the lab's words under ``progress``; ``total`` 0 means unknown.
    ``parts`` get a bar each below the whole.
    """

    done: float
    total: float
    what: str
    detail: str = ""
    parts: Sequence[Part] = ()

    @property
    def share(self) -> float:
        """Done as a share of the total, 0 to 1."""
        return _share(self.done, self.total)

    @staticmethod
    def from_json(raw: Mapping[str, Any]) -> Progress:
        """The progress that ``dataclasses.asdict`` and JSON made lists of."""
        return Progress(**{**raw, "parts": tuple(Part(*one) for one in raw.get("parts", ()))})


def _share(done: float, total: float) -> float:
    return min(1.0, max(0.0, done / total)) if total > 0 else 0.0


@dataclass(frozen=True)
class Note:
    """A sentence to show: a key of the lab's words under ``notes``, and what fills it."""

    key: str
    parameters: Mapping[str, object] = field(default_factory=dict)


def note(key: str, /, **parameters: object) -> Note:
    """A note, its parameters as keywords."""
    return Note(key, parameters)


@dataclass(frozen=True)
class Listing:
    """A text to read or to take along, as it is: a program, a file, what went over a wire.

    ``name`` is a key of the lab's words under ``listings``; ``language`` is for the colours.
    """

    name: str
    text: str
    language: str = "text"


@dataclass(frozen=True)
class Result:
    """Facts (a name's suffix is the unit: ``peak_bytes``), an optional table, notes and listings.

    Column names of the table follow the same rule. ``more`` holds what a chart
    needs beside the table; it is kept with the run and never shown as such.
    A step may give a ``partial`` result while it goes on: if it is cancelled or
    fails, the newest one is kept as a run card of its own.
    """

    facts: Facts = field(default_factory=dict)
    table: pd.DataFrame | None = None
    notes: tuple[Note, ...] = ()
    more: Facts = field(default_factory=dict)
    listings: tuple[Listing, ...] = ()
    partial: bool = False

    def so_far(self) -> Result:
        """The same, marked as what a step that goes on has measured so far."""
        return replace(self, partial=True, notes=(note("partial"), *self.notes))

    def to_json(self) -> str:
        """The whole result as JSON, for the store."""
        table = (
            None
            if self.table is None
            else json.loads(self.table.to_json(orient="split", index=False, double_precision=15))
        )
        notes = [{"key": one.key, "parameters": dict(one.parameters)} for one in self.notes]
        raw = {
            "facts": dict(self.facts),
            "table": table,
            "notes": notes,
            "more": dict(self.more),
            "listings": [vars(one) for one in self.listings],
            "partial": self.partial,
        }
        return json.dumps(raw, ensure_ascii=False)

    @staticmethod
    def from_json(text: str) -> Result:
        """The result that ``to_json`` wrote; lists come back as tuples."""
        raw = json.loads(text)
        table = None
        if raw["table"] is not None:
            table = pd.DataFrame(raw["table"]["data"], columns=raw["table"]["columns"])
        notes = tuple(Note(one["key"], one["parameters"]) for one in raw["notes"])
        # Cards from before there were listings have none.
        listings = tuple(Listing(**one) for one in raw.get("listings", ()))
        return Result(_tuples(raw["facts"]), table, notes, _tuples(raw["more"]), listings, raw.get("partial", False))


def _tuples(raw: Mapping[str, object]) -> dict[str, Value]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in raw.items()}  # type: ignore[misc]


def part_of(events: Iterator[Progress | Outcome], done: int = 0, parts: int = 1) -> Generator[Progress, None, Outcome]:
    """Pass on the progress of one of several equal parts, and give back the last event, its outcome."""
    outcome: Outcome | None = None
    with closing(events):  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Progress):
                yield Progress((done + event.share) / parts, 1, event.what, event.detail, event.parts)
            else:
                outcome = event
    assert outcome is not None
    return outcome


def growing(
    events: Generator[Progress | Outcome, None, None], made: Callable[[Outcome], Result], begun: float = 0.0
) -> Generator[Progress | Result, None, None]:
    """The last part of a step, which starts when a share of ``begun`` is done and finds more and more.

    Of each outcome comes a partial result, in the end the whole one, which is made of the last outcome.
    """
    result = Result()
    with closing(events):
        for event in events:
            if isinstance(event, Progress):
                yield Progress(begun + (1 - begun) * event.share, 1, event.what, event.detail, event.parts)
            else:
                result = made(event)
                yield result.so_far()
    yield result


def outcome(events: Generator[Progress, None, Outcome]) -> Generator[Progress | Outcome, None, None]:
    """The same work as a stream whose last event is its outcome, as ``part_of`` takes it."""
    yield (yield from events)
