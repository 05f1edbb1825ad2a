"""Run cards to take along: as JSON, as CSV and as an HTML file that stands alone.

Every form takes runs as ``lib.course.cards.recall`` or ``lib.course.run.from_card``
gives them, and the shared words in the language of whoever will read it.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lib.course.cards import title, words_of
from lib.course.export_html import as_html
from lib.course.run import Run
from lib.text import Words
from lib.versions import BANCADA

__all__ = ["FORMS", "Form", "as_csv", "as_html", "as_json", "as_tables_csv"]

_PARTS = ("parameter", "fact", "machine", "version")
# A spreadsheet runs a cell that begins so as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_json(runs: Sequence[Run], words: Words) -> str:
    """Whole run cards: ``{"bancada": version, "language": …, "cards": […]}``.

    Values are as measured, in the unit that a name ends with; ``result`` is what
    ``Result.from_json`` reads. ``labels`` has the display names in the language. A number that
    JSON has no word for (infinite, not a number) is null.
    """
    raw = {"bancada": BANCADA, "language": words.language, "cards": [_card(run, words) for run in runs]}
    return json.dumps(_finite(raw), ensure_ascii=False, indent=1, allow_nan=False)


def as_csv(runs: Sequence[Run]) -> str:
    """One row per card, so that a column against another is a chart: in pandas as in a spreadsheet.

    ``parameter.NAME``, ``fact.NAME``, ``machine.NAME`` and ``version.NAME`` are columns, those of all the
    cards; a card leaves empty what it has not. Numbers have a point and the unit that the column's name ends
    with; several values in a cell stand with semicolons between. The tables of the results are in
    ``as_tables_csv``: they have as many rows as they like.
    """
    rows = [_row(run) for run in runs]
    names = dict.fromkeys(name for row in rows for name in row)
    return _csv(rows, sorted(names, key=lambda name: _PARTS.index(name.partition(".")[0]) if "." in name else -1))


def as_tables_csv(runs: Sequence[Run]) -> str:
    """The tables of the results, one below the other: ``card``, ``lab``, ``step``, then the tables' own columns.

    A table's column that is called like one of those three is ``table.NAME``.
    """
    rows: list[Mapping[str, Any]] = []
    for run in runs:
        if run.result.table is not None:
            about = {"card": run.card_id, "lab": run.step.lab.id, "step": run.step.id}
            rows += [
                about | {f"table.{name}" if name in about else name: value for name, value in row.items()}
                for row in _raw_rows(run)
            ]
    return _csv(rows, list(dict.fromkeys(name for row in rows for name in row)))


@dataclass(frozen=True)
class Form:
    """A form to export in: how its file's name ends, its MIME type, and what makes it of runs."""

    suffix: str
    mime: str
    make: Callable[[Sequence[Run], Words], bytes]


# A spreadsheet takes a CSV file without a byte order mark for one of another alphabet; pandas reads both.
FORMS: Mapping[str, Form] = {
    "html": Form("html", "text/html", lambda runs, words: as_html(runs, words).encode()),
    "csv": Form("csv", "text/csv", lambda runs, _: as_csv(runs).encode("utf-8-sig")),
    "tables": Form("tables.csv", "text/csv", lambda runs, _: as_tables_csv(runs).encode("utf-8-sig")),
    "json": Form("json", "application/json", lambda runs, words: as_json(runs, words).encode()),
}


def _card(run: Run, words: Words) -> dict[str, Any]:
    lab, step = run.step.lab.id, run.step.id
    said = words_of(lab, words.language)
    names = dict.fromkeys([*run.parameters, *run.result.facts])
    return {
        "id": run.card_id,
        "lab": lab,
        "step": step,
        "title": title(lab, step, words.language),
        "finished_at": run.finished_at.isoformat(),
        "duration_s": run.duration_s,
        "parameters": dict(run.parameters),
        "prediction": run.prediction,
        "predicted_fact": run.step.predict.fact if run.step.predict else None,
        "result": json.loads(run.result.to_json()),
        "model_sha256": run.model_sha256,
        "machine": dict(run.machine),
        "versions": dict(run.versions),
        "labels": {name: said.label(name) for name in names},
    }


def _row(run: Run) -> dict[str, Any]:
    row: dict[str, Any] = {
        "card": run.card_id,
        "finished_at": run.finished_at.isoformat(),
        "lab": run.step.lab.id,
        "step": run.step.id,
        "duration_s": run.duration_s,
        "prediction": run.prediction,
        "partial": getattr(run.result, "partial", False),
        "model_sha256": run.model_sha256,
    }
    for part, values in zip(_PARTS, (run.parameters, run.result.facts, run.machine, run.versions), strict=True):
        row |= {f"{part}.{name}": value for name, value in values.items()}
    return row


def _raw_rows(run: Run) -> list[dict[str, Any]]:
    table = json.loads(run.result.to_json())["table"]
    return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]


def _csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    text = io.StringIO()
    # With RFC 4180's own line ends a lone carriage return in a prompt is quoted as well.
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow([_cell(name) for name in columns])
    writer.writerows([_cell(row.get(name)) for name in columns] for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    if isinstance(value, list | tuple):
        return _cell("; ".join(map(str, value)))
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"  # the mark with which spreadsheets say that a cell is text
    return value


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_finite(one) for one in value]
    return value
