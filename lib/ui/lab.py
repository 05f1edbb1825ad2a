"""One lab as a page: one step at a time, then exercise, quiz, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import streamlit as st

from lib.course.lab import Lab, Step
from lib.course.parameters import Parameter
from lib.course.run import Run, latest_run, run_at_once
from lib.errors import BadParameter, BancadaError
from lib.jobs import Job
from lib.text import Words
from lib.ui.draw import draw_run, show_source
from lib.ui.model import show_progress
from lib.ui.quiz import show_exercise, show_quiz, show_summary
from lib.ui.shell import enter_by_the_front_door, errors_shown, header, jobs, language, show_error, workbench
from lib.ui.widgets import ask, is_long_text


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
    learner = workbench().learner
    # The job first: one that is done has its run card in the store.
    job = jobs().newest(learner, step) if step.long else None
    last = latest_run(step, workbench(), learner)
    with st.container(border=True):
        before = job.parameters if job and job.active else last.parameters if last else {}
        values = {}
        for long in (True, False):
            with st.container(horizontal=not long):
                for one in (each for each in step.parameters if is_long_text(each) is long):
                    key = f"{step.key}.{one.name}"
                    if one.kind is bool:  # a permission is given for one run
                        key += f".{last.card_id if last else ''}"
                    values[one.name] = ask(one, key, _start(one, before, step), said)
        prediction = _ask_prediction(step, said)
        if st.button(
            said("run_again" if last else "run"),
            key=f"run.{step.key}",
            type="primary",
            icon=":material/play_arrow:",
            disabled=job is not None and job.active,
        ):
            if step.long:
                jobs().submit(learner, step, values, prediction)
                st.rerun()  # so that the button is disabled while the job is on its way
            else:
                made = _run_at_once(step, values, prediction, said)
                last = made or last
                if made and any(one.kind is bool for one in step.parameters):
                    st.rerun()  # so that a permission that was used is taken back before anybody ticks it again
    if job is not None and job.active:
        _watch(step, said)
    else:
        if job is not None and (last is None or (job.finished_at or last.finished_at) > last.finished_at):
            _show_end(job, _left_something(job, last), said)
        if last is not None:
            draw_run(last, said)
        elif job is None:
            st.caption(said("nothing_yet"))
    show_source(step, said)


def _start(parameter: Parameter, before: Mapping[str, Any], step: Step) -> object:
    """Where a widget starts: at what the learner ran last, if that is still allowed; a permission, never."""
    if parameter.kind is bool:
        return parameter.default
    value = before.get(parameter.name, parameter.default)
    try:
        return step.check({parameter.name: value})[parameter.name]
    except BadParameter:
        return parameter.default


def _ask_prediction(step: Step, said: Words) -> float | None:
    if step.predict is None:
        return None
    return st.number_input(
        said(
            "predict" if step.predict.unit else "predict_number",
            what=said.label(step.predict.fact),
            unit=step.predict.unit,
        ),
        min_value=0.0,
        max_value=1e9,
        value=None,
        step=1.0,
        key=f"predict.{step.key}",
        placeholder=said("predict_hint"),
        width=420,
    )


def _run_at_once(step: Step, values: Mapping[str, object], prediction: float | None, said: Words) -> Run | None:
    with st.spinner(said("progress.starting")):
        try:
            return run_at_once(step, workbench(), values, prediction)
        except BancadaError as error:
            show_error(error, said)
            return None


def _left_something(job: Job, last: Run | None) -> bool:
    """Whether the newest run card is what a job had measured before it was stopped: it was written meanwhile."""
    return last is not None and job.started_at is not None and last.finished_at > job.started_at


def _show_end(job: Job, kept: bool, said: Words) -> None:
    """How a run ended that came to no result, until the learner runs the step again or hides it."""
    learner = workbench().learner
    if job.state == "cancelled":
        if not kept:
            st.info(said("cancelled"), icon=":material/pause_circle:")
        jobs().hide(job.id, learner)
        return
    if job.error is not None:
        show_error(job.error, said)
    elif job.state != "interrupted":
        return
    else:
        st.info(said("jobs.interrupted_kept" if kept else "jobs.interrupted"), icon=":material/power_off:")
    with st.container(horizontal=True):
        if job.state == "interrupted" and st.button(
            said("run_again"), key=f"again.{job.id}", icon=":material/refresh:"
        ):
            jobs().again(job, learner)
            st.rerun()
        if st.button(said("jobs.hide"), key=f"hide.{job.id}", type="tertiary", icon=":material/close:"):
            jobs().hide(job.id, learner)
            st.rerun()


@st.fragment(run_every=0.4)
def _watch(step: Step, said: Words) -> None:
    learner = workbench().learner
    job = jobs().newest(learner, step)
    if job is None or not job.active:
        st.rerun()
        return
    if job.state == "queued":
        key = {0: "jobs.next", 1: "jobs.before_one"}.get(job.before, "jobs.before")
        st.info(said(key, before=job.before), icon=":material/hourglass_top:")
        st.caption(said("jobs.keep"))
    elif job.state == "running":
        show_progress(job.progress, said)
        st.caption(said("running_for", elapsed=said.value("elapsed_s", max(1.0, job.elapsed_s))))
    else:
        st.caption(said("jobs.stopping"))
        return
    with st.container(horizontal=True):
        if st.button(said("cancel"), key=f"cancel.{step.key}", icon=":material/cancel:"):
            jobs().cancel(job.id, learner)
            st.rerun(scope="fragment")
        st.page_link("pages/queue.py", label=said("pages.queue"), icon=":material/view_list:")


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
