"""A run in a notebook and in a terminal, and the readable forms that the page shares with them."""

from __future__ import annotations

import html

import pandas as pd

from lib.charts import dressed
from lib.course.result import Facts, Note
from lib.course.run import Run
from lib.text import Words

# A longer value is a sentence, not a figure.
SHORT = 18


def fact_rows(facts: Facts, said: Words) -> list[tuple[str, str]]:
    """Facts as (name, value), both readable."""
    return [(said.label(name), said.value(name, value)) for name, value in facts.items()]


def chief_facts(facts: Facts, said: Words) -> list[tuple[str, str]]:
    """The facts that are short enough to be shown large, in the step's order."""
    return [row for row in fact_rows(facts, said) if len(row[1]) <= SHORT]


def sentence(note: Note, said: Words) -> str:
    """A note's sentence."""
    return said(f"notes.{note.key}", **note.parameters)


def readable(table: pd.DataFrame, said: Words) -> pd.DataFrame:
    """The table with names and values as people of the language read them."""
    columns = {
        said.label(str(name)): [said.value(str(name), _plain(value)) for value in table[name]] for name in table.columns
    }
    return pd.DataFrame(columns)


def off_by(prediction: float, found: float, said: Words) -> str:
    """How far a prediction was from what was found, in words."""
    if not found:
        return "–"
    percent = 100 * (prediction / found - 1)
    return said("off_high" if percent >= 0 else "off_low", percent=said.number(abs(percent)))


def predicted(run: Run, said: Words) -> str | None:
    """The sentence that sets a prediction beside its fact, or None."""
    if run.prediction is None or run.step.predict is None:
        return None
    name = run.step.predict.fact
    found = run.result.facts.get(name)
    if not isinstance(found, int | float):
        return None  # this run found nothing to compare it with
    return said(
        "predicted_and_found",
        prediction=said.value(name, run.prediction),
        found=said.value(name, found),
        off=off_by(run.prediction, found, said),
    )


def to_text(run: Run, said: Words) -> str:
    """The run as plain text."""
    rows = fact_rows(run.result.facts, said)
    width = max((len(label) for label, _ in rows), default=0)
    lines = [f"{label:<{width}}  {value}" for label, value in rows]
    prediction = predicted(run, said)
    if prediction:
        lines.insert(0, prediction + "\n")
    lines += ["", *(f"* {sentence(one, said)}" for one in run.result.notes)] if run.result.notes else []
    for one in run.result.listings:
        lines += ["", f"--- {said(f'listings.{one.name}')} ---", one.text]
    if run.result.table is not None and len(run.result.table):
        lines += ["", readable(run.result.table, said).to_string(index=False)]
    return "\n".join(lines)


def show_in_notebook(run: Run) -> None:
    """Prediction, chart, facts, notes and table, as a notebook shows them."""
    from IPython.display import HTML, display

    said = run.words
    prediction = predicted(run, said)
    if prediction:
        display(HTML(f"<p><b>{html.escape(prediction)}</b></p>"))
    made = run.figure()
    if made is not None:
        display(dressed(made, dark=False))
    rows = "".join(
        f"<tr><th style='text-align:left'>{html.escape(label)}</th><td>{html.escape(value)}</td></tr>"
        for label, value in fact_rows(run.result.facts, said)
    )
    notes = "".join(f"<p>{html.escape(sentence(one, said))}</p>" for one in run.result.notes)
    display(HTML(f"<table>{rows}</table>{notes}"))
    for one in run.result.listings:
        title, text = html.escape(said(f"listings.{one.name}")), html.escape(one.text)
        display(HTML(f"<p><b>{title}</b></p><pre style='white-space:pre-wrap'>{text}</pre>"))
    if run.result.table is not None and len(run.result.table):
        display(HTML(readable(run.result.table, said).to_html(index=False)))


def _plain(value: object) -> object:
    """A cell as a Python value: numpy's numbers are not Python's."""
    item = getattr(value, "item", None)
    return item() if callable(item) else value
