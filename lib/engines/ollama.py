"""Ollama's server: what it has, what it loads, and models made of a GGUF file. It is not ours to start or stop.

Its errors after the first line of a stream come under HTTP 200; its Python client
raises its own ``ResponseError`` for them, and leaks httpx's errors from a stream.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from openai import OpenAI

from lib.course.result import Progress
from lib.engines.address import http_client, is_here, ollama_url
from lib.engines.base import EngineInfo, Status
from lib.errors import BancadaError, EngineAway, EngineRefused, EngineSilent, UnknownModel

if TYPE_CHECKING:
    from ollama import Client

# Our formats by the names that ``ollama create --quantize`` takes.
QUANTIZATIONS: Mapping[str, str] = MappingProxyType({"Q4_K_M": "q4_K_M", "Q8_0": "q8_0"})
CONNECT_S = 3.0
LOOK_S = 5.0
SILENT_S = 300.0
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
        """Identity and capabilities. It cuts what is longer than the context, without a word."""
        return EngineInfo("ollama", "Ollama", json_schema=True, tool_calls=True, embeddings=True, cuts_prompts=True)

    def status(self) -> Status:
        """Whether it answers, and the model that it loaded last."""
        try:
            with asked(self._host, LOOK_S) as client:
                loaded = client.ps().models
        except EngineAway as error:
            return Status("stopped", address=self._url, incident=str(error.parameters["why"]))
        except BancadaError as error:
            return Status("failed", address=self._url, incident=str(error))
        if not loaded:
            return Status("ready", address=self._url)
        last = loaded[-1]
        return Status(
            "ready",
            model=last.model,
            address=self._url,
            context_tokens=last.context_length,
            memory_bytes=int(last.size or 0),
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
        full = full_name(model)
        with asked(self._host) as client:
            yield Progress(0, 0, "ask_engine", self._url)
            if full not in _names(client):
                yield from _pulled(client, full)
            if full not in {one.model for one in client.ps().models}:
                yield Progress(0, 0, "load", full)
                self._loaded.add(full)
                _hold(client, full)

    def release(self, model: str | None = None) -> None:
        """Unload ``model``, or all that ``ensure`` loaded; what others use on this server stays."""
        released = {full_name(model)} if model else set(self._loaded)
        self._loaded -= released
        if not released:
            return
        try:
            with asked(self._host, LOOK_S) as client:
                for name in released & {one.model for one in client.ps().models if one.model}:
                    _hold(client, name, keep_alive=0)
        except EngineAway:
            pass  # one that does not answer holds nothing

    def client(self, model: str) -> OpenAI:  # noqa: ARG002  one client for every model
        """A client for its OpenAI routes; that it answers shows when it is used."""
        return OpenAI(base_url=f"{self._url}/v1", api_key=NO_KEY, http_client=self._http, max_retries=0)


def full_name(model: str) -> str:
    """A name with its tag, as Ollama lists it."""
    return model if ":" in model.rpartition("/")[2] else f"{model}:latest"


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
        digest = client.create_blob(gguf)
        started = time.monotonic()
        making: Any = client.create(full, files={gguf.name: digest}, quantize=QUANTIZATIONS[format], stream=True)
        yield from until_success(making, "ollama")
        seconds = time.monotonic() - started
        size = next((one.size for one in client.list().models if one.model == full), None)
    return Created(full, int(size or 0), seconds)


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
    try:
        # Loopback must never go through a proxy of the environment; and what we send is for this host alone.
        outside = not is_here(httpx.URL(ollama_url(host)).host)
        with Client(host=host, timeout=timeout, trust_env=outside, follow_redirects=False) as client:
            yield client
    except (ConnectionError, httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise EngineAway(engine="Ollama", address=host, why=_first_line(error)) from error
    except httpx.TimeoutException as error:
        raise EngineSilent(seconds=patience_s) from error
    except ResponseError as error:
        raise EngineRefused(why=_first_line(error.error)) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError, AttributeError) as error:
        # The client takes every answer for an object of the expected shape.
        raise EngineRefused(why=_first_line(error)) from error


def _names(client: Client) -> tuple[str, ...]:
    return tuple(one.model for one in client.list().models if one.model)


def _hold(client: Client, model: str, keep_alive: int | None = None) -> None:
    """Load a model, or with 0 unload it: a request without a text does only that. Each kind of model has its own."""
    if "completion" in (client.show(model).capabilities or ("completion",)):
        client.generate(model, keep_alive=keep_alive)
    else:
        client.embed(model, keep_alive=keep_alive)


def _pulled(client: Client, full: str) -> Iterator[Progress]:
    from ollama import ResponseError

    try:
        pulling: Any = client.pull(full, stream=True)
        yield from until_success(pulling, "pull")
    except ResponseError as error:
        if "file does not exist" in str(error.error):
            raise UnknownModel(model=full, known=", ".join(_names(client))) from error
        raise


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
