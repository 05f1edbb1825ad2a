"""Tokens a second through the workbench against the same llama.cpp server called bare, in one run.

    python tests/bench/through_workbench.py [--rounds 10] [--tokens 128]

Both talk to one and the same engine process, in turn. Bare: the socket read
line by line by ``http.client``, the server's bytes and nothing else. Workbench: ``stream_chat``, as
the chat page and every lab use it. Prints one JSON line; a ratio of 1 means that the
workbench costs nothing.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import time
from pathlib import Path
from statistics import median
from urllib.parse import urlsplit

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from lib.engines.chat import stream_chat
from lib.workbench import Workbench

PROMPT = [{"role": "user", "content": "Write a long story about a lighthouse keeper who repairs clocks."}]


def bare(address: str, key: str, model: str, tokens: int) -> float:
    """Tokens a second after the first, over a bare HTTP connection."""
    place = urlsplit(address)
    connection = http.client.HTTPConnection(place.hostname or "", place.port)
    body = {
        "model": model,
        "messages": PROMPT,
        "stream": True,
        "temperature": 0,
        "max_tokens": tokens,
        "ignore_eos": True,
    }
    headers = {"Authorization": key, "Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    first, count, last = 0.0, 0, 0.0
    for line in connection.getresponse():
        if line.startswith(b"data: {") and b'"content":"' in line:
            last = time.perf_counter()
            first = first or last
            count += 1
    connection.close()
    return (count - 1) / (last - first)


def through(workbench: Workbench, model: str, tokens: int) -> float:
    """Tokens a second after the first, as ``stream_chat`` delivers them."""
    client = workbench.engine("embedded").client(model)
    options = {"temperature": 0, "max_tokens": tokens, "extra_body": {"ignore_eos": True}}
    first, count, last = 0.0, 0, 0.0
    for reply in stream_chat(client, model, PROMPT, **options):
        if reply.finish is None:
            last = time.perf_counter()
            first = first or last
            count += 1
    return (count - 1) / (last - first)


def main() -> None:
    """Interleave the rounds and print medians and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=128)
    options = parser.parse_args()
    workbench = Workbench.open()
    model, engine = workbench.settings.default_model, workbench.engine("embedded")
    for _ in engine.ensure(model):
        pass
    address = engine.status().address or ""
    key = engine.headers()["Authorization"]  # type: ignore[attr-defined]
    rows = [
        (bare(address, key, model, options.tokens), through(workbench, model, options.tokens))
        for _ in range(options.rounds + 1)
    ][1:]
    workbench.close()
    ratios = sorted(ours / theirs for theirs, ours in rows)
    print(
        json.dumps(
            {
                "bare_tokens_per_s": round(median(theirs for theirs, _ in rows), 1),
                "workbench_tokens_per_s": round(median(ours for _, ours in rows), 1),
                "ratio": round(median(ratios), 3),
                "ratio_low": round(ratios[0], 3),
                "ratio_high": round(ratios[-1], 3),
                "rounds": options.rounds,
            }
        )
    )


if __name__ == "__main__":
    main()
