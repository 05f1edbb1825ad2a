"""A form made, compared and run; and all of that tried, so that one stack that fails never stops the others."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib.convert.forms import FORMS, Agreement, Answers, Form, Place, agree, ask
from lib.convert.reference import Reference
from lib.course.result import Progress, outcome, part_of
from lib.errors import BancadaError, Cancelled

if TYPE_CHECKING:
    from lib.workbench import Workbench

Building = Generator[Progress, None, Place]


@dataclass(frozen=True)
class Measured:
    """What was found of a form; with an ``error`` the rest may be missing. ``took_s`` is the whole try."""

    form: Form
    place: Place | None
    agreement: Agreement | None
    answers: Answers | None
    took_s: float
    error: BancadaError | None = None

    @property
    def works(self) -> bool:
        """Whether it ran to the end."""
        return self.error is None

    @property
    def why(self) -> str:
        """The first line of what went wrong, in the words of who said it."""
        if self.error is None:
            return ""
        said = next(
            (self.error.parameters[one] for one in ("why", "how", "system") if one in self.error.parameters), ""
        )
        return (str(said) or str(self.error)).strip().splitlines()[0][:200]


def measure(workbench: Workbench, reference: Reference, building: Building) -> Generator[Progress, None, Measured]:
    """Make a form, compare it with the reference, and put the prompts to it; raises what these raise."""
    started = time.monotonic()
    place = yield from part_of(outcome(building), 0, 3)
    agreement = yield from part_of(outcome(agree(workbench, reference, place)), 1, 3)
    answers = yield from part_of(outcome(ask(workbench, reference, place)), 2, 3)
    return Measured(place.form, place, agreement, answers, time.monotonic() - started)


def attempt(
    workbench: Workbench, reference: Reference, form: str, building: Building
) -> Generator[Progress, None, Measured]:
    """``measure``, whose failure is a result: what was found until then, and why it went no further."""
    started = time.monotonic()
    place: Place | None = None
    agreement: Agreement | None = None
    answers: Answers | None = None
    error: BancadaError | None = None
    try:
        place = yield from part_of(outcome(building), 0, 3)
        # The answers first: they tell a learner more than a figure does.
        answers = yield from part_of(outcome(ask(workbench, reference, place)), 1, 3)
        agreement = yield from part_of(outcome(agree(workbench, reference, place)), 2, 3)
    except Cancelled:
        raise
    except BancadaError as failure:
        error = failure
    return Measured(FORMS[form], place, agreement, answers, time.monotonic() - started, error)
