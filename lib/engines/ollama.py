"""Ollama's server, as far as making a model of a GGUF file goes.

Its errors after the first line of a stream come under HTTP 200; its Python client
raises its own ``ResponseError`` for them, and leaks httpx's errors from a stream.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType

from lib.course.result import Progress
from lib.errors import EngineAway, EngineRefused, EngineSilent

# Our formats by the names that ``ollama create --quantize`` takes.
QUANTIZATIONS: Mapping[str, str] = MappingProxyType({"Q4_K_M": "q4_K_M", "Q8_0": "q8_0"})
CONNECT_S = 3.0
SILENT_S = 300.0


@dataclass(frozen=True)
class Created:
    """A model that Ollama made."""

    name: str
    size_bytes: int
    seconds: float


def create_from_gguf(host: str, gguf: Path, name: str, format: str) -> Generator[Progress, None, Created]:
    """Hand a GGUF in F16 to the server and let it quantize; raises EngineAway, EngineRefused, EngineSilent."""
    # Here, because every command and page would wait for them.
    import httpx
    from ollama import Client, ResponseError

    full = f"{name}:{QUANTIZATIONS[format].lower()}"
    try:
        # Loopback must never go through a proxy of the environment.
        named = httpx.URL(host if "://" in host else f"http://{host}").host
        timeout = httpx.Timeout(SILENT_S, connect=CONNECT_S)
        with Client(host=host, timeout=timeout, trust_env=not _is_here(named)) as client:
            yield Progress(0, 0, "upload", gguf.name)
            client.list()
            digest = client.create_blob(gguf)
            started, last = time.monotonic(), ""
            asked = client.create(full, files={gguf.name: digest}, quantize=QUANTIZATIONS[format], stream=True)
            with closing(asked):
                for one in asked:
                    last = one.status or last
                    yield Progress(one.completed or 0, one.total or 0, "ollama", one.status or "")
            if last != "success":
                raise EngineRefused(why=f"its answer ended after {last!r}")
            seconds = time.monotonic() - started
            size = next((one.size for one in client.list().models if one.model == full), None)
    except (ConnectionError, httpx.ConnectError, httpx.ConnectTimeout) as error:
        raise EngineAway(engine="Ollama", address=host, why=_first_line(error)) from error
    except httpx.TimeoutException as error:
        raise EngineSilent(seconds=SILENT_S) from error
    except ResponseError as error:
        raise EngineRefused(why=_first_line(error.error)) from error
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, TypeError, AttributeError) as error:
        # The client takes every answer for an object of the expected shape.
        raise EngineRefused(why=_first_line(error)) from error
    return Created(full, int(size or 0), seconds)


def _is_here(host: str) -> bool:
    """Whether a host is this machine, as a listener's address may be written, too."""
    try:
        address = ip_address(host)
    except ValueError:
        return host in ("", "localhost")
    return address.is_loopback or address.is_unspecified


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
