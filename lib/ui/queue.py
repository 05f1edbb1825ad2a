"""What the machine is doing now, what waits, and what ended lately."""

from __future__ import annotations

import streamlit as st

from lib.course.labs import labs
from lib.jobs import Job
from lib.text import Words, load_words
from lib.ui.model import show_progress
from lib.ui.shell import enter_by_the_front_door, errors_shown, header, jobs, language, words, workbench

ENDED = 10
_ICONS = {
    "done": ":material/check_circle:",
    "failed": ":material/error:",
    "cancelled": ":material/pause_circle:",
    "interrupted": ":material/power_off:",
}


def show() -> None:
    """Draw the page."""
    enter_by_the_front_door()
    said = words()
    header(said("jobs.title"))
    st.markdown(said("jobs.lead"))
    _board(said)


@st.fragment(run_every=1.0)
def _board(said: Words) -> None:
    with errors_shown():
        active, ended = jobs().active(), jobs().ended(ENDED)
        if not active:
            st.info(said("jobs.idle"), icon=":material/self_improvement:")
        occupying = [job for job in active if job.state != "queued"]
        waiting = [job for job in active if job.state == "queued"]
        if occupying:
            st.subheader(said("jobs.running"), anchor=False)
        for job in occupying:
            _occupying(job, said)
        if waiting:
            st.subheader(said("jobs.waiting"), anchor=False)
        for place, job in enumerate(waiting, 1):
            _waiting(place, job, said)
        if ended:
            st.subheader(said("jobs.ended"), anchor=False)
        for job in ended:
            _ended(job, said)


def _occupying(job: Job, said: Words) -> None:
    of_lab = _words_of(job)
    with st.container(border=True):
        st.markdown(f"**{_name(job)}**")
        if job.state == "stopping":
            st.caption(said("jobs.stopping"))
            return
        if of_lab.has(f"progress.{job.progress.what}"):
            show_progress(job.progress, of_lab)
        elapsed = said.value("elapsed_s", max(1.0, job.elapsed_s))
        st.caption(said("jobs.runs_for", learners=_learners(job), elapsed=elapsed))
        _cancel(job, said)


def _waiting(place: int, job: Job, said: Words) -> None:
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        st.markdown(f"**{_name(job)}**", width="content")
        st.caption(said("jobs.waits_for", place=place, learners=_learners(job)), width="content")
        _cancel(job, said)


def _ended(job: Job, said: Words) -> None:
    state = said.choice(job.state, "job_state")
    took = said("jobs.took", state=state, elapsed=said.value("elapsed_s", job.elapsed_s)) if job.started_at else state
    st.markdown(f"{_ICONS[job.state]} **{_name(job)}** · {took} · {_learners(job)}")


def _cancel(job: Job, said: Words) -> None:
    learner = workbench().learner
    if learner in job.learners and st.button(said("cancel"), key=f"cancel.{job.id}", icon=":material/cancel:"):
        jobs().cancel(job.id, learner)
        st.rerun(scope="fragment")


def _name(job: Job) -> str:
    """The lab's number and title, and the step's name."""
    said = _words_of(job)
    lab = said(f"pages.{job.lab}") if said.has(f"pages.{job.lab}") else job.lab
    return f"{lab}: {said(f'places.{job.step}') if said.has(f'places.{job.step}') else job.step}"


def _words_of(job: Job) -> Words:
    """The words of the job's lab; of a lab that is here no more, the shared ones."""
    lab = next((one for one in labs() if one.id == job.lab), None)
    return lab.words(language()) if lab else load_words(language())


def _learners(job: Job) -> str:
    """Names as they are, not as markup."""
    return ", ".join(f"`{one}`" for one in job.learners)
