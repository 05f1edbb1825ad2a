"""The look of every figure: one template, light and dark, safe for colour-blind readers.

Colours are Okabe and Ito's (https://jfly.uni-koeln.de/color/), the yellow and
the black left out because one or the other background swallows them.
"""

from __future__ import annotations

import math

import plotly.graph_objects as go

BLUE, ORANGE, GREEN, VERMILION, SKY, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7"
GREY = "#7A8794"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION, GREY)
PATTERNS = ("", "/", ".", "x", "-", "+")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "star")
PREDICTION = VERMILION


def figure(*traces: go.Figure, x: str = "", y: str = "", height: int = 380) -> go.Figure:
    """An empty figure in the house's look, with its axes named."""
    made = go.Figure(data=traces)
    made.update_layout(
        height=height,
        margin={"l": 8, "r": 8, "t": 40, "b": 8},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        colorway=COLOURS,
        font={"size": 14, "family": "Source Sans, Source Sans Pro, sans-serif"},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0, "title": None},
        hoverlabel={"font": {"size": 14}},
        xaxis={"title": {"text": x}, "automargin": True, "zeroline": False},
        yaxis={"title": {"text": y}, "automargin": True, "zeroline": False},
    )
    return made


def limit_line(made: go.Figure, value: float, text: str, horizontal: bool = True) -> None:
    """A dashed line across the figure for a limit or a prediction, with its name beside it."""
    axis = made.layout.yaxis if horizontal else made.layout.xaxis
    # Plotly takes a shape's place on a logarithmic axis as a value, but an annotation's as its logarithm.
    place = math.log10(value) if axis.type == "log" and value > 0 else value
    across, along = ("x", "y") if horizontal else ("y", "x")
    ends = {f"{across}0": 0, f"{across}1": 1, f"{across}ref": f"{across} domain"}
    line = {f"{along}0": value, f"{along}1": value, f"{along}ref": along}
    made.add_shape(type="line", **ends, **line, line={"dash": "dash", "width": 2, "color": PREDICTION})
    made.add_annotation(
        text=text,
        showarrow=False,
        font={"color": PREDICTION},
        **{along: place, f"{along}ref": along, across: 0 if horizontal else 1, f"{across}ref": f"{across} domain"},
        xanchor="left",
        yanchor="bottom",
    )


def log_ticks(low: float, high: float) -> list[float]:
    """Values to name on a logarithmic axis, in steps of about three: 0.01, 0.03, 0.1 …"""
    low = max(low, 1e-6)
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(max(high, low)))
    every = [step * 10.0**power for power in range(first, last + 1) for step in (1, 3)]
    return [value for value in every if low / 3 <= value <= high * 3]


def dressed(made: go.Figure, dark: bool) -> go.Figure:
    """The figure in the colours of a light or dark page."""
    ink, grid = ("#E8EAED", "rgba(255,255,255,0.14)") if dark else ("#1F2A37", "rgba(31,42,55,0.12)")
    made.update_layout(template="plotly_dark" if dark else "plotly_white", font={"color": ink})
    made.update_layout(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", colorway=COLOURS)
    made.update_xaxes(gridcolor=grid, linecolor=grid)
    made.update_yaxes(gridcolor=grid, linecolor=grid)
    return made
