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
from lib.engines.address import http_client, ollama_url, shown
from lib.engines.chat import broken_off, translated
from lib.engines.ollama import LOOK_S, Layer, asked, full_name, hold, pulled, until_success, uploaded
from lib.errors import BadParameter, EngineRefused, NotAnEngine, UnknownModel
from lib.ollama.modelfile import Modelfile

if TYPE_CHECKING:
    from ollama import Client

NANO = 1e-9
# What only reads or writes a list is answered at once; a page waits for it.
LIST_S = 15.0


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


@dataclass(frozen=True)
class Server:
    """A server that answers: its version, and the HTTP status of some routes."""

    version: str
    routes: Mapping[str, int]


# What is there, and what older texts ask for.
ROUTES = ("/", "/api/version", "/api/tags", "/api/ps", "/v1/models", "/api/health", "/metrics")


def server(host: str) -> Server:
    """The server's version, and what it answers to a GET of each of ``ROUTES``."""
    url = ollama_url(host)
    with translated(LOOK_S, shown(url)), http_client(url, LOOK_S) as client:
        routes = {route: client.get(f"{url}{route}").status_code for route in ROUTES}
    return Server(version(host), routes)


def version(host: str) -> str:
    """The server's version."""
    url = ollama_url(host)
    with translated(LOOK_S, shown(url)), http_client(url, LOOK_S) as client:
        answer = client.get(f"{url}/api/version").json()
    if not isinstance(answer, Mapping):
        raise NotAnEngine(address=shown(url), why=repr(answer)[:80])
    return str(answer.get("version", ""))


def pull(host: str, model: str) -> Generator[Progress, None, tuple[Layer, ...]]:
    """Fetch a model, or what of it is missing or newer; closing it stops the download, and what has come is kept."""
    with asked(host) as client:
        return (yield from pulled(client, full_name(model)))


def installed(host: str) -> list[Installed]:
    """The models that it has."""
    with asked(host, LIST_S) as client:
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
    with asked(host, LIST_S) as client:
        return [
            Loaded(
                one.model or "", int(one.size or 0), int(one.size_vram or 0), one.context_length or 0, one.expires_at
            )
            for one in client.ps().models
        ]


def details(host: str, model: str) -> Details:
    """What a model brings."""
    with asked(host, LIST_S) as client, _named(client, model):
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


def cache_bytes_per_token(host: str, model: str) -> int:
    """What a model's keys and values take a token, in f16, by the metadata that the server shows; 0 if it does not."""
    with asked(host, LIST_S) as client, _named(client, model):
        known = client.show(model).modelinfo or {}

    def number(name: str) -> int:
        found = [value for key, value in known.items() if key.endswith(f".{name}")]
        return int(found[0]) if found and isinstance(found[0], int | float) else 0

    heads, layers = number("attention.head_count_kv"), number("block_count")
    length = number("attention.key_length")
    if not length and (every := number("attention.head_count")):
        length = number("embedding_length") // every
    return 2 * layers * heads * length * 2


def copy(host: str, model: str, name: str) -> None:
    """Give a model a second name; no weight is copied."""
    with asked(host, LIST_S) as client, _named(client, model):
        client.copy(model, name)


def remove(host: str, model: str) -> None:
    """Remove a model's name, and the layers that no other name uses."""
    with asked(host, LIST_S) as client, _named(client, model):
        client.delete(model)


def create(host: str, name: str, modelfile: Modelfile) -> Generator[Progress, None, str]:
    """Make a model of a valid Modelfile; gives back its full name. A FROM that is a file here is uploaded."""
    with asked(host) as client, _named(client, modelfile.source):
        given: dict[str, Any] = {}
        for key, place in (("files", modelfile.source), ("adapters", modelfile.adapter)):
            if place and (path := _gguf(place)) is not None:
                yield Progress(0, 0, "upload", path.name)
                given[key] = {path.name: uploaded(host, client, path)}
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
    think: bool | None = None,
) -> Iterator[NativeReply]:
    """Yield the same growing reply at each piece of text; closing it stops the server's work.

    ``think`` False keeps a model that can from thinking first; others know no such option.
    """
    reply = NativeReply()
    with asked(host) as client, _named(client, model):
        stream: Any = client.chat(
            model,
            [dict(one) for one in messages],
            options=dict(options or {}),
            keep_alive=keep_alive,
            think=think,
            stream=True,
        )
        with closing(stream):
            for one in stream:
                reply.text += one.message.content or ""
                if one.done:
                    _finish(reply, one)
                yield reply
        if reply.finish is None:
            raise broken_off(reply.text) or EngineRefused(why="its answer ended without a last word")


def unload(host: str, model: str) -> None:
    """Let go of a model's memory now, unless somebody is using it."""
    keep(host, model, 0)


def keep(host: str, model: str, keep_alive: str | int) -> None:
    """Hold a loaded model for so long from now on."""
    with asked(host) as client, _named(client, model):
        hold(client, model, keep_alive=keep_alive)


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


def _gguf(place: str) -> Path | None:
    """The file that FROM or ADAPTER names, if it names one here; raises BadParameter for one that is no GGUF.

    Whoever writes the Modelfile may not read this machine's files: no other kind of file is handed over.
    """
    try:
        path = Path(place).expanduser()
        if not path.is_file():
            return None
        with path.open("rb") as file:
            begins = file.read(4)
    except (OSError, RuntimeError, ValueError):  # no right to look, no such user, no such name
        begins = b""
    if begins != b"GGUF":
        raise BadParameter(name="FROM", value=place, allowed="model:tag, file.gguf")
    return path


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
