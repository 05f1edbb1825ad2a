"""The tables, notes and listings of lab 5, out of what was measured."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from lib.bench.parallel import Row
from lib.course.result import Facts, Listing, Note, note
from lib.foundry.calls import REHEARSALS, Rehearsal
from lib.foundry.cli import Cli
from lib.foundry.forms import FORMS, Called, Formed
from lib.foundry.trials import Answer, Reply

CHECKED_PATHS = ("/status", "/health", "/metrics", "/api/metrics")
# What older texts count for a word; the models' own tokenizers know nothing of it.
TOKENS_PER_WORD = 1.3


class Erratum(NamedTuple):
    """A line of older texts, what it is today, and which checks tell whether each exists, if any can."""

    old: str
    today: str
    check: str = ""
    check_today: str = ""


ERRATA = (
    Erratum("from foundry_local import …", "from foundry_local_sdk import …", "module", "sdk_module"),
    Erratum("foundry-local init", "not_needed"),
    Erratum("foundry-local models list --size", "foundry model list --variants"),
    Erratum("foundry-local models pull microsoft/phi-4-mini", "foundry model download phi-4-mini"),
    Erratum("foundry-local models test --benchmark", "own_client"),
    Erratum("foundry-local deploy --config", "sdk_in_app"),
    Erratum("foundry service start", "foundry server start"),
    Erratum("foundry model run phi-4-mini", "foundry run phi-4-mini"),
    Erratum("foundry model info phi-4-mini", "foundry model show phi-4-mini"),
    Erratum("microsoft/foundry-local:latest", "wheel_in_image"),
    Erratum('{"hardware": {"preferred": "gpu"}}', "model.select_variant()", "hardware", "select_variant"),
    Erratum("GET /api/metrics", "own_counters", "/api/metrics"),
    Erratum("GET /metrics", "own_counters", "/metrics"),
    Erratum("GET /health", "GET /status", "/health", "/status"),
    Erratum("model.gguf", "onnx_only", "gguf"),
    Erratum("manager.get_memory_usage()", "psutil.Process().memory_info()", "get_memory_usage", "psutil"),
    Erratum("manager.health_check()", "GET /status", "health_check", "/status"),
    Erratum("manager.get_inference_count()", "own_counters", "get_inference_count"),
    Erratum('ModelConfig(quantization="Q5_K_M")', "RequestOptions(search=…)", "model_config", "request_options"),
)


def errata(exists: Mapping[str, bool]) -> pd.DataFrame:
    """Every line with what this machine says of it: there, absent, or nothing where no program can tell."""
    return pd.DataFrame(
        [
            {
                "old": one.old,
                "checked": _found(exists.get(one.check)),
                "today": one.today,
                "checked_today": _found(exists.get(one.check_today)),
            }
            for one in ERRATA
        ]
    )


def install_notes(cli: Cli | None) -> tuple[Note, ...]:
    """How it is installed on a system like this one, and what of the command line is here."""
    system = platform.system()
    key = {"Linux": "install_linux", "Windows": "install_windows", "Darwin": "install_macos"}.get(system)
    notes = [note(key or "install_elsewhere")]
    if cli is None:
        return (*notes, note("no_cli"))
    return (*notes, note("cli_old" if cli.current is False else "cli", path=cli.path, version=cli.version or "?"))


def models_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """The models of both catalogs; sizes and licences where the catalog gives them."""
    return pd.DataFrame([{"catalog": name, **one} for name in ("local", "public") for one in found.get(name, ())])


def catalog_notes(facts: Facts) -> tuple[Note, ...]:
    """What the providers mean, and why the public catalog is not here."""
    notes = [] if facts["providers"] else [note("no_providers")]
    network = {"not_asked": "public_not_asked", "away": "public_away", "reached": "public_reached"}
    return (*notes, note("registered"), note(network[str(facts["network"])]))


def stages(raw: Sequence[Sequence[Any]]) -> pd.DataFrame:
    """Stage, when it was reached, how long it took, what was resident then, and the difference to the stage before."""
    table = pd.DataFrame(raw, columns=["stage", "at_s", "rss_bytes"])
    table.insert(2, "took_s", table["at_s"].diff().fillna(table["at_s"]))
    table["change_bytes"] = table["rss_bytes"].diff()
    return table


def load_notes(facts: Facts, counter: str) -> tuple[Note, ...]:
    """What loading takes beside the file, what the first answer takes, and who keeps what was freed."""
    notes = [note("peak_counter", counter=counter)]
    if facts["after_trim_bytes"] is None:
        return (*notes, note("no_trim"))
    return (*notes, note("trimmed", mib=_mib(facts["after_unload_bytes"]) - _mib(facts["after_trim_bytes"])))


def ways(by_sdk: Sequence[Answer], by_web: Sequence[Answer]) -> pd.DataFrame:
    """One row a round and way."""
    return pd.DataFrame(
        [
            {
                "way": way,
                "round": number,
                "first_s": one.ttft_s,
                "tokens_per_s": one.tokens_per_s,
                "prompt_tokens": one.prompt_tokens,
                "completion_tokens": one.completion_tokens,
                "duration_s": one.duration_s,
            }
            for way, answers in (("sdk", by_sdk), ("web", by_web))
            for number, one in enumerate(answers, 1)
        ]
    )


def chat_notes(by_sdk: Answer, by_web: Answer) -> tuple[Note, ...]:
    """Whether both ways said the same, and what words × 1.3 would have counted."""
    same = note("same_text" if by_sdk.text == by_web.text else "other_text")
    return (same, note("words_as_tokens", words=len(by_sdk.text.split()), tokens=by_sdk.completion_tokens))


def packed(values: Sequence[float]) -> tuple[str, ...]:
    """Numbers as a result keeps them for its chart."""
    return tuple(f"{one:.4f}" for one in values)


def guessed(words: int) -> int:
    """The tokens that older texts would guess."""
    return round(TOKENS_PER_WORD * words)


def lengths(raw: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row a length: counted tokens beside guessed ones, and what preflight said and took."""
    return pd.DataFrame(
        [
            {
                "words": one["words"],
                "guess_tokens": guessed(one["words"]),
                "counted_tokens": one["prompt_tokens"],
                "required_tokens": one["required_tokens"],
                "fits": one["fits"],
                "missing_tokens": one["deficit_tokens"],
                "preflight_ms": 1000 * one["preflight_s"],
            }
            for one in raw
        ]
    )


def budget_notes(facts: Facts) -> tuple[Note, ...]:
    """How far the guess is off, and that one word more was refused."""
    found, guess = _number(facts["longest_tokens"]), _number(facts["guess_tokens"])
    off = note(
        "guess_high" if guess >= found else "guess_low", percent=abs(100 * (guess / found - 1)) if found else 0.0
    )
    return (off, note("one_more_refused" if facts["refused"] else "one_more_taken"))


def forms(said: Sequence[Formed]) -> pd.DataFrame:
    """One row a form: how many answers there were, which share was JSON, which share valid, and the time of each."""
    table = []
    for form in FORMS:
        some = [one for one in said if one.form == form]
        table.append(
            {
                "form": form,
                "answers": len(some),
                "json_percent": 100 * sum(one.is_json for one in some) / len(some),
                "valid_percent": 100 * sum(one.is_valid for one in some) / len(some),
                "cut": sum(one.finish == "length" for one in some),
                "mean_s": sum(one.duration_s for one in some) / len(some),
            }
        )
    return pd.DataFrame(table)


def form_notes(said: Sequence[Formed]) -> tuple[Note, ...]:
    """That valid is not true, and what was not enforced."""
    strict = [one for one in said if one.form == "strict"]
    notes = [note("valid_is_not_true")]
    if not all(one.is_valid for one in strict):
        notes.insert(0, note("strict_not_enforced", valid=sum(one.is_valid for one in strict), answers=len(strict)))
    return tuple(notes)


def form_listings(said: Sequence[Formed]) -> tuple[Listing, ...]:
    """The first answer of each form, as it came."""
    firsts = {one.form: one for one in reversed(said)}
    return tuple(
        Listing(form, firsts[form].text, "json" if firsts[form].is_json else "text") for form in FORMS if form in firsts
    )


def calls(said: Sequence[Called]) -> pd.DataFrame:
    """One row a way and task."""
    return pd.DataFrame(
        [
            {
                "way": one.way,
                "question": one.task.question,
                "expected": f"{one.task.tool} {json.dumps(dict(one.task.arguments))}",
                "answer": _short(one.answer or _said(one.refusal)),
                "called": one.called,
                "right_tool": one.right_tool,
                "right_arguments": one.right_arguments,
            }
            for one in said
        ]
    )


def tool_notes(said: Sequence[Called]) -> tuple[Note, ...]:
    """Why native calling did not work, if it was refused; and what blind choice would reach."""
    refused = [one for one in said if one.refusal]
    notes = [note("native_refused", count=len(refused), why=_said(refused[0].refusal))] if refused else []
    return (*notes, note("blind_choice"))


def sessions(found: Sequence[Mapping[str, Any]], weights_bytes: int) -> pd.DataFrame:
    """One row a context and number of sessions that wrote at once: computed from the files, and measured."""
    table = []
    for one in found:
        if one["in_turn"]:
            continue
        for row in one["rows"]:
            computed = weights_bytes + row["sessions"] * one["cache_bytes"]
            table.append(
                {
                    "context_tokens": one["context_tokens"],
                    "sessions": row["sessions"],
                    "computed_bytes": computed,
                    "measured_bytes": row["measured_bytes"],
                    "difference_bytes": row["measured_bytes"] - computed,
                    "loaded_bytes": one["loaded_bytes"],
                    "cache_bytes": one["cache_bytes"],
                }
            )
    return pd.DataFrame(table)


def extra_bytes(at: pd.DataFrame) -> int:
    """What one more session took: the rise from the fewest to the most of one context, for each."""
    few, many = at.loc[at["sessions"].idxmin()], at.loc[at["sessions"].idxmax()]
    return int((many["measured_bytes"] - few["measured_bytes"]) / (many["sessions"] - few["sessions"]))


def session_notes(facts: Facts) -> tuple[Note, ...]:
    """Where the difference lies, and that sessions which take turns share one cache's room."""
    loaded = _mib(facts["loaded_bytes"])
    return (
        note("offset_not_slope", loaded=loaded, weights=_mib(facts["weights_bytes"])),
        note("in_turn", mib=_mib(facts["in_turn_bytes"]), at_once=_mib(facts["at_once_bytes"])),
        note("trimmed_between"),
    )


def clients(measured: Mapping[int, Sequence[Row]]) -> pd.DataFrame:
    """One row a client of every round."""
    return pd.DataFrame(
        [
            {
                "clients": many,
                "client": one.client,
                "first_s": one.ttft_s,
                "tokens_per_s": one.tokens_per_s,
                "completion_tokens": one.completion_tokens,
                "end_s": one.end_s,
            }
            for many, got in measured.items()
            for one in got
        ]
    )


def client_notes(measured: Mapping[int, Sequence[Row]]) -> tuple[Note, ...]:
    """Whether the greedy answers were the same, however many asked."""
    texts = {one.text for got in measured.values() for one in got}
    return (note("speeds_meant"), note("same_answers" if len(texts) == 1 else "other_answers", texts=len(texts)))


def routes(said: Sequence[Reply]) -> pd.DataFrame:
    """One row a route: what it answered, when, and how that begins."""
    return pd.DataFrame(
        [
            {
                "route": f"{one.method} {one.path}",
                "status": one.status,
                "took_s": one.took_s,
                "begins": _short(one.text, 60) or "–",
            }
            for one in said
        ]
    )


def rehearsals(found: Sequence[Rehearsal]) -> pd.DataFrame:
    """One row a rehearsal."""
    return pd.DataFrame(
        [
            {
                "rehearsal": one.name,
                "in_ci": one.in_ci,
                "catalog": "public" if one.public else "local",
                "calls": len(one.calls),
                "hosts": ", ".join(sorted({call.host for call in one.calls})) or None,
                "answered": bool(one.text),
                "ready_s": one.ready_s,
            }
            for one in found
        ]
    )


def call_notes(found: Sequence[Rehearsal]) -> tuple[Note, ...]:
    """Who was called in each rehearsal, and what a recorder cannot see."""
    notes = []
    for name in REHEARSALS:
        one = next(each for each in found if each.name == name)
        hosts = ", ".join(sorted({call.host for call in one.calls}))
        notes.append(note(f"called_{name}", hosts=hosts, calls=len(one.calls)) if hosts else note(f"silent_{name}"))
        if one.public_models and not one.calls:
            notes.append(note("recorder_blind"))
    return (*notes, note("recorder_sees"))


def _found(there: bool | None) -> str | None:
    return None if there is None else "there" if there else "absent"


def _said(refusal: str) -> str:
    """What the SDK has to say, without the place in its own source that it puts in front."""
    return refusal.rpartition(") ")[2] or refusal


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _mib(value: object) -> float:
    return _number(value) / 2**20


def _short(text: str, most: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"
