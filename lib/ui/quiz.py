"""Exercise, quiz and summary of a lab."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from lib.course.draw import chief_facts, sentence
from lib.course.lab import Lab
from lib.course.quiz import Question
from lib.course.run import latest_run
from lib.store import Answer
from lib.text import Words
from lib.ui.shell import language, workbench
from lib.ui.widgets import ask

SUMMARY_FACTS = 3


def show_exercise(lab: Lab, said: Words) -> None:
    """The exercise's form, and the verdict on the newest answer."""
    exercise = lab.exercise
    if exercise is None:
        return
    with st.form(f"exercise.{lab.id}"):
        values = {
            parameter.name: ask(parameter, f"exercise.{parameter.name}", parameter.default, said)
            for parameter in exercise.parameters
        }
        sent = st.form_submit_button(said("check"), type="primary", icon=":material/fact_check:")
    if sent:
        verdict = exercise(workbench(), **values)
        for one in verdict.result.notes:
            (st.success if verdict.correct else st.warning)(sentence(one, said))
        return
    earlier = workbench().store.answers(workbench().learner, lab.id).get("exercise")
    if earlier is not None and earlier.correct:
        st.success(said("exercise_done"), icon=":material/check_circle:")


def show_quiz(lab: Lab, said: Words) -> None:
    """Every question, its explanation once answered, and the score."""
    questions = lab.quiz(language())
    answers = workbench().store.answers(workbench().learner, lab.id)
    right = sum(answers[one.id].correct for one in questions if one.id in answers)
    st.progress(right / len(questions), said("quiz_score", right=right, total=len(questions)))
    for number, question in enumerate(questions, 1):
        with st.container(border=True):
            _question(lab, number, question, answers.get(question.id), said)


def _question(lab: Lab, number: int, question: Question, earlier: Answer | None, said: Words) -> None:
    letters = [option.letter for option in question.options]
    given = st.radio(
        f"**{number}.** {question.ask}",
        letters,
        index=letters.index(earlier.given) if earlier and earlier.given in letters else None,
        format_func=lambda letter: next(one.text for one in question.options if one.letter == letter),
        key=f"quiz.{lab.id}.{question.id}",
    )
    if given is None:
        return
    if earlier is None or earlier.given != given:
        workbench().store.answer(workbench().learner, lab.id, question.id, given, given == question.answer)
        st.rerun()
    option = question.option(given)
    assert option is not None
    if given == question.answer:
        st.success(f"{said('quiz_right')} {option.why}", icon=":material/check_circle:")
    else:
        st.warning(f"{said('quiz_wrong')} {option.why}", icon=":material/lightbulb:")


def show_summary(lab: Lab, said: Words) -> None:
    """What the learner measured in this lab: the newest run of every step."""
    learner = workbench().learner
    newest = [run for step in lab.steps.values() if (run := latest_run(step, workbench(), learner))]
    if not newest:
        st.info(said("summary_empty"), icon=":material/info:")
        return
    rows = [
        (
            said(f"places.{run.step.id}"),
            " · ".join(f"{name} {value}" for name, value in chief_facts(run.result.facts, said)[:SUMMARY_FACTS]),
            said.value("took_s", run.duration_s),
            said.value("", run.finished_at),
        )
        for run in newest
    ]
    columns = [said(f"card.{name}") for name in ("step", "found", "took", "when")]
    st.table(
        pd.DataFrame(rows, columns=columns),
        hide_index=True,
        border="horizontal",
    )
    st.caption(
        said("summary_runs", runs=workbench().store.count_cards(learner, lab.id), steps=len(newest), all=len(lab.steps))
    )
