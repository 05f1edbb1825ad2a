"""The child process of the vLLM engine: starts vLLM's own server in its toolchain, and ends with it."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx2

from lib.engines.address import free_port
from lib.engines.child_server import Ready, run
from lib.scratch import scratch
from lib.toolchains.child import environment_of
from lib.toolchains.process import Supervised

LOOK_S = 0.2
# The last line of a traceback, as vLLM's processes print or log it: "(EngineCore pid=7) ERROR 11-21 … ValueError: …".
_WHY = re.compile(r"^(?:\(\w+ pid=\d+\) )?(?:ERROR \S+ \S+ \[[^\]]*\] )?(?:\w+\.)*(\w*(?:Error|Exception))(?:: (.+))?$")


def serve(options: dict[str, Any], ready: Ready) -> None:
    """Start vLLM, say when it answers, and follow it to its end; raises RuntimeError with vLLM's own reason."""
    home, python = Path(options["home"]), Path(options["python"])
    port = free_port()
    command = [str(python), "-m", "vllm.entrypoints.launchers.api_server.entry", *options["arguments"]]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    with scratch(home) as work:
        environment = environment_of(python, work) | {
            # In the environment, not on the command line, which every user of the machine can read.
            "VLLM_API_KEY": options["key"],
            "VLLM_CPU_KVCACHE_SPACE": str(options["cache_gib"]),
            "VLLM_CACHE_ROOT": str(home / "cache" / "vllm"),
            "VLLM_CONFIG_ROOT": str(work),
            # Its processes talk over sockets whose path may have 107 characters, and a home may be deep: theirs
            # is told from ``work``, where all of them run.
            "VLLM_RPC_BASE_PATH": ".",
            "PATH": f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }
        # A traceback that nobody logs goes to standard error.
        process = Supervised(command, work, environment, subprocess.STDOUT)
        try:
            _follow(process, f"http://127.0.0.1:{port}", ready)
        finally:
            process.stop()


def _follow(process: Supervised, address: str, ready: Ready) -> None:
    why, answers = "", False
    while True:
        for line in _lines(process):
            if line is None:
                raise RuntimeError(why or process.how() or "it ended by itself")
            print(line, file=sys.stderr, flush=True)
            if found := _WHY.search(line):
                # The first is the cause, the others follow from it.
                why = why or ": ".join(filter(None, found.groups()))[:300]
        if not answers and _is_well(address):
            answers = True
            ready(address)


def _lines(process: Supervised) -> list[str | None]:
    """What it has written since the last look; None last when it has ended."""
    lines: list[str | None] = []
    with suppress(queue.Empty):
        first = process.lines.get(timeout=LOOK_S)
        lines.append(None if first is None else first.decode(errors="replace").rstrip())
        while lines[-1] is not None:
            one = process.lines.get_nowait()
            lines.append(None if one is None else one.decode(errors="replace").rstrip())
    return lines


def _is_well(address: str) -> bool:
    with suppress(httpx2.HTTPError), httpx2.Client(trust_env=False, timeout=1.0) as client:
        return client.get(f"{address}/health").status_code == 200
    return False


if __name__ == "__main__":
    run(serve)
