"""Running a step: check, run, keep the run card. The one road for page, notebook and terminal."""

from __future__ import annotations

import math
import threading
import time
import uuid
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lib.background import Background
from lib.course.lab import Step
from lib.course.result import Progress, Result
from lib.errors import BadParameter
from lib.store import RunCard
from lib.versions import versions

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lib.text import Words
    from lib.workbench import Workbench


@dataclass(frozen=True)
class Run:
    """One finished run of a step. ``prediction`` is in the predicted fact's own unit."""

    step: Step
    parameters: Mapping[str, Any]
    prediction: float | None
    result: Result
    duration_s: float
    finished_at: datetime
    card_id: str
    words: Words

    def figure(self, words: Words | None = None) -> go.Figure | None:
        """The step's chart of this result, or None."""
        return self.step.chart(self.result, words or self.words, self.prediction) if self.step.chart else None

    def _ipython_display_(self) -> None:
        from lib.course.draw import show_in_notebook

        show_in_notebook(self)


def execute(
    step: Step, workbench: Workbench, given: Mapping[str, object], prediction: float | None = None
) -> Generator[Progress, None, Run]:
    """Run ``step``, yielding its progress; closing the generator cancels it.

    ``prediction`` is as typed, in the unit of ``step.predict``. Raises
    BadParameter before anything runs, and whatever BancadaError the step raises.
    """
    values = step.check(given)
    if prediction is not None and not math.isfinite(prediction):
        raise BadParameter(name="prediction", value=prediction, allowed="-10^308 … 10^308")
    started = time.monotonic()
    result: Result | None = None
    with closing(step.events(workbench, values)) as events:  # type: ignore[type-var]
        for event in events:
            if isinstance(event, Result):
                result = event
            else:
                yield event
    assert result is not None, f"{step.key} gave no Result"
    base = step.predict.base(prediction) if step.predict and prediction is not None else None
    card = _card(step, workbench, values, base, result, time.monotonic() - started)
    workbench.store.add_card(card)
    return from_card(step, card, step.lab.words(workbench.language))


def from_card(step: Step, card: RunCard, words: Words) -> Run:
    """The run that a card remembers."""
    finished = card.finished_at if card.finished_at.tzinfo else card.finished_at.replace(tzinfo=UTC)
    result = Result.from_json(card.result)
    return Run(step, card.parameters, card.prediction, result, card.duration_s, finished, card.id, words)


def latest_run(step: Step, workbench: Workbench, learner: str) -> Run | None:
    """The learner's newest run of a step, from the store."""
    cards = workbench.store.cards(learner, step.lab.id, step.id, limit=1)
    return from_card(step, cards[0], step.lab.words(workbench.language)) if cards else None


def run_here(step: Step, workbench: Workbench, given: Mapping[str, object], prediction: float | None) -> Run:
    """Run a step to its end in this thread, with a progress bar where one can be seen."""
    from lib.course.bar import drain

    return drain(execute(step, workbench, given, prediction), step.lab.words(workbench.language))


class BackgroundRuns:
    """The runs of one process, at most one a learner and step."""

    def __init__(self) -> None:
        self._runs: dict[tuple[str, str], Background[Run]] = {}
        self._lock = threading.Lock()

    def start(
        self, learner: str, step: Step, workbench: Workbench, given: Mapping[str, object], prediction: float | None
    ) -> Background[Run]:
        """Start a run, or give back the one that this learner has going for the step."""
        step.check(given)
        with self._lock:
            current = self._runs.get((learner, step.key))
            if current is None or not current.running:
                current = self._runs[learner, step.key] = Background(
                    execute(step, workbench, given, prediction), f"run {step.key}"
                )
            return current

    def find(self, learner: str, step: Step) -> Background[Run] | None:
        """The learner's newest run of the step in this process, running or ended."""
        return self._runs.get((learner, step.key))

    def forget(self, learner: str, step: Step) -> None:
        """Drop an ended run."""
        with self._lock:
            current = self._runs.get((learner, step.key))
            if current is not None and not current.running:
                del self._runs[learner, step.key]


def _card(
    step: Step,
    workbench: Workbench,
    values: dict[str, Any],
    prediction: float | None,
    result: Result,
    duration_s: float,
) -> RunCard:
    model = values.get("model")
    return RunCard(
        id=uuid.uuid4().hex,
        learner=workbench.learner,
        lab=step.lab.id,
        step=step.id,
        parameters={name: list(value) if isinstance(value, tuple) else value for name, value in values.items()},
        prediction=prediction,
        result=result.to_json(),
        versions=versions(),
        machine=workbench.machine.summary(),
        model_sha256=workbench.models.known_sha256(model) if isinstance(model, str) else None,
        duration_s=duration_s,
        finished_at=datetime.now(UTC),
    )
