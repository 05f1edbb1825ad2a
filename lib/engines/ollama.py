"""Ollama's server: what it has, what it loads, and models made of a GGUF file. It is not ours to start or stop.

Its errors after the first line of a stream come under HTTP 200; its Python client
raises its own ``ResponseError`` for them, and leaks httpx's errors from a stream.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Collection, Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from openai import OpenAI

from lib.course.result import Part, Progress
from lib.engines.address import http_client, is_here, ollama_url, shown
from lib.engines.base import EngineInfo, Status
from lib.engines.chat import first_line, too_long, translated
from lib.errors import BancadaError, EngineAway, EngineRefused, EngineSilent, Offline, UnknownModel

if TYPE_CHECKING:
    from ollama import Client

# Our formats by the names that ``ollama create --quantize`` takes.
QUANTIZATIONS: Mapping[str, str] = MappingProxyType({"Q4_K_M": "q4_K_M", "Q8_0": "q8_0"})
CONNECT_S = 3.0
LOOK_S = 5.0
SILENT_S = 300.0
# Ollama tells of a download every 60 ms.
FIRST_LINE_S = 0.1
REGISTRY = "registry.ollama.ai"
# What Go says of a network that is not there, under HTTP 200.
_NO_NETWORK = re.compile(r"dial tcp|no such host|i/o timeout|TLS handshake|network is unreachable")
# Ollama asks for no key, and OpenAI's client sends one always.
NO_KEY = "ollama"


class OllamaEngine:
    """A server of Ollama's at an address."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._url = ollama_url(host)
        self._http = http_client(self._url)
        self._loaded: set[str] = set()

    @property
    def info(self) -> EngineInfo:
        """Identity and capabilities.

        With the models of its library it cuts what is longer than the context, without a word; a model that brings
        its own template refuses it.
        """
        return EngineInfo("ollama", "Ollama", json_schema=True, tool_calls=True, embeddings=True, cuts_prompts=True)

    def status(self) -> Status:
        """Whether it answers, and one of the models in memory."""
        try:
            with asked(self._host, LOOK_S) as client:
                loaded = client.ps().models
        except EngineAway as error:
            return Status("stopped", address=shown(self._url), incident=str(error.parameters["why"]))
        except BancadaError as error:
            return Status("failed", address=self._url, incident=str(error))
        if not loaded:
            return Status("ready", address=self._url)
        one = loaded[-1]
        return Status(
            "ready",
            model=one.model,
            address=self._url,
            context_tokens=one.context_length,
            memory_bytes=int(one.size or 0),
        )

    def models(self) -> tuple[str, ...]:
        """The models that it has; none when it does not answer."""
        try:
            with asked(self._host, LOOK_S) as client:
                return _names(client)
        except BancadaError:
            return ()

    def ensure(self, model: str) -> Iterator[Progress]:
        """Pull the model unless it is there, and load it; raises UnknownModel and EngineError kinds."""
        with asked(self._host) as client:
            yield Progress(0, 0, "ask_engine", self._url)
            there = _names(client)
            full = known_as(full_name(model), there)
            if full not in there:
                yield from pulled(client, full)
            if full not in {one.model for one in client.ps().models}:
                yield Progress(0, 0, "load", full)
                self._loaded.add(full)
                hold(client, full)

    def release(self, model: str | None = None) -> None:
        """Unload ``model``, or all that ``ensure`` loaded; what others use on this server stays."""
        released = {full_name(model)} if model else set(self._loaded)
        self._loaded -= released
        if not released:
            return
        from ollama import ResponseError

        # A server that does not answer holds nothing, and a model that was removed meanwhile goes by itself.
        with suppress(EngineAway), asked(self._host, LOOK_S) as client:
            alike = {name.casefold() for name in released}
            for name in [one.model for one in client.ps().models if one.model and one.model.casefold() in alike]:
                with suppress(ResponseError):
                    hold(client, name, keep_alive=0)

    def client(self, model: str) -> OpenAI:  # noqa: ARG002  one client for every model
        """A client for its OpenAI routes; that it answers shows when it is used."""
        return OpenAI(base_url=f"{self._url}/v1", api_key=NO_KEY, http_client=self._http, max_retries=0)


def full_name(model: str) -> str:
    """A name with its tag, as Ollama lists it."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


def known_as(full: str, names: Collection[str]) -> str:
    """A full name as the server has it, which looks for it without regard to capitals; itself where it has none."""
    return next((one for one in names if one.casefold() == full.casefold()), full)


@dataclass(frozen=True)
class Created:
    """A model that Ollama made."""

    name: str
    size_bytes: int
    seconds: float


def create_from_gguf(host: str, gguf: Path, name: str, format: str) -> Generator[Progress, None, Created]:
    """Hand a GGUF in F16 to the server and let it quantize; raises EngineAway, EngineRefused, EngineSilent."""
    full = f"{name}:{QUANTIZATIONS[format].lower()}"
    with asked(host) as client:
        yield Progress(0, 0, "upload", gguf.name)
        client.list()
        digest = uploaded(host, client, gguf)
        started = time.monotonic()
        making: Any = client.create(full, files={gguf.name: digest}, quantize=QUANTIZATIONS[format], stream=True)
        yield from until_success(making, "ollama")
        seconds = time.monotonic() - started
        size = next((one.size for one in client.list().models if one.model == full), None)
    return Created(full, int(size or 0), seconds)


def uploaded(host: str, client: Client, file: Path) -> str:
    """The digest of a file that the server has; it is sent only if the server does not have it yet."""
    with file.open("rb") as read:
        digest = f"sha256:{hashlib.file_digest(read, 'sha256').hexdigest()}"
    url = ollama_url(host)
    with translated(LOOK_S, shown(url)), http_client(url, LOOK_S) as direct:
        there = direct.head(f"{url}/api/blobs/{digest}").status_code == 200
    if not there:
        client.create_blob(file)
    return digest


@dataclass(frozen=True)
class Layer:
    """A layer of a pull: its digest's beginning, its size, how much was here before, and how long the rest took."""

    digest: str
    size_bytes: int
    found_bytes: int
    seconds: float


def pulled(client: Client, full: str) -> Generator[Progress, None, tuple[Layer, ...]]:
    """Pull a model; the progress is that of the layer at work, with a part for each layer so far.

    Raises UnknownModel, Offline where the server has no network, EngineRefused.
    """
    from ollama import ResponseError

    began: dict[str, tuple[float, int]] = {}
    latest: dict[str, tuple[float, Part]] = {}
    try:
        pulling: Any = client.pull(full, stream=True)
        for one in until_success(pulling, "pull"):
            if one.total and one.detail:
                now = time.monotonic()
                began.setdefault(one.detail, (now, int(one.done)))
                latest[one.detail] = (now, Part(one.detail.removeprefix("pulling "), one.done, one.total))
            yield replace(one, parts=tuple(part for _, part in latest.values()))
    except ResponseError as error:
        if "file does not exist" in str(error.error):
            raise UnknownModel(model=full, known=", ".join(_names(client))) from error
        if _NO_NETWORK.search(str(error.error)):
            host = full.split("/")[0] if full.count("/") > 1 else REGISTRY
            raise Offline(host=host, why=first_line(error.error)) from error
        raise
    return tuple(_layer(part, *began[name], ended) for name, (ended, part) in latest.items())


def _layer(part: Part, began_s: float, first: int, ended_s: float) -> Layer:
    """A layer by its first line and its last one.

    The first line comes when a download has gone on for a moment, with what has arrived by then: that was not here
    before. What the later speed explains in ``FIRST_LINE_S`` counts as fetched.
    """
    rest, seconds = part.total - first, ended_s - began_s
    fetched = rest > 0 and seconds > 0 and first <= FIRST_LINE_S * rest / seconds
    return Layer(part.name, int(part.total), 0 if fetched else first, seconds)


def until_success(stream: Any, what: str) -> Iterator[Progress]:
    """The progress of a pull or a create; raises EngineRefused when it ends otherwise than well."""
    last = ""
    with closing(stream):
        for one in stream:
            last = one.status or last
            yield Progress(one.completed or 0, one.total or 0, what, one.status or "")
    if last != "success":
        raise EngineRefused(why=f"its answer ended after {last!r}")


@contextmanager
def asked(host: str, patience_s: float | None = None) -> Iterator[Client]:
    """A client of the server, whose errors become ours; raises EngineAway, EngineSilent, EngineRefused."""
    patience_s = patience_s or SILENT_S
    # Here, because every command and page would wait for them.
    import httpx
    from ollama import Client, ResponseError

    timeout = httpx.Timeout(patience_s, connect=CONNECT_S)
    url = ollama_url(host)
    try:
        # Loopback must never go through a proxy of the environment; and what we send is for this host alone.
        outside = not is_here(httpx.URL(url).host)
        with Client(host=url, timeout=timeout, trust_env=outside, follow_redirects=False) as client:
            yield client
    except (ConnectionError, httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise EngineAway(engine="Ollama", address=shown(url), why=first_line(error)) from error
    except httpx.TimeoutException as error:
        raise EngineSilent(seconds=patience_s) from error
    except ResponseError as error:
        raise (too_long(str(error.error)) or EngineRefused(why=first_line(error.error))) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError, AttributeError) as error:
        # The client takes every answer for an object of the expected shape.
        raise EngineRefused(why=first_line(error)) from error


def _names(client: Client) -> tuple[str, ...]:
    return tuple(one.model for one in client.list().models if one.model)


def hold(client: Client, model: str, keep_alive: str | int | None = None) -> None:
    """Load a model, or with 0 unload it: a request without a text does only that. Each kind of model has its own."""
    if "completion" in (client.show(model).capabilities or ("completion",)):
        client.generate(model, keep_alive=keep_alive)
    else:
        client.embed(model, keep_alive=keep_alive)
