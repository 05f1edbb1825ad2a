"""The figures of lab 1, each drawn from the table of the step's result."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from lib.charts import BLUE, COLOURS, GREEN, ORANGE, PATTERNS, SKY, SYMBOLS, VERMILION, figure, limit_line
from lib.course.result import Result
from lib.text import Words

MIB, GIB = 2**20, 2**30


def bandwidth(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Read bandwidth over the size of what is read, with the spread of the rounds."""
    table = _table(result)
    speed = table["median_bytes_per_s"] / 1e9
    made = figure(x=words("charts.working_set"), y=words("charts.bandwidth"))
    made.add_scatter(
        x=table["size_bytes"] / MIB,
        y=speed,
        mode="lines+markers",
        line={"color": BLUE, "width": 3},
        marker={"size": 10},
        error_y={
            "array": table["high_bytes_per_s"] / 1e9 - speed,
            "arrayminus": speed - table["low_bytes_per_s"] / 1e9,
        },
        hovertemplate="%{x} MiB: %{y:.1f} GB/s<extra></extra>",
    )
    made.update_xaxes(type="log", tickvals=list(table["size_bytes"] / MIB))
    made.update_yaxes(rangemode="tozero")
    return made


def landscape(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Parameters against estimated memory, this machine's free memory drawn in."""
    table = _table(result).dropna(subset=["estimate_bytes"])
    made = figure(x=words("charts.parameters"), y=words("charts.memory_gib"), height=460)
    for index, size_class in enumerate(("micro", "small", "medium")):
        part = table[table["size_class"] == size_class]
        made.add_scatter(
            x=part["parameters"] / 1e9,
            y=part["estimate_bytes"] / GIB,
            mode="markers",
            name=words.choice(size_class, "size_class"),
            marker={"size": 12, "color": COLOURS[index], "symbol": SYMBOLS[index]},
            text=part["model"],
            hovertemplate="%{text}<br>%{y:.2f} GiB<extra></extra>",
        )
    made.update_xaxes(type="log", tickvals=[0.1, 0.3, 1, 3, 10, 30])
    made.update_yaxes(type="log", tickvals=[0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64])
    limit_line(made, float(result.facts["available_bytes"] or 0) / GIB, words("charts.free_here"))  # type: ignore[arg-type]
    return made


def memory_terms(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """The terms of the estimate, stacked."""
    made = figure(x=words("charts.memory_mib"), height=260)
    for index, row in enumerate(_table(result).itertuples()):
        made.add_bar(
            x=[row.size_bytes / MIB],
            y=[""],
            orientation="h",
            name=words.label(f"{row.term}_bytes"),
            marker={"color": COLOURS[index % len(COLOURS)], "pattern": {"shape": PATTERNS[index % len(PATTERNS)]}},
            hovertemplate="%{x:.1f} MiB<extra>%{fullData.name}</extra>",
        )
    made.update_layout(barmode="stack", legend={"traceorder": "normal"})
    if prediction is not None:
        limit_line(made, prediction / MIB, words("your_prediction"), horizontal=False)
    return made


def predicted_and_measured(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """The estimate beside the measured peak at each context, with the error in per cent."""
    table = _table(result)
    contexts = [words.number(value) for value in table["context_tokens"]]
    made = figure(x=words("charts.context"), y=words("charts.memory_mib"))
    made.add_bar(
        x=contexts,
        y=table["estimate_bytes"] / MIB,
        name=words.label("estimate_bytes"),
        marker={"color": SKY, "pattern": {"shape": "/"}},
        text=[f"{words.number(error, 1)} %" for error in table["error_percent"]],
        textposition="outside",
    )
    made.add_bar(x=contexts, y=table["peak_bytes"] / MIB, name=words.label("peak_bytes"), marker={"color": BLUE})
    made.update_layout(barmode="group")
    made.update_xaxes(type="category")
    if prediction is not None:
        limit_line(made, prediction / MIB, words("your_prediction"))
    return made


def shortlist(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Forecast speed against estimated memory: what fits and is fast enough lies to the lower right."""
    table = _table(result)
    made = figure(x=words("charts.forecast"), y=words("charts.memory_gib"), height=460)
    looks = (("fits", GREEN), ("task_not_named", SKY), ("too_slow", ORANGE), ("too_large", VERMILION))
    for index, (reason, colour) in enumerate(looks):
        part = table[table["reason"] == reason]
        made.add_scatter(
            x=part["forecast_tokens_per_s"],
            y=part["estimate_bytes"] / GIB,
            mode="markers",
            name=words.choice(reason),
            marker={"size": 12, "color": colour, "symbol": SYMBOLS[index]},
            text=part["model"],
            hovertemplate="%{text}<br>%{x:.1f} tokens/s, %{y:.2f} GiB<extra></extra>",
        )
    made.update_xaxes(type="log", tickvals=[1, 2, 5, 10, 20, 50, 100, 200])
    made.update_yaxes(type="log", tickvals=[0.125, 0.25, 0.5, 1, 2, 4, 8, 16, 32])
    limit_line(made, float(result.more["wanted_tokens_per_s"] or 0), words("charts.wanted"), horizontal=False)  # type: ignore[arg-type]
    limit_line(made, float(result.more["budget_bytes"] or 0) / GIB, words("charts.free_here"))  # type: ignore[arg-type]
    return made


def hub_sizes(result: Result, words: Words, prediction: float | None = None) -> go.Figure | None:
    """The smallest and the largest file that each repository offers, on a logarithmic axis; None without sizes."""
    table = _table(result).dropna(subset=["smallest_bytes", "largest_bytes"])
    if table.empty:
        return None
    made = figure(x=words("charts.file_mib"), height=140 + 34 * len(table))
    for row in table.itertuples():
        made.add_scatter(
            x=[row.smallest_bytes / MIB, row.largest_bytes / MIB],
            y=[row.id, row.id],
            mode="lines+markers",
            line={"color": BLUE, "width": 4},
            marker={"color": BLUE, "size": 12},
            hovertemplate="%{y}: %{x:,.0f} MiB<extra></extra>",
            showlegend=False,
        )
    ends = [math.log10(table["smallest_bytes"].min() / MIB), math.log10(table["largest_bytes"].max() / MIB)]
    # Whole powers of ten around the sizes: one size alone would otherwise fill the axis with its own decimals.
    made.update_xaxes(type="log", range=[math.floor(ends[0]), math.ceil(ends[1] + 0.05)], dtick=1)
    made.update_yaxes(autorange="reversed")
    return made


def claims(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Right and wrong answers, narrow tasks beside reasoning tasks."""
    table = _table(result)
    made = figure(x=words("charts.tasks"), height=260)
    for right, colour, pattern in ((True, GREEN, ""), (False, VERMILION, "x")):
        counts = [int(((table["kind"] == kind) & (table["right"] == right)).sum()) for kind in ("narrow", "reasoning")]
        made.add_bar(
            x=counts,
            y=[words.choice("narrow"), words.choice("reasoning")],
            orientation="h",
            name=words.choice("right" if right else "wrong"),
            marker={"color": colour, "pattern": {"shape": pattern}},
        )
    made.update_layout(barmode="stack")
    return made


def _table(result: Result) -> pd.DataFrame:
    assert result.table is not None
    return result.table
