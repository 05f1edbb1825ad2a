"""The figures of lab 3, each drawn from the table of the step's result."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from lib.charts import BLUE, COLOURS, GREEN, GREY, ORANGE, SKY, SYMBOLS, VERMILION, figure, limit_line, log_ticks
from lib.course.result import Result
from lib.text import Words

MIB = 2**20


def positions(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """How close the best two tokens were against how far the models are apart, one mark a position.

    Below the line a difference is too small to change the choice.
    """
    table = _table(result)
    made = figure(x=words("charts.margin"), y=words("charts.difference"), height=420)
    for same, name, colour, symbol in ((True, "same", BLUE, "circle"), (False, "other", VERMILION, "x")):
        part = table[table["same"] == same]
        made.add_scatter(
            x=part["margin"].clip(lower=1e-4),
            y=part["max_abs_difference"].clip(lower=1e-7),
            mode="markers",
            name=words(f"charts.{name}_token"),
            marker={"color": colour, "symbol": symbol, "size": 9, "opacity": 0.75},
            text=part["position"],
            hovertemplate=words("charts.position") + " %{text}<br>%{x:.3f} | %{y:.5f}<extra></extra>",
        )
    ends = [max(1e-4, table["margin"].min()), table["margin"].max()]
    made.add_scatter(
        x=ends,
        y=[one / 2 for one in ends],
        mode="lines",
        name=words("charts.could_change"),
        line={"dash": "dash", "color": GREY},
        hoverinfo="skip",
    )
    made.update_xaxes(type="log", dtick=1)
    made.update_yaxes(type="log", dtick=1)
    return made


def tensors(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """The bytes of every kind of tensor, with how many of them came back identical."""
    table = _table(result).sort_values("size_bytes")
    compared = table["identical"].notna().all()
    whole = (table["identical"] == table["tensors"]) if compared else pd.Series(False, index=table.index)
    made = figure(x=words("charts.size_mib"), height=160 + 28 * len(table))
    looks = ((True, "charts.identical", GREEN, ""), (False, "charts.not_identical", VERMILION, "x"))
    for same, name, colour, pattern in looks:
        part = table[whole == same]
        if part.empty:
            continue
        made.add_bar(
            x=part["size_bytes"] / MIB,
            y=part["tensor"],
            orientation="h",
            name=words(name if compared else "charts.not_compared"),
            marker={"color": colour if compared else SKY, "pattern": {"shape": pattern if compared else ""}},
            text=[_came_back(row, compared) for row in part.itertuples()],
            textposition="auto",
        )
    made.update_yaxes(categoryorder="array", categoryarray=list(table["tensor"]))
    return made


def operators(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """The ten operators that the graph has most of; those that multiply matrices stand out."""
    table = _table(result).iloc[::-1]
    works = table["operator"].isin(["MatMul", "Gemm"])
    made = figure(x=words("charts.nodes"), height=420)
    for part, name, colour, pattern in (
        (table[works], "multiplies", BLUE, ""),
        (table[~works], "the_rest", SKY, "/"),
    ):
        made.add_bar(
            x=part["nodes"],
            y=part["operator"],
            orientation="h",
            name=words(f"charts.{name}"),
            marker={"color": colour, "pattern": {"shape": pattern}},
        )
    made.update_yaxes(categoryorder="array", categoryarray=list(table["operator"]))
    return made


def levels_and_profile(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Left: a prefill at each optimization level, with its spread. Right: where its time goes."""
    table = _table(result)
    levels, spent = table[table["kind"] == "level"], table[table["kind"] == "operator"].iloc[::-1]
    made = figure(x=words("charts.level"), y=words("charts.prefill_ms"), height=440)
    made.add_bar(
        x=[words.choice(one) for one in levels["name"]],
        y=1000 * levels["prefill_s"],
        name=words("charts.levels"),
        marker={"color": BLUE},
        error_y={
            "array": 1000 * (levels["high_s"] - levels["prefill_s"]),
            "arrayminus": 1000 * (levels["prefill_s"] - levels["low_s"]),
        },
    )
    made.add_bar(
        x=1000 * spent["prefill_s"],
        y=spent["name"],
        orientation="h",
        name=words("charts.profile"),
        marker={"color": ORANGE, "pattern": {"shape": "/"}},
        xaxis="x2",
        yaxis="y2",
    )
    second = {"title": {"text": words("charts.operator_ms")}, "automargin": True, "zeroline": False}
    made.update_layout(
        xaxis={"domain": [0, 0.36]},
        xaxis2={"domain": [0.62, 1], "anchor": "y2", **second},
        yaxis2={"anchor": "x2", "automargin": True},
    )
    return made


def sizes_and_peaks(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """The file beside the peak of the process that runs it, with the top-1 agreement."""
    table = _table(result)
    names = [words.choice(one) for one in table["form"]]
    made = figure(y=words("charts.mib"), height=400)
    made.add_bar(x=names, y=table["size_bytes"] / MIB, name=words.label("size_bytes"), marker={"color": SKY})
    made.add_bar(
        x=names,
        y=table["peak_bytes"] / MIB,
        name=words.label("peak_bytes"),
        marker={"color": BLUE, "pattern": {"shape": "/"}},
        text=[f"{words.number(one, 1)} % top-1" for one in table["top1_agreement_percent"]],
        textposition="outside",
    )
    made.update_layout(barmode="group")
    if prediction is not None:
        limit_line(made, prediction / MIB, words("your_prediction"))
    return made


def agreements(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """How often each stack chooses the original's token; what failed has no bar."""
    table = _table(result)
    failed = table["top1_agreement_percent"].isna()
    made = figure(y=words("charts.agreement"), height=380)
    made.add_bar(
        x=[words.choice(one) for one in table["form"]],
        y=table["top1_agreement_percent"],
        marker={"color": [COLOURS[at % len(COLOURS)] for at in range(len(table))]},
        text=[
            words("charts.failed") if gone else f"{words.number(value, 1)} %"
            for gone, value in zip(failed, table["top1_agreement_percent"], strict=True)
        ],
        textposition="outside",
        showlegend=False,
    )
    made.update_yaxes(range=[0, 110])
    return made


def speed_and_memory(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Speed against peak memory, the mark's area the file's size; colour and shape tell the agreement."""
    table = _table(result).dropna(subset=["peak_bytes", "tokens_per_s", "top1_agreement_percent"])
    made = figure(x=words("charts.peak_mib"), y=words("charts.tokens_per_s"), height=480)
    # Above, what a learner may take for the same model; below, what is another one.
    bands = ((97.5, 101.0, GREEN), (90.0, 97.5, SKY), (75.0, 90.0, ORANGE), (0.0, 75.0, VERMILION))
    for index, (low, high, colour) in enumerate(bands):
        agreed = table["top1_agreement_percent"]
        part = table[(agreed >= low) & (agreed < high)]
        if part.empty:
            continue
        made.add_scatter(
            x=part["peak_bytes"] / MIB,
            y=part["tokens_per_s"],
            mode="markers+text",
            name=words("charts.band", low=low, high=min(high, 100.0)),
            marker={
                "color": colour,
                "symbol": SYMBOLS[index],
                "size": [10 + 1.2 * math.sqrt(one / MIB) for one in part["size_bytes"]],
                "opacity": 0.8,
            },
            text=[words.choice(one) for one in part["form"]],
            textposition="top center",
            hovertemplate="%{text}<br>%{x:.0f} MiB, %{y:.1f} tokens/s<extra></extra>",
        )
    made.update_xaxes(rangemode="tozero")
    if len(table):
        ticks = log_ticks(table["tokens_per_s"].min(), table["tokens_per_s"].max())
        names = [words.number(one, 0 if one >= 1 else 1) for one in ticks]
        made.update_yaxes(type="log", tickvals=ticks, ticktext=names)
    return made


def _came_back(row: object, compared: bool) -> str:
    many = getattr(row, "tensors")  # noqa: B009
    return f"{getattr(row, 'identical'):.0f} / {many}" if compared else f"{many}"  # noqa: B009


def _table(result: Result) -> pd.DataFrame:
    assert result.table is not None
    return result.table
