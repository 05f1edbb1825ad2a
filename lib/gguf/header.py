"""The header of a GGUF file: metadata and the list of tensors, without the tensors' data.

Reads what llama.cpp's own reader accepts (little-endian versions 2 and 3) and
checks every count, length and offset against the file before using it, so a
damaged or hostile file ends in ModelDamaged, not in a huge allocation. Arrays
are measured and skipped: a vocabulary of 262,144 strings costs a walk over
their lengths. It does not know what the metadata mean.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NoReturn

from lib.errors import ModelDamaged

# name: (elements a block, bytes a block), as in ggml.h and ggml-common.h.
BLOCKS: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "F32": (1, 4),
        "F16": (1, 2),
        "Q4_0": (32, 18),
        "Q4_1": (32, 20),
        "Q5_0": (32, 22),
        "Q5_1": (32, 24),
        "Q8_0": (32, 34),
        "Q8_1": (32, 40),
        "Q2_K": (256, 84),
        "Q3_K": (256, 110),
        "Q4_K": (256, 144),
        "Q5_K": (256, 176),
        "Q6_K": (256, 210),
        "Q8_K": (256, 292),
        "IQ2_XXS": (256, 66),
        "IQ2_XS": (256, 74),
        "IQ3_XXS": (256, 98),
        "IQ1_S": (256, 50),
        "IQ4_NL": (32, 18),
        "IQ3_S": (256, 110),
        "IQ2_S": (256, 82),
        "IQ4_XS": (256, 136),
        "I8": (1, 1),
        "I16": (1, 2),
        "I32": (1, 4),
        "I64": (1, 8),
        "F64": (1, 8),
        "IQ1_M": (256, 56),
        "BF16": (1, 2),
        "TQ1_0": (256, 54),
        "TQ2_0": (256, 66),
        "MXFP4": (32, 17),
        "NVFP4": (64, 36),
        "Q1_0": (128, 18),
        "Q2_0": (64, 18),
    }
)
_TENSOR_TYPES = (
    *("F32", "F16", "Q4_0", "Q4_1", None, None, "Q5_0", "Q5_1", "Q8_0", "Q8_1"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S"),
    *("IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M"),
    *("BF16", None, None, None, "TQ1_0", "TQ2_0", None, None, None, "MXFP4"),
    *("NVFP4", "Q1_0", "Q2_0"),
)
# Metadata value types by their number: name and struct code ("" is not a plain number).
_VALUE_TYPES = (
    *(("uint8", "B"), ("int8", "b"), ("uint16", "H"), ("int16", "h"), ("uint32", "I"), ("int32", "i")),
    *(
        ("float32", "f"),
        ("bool", "?"),
        ("string", ""),
        ("array", ""),
        ("uint64", "Q"),
        ("int64", "q"),
        ("float64", "d"),
    ),
)
_STRING, _ARRAY = 8, 9

KEPT_VALUES = 4096
# Far above any real header (Gemma's 262,144-token vocabulary takes 12 MiB), low enough to stay quick on a hostile one.
_MAX_HEADER_BYTES = 512 * 2**20
_MAX_ENTRIES = 8 * 2**20
_MAX_TEXT_BYTES = 16 * 2**20
_MAX_NAME_BYTES = 63  # GGML_MAX_NAME - 1
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 2**63 - 1
_FIRST_READ_BYTES = 2**20
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True)
class ArrayField:
    """An array in the metadata; ``values`` only of numbers, at most KEPT_VALUES of them.

    ``size_bytes`` counts the entries' content; the length prefixes of strings are not in it.
    """

    type: str
    length: int
    size_bytes: int
    values: tuple[int | float | bool, ...] | None = None


Value = int | float | str | bool | ArrayField


@dataclass(frozen=True)
class Tensor:
    """One tensor; ``shape`` as in the file (length of a row first), ``offset`` from the file's first byte."""

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size_bytes: int

    @property
    def weights(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself. ``size_bytes`` is the whole file's."""

    path: Path
    size_bytes: int
    metadata: Mapping[str, Value]
    tensors: tuple[Tensor, ...]

    @property
    def alignment(self) -> int:
        """Every tensor begins at a multiple of so many bytes."""
        value = self.metadata.get("general.alignment", 32)
        assert isinstance(value, int)
        return value


def tensor_size_bytes(shape: tuple[int, ...], type: str) -> int:
    """Bytes of a tensor's data; raises ValueError where a row is not a whole number of blocks."""
    block, block_bytes = BLOCKS[type]
    if shape and shape[0] % block:
        raise ValueError(f"a row of {shape[0]} is not made of blocks of {block} ({type})")
    elements = 1
    for length in shape:
        elements *= length
    return elements // block * block_bytes


def read_header(path: Path) -> Header:
    """The header of the GGUF file at ``path``; raises ModelDamaged, whatever is wrong with it."""
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            file.seek(0)
            return _Reader(path, file, size_bytes).header()
    except (OSError, ValueError) as error:
        raise ModelDamaged(path=str(path), why=str(error)) from error


class _Reader:
    """A position in the file's first bytes, which are fetched as far as they are needed."""

    def __init__(self, path: Path, file: BinaryIO, size_bytes: int) -> None:
        self._path, self._file, self._size_bytes = path, file, size_bytes
        self._limit = min(size_bytes, _MAX_HEADER_BYTES)
        self._seen = b""
        self._at = 0
        self._entries_left = _MAX_ENTRIES

    def header(self) -> Header:
        if self._bytes(4) != b"GGUF":
            self._fail("not a GGUF file: it does not begin with GGUF")
        version = self._u32()
        if version not in (2, 3):
            self._fail("big-endian" if version & 0xFFFF == 0 else f"GGUF version {version} is not supported")
        tensor_count, pair_count = self._u64(), self._u64()
        self._spend(pair_count, "metadata entries")
        self._spend(tensor_count, "tensors")
        metadata = self._metadata(pair_count)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            self._fail("general.alignment is not a power of two")
        tensors = self._tensors(tensor_count, alignment)
        return Header(self._path, self._size_bytes, MappingProxyType(metadata), tensors)

    def _metadata(self, count: int) -> dict[str, Value]:
        metadata: dict[str, Value] = {}
        for _ in range(count):
            key = self._text("a metadata key")
            if not key or key in metadata:
                self._fail(f"metadata key {key[:64]!r} is empty or stands twice")
            metadata[key] = self._value(key, self._u32())
        return metadata

    def _value(self, key: str, number: int) -> Value:
        if number == _ARRAY:
            return self._array(key)
        if number == _STRING:
            return self._text(key)
        (value,) = self._numbers(key, number, 1)
        return value

    def _array(self, key: str) -> ArrayField:
        number, length = self._u32(), self._u64()
        self._spend(length, key)
        if number == _STRING:
            return ArrayField("string", length, self._skip_texts(length))
        name, width = self._number_type(key, number)
        if length <= KEPT_VALUES:
            return ArrayField(name, length, length * width, self._numbers(key, number, length))
        self._need(length * width)
        self._at += length * width
        return ArrayField(name, length, length * width)

    def _number_type(self, key: str, number: int) -> tuple[str, int]:
        if number >= len(_VALUE_TYPES) or number in (_STRING, _ARRAY):
            self._fail(f"metadata key {key[:64]!r} has type {number}, which does not exist here")
        name, code = _VALUE_TYPES[number]
        return name, struct.calcsize(code)

    def _numbers(self, key: str, number: int, count: int) -> tuple[int | float | bool, ...]:
        _, width = self._number_type(key, number)
        return struct.unpack(f"<{count}{_VALUE_TYPES[number][1]}", self._bytes(count * width))

    def _skip_texts(self, count: int) -> int:
        start, at, read = self._at, self._at, _U64.unpack_from
        for _ in range(count):
            if at + 8 > len(self._seen):
                self._at = at
                self._need(8)
            at += 8 + read(self._seen, at)[0]
        self._at = start
        self._need(at - start)
        self._at = at
        return at - start - 8 * count

    def _tensors(self, count: int, alignment: int) -> tuple[Tensor, ...]:
        described = [self._tensor() for _ in range(count)]
        if len({name for name, *_ in described}) != count:
            self._fail("two tensors have the same name")
        # llama.cpp takes tensors only where the list's order and sizes put them.
        base = _pad(self._at, alignment)
        expected = 0
        tensors = []
        for name, shape, kind, offset, size_bytes in described:
            if offset != expected:
                self._fail(f"tensor {name!r} stands at {offset}, not at {expected}")
            if base + offset + size_bytes > self._size_bytes:
                self._fail(f"the file ends inside tensor {name!r}: {self._size_bytes} bytes are not all of it")
            expected = _pad(offset + size_bytes, alignment)
            tensors.append(Tensor(name, shape, kind, base + offset, size_bytes))
        return tuple(tensors)

    def _tensor(self) -> tuple[str, tuple[int, ...], str, int, int]:
        name = self._text("a tensor's name", _MAX_NAME_BYTES)
        dimensions = self._u32()
        if dimensions > _MAX_DIMENSIONS:
            self._fail(f"tensor {name!r} has {dimensions} dimensions")
        shape = tuple(self._u64() for _ in range(dimensions))
        elements = 1
        for length in shape:
            elements *= length
        if not 0 < elements <= _MAX_ELEMENTS:
            self._fail(f"tensor {name!r} has an impossible shape {shape}")
        number = self._u32()
        kind = _TENSOR_TYPES[number] if number < len(_TENSOR_TYPES) else None
        if kind is None:
            self._fail(f"tensor {name!r} has type {number}, which is not known here")
        return name, shape, kind, self._u64(), tensor_size_bytes(shape, kind)

    def _text(self, what: str, most_bytes: int = _MAX_TEXT_BYTES) -> str:
        length = self._u64()
        if length > most_bytes:
            self._fail(f"{what[:64]} is {length} bytes long")
        return self._bytes(length).decode("utf-8", errors="replace")

    def _u32(self) -> int:
        return int(_U32.unpack(self._bytes(4))[0])

    def _u64(self) -> int:
        return int(_U64.unpack(self._bytes(8))[0])

    def _bytes(self, count: int) -> bytes:
        self._need(count)
        self._at += count
        return self._seen[self._at - count : self._at]

    def _need(self, count: int) -> None:
        end = self._at + count
        if end <= len(self._seen):
            return
        if end > self._limit:
            self._fail("the file ends inside its header" if end > self._size_bytes else "the header is too long")
        # Doubling keeps the copying linear; a short read means that the file shrank under us.
        target = min(max(end, 2 * len(self._seen), _FIRST_READ_BYTES), self._limit)
        self._seen += self._file.read(target - len(self._seen))
        if len(self._seen) < end:
            self._fail("the file ends inside its header")

    def _spend(self, count: int, what: str) -> None:
        self._entries_left -= count
        if self._entries_left < 0 or count > self._size_bytes:
            self._fail(f"{count} entries in {what[:64]} are more than this file can hold")

    def _fail(self, why: str) -> NoReturn:
        raise ModelDamaged(path=str(self._path), why=why)


def _pad(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
