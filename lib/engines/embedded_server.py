"""The child process of the embedded engine: llama.cpp's server on a loopback port.

Reads its options as one JSON line, answers with one JSON line when the model is
loaded, and lives as long as its standard input stays open: when the parent
dies, however it dies, the pipe closes and this process ends with it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any


def serve(options: dict[str, Any]) -> None:
    """Load the model and serve until standard input closes."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = options["path"]
    parameters.model_alias = {options["model"]}
    parameters.n_parallel = options["slots"]
    parameters.n_ctx = options["context_tokens"] * options["slots"]
    parameters.embedding = options["embeddings"]
    parameters.cpuparams.n_threads = options["threads"]
    parameters.cpuparams_batch.n_threads = options["threads_batch"]
    parameters.cpuparams.poll = options["poll"]
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [options["key"]]
    parameters.cors_origins = ""
    parameters.ui = False
    parameters.use_jinja = True
    parameters.endpoint_metrics = True
    parameters.endpoint_slots = True
    # Memory that grows with use would make the estimate a guess.
    parameters.cache_ram_mib = 0
    parameters.n_ctx_checkpoints = 0
    parameters.fit_params = False
    server = xllamacpp.Server(parameters)
    print(json.dumps({"address": server.listening_address}), file=_ANSWERS, flush=True)
    threading.Event().wait()


def _die_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(0)


def main() -> None:
    """Entry point: options on standard input, the address on standard output."""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte:
            return
        line += byte
    threading.Thread(target=_die_with_parent, daemon=True).start()
    try:
        serve(json.loads(line))
    except Exception as error:
        print(json.dumps({"error": str(error) or type(error).__name__}), file=_ANSWERS, flush=True)
        os._exit(1)


if __name__ == "__main__":
    # llama.cpp logs to standard error, but a library may print: answers get a stream of their own.
    _ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    main()
