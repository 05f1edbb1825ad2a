"""Two runs side by side: what they had in common, in what they differ, and what that changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from lib.course.run import Run
from lib.text import Words


class Difference(NamedTuple):
    """A parameter, version or property of the machine that two runs do not share, readable."""

    name: str
    first: str
    second: str


class Beside(NamedTuple):
    """A fact that both runs have, readable; difference and ratio are second to first, "–" where there is none."""

    name: str
    first: str
    second: str
    difference: str
    ratio: str


def differing(first: Mapping[str, Any], second: Mapping[str, Any], said: Words) -> list[Difference]:
    """What is not the same in both; what one of them lacks counts as different."""
    names = [name for name in {**first, **second} if _listed(first.get(name)) != _listed(second.get(name))]
    return [
        Difference(said.label(name), said.value(name, first.get(name)), said.value(name, second.get(name)))
        for name in names
    ]


def facts_beside(first: Run, second: Run, said: Words) -> list[Beside]:
    """Every fact that both have, in the order of the first."""
    ours, theirs = first.result.facts, second.result.facts
    return [_beside(name, ours[name], theirs[name], said) for name in ours if name in theirs]


def _beside(name: str, first: object, second: object, said: Words) -> Beside:
    difference = ratio = "–"
    if is_number(first) and is_number(second):
        change = second - first  # type: ignore[operator]
        difference = ("+" if change > 0 else "") + said.value(name, change)
        ratio = f"{said.number(second / first, 2)} ×" if first else "–"  # type: ignore[operator]
    return Beside(said.label(name), said.value(name, first), said.value(name, second), difference, ratio)


def is_number(value: object) -> bool:
    """Whether a value is measured or counted: no yes or no, no text."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
