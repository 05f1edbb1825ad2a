"""How many weights of a TQ2_0 file are ternary, and how many of those are zero."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.errors import ModelDamaged
from lib.gguf.header import BLOCKS, read_header

TYPE = "TQ2_0"
_CODES_BYTES = 64


@dataclass(frozen=True)
class TernaryWeights:
    """Shares, 0 to 1: of all weights those stored as -1, 0 or 1, and of these the zeros (None without any)."""

    share: float
    zeros: float | None


def ternary_weights(path: Path) -> TernaryWeights:
    """Count the codes of every TQ2_0 tensor; raises ModelDamaged."""
    header = read_header(path)
    if not header.tensors:
        raise ModelDamaged(path=str(path), why="it has no tensors")
    stored = [one for one in header.tensors if one.type == TYPE]
    _, block_bytes = BLOCKS[TYPE]
    zeros = 0
    data = np.memmap(path, np.uint8, "r")
    for tensor in stored:
        blocks = data[tensor.offset : tensor.offset + tensor.size_bytes].reshape(-1, block_bytes)
        codes = np.ascontiguousarray(blocks[:, :_CODES_BYTES])
        # Four codes of two bits a byte: 0, 1, 2 stand for -1, 0, 1 times the block's scale.
        zeros += sum(int(np.count_nonzero((codes >> shift) & 3 == 1)) for shift in (0, 2, 4, 6))
    ternary = sum(one.weights for one in stored)
    return TernaryWeights(ternary / sum(one.weights for one in header.tensors), zeros / ternary if ternary else None)
