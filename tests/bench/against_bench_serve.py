"""Our load generator against vLLM's own, ``vllm bench serve``, on one server and in one run.

    python tests/bench/against_bench_serve.py [--rounds 12] [--clients 4] [--requests 8] [--tokens 32] [--known]

The same prompts in the same order, the same length of answers, the same number of clients, on the embedded engine's
OpenAI endpoint, or with ``--known`` on a server that only waits, so that no model's noise is in it; both in turn, each first as often as second, and the first round does not count. Prints one JSON line
a round, and one of the ratios of medians with each round's spread: 1 means that both measured the same. The other one
runs in vLLM's toolchain, which must be built, and stays there from round to round: importing it takes long.

Where the two count differently: vLLM's pauses (ITL) include the one before the chunk that only says why the answer
ended, and the one after the first chunk, which has no text and comes with the first token. Both are left out here.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from lib.bench.load import Answer, Target, closed_loop, run_load
from lib.bench.metrics import tpot_s
from lib.convert.kept import CONVERTED
from lib.engines.embedded import EmbeddedEngine, EmbeddedOptions
from lib.engines.endpoint import EndpointEngine
from lib.engines.vllm import TOOLCHAIN
from lib.toolchains.child import environment_of
from lib.workbench import Workbench
from tests.server.talker import MODEL, Talk, Talker

PROMPTS = (
    "Write a long story about a lighthouse keeper who repairs clocks.",
    "Explain to a child why the sky is blue and the sunset red.",
    "Describe the way from a seed to a loaf of bread.",
    "What does a bridge need so that it does not fall?",
)
# A prompt that a slot still knows would make the second of two quicker.
EXTRA = {"ignore_eos": True, "cache_prompt": False}
RATIOS = ("tokens_per_s", "ttft_mean_s", "ttft_median_s", "tpot_mean_s", "tpot_median_s", "itl_mean_s", "itl_median_s")

# In vLLM's toolchain: one line of options in, one line of results out, for each round.
THEIRS = """
import json, os, sys
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
for line in sys.stdin:
    found = main(parser.parse_args(json.loads(line)))
    print(json.dumps(found, default=float), file=answers, flush=True)
"""


@dataclass(frozen=True)
class Round:
    """What one generator measured: counts, seconds, and tokens a second."""

    requests: int
    failures: int
    prompt_tokens: int
    tokens: int
    seconds: float
    tokens_per_s: float
    ttft_mean_s: float
    ttft_median_s: float
    tpot_mean_s: float
    tpot_median_s: float
    itl_mean_s: float
    itl_median_s: float


def ours(target: Target, clients: int, requests: int, tokens: int) -> Round:
    """One round of ``run_load``."""
    work = run_load(target, closed_loop(clients, requests), PROMPTS, tokens)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return _ours(end.value)


def _ours(answers: list[Answer]) -> Round:
    good = [one for one in answers if one.answered]
    seconds, tokens = max(one.end_s for one in good), sum(one.completion_tokens for one in good)
    ttft = [one.ttft_s for one in good]
    tpot = [tpot_s(one, one.completion_tokens) for one in good]
    itl = [after - before for one in good for before, after in zip(one.arrivals_s, one.arrivals_s[1:], strict=False)]
    return Round(
        len(answers),
        len(answers) - len(good),
        sum(one.prompt_tokens or 0 for one in good),
        tokens,
        seconds,
        tokens / seconds,
        *_middles(ttft, tpot, itl),
    )


def _middles(*of: list[float]) -> Iterator[float]:
    for values in of:
        yield from (mean(values), median(values))


class BenchServe:
    """vLLM's generator in its toolchain, one round at a time, against one server."""

    def __init__(self, process: subprocess.Popen[str], address: str, model: str, tokenizer: Path, work: Path) -> None:
        self._process = process
        # The dataset of this name is plain JSON; the one called custom needs pandas, which the toolchain lacks.
        self._prompts = work / "prompts.json"
        self._options = ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions", "--base-url", address]
        self._options += ["--model", model, "--tokenizer", str(tokenizer), "--dataset-name", "sharegpt"]
        self._options += [
            "--dataset-path",
            str(self._prompts),
            "--disable-shuffle",
            "--temperature",
            "0",
            "--seed",
            "0",
        ]
        self._options += ["--ignore-eos", "--extra-body", json.dumps(EXTRA), "--disable-tqdm", "--save-detailed"]
        # Its trial request before each round would be one more than ours.
        self._options += ["--ready-check-timeout-sec", "0", "--num-warmups", "0"]

    def round(self, clients: int, requests: int, tokens: int) -> Round:
        """One round; raises RuntimeError when it ended without an answer."""
        turns = [PROMPTS[number % len(PROMPTS)] for number in range(requests)]
        asked = [{"conversations": [{"value": one}, {"value": "-"}]} for one in turns]
        self._prompts.write_text(json.dumps(asked))
        more = ["--num-prompts", str(requests), "--max-concurrency", str(clients), "--output-len", str(tokens)]
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps([*self._options, *more]) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("bench serve ended without a result")
        found = json.loads(line)
        # The first pause is the one after the empty chunk, the last one that before the end.
        itl = [one for each in found["itls"] for one in each[1:-1]]
        return Round(
            found["completed"] + found["failed"],
            found["failed"],
            found["total_input_tokens"],
            found["total_output_tokens"],
            found["duration"],
            found["output_throughput"],
            *(found[f"{which}_{what}_ms"] / 1000 for what in ("ttft", "tpot") for which in ("mean", "median")),
            *_middles(itl),
        )


@contextmanager
def bench_serve(workbench: Workbench, target: Target, tokenizer: str, log: Path) -> Iterator[BenchServe]:
    """vLLM's generator, ready for a target; gone at the end. ``tokenizer`` is a model with a directory from lab 3."""
    for _ in workbench.toolchains.ensure(TOOLCHAIN):
        pass
    python = next(one.where for one in workbench.toolchains.states() if one.name == TOOLCHAIN)
    assert python is not None
    with tempfile.TemporaryDirectory() as work, log.open("w") as said:
        client = target.engine.client(target.model)
        environment = environment_of(python, Path(work)) | {"OPENAI_API_KEY": client.api_key}
        address = str(client.base_url).removesuffix("/").removesuffix("/v1")
        words = workbench.settings.home / CONVERTED / tokenizer / "hf"
        process = subprocess.Popen(
            [str(python), "-c", THEIRS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            cwd=work,
            env=environment,
            text=True,
        )
        try:
            yield BenchServe(process, address, target.model, words, Path(work))
        finally:
            process.kill()
            process.communicate()


def summary(rounds: list[tuple[Round, Round]]) -> dict[str, object]:
    """Ratios of medians, ours to theirs, and the smallest and largest of any round; one with a failure is left out."""
    left_out = [one for one in rounds if one[0].failures or one[1].failures]
    rounds = [one for one in rounds if one not in left_out]
    found: dict[str, object] = {"rounds": len(rounds), "left_out": len(left_out)}
    for name in RATIOS:
        mine, theirs = ([getattr(one[side], name) for one in rounds] for side in (0, 1))
        each = sorted(a / b for a, b in zip(mine, theirs, strict=True))
        found[name] = [round(median(mine) / median(theirs), 3), round(each[0], 3), round(each[-1], 3)]
    return found


def main() -> None:
    """Rounds in turn, and what they come to."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--known", action="store_true")
    options = parser.parse_args()
    load = (options.clients, options.requests, options.tokens)
    workbench, rounds = Workbench.open(), []
    model = workbench.settings.default_model
    with ExitStack() as stack:
        stack.callback(workbench.close)
        target = known(stack, options.tokens) if options.known else embedded(stack, workbench, model, options.clients)
        theirs = stack.enter_context(bench_serve(workbench, target, model, Path(os.devnull)))
        for at in range(options.rounds + 1):
            if at % 2:
                mine, other = ours(target, *load), theirs.round(*load)
            else:
                other, mine = theirs.round(*load), ours(target, *load)
            if at:
                rounds.append((mine, other))
                print(json.dumps({"round": at, "ours": vars(mine), "theirs": vars(other)}), flush=True)
    print(json.dumps(summary(rounds)))


def embedded(stack: ExitStack, workbench: Workbench, model: str, slots: int) -> Target:
    """The embedded engine with a slot for each client."""
    engine = EmbeddedEngine(workbench.models, workbench.logs, EmbeddedOptions(1024, slots))
    stack.callback(engine.release)
    for _ in engine.ensure(model):
        pass
    return Target(engine, model, {"extra_body": EXTRA})


def known(stack: ExitStack, tokens: int) -> Target:
    """A server whose first word takes 100 ms and every further one 20."""
    server = Talker(Talk(tokens, 0.1, 0.02))
    stack.callback(server.close)
    return Target(EndpointEngine(server.address), MODEL)


if __name__ == "__main__":
    main()
