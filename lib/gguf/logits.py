"""llama.cpp's logits for a text: computed in a child process, handed over as files."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from lib.course.result import Progress

if TYPE_CHECKING:
    from lib.workbench import Workbench


def tokens_of(workbench: Workbench, gguf: Path, text: str) -> Generator[Progress, None, tuple[int, ...]]:
    """The tokens of a text by a model's own tokenizer, BOS included where the model wants one."""
    request = {"op": "tokens", "gguf": str(gguf), "text": text}
    answer = yield from workbench.toolchains.call("here", "logits", request)
    return tuple(answer["tokens"])


def logits_of(workbench: Workbench, gguf: Path, tokens: Sequence[int], out: Path) -> Generator[Progress, None, Path]:
    """Write the logits after each token to ``out``: an .npy file of float32, shape (n_tokens, n_vocab)."""
    threads = psutil.cpu_count(logical=False) or 1
    request = {"op": "logits", "gguf": str(gguf), "tokens": list(tokens), "out": str(out), "threads": threads}
    yield from workbench.toolchains.call("here", "logits", request)
    return out
