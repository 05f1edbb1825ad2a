"""The figures of lab 2, each drawn from the table of the step's result."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import plotly.graph_objects as go

from labs.quantize.rows import kind_of
from lib.charts import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION, figure, limit_line, log_ticks
from lib.course.result import Result
from lib.gguf.formats import type_bits
from lib.text import Words

MIB = 2**20
# From few bits to many; told apart in grey, too.
SCALE = ("#440154", "#443983", "#31688E", "#21918C", "#35B779", "#90D743", "#FDE725")


def types(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """A heat map: every tensor's type, one column a layer, one row a kind of tensor."""
    cells = [_cell(one) for one in _texts(result.more["tensors"])]
    kinds = list(dict.fromkeys(kind for kind, _, _ in cells))
    columns = sorted({layer for _, layer, _ in cells})
    known = sorted({type_ for *_, type_ in cells}, key=lambda one: (type_bits(one), one))
    place = {(kind, layer): type_ for kind, layer, type_ in cells}
    names = [words("charts.outside") if layer < 0 else str(layer) for layer in columns]
    grid = [[place.get((kind, layer)) for layer in columns] for kind in kinds]
    made = figure(x=words("charts.layer"), height=150 + 30 * len(kinds))
    made.add_heatmap(
        z=[[known.index(cell) if cell else None for cell in row] for row in grid],
        x=names,
        y=kinds,
        text=[[f"{cell}: {type_bits(cell):.2f} bits" if cell else "" for cell in row] for row in grid],
        hovertemplate="%{y} · %{x}<br>%{text}<extra></extra>",
        colorscale=_steps(len(known)),
        zmin=-0.5,
        zmax=len(known) - 0.5,
        xgap=1,
        ygap=1,
        colorbar={"tickvals": list(range(len(known))), "ticktext": known, "title": {"text": words("charts.type")}},
    )
    made.update_xaxes(type="category", showgrid=False)
    made.update_yaxes(autorange="reversed", showgrid=False)
    return made


def sizes(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Each file's size with its real bits per weight; the forecast as a mark on the bar."""
    table = _table(result)
    made = figure(x=words("charts.size_mib"), height=140 + 34 * len(table))
    made.add_bar(
        x=table["size_bytes"] / MIB,
        y=table["format"],
        orientation="h",
        name=words.label("size_bytes"),
        marker={"color": BLUE},
        text=[f"{words.number(bits, 2)} bits" for bits in table["bits_per_weight"]],
        textposition="auto",
    )
    made.add_scatter(
        x=table["forecast_bytes"] / MIB,
        y=table["format"],
        mode="markers",
        name=words.label("forecast_bytes"),
        marker={"color": ORANGE, "symbol": "line-ns-open", "size": 20, "line": {"width": 3}},
    )
    if prediction is not None:
        limit_line(made, prediction / MIB, words("your_prediction"), horizontal=False)
    return made


def quality(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """KL divergence and top-token agreement of each format, with two standard errors."""
    table = _table(result)
    made = figure(y=words("charts.agreement"), height=420)
    made.add_bar(
        x=table["format"],
        y=table["top1_agreement_percent"],
        name=words.label("top1_agreement_percent"),
        marker={"color": SKY},
        error_y={"array": 2 * table["top1_agreement_error_percent"]},
        hovertemplate="%{x}: %{y:.1f} %<extra></extra>",
    )
    made.add_scatter(
        x=table["format"],
        y=table["kld"],
        mode="lines+markers",
        name=words.label("kld"),
        yaxis="y2",
        line={"color": VERMILION, "width": 3},
        marker={"size": 10, "symbol": "diamond"},
        error_y={"array": 2 * table["kld_error"]},
        hovertemplate="%{x}: %{y:.4f}<extra></extra>",
    )
    made.update_layout(
        yaxis={"range": [0, 105]},
        yaxis2={
            "type": "log",
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "automargin": True,
            "title": {"text": words("charts.kld")},
            **_kld_ticks(table, words),
        },
    )
    made.update_xaxes(type="category")
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"))
    return made


def speed(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Tokens a second of each format with the spread of the rounds."""
    table = _table(result)
    middle = table["tokens_per_s"]
    made = figure(y=words("charts.tokens_per_s"))
    made.add_bar(
        x=[f"{one.format}<br>{words.size(one.size_bytes)}" for one in table.itertuples()],
        y=middle,
        marker={"color": BLUE},
        error_y={"array": table["high_tokens_per_s"] - middle, "arrayminus": middle - table["low_tokens_per_s"]},
        text=[words.size(peak) for peak in table["peak_bytes"]],
        textposition="inside",
        insidetextanchor="start",
        hovertemplate="%{y:.0f} tokens/s<br>" + words.label("peak_bytes") + ": %{text}<extra></extra>",
    )
    made.update_xaxes(type="category")
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"))
    return made


def pareto(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Size against KL divergence, speed as the size of the mark; the front is joined."""
    table = _table(result)
    made = figure(x=words("charts.size_mib"), y=words("charts.kld"), height=460)
    front = table[table["on_the_front"]].sort_values("size_bytes")
    made.add_scatter(
        x=front["size_bytes"] / MIB,
        y=front["kld"],
        mode="lines",
        name=words("charts.front"),
        line={"color": GREEN, "width": 2, "dash": "dot"},
        hoverinfo="skip",
    )
    fastest = table["tokens_per_s"].max()
    for on_front, colour, symbol in ((True, GREEN, "circle"), (False, GREY, "x")):
        part = table[table["on_the_front"] == on_front]
        made.add_scatter(
            x=part["size_bytes"] / MIB,
            y=part["kld"],
            mode="markers+text",
            name=words("charts.on_front" if on_front else "charts.beaten"),
            text=part["format"],
            textposition="top center",
            marker={"size": 10 + 22 * part["tokens_per_s"] / fastest, "color": colour, "symbol": symbol},
            customdata=part["tokens_per_s"],
            hovertemplate="%{text}<br>%{x:.0f} MiB, KLD %{y:.4f}<br>%{customdata:.0f} tokens/s<extra></extra>",
        )
    made.update_yaxes(type="log", **_kld_ticks(table, words))
    made.update_layout(legend={"itemsizing": "constant"})
    return made


def ternary(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """How often each agrees with F16."""
    table = _table(result)
    made = figure(x=words("charts.agreement"), height=260)
    made.add_bar(
        x=table["top1_agreement_percent"],
        y=table["format"],
        orientation="h",
        marker={"color": [VERMILION, ORANGE, BLUE][: len(table)]},
        text=[f"{words.number(value, 1)} %" for value in table["top1_agreement_percent"]],
        textposition="auto",
    )
    made.update_xaxes(range=[0, 105])
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"), horizontal=False)
    return made


def ollama(result: Result, words: Words, prediction: float | None = None) -> go.Figure | None:
    """The two quantizers' files; None where no server made one."""
    if result.table is None:
        return None
    made = figure(x=words("charts.size_mib"), height=220)
    made.add_bar(x=result.table["size_bytes"] / MIB, y=result.table["by"], orientation="h", marker={"color": BLUE})
    return made


def _kld_ticks(table: pd.DataFrame, words: Words) -> dict[str, object]:
    ticks = log_ticks(table["kld"].min(), table["kld"].max())
    return {"tickvals": ticks, "ticktext": [words.number(value, 3 if value < 0.1 else 1) for value in ticks]}


def _cell(text: str) -> tuple[str, int, str]:
    """(kind, layer or -1, type) of ``blk.3.attn_q.weight Q5_0``."""
    name, type_ = text.rsplit(" ", 1)
    layer = name.split(".")[1] if name.startswith("blk.") else ""
    return kind_of(name), int(layer) if layer.isdigit() else -1, type_


def _steps(count: int) -> list[tuple[float, str]]:
    """A colour scale of ``count`` plain steps."""
    chosen = [SCALE[round(at * (len(SCALE) - 1) / max(1, count - 1))] for at in range(count)]
    return [(edge / count, colour) for at, colour in enumerate(chosen) for edge in (at, at + 1)]


def _texts(value: object) -> Sequence[str]:
    assert isinstance(value, tuple)
    return value


def _table(result: Result) -> pd.DataFrame:
    assert result.table is not None
    return result.table
