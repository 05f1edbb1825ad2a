"""Hugging Face transformers 4: a GGUF file as a directory, its logits and its answers in float32 with torch."""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import _thread
import functools
import json
import signal
import threading
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import wire
from answers import answers

_TEMPLATE_S = 10.0


def from_gguf(request: dict[str, Any]) -> dict[str, Any]:
    """Dequantize a GGUF file to float32 and write it as safetensors, with a tokenizer that matches the file's own."""
    source, out = Path(request["gguf"]), Path(request["out"])
    wire.progress(0, 10, "read_gguf", source.name)
    architecture = _read_once(source)
    wire.progress(1, 10, "read_gguf", architecture)
    import torch
    import transformers.modeling_gguf_pytorch_utils as reading
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if architecture not in reading.GGUF_SUPPORTED_ARCHITECTURES:
        known = ", ".join(sorted(reading.GGUF_SUPPORTED_ARCHITECTURES))
        raise wire.Refused("unsupported-architecture", architecture=architecture, tool="transformers", known=known)
    bar = reading.tqdm
    reading.tqdm = lambda tensors, **_: _counted(tensors)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    reading.tqdm = bar
    wire.progress(6, 10, "make_tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    wire.progress(8, 10, "write_weights")
    model.save_pretrained(out, safe_serialization=True)
    tokenizer.save_pretrained(out)
    trap = out / "tokenizer.model"
    # 4.57 takes the GGUF file for the tokenizer's vocabulary file and copies all of it.
    trapped = trap.stat().st_size if trap.exists() and _is_gguf(trap) else 0
    if trapped:
        trap.unlink()
    wire.progress(9, 10, "make_tokenizer")
    from gguf_tokenizer import repair

    return {
        "tokenizer_model_bytes": trapped,
        "repaired": repair(source, out),
        "parameters": sum(one.numel() for one in model.parameters()),
        "layers": model.config.num_hidden_layers,
        "peak_bytes": wire.peak_bytes(),
    }


def reference(request: dict[str, Any]) -> dict[str, Any]:
    """The first tokens of a text with their logits in an .npy file, and the tokens of prompts in the chat template.

    Prompts stay as they are where the model has no template; ``ends`` are the tokens that end an answer.
    """
    from transformers import AutoTokenizer

    wire.progress(0, 3, "load_model")
    tokenizer = AutoTokenizer.from_pretrained(request["folder"])
    config = json.loads((Path(request["folder"]) / "generation_config.json").read_text(encoding="utf-8"))
    ends = config.get("eos_token_id")
    prompts = _in_template(tokenizer, request)
    tokens = tokenizer(request["text"], add_special_tokens=False)["input_ids"][: request["most"]]
    model = _load(request["folder"])
    wire.progress(1, 3, "compare_logits", "torch")
    _save_logits(model, tokens, request["out"])
    wire.progress(2, 3, "compare_logits", "torch")
    return {
        "tokens": tokens,
        "prompts": prompts,
        "ends": ends if isinstance(ends, list) else [ends],
        "chat": bool(tokenizer.chat_template),
        "first_words": [_first_words(model, tokenizer, one) for one in prompts],
    }


def logits(request: dict[str, Any]) -> dict[str, Any]:
    """Logits of the tokens as float32 (n_tokens, n_vocab) in an .npy file."""
    return {"n_vocab": _save_logits(_load(request["folder"]), request["tokens"], request["out"])}


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Answers and their timings, token by token with a KV cache."""
    import torch
    from tokenizers import Tokenizer

    model = _load(request["folder"])
    tokenizer = Tokenizer.from_file(str(Path(request["folder"]) / "tokenizer.json"))
    load_s = time.perf_counter() - STARTED

    def decode(prompt: list[int]) -> Generator[int, None, None]:
        tokens, kept = torch.tensor([prompt]), None
        while True:
            with torch.inference_mode():
                out = model(tokens, past_key_values=kept, use_cache=True, logits_to_keep=1)
            tokens, kept = out.logits[:, -1:].argmax(dim=-1), out.past_key_values
            yield int(tokens)

    return answers(request, load_s, decode, tokenizer.decode)


def _in_template(tokenizer: Any, request: dict[str, Any]) -> list[list[int]]:
    """The prompts' tokens in the chat template. A template is a program of the model's: its sandbox has no clock."""
    if not tokenizer.chat_template:
        return [tokenizer(prompt)["input_ids"] for prompt in request["prompts"]]
    # An app that was begun in the background of a script ignores Ctrl-C, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    guard = threading.Timer(_TEMPLATE_S, _thread.interrupt_main)
    guard.start()
    try:
        turns = [[{"role": "user", "content": prompt}] for prompt in request["prompts"]]
        return [tokenizer.apply_chat_template(one, add_generation_prompt=True) for one in turns]
    except KeyboardInterrupt:
        why = f"its chat template was not done after {_TEMPLATE_S:.0f} s"
        raise wire.Refused("model-damaged", path=request["folder"], why=why) from None
    except Exception as error:
        why = f"its chat template fails: {type(error).__name__}: {error}"
        raise wire.Refused("model-damaged", path=request["folder"], why=why[:300]) from error
    finally:
        guard.cancel()


def _save_logits(model: Any, tokens: list[int], out: str) -> int:
    import numpy as np
    import torch

    with torch.inference_mode():
        found = model(torch.tensor([tokens])).logits[0].numpy()
    np.save(out, found)
    return int(found.shape[1])


def _first_words(model: Any, tokenizer: Any, prompt: list[int]) -> dict[str, Any]:
    """The two tokens with which an answer would best begin, and how far their logits are apart."""
    import torch

    with torch.inference_mode():
        best = model(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1].topk(2)
    words = [tokenizer.decode([int(one)]) for one in best.indices]
    return {"words": words, "margin": float(best.values[0] - best.values[1])}


def _load(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
    return model.eval()


def _read_once(path: Path) -> str:
    """The file's architecture. transformers reads the file four times and makes one table 397 times: here once."""
    import gguf

    reader = functools.cache(gguf.GGUFReader)
    gguf.GGUFReader = lambda path: reader(str(path))
    gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)
    try:
        return str(gguf.GGUFReader(path).fields["general.architecture"].contents())
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise wire.Refused("model-damaged", path=str(path), why=f"{type(error).__name__}: {error}") from error


def _counted(tensors: Any) -> Iterator[Any]:
    for done, tensor in enumerate(tensors):
        wire.progress(2 + 4 * done / len(tensors), 10, "dequantize", tensor.name)
        yield tensor


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


if __name__ == "__main__":
    wire.serve({"from_gguf": from_gguf, "reference": reference, "logits": logits, "answer": answer})
