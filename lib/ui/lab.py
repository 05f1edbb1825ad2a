"""One lab as a page: one step at a time, then exercise, quiz, and what was measured."""

from __future__ import annotations

import streamlit as st

from lib.course.lab import Lab, Step
from lib.course.run import Run, latest_run
from lib.errors import BadParameter, Cancelled
from lib.text import Words
from lib.ui.draw import draw_run, show_source
from lib.ui.model import show_progress
from lib.ui.quiz import show_exercise, show_quiz, show_summary
from lib.ui.shell import enter_by_the_front_door, errors_shown, header, language, runs, show_error, workbench
from lib.ui.widgets import ask


def show(lab: Lab) -> None:
    """Draw the lab's page."""
    enter_by_the_front_door()
    said, lesson = lab.words(language()), lab.lesson(language())
    header(lesson.title)
    st.caption(said("lab.where", number=lab.number, part=lab.part, minutes=lab.minutes))
    places = [*lab.steps, "exercise", "quiz", "summary"]
    with errors_shown():
        place = _choose_place(lab, places, said)
        # The lesson stays beside the bench; on a narrow screen it comes first.
        reading, bench = st.columns([2, 3], gap="large")
        with reading:
            if place == places[0]:
                st.markdown(lesson.introduction)
            if place in lesson.sections:
                st.header(lesson.sections[place].title, anchor=False)
                st.markdown(lesson.sections[place].body)
            elif place == "quiz":
                st.header(said("places.quiz"), anchor=False)
                st.markdown(said("quiz_lead"))
            else:
                st.header(said("places.summary"), anchor=False)
                st.markdown(said("summary_lead"))
        with bench, errors_shown():
            _draw_place(lab, place, said)
        _neighbours(places, place, said)


def _choose_place(lab: Lab, places: list[str], said: Words) -> str:
    store, learner = workbench().store, workbench().learner
    answers = store.answers(learner, lab.id)
    done = store.steps_done(learner, lab.id) | {name for name, answer in answers.items() if answer.correct}
    if all(question.id in done for question in lab.quiz(language())):
        done.add("quiz")

    asked = st.query_params.get("step")
    current = asked if asked in places else places[0]
    with st.container(horizontal=True, gap="small"):
        for number, place in enumerate(places, 1):
            st.button(
                f"{number} · {said(f'places.{place}')}",
                key=f"place.{place}",
                icon=":material/check:" if place in done else None,
                type="primary" if place == current else "tertiary",
                on_click=_go,
                args=(place,),
            )
    return current


def _go(place: str) -> None:
    st.query_params["step"] = place


def _draw_place(lab: Lab, place: str, said: Words) -> None:
    if place == "exercise":
        show_exercise(lab, said)
    elif place == "quiz":
        show_quiz(lab, said)
    elif place == "summary":
        show_summary(lab, said)
    else:
        _draw_step(lab.steps[place], said)


def _draw_step(step: Step, said: Words) -> None:
    last = latest_run(step, workbench(), workbench().learner)
    with st.container(border=True):
        values = {}
        with st.container(horizontal=True):
            for one in step.parameters:
                values[one.name] = ask(one, f"{step.key}.{one.name}", _start(one.name, one.default, last, step), said)
        prediction = _ask_prediction(step, said)
        current = runs().find(workbench().learner, step)
        busy = current is not None and current.running
        if st.button(
            said("run_again" if last else "run"),
            key=f"run.{step.key}",
            type="primary",
            icon=":material/play_arrow:",
            disabled=busy,
        ):
            runs().start(workbench().learner, step, workbench(), values, prediction)
            current, busy = runs().find(workbench().learner, step), True
            if current and not step.long:
                current.wait(10.0)
    if current is not None:
        _follow(step, said)
        last = latest_run(step, workbench(), workbench().learner)
    if last is not None and not (current is not None and current.running):
        draw_run(last, said)
    elif last is None and current is None:
        st.caption(said("nothing_yet"))
    show_source(step, said)


def _start(name: str, default: object, last: Run | None, step: Step) -> object:
    """Where a widget starts: at what the learner ran last, if that is still allowed."""
    value = last.parameters.get(name, default) if last else default
    try:
        return step.check({name: tuple(value) if isinstance(value, list) else value})[name]
    except BadParameter:
        return default


def _ask_prediction(step: Step, said: Words) -> float | None:
    if step.predict is None:
        return None
    return st.number_input(
        said("predict", what=said.label(step.predict.fact), unit=step.predict.unit),
        min_value=0.0,
        max_value=1e9,
        value=None,
        step=1.0,
        key=f"predict.{step.key}",
        placeholder=said("predict_hint"),
        width=420,
    )


def _follow(step: Step, said: Words) -> None:
    current = runs().find(workbench().learner, step)
    assert current is not None
    if current.running:
        _watch(step, said)
        return
    if isinstance(current.error, Cancelled):
        st.info(said("cancelled"), icon=":material/pause_circle:")
    elif current.error is not None:
        show_error(current.error, said)
    runs().forget(workbench().learner, step)


@st.fragment(run_every=0.4)
def _watch(step: Step, said: Words) -> None:
    current = runs().find(workbench().learner, step)
    if current is None or not current.running:
        st.rerun()
        return
    show_progress(current.progress, said)
    st.caption(said("running_for", elapsed=said.value("elapsed_s", max(1.0, current.elapsed_s))))
    if st.button(said("cancel"), key=f"cancel.{step.key}", icon=":material/cancel:"):
        current.cancel()


def _neighbours(places: list[str], place: str, said: Words) -> None:
    at = places.index(place)
    st.divider()
    with st.container(horizontal=True, horizontal_alignment="distribute"):
        if at > 0:
            before = places[at - 1]
            st.button(said(f"places.{before}"), icon=":material/arrow_back:", on_click=_go, args=(before,))
        if at + 1 < len(places):
            after = places[at + 1]
            st.button(
                said(f"places.{after}"),
                icon=":material/arrow_forward:",
                icon_position="right",
                on_click=_go,
                args=(after,),
            )
