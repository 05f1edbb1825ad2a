"""A step's parameters, declared once as ``Annotated`` types.

From one declaration come the page's widgets, the notebook's parameter cell and
the command line's options. This module knows nothing of any of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from lib.errors import BadParameter


@dataclass(frozen=True)
class Range:
    """A number from ``low`` to ``high``, both included."""

    low: float
    high: float
    step: float | None = None


@dataclass(frozen=True)
class Choice:
    """One of some ids, or several where the type is a tuple; the list may be computed when asked."""

    options: Sequence[Any] | Callable[[], Sequence[Any]]

    def values(self) -> tuple[Any, ...]:
        """The ids that can be chosen now."""
        return tuple(self.options() if callable(self.options) else self.options)


@dataclass(frozen=True)
class Text:
    """Free text of at most ``max_length`` characters."""

    max_length: int = 200


@dataclass(frozen=True)
class ModelName:
    """The id of a model that came from outside: the catalog's with a file, or the learner's own."""


Rule = Range | Choice | Text | ModelName


@dataclass(frozen=True)
class Parameter:
    """One parameter of a step."""

    name: str
    kind: type
    many: bool
    default: Any
    rule: Rule | None

    def check(self, value: object) -> Any:
        """``value`` in the declared type and bounds, of several each once; raises BadParameter."""
        if self.many:
            if isinstance(value, str) or not isinstance(value, Sequence):
                value = (value,)
            if not value:
                raise self._bad("–")
            return tuple(dict.fromkeys(self._check_one(one) for one in value))
        return self._check_one(value)

    def parse(self, text: str) -> Any:
        """The value that a command line or a URL wrote as ``text``."""
        if self.many:
            return self.check(tuple(self._parse_one(part.strip()) for part in text.split(",") if part.strip()))
        return self.check(self._parse_one(text))

    def allowed(self) -> str:
        """The bounds or choices, as a learner reads them in an error."""
        if isinstance(self.rule, Range):
            return f"{self.rule.low:g} … {self.rule.high:g}"
        if isinstance(self.rule, Choice):
            return ", ".join(str(value) for value in self.rule.values())
        if isinstance(self.rule, Text):
            return f"≤ {self.rule.max_length}"
        if isinstance(self.rule, ModelName):
            return "python -m lib.cli models"
        return self.kind.__name__

    def _parse_one(self, text: str) -> object:
        if self.kind is bool:
            known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
            if text.lower() not in known:
                raise self._bad(text)
            return known[text.lower()]
        try:
            return self.kind(text)
        except ValueError:
            raise self._bad(text) from None

    def _check_one(self, value: object) -> Any:
        if self.kind is float and type(value) is int:
            value = float(value)
        if type(value) is not self.kind:
            raise self._bad(value)
        if isinstance(self.rule, Range):
            # The comparison also refuses NaN, which is neither above nor below.
            if not self.rule.low <= value <= self.rule.high:  # type: ignore[operator]
                raise self._bad(value)
        elif isinstance(self.rule, Choice):
            if value not in self.rule.values():
                raise self._bad(value)
        elif isinstance(self.rule, Text) and len(str(value)) > self.rule.max_length:
            raise self._bad(f"{str(value)[:40]}…")
        return value

    def _bad(self, value: object) -> BadParameter:
        return BadParameter(name=self.name, value=value, allowed=self.allowed())


def parameters_of(function: Callable[..., object]) -> tuple[Parameter, ...]:
    """The parameters that a step function's signature declares."""
    hints = get_type_hints(function, include_extras=True)
    found = []
    for name, parameter in inspect.signature(function).parameters.items():
        rule: Rule | None = None
        kind = hints[name]
        if get_origin(kind) is Annotated:
            kind, *extras = get_args(kind)
            rule = next((extra for extra in extras if isinstance(extra, Rule)), None)
        many = get_origin(kind) is tuple
        found.append(Parameter(name, get_args(kind)[0] if many else kind, many, parameter.default, rule))
    return tuple(found)


def checked(parameters: Sequence[Parameter], given: Mapping[str, object]) -> dict[str, Any]:
    """Every parameter's value, given or default, in bounds; raises BadParameter."""
    known = {parameter.name for parameter in parameters}
    for name, value in given.items():
        if name not in known:
            raise BadParameter(name=name, value=value, allowed=", ".join(sorted(known)) or "–")
    return {one.name: one.check(given.get(one.name, one.default)) for one in parameters}
