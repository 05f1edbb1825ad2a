"""Who answers in this lab: Ollama where its server does, and the embedded engine in its stead where it does not."""

from __future__ import annotations

import platform
from collections.abc import Generator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from lib.course.result import Note, Progress, note
from lib.engines.base import Engine
from lib.engines.ollama import known_as
from lib.errors import BadParameter, EngineAway, UnknownModel
from lib.ollama import models as ollama_models
from lib.ollama.names import take_apart
from lib.workbench import Workbench

INSTALL = {
    "Linux": "curl -fsSL https://ollama.com/install.sh | sh",
    "Darwin": "brew install ollama",
    "Windows": "winget install Ollama.Ollama",
}
# Names of models that run on Ollama's own machines.
IN_THE_CLOUD = (":cloud", "-cloud")
# The lab's own small ones; anything else is fetched by nobody but whoever runs the step for it.
FETCHED = ("smollm2:135m", "all-minilm:latest")
# By then a model that stays for ever would be gone, as Ollama writes it.
FOR_EVER_YEAR = 2100


@dataclass(frozen=True)
class Served:
    """An engine with a model loaded, and what there is to say of it: why it is not Ollama, or that it only looks so.

    ``quiet`` are options of OpenAI's API that keep a model from thinking before it answers.
    """

    engine: Engine
    model: str
    is_ollama: bool
    notes: tuple[Note, ...] = ()
    quiet: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The engine's id."""
        return self.engine.info.id

    @property
    def think(self) -> bool | None:
        """The same for Ollama's own API."""
        return False if self.quiet else None


def serve(workbench: Workbench, name: str) -> Generator[Progress, None, Served]:
    """Load a model in Ollama; without a server, the default model in the embedded engine.

    Raises UnknownModel, and the EngineError kinds of a server that answers wrongly.
    """
    try:
        return (yield from ollama(workbench, name))
    except EngineAway as error:
        notes = (no_server(error), note("in_its_stead", model=workbench.settings.default_model))
    embedded = workbench.engine("embedded")
    yield from embedded.ensure(workbench.settings.default_model)
    return Served(embedded, workbench.settings.default_model, False, notes)


def ollama(workbench: Workbench, name: str) -> Generator[Progress, None, Served]:
    """Load a model in Ollama; raises EngineAway without a server, and UnknownModel for one that is not there.

    A name alone fetches nothing but the lab's own small models: on a server that many share, a pull is a step.
    """
    host, full = workbench.settings.ollama_host, take_apart(name).short
    there = {one.name for one in ollama_models.installed(host)}
    full = known_as(full, there)
    if full.endswith(IN_THE_CLOUD):
        # It would be asked over the network, with the learner's account, and nothing of it can be measured here.
        local = sorted(one for one in there if not one.endswith(IN_THE_CLOUD))
        raise BadParameter(name="name", value=full, allowed=", ".join(local) or FETCHED[0])
    if full not in {*there, *FETCHED}:
        raise UnknownModel(model=full, known=", ".join(sorted(there)))
    notes = fake(workbench)
    engine = workbench.engine("ollama")
    yield from engine.ensure(full)
    thinks = "thinking" in ollama_models.details(host, full).capabilities
    return Served(engine, full, True, notes, {"reasoning_effort": "none"} if thinks else {})


def fake(workbench: Workbench) -> tuple[Note, ...]:
    """That the server is a stand-in for Ollama's, where its version says so. Raises EngineError kinds."""
    version = ollama_models.version(workbench.settings.ollama_host)
    return (note("fake"),) if version.endswith("-fake") else ()


def no_server(error: EngineAway) -> Note:
    """What is missing, and the command that brings it on this platform."""
    return note("no_server", **error.parameters, install=install_command())


def install_command() -> str:
    """How this platform gets Ollama."""
    return INSTALL.get(platform.system(), "https://ollama.com/download")


def until(moment: datetime | None) -> str | None:
    """Until when a model stays, in UTC; a dash for ever."""
    if moment is None or moment.year >= FOR_EVER_YEAR:
        return None
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
