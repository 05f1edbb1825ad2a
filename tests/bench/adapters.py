"""Tokens a second through each engine's adapter against the bare ``openai`` client on the same server, in one run.

    python tests/bench/adapters.py [--rounds 10] [--tokens 96] [embedded onnx foundry endpoint ollama]

Bare: ``client.chat.completions.create(stream=True)``, its chunks read and nothing else. Adapter: ``stream_chat``,
as pages and labs use it. Both in turn, each first as often as second. Engines without a model or a server are left
out and named. Prints one JSON line an engine; a ratio of 1 means that the adapter costs nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from openai import OpenAI

from lib.engines.base import Engine
from lib.engines.chat import stream_chat
from lib.engines.embedded import EmbeddedEngine
from lib.engines.endpoint import EndpointEngine
from lib.errors import BancadaError
from lib.workbench import ENGINES, Workbench

PROMPT: Any = [{"role": "user", "content": "Write a long story about a lighthouse keeper who repairs clocks."}]


def bare(client: OpenAI, model: str, tokens: int) -> float:
    """Tokens a second after the first, by the openai client alone."""

    def pieces() -> Iterator[None]:
        stream = client.chat.completions.create(
            model=model, messages=PROMPT, stream=True, temperature=0, max_tokens=tokens
        )
        for chunk in stream:
            if chunk.choices and chunk.choices[0].delta.content:
                yield

    return speed(pieces())


def through(client: OpenAI, model: str, tokens: int) -> float:
    """Tokens a second after the first, as ``stream_chat`` delivers them."""

    def pieces() -> Iterator[None]:
        text = ""
        for reply in stream_chat(client, model, PROMPT, temperature=0, max_tokens=tokens):
            if reply.text != text:
                text = reply.text
                yield

    return speed(pieces())


def speed(pieces: Iterator[None]) -> float:
    """Pieces a second after the first."""
    first, count, last = 0.0, 0, 0.0
    for _ in pieces:
        last = time.perf_counter()
        first = first or last
        count += 1
    return (count - 1) / (last - first)


def opened(workbench: Workbench, name: str, stack: ExitStack) -> tuple[Engine, str]:
    """An engine with a model loaded; raises BancadaError or LookupError where there is none."""
    if name == "endpoint":
        behind = workbench.engine("embedded")
        assert isinstance(behind, EmbeddedEngine)
        model = workbench.settings.default_model
        list(behind.ensure(model))
        key = behind.headers()["Authorization"].removeprefix("Bearer ")
        return EndpointEngine(str(behind.status().address), key), model
    engine = workbench.engine(name)
    stack.callback(engine.release)
    model = (
        workbench.settings.default_model
        if name == "embedded"
        else next((one for one in engine.models() if "int4" in one), engine.models()[0])
    )
    list(engine.ensure(model))
    return engine, model


def measured(engine: Engine, model: str, rounds: int, tokens: int) -> dict[str, object]:
    """Medians and the ratio's spread; the first round warms up and does not count."""
    client = engine.client(model)
    ways: tuple[Callable[[OpenAI, str, int], float], ...] = (bare, through)
    rows = []
    for at in range(rounds + 1):
        order = ways if at % 2 else ways[::-1]
        found = {way: way(client, model, tokens) for way in order}
        rows.append((found[bare], found[through]))
    rows = rows[1:]
    ratios = sorted(ours / theirs for theirs, ours in rows)
    return {
        "model": model,
        "bare_tokens_per_s": round(median(theirs for theirs, _ in rows), 1),
        "adapter_tokens_per_s": round(median(ours for _, ours in rows), 1),
        "ratio": round(median(ratios), 3),
        "ratio_low": round(ratios[0], 3),
        "ratio_high": round(ratios[-1], 3),
        "rounds": rounds,
    }


def main() -> None:
    """Every engine in turn."""
    parser = argparse.ArgumentParser()
    parser.add_argument("engines", nargs="*", choices=[*ENGINES, []], default=[])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=96)
    options = parser.parse_args()
    workbench = Workbench.open()
    for name in options.engines or ENGINES:
        with ExitStack() as stack:
            try:
                engine, model = opened(workbench, name, stack)
                found = measured(engine, model, options.rounds, options.tokens)
            except (BancadaError, LookupError) as missing:
                found = {"left_out": str(missing)}
        print(json.dumps({"engine": name, **found}), flush=True)
    workbench.close()


if __name__ == "__main__":
    main()
