"""The default model's arrival and the state of the engine, as every page shows them."""

from __future__ import annotations

from collections.abc import Generator

import streamlit as st

from lib.background import Background
from lib.course.result import Progress
from lib.errors import Cancelled
from lib.text import Words
from lib.ui.shell import show_error, tasks, workbench


def arrival() -> Background[None]:
    """The default model on its way into the shared engine; started by the first page that asks."""
    task = tasks().get("arrival")
    if task is None:
        task = tasks()["arrival"] = Background(_arrive(), "default model")
    return task


def is_ready() -> bool:
    """Whether the default model answers now."""
    status = workbench().engine("embedded").status()
    return status.state == "ready" and status.model == workbench().settings.default_model


def show_arrival(said: Words) -> None:
    """A progress bar in bytes, cancel and try again, for a model that is not ready; the page reruns once it is."""
    task = arrival()
    if not task.running and task.error is None:
        # It was here and is gone: the engine was released or is coming back from a crash.
        tasks().pop("arrival", None)
    _arrival(said)


@st.fragment(run_every=0.4)
def _arrival(said: Words) -> None:
    task = arrival()
    if is_ready():
        st.rerun()
    if task.running:
        show_progress(task.progress, said)
        if st.button(said("cancel"), key="cancel_arrival", icon=":material/cancel:"):
            task.cancel()
        return
    if task.error is not None:
        if isinstance(task.error, Cancelled):
            st.info(said("home.arrival_cancelled"), icon=":material/pause_circle:")
        else:
            show_error(task.error, said)
        if st.button(said("try_again"), key="retry_arrival", type="primary", icon=":material/refresh:"):
            tasks().pop("arrival", None)
            st.rerun()


def show_progress(progress: Progress, said: Words) -> None:
    """What happens now, with a number that moves."""
    text = said(f"progress.{progress.what}")
    if progress.total > 1 << 16:
        text += f" · {said.size(progress.done)} / {said.size(progress.total)}"
    elif progress.detail:
        text += f" · {progress.detail}"
    st.progress(progress.share, text)
    for one in progress.parts:
        st.progress(one.share, f"{one.name} · {said.size(one.done)} / {said.size(one.total)}")


def _arrive() -> Generator[Progress, None, None]:
    bench = workbench()
    yield from bench.engine("embedded").ensure(bench.settings.default_model)
