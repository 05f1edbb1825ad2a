"""Run cards as one HTML file: it opens in any browser, without network, and whatever a card holds stays text."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from lib.charts import dressed
from lib.course.cards import title, words_of
from lib.course.draw import fact_rows, predicted, readable, sentence
from lib.course.run import Run
from lib.text import LOCALES, Words

LOOK = Path(__file__).parent.parent.parent / "data" / "export"
# A longer table is folded until it is wanted, or printed.
SHORT_TABLE = 16


def as_html(runs: Sequence[Run], words: Words) -> str:
    """The cards as a page of its own, in the language of ``words``, Plotly inlined once if there is a chart."""
    shown = [_Card(run, words, number) for number, run in enumerate(runs, 1)]
    articles = "".join(one.html() for one in shown)
    scripts = _scripts(words) if any(one.figure is not None for one in shown) else []
    name = _e(words("measurements.export_title"))
    made = _e(words("measurements.export_made", when=words.value("", datetime.now(UTC)), count=len(runs)))
    contents = "".join(f'<li><a href="#card-{one.number}">{_e(one.title)}</a> {_e(one.when)}</li>' for one in shown)
    nav = f'<nav aria-label="{_e(words("measurements.export_contents"))}"><ol>{contents}</ol></nav>' if runs else ""
    return (
        f'<!DOCTYPE html>\n<html lang="{LOCALES[words.language].replace("_", "-")}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy(scripts)}">\n'
        f"<title>{name}</title>\n<style>{_file('look.css')}</style>\n</head>\n<body>\n"
        f"<header><h1>{name}</h1><p>{made}</p>{nav}</header>\n<main>{articles}</main>\n"
        + "".join(f"<script>{one}</script>\n" for one in scripts)
        + "</body>\n</html>\n"
    )


class _Card:
    """One run card as an article."""

    def __init__(self, run: Run, words: Words, number: int) -> None:
        self.run, self.number = run, number
        self.said = words_of(run.step.lab.id, words.language)
        self.figure = run.figure(self.said)
        self.title = title(run.step.lab.id, run.step.id, words.language)
        self.when = f"{words.value('', run.finished_at)} UTC"

    def html(self) -> str:
        """All that the card holds."""
        parts = [self._about(), self._prediction(), self._chart(), self._facts(), self._notes(), self._table()]
        parts += [self._listings(), self._provenance()]
        return f'<article id="card-{self.number}"><h2>{_e(self.title)}</h2>{"".join(parts)}</article>\n'

    def _about(self) -> str:
        said, run = self.said, self.run
        rows = [
            (said("card.when"), self.when),
            (said("card.took"), said.value("took_s", run.duration_s)),
            (said("card.id"), run.card_id),
        ]
        if getattr(run.result, "partial", False):
            rows.append((said("measurements.partial"), said("measurements.partial_why")))
        return "<dl>" + "".join(f"<div><dt>{_e(name)}</dt><dd>{_e(value)}</dd></div>" for name, value in rows) + "</dl>"

    def _prediction(self) -> str:
        text = predicted(self.run, self.said)
        return f'<p class="prediction">{_e(text)}</p>' if text else ""

    def _chart(self) -> str:
        if self.figure is None:
            return ""
        name = self.said(f"charts.title_{self.run.step.id}")
        alt = f"{name}. {self.said('table_below')}"
        height = int(self.figure.layout.height or 380)
        place = f'<div class="chart" role="figure" aria-label="{_e(alt)}" style="min-height:{height}px"></div>'
        data = f'<script type="application/json">{_data(self.figure)}</script>'
        return f"<section><h3>{_e(name)}</h3>{place}{data}</section>"

    def _facts(self) -> str:
        return _pairs(self.said("measurements.facts"), fact_rows(self.run.result.facts, self.said))

    def _notes(self) -> str:
        return "".join(f'<p class="note">{_e(sentence(one, self.said))}</p>' for one in self.run.result.notes)

    def _table(self) -> str:
        table = self.run.result.table
        if table is None or not len(table):
            return ""
        name = self.said("the_table")
        unfolded = " open" if len(table) <= SHORT_TABLE else ""
        return (
            f"<section><h3>{_e(name)}</h3><details{unfolded}>"
            f"<summary>{_e(self.said('measurements.rows', count=len(table)))}</summary>"
            f"{_scrolling(_grid(table, self.said), name)}</details></section>"
        )

    def _listings(self) -> str:
        parts = []
        for one in self.run.result.listings:
            name = _e(self.said(f"listings.{one.name}"))
            text = f'<pre tabindex="0" role="group" aria-label="{name}">{_e(one.text)}</pre>'
            parts.append(f"<section><h3>{name}</h3>{text}</section>")
        return "".join(parts)

    def _provenance(self) -> str:
        """With what and on what it ran."""
        run, name = self.run, self.said("measurements.checksum")
        parts = {"parameters": run.parameters, "machine": run.machine, "versions": run.versions}
        sides = "".join(self._pairs(part, values) for part, values in parts.items())
        checksum = f"<p>{_e(name)}: <code>{_e(run.model_sha256)}</code></p>" if run.model_sha256 else ""
        return f'<div class="sides">{sides}</div>{checksum}'

    def _pairs(self, name: str, values: Mapping[str, object]) -> str:
        return _pairs(self.said(f"measurements.{name}"), fact_rows(values, self.said))  # type: ignore[arg-type]


def _pairs(name: str, rows: Sequence[tuple[str, str]]) -> str:
    if not rows:
        return ""
    body = "".join(f'<tr><th scope="row">{_e(label)}</th><td>{_e(value)}</td></tr>' for label, value in rows)
    return f"<section><h3>{_e(name)}</h3>{_scrolling(f'<table>{body}</table>', name)}</section>"


def _grid(table: pd.DataFrame, said: Words) -> str:
    shown = readable(table, said)
    kinds = ["number" if pd.api.types.is_numeric_dtype(table[name]) else "text" for name in table.columns]
    head = _cells(shown.columns, kinds, 'th scope="col"')
    body = "".join(f"<tr>{_cells(row, kinds, 'td')}</tr>" for row in shown.itertuples(index=False, name=None))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(values: Iterable[object], kinds: Sequence[str], tag: str) -> str:
    pairs = zip(values, kinds, strict=True)
    return "".join(f'<{tag} class="{kind}">{_e(str(value))}</{tag[:2]}>' for value, kind in pairs)


def _scrolling(table: str, name: str) -> str:
    """A table that scrolls by itself where the window is narrow, by keyboard too."""
    return f'<div class="wide" tabindex="0" role="group" aria-label="{_e(name)}">{table}</div>'


def _data(figure: go.Figure) -> str:
    """A figure as JSON for a block of data in the page; the look is added when it is drawn."""
    raw = json.loads(figure.to_json())
    raw["layout"].pop("template", None)
    # No "<" in it can end the block.
    return json.dumps(raw).replace("<", "\\u003c")


def _scripts(words: Words) -> list[str]:
    """Plotly and what draws the charts, in the light or dark of the reader's screen."""
    from plotly.offline import get_plotlyjs

    modes = {"light": False, "dark": True}
    looks = {name: json.loads(dressed(go.Figure(), dark).to_json())["layout"] for name, dark in modes.items()}
    known = {"looks": looks, "separators": words.separators()}
    drawing = f"const KNOWN = {json.dumps(known)};\n{_file('charts.js')}"
    # A program in a page must not hold the end of its own element.
    return [one.replace("</script", "<\\/script") for one in (get_plotlyjs(), drawing)]


def _policy(scripts: Sequence[str]) -> str:
    """Nothing from anywhere, and no program but these: markup that slipped in out of a card would run nothing."""
    hashes = [base64.b64encode(hashlib.sha256(one.encode()).digest()).decode() for one in scripts]
    own = " ".join(f"'sha256-{one}'" for one in hashes) or "'none'"
    return f"default-src 'none'; script-src {own}; style-src 'unsafe-inline'; img-src data: blob:"


def _file(name: str) -> str:
    return (LOOK / name).read_text(encoding="utf-8")


def _e(text: str) -> str:
    return html.escape(text)
