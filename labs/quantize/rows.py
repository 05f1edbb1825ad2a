"""The tables of lab 2, out of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

import pandas as pd

from lib.bench.formats import FormatSpeed
from lib.course.result import Facts, Note, note
from lib.gguf.formats import FORMATS, REFERENCE, type_bits
from lib.gguf.header import read_header
from lib.gguf.made import Made, Plan
from lib.gguf.quality import Quality
from lib.workbench import Workbench

# One round of one machine: two speeds that are nearer than this are not told apart.
SAME_SPEED = 0.85


def kind_of(name: str) -> str:
    """A tensor's name without its layer: ``blk.3.attn_q.weight`` is ``attn_q``."""
    parts = [part for part in name.removesuffix(".weight").split(".") if not part.isdigit() and part != "blk"]
    return ".".join(parts)


def by_type(plan: Plan) -> pd.DataFrame:
    """One row for every kind of tensor and type it gets."""
    keyed = sorted(plan.tensors, key=lambda one: (kind_of(one.name), one.type))
    rows = []
    for (kind, type_), group in groupby(keyed, key=lambda one: (kind_of(one.name), one.type)):
        found = list(group)
        rows.append(
            (kind, type_, type_bits(type_), len(found), found[0].shape[0], sum(one.size_bytes for one in found))
        )
    columns = ["tensor", "type", "bits_per_weight", "tensors", "row_length", "size_bytes"]
    return pd.DataFrame(rows, columns=columns).sort_values("size_bytes", ascending=False, ignore_index=True)


def made_table(made: Sequence[Made], plans: Mapping[str, Plan]) -> pd.DataFrame:
    """What was made, beside what had been forecast."""
    rows = [
        {
            "format": one.format,
            "size_bytes": one.size_bytes,
            "forecast_bytes": plans[one.format].size_bytes,
            "forecast_error_percent": 100 * (plans[one.format].size_bytes / one.size_bytes - 1),
            "bits_per_weight": plans[one.format].bits_per_weight,
            "block_bits": FORMATS[one.format].block_bits,
            "quantize_s": one.seconds,
            "peak_bytes": one.peak_bytes,
            "reused": one.reused,
        }
        for one in made
    ]
    return pd.DataFrame(rows).sort_values("size_bytes", ignore_index=True)


def quality_table(workbench: Workbench, model: str, found: Sequence[Quality]) -> pd.DataFrame:
    """Quality by size, the smallest first."""
    rows = [{"format": one.format, "size_bytes": _size(workbench, model, one.format), **vars(one)} for one in found]
    return pd.DataFrame(rows).sort_values("size_bytes", ignore_index=True)


def speed_table(workbench: Workbench, model: str, found: Sequence[FormatSpeed]) -> pd.DataFrame:
    """Speed by size, the smallest first."""
    rows = [
        {
            "format": one.format,
            "size_bytes": _size(workbench, model, one.format),
            **{name: value for name, value in vars(one).items() if name not in ("format", "answers")},
        }
        for one in found
    ]
    return pd.DataFrame(rows).sort_values("size_bytes", ignore_index=True)


def tied_with(fastest: pd.Series, table: pd.DataFrame) -> list[str]:
    """The formats whose spread overlaps the fastest one's: no round tells them apart."""
    others = table[table["format"] != fastest["format"]]
    return list(others.loc[others["high_tokens_per_s"] >= fastest["low_tokens_per_s"], "format"])


def picture_table(
    workbench: Workbench, model: str, found: Sequence[Quality], speeds: Sequence[FormatSpeed]
) -> pd.DataFrame:
    """Size, quality and speed of each format, whether it is on the front, and how many answers changed."""
    speed = {one.format: one for one in speeds}
    reference = speed[REFERENCE].answers
    rows = [
        {
            "format": one.format,
            "size_bytes": _size(workbench, model, one.format),
            "kld": one.kld,
            "top1_agreement_percent": one.top1_agreement_percent,
            "tokens_per_s": speed[one.format].tokens_per_s,
            "changed_answers": sum(
                given != wanted for given, wanted in zip(speed[one.format].answers, reference, strict=True)
            ),
        }
        for one in found
    ]
    table = pd.DataFrame(rows).sort_values("size_bytes", ignore_index=True)
    table["on_the_front"] = [not _is_beaten(row, table) for _, row in table.iterrows()]
    return table


def answers(asked: Sequence[str], speeds: Sequence[FormatSpeed]) -> Facts:
    """Every answer by format and prompt, kept with the run."""
    found: dict[str, tuple[str, ...]] = {"asked": tuple(asked)}
    return {**found, **{f"answers_{one.format}": one.answers for one in speeds}}


def changed_notes(asked: Sequence[str], speeds: Sequence[FormatSpeed]) -> tuple[Note, ...]:
    """For each prompt F16's answer, then each other answer with the formats that gave it."""
    reference = next(one for one in speeds if one.format == REFERENCE)
    notes = []
    for at, prompt in enumerate(asked):
        wanted = reference.answers[at]
        same = [one.format for one in speeds if one.answers[at] == wanted]
        notes.append(note("answer_kept", prompt=prompt, formats=", ".join(same), answer=_short(wanted)))
        others = sorted((one.answers[at], one.format) for one in speeds if one.answers[at] != wanted)
        for answer, group in groupby(others, key=lambda pair: pair[0]):
            notes.append(note("answer_changed", formats=", ".join(name for _, name in group), answer=_short(answer)))
    return tuple(notes)


def ternary_table(
    workbench: Workbench, model: str, found: Sequence[Quality], speeds: Sequence[FormatSpeed]
) -> pd.DataFrame:
    """The ternary formats and F16: size, quality, speed and what each answers."""
    quality = {one.format: one for one in found}
    rows = []
    for one in speeds:
        scored = quality.get(one.format)
        rows.append(
            {
                "format": one.format,
                "size_bytes": _size(workbench, model, one.format),
                "kld": scored.kld if scored else None,
                "top1_agreement_percent": scored.top1_agreement_percent if scored else 100.0,
                "perplexity": scored.perplexity if scored else None,
                "tokens_per_s": one.tokens_per_s,
                "answer": _short(one.answers[0]),
            }
        )
    return pd.DataFrame(rows)


def main_type(workbench: Workbench, model: str) -> str:
    """The type that holds most of a source's weights."""
    weights: dict[str, int] = {}
    for tensor in read_header(workbench.models.path(model)).tensors:
        weights[tensor.type] = weights.get(tensor.type, 0) + tensor.weights
    return max(weights, key=weights.__getitem__)


def _size(workbench: Workbench, model: str, format: str) -> int:
    return workbench.models.made_path(model, format).stat().st_size


def _is_beaten(row: pd.Series, table: pd.DataFrame) -> bool:
    """Whether another format is no worse in size and quality, better in one of them, and about as fast or faster."""
    no_worse = (table["size_bytes"] <= row["size_bytes"]) & (table["kld"] <= row["kld"])
    better = (table["size_bytes"] < row["size_bytes"]) | (table["kld"] < row["kld"])
    no_worse &= table["tokens_per_s"] >= SAME_SPEED * row["tokens_per_s"]
    return bool((no_worse & better).any())


def _short(text: str, most: int = 220) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= most else flat[:most] + " …"
