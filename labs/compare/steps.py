"""Lab 6, compare: which engine, for whom? One harness, every engine, an honest race."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import pandas as pd

from labs.compare import advice, charts, rows, scenario_rows, taking
from lib.bench.burst import bursts
from lib.bench.contenders import CONTENDERS
from lib.bench.load import Target, closed_loop, run_load
from lib.bench.metrics import Bounds
from lib.bench.race import Plan
from lib.bench.race import race as run_race
from lib.bench.saturation import saturate
from lib.bench.tokens import ensure_counter
from lib.course.export import as_csv, as_json
from lib.course.lab import Lab
from lib.course.parameters import Choice, ModelName, Range, Text
from lib.course.result import Facts, Listing, Progress, Result, growing, note, outcome, part_of
from lib.course.run import latest_run
from lib.errors import NotMeasured
from lib.models.bandwidth import measure_bandwidth
from lib.vllm import scenarios as known
from lib.vllm.trials import judge, judge_old_names, trial_of
from lib.workbench import Workbench

LAB = Lab.beside(__file__, part=3, number=6, minutes=60)
MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France?"
PROMPTS = (
    "Write a long story about a lighthouse keeper who repairs clocks.\n"
    "Explain step by step how bread is made.\n"
    "Describe a walk through an old city in the rain.\n"
    "Tell the history of the bicycle."
)
SYSTEM = (
    "You are the friendly tutor of a workshop on small language models. Answer in plain words, in a few sentences. "
    "If a question is unclear, say what you assume. Never invent figures, sources or names."
)
QUICK = ("embedded", "embedded-f16", "onnx")
RACERS = ("embedded", "onnx")
# A small thinking time between two questions of a learner who is reading.
THINK_S = 30


@LAB.step(chart=charts.arrivals, predict="first_ttft_s", long=True)
def one_prompt(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    engines: Annotated[tuple[str, ...], Choice(CONTENDERS)] = QUICK,
    prompt: Annotated[str, Text(400)] = QUESTION,
    max_tokens: Annotated[int, Choice((16, 32, 64))] = 32,
) -> Iterator[Progress | Result]:
    """Put one prompt to several engines and read what goes over each wire."""
    made = yield from part_of(outcome(taking.ready(workbench, engines, model, 1)), 0, 2)
    work = taking.speak_all(made.contenders, prompt, max_tokens)
    yield from growing(work, lambda heard: rows.spoken_result(heard, made.notes), 0.5)


@LAB.step(chart=charts.questions, predict="alone_tokens_per_s", long=True)
def race(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    engines: Annotated[tuple[str, ...], Choice(CONTENDERS)] = RACERS,
    prompts: Annotated[str, Text(2000)] = PROMPTS,
    rounds: Annotated[int, Range(1, 10, 1)] = 3,
    max_tokens: Annotated[int, Choice((16, 32, 48, 96))] = 32,
) -> Iterator[Progress | Result]:
    """Race the engines round by round, alone and under a class, and answer four questions."""
    count = yield from part_of(outcome(ensure_counter(workbench, model)), 0, 8)
    made = yield from part_of(outcome(taking.ready(workbench, engines, model, max(taking.PARALLEL))), 1, 8)
    plan = Plan([one for one in prompts.splitlines() if one.strip()] or [QUESTION], taking.PARALLEL, rounds, max_tokens)
    work = run_race(made.contenders, plan, count)
    yield from growing(work, lambda entries: rows.race_result(entries, made.notes), 0.25)


@LAB.step(chart=charts.roofline, predict="best_reached_percent", long=True)
def roofline(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    engines: Annotated[tuple[str, ...], Choice(CONTENDERS)] = QUICK,
    rounds: Annotated[int, Range(1, 10, 1)] = 3,
) -> Iterator[Progress | Result]:
    """Measure how fast this machine reads memory, and how near to that ceiling each engine decodes."""
    points = yield from part_of(measure_bandwidth(), 0, 4)
    made = yield from part_of(outcome(taking.ready(workbench, engines, model, 1)), 1, 4)
    work = run_race(made.contenders, Plan(PROMPTS.splitlines(), (1,), rounds))
    yield from growing(work, lambda entries: rows.roofline_result(entries, points, made.notes), 0.5)


@LAB.step(chart=charts.batching, predict="sixteen_tokens_per_s", long=True)
def vllm(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    sequences: Annotated[int, Choice((1, 4, 16, 64))] = 16,
    max_tokens: Annotated[int, Choice((16, 32, 48, 96))] = 32,
) -> Iterator[Progress | Result]:
    """Start vLLM, ask for health and models, chat with 1, 4 and 16 clients, and read its own metrics meanwhile."""
    yield from part_of(outcome(ensure_counter(workbench, model)), 0, 4)
    work = taking.batched(workbench, model, sequences, PROMPTS.splitlines(), max_tokens)
    yield from growing(work, rows.batching_result, 0.25)


@LAB.step(chart=charts.scenarios, predict="unchanged_options", long=True)
def scenarios(
    workbench: Workbench,
    scenario: Annotated[str, Choice(tuple(known.SCENARIOS))] = "production_low",
) -> Iterator[Progress | Result]:
    """Write vLLM's command line for five situations, and let its own parser check each; read one option by option."""
    wanted, chosen = list(known.SCENARIOS.values()), known.SCENARIOS[scenario]
    judged = yield from part_of(outcome(judge(workbench, [trial_of(one) for one in wanted])))
    answer = judged.answers[wanted.index(chosen)]
    card = judged.cards[0]
    table = scenario_rows.option_table(judged, answer, chosen, card)
    facts: Facts = {
        "unchanged_options": int((~table["changed"]).sum()),
        "options": len(table),
        "accepted": sum(one.accepted for one in judged.answers),
        "scenarios": len(wanted),
        "gpus": known.needs(chosen).gpus,
        "most_cache_tokens": known.needs(chosen).most_cache_tokens,
        "vllm_version": judged.version,
        "card": f"{card.name}, {card.memory_gib} GiB",
    }
    model = known.model_for(chosen)
    texts = (
        Listing("command", known.command(chosen, model), "bash"),
        Listing("config", known.config_yaml(chosen, model), "yaml"),
    )
    more = scenario_rows.packed(scenario_rows.needs_table(wanted))
    notes = (note("usual_on", card=facts["card"]), *scenario_rows.need_notes(chosen))
    yield Result(facts, table, notes, more, texts)


@LAB.step(predict="refused", long=True)
def old_names(workbench: Workbench) -> Iterator[Progress | Result]:
    """Put the option names of older texts to today's vLLM, and read what it says."""
    table = scenario_rows.old_names_table((yield from part_of(outcome(judge_old_names(workbench)))))
    facts: Facts = {fate: int((table["fate"] == fate).sum()) for fate in ("refused", "ignored", "taken")}
    yield Result(facts, table)


@LAB.step(chart=charts.saturation, predict="learners", long=True)
def saturation(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    engine: Annotated[str, Choice(CONTENDERS)] = "embedded",
    slots: Annotated[int, Choice((1, 4, 16, 30))] = 4,
    max_tokens: Annotated[int, Choice((16, 32, 48, 96))] = 32,
    requests: Annotated[int, Range(8, 240, 8)] = 32,
    ttft_bound_s: Annotated[float, Range(0.1, 30, 0.1)] = 2.0,
    think_s: Annotated[int, Range(1, 600, 1)] = THINK_S,
    seed: Annotated[int, Range(0, 1000, 1)] = 0,
) -> Iterator[Progress | Result]:
    """Let requests arrive ever faster, and find where the wait for the first token gets out of hand."""
    count = yield from part_of(outcome(ensure_counter(workbench, model)), 0, 8)
    made = yield from part_of(outcome(taking.ready(workbench, (engine,), model, slots)), 1, 8)
    one = made.contenders[0]
    running = one.make()
    try:
        yield from part_of(outcome(taking.ensured(running, one.model)), 1, 4)
        target = Target(running, one.model, one.options, name=one.id)
        yield from run_load(target, closed_loop(1), [QUESTION], 8)
        at_a_time = one.slots or slots
        work = saturate(
            target, at_a_time, PROMPTS.splitlines(), max_tokens, requests, Bounds(ttft_bound_s), count, seed
        )
        yield from growing(work, lambda found: rows.saturated(found, ttft_bound_s, think_s, at_a_time), 0.5)
    finally:
        running.release(one.model)


@LAB.step(chart=charts.burst, predict="class_ttft_p95_s", long=True)
def burst(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    learners: Annotated[int, Choice((8, 16, 30))] = 30,
    max_tokens: Annotated[int, Choice((16, 32, 48))] = 48,
    rounds: Annotated[int, Range(1, 10, 1)] = 3,
) -> Iterator[Progress | Result]:
    """Let a class ask at the same moment: four slots as usual, then a warm slot for every learner."""
    count = yield from part_of(outcome(ensure_counter(workbench, model)), 0, 8)
    work = bursts(workbench, model, learners, SYSTEM, PROMPTS.splitlines(), max_tokens, rounds, count)
    yield from growing(work, rows.burst_result, 0.125)


@LAB.step(chart=charts.choice)
def recommend(
    workbench: Workbench,
    goal: Annotated[str, Choice(tuple(advice.MATERIAL))] = "throughput",
    learners: Annotated[int, Choice(taking.PARALLEL)] = 16,
    memory_mib: Annotated[int, Range(128, 1_048_576, 64)] = 2048,
    ttft_bound_s: Annotated[float, Range(0.1, 60, 0.1)] = 2.0,
) -> Result:
    """Say what you need, and read whom your own race names, beside what the courses' table says."""
    run = latest_run(race, workbench, workbench.learner, whole=True)
    if run is None or run.result.table is None or not len(rows.measured(run.result.table)):
        raise NotMeasured(step=race.key)
    wishes = advice.Wishes(goal, learners, memory_mib * advice.MIB, ttft_bound_s)
    table = advice.advice_table(run.result.table, wishes)
    facts = advice.advice_facts(table, wishes, advice.level(run.result.table, learners))
    dead = advice.dead_in(run.result.table)
    more = {"memory_bytes": str(wishes.memory_bytes)}
    partial = (note("from_partial"),) if run.result.partial else ()
    return Result(facts, table, (*partial, *advice.advice_notes(table, wishes, facts, dead)), more)


@LAB.step(chart=charts.taken)
def take_along(workbench: Workbench) -> Result:
    """Gather your newest run card of every step, as JSON and CSV, and learn how to make a page of them."""
    words = LAB.words(workbench.language)
    others = [one for one in LAB.steps.values() if one.id != "take_along"]
    runs = [run for one in others if (run := latest_run(one, workbench, workbench.learner, whole=True))]
    if not runs:
        raise NotMeasured(step=race.key)
    as_text, as_table = as_json(runs, words), as_csv(runs)
    facts: Facts = {
        "cards": len(runs),
        "json_bytes": len(as_text.encode()),
        "csv_bytes": len(as_table.encode()),
    }
    table = pd.DataFrame(
        {
            "step": [run.step.id for run in runs],
            "finished_at": [f"{run.finished_at:%Y-%m-%d %H:%M:%S}" for run in runs],
            "took_s": [run.duration_s for run in runs],
            "partial": [run.result.partial for run in runs],
        }
    )
    notes = (note("html_by_button", command=f"python -m lib.cli export --lab {LAB.id} --as html"),)
    texts = (Listing("json", as_text, "json"), Listing("csv", as_table))
    return Result(facts, table, notes, listings=texts)
