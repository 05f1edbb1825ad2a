"""A class presses the button at the same moment: the embedded engine as it is, and set up for a class.

The class profile has a slot for every learner, and every slot has read the common system prompt
beforehand. A slot that knows the beginning of a prompt reads only the rest.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lib.bench.load import Answer, Target, closed_loop, run_load
from lib.bench.metrics import Count, Metrics, measure
from lib.course.result import Progress, outcome, part_of

if TYPE_CHECKING:
    from lib.workbench import Workbench

DEFAULT_SLOTS = 4
CONTEXT_TOKENS = 1024
PROFILES = ("default", "class")


@dataclass(frozen=True)
class Burst:
    """One burst on one profile."""

    profile: str
    slots: int
    round: int
    metrics: Metrics
    answers: tuple[Answer, ...]


def bursts(
    workbench: Workbench,
    model: str,
    learners: int,
    system: str,
    prompts: Sequence[str],
    max_tokens: int,
    rounds: int,
    count: Count | None = None,
) -> Generator[Progress | list[Burst], None, None]:
    """Let ``learners`` ask at once, ``rounds`` times on each profile in turn; after each comes what is known so far.

    Every burst is on a fresh engine, which has answered once; the first error of a learner ends it and is raised.
    """
    found: list[Burst] = []
    turns = rounds * len(PROFILES)
    for turn in range(turns):
        profile = PROFILES[turn % len(PROFILES)]
        work = _burst(workbench, model, profile, learners, system, prompts, max_tokens)
        slots, answers = yield from part_of(outcome(work), turn, turns)
        met = measure(answers, max_tokens, count)
        found.append(Burst(profile, slots, turn // len(PROFILES) + 1, met, tuple(answers)))
        yield found


def warm(target: Target, slots: int) -> Generator[Progress, None, None]:
    """Let every slot read the system prompt: as many short requests at once as there are slots."""
    asked = [f"Hello {one}" for one in range(slots)]
    yield from run_load(target, closed_loop(slots), asked, 1, stop_at_error=True)


def _burst(
    workbench: Workbench,
    model: str,
    profile: str,
    learners: int,
    system: str,
    prompts: Sequence[str],
    max_tokens: int,
) -> Generator[Progress, None, tuple[int, list[Answer]]]:
    slots = learners if profile == "class" else DEFAULT_SLOTS
    engine = workbench.fresh_engine(CONTEXT_TOKENS, slots)
    try:
        yield from engine.ensure(model)
        options = {"extra_body": {"ignore_eos": True}}
        target = Target(engine, model, options, system, profile)
        # The server's very first answer pays for what no burst should: pages that are read from the disk.
        yield from run_load(Target(engine, model), closed_loop(1), ["Hello"], 1)
        if profile == "class":
            yield from warm(target, slots)
        answers = yield from run_load(target, closed_loop(learners), prompts, max_tokens, stop_at_error=True)
    finally:
        engine.release()
    for one in answers:
        if one.error is not None:
            raise one.error
    return slots, answers
