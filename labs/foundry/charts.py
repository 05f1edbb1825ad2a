"""The figures of lab 5, each drawn from the table of the step's result."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from lib.charts import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, SYMBOLS, VERMILION, figure, limit_line
from lib.course.result import Result
from lib.text import Words

MIB = 2**20
_BESIDE = {"import": "bottom right", "register": "bottom right", "unload": "middle right", "trim": "middle right"}
_THREE = ((BLUE, "", SYMBOLS[0]), (ORANGE, "/", SYMBOLS[1]), (GREEN, ".", SYMBOLS[2]))


def times(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """How long each question took; what was not asked has no bar."""
    scale = {"discover_ms": 1.0, "local_ms": 1.0, "reach_s": 1000.0, "public_s": 1000.0}
    asked = [name for name in scale if result.facts.get(name) is not None]
    took_ms = [scale[name] * _number(result.facts[name]) for name in asked]
    over_network = [name in ("reach_s", "public_s") for name in asked]
    made = figure(x=words("charts.ms_log"), height=160 + 50 * len(asked))
    made.add_bar(
        x=[max(one, 0.001) for one in took_ms],
        y=[words.label(name) for name in asked],
        orientation="h",
        marker={
            "color": [VERMILION if one else BLUE for one in over_network],
            "pattern": {"shape": ["/" if one else "" for one in over_network]},
        },
        text=[f"{words.number(one, 2 if one < 10 else 0)} ms" for one in took_ms],
        textposition="auto",
        showlegend=False,
    )
    made.update_xaxes(type="log")
    made.update_yaxes(autorange="reversed")
    return made


def memory(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Resident memory at every stage of a process's life, over its time."""
    table = _table(result)
    made = figure(x=words("charts.seconds"), y=words("charts.resident_mib"), height=440)
    made.add_scatter(
        x=table["at_s"],
        y=table["rss_bytes"] / MIB,
        mode="lines+markers+text",
        line={"color": BLUE, "shape": "hv"},
        marker={"size": 9},
        text=[words.choice(one) for one in table["stage"]],
        textposition=[_BESIDE.get(one, "top left") for one in table["stage"]],
        name=words.label("rss_bytes"),
        cliponaxis=False,
    )
    peak = _number(result.facts["peak_bytes"]) / MIB
    made.add_scatter(
        x=table["at_s"].iloc[[0, -1]],
        y=[peak, peak],
        mode="lines",
        line={"dash": "dot", "color": GREY},
        name=words.label("peak_bytes"),
    )
    # Names stand beside their points, at both ends too.
    last = float(table["at_s"].iloc[-1])
    made.update_xaxes(range=[-0.12 * last, 1.2 * last])
    made.update_yaxes(rangemode="tozero")
    if prediction is not None:
        limit_line(made, prediction / MIB, words("your_prediction"))
    return made


def arrivals(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Pieces of the answer as they came, a line for each way."""
    made = figure(x=words("charts.seconds"), y=words("charts.pieces"), height=400)
    for (way, (colour, _, symbol)), dash in zip(
        zip(("sdk", "web"), _THREE, strict=False), ("solid", "dot"), strict=True
    ):
        came = [float(one) for one in _strings(result.more.get(way))]
        made.add_scatter(
            x=came,
            y=list(range(1, len(came) + 1)),
            mode="lines+markers",
            name=words.choice(way),
            line={"color": colour, "dash": dash},
            marker={"symbol": symbol, "size": 6},
        )
    made.update_xaxes(rangemode="tozero")
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"), horizontal=False)
    return made


def budgets(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Counted tokens over words, beside the old guess; above the line there is no room for the answer."""
    table = _table(result)
    made = figure(x=words.label("words"), y=words("charts.tokens"), height=420)
    for fits, name, colour, symbol in ((True, "fits", BLUE, "circle"), (False, "too_long", ORANGE, "x")):
        part = table[table["fits"] == fits]
        made.add_scatter(
            x=part["words"],
            y=part["counted_tokens"],
            mode="markers",
            name=words(f"charts.{name}"),
            marker={"color": colour, "symbol": symbol, "size": 10},
        )
    made.add_scatter(
        x=table["words"],
        y=table["guess_tokens"],
        mode="lines",
        name=words.label("guess_tokens"),
        line={"dash": "dot", "color": GREY},
    )
    room = _number(result.facts["context_tokens"]) - _number(result.facts["reserve_tokens"])
    made.add_scatter(
        x=table["words"].iloc[[0, -1]],
        y=[room, room],
        mode="lines",
        name=words("charts.room"),
        line={"color": GREEN},
    )
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"))
    return made


def forms(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Which share of the answers was JSON, and which the schema allows, for each way to ask."""
    table = _table(result)
    names = [words.choice(one, "form") for one in table["form"]]
    made = figure(y=words("charts.share"), height=420)
    for column, colour, pattern in (("json_percent", SKY, "/"), ("valid_percent", BLUE, "")):
        made.add_bar(
            x=names,
            y=table[column],
            name=words.label(column),
            marker={"color": colour, "pattern": {"shape": pattern}},
            text=[f"{words.number(one)} %" for one in table[column]],
            textposition="outside",
        )
    return _shares(made, prediction, words)


def tools(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """For each way to ask: a call at all, the right tool, the right arguments."""
    table = _table(result)
    ways = list(dict.fromkeys(table["way"]))
    made = figure(y=words("charts.share"), height=400)
    for column, (colour, pattern, _) in zip(("called", "right_tool", "right_arguments"), _THREE, strict=True):
        shares = [100 * float(table[table["way"] == way][column].mean()) for way in ways]
        made.add_bar(
            x=[words.choice(one, "way") for one in ways],
            y=shares,
            name=words.label(column),
            marker={"color": colour, "pattern": {"shape": pattern}},
            text=[f"{words.number(one)} %" for one in shares],
            textposition="outside",
        )
    return _shares(made, prediction, words)


def sessions(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Memory over sessions that write at once: measured with a solid line, computed from the files with a dotted one.

    A predicted rise is drawn from the measurement of one session.
    """
    table = _table(result)
    made = figure(x=words.label("sessions"), y=words("charts.mib"), height=460)
    for (context, part), (colour, _, symbol) in zip(table.groupby("context_tokens"), _THREE, strict=False):
        for column, dash, name in (
            ("measured_bytes", "solid", words.value("context_tokens", context)),
            ("computed_bytes", "dot", words("charts.computed")),
        ):
            made.add_scatter(
                x=part["sessions"],
                y=part[column] / MIB,
                mode="lines+markers",
                name=name,
                # One dotted line stands in the legend for all of them.
                showlegend=dash == "solid" or bool(context == table["context_tokens"].max()),
                line={"color": colour, "dash": dash},
                marker={"symbol": symbol, "size": 9},
            )
    if prediction is not None:
        longest = table[table["context_tokens"] == table["context_tokens"].max()]
        few, many = int(longest["sessions"].min()), int(longest["sessions"].max())
        first = float(longest["measured_bytes"].iloc[0])
        made.add_scatter(
            x=[few, many],
            y=[first / MIB, (first + (many - few) * prediction) / MIB],
            mode="lines",
            name=words("your_prediction"),
            line={"dash": "dash", "width": 2, "color": VERMILION},
        )
    made.update_xaxes(dtick=1)
    made.update_yaxes(rangemode="tozero")
    return made


def clients(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Speed in all beside the speed of each, and the time to each client's first token."""
    table = _table(result)
    counts = sorted(table["clients"].unique())
    groups = [table[table["clients"] == one] for one in counts]
    names = [str(one) for one in counts]
    made = figure(x=words.label("clients"), y=words("charts.tokens_per_s"), height=440)
    for name, values, colour, pattern in (
        ("in_all", [one["completion_tokens"].sum() / one["end_s"].max() for one in groups], BLUE, ""),
        ("for_each", [one["tokens_per_s"].mean() for one in groups], SKY, "/"),
    ):
        made.add_bar(
            x=names,
            y=values,
            name=words(f"charts.{name}"),
            marker={"color": colour, "pattern": {"shape": pattern}},
            text=[words.number(one, 1) for one in values],
            textposition="outside",
        )
    made.add_scatter(
        x=[str(one) for one in table["clients"]],
        y=table["first_s"],
        mode="markers",
        name=words("charts.first_tokens"),
        marker={"color": PURPLE, "symbol": "diamond", "size": 10},
        yaxis="y2",
    )
    second = {
        "title": {"text": words("charts.ttft_s")},
        "overlaying": "y",
        "side": "right",
        "rangemode": "tozero",
        "tickmode": "auto",
    }
    made.update_layout(barmode="group", yaxis2={**second, "showgrid": False, "automargin": True})
    made.update_xaxes(type="category")
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"))
    return made


def routes(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """How long each route took to answer: those that do, those that do not exist, and those that refused."""
    table = _table(result)
    made = figure(x=words("charts.ms_log"), height=140 + 36 * len(table))
    good, missing = table["status"] == 200, table["status"] == 404
    looks = (
        (table[good], "there", BLUE, ""),
        (table[missing], "not_there", VERMILION, "/"),
        (table[~good & ~missing], "other", GREY, "x"),
    )
    for part, name, colour, pattern in looks:
        if part.empty:
            continue
        made.add_bar(
            x=1000 * part["took_s"],
            y=part["route"],
            orientation="h",
            name=words(f"charts.{name}"),
            marker={"color": colour, "pattern": {"shape": pattern}},
            text=[f"{one:.0f}" if one == one else "–" for one in part["status"].astype(float)],
            textposition="auto",
        )
    made.update_xaxes(type="log")
    made.update_yaxes(categoryorder="array", categoryarray=list(table["route"])[::-1])
    return made


def calls(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """How many calls there were so far, a line for each rehearsal; one that stays at 0 is silence."""
    made = figure(x=words("charts.seconds_since"), y=words("charts.calls_so_far"), height=420)
    seen = {
        name: [one.split(" ", 1) for one in _strings(result.more.get(name))] for name in _table(result)["rehearsal"]
    }
    last = max([10.0, *(float(at) + 0.5 for every in seen.values() for at, _ in every)])
    for (name, every), (colour, _, symbol) in zip(seen.items(), _THREE, strict=False):
        made.add_scatter(
            x=[0.0, *(float(at) for at, _ in every), last],
            y=[0, *range(1, len(every) + 1), len(every)],
            mode="lines+markers",
            name=words.choice(name, "rehearsal"),
            line={"color": colour, "shape": "hv"},
            marker={"symbol": symbol, "size": [1, *[12] * len(every), 1]},
            text=["", *(host for _, host in every), ""],
            hovertemplate="%{text}<br>%{x:.1f} s<extra></extra>",
        )
    most = max(len(every) for every in seen.values())
    made.update_yaxes(range=[-0.2, max(most, prediction or 0, 1) + 0.5])
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"))
    return made


def _shares(made: go.Figure, prediction: float | None, words: Words) -> go.Figure:
    made.update_layout(barmode="group")
    made.update_yaxes(range=[0, 112])
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"))
    return made


def _strings(value: object) -> tuple[str, ...]:
    return tuple(str(one) for one in value) if isinstance(value, tuple) else ()


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _table(result: Result) -> pd.DataFrame:
    assert result.table is not None
    return result.table
