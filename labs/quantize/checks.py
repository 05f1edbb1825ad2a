"""The exercise of lab 2, checked against the learner's own run cards."""

from __future__ import annotations

from typing import Annotated

from labs.quantize.steps import LAB, QUANTIZED, quality
from lib.course.lab import Verdict
from lib.course.parameters import Choice
from lib.course.result import Result, note
from lib.course.run import latest_run
from lib.workbench import Workbench

__all__ = ["LAB", "smallest_that_keeps"]


@LAB.check
def smallest_that_keeps(
    workbench: Workbench,
    share_percent: Annotated[int, Choice((70, 80, 85, 90, 95))] = 85,
    answer_format: Annotated[str, Choice(QUANTIZED)] = "Q2_K",
) -> Verdict:
    """Choose the smallest file that keeps a share of F16's top tokens, by your newest quality run."""
    run = latest_run(quality, workbench, workbench.learner)
    if run is None or run.result.table is None:
        return _verdict(False, "exercise_no_card")
    measured = run.result.table.set_index("format")
    enough = measured[measured["top1_agreement_percent"] >= share_percent]
    if enough.empty:
        return _verdict(False, "exercise_none", share_percent=share_percent)
    if answer_format not in measured.index:
        return _verdict(False, "exercise_not_measured", answer_format=answer_format)
    found = float(measured.loc[answer_format, "top1_agreement_percent"])
    said = {"answer_format": answer_format, "share_percent": share_percent, "found": found}
    if answer_format not in enough.index:
        return _verdict(False, "exercise_too_low", **said)
    if measured.loc[answer_format, "size_bytes"] > enough["size_bytes"].min():
        return _verdict(False, "exercise_smaller_exists", **said)
    return _verdict(True, "exercise_right", **said)


def _verdict(correct: bool, key: str, **parameters: object) -> Verdict:
    return Verdict(correct, Result(notes=(note(key, **parameters),)))
