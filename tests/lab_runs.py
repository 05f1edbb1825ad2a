"""A step's run as every road draws it: what tests of whole labs share."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import closing
from typing import TypeVar

from lib.course.draw import to_text
from lib.course.lab import Lab
from lib.course.result import Progress, Result
from lib.course.run import Run, execute
from lib.text import LANGUAGES
from lib.workbench import Workbench

M, T = TypeVar("M"), TypeVar("T")


def ran_and_drawn(lab: Lab, workbench: Workbench, step: str, /, *, drawn: bool = True, **given: object) -> Run:
    """A step's run, drawn as a terminal and a page draw it, with and without a prediction, in every language.

    ``drawn``: whether the chart has a place for what is predicted; the page sets the two side by side in any case.
    """
    run, moved = ran_and_watched(lab, workbench, step, **given)
    _all_is_drawn(run, moved, drawn)
    return run


def ran_and_watched(lab: Lab, workbench: Workbench, step: str, /, **given: object) -> tuple[Run, list[Progress]]:
    """A step's run, and all the progress that it told of."""
    return watched(execute(lab.steps[step], workbench, given))


def watched(events: Generator[M, None, T]) -> tuple[T, list[M]]:
    """What a generator gives back, and all that it yielded.

    Closed whatever happens: the traceback of a failed test would hold it, and with it the machine's turn.
    """
    moved: list[M] = []
    with closing(events):
        while True:
            try:
                moved.append(next(events))
            except StopIteration as stop:
                return stop.value, moved


def _all_is_drawn(run: Run, moved: list[Progress], in_chart: bool) -> None:
    """Words for all that is shown, a chart with the prediction in it, and a result that survives the store."""
    lab, result, predict = run.step.lab, run.result, run.step.predict
    for language in LANGUAGES:
        said = lab.words(language)
        assert to_text(run, said)
        assert all(said(f"progress.{one.what}") for one in moved)
        if chart := run.step.chart:
            assert chart(result, said, None) is not None
            if predict and in_chart:
                found = chart(result, said, 1.5 * float(str(result.facts[predict.fact] or 1)))
                assert found is not None
                drawn = json.dumps(found.to_plotly_json(), default=str)
                assert json.dumps(said("your_prediction")) in drawn, "the prediction is not drawn"
    assert predict is None or isinstance(result.facts[predict.fact], int | float)
    again = Result.from_json(result.to_json())
    assert dict(again.facts) == dict(result.facts) and again.listings == result.listings
