"""What the workbench adds to llama.cpp's own work, as ratios within one run.

Quantizing: ``make_format`` (child process, plan, verification, SHA-256, manifest) against a bare process
that calls the quantizer. Quality: ``measure_quality`` against a bare process that computes the same logits
and nothing else. Rounds alternate; medians.

    python tests/bench/quantize.py [--rounds 3] [--model FILE]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

import psutil  # noqa: E402

from lib.gguf.formats import FORMATS, REFERENCE  # noqa: E402
from lib.gguf.made import make_format  # noqa: E402
from lib.gguf.quality import CHUNK_TOKENS, MOST_CHUNKS, TEXT, measure_quality  # noqa: E402
from lib.workbench import Workbench  # noqa: E402

MODEL = "smollm2-135m-instruct"
SEVEN = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_S", "Q6_K", "Q8_0")
_BARE_QUANTIZE = """
import sys
from cyllama.llama import llama_cpp
llama_cpp.set_log_callback(lambda level, text: None)
parameters = llama_cpp.LlamaModelQuantizeParams()
parameters.ftype, parameters.nthread, parameters.allow_requantize = int(sys.argv[3]), int(sys.argv[4]), True
llama_cpp.model_quantize(sys.argv[1], sys.argv[2], parameters)
"""
_BARE_LOGITS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from llama import Llama
path, chunk, most, threads, text = json.loads(sys.argv[2])
model = Llama(path, chunk, threads)
tokens = model.tokenize(open(text, encoding="utf-8").read())
for at in range(0, min(len(tokens) - chunk + 1, most * chunk), chunk):
    model.logits(tokens[at : at + chunk], chunk // 2)
"""


def drain(events):  # type: ignore[no-untyped-def]
    while True:
        try:
            next(events)
        except StopIteration as stop:
            return stop.value


def seconds(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def bare(code: str, *arguments: str) -> float:
    return seconds(lambda: subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True))


def quantizing(workbench: Workbench, rounds: int) -> None:
    threads = str(psutil.cpu_count(logical=False) or 1)
    reference = drain(make_format(workbench, MODEL, REFERENCE)).path
    ratios = []
    for name in SEVEN:
        target = workbench.models.made_path(MODEL, name)
        ours, theirs = [], []
        for _ in range(rounds):
            target.unlink(missing_ok=True)
            ours.append(seconds(lambda name=name: drain(make_format(workbench, MODEL, name))))
            out = target.with_suffix(".bare")
            theirs.append(bare(_BARE_QUANTIZE, str(reference), str(out), str(FORMATS[name].ftype), threads))
            out.unlink()
        pairs = [mine / bare_s for mine, bare_s in zip(ours, theirs, strict=True)]
        ratios += pairs
        print(f"quantize {name:<7} {median(ours):6.2f} s against {median(theirs):6.2f} s bare: {median(pairs):.2f}")
    print(f"quantize, median of {len(ratios)} pairs ({len(SEVEN)} formats): {median(ratios):.3f}")


def quality(workbench: Workbench, rounds: int) -> None:
    threads = psutil.cpu_count(logical=False) or 1
    folder = str(ROOT / "lib" / "toolchains" / "children")
    ours, theirs = [], []
    for number in range(rounds):
        # A text of its own each round: what was measured once is kept.
        text = TEXT.read_text(encoding="utf-8") + " " * number
        kept = drain_quality(workbench, text)
        ours.append(kept)
        total = 0.0
        for name in (REFERENCE, *SEVEN):
            path = str(workbench.models.made_path(MODEL, name))
            total += bare(_BARE_LOGITS, folder, json.dumps([path, CHUNK_TOKENS, MOST_CHUNKS, threads, str(TEXT)]))
        theirs.append(total)
        print(f"quality of seven formats: {kept:.1f} s against {total:.1f} s of raw logits: {kept / total:.3f}")
    print(f"quality, median ratio of {rounds} rounds: {median(a / b for a, b in zip(ours, theirs, strict=True)):.3f}")


def drain_quality(workbench: Workbench, text: str) -> float:
    return seconds(lambda: drain(measure_quality(workbench, MODEL, SEVEN, text)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="the default model's file, if it is here already")
    options = parser.parse_args()
    home = Path(tempfile.mkdtemp(prefix="bancada-bench-"))
    try:
        if options.model:
            (home / "models" / MODEL).mkdir(parents=True)
            (home / "models" / MODEL / options.model.name).symlink_to(options.model)
        workbench = Workbench.open(home=home, _env_file=None)
        quantizing(workbench, options.rounds)
        quality(workbench, options.rounds)
    finally:
        shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    main()
