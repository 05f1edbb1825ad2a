"""Run cards as one looks back at them: all of them, whatever has become of their labs since.

A lab, a step, a word or a chart may be gone or may have changed when a card is
read again. What the card itself holds is shown all the same.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from lib.course.lab import Chart, Lab, Step
from lib.course.labs import labs
from lib.course.result import Result
from lib.course.run import Run, from_card
from lib.errors import UnknownStep
from lib.store import RunCard, Store
from lib.text import LenientWords, Words, load_words


@dataclass(frozen=True, eq=False)
class Brief:
    """A run card without its table, notes and listings: what a list of thousands needs."""

    id: str
    lab: str
    step: str
    parameters: Mapping[str, Any]
    prediction: float | None
    facts: Mapping[str, Any]
    duration_s: float
    finished_at: datetime
    partial: bool

    @property
    def key(self) -> str:
        """The step's name on the command line."""
        return f"{self.lab}.{self.step}"

    @property
    def model(self) -> str | None:
        """The model that was asked for, if the step asks for one."""
        model = self.parameters.get("model")
        return model if isinstance(model, str) else None

    @property
    def error_percent(self) -> float | None:
        """How far the prediction was above (+) or below (−) what was found; None without a prediction."""
        predict = step_of(self.lab, self.step).predict
        found = self.facts.get(predict.fact) if predict else None
        if self.prediction is None or not isinstance(found, int | float) or not found:
            return None
        return 100 * (self.prediction / found - 1)


def briefs(store: Store, learner: str, known: dict[str, Brief], lab: str | None = None) -> list[Brief]:
    """All of a learner's cards, newest first. ``known`` has those that were read before, and takes the new ones."""
    ids = store.card_ids(learner, lab)
    new = [one for one in ids if one not in known]
    known |= {card.id: brief(card) for card in store.cards_of(learner, new)}
    return [known[one] for one in ids if one in known]


def brief(card: RunCard) -> Brief:
    """What a list needs of a card."""
    result = json.loads(card.result)
    finished = card.finished_at.astimezone(UTC) if card.finished_at.tzinfo else card.finished_at.replace(tzinfo=UTC)
    return Brief(
        card.id,
        card.lab,
        card.step,
        card.parameters,
        card.prediction,
        result.get("facts", {}),
        card.duration_s,
        finished,
        bool(result.get("partial", False)),
    )


def recall(card: RunCard, language: str) -> Run:
    """The run that a card remembers, of a step that may be gone; its words and its chart never fail."""
    step = step_of(card.lab, card.step)
    if step.chart is not None:
        step = replace(step, chart=_careful(step.chart))
    return from_card(step, card, words_of(card.lab, language))


def step_of(lab: str, step: str) -> Step:
    """A step of the course, or a stand-in for one that is gone: without chart, parameters and prediction."""
    known = _labs().get(lab)
    if known is not None and step in known.steps:
        return known.steps[step]

    def gone(workbench: object) -> Result:
        raise UnknownStep(step=f"{lab}.{step}", known=", ".join(_labs()))

    gone.__name__ = step
    return Step(known or Lab(Path(lab), 0, 0, 0), gone)


def is_here(lab: str, step: str) -> bool:
    """Whether the course still has a step."""
    return lab in _labs() and step in _labs()[lab].steps


@cache
def words_of(lab: str, language: str) -> Words:
    """A lab's words, or the shared ones for a lab that is gone; a name without a word stands for itself."""
    known = _labs().get(lab)
    return LenientWords.over(known.words(language) if known else load_words(language))


def lab_title(lab: str, said: Words) -> str:
    """A lab's number and name."""
    return said(f"pages.{lab}")


def step_title(lab: str, step: str, language: str) -> str:
    """A step's name."""
    return words_of(lab, language)(f"places.{step}")


def title(lab: str, step: str, language: str) -> str:
    """Lab and step, as they are called in a language."""
    return f"{lab_title(lab, words_of(lab, language))}: {step_title(lab, step, language)}"


@cache
def _labs() -> Mapping[str, Lab]:
    return {lab.id: lab for lab in labs()}


def _careful(chart: Chart) -> Chart:
    def draw(result: Result, words: Words, prediction: float | None) -> go.Figure | None:
        try:
            return chart(result, words, prediction)
        except Exception:  # a card of an earlier version may lack what the chart of today draws
            logging.getLogger(__name__).warning("the chart of an old card cannot be drawn", exc_info=True)
            return None

    return draw
