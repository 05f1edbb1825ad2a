"""The tables and notes of lab 3, out of what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lib.convert.builders import olive_passes
from lib.convert.forms import Answers, Form, Place
from lib.convert.gguf import RoundTrip
from lib.convert.kept import Converted
from lib.convert.measured import Measured
from lib.convert.reference import PROMPTS, Reference
from lib.course.result import Note, note
from lib.gguf.header import read_header
from lib.models.memory import shape_of

_FLOAT_BYTES = 4
# Rounding to eight bits moves a logit of this model by half a unit and more.
CLOSE = 0.5


def hf_notes(hf: Converted) -> tuple[Note, ...]:
    """What transformers left in the directory, what was put right, and whether it was here already."""
    notes = [*reused(hf)]
    if hf.answer["tokenizer_model_bytes"]:
        notes.append(note("gguf_as_tokenizer", mib=hf.answer["tokenizer_model_bytes"] / 2**20))
    if hf.answer["repaired"]:
        notes.append(note("tokenizer_repaired", parts=", ".join(hf.answer["repaired"])))
    return tuple(notes)


def gguf_notes(made: RoundTrip) -> tuple[Note, ...]:
    """Where the file is, and what of its tokenizer and architecture is not as it was."""
    notes = [note("reused", kind="gguf", seconds=made.seconds)] if made.reused else []
    if made.metadata:
        notes.append(note("metadata_differ", names=", ".join(made.metadata)))
    elif made.compared:
        notes.append(note("metadata_same"))
    else:
        notes.append(note("own_directory", path=str(made.path)))
    return (*notes, note("gguf_sha256", sha256=made.sha256[:16]))


def onnx_notes(made: Converted, graph: Mapping[str, Any]) -> tuple[Note, ...]:
    """What the graph holds beside its nodes."""
    return (*reused(made), note("graph", inputs=graph["inputs"], outputs=graph["outputs"]))


def reused(made: Converted) -> tuple[Note, ...]:
    """That a conversion was here already, if it was."""
    return (note("reused", kind=made.kind, seconds=made.seconds),) if made.reused else ()


def answers(places: Sequence[Place], said: Sequence[Answers]) -> tuple[Note, ...]:
    """Every form's answer to every prompt, side by side."""
    return tuple(
        note("answer", form=place.form.id, answer=_short(text))
        for at in range(len(said[0].texts))
        for place, one in zip(places, said, strict=True)
        for text in one.texts[at : at + 1]
    )


def levels_table(levels: Sequence[Mapping[str, Any]], operators: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """The optimization levels, then the ten operators that take the most time."""
    rows = [
        {
            "kind": "level",
            "name": one["level"],
            **{name: one[name] for name in ("load_s", "prefill_s", "low_s", "high_s")},
        }
        for one in levels
    ]
    rows += [
        {"kind": "operator", "name": one["operator"], "prefill_s": one["seconds_s"], "calls": one["calls"]}
        for one in operators[:10]
    ]
    return pd.DataFrame(rows)


def measured_table(measured: Sequence[Measured]) -> pd.DataFrame:
    """One row a form; figures that are missing stay empty."""
    return pd.DataFrame([_row(one) for one in measured])


def measured_notes(measured: Sequence[Measured]) -> tuple[Note, ...]:
    """The reason of everything that failed, and how long the try took."""
    return tuple(
        note("failed", form=one.form.id, seconds=one.took_s, error=one.error.id, why=one.why)
        for one in measured
        if one.error is not None
    )


def stack_notes(reference: Reference, measured: Sequence[Measured]) -> tuple[Note, ...]:
    """The failures, Olive's recipe, and how close a call the first answer's beginning is."""
    recipe = note("olive_recipe", recipe=json.dumps(olive_passes()))
    return (*measured_notes(measured), *close_call(reference), recipe)


def close_call(reference: Reference) -> tuple[Note, ...]:
    """That the original itself hardly prefers its first word, where it is so."""
    best, second, margin = reference.first_words[0]
    if margin > CLOSE:
        return ()
    return (note("close_call", prompt=PROMPTS[0], best=best, second=second, margin=f"{margin:.2g}"),)


def table_notes(reference: Reference, measured: Sequence[Measured], left_out: Sequence[Form]) -> tuple[Note, ...]:
    """The failures, the close call, and what is not here."""
    return (*measured_notes(measured), *close_call(reference), *left_out_notes(left_out))


def left_out_notes(left_out: Sequence[Form]) -> tuple[Note, ...]:
    """The step that makes what is not here."""
    steps: dict[str, list[str]] = {}
    for form in left_out:
        steps.setdefault(form.step, []).append(form.id)
    return tuple(note("not_made", forms=", ".join(names), step=f"convert.{step}") for step, names in steps.items())


def cache_bytes(reference: Reference, context_tokens: int) -> int:
    """The KV cache that ONNX Runtime GenAI sets aside: keys and values of every layer, in float32."""
    shape = shape_of(read_header(reference.source))
    return (
        sum(heads * (shape.key_length + shape.value_length) * _FLOAT_BYTES for heads in shape.kv_heads) * context_tokens
    )


def number(value: object) -> float | None:
    """A cell as a number; None where it has none."""
    return None if value is None or pd.isna(value) else float(value)  # type: ignore[arg-type]


def least(table: pd.DataFrame, column: str) -> str:
    """The form with the smallest figure."""
    return str(table.loc[table[column].astype(float).idxmin(), "form"])


def most(table: pd.DataFrame, column: str) -> str:
    """The form with the largest figure."""
    return str(table.loc[table[column].astype(float).idxmax(), "form"])


def _row(one: Measured) -> dict[str, Any]:
    found, said, place = one.agreement, one.answers, one.place
    return {
        "form": one.form.id,
        "size_bytes": place.size_bytes if place else None,
        "load_s": said.load_s if said else None,
        "ttft_s": said.ttft_s if said else None,
        "tokens_per_s": said.tokens_per_s if said else None,
        "low_tokens_per_s": said.low_tokens_per_s if said else None,
        "high_tokens_per_s": said.high_tokens_per_s if said else None,
        "rounds": said.rounds if said else None,
        "peak_bytes": said.peak_bytes if said else None,
        "top1_agreement_percent": found.top1_agreement_percent if found else None,
        "max_abs_difference": found.max_abs_difference if found else None,
        "answer": _short(said.texts[0]) if said else None,
        "purpose": one.form.id.split("-")[0] if one.works else "failed",
    }


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 160 else line[:159] + "…"
