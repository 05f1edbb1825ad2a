"""Running a step: check, run, keep the run card. The one road for page, notebook and terminal."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from lib.course.lab import Step
from lib.course.performed import Performed
from lib.course.result import Progress, Result
from lib.course.turn import take_turn
from lib.errors import BadParameter, BancadaError, Unforeseen
from lib.store import RunCard
from lib.versions import versions

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from lib.text import Words
    from lib.workbench import Workbench


@dataclass(frozen=True)
class Run:
    """One finished run of a step. ``prediction`` is in the predicted fact's own unit.

    ``versions``, ``machine`` and ``model_sha256`` are what it ran with and on, as the run card keeps them.
    """

    step: Step
    parameters: Mapping[str, Any]
    prediction: float | None
    result: Result
    duration_s: float
    finished_at: datetime
    card_id: str
    words: Words
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    model_sha256: str | None = None

    def figure(self, words: Words | None = None) -> go.Figure | None:
        """The step's chart of this result, or None."""
        return self.step.chart(self.result, words or self.words, self.prediction) if self.step.chart else None

    def _ipython_display_(self) -> None:
        from lib.course.draw import show_in_notebook

        show_in_notebook(self)


def execute(
    step: Step, workbench: Workbench, given: Mapping[str, object], prediction: float | None = None
) -> Generator[Progress, None, Run]:
    """Run ``step`` and keep its run card, yielding its progress; closing the generator cancels it.

    ``prediction`` is as typed, in the unit of ``step.predict``. Raises
    BadParameter before anything runs, and whatever BancadaError the step raises. A partial
    result that the step had given by then is kept as a run card all the same.
    """
    base = predicted(step, prediction)
    kept: Performed | None = None
    try:
        with closing(perform(step, workbench, given)) as events:
            while True:
                try:
                    moved = next(events)
                except StopIteration as stop:
                    performed: Performed = stop.value
                    break
                if isinstance(moved, Performed):
                    kept = moved
                else:
                    yield moved
    except BaseException:  # cancelled, failed or interrupted: what had been measured stays
        if kept is not None:
            workbench.store.add_card(kept.card(workbench.learner, base))
        raise
    card = performed.card(workbench.learner, base)
    workbench.store.add_card(card)
    return from_card(step, card, step.lab.words(workbench.language))


def perform(
    step: Step, workbench: Workbench, given: Mapping[str, object]
) -> Generator[Progress | Performed, None, Performed]:
    """Run ``step`` and keep nothing; a partial result comes as it is. The last one is given back.

    A long step waits for its turn: two that measure at once measure each other.
    """
    values = step.check(given)
    with ExitStack() as stack:
        if step.long:
            yield from take_turn(workbench.settings.jobs_dir, stack)
        started = time.monotonic()
        result: Result | None = None
        for event in stack.enter_context(closing(step.events(workbench, values))):  # type: ignore[type-var]
            if not isinstance(event, Result):
                yield event
                continue
            result = event
            if result.partial:
                yield _performed(step, workbench, values, result, time.monotonic() - started)
        assert result is not None, f"{step.key} gave no Result"
        return _performed(step, workbench, values, result, time.monotonic() - started)


def predicted(step: Step, typed: float | None) -> float | None:
    """A typed prediction in the predicted fact's own unit; raises BadParameter for one that is no number."""
    if typed is None:
        return None
    base = step.predict.base(typed) if step.predict else typed
    if not math.isfinite(base):
        raise BadParameter(name="prediction", value=typed, allowed="-10^300 … 10^300")
    return base if step.predict else None


@contextmanager
def only_ours() -> Iterator[None]:
    """Turn a defect inside the block into Unforeseen, its traceback in the log: a learner sees an error card."""
    try:
        yield
    except BancadaError:
        raise
    except Exception as error:
        logging.getLogger(__name__).exception("a step failed")
        raise Unforeseen(why=f"{type(error).__name__}: {error}") from error


def from_card(step: Step, card: RunCard, words: Words) -> Run:
    """The run that a card remembers."""
    # SQLite gives back no time zone, PostgreSQL that of its session.
    finished = card.finished_at.astimezone(UTC) if card.finished_at.tzinfo else card.finished_at.replace(tzinfo=UTC)
    result = Result.from_json(card.result)
    values = (step, card.parameters, card.prediction, result, card.duration_s, finished, card.id, words)
    return Run(*values, card.versions, card.machine, card.model_sha256)


def latest_run(step: Step, workbench: Workbench, learner: str, whole: bool = False) -> Run | None:
    """The learner's newest run of a step, from the store; ``whole``: one that came to its end, if there is one."""
    cards = workbench.store.cards(learner, step.lab.id, step.id, limit=20 if whole else 1)
    runs = [from_card(step, one, step.lab.words(workbench.language)) for one in cards]
    return next((one for one in runs if not one.result.partial), runs[0]) if runs else None


def run_here(step: Step, workbench: Workbench, given: Mapping[str, object], prediction: float | None) -> Run:
    """Run a step to its end in this thread, with a progress bar where one can be seen."""
    from lib.course.bar import drain

    # Closed at once: the traceback that a notebook keeps would hold the generator, and with it the machine's turn.
    with closing(execute(step, workbench, given, prediction)) as events:
        return drain(events, step.lab.words(workbench.language))


def run_at_once(step: Step, workbench: Workbench, given: Mapping[str, object], prediction: float | None) -> Run:
    """Run a short step to its end in this thread, in silence; raises BancadaError kinds and nothing else."""
    with only_ours(), closing(execute(step, workbench, given, prediction)) as events:
        while True:
            try:
                next(events)
            except StopIteration as stop:
                run: Run = stop.value
                return run


def _performed(
    step: Step, workbench: Workbench, values: Mapping[str, Any], result: Result, duration_s: float
) -> Performed:
    model = values.get("model")
    return Performed(
        lab=step.lab.id,
        step=step.id,
        parameters=plain(values),
        result=result.to_json(),
        versions=versions(),
        machine=workbench.machine.summary(),
        model_sha256=workbench.models.known_sha256(model) if isinstance(model, str) else None,
        duration_s=duration_s,
        finished_at=datetime.now(UTC),
    )


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Checked parameters as JSON has them."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
