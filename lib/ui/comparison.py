"""One measurement whole, or two side by side."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from lib.charts import dressed
from lib.course.cards import is_here, title
from lib.course.compared import differing, facts_beside
from lib.course.draw import fact_rows
from lib.course.run import Run
from lib.text import Words
from lib.ui.draw import BARE, draw_run
from lib.ui.shell import LABS, is_dark


def show_one(run: Run, said: Words) -> None:
    """The card whole: what was measured, on what machine, with which versions."""
    st.header(said("measurements.read"), anchor=False)
    with st.container(border=True):
        st.subheader(_title(run), anchor=False)
        st.caption(f"{said.value('', run.finished_at)} UTC")
        _link(run, said)
        draw_run(run, run.words)
        with st.expander(said("measurements.machine_versions"), icon=":material/computer:"):
            _provenance(run, said)


def show_two(first: Run, second: Run, said: Words) -> None:
    """Two cards: what differs in their conditions, every shared fact, and both charts."""
    st.header(said("measurements.compare"), anchor=False)
    for name, run in (("first", first), ("second", second)):
        what = f"**{_title(run)}**, {said.value('', run.finished_at)} UTC, `{run.card_id[:12]}`"
        st.markdown(said(f"measurements.{name}", what=what))
        _partial(run, said)
    _conditions(first, second, said)
    rows = facts_beside(first, second, first.words)
    if rows:
        columns = ("fact", "column_first", "column_second", "difference", "ratio")
        _table(rows, [said(f"measurements.{name}") for name in columns])
        st.caption(said("measurements.ratio_why"))
    else:
        st.info(said("measurements.no_facts"), icon=":material/info:")
    for place, name, run in zip(st.columns(2), ("first", "second"), (first, second), strict=True):
        with place:
            _chart(run, said(f"measurements.{name}", what=_title(run)), name)


def _conditions(first: Run, second: Run, said: Words) -> None:
    """What is not the same, and a plain word about it when it is more than a parameter."""
    of_lab = first.words
    parts = {
        "parameters": differing(first.parameters, second.parameters, of_lab),
        "machine": differing(first.machine, second.machine, of_lab),
        "versions": differing(first.versions, second.versions, of_lab),
        "checksum": differing({"SHA-256": _short(first)}, {"SHA-256": _short(second)}, of_lab),
    }
    if first.step.key != second.step.key:
        st.warning(said("measurements.other_step"), icon=":material/call_split:")
    elif not any(parts.values()):
        st.info(said("measurements.same"), icon=":material/equal:")
    other = [said(f"measurements.part_{name}") for name in ("machine", "versions", "checksum") if parts[name]]
    if other:
        st.warning(said("measurements.other_conditions", what=", ".join(other)), icon=":material/warning:")
    rows = [(said(f"measurements.{part}"), *one) for part, found in parts.items() for one in found]
    if rows:
        st.subheader(said("measurements.differs"), anchor=False)
        _table(rows, ["", *(said(f"measurements.{name}") for name in ("what", "column_first", "column_second"))])


def _table(rows: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    cells = [[_as_it_is(cell) for cell in row] for row in rows]
    st.table(pd.DataFrame(cells, columns=list(columns)), border="horizontal", hide_index=True)


def _as_it_is(text: str) -> str:
    """A prompt or a path as it stands, no markup: a table's cells are Markdown."""
    return "".join(f"\\{one}" if one in "\\`*_{}[]()#+-.!|<>$~:" else one for one in text)


def _chart(run: Run, name: str, key: str) -> None:
    made = run.figure()
    if made is None:
        return
    st.markdown(f"##### {name}")
    alt = f"{name}. {run.words('table_below')}"
    st.plotly_chart(dressed(made, is_dark()), theme=None, alt=alt, config=BARE, key=f"measurements.chart.{key}")


def _title(run: Run) -> str:
    return title(run.step.lab.id, run.step.id, run.words.language)


def _short(run: Run) -> str | None:
    """Enough of a checksum to tell two apart; the whole one would not fit beside another."""
    return f"{run.model_sha256[:12]}…" if run.model_sha256 else None


def _partial(run: Run, said: Words) -> None:
    if getattr(run.result, "partial", False):
        st.warning(f"{said('measurements.partial')}. {said('measurements.partial_why')}", icon=":material/warning:")


def _link(run: Run, said: Words) -> None:
    lab, step = run.step.lab.id, run.step.id
    if lab in LABS and is_here(lab, step):
        place = {"step": step, "lang": said.language}
        label = said("measurements.open_lab")
        st.page_link(f"pages/{lab}.py", label=label, icon=":material/arrow_forward:", query_params=place)
    else:
        st.info(said("measurements.gone"), icon=":material/info:")


def _provenance(run: Run, said: Words) -> None:
    for part, values in (("machine", run.machine), ("versions", run.versions)):
        st.markdown(f"**{said(f'measurements.{part}')}**")
        _table(fact_rows(values, run.words), [said("measurements.what"), said("card.value")])
    st.markdown(f"{said('measurements.checksum')}: `{run.model_sha256 or said('measurements.unknown')}`")
