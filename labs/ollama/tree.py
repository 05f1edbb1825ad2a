"""The troubleshooting tree: for each trouble, questions that this machine answers by a measurement."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field

import httpx2
import psutil

from labs.ollama.served import fake, no_server
from lib.course.result import Note, Progress, note
from lib.engines.address import is_here, ollama_url
from lib.engines.chat import stream_chat
from lib.engines.ollama import known_as
from lib.errors import EngineAway
from lib.gguf.header import read_header
from lib.models.hardware import available_memory_bytes
from lib.models.memory import estimate
from lib.ollama import models as ollama_models
from lib.ollama.names import meant, take_apart
from lib.workbench import Workbench

LOADING_SHARE = 0.3
BUSY_PERCENT = 60.0


@dataclass(frozen=True)
class Check:
    """One question, what was found, and whether that is well; ``fine`` None where it only informs."""

    check: str
    found: str
    fine: bool | None
    parameters: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Examined:
    """The questions in the order in which they were asked."""

    checks: tuple[Check, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class _Patient:
    """What is examined: a model on Ollama, or the default model in the embedded engine."""

    workbench: Workbench
    host: str
    name: str
    context_tokens: int
    here: bool

    @property
    def installed(self) -> dict[str, int]:
        """Sizes by name."""
        if not self.here:
            return {one.id: one.size_bytes for one in self.workbench.models.local()}
        return {one.name: one.size_bytes for one in ollama_models.installed(self.host)}

    @property
    def is_local(self) -> bool:
        """Whether what this machine says of itself says something of the server."""
        return not self.here or is_here(httpx2.URL(ollama_url(self.host)).host)

    @property
    def held_bytes(self) -> int:
        """What it has in memory already."""
        if not self.here:
            return 0
        return next((one.size_bytes for one in ollama_models.loaded(self.host) if one.name == self.name), 0)


def examine(workbench: Workbench, symptom: str, name: str, context_tokens: int) -> Generator[Progress, None, Examined]:
    """Ask a symptom's questions one by one, and stop where no further one makes sense."""
    host = workbench.settings.ollama_host
    notes: tuple[Note, ...] = ()
    checks: list[Check] = []
    try:
        version = ollama_models.version(host)
        checks.append(Check("answers", version, True))
        notes = fake(workbench)
        there = [one.name for one in ollama_models.installed(host)]
        patient = _Patient(workbench, host, known_as(take_apart(name).short, there), context_tokens, True)
    except EngineAway as error:
        checks.append(Check("answers", "–", False))
        notes = (no_server(error), note("examined_instead", model=workbench.settings.default_model))
        patient = _Patient(workbench, host, workbench.settings.default_model, context_tokens, False)
    for done, question in enumerate(_TREES[symptom]):
        yield Progress(done, len(_TREES[symptom]), "examine", patient.name)
        for found in question(patient):
            checks.append(found)
        if question is _is_there and checks[-1].fine is False:
            break
    return Examined(tuple(checks), notes)


def repairs(failed: list[Check]) -> tuple[Note, ...]:
    """What repairs what was found, the first thing first."""
    if not failed:
        return (note("nothing_found"),)
    keys = [(str(one.parameters.get("repair", f"repair_{one.check}")), one) for one in failed if one.check != "answers"]
    return tuple(note(key, **one.parameters) for key, one in keys)


def _is_there(patient: _Patient) -> Iterator[Check]:
    names = list(patient.installed)
    there = patient.name in names
    library = meant(take_apart(patient.name)) if patient.here else ""
    close = difflib.get_close_matches(patient.name, names, 1, 0.5)
    other = library or (close[0] if close else "")
    repair = (
        "repair_other_name" if library and library not in names else "repair_is_here" if other else "repair_is_there"
    )
    values = {"name": patient.name, "other": other, "repair": repair}
    yield Check("is_there", patient.name if there else other or "–", there, values)


def _fits(patient: _Patient) -> Iterator[Check]:
    free = available_memory_bytes()
    need = _need_bytes(patient) - patient.held_bytes
    values = {"need": f"{need / 2**20:.0f} MiB", "free": f"{free / 2**20:.0f} MiB", "context": patient.context_tokens}
    yield Check("fits", f"{values['need']} / {values['free']}", need < free if patient.is_local else None, values)


def _need_bytes(patient: _Patient) -> int:
    """By the file where it can be read here; else the weights and what the server says of the cache's shape."""
    if not patient.here:
        header = read_header(patient.workbench.models.path(patient.name))
        return estimate(header, patient.context_tokens).total_bytes
    per_token = ollama_models.cache_bytes_per_token(patient.host, patient.name)
    return patient.installed[patient.name] + per_token * patient.context_tokens


def _others(patient: _Patient) -> Iterator[Check]:
    if not patient.here:
        return
    others = [one for one in ollama_models.loaded(patient.host) if one.name != patient.name]
    held = sum(one.size_bytes for one in others)
    said = ", ".join(f"{one.name} {one.size_bytes / 2**20:.0f} MiB" for one in others)
    yield Check("others", said or "–", not others, {"names": said, "mib": held / 2**20})


def _swap(patient: _Patient) -> Iterator[Check]:
    if not patient.is_local:
        return
    swap = psutil.swap_memory()
    used = swap.used / 2**20
    yield Check("swap", f"{used:.0f} MiB", used < 256, {"mib": used})


def _busy(patient: _Patient) -> Iterator[Check]:
    if not patient.is_local:
        return
    percent = psutil.cpu_percent(0.5)
    yield Check("busy", f"{percent:.0f} %", percent < BUSY_PERCENT, {"percent": percent})


def _speed(patient: _Patient) -> Iterator[Check]:
    """A short answer's own figures: was the time spent on loading, reading or writing?"""
    asked = [{"role": "user", "content": "Write a sentence about the sea."}]
    if patient.here:
        *_, reply = ollama_models.chat(patient.host, patient.name, asked, {"num_predict": 32, "temperature": 0})
        load, prompt, write = reply.load_s, reply.prompt_s, reply.completion_s
        speed = reply.decode_tokens_per_s or 0
    else:
        engine = patient.workbench.engine("embedded")
        for _ in engine.ensure(patient.name):
            pass
        *_, answer = stream_chat(engine.client(patient.name), patient.name, asked, max_tokens=32, temperature=0)
        load, prompt, write = 0.0, answer.ttft_s or 0, answer.duration_s - (answer.ttft_s or 0)
        speed = answer.decode_tokens_per_s or 0
    total = load + prompt + write
    parts = f"{load:.2f} + {prompt:.2f} + {write:.2f} s"
    yield Check("loading", parts, load <= LOADING_SHARE * total or load < 1, {"load": load, "total": total})
    yield Check("speed", f"{speed:.0f} tokens/s", None)


def _on_gpu(patient: _Patient) -> Iterator[Check]:
    if not patient.here:
        return
    for one in ollama_models.loaded(patient.host):
        if one.name == patient.name and one.size_bytes:
            share = 100 * one.gpu_bytes / one.size_bytes
            gpus = patient.workbench.machine.gpus
            yield Check("on_gpu", f"{share:.0f} %", share > 99 if gpus else None, {"share": share})


def _context(patient: _Patient) -> Iterator[Check]:
    """The context that is set for the model now, against the one that is wanted."""
    if patient.here:
        for _ in patient.workbench.engine("ollama").ensure(patient.name):
            pass
        loaded = {one.name: one.context_tokens for one in ollama_models.loaded(patient.host)}
        if patient.name not in loaded:
            yield Check("context_set", "–", None)
            return
        set_to = loaded[patient.name]
        most = ollama_models.details(patient.host, patient.name).context_tokens or set_to
    else:
        header = read_header(patient.workbench.models.path(patient.name))
        set_to = patient.workbench.settings.context_tokens
        lengths = [value for key, value in header.metadata.items() if key.endswith(".context_length")]
        most = int(str(lengths[0])) if lengths else set_to
    values = {"set_to": set_to, "most": most, "wanted": patient.context_tokens}
    knows = most >= patient.context_tokens
    # Where the model itself ends before, a larger setting would be no repair.
    yield Check("context_set", f"{set_to}", set_to >= patient.context_tokens if knows else None, values)
    yield Check("context_most", f"{most}", knows, values)


_TREES: Mapping[str, tuple[Callable[[_Patient], Iterator[Check]], ...]] = {
    "slow": (_is_there, _busy, _swap, _speed, _on_gpu),
    "out_of_memory": (_is_there, _fits, _others, _swap),
    "not_found": (_is_there,),
    "context_cut": (_is_there, _context),
}
SYMPTOMS = tuple(_TREES)
