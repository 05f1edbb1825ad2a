"""Lab 2, quantize: how small can a model get, and what does it cost?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import pandas as pd

from labs.quantize import charts, rows
from lib.bench.formats import measure_formats
from lib.course.lab import Lab
from lib.course.parameters import Choice, ModelName, Range, Text
from lib.course.result import Facts, Progress, Result, note, outcome, part_of
from lib.engines.ollama import QUANTIZATIONS, create_from_gguf
from lib.errors import EngineAway
from lib.gguf.formats import FORMATS, REFERENCE, TERNARY
from lib.gguf.made import ensure_format, make_format, plan_formats
from lib.gguf.quality import measure_quality, own_or_shipped
from lib.gguf.ternary import ternary_weights
from lib.workbench import Workbench

LAB = Lab.beside(__file__, part=2, number=2, minutes=40)
QUANTIZED = tuple(name for name in FORMATS if name != REFERENCE)
SEVEN = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_S", "Q6_K", "Q8_0")
MODEL = "smollm2-135m-instruct"
PROMPTS = "What is the capital of France?\nWrite one sentence about the sea.\nHow many days are there in three weeks?"


@LAB.step(chart=charts.types, predict="bits_per_weight", long=True)
def formats(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    format: Annotated[str, Choice(tuple(FORMATS))] = "Q4_K_M",
) -> Iterator[Progress | Result]:
    """See which type each tensor would get, by llama.cpp's own rules, before anything is written."""
    plans = yield from plan_formats(workbench, model, [format])
    plan = plans[format]
    facts: Facts = {
        "bits_per_weight": plan.bits_per_weight,
        "block_bits": FORMATS[format].block_bits,
        "forecast_bytes": plan.size_bytes,
        "tensors": len(plan.tensors),
        "fallback_tensors": plan.fallbacks,
    }
    notes = (note("fallbacks", count=plan.fallbacks, tensors=len(plan.tensors)),) if plan.fallbacks else ()
    names = tuple(f"{one.name} {one.type}" for one in plan.tensors)
    yield Result(facts, rows.by_type(plan), notes, more={"tensors": names})


@LAB.step(chart=charts.sizes, predict="smallest_bytes", long=True)
def quantize(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    formats: Annotated[tuple[str, ...], Choice(QUANTIZED)] = SEVEN,
) -> Iterator[Progress | Result]:
    """Make F16 from the model, then every chosen format from the F16."""
    wanted = [REFERENCE, *sorted(set(formats), key=list(FORMATS).index)]
    plans = yield from plan_formats(workbench, model, wanted)
    made = []
    for done, name in enumerate(wanted):
        made.append((yield from part_of(outcome(make_format(workbench, model, name)), done, len(wanted))))
    table = rows.made_table(made, plans)
    reference, smallest = made[0].size_bytes, table["size_bytes"].min()
    facts: Facts = {
        "smallest_bytes": int(smallest),
        "saved_percent": float(100 * (1 - smallest / reference)),
        "reference_bytes": reference,
        "largest_forecast_error_percent": float(table["forecast_error_percent"].abs().max()),
        "quantize_s": float(table["quantize_s"].sum()),
    }
    notes = [note("twice", type=rows.main_type(workbench, model)), *([note("reused")] if table["reused"].any() else [])]
    yield Result(facts, table, tuple(notes))


@LAB.step(chart=charts.quality, predict="lowest_agreement_percent", long=True)
def quality(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    formats: Annotated[tuple[str, ...], Choice(QUANTIZED)] = SEVEN,
    text: Annotated[str, Text(40_000)] = "",
) -> Iterator[Progress | Result]:
    """Compare each format's predictions with those of F16, token by token."""
    scored, found = yield from measure_quality(workbench, model, formats, own_or_shipped(text))
    table = rows.quality_table(workbench, model, found)
    worst = table.loc[table["top1_agreement_percent"].idxmin()]
    facts: Facts = {
        "lowest_agreement_percent": float(worst["top1_agreement_percent"]),
        "lowest_format": str(worst["format"]),
        "reference_perplexity": scored.perplexity,
        "reference_perplexity_error": scored.perplexity_error,
        "scored_tokens": scored.scored_tokens,
        "largest_kld_error_percent": float((100 * table["kld_error"] / table["kld"]).max()),
    }
    yield Result(facts, table, (note("paired"),))


@LAB.step(chart=charts.speed, predict="fastest_tokens_per_s", long=True)
def speed(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    formats: Annotated[tuple[str, ...], Choice(tuple(FORMATS))] = (*SEVEN, REFERENCE),
    rounds: Annotated[int, Range(1, 20, 1)] = 3,
) -> Iterator[Progress | Result]:
    """Decode with each format in turn, round by round, each time in a fresh process."""
    found = yield from measure_formats(workbench, model, formats, rounds)
    table = rows.speed_table(workbench, model, found)
    fastest = table.loc[table["tokens_per_s"].idxmax()]
    facts: Facts = {
        "fastest_tokens_per_s": float(fastest["tokens_per_s"]),
        "fastest_format": str(fastest["format"]),
        "smallest_peak_bytes": int(table["peak_bytes"].min()),
        "rounds": rounds,
    }
    tied = rows.tied_with(fastest, table)
    yield Result(facts, table, (note("tied", formats=", ".join(tied)),) if tied else ())


@LAB.step(chart=charts.pareto, long=True)
def picture(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    formats: Annotated[tuple[str, ...], Choice(QUANTIZED)] = SEVEN,
    prompts: Annotated[str, Text(2000)] = PROMPTS,
) -> Iterator[Progress | Result]:
    """Put size, quality and speed together, and see which answers changed."""
    asked = [line.strip() for line in prompts.splitlines() if line.strip()]
    _, found = yield from measure_quality(workbench, model, formats, own_or_shipped(""))
    speeds = yield from measure_formats(workbench, model, [*formats, REFERENCE], 1, asked)
    table = rows.picture_table(workbench, model, found, speeds)
    facts: Facts = {
        "on_the_front": tuple(table.loc[table["on_the_front"], "format"]),
        "prompt_count": len(asked),
        "changed_answers": int(table["changed_answers"].sum()),
    }
    more = rows.answers(asked, speeds)
    yield Result(facts, table, rows.changed_notes(asked, speeds), more)


@LAB.step(chart=charts.ternary, predict="top1_agreement_percent", long=True)
def ternary(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    prompt: Annotated[str, Text(200)] = "What is the capital of France?",
) -> Iterator[Progress | Result]:
    """Force weights to -1, 0 and 1 in a model that was not trained for it."""
    _, found = yield from measure_quality(workbench, model, TERNARY, own_or_shipped(""))
    speeds = yield from measure_formats(workbench, model, [*TERNARY, REFERENCE], 1, [prompt])
    weights = ternary_weights((yield from ensure_format(workbench, model, "TQ2_0")))
    facts: Facts = {
        "top1_agreement_percent": found[0].top1_agreement_percent,
        "kld": found[0].kld,
        "ternary_percent": 100 * weights.share,
        "zero_percent": None if weights.zeros is None else 100 * weights.zeros,
    }
    table = rows.ternary_table(workbench, model, found, speeds)
    yield Result(facts, table, (note("ternary_rest", percent=100 - 100 * weights.share),))


@LAB.step(chart=charts.ollama, long=True)
def ollama(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    quantization: Annotated[str, Choice(tuple(QUANTIZATIONS))] = "Q4_K_M",
) -> Iterator[Progress | Result]:
    """Let Ollama quantize the same F16 file; without a server, say what is missing."""
    source = yield from ensure_format(workbench, model, REFERENCE)
    try:
        created = yield from create_from_gguf(workbench.settings.ollama_host, source, f"bancada-{model}", quantization)
    except EngineAway as error:
        yield Result({"server": False}, notes=(note("ollama_away", **error.parameters),))
        return
    ours = yield from make_format(workbench, model, quantization)
    table = pd.DataFrame([("Ollama", created.size_bytes), ("llama.cpp", ours.size_bytes)], columns=["by", "size_bytes"])
    facts: Facts = {"server": True, "size_bytes": created.size_bytes, "quantize_s": created.seconds}
    yield Result(facts, table, (note("ollama_made", name=created.name),))
