"""Greedy answers of a runtime, timed the same way for every one of them. Standard library only."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import closing
from statistics import median
from typing import Any

import wire

# Called with a prompt's tokens; yields one new token after the other.
Decode = Callable[[list[int]], Generator[int, None, None]]


def answers(request: dict[str, Any], load_s: float, decode: Decode, text: Callable[[list[int]], str]) -> dict[str, Any]:
    """Answer every prompt of the request, the last one ``rounds`` times; the earlier ones also warm the runtime up.

    A slow runtime gets no further round after ``seconds`` of them. Gives the texts and tokens of all, and
    of the last one the medians of ``ttft_s`` and ``tokens_per_s`` (tokens after the first) with their
    spread; and the peak of this process.
    """
    prompts, most, rounds = request["prompts"], request["tokens"], request["rounds"]
    asked = [*prompts, *[prompts[-1]] * (rounds - 1)]
    timed: list[tuple[list[int], float, float | None]] = []
    started = time.perf_counter()
    for at, prompt in enumerate(asked):
        if at >= len(prompts) and time.perf_counter() - started > request["seconds"]:
            break
        timed.append(_answer(decode, prompt, request, at * most, len(asked) * most))
    measured = timed[len(prompts) - 1 :]
    speeds = [speed for _, _, speed in measured if speed is not None]
    return {
        "load_s": load_s,
        "ttft_s": median(first for _, first, _ in measured),
        "tokens_per_s": median(speeds) if speeds else None,
        "low_tokens_per_s": min(speeds, default=None),
        "high_tokens_per_s": max(speeds, default=None),
        "rounds": len(measured),
        "peak_bytes": wire.peak_bytes(),
        "tokens": [tokens for tokens, _, _ in timed[: len(prompts)]],
        "texts": [text(tokens) for tokens, _, _ in timed[: len(prompts)]],
    }


def _answer(
    decode: Decode, prompt: list[int], request: dict[str, Any], before: int, total: int
) -> tuple[list[int], float, float | None]:
    """The new tokens, the seconds to the first, and tokens a second after it."""
    found: list[int] = []
    first_s = 0.0
    started = time.perf_counter()
    last = started
    with closing(decode(prompt)) as stream:
        for token in stream:
            last = time.perf_counter()
            if not found:
                first_s = last - started
            if token in request["ends"]:
                break
            found.append(token)
            wire.progress(before + len(found), total, "generate", request.get("name", ""))
            if len(found) == request["tokens"]:
                break
    gone = last - started - first_s
    return found, first_s, (len(found) - 1) / gone if len(found) > 1 and gone > 0 else None
