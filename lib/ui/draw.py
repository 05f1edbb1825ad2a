"""A run on the page: chart first, then facts, notes, the table, and the code that ran."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from lib.charts import dressed
from lib.course.draw import chief_facts, fact_rows, off_by, readable, sentence
from lib.course.lab import Step
from lib.course.result import Listing
from lib.course.run import Run
from lib.text import Words
from lib.ui.shell import is_dark

SMALL_TABLE = 16
CHIEF_FACTS = 4


def draw_run(run: Run, said: Words) -> None:
    """Draw everything a run carries."""
    _prediction(run, said)
    made = run.figure(said)
    if made is not None:
        title = said(f"charts.title_{run.step.id}")
        st.markdown(f"##### {title}")
        st.plotly_chart(dressed(made, is_dark()), theme=None, alt=f"{title}. {said('table_below')}", config=BARE)
    short = chief_facts(run.result.facts, said)[:CHIEF_FACTS]
    with st.container(horizontal=True):
        for label, value in short:
            st.metric(label, value, border=True, width="content")
    others = [row for row in fact_rows(run.result.facts, said) if row not in short]
    if others:
        st.table(dict(others), border="horizontal")
    if run.result.notes:
        st.info("\n\n".join(_no_formula(sentence(one, said)) for one in run.result.notes), icon=":material/info:")
    if run.result.listings:
        _listings(run.result.listings, said)
    if run.result.table is not None and len(run.result.table):
        with st.expander(said("the_table"), icon=":material/table:", expanded=made is None):
            draw_table(run.result.table, said)
    with st.expander(said("the_card"), icon=":material/receipt_long:"):
        _card(run, said)


def draw_table(table: pd.DataFrame, said: Words) -> None:
    """A table with names and units of the learner's language; a small one as real HTML."""
    shown = readable(table, said)
    if len(shown) <= SMALL_TABLE:
        st.table(shown, border="horizontal", hide_index=True)
    else:
        st.dataframe(shown, hide_index=True)


def show_source(step: Step, said: Words) -> None:
    """The source of the step: the code that runs."""
    with st.expander(said("the_code"), icon=":material/code:"):
        st.code(step.source, language="python", line_numbers=True)
        st.caption(said("same_code", command=f"python -m lib.cli run {step.key}"))


def _listings(listings: Sequence[Listing], said: Words) -> None:
    for tab, one in zip(st.tabs([said(f"listings.{one.name}") for one in listings]), listings, strict=True):
        tab.code(one.text, language=one.language, wrap_lines=True)


def _no_formula(text: str) -> str:
    """Dollar signs as such: a model's answer about prices is not a formula."""
    return text.replace("$", "\\$")


def _prediction(run: Run, said: Words) -> None:
    if run.prediction is None or run.step.predict is None:
        return
    name = run.step.predict.fact
    found = run.result.facts.get(name)
    if not isinstance(found, int | float):
        return  # this run found nothing to compare it with
    with st.container(horizontal=True):
        st.metric(said("your_prediction"), said.value(name, run.prediction), border=True, width="content")
        st.metric(said.label(name), said.value(name, found), off_by(run.prediction, found, said),
                  delta_color="off", delta_arrow="off", border=True, width="content")  # fmt: skip


def _card(run: Run, said: Words) -> None:
    st.markdown(
        f"{said('card.when')}: **{said.value('', run.finished_at)} UTC** · "
        f"{said('card.took')}: **{said.value('took_s', run.duration_s)}** · {said('card.id')}: `{run.card_id[:12]}`"
    )
    parameters = [(said.label(name), said.value(name, value)) for name, value in run.parameters.items()]
    if parameters:
        st.table(pd.DataFrame(parameters, columns=[said("card.parameter"), said("card.value")]), hide_index=True)


BARE = {"displaylogo": False, "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"]}
