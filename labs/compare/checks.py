"""The exercise of lab 6, checked against the learner's own newest race."""

from __future__ import annotations

import math
from typing import Annotated

from labs.compare import advice
from labs.compare.rows import measured
from labs.compare.steps import LAB, race
from labs.compare.taking import PARALLEL
from lib.bench.contenders import CONTENDERS
from lib.course.lab import Verdict
from lib.course.parameters import Choice
from lib.course.result import Result, note
from lib.course.run import latest_run
from lib.workbench import Workbench

__all__ = ["LAB", "who_wins"]

MIB = 2**20
NONE = "none"


@LAB.check
def who_wins(
    workbench: Workbench,
    learners: Annotated[int, Choice(PARALLEL)] = 16,
    memory_mib: Annotated[int, Choice((256, 512, 1024, 4096))] = 1024,
    answer_engine: Annotated[str, Choice((*CONTENDERS, NONE))] = NONE,
) -> Verdict:
    """Name the engine of your own race that writes the most tokens for so many learners within a memory limit."""
    run = latest_run(race, workbench, workbench.learner, whole=True)
    if run is None or run.result.table is None or not len(measured(run.result.table)):
        return _verdict(False, "exercise_no_card")
    # Of memory that is not ours to measure nobody knows whether it keeps the limit.
    raced = run.result.table.dropna(subset=["memory_bytes", "tokens_per_s"])
    raced = raced[raced["parallel"] == learners]
    if not len(raced):
        return _verdict(False, "exercise_not_measured", learners=learners)
    table = advice.advice_table(raced, advice.Wishes("throughput", learners, memory_mib * MIB, math.inf))
    best = advice.best_of(table)
    said = {"learners": learners, "memory_mib": memory_mib, "best": best, "answer": (answer_engine,)}
    if not best:
        return _verdict(answer_engine == NONE, "exercise_none_fits", **said)
    if advice.untold(table):
        return _verdict(False, "exercise_one_round", **said)
    if answer_engine in best:
        return _verdict(True, "exercise_tied" if len(best) > 1 else "exercise_right", **said)
    if answer_engine == NONE:
        return _verdict(False, "exercise_one_fits", **said)
    chosen = table[table["engine"] == answer_engine]
    if not len(chosen):
        return _verdict(False, "exercise_not_raced", **said)
    one, first = chosen.iloc[0], table.iloc[0]
    if not one["fits"]:
        return _verdict(False, "exercise_breaks", **said, mib=(one["memory_bytes"] or 0) / MIB)
    speeds = {"mine": float(one["tokens_per_s"]), "theirs": float(first["tokens_per_s"])}
    return _verdict(False, "exercise_slower", **said, **speeds)


def _verdict(correct: bool, key: str, **parameters: object) -> Verdict:
    return Verdict(correct, Result(notes=(note(key, **parameters),)))
