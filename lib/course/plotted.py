"""Any fact of many runs of a step against any parameter, any other fact, or the date."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from lib.charts import COLOURS, SYMBOLS, figure
from lib.course.cards import Brief
from lib.course.compared import is_number
from lib.text import Words

WHEN = "finished_at"
# From this ratio of the largest to the smallest on, a linear axis would huddle the small values together.
LOGARITHMIC = 32
GIB = 2**30
MINUTE_MS, DAY_MS = 60_000, 86_400_000
_UNITS = {
    "_bytes_per_s": ("GB/s", 1e9),
    "tokens_per_s": ("units.tokens_per_s", 1),
    "_per_s": ("/s", 1),
    "_s": ("s", 1),
    "_percent": ("%", 1),
}


def axes(briefs: Sequence[Brief]) -> list[str]:
    """What can stand on the horizontal axis: the date, then ``parameter.NAME`` and ``fact.NAME``."""
    parameters = dict.fromkeys(f"parameter.{name}" for one in briefs for name in one.parameters)
    facts = dict.fromkeys(f"fact.{name}" for one in briefs for name in one.facts)
    return [WHEN, *parameters, *facts]


def measured(briefs: Sequence[Brief]) -> list[str]:
    """What can stand on the vertical axis: the facts that are numbers in some run."""
    return list(
        dict.fromkeys(f"fact.{name}" for one in briefs for name, value in one.facts.items() if is_number(value))
    )


def varying(briefs: Sequence[Brief]) -> list[str]:
    """The parameters that are not the same in all the runs, the one with the most values first."""
    names = [name for name in axes(briefs) if name.startswith("parameter.")]
    values = {name: len({str(value_of(one, name)) for one in briefs}) for name in names}
    return sorted((name for name in names if values[name] > 1), key=lambda name: -values[name])


def name_of(axis: str, said: Words) -> str:
    """An axis as people call it."""
    return said("card.when") if axis == WHEN else said.label(axis.partition(".")[2])


def value_of(brief: Brief, axis: str) -> Any:
    """A run's value on an axis; None where it has none."""
    if axis == WHEN:
        return brief.finished_at
    part, _, name = axis.partition(".")
    return (brief.parameters if part == "parameter" else brief.facts).get(name)


def points(briefs: Sequence[Brief], x: str, y: str, colour: str | None, said: Words) -> pd.DataFrame:
    """One row a run that came to its end and has both values: ``x``, ``y``, ``group``, and how people read x and y.

    ``x`` is a number or a moment where every run has one, else a text; ``group`` is "" without a colour.
    """
    whole = [one for one in briefs if not one.partial]
    having = [one for one in whole if value_of(one, x) is not None and is_number(value_of(one, y))]
    as_they_are = all(is_number(value_of(one, x)) or isinstance(value_of(one, x), datetime) for one in having)
    rows = [
        {
            "x": value_of(one, x) if as_they_are else _read(one, x, said),
            "y": value_of(one, y),
            "group": _read(one, colour, said) if colour else "",
            "x_read": _read(one, x, said),
            "y_read": _read(one, y, said),
        }
        for one in having
    ]
    return pd.DataFrame(rows, columns=["x", "y", "group", "x_read", "y_read"]).sort_values(["group", "x"])


def spread(table: pd.DataFrame, y: str, said: Words) -> pd.DataFrame:
    """Per group and x: how many runs, and the lowest, median and highest value, readable and as numbers."""
    grouped = (
        table.groupby(["group", "x", "x_read"], sort=False)["y"].agg(["count", "min", "median", "max"]).reset_index()
    )
    for name in ("min", "median", "max"):
        grouped[f"{name}_read"] = [_value(y.partition(".")[2], value, said) for value in grouped[name].tolist()]
    return grouped


def scatter(table: pd.DataFrame, grouped: pd.DataFrame, x: str, y: str, said: Words) -> go.Figure:
    """Every run of ``points`` a point; where several share x, by ``spread``, a dash at their median and a bar."""
    x_unit, x_scale = _unit(x, table["x"], said)
    y_unit, y_scale = _unit(y, table["y"], said)
    made = figure(x=_title(x, x_unit, said), y=_title(y, y_unit, said), height=440)
    for index, (group, runs) in enumerate(table.groupby("group", sort=False)):
        look = {"color": COLOURS[index % len(COLOURS)], "symbol": SYMBOLS[index % len(SYMBOLS)]}
        made.add_scatter(
            x=_scaled(runs["x"], x_scale),
            y=runs["y"] / y_scale,
            mode="markers",
            name=str(group) or name_of(y, said),
            marker={**look, "size": 11, "opacity": 0.9},
            customdata=runs[["x_read", "y_read"]],
            hovertemplate="%{customdata[0]}<br>%{customdata[1]}<extra>%{fullData.name}</extra>",
        )
        shared = grouped[(grouped["group"] == group) & (grouped["count"] > 1)]
        if len(shared):
            made.add_trace(_bars(shared, x_scale, y_scale, look["color"]))
    made.update_layout(showlegend=bool(table["group"].any()), separators=said.separators())
    _scale_axis(made, x, table["x"], x_scale, said)
    return made


def _bars(shared: pd.DataFrame, x_scale: float, y_scale: float, colour: str) -> go.Scatter:
    median = shared["median"] / y_scale
    return go.Scatter(
        x=_scaled(shared["x"], x_scale),
        y=median,
        mode="markers",
        marker={"symbol": "line-ew", "size": 26, "line": {"width": 3, "color": colour}},
        error_y={
            "array": shared["max"] / y_scale - median,
            "arrayminus": median - shared["min"] / y_scale,
            "color": colour,
            "thickness": 2,
            "width": 8,
        },
        customdata=shared[["x_read", "min_read", "median_read", "max_read"]],
        hovertemplate="%{customdata[0]}<br>%{customdata[1]} … %{customdata[2]} … %{customdata[3]}<extra></extra>",
        showlegend=False,
    )


def _scale_axis(made: go.Figure, x: str, values: pd.Series, scale: float, said: Words) -> None:
    if x == WHEN:
        date = said("measurements.chart_date")
        parts = ((MINUTE_MS, f"%H:%M:%S\n{date}"), (DAY_MS, f"%H:%M\n{date}"), (None, date))
        ends = (None, MINUTE_MS, DAY_MS)
        stops = [
            {"dtickrange": [low, high and high - 1], "value": text}
            for low, (high, text) in zip(ends, parts, strict=True)
        ]
        made.update_xaxes(tickformatstops=stops)
        return
    if not pd.api.types.is_numeric_dtype(values):
        made.update_xaxes(type="category")
        return
    places = sorted(set(values))
    if places and places[0] > 0 and places[-1] / places[0] >= LOGARITHMIC:
        made.update_xaxes(type="log")
    if 1 < len(places) <= 8:
        made.update_xaxes(tickvals=[place / scale for place in places])


# The same thousands of values are written at every rerun of a page.
@lru_cache(maxsize=50_000)
def _value(name: str, value: float, said: Words) -> str:
    return said.value(name, value)


@lru_cache(maxsize=50_000)
def _read(brief: Brief, axis: str, said: Words) -> str:
    return said.value(axis.partition(".")[2] or axis, value_of(brief, axis))


def _unit(axis: str, values: pd.Series, said: Words) -> tuple[str, float]:
    if axis == WHEN or not pd.api.types.is_numeric_dtype(values):
        return "", 1
    if axis.endswith("_bytes"):
        return ("GiB", GIB) if values.abs().max() >= 4 * GIB else ("MiB", 2**20)
    unit, scale = next((found for suffix, found in _UNITS.items() if axis.endswith(suffix)), ("", 1))
    return (said(unit) if "." in unit else unit), scale


def _title(axis: str, unit: str, said: Words) -> str:
    name = name_of(axis, said)
    return f"{name} ({unit})" if unit and not name.endswith(f"({unit})") else name


def _scaled(values: pd.Series, scale: float) -> pd.Series:
    return values if scale == 1 else values / scale
