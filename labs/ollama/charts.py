"""The figures of lab 4, each drawn from the table of the step's result."""

from __future__ import annotations

import math

import pandas as pd
import plotly.graph_objects as go

from lib.charts import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION, figure, limit_line
from lib.course.result import Result
from lib.text import Words

MIB = 2**20
SHORT = 34


def forecasts(result: Result, words: Words, prediction: float | None = None) -> go.Figure | None:
    """The file in every format: by the formula, and from the model's shape."""
    if result.table is None:
        return None
    table = result.table
    made = figure(y=words("charts.mib"), height=400)
    chosen = str(result.more["chosen"])
    made.add_bar(
        x=table["format"],
        y=table["formula_bytes"] / MIB,
        name=words("charts.formula"),
        marker={"color": [BLUE if one == chosen else SKY for one in table["format"]]},
    )
    if table["shaped_bytes"].notna().any():
        made.add_bar(
            x=table["format"],
            y=table["shaped_bytes"] / MIB,
            name=words("charts.shaped"),
            marker={"color": ORANGE, "pattern": {"shape": "/"}},
        )
    made.update_layout(barmode="group")
    if prediction is not None:
        limit_line(made, prediction / MIB, words("your_prediction"))
    return made


def layers(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Every layer: what was here before, and what was fetched."""
    table = _table(result).iloc[::-1]
    made = figure(x=words("charts.size_mib"), height=160 + 44 * len(table))
    fetched = table["size_bytes"] - table["found_bytes"]
    names = [_short(str(one)) for one in table["layer"]]
    for part, name, colour, pattern in (
        (table["found_bytes"], "was_here", GREEN, ""),
        (fetched, "fetched", BLUE, "/"),
    ):
        made.add_bar(
            x=part / MIB,
            y=names,
            orientation="h",
            name=words(f"charts.{name}"),
            marker={"color": colour, "pattern": {"shape": pattern}},
            text=[words.size(one) if one else "" for one in part],
            textposition="outside",
            cliponaxis=False,
        )
    made.update_layout(barmode="stack")
    # Room for the size behind the longest bar.
    made.update_xaxes(range=[0, 1.2 * float(table["size_bytes"].max()) / MIB])
    return made


def disk_and_memory(result: Result, words: Words, prediction: float | None = None) -> go.Figure | None:
    """Each model's size on the disk, and in memory where it is loaded."""
    table = _table(result).iloc[::-1]
    if table.empty:
        return None
    made = figure(x=words("charts.mib"), height=180 + 40 * len(table))
    for column, colour, pattern in (("loaded_bytes", ORANGE, "/"), ("size_bytes", BLUE, "")):
        made.add_bar(
            x=table[column].astype(float) / MIB,
            y=table["name"],
            orientation="h",
            name=words.label(column),
            marker={"color": colour, "pattern": {"shape": pattern}},
        )
    made.update_layout(barmode="group", legend={"traceorder": "reversed"})
    return made


def what_goes(result: Result, words: Words, prediction: float | None = None) -> go.Figure | None:
    """Every name as a bar of its size, in the colour of what becomes of it."""
    table = _table(result).iloc[::-1]
    if table.empty:
        return None
    looks = {
        "stays": (SKY, ""),
        "shares": (GREEN, "."),
        "copied": (BLUE, ""),
        "new": (ORANGE, "/"),
        "goes": (VERMILION, "x"),
    }
    made = figure(x=words("charts.mib"), height=180 + 36 * len(table))
    for fate, (colour, pattern) in looks.items():
        part = table[table["fate"] == fate]
        if not part.empty:
            made.add_bar(
                x=part["size_bytes"] / MIB,
                y=part["name"],
                orientation="h",
                name=words.choice(fate, "fate"),
                marker={"color": colour, "pattern": {"shape": pattern}},
            )
    made.update_yaxes(categoryorder="array", categoryarray=list(table["name"]))
    return made


def token_costs(result: Result, words: Words, prediction: float | None = None) -> go.Figure | None:
    """The prompt's tokens without and with what the Modelfile adds to every question."""
    table = _table(result)
    if "prompt_tokens" not in table:
        return None
    made = figure(y=words("charts.prompt_tokens"), height=380)
    made.add_bar(
        x=[words.choice(one, "part") for one in table["part"]],
        y=table["prompt_tokens"],
        marker={"color": [SKY, BLUE, ORANGE], "pattern": {"shape": ["", "/", "."]}},
        text=table["prompt_tokens"],
        textposition="outside",
        cliponaxis=False,
    )
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"))
    return made


def speeds(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Tokens a second of the same file in both engines, with the spread of the rounds."""
    table = _table(result)
    made = figure(y=words("charts.tokens_per_s"), height=380)
    made.add_bar(
        x=[words.choice(one) for one in table["by"]],
        y=table["tokens_per_s"],
        marker={"color": [BLUE, ORANGE][: len(table)], "pattern": {"shape": ["", "/"][: len(table)]}},
        error_y={
            "array": table["high_tokens_per_s"] - table["tokens_per_s"],
            "arrayminus": table["tokens_per_s"] - table["low_tokens_per_s"],
        },
        text=[words.value("tokens_per_s", one) for one in table["tokens_per_s"]],
        textposition="inside",
        insidetextanchor="start",
    )
    return made


def bytes_per_token(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """What travels for each token: the text itself, and all that is wrapped around it."""
    table = _table(result)
    made = figure(y=words("charts.bytes_per_token"), height=400)
    text = table["text_bytes"] / table["completion_tokens"]
    for part, name, colour, pattern in (
        (text, "the_text", BLUE, ""),
        (table["bytes_per_token"] - text, "around_it", ORANGE, "/"),
    ):
        made.add_bar(
            x=table["route"],
            y=part,
            name=words(f"charts.{name}"),
            marker={"color": colour, "pattern": {"shape": pattern}},
            text=[words.number(one, 0 if one >= 10 else 1) for one in part],
            insidetextanchor="middle",
        )
    made.update_layout(barmode="stack")
    return made


def similarities(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """The cosine of every pair as a heat map, the diagonal at 1."""
    lines = result.more["lines"]
    assert isinstance(lines, tuple)
    found = {(row.first, row.second): row.similarity for row in _table(result).itertuples()}
    grid = [[found.get((one, two), found.get((two, one))) for two in lines] for one in lines]
    names = [f"{number} · {_short(one)}" for number, one in enumerate(lines, 1)]
    made = figure(height=220 + 42 * len(lines))
    made.add_heatmap(
        z=grid,
        x=[str(number) for number in range(1, len(lines) + 1)],
        y=names,
        colorscale=[[0, "#FFFFFF"], [1, BLUE]],
        # From just below the lowest: a chat model's similarities are all high.
        zmin=math.floor(10 * float(_table(result)["similarity"].min())) / 10 - 0.1,
        zmax=1,
        texttemplate="%{z:.2f}",
        hovertemplate="%{y}<br>%{x}<br>%{z:.3f}<extra></extra>",
        colorbar={"title": {"text": words("charts.cosine")}},
    )
    made.update_yaxes(autorange="reversed")
    made.update_xaxes(type="category", side="top")
    return made


def different_answers(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """How many different answers came at each temperature, and with one seed."""
    table = _table(result)
    free = table[~table["same_seed"].astype(bool)]
    counts = free.groupby("temperature")["answer"].agg(["nunique", "size"])
    fixed = table[table["same_seed"].astype(bool)]["answer"]
    names = [words("charts.temperature", value=words.number(one, 1)) for one in counts.index]
    made = figure(y=words("charts.different"), height=400)
    made.add_bar(x=names, y=counts["nunique"], name=words("charts.other_seeds"), marker={"color": BLUE})
    made.add_bar(
        x=[words("charts.one_seed")],
        y=[fixed.nunique()],
        name=words("charts.same_seed"),
        marker={"color": ORANGE, "pattern": {"shape": "/"}},
    )
    limit_line(made, float(counts["size"].max()), words("charts.all_different"))
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"))
    made.update_yaxes(rangemode="tozero")
    return made


def cut(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Tokens that the engine counted against tokens sent: on the line nothing is lost."""
    table = _table(result)
    made = figure(x=words("charts.sent"), y=words("charts.counted"), height=440)
    top = float(table["sent_tokens"].max())
    made.add_scatter(
        x=[0, top],
        y=[0, top],
        mode="lines",
        name=words("charts.nothing_lost"),
        line={"dash": "dash", "color": GREY},
        hoverinfo="skip",
    )
    kinds = (
        (table["remembers"].astype(bool), "remembers", GREEN, "circle"),
        (~table["remembers"].astype(bool) & ~table["refused"].astype(bool), "forgets", ORANGE, "square"),
        (table["refused"].astype(bool), "refused", VERMILION, "x"),
    )
    for mask, name, colour, symbol in kinds:
        part = table[mask]
        if not part.empty:
            made.add_scatter(
                x=part["sent_tokens"],
                y=part["counted_tokens"],
                mode="markers",
                name=words(f"charts.{name}"),
                marker={"color": colour, "symbol": symbol, "size": 13},
            )
    made.update_yaxes(rangemode="tozero")
    limit_line(made, float(str(result.more["num_ctx"])), "num_ctx")
    if prediction is not None:
        limit_line(made, prediction, words("your_prediction"))
    return made


def cold_and_warm(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Each ask's time: loading, reading, writing."""
    table = _table(result)
    made = figure(y=words("charts.seconds"), height=400)
    names = [words.choice(one, "ask") for one in table["ask"]]
    for column, colour, pattern in (("load_s", VERMILION, "x"), ("prompt_s", SKY, ""), ("write_s", BLUE, "/")):
        made.add_bar(
            x=names,
            y=table[column],
            name=words.label(column),
            marker={"color": colour, "pattern": {"shape": pattern}},
        )
    made.update_layout(barmode="stack")
    return made


def caches_and_clients(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Left: the cache of each type, forecast and measured. Right: what requests at once get, each and in all."""
    table = _table(result)
    caches = table[(table["kind"] == "cache") & table["cache_bytes"].notna()]
    clients = table[table["kind"] == "clients"]
    made = figure(y=words("charts.mib"), height=440)
    names = [words.choice(one, "name").replace(", ", ",<br>") for one in caches["name"]]
    made.add_bar(x=names, y=caches["forecast_bytes"] / MIB, name=words.label("forecast_bytes"), marker={"color": SKY})
    made.add_bar(
        x=names,
        y=caches["cache_bytes"] / MIB,
        name=words.label("cache_bytes"),
        marker={"color": BLUE, "pattern": {"shape": "/"}},
    )
    for column, colour, symbol in (("tokens_per_s", ORANGE, "circle"), ("each_tokens_per_s", GREEN, "square")):
        made.add_scatter(
            x=[int(one) for one in clients["name"]],
            y=clients[column],
            mode="lines+markers",
            name=words(f"charts.{'all' if column == 'tokens_per_s' else 'each'}"),
            line={"color": colour},
            marker={"symbol": symbol, "size": 11},
            xaxis="x2",
            yaxis="y2",
        )
    second = {"automargin": True, "zeroline": False}
    made.update_layout(
        barmode="group",
        xaxis={"domain": [0, 0.52]},
        xaxis2={"domain": [0.66, 1], "anchor": "y2", "title": {"text": words("charts.clients")}, "dtick": 1, **second},
        yaxis2={"anchor": "x2", "title": {"text": words("charts.tokens_per_s")}, "rangemode": "tozero", **second},
    )
    if prediction is not None:
        made.add_scatter(
            x=names,
            y=[prediction / MIB] * len(names),
            mode="lines",
            name=words("your_prediction"),
            line={"dash": "dash", "color": VERMILION},
        )
    return made


def programs(result: Result, words: Words, prediction: float | None = None) -> go.Figure | None:
    """How long each program took from its start to its answer."""
    table = _table(result).dropna(subset=["took_s"])
    if table.empty:
        return None
    made = figure(y=words("charts.seconds"), height=360)
    made.add_bar(
        x=[words.choice(one, "language") for one in table["language"]],
        y=table["took_s"],
        marker={"color": [BLUE, ORANGE, GREEN][: len(table)], "pattern": {"shape": ["", "/", "."][: len(table)]}},
        text=[words.value("took_s", one) for one in table["took_s"]],
        textposition="outside",
        cliponaxis=False,
    )
    return made


def path(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """The questions in the order in which they were asked, from top to bottom, with what was found."""
    table = _table(result)
    made = figure(height=140 + 64 * len(table))
    depth = [-at for at in range(len(table))]
    made.add_scatter(
        x=[0] * len(table), y=depth, mode="lines", line={"color": GREY}, showlegend=False, hoverinfo="skip"
    )
    looks = ((True, "fine", GREEN, "circle"), (False, "trouble", VERMILION, "x"), (None, "only_told", SKY, "diamond"))
    for value, name, colour, symbol in looks:
        rows = [at for at, fine in enumerate(table["fine"]) if (None if pd.isna(fine) else bool(fine)) is value]
        if rows:
            made.add_scatter(
                x=[0] * len(rows),
                y=[depth[at] for at in rows],
                mode="markers+text",
                name=words(f"charts.{name}"),
                marker={"color": colour, "symbol": symbol, "size": 18},
                text=[f"   {words.choice(table['check'][at], 'check')}  <b>{table['found'][at]}</b>" for at in rows],
                textposition="middle right",
                hoverinfo="skip",
            )
    made.update_xaxes(visible=False, range=[-0.2, 5])
    made.update_yaxes(visible=False, range=[-len(table) + 0.4, 0.6])
    return made


def _short(text: str) -> str:
    return text if len(text) <= SHORT else text[: SHORT - 1] + "…"


def _table(result: Result) -> pd.DataFrame:
    assert result.table is not None
    return result.table
