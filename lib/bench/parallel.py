"""Several clients that ask an engine at once: what each of them gets, and what the engine gives in all."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from lib.bench.load import Answer, Target, closed_loop, run_load
from lib.course.result import Progress
from lib.engines.base import Engine
from lib.errors import EngineRefused


@dataclass(frozen=True)
class Row:
    """What one client got. ``end_s`` counts from the moment at which all of them began."""

    client: int
    prompt: str
    text: str
    ttft_s: float
    end_s: float
    completion_tokens: int
    tokens_per_s: float
    """Its tokens over all of its time, the wait for the first one included."""


def at_once(
    engine: Engine, model: str, prompts: Sequence[str], clients: int, max_tokens: int, **options: Any
) -> Generator[Progress, None, list[Row]]:
    """Let ``clients`` ask at the same moment, prompts in turn, greedily; one row each, in the order of their numbers.

    The engine has ``model`` ready. Closing it stops every client. Raises the error of the first client that met one.
    """
    answers = yield from run_load(
        Target(engine, model, options), closed_loop(clients), prompts, max_tokens, stop_at_error=True
    )
    for one in answers:
        if one.error is not None:
            raise one.error
    return [_row(one) for one in answers]


def total_tokens_per_s(rows: Sequence[Row]) -> float:
    """All tokens over the time until the last client had its answer."""
    return sum(one.completion_tokens for one in rows) / max(one.end_s for one in rows)


def _row(one: Answer) -> Row:
    if not one.answered:
        raise EngineRefused(why="it wrote no text")
    many = one.completion_tokens
    return Row(one.number + 1, one.prompt, one.text, one.ttft_s, one.end_s, many, many / one.end_s)
