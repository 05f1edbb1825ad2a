"""What only Ollama's own API can do: its models' life, and answers with its own clock's figures.

Every call raises EngineAway, EngineSilent, EngineRefused, and UnknownModel where it names a model.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.course.result import Progress
from lib.engines.modelfile import Modelfile
from lib.engines.ollama import asked, full_name, until_success
from lib.errors import EngineRefused, UnknownModel

if TYPE_CHECKING:
    from ollama import Client

NANO = 1e-9


@dataclass(frozen=True)
class Installed:
    """A model that the server has. ``parameters`` as Ollama writes it, such as 134.52M."""

    name: str
    size_bytes: int
    quantization: str
    parameters: str
    family: str
    digest: str


@dataclass(frozen=True)
class Loaded:
    """A model in memory; ``gpu_bytes`` of it on a GPU; unloaded at ``until`` unless it is asked before."""

    name: str
    size_bytes: int
    gpu_bytes: int
    context_tokens: int
    until: datetime | None


@dataclass(frozen=True)
class Details:
    """What a model brings: how its chats are written, what it was set to, under which licence, for how long a text."""

    name: str
    template: str
    parameters: str
    licence: str
    modelfile: str
    context_tokens: int | None
    capabilities: tuple[str, ...]


@dataclass
class NativeReply:
    """A reply of ``/api/chat`` as far as it has come. Times in seconds by the server's clock, there at its end."""

    text: str = ""
    finish: str | None = None
    total_s: float = 0.0
    load_s: float = 0.0
    prompt_tokens: int = 0
    prompt_s: float = 0.0
    completion_tokens: int = 0
    completion_s: float = 0.0

    @property
    def decode_tokens_per_s(self) -> float | None:
        """``eval_count`` over ``eval_duration``."""
        return self.completion_tokens / self.completion_s if self.completion_s else None


def installed(host: str) -> list[Installed]:
    """The models that it has."""
    with asked(host) as client:
        return [
            Installed(
                one.model or "",
                int(one.size or 0),
                (one.details and one.details.quantization_level) or "",
                (one.details and one.details.parameter_size) or "",
                (one.details and one.details.family) or "",
                one.digest or "",
            )
            for one in client.list().models
        ]


def loaded(host: str) -> list[Loaded]:
    """The models in memory."""
    with asked(host) as client:
        return [
            Loaded(
                one.model or "", int(one.size or 0), int(one.size_vram or 0), one.context_length or 0, one.expires_at
            )
            for one in client.ps().models
        ]


def details(host: str, model: str) -> Details:
    """What a model brings."""
    with asked(host) as client, _named(client, model):
        found = client.show(model)
    lengths = [value for key, value in (found.modelinfo or {}).items() if key.endswith(".context_length")]
    return Details(
        full_name(model),
        found.template or "",
        found.parameters or "",
        found.license or "",
        found.modelfile or "",
        int(lengths[0]) if lengths else None,
        tuple(found.capabilities or ()),
    )


def copy(host: str, model: str, name: str) -> None:
    """Give a model a second name; no weight is copied."""
    with asked(host) as client, _named(client, model):
        client.copy(model, name)


def remove(host: str, model: str) -> None:
    """Remove a model's name, and the layers that no other name uses."""
    with asked(host) as client, _named(client, model):
        client.delete(model)


def create(host: str, name: str, modelfile: Modelfile) -> Generator[Progress, None, str]:
    """Make a model of a valid Modelfile; gives back its full name. A FROM that is a file here is uploaded."""
    with asked(host) as client, _named(client, modelfile.source):
        given: dict[str, Any] = {}
        for key, place in (("files", modelfile.source), ("adapters", modelfile.adapter)):
            if place and (path := Path(place).expanduser()).is_file():
                yield Progress(0, 0, "upload", path.name)
                given[key] = {path.name: client.create_blob(path)}
        if "files" not in given:
            given["from_"] = modelfile.source
        making: Any = client.create(
            name,
            template=modelfile.template or None,
            system=modelfile.system or None,
            license=modelfile.licenses or None,
            parameters=modelfile.parameters or None,
            messages=modelfile.messages or None,
            stream=True,
            **given,
        )
        yield from until_success(making, "ollama")
    return full_name(name)


def chat(
    host: str,
    model: str,
    messages: Sequence[Mapping[str, str]],
    options: Mapping[str, object] | None = None,
    keep_alive: str | float | None = None,
) -> Iterator[NativeReply]:
    """Yield the same growing reply at each piece of text; closing it stops the server's work."""
    reply = NativeReply()
    with asked(host) as client, _named(client, model):
        stream: Any = client.chat(
            model, [dict(one) for one in messages], options=dict(options or {}), keep_alive=keep_alive, stream=True
        )
        with closing(stream):
            for one in stream:
                reply.text += one.message.content or ""
                if one.done:
                    _finish(reply, one)
                yield reply
        if reply.finish is None:
            raise EngineRefused(why="its answer ended without a last word")


def embed(host: str, model: str, texts: Sequence[str]) -> list[list[float]]:
    """A vector for each text."""
    with asked(host) as client, _named(client, model):
        return [list(one) for one in client.embed(model, list(texts)).embeddings]


def _finish(reply: NativeReply, last: Any) -> None:
    """The figures of the last chunk: nanoseconds, and what is zero is left out."""
    reply.finish = last.done_reason or "stop"
    reply.total_s = (last.total_duration or 0) * NANO
    reply.load_s = (last.load_duration or 0) * NANO
    reply.prompt_tokens = last.prompt_eval_count or 0
    reply.prompt_s = (last.prompt_eval_duration or 0) * NANO
    reply.completion_tokens = last.eval_count or 0
    reply.completion_s = (last.eval_duration or 0) * NANO


@contextmanager
def _named(client: Client, model: str) -> Iterator[None]:
    """Tell a model that it does not have by what it has."""
    from ollama import ResponseError

    try:
        yield
    except ResponseError as error:
        if error.status_code != 404:
            raise
        known = ", ".join(one.model or "" for one in client.list().models)
        raise UnknownModel(model=model, known=known) from error
