"""What really goes over the wire: a request, and its answer line by line, with the moment each line came."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lib.engines.address import http_client
from lib.engines.chat import translated
from lib.errors import EngineDied

PATIENCE_S = 120.0


@dataclass(frozen=True)
class Line:
    """A line as it came, its end left off; ``at_s`` seconds after the request was sent."""

    at_s: float
    text: str


@dataclass(frozen=True)
class Exchange:
    """A request and its answer. ``size_bytes`` counts the answer's body, line ends included."""

    route: str
    body: Mapping[str, Any]
    status: int
    content_type: str
    lines: tuple[Line, ...]
    size_bytes: int

    @property
    def objects(self) -> list[dict[str, Any]]:
        """The JSON objects of the lines, alone or behind ``data:``; raises EngineDied for one that breaks off."""
        texts = (line.text.removeprefix("data:").strip() for line in self.lines)
        try:
            return [json.loads(text) for text in texts if text.startswith("{")]
        except ValueError as error:
            raise EngineDied(how=f"a line of {self.route} broke off") from error


def piece_of(part: Mapping[str, Any]) -> str:
    """The text in one line of an answer, whichever API it belongs to: Ollama's two, OpenAI's, llama.cpp's."""
    if "message" in part:
        return str(part["message"].get("content") or "")
    if part.get("choices"):
        return str(part["choices"][0].get("delta", {}).get("content") or "")
    return str(part.get("response") or part.get("content") or "")


def record(base: str, route: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Exchange:
    """POST a body as JSON and keep every line of the answer, whatever its status.

    Raises EngineAway, EngineDied, EngineSilent.
    """
    url = f"{base}{route}"
    lines: list[Line] = []
    size = 0
    with translated(PATIENCE_S, url), http_client(url, PATIENCE_S) as client:
        started = time.perf_counter()
        with client.stream("POST", url, json=dict(body), headers=dict(headers or {})) as answer:
            rest = b""
            for piece in answer.iter_bytes():
                at_s = time.perf_counter() - started
                size += len(piece)
                *whole, rest = (rest + piece).split(b"\n")
                lines += [Line(at_s, one.decode("utf-8", "replace")) for one in whole if one.strip()]
            if rest.strip():
                lines.append(Line(time.perf_counter() - started, rest.decode("utf-8", "replace")))
    kind = answer.headers.get("content-type", "").partition(";")[0]
    return Exchange(route, body, answer.status_code, kind, tuple(lines), size)
