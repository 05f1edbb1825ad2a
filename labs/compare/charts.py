"""The figures of lab 6, each drawn from the table of the step's result."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import pandas as pd
import plotly.graph_objects as go

from labs.compare.rows import measured
from labs.compare.scenario_charts import scenarios
from lib.charts import BLUE, COLOURS, GREEN, GREY, ORANGE, PATTERNS, PURPLE, SKY, SYMBOLS, figure, limit_line, log_ticks
from lib.course.result import Result
from lib.text import Words

__all__ = ["arrivals", "batching", "burst", "choice", "questions", "roofline", "saturation", "scenarios", "taken"]
MIB = 2**20
ENGINES = ("embedded", "embedded-f16", "onnx", "foundry", "vllm", "ollama", "endpoint")


def arrivals(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """The one prompt: when each piece of text came, a line an engine."""
    made = figure(x=words("charts.seconds"), y=words("charts.pieces"), height=420)
    for engine in _table(result)["engine"]:
        times = _floats(result.more[str(engine)])
        made.add_scatter(
            x=times,
            y=list(range(1, len(times) + 1)),
            mode="lines+markers",
            line={"color": _colour(engine), "shape": "hv"},
            marker={"symbol": _symbol(engine), "size": 7},
            name=words.choice(engine, "engine"),
        )
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"), horizontal=False)
    return made


def questions(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """The race as four small charts, one a question; the whiskers are the slowest and the fastest round."""
    table = measured(_table(result))
    titles = [words(f"charts.question_{one}") for one in ("alone", "together", "memory", "first")]
    made = figure(height=640)
    made.set_subplots(rows=2, cols=2, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.06)
    if not len(table):
        return made
    few, many = table["parallel"].min(), table["parallel"].max()
    alone, together = table[table["parallel"] == few], table[table["parallel"] == many]
    _bars(made, (1, 1), alone, "tokens_per_s", 1, words, words("units.tokens_per_s"))
    _bars(made, (1, 2), together, "tokens_per_s", 1, words, words("units.tokens_per_s"))
    _bars(made, (2, 1), together, "memory_bytes", 1 / MIB, words, "MiB")
    _bars(made, (2, 2), alone, "ttft_p50_s", 1000, words, "ms")
    # One order of engines for all four: who has no figure to a question keeps an empty line, else the names, which
    # stand on the left only, would be beside somebody else's bars.
    names = [words.choice(one, "engine") for one in dict.fromkeys(table["engine"])]
    made.update_yaxes(categoryorder="array", categoryarray=names, range=[len(names) - 0.5, -0.5], type="category")
    made.update_yaxes(showticklabels=True, col=1)
    made.update_yaxes(showticklabels=False, col=2)
    if prediction is not None:
        made.add_vline(prediction, row=1, col=1, line={"dash": "dash", "width": 2, "color": GREY})
        # The bars' own range ends short of a guess that was far too high.
        made.update_xaxes(range=[0, max((made.layout.xaxis.range or (0, 0))[1], 1.1 * prediction)], row=1, col=1)
        # Titles a line higher: the name of a guess that was not far off would be written across one.
        for title in made.layout.annotations[:2]:
            title.yshift = 18
        made.add_annotation(
            text=words("your_prediction"),
            x=prediction,
            y=1,
            xref="x",
            yref="y domain",
            showarrow=False,
            yanchor="bottom",
        )
    return made


def _bars(
    made: go.Figure, place: tuple[int, int], table: pd.DataFrame, name: str, scale: float, words: Words, unit: str
) -> None:
    unknown = [words.choice(one, "engine") for one in table.loc[table[name].isna(), "engine"]]
    table = table.dropna(subset=[name])
    if not len(table):
        return
    values = [scale * float(one) for one in table[name]]
    spread = f"low_{name}" in table
    low, high = (
        [scale * float(one) for one in table[f"{end}_{name}"]] if spread else values for end in ("low", "high")
    )
    engines = list(table["engine"])
    names = [words.choice(one, "engine") for one in engines]
    made.add_bar(
        row=place[0],
        col=place[1],
        x=values,
        y=names,
        orientation="h",
        marker={"color": [_colour(one) for one in engines], "pattern": {"shape": [_pattern(one) for one in engines]}},
        error_x={
            "type": "data",
            "array": [end - value for end, value in zip(high, values, strict=True)],
            "arrayminus": [value - end for end, value in zip(low, values, strict=True)],
            "color": GREY,
            "visible": spread,
        },
        showlegend=False,
        hovertemplate="%{y}: %{x:.1f} " + unit + "<extra></extra>",
    )
    made.add_scatter(
        row=place[0],
        col=place[1],
        x=[0] * len(unknown),
        y=unknown,
        mode="text",
        text=[" –"] * len(unknown),
        textposition="middle right",
        showlegend=False,
        hoverinfo="skip",
    )
    # Beyond the whiskers: on the bar they would strike the figure through.
    made.add_scatter(
        row=place[0],
        col=place[1],
        x=high,
        y=names,
        mode="text",
        text=[f" {words.number(one, 1 if one < 100 else 0)}" for one in values],
        textposition="middle right",
        showlegend=False,
        hoverinfo="skip",
        cliponaxis=False,
    )
    made.update_xaxes(title={"text": unit}, row=place[0], col=place[1], range=[0, 1.3 * max(high)])


def roofline(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Tokens a second against the bytes that one token reads: the machine's ceiling, and each engine under it."""
    table = _table(result)
    sizes, speeds = _floats(result.more["sizes"]), _floats(result.more["bandwidths"])
    made = figure(x=words("charts.mib_a_token"), y=words("charts.tokens_per_s"), height=460)
    most = max([1024 * MIB, *(1.2 * float(one) for one in table["token_bytes"])])
    ends = [20 * MIB, most]
    for size, speed, dash in zip(sizes, speeds, cycle(("solid", "dot", "dash", "dashdot")), strict=False):
        made.add_scatter(
            x=[one / MIB for one in ends],
            y=[speed / one for one in ends],
            mode="lines",
            line={"color": GREY, "dash": dash},
            name=words("charts.ceiling", mib=round(size / MIB), gb=speed / 1e9),
        )
    for _, row in table.iterrows():
        up, down = row["high_tokens_per_s"] - row["tokens_per_s"], row["tokens_per_s"] - row["low_tokens_per_s"]
        made.add_scatter(
            x=[row["token_bytes"] / MIB],
            y=[row["tokens_per_s"]],
            mode="markers+text",
            marker={"color": _colour(row["engine"]), "symbol": _symbol(row["engine"]), "size": 14},
            error_y={"type": "data", "array": [up], "arrayminus": [down]},
            text=[f"{words.number(row['reached_percent'])} %"],
            textposition="bottom center",
            name=words.choice(row["engine"], "engine"),
        )
    made.update_xaxes(type="log", tickvals=log_ticks(20, most / MIB))
    made.update_yaxes(type="log")
    if prediction is not None and len(table):
        best = table.loc[table["reached_percent"].idxmax()]
        limit_line(made, prediction / 100 * best["ceiling_tokens_per_s"], words("your_prediction"))
    return made


def batching(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """vLLM with one, four and sixteen clients: tokens a second beside how many requests it works on at the time."""
    table = _table(result)
    made = figure(height=440)
    titles = [words("charts.title_batching_left"), words("charts.title_batching_right")]
    made.set_subplots(rows=1, cols=2, column_widths=[0.38, 0.62], subplot_titles=titles, horizontal_spacing=0.12)
    clients = [str(one) for one in table["parallel"]]
    for name, colour, pattern in (("tokens_per_s", BLUE, ""), ("each_tokens_per_s", ORANGE, "/")):
        made.add_bar(
            row=1, col=1, x=clients, y=table[name], name=words.label(name),
            marker={"color": colour, "pattern": {"shape": pattern}},
            text=[words.number(one) for one in table[name]], textposition="outside", cliponaxis=False,
        )  # fmt: skip
    at = _floats(result.more["at_s"])
    for name, colour, dash in (("running", GREEN, "solid"), ("waiting", PURPLE, "dot")):
        made.add_scatter(
            row=1, col=2, x=at, y=_floats(result.more[name]), mode="lines", name=words(f"charts.{name}"),
            line={"color": colour, "dash": dash, "shape": "hv", "width": 3},
        )  # fmt: skip
    for cut in _floats(result.more["cuts_s"])[1:]:
        made.add_vline(cut, row=1, col=2, line={"color": GREY, "dash": "dash", "width": 1})
    made.update_xaxes(title={"text": words("charts.clients")}, type="category", row=1, col=1)
    made.update_yaxes(title={"text": words("charts.tokens_per_s")}, row=1, col=1)
    made.update_xaxes(title={"text": words("charts.seconds")}, row=1, col=2)
    made.update_yaxes(title={"text": words("charts.requests")}, row=1, col=2)
    made.update_layout(legend={"y": -0.3, "yanchor": "top"})
    if prediction is not None:
        made.add_hline(prediction, row=1, col=1, line={"dash": "dash", "width": 2, "color": GREY})
        made.add_annotation(
            text=words("your_prediction"), x=0, y=prediction, xref="x domain", yref="y", showarrow=False,
            yanchor="bottom", xanchor="left",
        )  # fmt: skip
    return made


def saturation(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Throughput and p95 TTFT against arrivals; the bound, and where the line crosses it."""
    table = _table(result)
    made = figure(x=words("charts.offered"), y=words("charts.answered"), height=460)
    offered = list(table["offered_per_s"])
    made.add_scatter(
        x=[0, max(offered)], y=[0, max(offered)], mode="lines", line={"color": GREY, "dash": "dot"},
        name=words("charts.ideal"),
    )  # fmt: skip
    made.add_scatter(
        x=offered, y=table["requests_per_s"], mode="lines+markers", line={"color": BLUE},
        marker={"size": 9, "symbol": SYMBOLS[0]}, name=words.label("requests_per_s"),
    )  # fmt: skip
    made.add_scatter(
        x=offered, y=table["goodput_per_s"], mode="lines+markers", line={"color": GREEN, "dash": "dash"},
        marker={"size": 9, "symbol": SYMBOLS[2]}, name=words.label("goodput_per_s"),
    )  # fmt: skip
    made.add_scatter(
        x=offered, y=table["ttft_p95_s"], mode="lines+markers", line={"color": ORANGE}, yaxis="y2",
        marker={"size": 9, "symbol": SYMBOLS[1]}, name=words.label("ttft_p95_s"),
    )  # fmt: skip
    bound = float(str(result.more["ttft_bound_s"]))
    made.add_scatter(
        x=[0, max(offered)], y=[bound, bound], mode="lines", yaxis="y2",
        line={"color": ORANGE, "dash": "dash", "width": 1}, name=words("charts.bound", seconds=bound),
    )  # fmt: skip
    made.update_layout(
        yaxis2={"overlaying": "y", "side": "right", "title": {"text": words("charts.ttft_seconds")}, "showgrid": False,
                "rangemode": "tozero", "automargin": True},
        xaxis={"rangemode": "tozero"}, yaxis={"rangemode": "tozero"},
    )  # fmt: skip
    if prediction is not None:
        limit_line(made, prediction / float(str(result.more["think_s"])), words("your_prediction"), horizontal=False)
    return made


def burst(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """When each learner saw the first word: a dot a learner, a row of dots a profile."""
    made = figure(x=words("charts.learner"), y=words("charts.ttft_seconds"), height=440)
    for name, colour, symbol in (("default", ORANGE, SYMBOLS[1]), ("class", BLUE, SYMBOLS[0])):
        if name in result.more:
            times = _floats(result.more[name])
            made.add_scatter(
                x=list(range(1, len(times) + 1)), y=times, mode="markers", name=words.choice(name, "profile"),
                marker={"color": colour, "symbol": symbol, "size": 10},
            )  # fmt: skip
    made.update_yaxes(rangemode="tozero")
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"))
    return made


def choice(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Memory against tokens a second of every engine measured; filled: it keeps all bounds."""
    table = _table(result)
    table = table.dropna(subset=["tokens_per_s", "memory_bytes"])
    made = figure(x=words("charts.memory_mib"), y=words("charts.tokens_per_s"), height=420)
    for _, row in table.iterrows():
        made.add_scatter(
            x=[row["memory_bytes"] / MIB],
            y=[row["tokens_per_s"]],
            mode="markers+text",
            marker={
                "color": _colour(row["engine"]),
                "symbol": _symbol(row["engine"]) + ("" if row["fits"] else "-open"),
                "size": 16,
                "line": {"width": 2},
            },
            text=[words.choice(row["engine"], "engine")],
            textposition="top center",
            showlegend=False,
            cliponaxis=False,
        )
    memory = result.more.get("memory_bytes")
    if memory:
        limit_line(made, float(str(memory)) / MIB, words("charts.memory_bound"), horizontal=False)
    made.update_xaxes(rangemode="tozero")
    made.update_yaxes(rangemode="tozero")
    return made


def taken(result: Result, words: Words, prediction: float | None = None) -> go.Figure | None:
    """How long each step of this lab took, from its newest card."""
    table = _table(result)
    if not len(table):
        return None
    made = figure(x=words("charts.seconds"), height=140 + 34 * len(table))
    made.add_bar(
        x=table["took_s"],
        y=[words(f"places.{one}") for one in table["step"]],
        orientation="h",
        marker={"color": SKY},
        text=[words.number(one, 1) for one in table["took_s"]],
        textposition="auto",
    )
    made.update_yaxes(autorange="reversed")
    return made


def _colour(engine: str) -> str:
    return COLOURS[ENGINES.index(engine)] if engine in ENGINES else GREY


def _pattern(engine: str) -> str:
    return PATTERNS[ENGINES.index(engine) % len(PATTERNS)] if engine in ENGINES else ""


def _symbol(engine: str) -> str:
    return SYMBOLS[ENGINES.index(engine) % len(SYMBOLS)] if engine in ENGINES else SYMBOLS[0]


def _table(result: Result) -> pd.DataFrame:
    assert result.table is not None
    return result.table


def _floats(texts: object) -> list[float]:
    assert isinstance(texts, Sequence)
    return [float(one) for one in texts]
