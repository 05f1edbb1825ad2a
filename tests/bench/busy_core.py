"""Measure decoding while another process keeps one core busy: default threads against chosen ones.

    python tests/bench/busy_core.py MODEL.gguf [--rounds 5]

One llama.cpp server runs with its own defaults, one with `lib.engines.threads`. Both stay loaded;
the samples alternate between them, first on a quiet machine, then beside a process that counts as
fast as it can, then beside the same process at the lowest priority. A sample that foreign work disturbed (more than 0.2 cores) is taken again, a few
times; what could not be had undisturbed is left out and counted.

Prints one JSON line; speeds in tokens/s, as llama.cpp itself reports them.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from lib.engines.threads import Threads, choose_threads  # noqa: E402

TOKENS = 48
FOREIGN_CORES = 0.2
TRIES = 3

SERVER = """
import json, sys, threading, xllamacpp
options = json.loads(sys.argv[1])
parameters = xllamacpp.CommonParams()
parameters.model.path = options["path"]
parameters.n_ctx, parameters.n_parallel, parameters.cache_ram_mib = 1024, 1, 0
parameters.hostnames, parameters.port = ["127.0.0.1"], 0
if options["threads"]:
    parameters.cpuparams.n_threads, parameters.cpuparams_batch.n_threads = options["threads"]
    parameters.cpuparams.poll = options["poll"]
server = xllamacpp.Server(parameters)
print("ADDRESS", server.listening_address, flush=True)
threading.Event().wait()
"""
NEIGHBOURS = {
    "quiet": None,
    "busy": "while True: pass",
    "busy_low_priority": "import psutil, sys\n"
    "psutil.Process().nice(psutil.IDLE_PRIORITY_CLASS if sys.platform == 'win32' else 19)\n"
    "while True: pass",
}


@dataclass(frozen=True)
class Engine:
    """A llama.cpp server in its own process."""

    url: str
    process: psutil.Process

    def decode(self) -> float:
        """Tokens/s of one generation, without its prompt."""
        answer = httpx2.post(
            f"{self.url}/completion",
            json={"prompt": "The workbench", "n_predict": TOKENS, "ignore_eos": True, "temperature": 0},
            timeout=120,
            trust_env=False,
        ).json()
        return float(answer["timings"]["predicted_per_second"])


@contextmanager
def _engine(model: Path, threads: Threads | None) -> Iterator[Engine]:
    options = {
        "path": str(model),
        "threads": [threads.n_threads, threads.n_threads_batch] if threads else None,
        "poll": threads.poll if threads else None,
    }
    environment: Mapping[str, str] = threads.environment if threads else {}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, json.dumps(options)],
        env=os.environ | dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        address = next(line.split()[1] for line in process.stdout if line.startswith("ADDRESS"))
        url = address if address.startswith("http") else f"http://{address}"
        yield Engine(url, psutil.Process(process.pid))
    finally:
        process.kill()
        process.wait()


@contextmanager
def _neighbour(program: str | None) -> Iterator[list[psutil.Process]]:
    if program is None:
        yield []
        return
    process = subprocess.Popen([sys.executable, "-c", program])
    try:
        time.sleep(0.3)
        yield [psutil.Process(process.pid)]
    finally:
        process.kill()
        process.wait()


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _machine_s() -> float:
    busy = psutil.cpu_times()
    return float(busy.user + busy.system + getattr(busy, "nice", 0.0))


def _sample(engine: Engine, known: list[psutil.Process]) -> float | None:
    """Tokens/s with no one else on the machine, or None when that could not be had."""
    ours = [engine.process, psutil.Process(), *known]
    for _ in range(TRIES):
        machine, own, started = _machine_s(), _cpu_s(ours), time.monotonic()
        speed = engine.decode()
        foreign = _machine_s() - machine - (_cpu_s(ours) - own)
        if foreign / (time.monotonic() - started) < FOREIGN_CORES:
            return speed
        time.sleep(0.5)
    return None


def measure(model: Path, settings: Mapping[str, Threads | None], rounds: int) -> dict[str, object]:
    """Speeds of every setting beside every neighbour, and ratios to the first setting's quiet speed."""
    speeds: dict[str, dict[str, list[float]]] = {n: {s: [] for s in settings} for n in NEIGHBOURS}
    disturbed = 0
    with ExitStack() as stack:
        engines = {name: stack.enter_context(_engine(model, t)) for name, t in settings.items()}
        for engine in engines.values():
            engine.decode()
        for _ in range(rounds):
            for neighbour, program in NEIGHBOURS.items():
                with _neighbour(program) as known:
                    for name, engine in engines.items():
                        speed = _sample(engine, known)
                        if speed is None:
                            disturbed += 1
                        else:
                            speeds[neighbour][name].append(speed)
    return {"rounds": rounds, "disturbed_samples": disturbed, **_summary(speeds)}


def _summary(speeds: dict[str, dict[str, list[float]]]) -> dict[str, object]:
    medians = {
        neighbour: {name: statistics.median(v) if v else None for name, v in of.items()}
        for neighbour, of in speeds.items()
    }
    base = next(iter(medians["quiet"].values()))
    return {
        "tokens_per_s": {
            neighbour: {
                name: [round(x, 1) for x in (min(v), statistics.median(v), max(v))] if v else None
                for name, v in of.items()
            }
            for neighbour, of in speeds.items()
        },
        "of_quiet_default": {
            neighbour: {name: round(m / base, 2) if m and base else None for name, m in of.items()}
            for neighbour, of in medians.items()
        },
    }


def main() -> None:
    """Measure default and chosen threads, print one JSON line."""
    # So that a terminated run ends the processes it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cores = psutil.cpu_count(logical=False) or 1
    chosen = choose_threads(cores)
    result = measure(arguments.model, {"default": None, "chosen": chosen}, arguments.rounds)
    print(json.dumps({"physical_cores": cores, "chosen": str(chosen)} | result))


if __name__ == "__main__":
    main()
