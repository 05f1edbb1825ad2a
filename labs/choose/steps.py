"""Lab 1, choose: which model fits this machine and this task?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import pandas as pd

from labs.choose import charts, claims
from lib.bench.filling import measure_filled
from lib.bench.speed import measure_speed
from lib.course.lab import Lab
from lib.course.parameters import Choice, Range, Text
from lib.course.result import Facts, Progress, Result, note, part_of
from lib.errors import Offline
from lib.models import fit
from lib.models.bandwidth import SIZES, bandwidth_at, measure_bandwidth
from lib.models.catalog import load_catalog
from lib.models.hardware import available_memory_bytes
from lib.models.hub import search_hub
from lib.models.shortlist import Roofline, as_table
from lib.models.shortlist import shortlist as rank
from lib.workbench import Workbench

LAB = Lab.beside(__file__, part=1, number=1, minutes=30)


@LAB.step(chart=charts.bandwidth, long=True)
def machine(workbench: Workbench) -> Iterator[Progress | Result]:
    """Look at the machine, and measure how fast it reads memory."""
    seen = workbench.machine
    points = yield from part_of(measure_bandwidth())
    facts: Facts = {
        "cpu": seen.cpu,
        "instruction_sets": seen.instruction_sets,
        "cores": seen.cores,
        "memory_bytes": seen.memory_bytes,
        "available_bytes": available_memory_bytes(),
        "disk_free_bytes": seen.disk_free_bytes,
        "gpus": tuple(gpu.name for gpu in seen.gpus),
        "onnx_providers": seen.onnx_providers,
        "tier": seen.tier,
        "read_bytes_per_s": points[-1].median_bytes_per_s,
    }
    unseen = [note(f"unseen_{one.what}", why=one.detail or one.why) for one in seen.unseen]
    yield Result(facts, pd.DataFrame([vars(one) for one in points]), notes=(note(f"tier_{seen.tier}"), *unseen))


@LAB.step(chart=charts.landscape)
def catalog(
    workbench: Workbench,
    task: Annotated[str, Choice(fit.tasks)] = "any",
    license: Annotated[str, Choice(fit.licenses)] = "any",
    language: Annotated[str, Choice(fit.languages)] = "any",
    quantization: Annotated[str, Choice(fit.QUANTIZATIONS)] = "Q4_K_M",
    context_tokens: Annotated[int, Choice(fit.CONTEXTS)] = 4096,
) -> Result:
    """Read the catalog: the models that match, and the memory each would need here."""
    models = fit.matching(load_catalog().values(), task, license, language)
    table = fit.catalog_table(models, quantization, context_tokens)
    limit = available_memory_bytes()
    table["fits"] = [fit.verdict(size, limit) for size in table["estimate_bytes"]]
    facts = {"models": len(table), "fitting": int((table["fits"] == "fits").sum()), "available_bytes": limit}
    return Result(facts, table, notes=() if len(table) else (note("nothing_matches"),))


@LAB.step(chart=charts.memory_terms, predict="total_bytes")
def estimate(
    workbench: Workbench,
    model: Annotated[str, Choice(fit.sizable_models)] = "smollm2-135m-instruct",
    quantization: Annotated[str, Choice(fit.QUANTIZATIONS)] = "Q4_1",
    context_tokens: Annotated[int, Choice(fit.CONTEXTS)] = 2048,
) -> Result:
    """Estimate the memory: weights, KV cache, compute buffers and the process itself."""
    found = fit.fit(workbench.models, model, quantization, context_tokens)
    terms = {f"{term.id}_bytes": term.size_bytes for term in found.estimate.terms}
    rows = [(term.id, term.size_bytes, term.formula) for term in found.estimate.terms]
    table = pd.DataFrame(rows, columns=["term", "size_bytes", "formula"])
    trained = found.model.context_tokens or context_tokens
    notes = [note("from_file" if found.from_file else "from_catalog", model=found.model.name)]
    if context_tokens > trained:
        notes.append(note("beyond_training", trained=trained))
    available = available_memory_bytes()
    facts = {"total_bytes": found.estimate.total_bytes, **terms, "available_bytes": available}
    return Result(facts, table, tuple(notes), more={"model": model, "context_tokens": context_tokens})


@LAB.step(chart=charts.predicted_and_measured, predict="peak_bytes", long=True)
def measure(
    workbench: Workbench,
    model: Annotated[str, Choice(fit.fetchable_models)] = "smollm2-135m-instruct",
    contexts: Annotated[tuple[int, ...], Choice(fit.CONTEXTS[:7])] = (512, 2048, 4096),
) -> Iterator[Progress | Result]:
    """Load the model at each context, fill it, and read the peak of the engine's memory."""
    rows, counter = [], ""
    for done, context in enumerate(sorted(set(contexts))):
        filled = yield from part_of(measure_filled(workbench, model, context), done, len(set(contexts)))
        counter = filled.counter
        rows.append((context, filled.estimate.total_bytes, filled.peak_bytes, filled.error_percent))
    table = pd.DataFrame(rows, columns=["context_tokens", "estimate_bytes", "peak_bytes", "error_percent"])
    worst = max(table["error_percent"], key=abs)
    facts = {"peak_bytes": int(table["peak_bytes"].iloc[-1]), "worst_error_percent": worst, "counter": counter}
    yield Result(facts, table, notes=(note(f"counter_{counter}"),))


@LAB.step(chart=charts.shortlist, long=True)
def shortlist(
    workbench: Workbench,
    task: Annotated[str, Choice(fit.tasks)] = "chat",
    license: Annotated[str, Choice(fit.licenses)] = "any",
    language: Annotated[str, Choice(fit.languages)] = "any",
    quantization: Annotated[str, Choice(fit.QUANTIZATIONS)] = "Q4_K_M",
    context_tokens: Annotated[int, Choice(fit.CONTEXTS)] = 4096,
    wanted_tokens_per_s: Annotated[float, Range(0.5, 200, 0.5)] = 8.0,
) -> Iterator[Progress | Result]:
    """Measure the default model, forecast the others, and rank those that fit."""
    points = yield from part_of(measure_bandwidth(SIZES[-3:]), 0, 2)
    default, engine = workbench.settings.default_model, workbench.engine("embedded")
    yield from engine.ensure(default)
    speed = yield from part_of(measure_speed(engine.client(default), default), 1, 2)
    read = fit.bytes_per_token(workbench.models, default)
    bandwidth = bandwidth_at(points, read)
    roofline = Roofline(bandwidth, efficiency=speed.tokens_per_s * read / bandwidth)
    models = [load_catalog()[one] for one in fit.sizable_models()]
    budget = available_memory_bytes()
    ranked = rank(
        fit.matching(models, "any", license, language), roofline, task, quantization, context_tokens, budget,
        wanted_tokens_per_s,
    )  # fmt: skip
    facts: Facts = {
        "default_tokens_per_s": speed.tokens_per_s,
        "bound_tokens_per_s": bandwidth / read,
        "efficiency_percent": 100 * roofline.efficiency,
        "read_bytes_per_s": bandwidth,
        "fitting": sum(one.reason == "fits" for one in ranked),
    }
    table = as_table(ranked)
    yield Result(facts, table, more={"wanted_tokens_per_s": wanted_tokens_per_s, "budget_bytes": budget})


@LAB.step(chart=charts.hub_sizes, long=True)
def hub(
    workbench: Workbench,
    query: Annotated[str, Text(80)] = "smollm2 instruct",
    limit: Annotated[int, Range(1, 25, 1)] = 8,
) -> Iterator[Progress | Result]:
    """Search the Hugging Face Hub for GGUF files; without network, the catalog says what it knows."""
    try:
        found = yield from part_of(search_hub(query, limit, workbench.hub_token, offline=workbench.settings.offline))
        source, table = "hub", pd.DataFrame([vars(one) for one in found], columns=fit.HUB_COLUMNS)
        notes = () if found else (note("nothing_matches"),)
    except Offline as error:
        source, table = "catalog", fit.catalog_as_hub(query)
        notes = (note("hub_offline", **error.parameters),)
    yield Result({"source": source, "models": len(table)}, table, notes)


@LAB.step(chart=charts.claims, long=True)
def slm_or_llm(
    workbench: Workbench,
    api_price_per_million: Annotated[float, Range(0, 1000, 0.01)] = 10.0,
    machine_price_per_month: Annotated[float, Range(0, 100_000, 1)] = 140.0,
) -> Iterator[Progress | Result]:
    """Put the claims to the test: narrow tasks, reasoning tasks, and the price of a million tokens."""
    model, engine = workbench.settings.default_model, workbench.engine("embedded")
    yield from engine.ensure(model)
    client = engine.client(model)
    answers = yield from part_of(claims.answer_all(client, model), 0, 2)
    speed = yield from part_of(measure_speed(client, model), 1, 2)
    local = claims.price_per_million(machine_price_per_month, speed.tokens_per_s)
    table = pd.DataFrame([vars(one) for one in answers])
    shares = 100 * table.groupby("kind")["right"].mean()
    facts: Facts = {
        "narrow_percent": float(shares["narrow"]),
        "reasoning_percent": float(shares["reasoning"]),
        "default_tokens_per_s": speed.tokens_per_s,
        "local_price_per_million": local,
        "api_price_per_million": api_price_per_million,
        "times_cheaper": api_price_per_million / local if local else None,
    }
    yield Result(facts, table, notes=(note("claim_cheaper"), note("claim_share")))
