"""The tables of the vLLM scenarios: what each option changes, what each scenario needs, what became of older names."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from lib.course.result import Note, note
from lib.vllm.old_names import OldName
from lib.vllm.scenarios import Scenario, Value, chosen, flag, needs
from lib.vllm.trials import Answer, Card, Judged, shape_of

SHOWN_CHARACTERS = 200
_AS_WRITTEN = (bool, int, float, str)


def option_table(
    judged: Judged, answer: Answer, scenario: Scenario, card: Card | None = None, **overrides: Value | None
) -> pd.DataFrame:
    """One row an option of a scenario: its value, what vLLM would take without it, and whether it changes anything.

    ``explanation`` is a key of the words under ``options``. With a card, the batch is what vLLM takes there.
    """
    usual = judged.usual_for(shape_of(scenario, **overrides), card)
    # What vLLM would start with; of a command that it refused, what was asked for.
    result = {**chosen(scenario, **overrides), **answer.chosen}
    rows = [
        {
            "option": judged.options[name].flags[0] if name in judged.options else flag(name, value)[0],
            "value": _text(value),
            "usual": _text(usual.get(name)),
            "changed": result[name] != usual.get(name),
            "accepted": answer.accepted,
            "explanation": name,
        }
        for name, value in chosen(scenario, **overrides).items()
    ]
    return pd.DataFrame(rows)


def needs_table(scenarios: Sequence[Scenario]) -> pd.DataFrame:
    """One row a scenario: what it asks for, side by side."""
    found = [(one.id, needs(one)) for one in scenarios]
    rows = [
        {
            "scenario": name,
            "gpus": one.gpus,
            "memory_share_percent": round(100 * one.memory_share),
            "context_tokens": one.context_tokens,
            "sequences": one.sequences,
            "batch_tokens": one.batch_tokens,
            "most_cache_tokens": one.most_cache_tokens,
            "quantized_weights": one.quantized_weights,
            "draft_model": one.draft_model,
        }
        for name, one in found
    ]
    return pd.DataFrame(rows)


def packed(table: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    """A table beside the result's own, for the chart; all of it as text."""
    return {str(name): tuple(map(str, table[name])) for name in table.columns}


def need_notes(scenario: Scenario) -> tuple[Note, ...]:
    """What has to be there, a sentence each, and how far the check went."""
    asked = needs(scenario)
    notes = [note("needs_one_gpu") if asked.gpus == 1 else note("needs_gpus", count=asked.gpus)]
    notes.append(note("needs_memory_share", percent=round(100 * asked.memory_share)))
    if asked.quantized_weights:
        notes.append(note("needs_quantized_weights", method=asked.quantized_weights))
    if asked.draft_model:
        notes.append(note("needs_draft_model", draft=asked.draft_model))
    notes.append(note("needs_cache", tokens=asked.most_cache_tokens, sequences=asked.sequences))
    return (*notes, note("needs_not_checked"))


def old_names_table(found: Sequence[tuple[OldName, Answer, Answer]]) -> pd.DataFrame:
    """One row an older name: what vLLM said of it (``fate``: refused, ignored or taken), and what is written today.

    ``explanation`` is a key of the words under ``old_names``. ``today_accepted``: whether the parser knows it; None
    where nothing takes its place.
    """
    rows = [
        {
            "written": old.written,
            "fate": _fate(old, answer),
            "said": _said(answer),
            "today": " ".join(old.today),
            "today_accepted": today.stage != "parser" if old.today else None,
            "explanation": old.id,
        }
        for old, answer, today in found
    ]
    return pd.DataFrame(rows)


def _fate(old: OldName, answer: Answer) -> str:
    if not answer.accepted:
        return "refused"
    # A variable that vLLM does not know is no error: it starts, and does something else than was asked for.
    unknown = any(name in line for name in old.environment for line in answer.warnings)
    return "ignored" if unknown else "taken"


def _said(answer: Answer) -> str:
    """vLLM's own words, the first line of them."""
    words = answer.message or " ".join(answer.warnings)
    first = words.strip().split("\n", 1)[0]
    return first if len(first) <= SHOWN_CHARACTERS else f"{first[:SHOWN_CHARACTERS]} …"


def _text(value: object) -> str:
    """A value as it is written in a command; nothing for what vLLM leaves open."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, _AS_WRITTEN):
        return str(value)
    return json.dumps(dict(value) if isinstance(value, Mapping) else value)
