"""Lab 4, ollama: a server that fetches, keeps and serves models, asked about everything it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import pandas as pd

from labs.ollama import charts, measured, rows, taking, tree
from labs.ollama.served import fake, install_command, no_server, serve
from lib.bench.parallel import at_once
from lib.course.lab import Lab
from lib.course.parameters import Choice, ModelName, Range, Text
from lib.course.result import Facts, Progress, Result, note, outcome, part_of
from lib.course.run import latest_run
from lib.engines.address import shown
from lib.errors import EngineAway
from lib.gguf.formats import FORMATS
from lib.ollama import models as ollama_models
from lib.ollama.modelfile import read_modelfile
from lib.ollama.names import take_apart
from lib.workbench import Workbench

LAB = Lab.beside(__file__, part=3, number=4, minutes=75)
MODEL = "smollm2:135m"
EMBEDDER = "all-minilm"
QUESTION = "What is the capital of France?"
SENTENCES = """The cat sleeps on the sofa.
A kitten is napping on the couch.
The bank raised its interest rate.
We sat on the bank of the river.
How do I reset my password?
I cannot log in to my account."""
MODELFILE = '''FROM smollm2:135m
PARAMETER temperature 0.2
PARAMETER num_ctx 2048
SYSTEM """You are a patient teacher. You answer in one short sentence, and you never use difficult words."""
'''


@LAB.step()
def server(workbench: Workbench) -> Result:
    """Look for a server: its version, what it answers, what it has, and how this platform gets it."""
    host = workbench.settings.ollama_host
    here: Facts = {"command_here": taking.command_path(), "install": install_command()}
    try:
        found = ollama_models.server(host)
    except EngineAway as error:
        return Result({"answers": False, "address": shown(host), **here}, notes=(no_server(error),))
    facts: Facts = {
        "answers": True,
        "version": found.version,
        "address": shown(host),
        "models": len(ollama_models.installed(host)),
        "loaded_models": len(ollama_models.loaded(host)),
        **here,
    }
    table = pd.DataFrame(found.routes.items(), columns=["route", "http_status"])
    return Result(facts, table, (*fake(workbench), note("no_key", address=shown(host))))


@LAB.step(chart=charts.forecasts, predict="forecast_bytes")
def names(
    workbench: Workbench,
    name: Annotated[str, Text(200)] = MODEL,
    quantization: Annotated[str, Choice(tuple(FORMATS))] = "Q4_K_M",
) -> Result:
    """Take a library name apart, and forecast the file for every quantization."""
    parts = take_apart(name)
    table, notes = rows.forecast_table(workbench, parts)
    facts: Facts = {
        "forecast_bytes": rows.forecast_of(table, quantization),
        "full_name": parts.full,
        "registry": parts.registry,
        "namespace": parts.namespace,
        "size_in_tag": parts.size or None,
        "variant_in_tag": parts.variant or None,
        "quantization_in_tag": parts.quantization or None,
    }
    return Result(facts, table if len(table) else None, notes, more={"chosen": quantization})


@LAB.step(chart=charts.layers, long=True)
def pull(workbench: Workbench, name: Annotated[str, Text(200)] = MODEL) -> Iterator[Progress | Result]:
    """Fetch a model layer by layer; what is here already is not fetched again."""
    try:
        table = yield from taking.pull(workbench, take_apart(name).short)
        notes = (*fake(workbench), *rows.pull_notes(table))
    except EngineAway as error:
        table = yield from taking.fetch_instead(workbench)
        notes = (no_server(error), note("fetched_instead", model=workbench.settings.default_model))
    facts: Facts = {
        "layers": len(table),
        "size_bytes": int(table["size_bytes"].sum()),
        "found_bytes": int(table["found_bytes"].sum()),
        "fetched_bytes": int(table["size_bytes"].sum() - table["found_bytes"].sum()),
        "took_s": float(table["took_s"].sum()),
    }
    yield Result(facts, table, notes)


@LAB.step(chart=charts.disk_and_memory)
def models(workbench: Workbench, name: Annotated[str, Text(200)] = MODEL) -> Result:
    """List what is on the disk and in memory, and show what one model brings."""
    try:
        table, facts, listings = rows.ollama_models(workbench.settings.ollama_host, name)
        notes = () if listings else (note("none_installed"),)
        return Result(facts, table, (*fake(workbench), *notes), listings=listings)
    except EngineAway as error:
        table, facts, listings = rows.own_models(workbench)
        return Result(facts, table, (no_server(error), note("own_files")), listings=listings)


@LAB.step(chart=charts.what_goes)
def manage(
    workbench: Workbench,
    action: Annotated[str, Choice(("copy", "remove"))] = "copy",
    name: Annotated[str, Text(200)] = MODEL,
    new_name: Annotated[str, Text(200)] = "tutor",
    really: bool = False,
) -> Result:
    """Copy a model's name, or remove it: first the question, and only with “really” the deed."""
    host = workbench.settings.ollama_host
    try:
        before = rows.names_and_weights(host)
        plan = taking.plan(before, action, name, new_name)
        if really:
            taking.carry_out(host, plan)
        notes = (*fake(workbench), *rows.plan_notes(plan, really))
        return Result(plan.facts(really), rows.plan_table(before, plan), notes)
    except EngineAway as error:
        return Result({"done": False}, rows.own_names(workbench), (no_server(error), note("own_files_stay")))


@LAB.step(chart=charts.token_costs, predict="with_tokens", long=True)
def modelfile(
    workbench: Workbench,
    text: Annotated[str, Text(8000)] = MODELFILE,
    question: Annotated[str, Text(200)] = "Why is the sky blue?",
    name: Annotated[str, Text(120)] = "bancada-teacher",
    create_it: bool = False,
) -> Iterator[Progress | Result]:
    """Read a Modelfile with all its problems, create the model if asked, and count what its words cost."""
    found = read_modelfile(text)
    problems = rows.problem_table(found)
    facts: dict[str, object] = {"valid": found.is_valid, "problems": len(problems)}
    if not found.is_valid:
        yield Result(facts | {"with_tokens": None}, problems, rows.problem_notes(found))  # type: ignore[arg-type]
        return
    served = yield from serve(workbench, found.source if rows.is_library_name(found.source) else MODEL)
    if create_it and served.is_ollama:
        facts["created"] = yield from taking.created(workbench, name, found)
    costs, listings = yield from measured.modelfile_costs(served, found, question)
    facts |= {"with_tokens": costs["with"], "without_tokens": costs["without"], "engine": served.name}
    table = pd.DataFrame(costs.items(), columns=["part", "prompt_tokens"])
    notes = (
        *served.notes,
        *rows.problem_notes(found),
        *rows.cost_notes(found, create_it, served.is_ollama, served.model),
    )
    yield Result(facts, table, notes, listings=listings)  # type: ignore[arg-type]


@LAB.step(chart=charts.speeds, long=True)
def own_model(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = "smollm2-135m-instruct",
    format: Annotated[str, Choice(tuple(FORMATS))] = "Q4_K_M",
    quantized_by: Annotated[str, Choice(("llama.cpp", "ollama"))] = "llama.cpp",
    question: Annotated[str, Text(200)] = QUESTION,
) -> Iterator[Progress | Result]:
    """Bring a GGUF of your own into Ollama, or let it quantize, and put one question to both engines."""
    table, notes = yield from taking.own_into_ollama(workbench, model, format, quantized_by, question)
    answers = list(dict.fromkeys(table["answer"]))
    facts: Facts = {
        "same_answer": len(answers) == 1 if len(table) > 1 else None,
        "size_bytes": int(table["size_bytes"].iloc[-1]),
        "create_s": rows.number(table["create_s"].iloc[-1]),
        "decode_tokens_per_s": rows.number(table["tokens_per_s"].iloc[-1]),
    }
    yield Result(facts, table, notes)


@LAB.step(chart=charts.bytes_per_token, long=True)
def wire(
    workbench: Workbench,
    name: Annotated[str, Text(200)] = MODEL,
    prompt: Annotated[str, Text(2000)] = "Write one sentence about the sea.",
    max_tokens: Annotated[int, Range(4, 400, 4)] = 48,
) -> Iterator[Progress | Result]:
    """Send one question over every wire the server has, and read what really goes over it."""
    served = yield from serve(workbench, name)
    exchanges = yield from measured.exchanges(workbench, served, prompt, max_tokens)
    table = rows.wire_table(exchanges)
    facts: Facts = {
        "engine": served.name,
        "tokens_per_s": rows.number(table["tokens_per_s"].iloc[0]),
        "smallest_wire": str(table.loc[table["bytes_per_token"].idxmin(), "route"]),
        "envelope_percent": 100 * (1 - table["text_bytes"].sum() / table["answer_bytes"].sum()),
    }
    yield Result(facts, table, served.notes, listings=rows.wire_listings(exchanges))


@LAB.step(chart=charts.similarities, long=True)
def embed(
    workbench: Workbench,
    name: Annotated[str, Text(200)] = EMBEDDER,
    texts: Annotated[str, Text(4000)] = SENTENCES,
) -> Iterator[Progress | Result]:
    """Turn texts into vectors, and compare every pair."""
    lines = [line.strip() for line in texts.splitlines() if line.strip()][:12]
    found = yield from measured.embeddings(workbench, name, lines)
    table = rows.similarity_table(lines, found.vectors)
    others = table[table["first"] != table["second"]]
    closest = others.loc[others["similarity"].idxmax()] if len(others) else None
    facts: Facts = {
        "engine": found.engine,
        "embedding_length": len(found.vectors[0]),
        "took_s": found.seconds,
        "closest_pair": None if closest is None else f"{closest['first']} ↔ {closest['second']}",
        "lowest_similarity": float(others["similarity"].min()) if len(others) else None,
        "highest_similarity": float(others["similarity"].max()) if len(others) else None,
    }
    yield Result(facts, table, found.notes, more={"lines": tuple(lines)})


@LAB.step(chart=charts.different_answers, predict="different_answers", long=True)
def options(
    workbench: Workbench,
    name: Annotated[str, Text(200)] = MODEL,
    prompt: Annotated[str, Text(200)] = "Name an animal.",
    temperatures: Annotated[tuple[str, ...], Choice(("0", "0.2", "0.5", "0.8", "1.2", "1.6", "2"))] = (
        "0",
        "0.8",
        "1.6",
    ),
    top_p: Annotated[float, Range(0.05, 1, 0.05)] = 1.0,
    seed: Annotated[int, Range(0, 2**31 - 1, 1)] = 42,
    tries: Annotated[int, Range(2, 20, 1)] = 6,
) -> Iterator[Progress | Result]:
    """Ask the same again and again: with other seeds at every temperature, then with one seed."""
    served = yield from serve(workbench, name)
    table = yield from measured.tries(served, prompt, [float(one) for one in temperatures], top_p, seed, tries)
    free, fixed = table[~table["same_seed"]], table[table["same_seed"]]
    facts: Facts = {
        "different_answers": int(free[free["temperature"] == free["temperature"].max()]["answer"].nunique()),
        "tries": tries,
        "same_seed_same_answer": bool(fixed["answer"].nunique() == 1),
        "engine": served.name,
    }
    yield Result(facts, table, served.notes)


@LAB.step(chart=charts.cut, predict="counted_tokens", long=True)
def context(
    workbench: Workbench,
    name: Annotated[str, Text(200)] = MODEL,
    num_ctx: Annotated[int, Choice((256, 512, 1024, 2048))] = 512,
    code_word: Annotated[str, Text(40)] = "Mango",
) -> Iterator[Progress | Result]:
    """Send longer and longer texts that begin with a code word: what was sent, and what was counted?"""
    found = yield from measured.longer_and_longer(workbench, name, num_ctx, code_word)
    last = found.table.iloc[-1]
    facts: Facts = {
        "counted_tokens": int(last["counted_tokens"]),
        "sent_tokens": int(last["sent_tokens"]),
        "lost_tokens": 0 if last["refused"] else int(last["sent_tokens"] - last["counted_tokens"]),
        "refused": int(found.table["refused"].sum()),
        "engine": found.engine,
    }
    yield Result(facts, found.table, found.notes, more={"num_ctx": num_ctx})


@LAB.step(chart=charts.cold_and_warm, long=True)
def keep_alive(
    workbench: Workbench,
    name: Annotated[str, Text(200)] = MODEL,
    keep: Annotated[str, Choice(("0", "30", "5m", "-1"))] = "5m",
) -> Iterator[Progress | Result]:
    """Ask a cold model, a warm one, and one that was just let go; see what memory it holds meanwhile."""
    found = yield from measured.cold_and_warm(workbench, name, keep)
    load = found.table.set_index("ask")["load_s"]
    facts: Facts = {
        "cold_load_s": float(load["cold"]),
        "warm_load_s": float(load["warm"]),
        "held_bytes": found.held_bytes,
        "stays": found.stays,
        "engine": found.engine,
    }
    yield Result(facts, found.table, found.notes)


@LAB.step(chart=charts.caches_and_clients, predict="q8_0_cache_bytes", long=True)
def settings(
    workbench: Workbench,
    name: Annotated[str, Text(200)] = MODEL,
    context_tokens: Annotated[int, Choice((2048, 4096, 8192))] = 8192,
) -> Iterator[Progress | Result]:
    """Measure what the server's settings do: KV cache type and flash attention, then requests at once."""
    caches = yield from part_of(outcome(measured.caches(workbench, context_tokens)), 0, 2)
    served = yield from serve(workbench, name)
    prompts = [f"Write a story about the number {one}." for one in range(4)]
    clients = []
    for at, many in enumerate((1, 2, 4)):
        work = outcome(at_once(served.engine, served.model, prompts[:many], many, 48, **served.quiet))
        clients.append((many, (yield from part_of(work, 3 + at, 6))))
    table = rows.settings_table(caches, clients)
    measured_bytes = table.set_index("name")["cache_bytes"]
    facts: Facts = {
        **{f"{one}_cache_bytes": rows.number(measured_bytes[one]) for one in ("q8_0", "f16", "q4_0")},
        "one_tokens_per_s": rows.number(table.loc[table["name"] == "1", "tokens_per_s"].iloc[0]),
        "four_tokens_per_s": rows.number(table.loc[table["name"] == "4", "tokens_per_s"].iloc[0]),
        "engine": served.name,
    }
    yield Result(facts, table, (*served.notes, *rows.cache_notes(caches)))


@LAB.step(chart=charts.programs, long=True)
def snippets(workbench: Workbench) -> Iterator[Progress | Result]:
    """Write the question of step 8 in Python, JavaScript and cURL, and run each as it stands."""
    before = latest_run(wire, workbench, workbench.learner)
    asked = before.parameters if before else {one.name: one.default for one in wire.parameters}
    served = yield from serve(workbench, asked["name"])
    table, listings = yield from measured.programs(workbench, served, asked["prompt"], asked["max_tokens"])
    worked = table[table["worked"]]
    facts: Facts = {
        "programs_run": len(worked),
        "same_answer": worked["output"].nunique() == 1 if len(worked) > 1 else None,
        "engine": served.name,
    }
    yield Result(facts, table, (*served.notes, *rows.program_notes(table)), listings=listings)


@LAB.step(chart=charts.path, long=True)
def troubleshoot(
    workbench: Workbench,
    symptom: Annotated[str, Choice(tree.SYMPTOMS)] = "slow",
    name: Annotated[str, Text(200)] = MODEL,
    context_tokens: Annotated[int, Choice((2048, 4096, 8192, 32_768))] = 4096,
) -> Iterator[Progress | Result]:
    """Ask this machine one question after another, until the trouble has a name and a repair."""
    found = yield from tree.examine(workbench, symptom, name, context_tokens)
    table = pd.DataFrame([vars(one) for one in found.checks]).drop(columns=["parameters"])
    failed = [one for one in found.checks if one.fine is False]
    facts: Facts = {"questions": len(table), "first_trouble": failed[0].check if failed else None}
    yield Result(facts, table, (*found.notes, *tree.repairs(failed)))
