"""Decoding speed of a model on an engine, as the client sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

from openai import OpenAI

from lib.course.result import Progress
from lib.engines.chat import stream_chat
from lib.errors import EngineRefused

PROMPT = "Write a long story about a lighthouse keeper who repairs clocks."
TOKENS = 64
ROUNDS = 3


@dataclass(frozen=True)
class Speed:
    """Tokens a second while decoding, and seconds to the first token: medians and spread of the rounds."""

    tokens_per_s: float
    low_tokens_per_s: float
    high_tokens_per_s: float
    ttft_s: float
    rounds: int


def measure_speed(
    client: OpenAI, model: str, rounds: int = ROUNDS, tokens: int = TOKENS, **options: Any
) -> Iterator[Progress | Speed]:
    """One warm-up and ``rounds`` greedy replies of at most ``tokens`` tokens; last comes the Speed.

    ``options`` go with the request. Raises EngineRefused where no reply was long enough to be timed.
    """
    speeds: list[float] = []
    firsts: list[float] = []
    for done in range(rounds + 1):
        yield Progress(done, rounds + 1, "decode", f"{speeds[-1]:.0f} tokens/s" if speeds else "")
        messages = [{"role": "user", "content": PROMPT}]
        *_, reply = stream_chat(client, model, messages, temperature=0, max_tokens=tokens, **options)
        if done and reply.decode_tokens_per_s and reply.ttft_s:
            speeds.append(reply.decode_tokens_per_s)
            firsts.append(reply.ttft_s)
    if not speeds:
        raise EngineRefused(why="it wrote no text")
    yield Speed(median(speeds), min(speeds), max(speeds), median(firsts), rounds)
