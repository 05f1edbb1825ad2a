"""Rehearsals of a day without a network: whom does Foundry Local call, and does it answer all the same?"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib.course.result import Progress
from lib.foundry.process import QUIET, together, trial
from lib.foundry.recorder import Call, recorder
from lib.foundry.trials import Own

if TYPE_CHECKING:
    from lib.workbench import Workbench

# The first report was seen one second after the start, the last one nine seconds after it.
WAIT_S = 8.0
MAX_TOKENS = 8
# In each the SDK's own setting against telemetry is on.
REHEARSALS: Mapping[str, tuple[bool, bool]] = {
    "setting": (False, False),
    "ci": (True, False),
    "ci_public": (True, True),
}
"""By name: whether CI is set, and whether the public catalog is asked."""


@dataclass(frozen=True)
class Rehearsal:
    """Who was called, how long it took to be ready, and what was answered."""

    name: str
    in_ci: bool
    public: bool
    calls: tuple[Call, ...]
    init_s: float
    ready_s: float
    text: str
    public_models: int | None


def rehearse(workbench: Workbench, own: Own, prompt: str) -> Generator[Progress, None, list[Rehearsal]]:
    """Every rehearsal at the same time, each in a child whose proxy is a recorder of its own."""
    with ExitStack() as stack:
        recorders = {name: stack.enter_context(recorder()) for name in REHEARSALS}
        asked = {"path": str(own.path), "prompt": prompt, "max_tokens": MAX_TOKENS, "wait_s": WAIT_S}
        trials = {
            name: trial(
                workbench,
                "rehearse",
                {**asked, "public": public},
                own.model,
                {**recorders[name].environment, **(QUIET if in_ci else {})},
            )
            for name, (in_ci, public) in REHEARSALS.items()
        }
        found = yield from together(trials)
        return [
            Rehearsal(
                name,
                *REHEARSALS[name],
                tuple(recorders[name].calls),
                found[name]["init_s"],
                found[name]["ready_s"],
                found[name]["text"],
                found[name]["public"],
            )
            for name in REHEARSALS
        ]
