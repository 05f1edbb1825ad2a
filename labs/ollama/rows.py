"""The tables, notes and listings of lab 4, out of what was found."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from labs.ollama.measured import Cache
from labs.ollama.served import until
from labs.ollama.taking import Plan
from lib.bench.parallel import Row, total_tokens_per_s
from lib.course.result import Facts, Listing, Note, note
from lib.engines.wire import Exchange, piece_of
from lib.errors import EngineRefused
from lib.gguf.formats import FORMATS
from lib.gguf.header import read_header
from lib.models.catalog import Model
from lib.models.memory import Shape, nominal_tensors
from lib.ollama import models as api
from lib.ollama.modelfile import Modelfile, Problem
from lib.ollama.names import LibraryName, forecast_bytes, known_model, meant, parameters_in, take_apart
from lib.workbench import Workbench

_MODEL_COLUMNS = ["name", "size_bytes", "loaded_bytes", "quantization", "parameter_size", "until"]
SHOWN_CHARACTERS = 4000
SHOWN_LINES = 3
FOR_EVER = "∞"
# Formats whose finer types nominal_tensors knows.
_SHAPED = ("Q4_0", "Q4_K_M", "Q5_K", "Q5_1", "Q6_K", "Q8_0", "F16")


def forecast_table(workbench: Workbench, name: LibraryName) -> tuple[pd.DataFrame, tuple[Note, ...]]:
    """The size of the file in every format: by the formula, and from the model's shape where the catalog knows it."""
    model = known_model(name)
    parameters = model.parameters if model else parameters_in(name.size)
    if other := meant(name):
        return pd.DataFrame(), (note("meant", name=name.short, other=other),)
    if not parameters:
        return pd.DataFrame(), (note("unknown_size", name=name.short),)
    rows = [(one, forecast_bytes(parameters, one), _shaped_bytes(model, one) if model else None) for one in FORMATS]
    table = pd.DataFrame(rows, columns=["format", "formula_bytes", "shaped_bytes"])
    notes = [note("counted_by", parameters=parameters, name=model.name if model else name.size)]
    if model and (here := next((one for one in workbench.models.sources() if one.id == model.id), None)):
        notes.append(note("file_here", mib=here.size_bytes / 2**20, file=here.path.name))
    return table, tuple(notes)


def forecast_of(table: pd.DataFrame, format: str) -> int | None:
    """The forecast for one format; None where there is none."""
    return None if table.empty else int(table.set_index("format")["formula_bytes"][format])


def _shaped_bytes(model: Model, format: str) -> int | None:
    """The tensors of a llama of the model's shape, with the finer types that llama.cpp gives some of them."""
    named = {"Q5_K_S": "Q5_K"}.get(format, format)
    if not model.has_shape or named not in _SHAPED:
        return None
    assert model.layers and model.embedding_length and model.feed_forward_length
    assert model.kv_heads and model.head_size and model.heads and model.vocabulary
    shape = Shape(
        model.layers,
        model.embedding_length,
        model.feed_forward_length,
        (model.kv_heads,) * model.layers,
        model.head_size,
        model.head_size,
        model.vocabulary,
        model.vocabulary,
    )
    tensors = nominal_tensors(shape, model.heads, bool(model.tied_embeddings), named)
    return sum(one.size_bytes for one in tensors)


def pull_notes(table: pd.DataFrame) -> tuple[Note, ...]:
    """Whether anything had to be fetched, and whether a download went on where it had stopped."""
    found, whole = table["found_bytes"], table["size_bytes"]
    if (found == whole).all():
        return (note("all_here"),)
    partly = table[(found > 0) & (found < whole)]
    if len(partly):
        return (note("resumed", mib=float(partly["found_bytes"].sum()) / 2**20),)
    kept = int((found == whole).sum())
    return (note("updated", kept=kept, fetched=len(table) - kept),) if kept else (note("pulled"),)


def ollama_models(host: str, name: str) -> tuple[pd.DataFrame, Facts, tuple[Listing, ...]]:
    """What is on the disk and in memory, and what the named model brings; UnknownModel if there are others."""
    models, loaded = api.installed(host), {one.name: one for one in api.loaded(host)}
    rows = [
        (
            one.name,
            one.size_bytes,
            loaded[one.name].size_bytes if one.name in loaded else None,
            one.quantization,
            one.parameters,
            until(loaded[one.name].until) or FOR_EVER if one.name in loaded else None,
        )
        for one in models
    ]
    table = pd.DataFrame(rows, columns=_MODEL_COLUMNS)
    facts: Facts = {
        "models": len(models),
        "disk_bytes": int(table["size_bytes"].sum()),
        "loaded_bytes": int(table["loaded_bytes"].sum()),
    }
    if not models:
        return table, facts, ()
    shown = api.details(host, take_apart(name).short)
    facts = {**facts, "context_tokens": shown.context_tokens, "capabilities": shown.capabilities}
    texts = {"template": shown.template, "parameters": shown.parameters, "licence": shown.licence}
    return table, facts, _listed(texts | {"modelfile": shown.modelfile})


def own_models(workbench: Workbench) -> tuple[pd.DataFrame, Facts, tuple[Listing, ...]]:
    """The GGUF files that are here, and what the default one brings in its header."""
    status, models = workbench.engine("embedded").status(), workbench.models.local()
    held = {status.model: status.memory_bytes}
    rows = [(one.id, one.size_bytes, held.get(one.id), None, None, None) for one in models]
    table = pd.DataFrame(rows, columns=_MODEL_COLUMNS)
    facts: Facts = {"models": len(models), "disk_bytes": int(table["size_bytes"].sum())}
    default = next((one for one in models if one.id == workbench.settings.default_model), None)
    if default is None:
        return table, facts, ()
    known = read_header(default.path).metadata
    lengths = [value for key, value in known.items() if key.endswith(".context_length")]
    texts = {
        "template": str(known.get("tokenizer.chat_template", "")),
        "licence": str(known.get("general.license", "")),
    }
    return table, {**facts, "context_tokens": int(str(lengths[0])) if lengths else None}, _listed(texts)


def _listed(texts: dict[str, str]) -> tuple[Listing, ...]:
    return tuple(Listing(name, text[:SHOWN_CHARACTERS]) for name, text in texts.items() if text.strip())


def names_and_weights(host: str) -> pd.DataFrame:
    """Every name with its size, the digest of its weights, and whether it is in memory."""
    loaded = {one.name for one in api.loaded(host)}
    rows = []
    for one in api.installed(host):
        # The Modelfile that the server writes names the weights' blob by its digest.
        try:
            text = api.details(host, one.name).modelfile
        except EngineRefused:  # a model that runs in the cloud is described there, to those who are signed in
            text = ""
        found = re.search(r"sha256[-:]([0-9a-f]{64})", text)
        rows.append((one.name, one.size_bytes, found[1] if found else one.digest, one.name in loaded))
    return pd.DataFrame(rows, columns=["name", "size_bytes", "weights", "loaded"])


def plan_table(before: pd.DataFrame, plan: Plan) -> pd.DataFrame:
    """Every name with what becomes of it: it stays, it is new, it goes, or it stays on weights of one that goes."""
    fates = {plan.name: "goes" if plan.action == "remove" else "copied"}
    fates |= dict.fromkeys(plan.sharing, "shares")
    rows = [
        (one.name, one.size_bytes, str(one.weights)[:12], fates.get(str(one.name), "stays"))
        for one in before.itertuples()
    ]
    if plan.action == "copy":
        rows.append((plan.new_name, 0, rows[[row[0] for row in rows].index(plan.name)][2], "new"))
    return pd.DataFrame(rows, columns=["name", "size_bytes", "weights", "fate"])


def own_names(workbench: Workbench) -> pd.DataFrame:
    """The files that are here, in the same columns."""
    rows = [(one.id, one.size_bytes, (one.sha256 or "")[:12], "stays") for one in workbench.models.local()]
    return pd.DataFrame(rows, columns=["name", "size_bytes", "weights", "fate"])


def plan_notes(plan: Plan, done: bool) -> tuple[Note, ...]:
    """The question before it is done, and afterwards how to take it back."""
    said = {"name": plan.name, "new_name": plan.new_name, "mib": plan.frees_bytes / 2**20}
    notes = [note(f"{plan.action}_{'done' if done else 'asked'}", **said)]
    if plan.action == "remove":
        notes.append(note("shared_weights", names=", ".join(plan.sharing)) if plan.sharing else note("only_name"))
        if plan.loaded and not done:
            notes.append(note("in_use"))
    return tuple(notes)


def is_library_name(source: str) -> bool:
    """Whether a FROM names a model of a server, not a file."""
    if source.startswith((".", "/", "~")):
        return False
    try:
        return not Path(source).exists()
    except (OSError, ValueError):  # too long for a file's name, or with a character that none has
        return True


def problem_table(found: Modelfile) -> pd.DataFrame:
    """Every problem with its line."""
    rows = [(one.line, one.kind, one.word or None, one.instead or None) for one in found.problems]
    return pd.DataFrame(rows, columns=["line", "problem", "word", "instead"])


def problem_notes(found: Modelfile) -> tuple[Note, ...]:
    """Each problem in a sentence, and what is meant where that is known."""
    return tuple(_problem_note(one) for one in found.problems)


def _problem_note(one: Problem) -> Note:
    key = f"problem_{one.kind.replace('-', '_')}"
    return note(f"{key}_instead" if one.instead else key, line=one.line, word=one.word, instead=one.instead)


def cost_notes(found: Modelfile, asked: bool, created: bool, on: str) -> tuple[Note, ...]:
    """What was not created or not counted, and on which model the rest was."""
    notes = [note("not_created")] if asked and not created else []
    if not is_library_name(found.source):
        notes.append(note("counted_on", model=on))
    if found.template or found.adapter:
        notes.append(note("not_counted"))
    return tuple(notes)


def wire_table(exchanges: Sequence[Exchange]) -> pd.DataFrame:
    """One row a route: what its answer weighs, what of it is text, and the engine's own speed."""
    return pd.DataFrame([_wire_row(one) for one in exchanges])


def _wire_row(one: Exchange) -> dict[str, Any]:
    objects = one.objects
    text = "".join(piece_of(part) for part in objects)
    tokens, seconds = _counts(objects)
    size = len(text.encode())
    return {
        "route": one.route,
        "content_type": one.content_type,
        "lines": len(one.lines),
        "answer_bytes": one.size_bytes,
        "text_bytes": size,
        "completion_tokens": tokens,
        "bytes_per_token": one.size_bytes / tokens if tokens else None,
        "first_line_s": one.lines[0].at_s if one.lines else None,
        "tokens_per_s": tokens / seconds if seconds and tokens > 1 else None,
    }


def _counts(objects: Sequence[dict[str, Any]]) -> tuple[int, float]:
    """The engine's own count of the answer's tokens, and the seconds that it took by its own clock."""
    for part in reversed(objects):
        if part.get("eval_count"):
            return int(part["eval_count"]), part.get("eval_duration", 0) * api.NANO
        if timings := part.get("timings"):
            return int(timings["predicted_n"]), timings["predicted_ms"] / 1000
        if part.get("usage"):
            return int(part["usage"]["completion_tokens"]), 0.0
    return 0, 0.0


def wire_listings(exchanges: Sequence[Exchange]) -> tuple[Listing, ...]:
    """The request and the first and last lines of each answer, as they went over the wire."""
    return tuple(Listing(_LISTINGS[one.route], _as_seen(one), "http") for one in exchanges)


_LISTINGS = {
    "/api/chat": "native_chat",
    "/api/generate": "native_generate",
    "/v1/chat/completions": "openai",
    "/completion": "llama_cpp",
}


def _as_seen(one: Exchange) -> str:
    head = [f"POST {one.route}", json.dumps(dict(one.body), indent=1, ensure_ascii=False), ""]
    head.append(f"HTTP {one.status}   {one.content_type}")
    lines = [f"{line.at_s:6.3f} s  {line.text}" for line in one.lines]
    if len(lines) > 2 * SHOWN_LINES:
        lines = [*lines[:SHOWN_LINES], f"   … {len(lines) - 2 * SHOWN_LINES} …", *lines[-SHOWN_LINES:]]
    return "\n".join([*head, *lines])


def similarity_table(texts: Sequence[str], vectors: Sequence[Sequence[float]]) -> pd.DataFrame:
    """The cosine of every pair, each text with itself included."""
    unit = np.array(vectors, dtype=float)
    lengths = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(lengths > 0, lengths, 1)
    pairs = combinations_with_replacement(range(len(texts)), 2)
    rows = [(texts[one], texts[two], float(unit[one] @ unit[two])) for one, two in pairs]
    return pd.DataFrame(rows, columns=["first", "second", "similarity"])


def settings_table(caches: Sequence[Cache], clients: Sequence[tuple[int, Sequence[Row]]]) -> pd.DataFrame:
    """Cache types, then requests at once: memory and speed of each."""
    rows: list[dict[str, Any]] = [
        {
            "kind": "cache",
            "name": one.cache_type if one.flash_attention else f"{one.cache_type}_plain",
            "flash_attention": one.flash_attention,
            "forecast_bytes": one.forecast_bytes,
            "cache_bytes": one.cache_bytes,
            "memory_bytes": one.memory_bytes,
            "tokens_per_s": one.tokens_per_s,
        }
        for one in caches
    ]
    rows += [
        {
            "kind": "clients",
            "name": str(many),
            "tokens_per_s": total_tokens_per_s(found),
            "each_tokens_per_s": float(np.mean([one.tokens_per_s for one in found])),
            "slowest_ttft_s": max(one.ttft_s for one in found),
        }
        for many, found in clients
    ]
    return pd.DataFrame(rows)


def cache_notes(caches: Sequence[Cache]) -> tuple[Note, ...]:
    """What llama.cpp refused, in its own words."""
    return tuple(
        note("cache_refused", cache=one.cache_type, why=one.error.parameters.get("why", ""))
        for one in caches
        if one.error is not None
    )


def program_notes(table: pd.DataFrame) -> tuple[Note, ...]:
    """Which language is not on this machine, and what a program said that failed."""
    missing = ", ".join(table.loc[table["took_s"].isna(), "language"])
    failed = table[table["took_s"].notna() & ~table["worked"].astype(bool)]
    notes = [note("program_failed", language=one.language, why=one.output) for one in failed.itertuples()]
    return (*notes, note("not_installed", languages=missing)) if missing else tuple(notes)


def number(value: object) -> float | None:
    """A cell as a number; None where it has none."""
    return None if value is None or pd.isna(value) else float(value)  # type: ignore[arg-type]
