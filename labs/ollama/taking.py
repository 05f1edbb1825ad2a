"""What lab 4 brings into Ollama, gives another name there, or takes away."""

from __future__ import annotations

import shutil
import time
from collections.abc import Generator, Iterable
from dataclasses import dataclass

import pandas as pd

from labs.ollama.served import fake, no_server
from lib.bench.speed import measure_speed
from lib.course.result import Facts, Note, Progress, note, part_of
from lib.engines.base import Engine
from lib.engines.chat import stream_chat
from lib.engines.ollama import QUANTIZATIONS, create_from_gguf, known_as
from lib.errors import BadParameter, EngineAway, UnknownModel
from lib.gguf.made import ensure_format
from lib.ollama import models as ollama_models
from lib.ollama.modelfile import Modelfile
from lib.ollama.names import take_apart
from lib.workbench import Workbench

# What this lab makes on a server has names that begin so.
OURS = "bancada-"


def command_path() -> str | None:
    """Where the program ``ollama`` stands, if it is on the path."""
    return shutil.which("ollama")


def pull(workbench: Workbench, name: str) -> Generator[Progress, None, pd.DataFrame]:
    """One row a layer: its size, what of it was here before, and how long the rest took."""
    found = yield from ollama_models.pull(workbench.settings.ollama_host, name)
    rows = [(one.digest, one.size_bytes, one.found_bytes, one.seconds) for one in found]
    return pd.DataFrame(rows, columns=["layer", "size_bytes", "found_bytes", "took_s"])


def fetch_instead(workbench: Workbench) -> Generator[Progress, None, pd.DataFrame]:
    """The default model's file, a download that goes on where it stopped, too; one row."""
    model = workbench.settings.default_model
    before = any(one.id == model for one in workbench.models.sources())
    started = time.monotonic()
    yield from workbench.models.fetch(model)
    size = workbench.models.path(model).stat().st_size
    row = (workbench.models.path(model).name, size, size if before else 0, time.monotonic() - started)
    return pd.DataFrame([row], columns=["layer", "size_bytes", "found_bytes", "took_s"])


@dataclass(frozen=True)
class Plan:
    """What a copy or a removal would do. ``sharing`` are other names on the same weights."""

    action: str
    name: str
    new_name: str
    size_bytes: int
    sharing: tuple[str, ...]
    loaded: bool

    @property
    def frees_bytes(self) -> int:
        """What a removal frees at most: nothing worth counting while another name has the same weights."""
        return self.size_bytes if self.action == "remove" and not self.sharing else 0

    def facts(self, done: bool) -> Facts:
        """The plan as facts."""
        return {
            "action": self.action,
            "done": done,
            "frees_bytes": self.frees_bytes,
            "sharing": self.sharing,
            "loaded_now": self.loaded,
        }


def plan(names: pd.DataFrame, action: str, name: str, new_name: str) -> Plan:
    """What would happen, by what the server has; raises UnknownModel, and BadParameter for a name that is taken."""
    full = take_apart(name).short
    new = take_apart(new_name).short if action == "copy" else ""
    rows = names.set_index("name")
    full = known_as(full, rows.index)
    if full not in rows.index:
        raise UnknownModel(model=full, known=", ".join(rows.index))
    if action == "copy":
        refuse_taken("new_name", new, rows.index)
    one = rows.loc[full]
    same = rows[(rows["weights"] == one["weights"]) & (rows.index != full)]
    return Plan(action, full, new, int(one["size_bytes"]), tuple(map(str, same.index)), bool(one["loaded"]))


def refuse_taken(parameter: str, name: str, there: Iterable[str]) -> None:
    """Raises BadParameter for a name that a model has: Ollama would replace it, and tells small letters from none."""
    names = list(there)
    if name.casefold() in {one.casefold() for one in names}:
        raise BadParameter(name=parameter, value=name, allowed=f"≠ {', '.join(names)}")


def created(workbench: Workbench, name: str, modelfile: Modelfile) -> Generator[Progress, None, str]:
    """Make a model of a valid Modelfile; only one that this lab made may be replaced. Raises BadParameter."""
    host, full = workbench.settings.ollama_host, take_apart(name).short
    if not full.startswith(OURS):
        refuse_taken("name", full, (one.name for one in ollama_models.installed(host)))
    return (yield from ollama_models.create(host, full, modelfile))


def carry_out(host: str, plan: Plan) -> None:
    """Do what was planned."""
    if plan.action == "copy":
        ollama_models.copy(host, plan.name, plan.new_name)
    else:
        ollama_models.remove(host, plan.name)


_COLUMNS = [
    *("by", "size_bytes", "create_s", "prompt_tokens"),
    *("tokens_per_s", "low_tokens_per_s", "high_tokens_per_s", "answer"),
]


def own_into_ollama(
    workbench: Workbench, model: str, format: str, quantized_by: str, question: str
) -> Generator[Progress, None, tuple[pd.DataFrame, tuple[Note, ...]]]:
    """The learner's GGUF in the embedded engine and in Ollama: size, speed, and the answer to one question."""
    if quantized_by == "ollama" and format not in QUANTIZATIONS:
        raise BadParameter(name="format", value=format, allowed=", ".join(QUANTIZATIONS))
    file = yield from ensure_format(workbench, model, format)
    embedded = workbench.engine("embedded")
    here = f"{model}.{format}"
    yield from embedded.ensure(here)
    spoken = yield from _spoken(embedded, here, question, 0)
    rows: list[tuple[str, int, float | None, int, float, float, float, str]] = [
        ("embedded", file.stat().st_size, None, *spoken)
    ]
    # Two engines at once would take each other's processor.
    embedded.release()
    host = workbench.settings.ollama_host
    notes: tuple[Note, ...] = ()
    try:
        source = (yield from ensure_format(workbench, model, "F16")) if quantized_by == "ollama" else file
        started = time.monotonic()
        if quantized_by == "ollama":
            made = yield from create_from_gguf(host, source, f"{OURS}{model}", format)
            name, size = made.name, made.size_bytes
        else:
            wanted = f"{OURS}{model}:{format.lower()}"
            name = yield from ollama_models.create(host, wanted, Modelfile(source=str(source)))
            size = next((one.size_bytes for one in ollama_models.installed(host) if one.name == name), 0)
        took = time.monotonic() - started
        ollama = workbench.engine("ollama")
        yield from ollama.ensure(name)
        rows.append(("ollama", size, took, *(yield from _spoken(ollama, name, question, 1))))
        notes = (*fake(workbench), note("made_in_ollama", name=name))
        here_tokens, there_tokens = (one[3] for one in rows)
        if here_tokens != there_tokens:
            notes = (*notes, note("other_template", here=here_tokens, there=there_tokens))
    except EngineAway as error:
        notes = (no_server(error), note("own_in_its_stead"))
    return pd.DataFrame(rows, columns=_COLUMNS), notes


def _spoken(
    engine: Engine, model: str, question: str, done: int
) -> Generator[Progress, None, tuple[int, float, float, float, str]]:
    client = engine.client(model)
    *_, reply = stream_chat(client, model, [{"role": "user", "content": question}], temperature=0, max_tokens=48)
    speed = yield from part_of(measure_speed(client, model), done, 2)
    prompt_tokens = reply.prompt_tokens or 0
    return (
        prompt_tokens,
        speed.tokens_per_s,
        speed.low_tokens_per_s,
        speed.high_tokens_per_s,
        " ".join(reply.text.split()),
    )
