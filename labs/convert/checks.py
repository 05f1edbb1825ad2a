"""The exercise of lab 3, checked against the learner's own newest table."""

from __future__ import annotations

from typing import Annotated

from labs.convert.steps import LAB, table
from lib.convert.forms import FORMS
from lib.course.lab import Verdict
from lib.course.parameters import Choice
from lib.course.result import Result, note
from lib.course.run import latest_run
from lib.workbench import Workbench

__all__ = ["LAB", "smallest_peak_that_agrees"]

ORIGINAL = "source"
CONVERSIONS = tuple(one for one in FORMS if one != ORIGINAL)


@LAB.check
def smallest_peak_that_agrees(
    workbench: Workbench,
    share_percent: Annotated[int, Choice((75, 80, 85, 90, 95, 98))] = 90,
    answer_form: Annotated[str, Choice(CONVERSIONS)] = "hf",
) -> Verdict:
    """Find the conversion with the smallest peak memory among those that agree often enough, by your newest table."""
    run = latest_run(table, workbench, workbench.learner)
    if run is None or run.result.table is None:
        return _verdict(False, "exercise_no_card")
    measured = run.result.table.set_index("form").drop(index=ORIGINAL, errors="ignore")
    measured = measured.dropna(subset=["peak_bytes", "top1_agreement_percent"])
    if answer_form not in measured.index:
        return _verdict(
            False, "exercise_not_measured", answer_form=answer_form, step=f"convert.{FORMS[answer_form].step}"
        )
    enough = measured[measured["top1_agreement_percent"] >= share_percent]
    if enough.empty:
        return _verdict(False, "exercise_none", share_percent=share_percent)
    found = float(measured.loc[answer_form, "top1_agreement_percent"])
    peak = float(measured.loc[answer_form, "peak_bytes"])
    said = {"answer_form": answer_form, "share_percent": share_percent, "found": found, "mib": peak / 2**20}
    if answer_form not in enough.index:
        return _verdict(False, "exercise_too_low", **said)
    if peak > enough["peak_bytes"].min():
        return _verdict(False, "exercise_smaller_exists", **said)
    return _verdict(True, "exercise_right", **said)


def _verdict(correct: bool, key: str, **parameters: object) -> Verdict:
    return Verdict(correct, Result(notes=(note(key, **parameters),)))
