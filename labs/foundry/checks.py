"""The exercise of lab 5, checked against the learner's own newest measurement of sessions."""

from __future__ import annotations

import math
from typing import Annotated

from labs.foundry.rows import extra_bytes
from labs.foundry.steps import CONTEXTS, LAB, sessions
from lib.course.lab import Verdict
from lib.course.parameters import Choice, Range
from lib.course.result import Result, note
from lib.course.run import latest_run
from lib.workbench import Workbench

__all__ = ["LAB", "how_many_sessions_fit"]

MIB = 2**20
MOST = 64


@LAB.check
def how_many_sessions_fit(
    workbench: Workbench,
    memory_mib: Annotated[int, Choice((768, 1024, 1536, 2048))] = 1024,
    context_tokens: Annotated[int, Choice(CONTEXTS)] = 2048,
    answer_sessions: Annotated[int, Range(1, MOST, 1)] = 1,
) -> Verdict:
    """Say how many sessions may write at once within a memory limit, by your own figures of step 8."""
    run = latest_run(sessions, workbench, workbench.learner)
    if run is None or run.result.table is None:
        return _verdict(False, "exercise_no_card")
    table = run.result.table
    at = table[table["context_tokens"] == context_tokens]
    if at.empty:
        return _verdict(False, "exercise_not_measured", context_tokens=context_tokens)
    extra = extra_bytes(at)
    if extra <= 0:
        return _verdict(False, "exercise_odd", context_tokens=context_tokens)
    loaded = float(at["loaded_bytes"].iloc[0])
    fit = min(MOST, math.floor((memory_mib * MIB - loaded) / extra))
    said = {"memory_mib": memory_mib, "loaded": loaded / MIB, "extra": extra / MIB, "answer": answer_sessions}
    if fit < 1:
        return _verdict(False, "exercise_none_fits", **said)
    if answer_sessions > fit:
        return _verdict(False, "exercise_too_many", **said, need=(loaded + answer_sessions * extra) / MIB)
    if answer_sessions < fit:
        return _verdict(False, "exercise_more_fit", **said, need=(loaded + (answer_sessions + 1) * extra) / MIB)
    return _verdict(True, "exercise_right", **said, need=(loaded + fit * extra) / MIB)


def _verdict(correct: bool, key: str, **parameters: object) -> Verdict:
    return Verdict(correct, Result(notes=(note(key, **parameters),)))
