"""Lessons, quizzes, results and notebooks."""

from __future__ import annotations

import ast
import json
import math
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import pytest

from lib.cli import labs
from lib.course import notebook
from lib.course.lab import Lab, Predict
from lib.course.lesson import read_lesson
from lib.course.result import Listing, Part, Progress, Result, note, part_of
from lib.text import LANGUAGES

LABS = labs()


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
def test_both_lessons_have_a_section_for_every_step_in_its_order(lab: Lab) -> None:
    sections = {language: list(lab.lesson(language).sections) for language in LANGUAGES}
    assert sections["en"] == sections["pt"] == [*lab.steps, "exercise"]
    for language in LANGUAGES:
        assert all(section.body for section in lab.lesson(language).sections.values())


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
def test_both_quizzes_ask_the_same_five_questions(lab: Lab) -> None:
    english, portuguese = lab.quiz("en"), lab.quiz("pt")
    assert [one.id for one in english] == [one.id for one in portuguese]
    assert len(english) == 5
    for ours, theirs in zip(english, portuguese, strict=True):
        assert ours.answer == theirs.answer and ours.option(ours.answer) is not None
        assert len(ours.options) == len(theirs.options) >= 3
        assert all(option.text and option.why for option in (*ours.options, *theirs.options))


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
def test_every_step_is_short_typed_and_explained(lab: Lab) -> None:
    for step in lab.steps.values():
        assert step.function.__doc__, step.key
        body = [line for line in step.source.splitlines() if line.strip()]
        assert len(body) <= 45, f"{step.key} has {len(body)} lines: move the work to lib"
        for parameter in step.parameters:
            assert parameter.check(parameter.default) == parameter.default, (step.key, parameter.name)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
def test_every_step_and_parameter_has_its_words(lab: Lab, language: str) -> None:
    said = lab.words(language)
    for step in lab.steps.values():
        assert said(f"places.{step.id}")
        assert step.chart is None or said(f"charts.title_{step.id}")
        assert all(said.label(parameter.name) for parameter in step.parameters)


@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
def test_a_step_calls_nothing_that_stands_beside_it_and_not_in_its_notebook(lab: Lab) -> None:
    tree = ast.parse((lab.folder / "steps.py").read_text(encoding="utf-8"))
    functions = {one.name for one in tree.body if isinstance(one, ast.FunctionDef | ast.ClassDef)}
    assert functions == set(lab.steps)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
def test_the_notebooks_are_what_the_labs_say(lab: Lab, language: str) -> None:
    assert notebook.path_of(lab, language).read_text(encoding="utf-8") == notebook.build(lab, language)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("lab", LABS, ids=lambda lab: lab.id)
def test_every_cell_of_a_notebook_is_python(lab: Lab, language: str) -> None:
    book = json.loads(notebook.build(lab, language))
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            ast.parse("".join(cell["source"]))


def test_a_lesson_that_repeats_an_id_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "lesson.md"
    file.write_text("# T\n\n## A {#a}\nx\n## B {#a}\ny\n", encoding="utf-8")
    with pytest.raises(ValueError, match="twice"):
        read_lesson(file)


def test_a_result_comes_back_from_the_store_as_it_was() -> None:
    table = pd.DataFrame({"size_bytes": [1, 2], "speed_s": [0.1234567890123, math.nan], "name": ["a", None]})
    before = Result(
        {"peak_bytes": 2**40, "sets": ("a", "b"), "none": None},
        table,
        (note("x", y=1),),
        {"limit": 0.5},
        (Listing("a", "b"),),
    )
    after = Result.from_json(before.to_json())
    assert after.facts == before.facts and after.notes == before.notes and after.more == before.more
    assert after.listings == before.listings
    assert after.table is not None
    assert after.table["size_bytes"].tolist() == [1, 2]
    assert after.table["speed_s"].iloc[0] == pytest.approx(0.1234567890123, abs=1e-10)
    assert pd.isna(after.table["speed_s"].iloc[1])


def test_progress_never_leaves_its_bar() -> None:
    assert Progress(5, 4, "x").share == 1 and Progress(-1, 4, "x").share == 0 and Progress(3, 0, "x").share == 0


def test_progress_with_parts_comes_back_from_json_as_it_was() -> None:
    before = Progress(1, 4, "pull", "x", (Part("a", 1, 2), Part("b", 0, 0)))
    after = Progress.from_json(json.loads(json.dumps(asdict(before))))
    assert after == before and [one.share for one in after.parts] == [0.5, 0]


def test_parts_of_a_step_share_one_bar() -> None:
    def events():  # type: ignore[no-untyped-def]
        yield Progress(1, 2, "x")
        yield "outcome"

    seen = []
    part = part_of(events(), done=1, parts=2)
    try:
        while True:
            seen.append(next(part).share)
    except StopIteration as stop:
        assert stop.value == "outcome"
    assert seen == [0.75]


def test_a_prediction_is_typed_in_a_unit_people_use() -> None:
    assert Predict("peak_bytes").unit == "MiB" and Predict("peak_bytes").base(2) == 2 * 2**20
    assert Predict("ttft_s").unit == "s" and Predict("ttft_s").base(2) == 2
