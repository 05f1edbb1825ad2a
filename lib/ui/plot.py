"""Any fact against any parameter, drawn over all the runs of a step that are listed."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import streamlit as st

from lib.charts import dressed
from lib.course.cards import Brief, title, words_of
from lib.course.plotted import WHEN, axes, measured, name_of, points, scatter, spread, varying
from lib.text import Words
from lib.ui.draw import BARE, SMALL_TABLE
from lib.ui.shell import is_dark

WIDTH = 260


@st.fragment
def show_plot(shown: Sequence[Brief], likely: str | None, said: Words) -> None:
    """Choices of step, axes and colour, the chart, and the table behind it; ``likely`` is the step looked at."""
    st.header(said("measurements.plot"), anchor=False)
    st.caption(said("measurements.plot_why"))
    with st.container(horizontal=True, vertical_alignment="bottom"):
        runs = _of_step(shown, likely, said)
        of_lab = words_of(runs[0].lab, said.language)
        x, y, colour = _axes(runs, of_lab)
    if y is None:
        st.info(said("measurements.plot_none"), icon=":material/info:")
        return
    table = points(runs, x, y, colour, of_lab)
    if not len(table):
        st.info(said("measurements.plot_few"), icon=":material/info:")
        return
    what = f"{name_of(y, of_lab)}: {name_of(x, of_lab)}"
    grouped = spread(table, y, of_lab)
    made = dressed(scatter(table, grouped, x, y, of_lab), is_dark())
    st.plotly_chart(made, theme=None, alt=f"{what}. {said('table_below')}", config=BARE, key="measurements.plot")
    with st.expander(said("the_table"), icon=":material/table:"):
        _table(grouped, name_of(x, of_lab), name_of(colour, of_lab) if colour else None, said)


def _of_step(shown: Sequence[Brief], likely: str | None, said: Words) -> list[Brief]:
    keys = list(dict.fromkeys(one.key for one in shown))
    names = {one.key: title(one.lab, one.step, said.language) for one in shown}
    most = max(keys, key=lambda key: sum(one.key == key for one in shown))
    start = likely if likely in keys else most
    # A step of its own for each start: what is ticked in the list comes first here.
    step = st.selectbox(
        said("measurements.plot_step"),
        keys,
        keys.index(start),
        format_func=names.__getitem__,
        key=f"measurements.plot_step.{start}",
        width=WIDTH,
    )
    return [one for one in shown if one.key == step]


def _axes(runs: Sequence[Brief], said: Words) -> tuple[str, str | None, str | None]:
    key = runs[0].key
    across, up, changing = axes(runs), measured(runs), varying(runs)
    start = changing[0] if changing else WHEN

    def name(axis: str) -> str:
        if not axis:
            return said("measurements.one_colour")
        twin = axis.startswith("parameter.") and f"fact.{axis.partition('.')[2]}" in across
        return said("measurements.parameter_of", name=name_of(axis, said)) if twin else name_of(axis, said)

    x = st.selectbox(
        said("measurements.x"), across, across.index(start), format_func=name, key=f"measurements.x.{key}", width=WIDTH
    )
    y = st.selectbox(said("measurements.y"), up, format_func=name, key=f"measurements.y.{key}", width=WIDTH)
    parameters = [axis for axis in across if axis.startswith("parameter.")]
    colour = st.selectbox(
        said("measurements.colour"),
        ["", *parameters],
        format_func=name,
        key=f"measurements.colour.{key}",
        width=WIDTH,
    )
    return x, y, colour or None


def _table(grouped: pd.DataFrame, x: str, colour: str | None, said: Words) -> None:
    columns = {f"{x} ": grouped["x_read"]}
    if colour:
        columns = {colour: grouped["group"], **columns}
    columns[said("measurements.runs")] = grouped["count"].map(said.number)
    for name, column in (("lowest", "min_read"), ("median", "median_read"), ("highest", "max_read")):
        columns[said(f"measurements.{name}")] = grouped[column]
    shown = pd.DataFrame(columns)
    if len(shown) <= SMALL_TABLE:
        st.table(shown, border="horizontal", hide_index=True)
    else:
        st.dataframe(shown, hide_index=True)
