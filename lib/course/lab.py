"""A lab is a folder; a step is a function in its ``steps.py``.

``Lab.step`` turns the function into a ``Step``, which page, notebook and
terminal run through the same ``execute`` and which knows its own source, so
the code that is shown is the code that ran.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from lib.course.lesson import Lesson, read_lesson
from lib.course.parameters import Parameter, checked, parameters_of
from lib.course.quiz import Question, read_quiz
from lib.course.result import Progress, Result
from lib.text import Words, load_words

if TYPE_CHECKING:
    from lib.course.run import Run
    from lib.workbench import Workbench

StepFunction = Callable[..., "Result | Iterator[Progress | Result]"]
# Draws a result, and the learner's prediction in the predicted fact's own unit.
Chart = Callable[[Result, Words, float | None], go.Figure | None]
_SCALES = {"_bytes": ("MiB", 2**20), "_tokens_per_s": ("tokens/s", 1), "_s": ("s", 1), "_percent": ("%", 1)}


@dataclass(frozen=True)
class Predict:
    """What a step asks the learner to predict: a fact, typed in a unit people use."""

    fact: str

    @property
    def unit(self) -> str:
        """The unit the learner types, ``MiB`` for a fact in bytes."""
        return self._scale[0]

    def base(self, typed: float) -> float:
        """The typed value in the fact's own unit."""
        return typed * self._scale[1]

    @property
    def _scale(self) -> tuple[str, float]:
        return next((scale for suffix, scale in _SCALES.items() if self.fact.endswith(suffix)), ("", 1))


@dataclass(frozen=True)
class Step:
    """One step of a lab: a function over ``lib`` that takes the workbench and plain values."""

    lab: Lab
    function: StepFunction
    chart: Chart | None = None
    predict: Predict | None = None
    long: bool = False

    @property
    def id(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def key(self) -> str:
        """The name on the command line: ``choose.estimate``."""
        return f"{self.lab.id}.{self.id}"

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The declared parameters, without the workbench."""
        return parameters_of(self.function)[1:]

    @cached_property
    def source(self) -> str:
        """The source of the function, decorator included."""
        return textwrap.dedent(inspect.getsource(self.function)).rstrip()

    def check(self, given: Mapping[str, object]) -> dict[str, Any]:
        """Every parameter's value in bounds; raises BadParameter."""
        return checked(self.parameters, given)

    def events(self, workbench: Workbench, values: Mapping[str, object]) -> Iterator[Progress | Result]:
        """The function's progress and, last, its result."""
        outcome = self.function(workbench, **values)
        if isinstance(outcome, Result):
            yield outcome
        else:
            yield from outcome

    def __call__(self, workbench: Workbench, prediction: float | None = None, **given: object) -> Run:
        """Run the step with a progress line, keep its run card, and give back the run."""
        from lib.course.run import run_here

        return run_here(self, workbench, given, prediction)


@dataclass(frozen=True)
class Verdict:
    """What an exercise's check found: right or not, and sentences that say why."""

    correct: bool
    result: Result


@dataclass(frozen=True)
class Exercise:
    """An exercise: a function that takes the learner's answers and gives a Verdict."""

    lab: Lab
    function: Callable[..., Verdict]

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """What the learner fills in."""
        return parameters_of(self.function)[1:]

    def __call__(self, workbench: Workbench, **given: object) -> Verdict:
        """Check the answers and keep the verdict."""
        values = checked(self.parameters, given)
        verdict = self.function(workbench, **values)
        workbench.store.answer(workbench.learner, self.lab.id, "exercise", repr(values), verdict.correct)
        return verdict

    def try_it(self, workbench: Workbench, **given: object) -> None:
        """Check the answers and print what the check found; for notebooks."""
        words = self.lab.words(workbench.language)
        for one in self(workbench, **given).result.notes:
            print(words(f"notes.{one.key}", **one.parameters))


@dataclass
class Lab:
    """One lab: its folder, where it stands in the course, and its steps in order."""

    folder: Path
    part: int
    number: int
    minutes: int
    steps: dict[str, Step] = field(default_factory=dict)
    exercise: Exercise | None = None

    @staticmethod
    def beside(file: str, part: int, number: int, minutes: int) -> Lab:
        """The lab whose ``steps.py`` is ``file``."""
        return Lab(Path(file).parent, part, number, minutes)

    @property
    def id(self) -> str:
        """The folder's name."""
        return self.folder.name

    def step(
        self, *, chart: Chart | None = None, predict: str | None = None, long: bool = False
    ) -> Callable[[StepFunction], Step]:
        """Make a function the lab's next step; running it again replaces the step of that name."""

        def register(function: StepFunction) -> Step:
            step = Step(self, function, chart, Predict(predict) if predict else None, long)
            self.steps[step.id] = step
            return step

        return register

    def check(self, function: Callable[..., Verdict]) -> Exercise:
        """Make a function the check of the lab's exercise."""
        self.exercise = Exercise(self, function)
        return self.exercise

    def answer(self, workbench: Workbench, question_id: str, letter: str) -> None:
        """Answer a quiz question, keep the answer and print its explanation; for notebooks."""
        words = self.words(workbench.language)
        question = next(one for one in self.quiz(workbench.language) if one.id == question_id)
        option = question.option(letter.strip().lower())
        if option is None:
            print(words("notebook.quiz"))
            return
        right = option.letter == question.answer
        workbench.store.answer(workbench.learner, self.id, question.id, option.letter, right)
        print(words("quiz_right" if right else "quiz_wrong"), option.why)

    def words(self, language: str) -> Words:
        """The lab's words in front of the shared ones."""
        return load_words(language, self.folder)

    def lesson(self, language: str) -> Lesson:
        """The lesson in a language."""
        return read_lesson(self.folder / f"lesson.{language}.md")

    def quiz(self, language: str) -> tuple[Question, ...]:
        """The quiz in a language."""
        return read_quiz(self.folder / "quiz.toml", language)
