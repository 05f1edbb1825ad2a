"""The figure of the vLLM scenarios, drawn from the table of the step's result."""

from __future__ import annotations

import plotly.graph_objects as go

from lib.charts import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, figure
from lib.course.result import Result
from lib.text import Words

_PANELS = {
    "gpus": VERMILION,
    "memory_share_percent": BLUE,
    "context_tokens": GREEN,
    "sequences": PURPLE,
    "batch_tokens": SKY,
    "most_cache_tokens": ORANGE,
}
_COLUMNS = 3


def scenarios(result: Result, words: Words, prediction: float | None = None) -> go.Figure:
    """Small multiples: the scenarios from top to bottom, a panel for each thing that they ask for."""
    table = {name: [float(str(one)) for one in _texts(result.more[name])] for name in _PANELS}
    names = [words(f"choices.scenario.{one}") for one in _texts(result.more["scenario"])]
    made = figure(height=560)
    made.set_subplots(
        rows=-(-len(_PANELS) // _COLUMNS),
        cols=_COLUMNS,
        shared_yaxes=True,
        subplot_titles=[words.label(one) for one in _PANELS],
        horizontal_spacing=0.04,
        vertical_spacing=0.16,
    )
    for at, (name, colour) in enumerate(_PANELS.items()):
        made.add_bar(
            row=at // _COLUMNS + 1,
            col=at % _COLUMNS + 1,
            x=table[name],
            y=names,
            orientation="h",
            marker={"color": colour},
            text=[words.number(one) for one in table[name]],
            textposition="outside",
            cliponaxis=False,
            hovertemplate="%{y}: %{text}<extra></extra>",
            showlegend=False,
        )
        # Numbers stand beyond the ends of their bars.
        made.update_xaxes(range=[0, 1.45 * max(table[name])], row=at // _COLUMNS + 1, col=at % _COLUMNS + 1)
    made.update_xaxes(showticklabels=False, showgrid=False, zeroline=False)
    made.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    return made


def _texts(values: object) -> list[str]:
    assert isinstance(values, tuple | list)
    return [str(one) for one in values]
