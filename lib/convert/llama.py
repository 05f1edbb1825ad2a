"""llama.cpp's answers, from the embedded engine in a fresh process, timed as the others are."""

from __future__ import annotations

import time
from collections.abc import Generator
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from lib.convert.reference import PROMPTS, TOKENS
from lib.course.result import Progress
from lib.engines.chat import Reply, stream_chat
from lib.engines.peak import peak_memory
from lib.errors import EngineDied, ModelNotHere

if TYPE_CHECKING:
    from openai import OpenAI

    from lib.workbench import Workbench

CONTEXT_TOKENS = 2048


def answers_of_llama(
    workbench: Workbench, path: Path, rounds: int, seconds: float
) -> Generator[Progress, None, dict[str, Any]]:
    """Answer every prompt, the last one ``rounds`` times, and time those; raises EngineError kinds."""
    model = next((one.id for one in workbench.models.local() if one.path == path), None)
    if model is None:
        raise ModelNotHere(model=path.name)
    engine = workbench.fresh_engine(CONTEXT_TOKENS)
    try:
        started = time.perf_counter()
        yield from engine.ensure(model)
        load_s = time.perf_counter() - started
        client = engine.client(model)
        replies = []
        asked = [*PROMPTS, *[PROMPTS[-1]] * (rounds - 1)]
        begun = time.perf_counter()
        for done, prompt in enumerate(asked):
            if done >= len(PROMPTS) and time.perf_counter() - begun > seconds:
                break
            replies.append((yield from _reply(client, model, prompt, done, len(asked))))
        pid = engine.status().pid
        if pid is None:
            raise EngineDied(how=engine.status().incident or "–")
        return _figures(replies, load_s, peak_memory(pid).size_bytes)
    finally:
        engine.release()


def _reply(client: OpenAI, model: str, prompt: str, done: int, parts: int) -> Generator[Progress, None, Reply]:
    reply = Reply()
    # Without the cache of the last prompt, every round reads the prompt anew, as the other runtimes do.
    options = {"temperature": 0, "max_tokens": TOKENS, "extra_body": {"cache_prompt": False}}
    for reply in stream_chat(client, model, [{"role": "user", "content": prompt}], **options):
        yield Progress(done * TOKENS + reply.completion_tokens, parts * TOKENS, "generate", model)
    return reply


def _figures(replies: list[Reply], load_s: float, peak_bytes: int) -> dict[str, Any]:
    timed = replies[len(PROMPTS) - 1 :]
    speeds = [one.decode_tokens_per_s for one in timed if one.decode_tokens_per_s is not None]
    return {
        "load_s": load_s,
        "ttft_s": median(one.ttft_s or one.duration_s for one in timed),
        "tokens_per_s": median(speeds) if speeds else None,
        "low_tokens_per_s": min(speeds, default=None),
        "high_tokens_per_s": max(speeds, default=None),
        "rounds": len(timed),
        "peak_bytes": peak_bytes,
        "texts": [one.text for one in replies[: len(PROMPTS)]],
    }
