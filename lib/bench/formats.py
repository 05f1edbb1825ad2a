"""Speed and memory of a model in several formats, measured so that they can be compared.

Every measurement is a fresh process; the formats take turns round by round, so that a machine that
slows down in the middle slows all of them down.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

from lib.bench.speed import measure_speed
from lib.course.result import Progress, part_of
from lib.engines.chat import stream_chat
from lib.engines.peak import peak_memory
from lib.errors import EngineDied
from lib.gguf.made import ensure_format

if TYPE_CHECKING:
    from lib.workbench import Workbench

CONTEXT_TOKENS = 2048
TOKENS = 48
ANSWER_TOKENS = 48
# A format that has spoilt a model may end at once; every one is to write as much as the others.
FULL_LENGTH = {"ignore_eos": True}


@dataclass(frozen=True)
class FormatSpeed:
    """Medians over the rounds, with the slowest and the fastest; the peak is the largest of them."""

    format: str
    tokens_per_s: float
    low_tokens_per_s: float
    high_tokens_per_s: float
    ttft_s: float
    peak_bytes: int
    rounds: int
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Once:
    tokens_per_s: float
    ttft_s: float
    peak_bytes: int
    answers: tuple[str, ...]


def measure_formats(
    workbench: Workbench, model: str, formats: Sequence[str], rounds: int, prompts: Sequence[str] = ()
) -> Generator[Progress, None, list[FormatSpeed]]:
    """Decode with every format in turn, ``rounds`` times; in the first round also answer ``prompts``, greedily.

    Raises ModelError and EngineError kinds.
    """
    for name in formats:
        yield from ensure_format(workbench, model, name)
    seen: dict[str, list[_Once]] = {name: [] for name in formats}
    for turn in range(rounds):
        for at, name in enumerate(formats):
            one = _once(workbench, f"{model}.{name}", () if turn else prompts)
            seen[name].append((yield from part_of(one, turn * len(formats) + at, rounds * len(formats))))
    return [_median(name, found) for name, found in seen.items()]


def _once(workbench: Workbench, model: str, prompts: Sequence[str]) -> Generator[Progress | _Once, None, None]:
    engine = workbench.fresh_engine(CONTEXT_TOKENS)
    try:
        yield from engine.ensure(model)
        client = engine.client(model)
        speed = yield from part_of(measure_speed(client, model, 1, TOKENS, extra_body=FULL_LENGTH))
        answers = []
        for done, prompt in enumerate(prompts):
            yield Progress(done, len(prompts), "answer", model)
            messages = [{"role": "user", "content": prompt}]
            *_, reply = stream_chat(client, model, messages, temperature=0, max_tokens=ANSWER_TOKENS)
            answers.append(reply.text)
        pid = engine.status().pid
        if pid is None:
            raise EngineDied(how=engine.status().incident or "–")
        yield _Once(speed.tokens_per_s, speed.ttft_s, peak_memory(pid).size_bytes, tuple(answers))
    finally:
        engine.release()


def _median(format: str, found: Sequence[_Once]) -> FormatSpeed:
    speeds = [one.tokens_per_s for one in found]
    return FormatSpeed(
        format,
        median(speeds),
        min(speeds),
        max(speeds),
        median(one.ttft_s for one in found),
        max(one.peak_bytes for one in found),
        len(found),
        found[0].answers,
    )
