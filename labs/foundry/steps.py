"""Lab 5, Foundry Local: a model inside your own app. What does it cost, what does it keep, and whom does it call?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

from labs.foundry import charts, rows
from lib.bench.parallel import at_once, total_tokens_per_s
from lib.course.lab import Lab
from lib.course.parameters import Choice, ModelName, Text
from lib.course.result import Facts, Listing, Progress, Result, note, outcome, part_of
from lib.engines import snippets
from lib.foundry import calls, cli, forms, trials
from lib.foundry.process import trial
from lib.workbench import Workbench

LAB = Lab.beside(__file__, part=3, number=5, minutes=60)
MODEL = "smollm2-135m-instruct"
QUESTION = "What is the capital of France?"
STORY = "Write a long story about a lighthouse keeper who repairs clocks."
SENTENCE = "The keeper of the lighthouse repairs old clocks and writes down every storm."
CITY = "Describe the city of Paris as JSON with the keys city, country and population."
LENGTHS = (25, 50, 100, 200, 400, 800, 1200, 1600, 2000, 2400)
CONTEXTS = (512, 1024, 2048)
SESSIONS = (1, 2, 3)
CLIENTS = (1, 2, 4)


@LAB.step()
def install(workbench: Workbench) -> Iterator[Progress | Result]:
    """See what of Foundry Local is here: the SDK, its native library, the CLI; and check what older texts say."""
    command = cli.find_cli()
    found = yield from trials.look(workbench, rows.CHECKED_PATHS)
    facts: Facts = {
        "sdk": found["sdk"],
        "library": found["library"],
        "library_bytes": found["library_bytes"],
        "onnxruntime": found["onnxruntime"],
        "genai": found["genai"],
        "system": cli.system(),
        "glibc": found["glibc"],
        "wheel_made": cli.has_wheel(),
        "cli": command.version if command else None,
        "cli_current": command.current if command else None,
    }
    yield Result(facts, rows.errata(found["exists"]), rows.install_notes(command))


@LAB.step(chart=charts.times, long=True)
def catalog(workbench: Workbench, model: Annotated[str, ModelName()] = MODEL) -> Iterator[Progress | Result]:
    """List execution providers, the local catalog with your model in it and, with a network, the public one."""
    own = yield from part_of(outcome(trials.ensure_own(workbench, model)), 0, 2)
    asked, reached, reach_s = not workbench.settings.offline, False, None
    if asked:
        reached, reach_s = trials.reach()
    request = {"path": str(own.path), "public": reached}
    found = yield from part_of(outcome(trial(workbench, "catalog", request, model)), 1, 2)
    facts: Facts = {
        "providers": tuple(name for name, _ in found["providers"]),
        "network": "not_asked" if not asked else "reached" if reached else "away",
        "local_models": len(found["local"]),
        "public_models": len(found["public"]) if reached else None,
        "discover_ms": 1000 * found["discover_s"],
        "local_ms": 1000 * found["local_s"],
        "reach_s": reach_s,
        "public_s": found.get("public_s"),
    }
    yield Result(facts, rows.models_table(found), rows.catalog_notes(facts))


@LAB.step(chart=charts.memory, predict="peak_bytes", long=True)
def load(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    prompt: Annotated[str, Text(400)] = QUESTION,
) -> Iterator[Progress | Result]:
    """Follow a process from its start to memory given back: seconds and resident bytes at every stage."""
    own = yield from part_of(outcome(trials.ensure_own(workbench, model)), 0, 2)
    request = {"path": str(own.path), "prompt": prompt, "max_tokens": 32}
    found = yield from part_of(outcome(trial(workbench, "load", request, model)), 1, 2)
    table = rows.stages(found["stages"])
    at = table.set_index("stage")
    facts: Facts = {
        "peak_bytes": found["peak_bytes"],
        "init_s": float(at["took_s"]["initialise"]),
        "load_s": float(at["took_s"]["load_model"]),
        "weights_bytes": own.weights_bytes,
        "cache_bytes": own.shape.cache_bytes,
        "loaded_bytes": int(at["rss_bytes"]["load_model"]),
        "after_unload_bytes": int(at["rss_bytes"]["unload"]),
        "after_trim_bytes": int(at["rss_bytes"]["trim"]) if "trim" in at.index else None,
    }
    yield Result(facts, table, rows.load_notes(facts, found["counter"]))


@LAB.step(chart=charts.arrivals, predict="ttft_s", long=True)
def chat(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    prompt: Annotated[str, Text(400)] = QUESTION,
    max_tokens: Annotated[int, Choice((16, 32, 48, 96))] = 48,
) -> Iterator[Progress | Result]:
    """Ask the same question in process, through the SDK, and over HTTP, through its web service."""
    own = yield from part_of(outcome(trials.ensure_own(workbench, model)), 0, 3)
    work = trials.both_ways(workbench, own, prompt, max_tokens)
    ways = yield from part_of(outcome(work), 1, 2)
    by_sdk, by_web = (trials.typical(one) for one in ways)
    facts: Facts = {
        "ttft_s": by_sdk.ttft_s,
        "web_ttft_s": by_web.ttft_s,
        "sdk_tokens_per_s": trials.median_speed(ways[0]),
        "web_tokens_per_s": trials.median_speed(ways[1]),
        "same_text": by_sdk.text == by_web.text,
        "prompt_tokens": by_sdk.prompt_tokens,
        "completion_tokens": by_sdk.completion_tokens,
    }
    more = {name: rows.packed(one.arrivals_s) for name, one in (("sdk", by_sdk), ("web", by_web))}
    texts = (Listing("answer_sdk", by_sdk.text), Listing("answer_web", by_web.text))
    yield Result(facts, rows.ways(*ways), rows.chat_notes(by_sdk, by_web), more, texts)


@LAB.step(chart=charts.budgets, predict="longest_tokens", long=True)
def budget(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    text: Annotated[str, Text(400)] = SENTENCE,
    reserve_tokens: Annotated[int, Choice((64, 128, 256, 512, 1024))] = 256,
) -> Iterator[Progress | Result]:
    """Ask before you send: which length still fits, what that costs, and what happens to a prompt that does not."""
    own = yield from part_of(outcome(trials.ensure_own(workbench, model)), 0, 2)
    work = trials.budget(workbench, own, text if text.split() else SENTENCE, LENGTHS, reserve_tokens)
    found = yield from part_of(outcome(work), 1, 2)
    table, longest = rows.lengths(found["rows"]), found["longest"]
    facts: Facts = {
        "longest_tokens": longest["prompt_tokens"],
        "longest_words": longest["words"],
        "guess_tokens": rows.guessed(longest["words"]),
        "context_tokens": longest["context_limit_tokens"],
        "reserve_tokens": reserve_tokens,
        "preflight_ms": float(table["preflight_ms"].median()),
        "refused": found["sent"]["refused"],
        "refusal_ms": 1000 * found["sent"]["seconds"],
    }
    refusal = Listing("refusal", found["sent"]["why"] or "–")
    yield Result(facts, table, rows.budget_notes(facts), listings=(refusal,))


@LAB.step(chart=charts.forms, predict="strict_valid_percent", long=True)
def structured(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    prompt: Annotated[str, Text(400)] = CITY,
    seeds: Annotated[int, Choice((3, 5, 10))] = 3,
) -> Iterator[Progress | Result]:
    """Ask for JSON of a given form in six ways, at temperature 1, and count the answers that the schema allows."""
    own = yield from part_of(outcome(trials.ensure_own(workbench, model)), 0, 2)
    said = yield from part_of(outcome(forms.ask_forms(workbench, own, prompt, seeds)), 1, 2)
    table = rows.forms(said)
    shares = table.set_index("form")["valid_percent"]
    facts: Facts = {f"{form}_valid_percent": float(shares[form]) for form in forms.FORMS}
    yield Result(facts, table, rows.form_notes(said), listings=rows.form_listings(said))


@LAB.step(chart=charts.tools, long=True)
def tools(workbench: Workbench, model: Annotated[str, ModelName()] = MODEL) -> Iterator[Progress | Result]:
    """Eight small tasks with known right calls: by native tool calling, by words alone, and held to a schema."""
    own = yield from part_of(outcome(trials.ensure_own(workbench, model)), 0, 2)
    said = yield from part_of(outcome(forms.ask_tools(workbench, own)), 1, 2)
    table = rows.calls(said)
    facts: Facts = {
        f"{way}_{what}_percent": 100 * float(table[table["way"] == way][what].mean())
        for way in forms.WAYS
        for what in ("called", "right_tool", "right_arguments")
    }
    yield Result(facts, table, rows.tool_notes(said))


@LAB.step(chart=charts.sessions, predict="extra_bytes", long=True)
def sessions(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    contexts: Annotated[tuple[int, ...], Choice(CONTEXTS)] = CONTEXTS,
) -> Iterator[Progress | Result]:
    """Let 1, 2 and 3 sessions write at once in each context: computed memory beside measured memory."""
    own = yield from part_of(outcome(trials.ensure_own(workbench, model, max(SESSIONS))), 0, 2)
    work = trials.sessions_in_memory(workbench, own, sorted(contexts), SESSIONS, STORY)
    found = yield from part_of(outcome(work), 1, 2)
    table = rows.sessions(found, own.weights_bytes)
    at = table[table["context_tokens"] == max(contexts)]
    facts: Facts = {
        "extra_bytes": rows.extra_bytes(at),
        "cache_bytes": int(found[-1]["cache_bytes"]),
        "context_tokens": max(contexts),
        "weights_bytes": own.weights_bytes,
        "loaded_bytes": int(at["loaded_bytes"].iloc[0]),
        "at_once_bytes": int(at["measured_bytes"].max()),
        "in_turn_bytes": int(found[-1]["rows"][0]["measured_bytes"]),
    }
    yield Result(facts, table, rows.session_notes(facts))


@LAB.step(chart=charts.clients, predict="four_tokens_per_s", long=True)
def concurrency(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    prompt: Annotated[str, Text(400)] = STORY,
    max_tokens: Annotated[int, Choice((16, 32, 64))] = 32,
) -> Iterator[Progress | Result]:
    """Let one, two and four clients ask the web service at the same moment: speed in all and for each, first tokens."""
    own = yield from part_of(outcome(trials.ensure_own(workbench, model, max(CLIENTS))), 0, 5)
    engine = yield from part_of(outcome(trials.serve(workbench, own)), 1, 5)
    try:
        list(at_once(engine, own.served, [prompt], 1, 8))  # the first answer after loading takes longer
        measured = {}
        for done, many in enumerate(CLIENTS, 2):
            work = at_once(engine, own.served, [prompt], many, max_tokens)
            measured[many] = yield from part_of(outcome(work), done, 5)
    finally:
        engine.release(own.served)
    names = dict(zip(CLIENTS, ("one", "two", "four"), strict=True))
    facts: Facts = {f"{names[many]}_tokens_per_s": total_tokens_per_s(got) for many, got in measured.items()}
    firsts = {f"{names[many]}_ttft_s": max(one.ttft_s for one in got) for many, got in measured.items()}
    yield Result({**facts, **firsts}, rows.clients(measured), rows.client_notes(measured))


@LAB.step(chart=charts.routes, long=True)
def web(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    prompt: Annotated[str, Text(400)] = QUESTION,
) -> Iterator[Progress | Result]:
    """Ask every route of the web service, without a key, and see what answers."""
    own = yield from part_of(outcome(trials.ensure_own(workbench, model)), 0, 3)
    engine = yield from part_of(outcome(trials.serve(workbench, own)), 1, 3)
    try:
        yield Progress(2, 3, "ask_routes")
        address = engine.status().address or ""
        said = trials.ask_routes(engine, own, prompt)
    finally:
        engine.release(own.served)
    options = {"max_tokens": 16, "temperature": 0}
    request = snippets.ChatRequest(f"{address}/v1", own.served, [{"role": "user", "content": prompt}], options)
    facts: Facts = {
        "there": sum(one.status == 200 for one in said),
        "not_found": sum(one.status == 404 for one in said),
        "asks_for_key": any(one.status in (401, 403) for one in said),
        "address": address,
        "served": own.served,
    }
    texts = (Listing("python", snippets.python(request), "python"), Listing("curl", snippets.curl(request), "bash"))
    notes = (note("stopped"),) if facts["asks_for_key"] else (note("no_key"), note("stopped"))
    yield Result(facts, rows.routes(said), notes, listings=texts)


@LAB.step(chart=charts.calls, predict="calls_with_ci", long=True)
def offline(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    prompt: Annotated[str, Text(400)] = QUESTION,
) -> Iterator[Progress | Result]:
    """Rehearse a day without a network three times, behind a recorder that writes down who is called and refuses."""
    own = yield from part_of(outcome(trials.ensure_own(workbench, model, processes=len(calls.REHEARSALS))), 0, 2)
    found = yield from part_of(outcome(calls.rehearse(workbench, own, prompt)), 1, 2)
    by_name = {one.name: one for one in found}
    facts: Facts = {
        "calls_with_ci": len(by_name["ci"].calls),
        "calls_with_setting": len(by_name["setting"].calls),
        "calls_with_public": len(by_name["ci_public"].calls),
        "hosts": tuple(sorted({call.host for one in found for call in one.calls})),
        "answered_offline": all(one.text for one in found),
        "waited_s": calls.WAIT_S,
    }
    more = {one.name: tuple(f"{call.at_s:.3f} {call.host}" for call in one.calls) for one in found}
    yield Result(facts, rows.rehearsals(found), rows.call_notes(found), more)
