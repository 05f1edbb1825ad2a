"""OpenVINO GenAI: reads a GGUF file by itself, compiles it for the CPU, and answers."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import queue
import shutil
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import wire
from answers import answers


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answers and their timings; the pipeline is fed with tokens, so that the prompts are the same for all."""
    wire.progress(0, 1, "load_model", Path(request["gguf"]).name)
    import openvino
    import openvino_genai

    pipeline = openvino_genai.LLMPipeline(request["gguf"], "CPU")
    tokenizer = pipeline.get_tokenizer()
    load_s = time.perf_counter() - STARTED

    def decode(prompt: list[int]) -> Generator[int, None, None]:
        tokens = openvino.Tensor(np.asarray([prompt], np.int64))
        inputs = openvino_genai.TokenizedInputs(tokens, openvino.Tensor(np.ones((1, len(prompt)), np.int64)))
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.do_sample, config.apply_chat_template = request["tokens"], False, False
        config.eos_token_id = request["ends"][0]
        config.stop_token_ids = set(request["ends"])
        yield from _streamed(openvino_genai, pipeline, inputs, config)

    return answers(request, load_s, decode, lambda tokens: tokenizer.decode(tokens))


def logits(request: dict[str, Any]) -> dict[str, Any]:
    """Logits of the tokens as float32 (n_tokens, n_vocab), from the model that the pipeline makes of the GGUF file."""
    import openvino
    import openvino_genai

    work = Path(request["work"])
    beside = work / Path(request["gguf"]).name
    # The pipeline saves its model beside the file that it read.
    try:
        beside.hardlink_to(request["gguf"])
    except OSError:
        shutil.copyfile(request["gguf"], beside)
    openvino_genai.LLMPipeline(str(beside), "CPU", enable_save_ov_model=True)
    core = openvino.Core()
    compiled = core.compile_model(work / "openvino_model.xml", "CPU")
    tokens = np.asarray([request["tokens"]], np.int64)
    plain = {
        "input_ids": tokens,
        "attention_mask": np.ones_like(tokens),
        "position_ids": np.arange(tokens.shape[1], dtype=np.int64)[None],
        "beam_idx": np.zeros(1, np.int32),
    }
    names = {name for one in compiled.inputs for name in one.names}
    found = compiled.create_infer_request().infer({name: value for name, value in plain.items() if name in names})
    array = np.asarray(next(iter(found.values())), np.float32)[0]
    np.save(request["out"], array)
    return {"n_vocab": array.shape[1]}


def _streamed(genai: Any, pipeline: Any, inputs: Any, config: Any) -> Iterator[int]:
    """The tokens as they come: the pipeline calls a streamer, here in a thread of its own."""
    found: queue.Queue[int | None] = queue.Queue()
    enough = threading.Event()

    class Streamer(genai.StreamerBase):  # type: ignore[misc]
        def write(self, token: Any) -> Any:
            for one in token if isinstance(token, list | tuple) else [token]:
                found.put(int(one))
            return genai.StreamingStatus.STOP if enough.is_set() else genai.StreamingStatus.RUNNING

        def end(self) -> None:
            pass

    def work() -> None:
        try:
            pipeline.generate(inputs, config, Streamer())
        finally:
            found.put(None)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while (token := found.get()) is not None:
            yield token
    finally:
        # A pipeline takes the next prompt only when it is done with this one.
        enough.set()
        thread.join()


if __name__ == "__main__":
    wire.serve({"answer": answer, "logits": logits})
