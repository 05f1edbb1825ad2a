"""The engine seam: six members, whatever runs behind them.

All engines speak OpenAI chat; what differs is their life cycle. An adapter
translates its vendor's life cycle into this protocol and adds nothing else
that labs rely on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from openai import OpenAI

from lib.course.result import Progress

State = Literal["stopped", "starting", "ready", "restarting", "failed"]


@dataclass(frozen=True)
class EngineInfo:
    """What an engine is and can do. ``cuts_prompts``: what is longer than the context is cut instead of refused."""

    id: str
    name: str
    streaming: bool = True
    json_schema: bool = False
    tool_calls: bool = False
    embeddings: bool = False
    cuts_prompts: bool = False
    slots: int = 1


@dataclass(frozen=True)
class Status:
    """How an engine is now. ``incident`` tells of the last crash, if the engine came back from one."""

    state: State
    model: str | None = None
    address: str | None = None
    pid: int | None = None
    context_tokens: int | None = None
    memory_bytes: int | None = None
    incident: str | None = None
    restarts: int = 0


class Engine(Protocol):
    """Something that runs models."""

    @property
    def info(self) -> EngineInfo:
        """Identity and capabilities."""

    def status(self) -> Status:
        """How the engine is now; never raises."""

    def models(self) -> tuple[str, ...]:
        """The models it could serve now, without a download."""

    def ensure(self, model: str) -> Iterator[Progress]:
        """Download and load ``model`` unless it is loaded; raises ModelError or EngineError kinds."""

    def release(self, model: str | None = None) -> None:
        """Unload ``model``, or everything."""

    def client(self, model: str) -> OpenAI:
        """An OpenAI client for a model that ``ensure`` made ready."""
