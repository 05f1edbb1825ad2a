"""The child process of the embedded engine: llama.cpp's server on a loopback port."""

from __future__ import annotations

import threading
from typing import Any

from lib.engines.child_server import Ready, run


def serve(options: dict[str, Any], ready: Ready) -> None:
    """Load the model and serve until standard input closes."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = options["path"]
    parameters.model_alias = {options["model"]}
    parameters.n_parallel = options["slots"]
    parameters.n_ctx = options["context_tokens"] * options["slots"]
    parameters.embedding = options["embeddings"]
    if options["embeddings"]:
        # A chat model's file names no way to make one vector of many.
        parameters.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    cache = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{options['cache_type'].upper()}")
    parameters.cache_type_k = parameters.cache_type_v = cache
    if (flash := options["flash_attention"]) is not None:
        kinds = xllamacpp.llama_flash_attn_type
        parameters.flash_attn_type = (
            kinds.LLAMA_FLASH_ATTN_TYPE_ENABLED if flash else kinds.LLAMA_FLASH_ATTN_TYPE_DISABLED
        )
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
    ready(server.listening_address)
    threading.Event().wait()


if __name__ == "__main__":
    run(serve)
