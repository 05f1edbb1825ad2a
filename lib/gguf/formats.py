"""The formats llama.cpp can write, and what their names promise.

A format is a recipe: it names the type most tensors get, and llama.cpp gives
some of them a finer one. Types and their blocks are in ``lib.gguf.header``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lib.gguf.header import BLOCKS


@dataclass(frozen=True)
class Format:
    """A recipe of llama.cpp: its number (``llama_ftype``) and the tensor type that it is named after."""

    id: str
    ftype: int
    type: str

    @property
    def block_bits(self) -> float:
        """Bits per weight of the type it is named after, scales included: what the name promises."""
        return type_bits(self.type)


def type_bits(type_: str) -> float:
    """Bits per weight of a tensor type: bytes of a block over weights of a block."""
    elements, size_bytes = BLOCKS[type_]
    return 8 * size_bytes / elements


# llama.h, enum llama_ftype; from the smallest to the largest.
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        one.id: one
        for one in (
            Format("TQ1_0", 36, "TQ1_0"),
            Format("TQ2_0", 37, "TQ2_0"),
            Format("Q2_K", 10, "Q2_K"),
            Format("Q3_K_M", 12, "Q3_K"),
            Format("Q4_0", 2, "Q4_0"),
            Format("Q4_K_M", 15, "Q4_K"),
            Format("Q5_K_S", 16, "Q5_K"),
            Format("Q5_1", 9, "Q5_1"),
            Format("Q6_K", 18, "Q6_K"),
            Format("Q8_0", 7, "Q8_0"),
            Format("F16", 1, "F16"),
        )
    }
)
REFERENCE = "F16"
TERNARY = ("TQ1_0", "TQ2_0")
