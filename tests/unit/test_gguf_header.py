"""The header reader against files written here byte by byte."""

from __future__ import annotations

import random
import struct
import time
from pathlib import Path

import pytest

from lib.errors import ModelDamaged
from lib.gguf.header import KEPT_VALUES, ArrayField, Header, read_header, tensor_size_bytes

UINT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 6, 7, 8, 9, 10
F32, Q4_0 = 0, 2


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def u32(key: str, value: int) -> bytes:
    return pair(key, UINT32, struct.pack("<I", value))


def array(key: str, kind: int, length: int, content: bytes) -> bytes:
    return pair(key, ARRAY, struct.pack("<IQ", kind, length) + content)


def tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf(pairs: list[bytes], tensors: list[bytes], data: int = 0, version: int = 3, alignment: int = 32) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    return head + b"\0" * (-len(head) % alignment) + b"\1" * data


SAMPLE = gguf(
    [
        pair("general.architecture", STRING, text("llama")),
        u32("llama.block_count", 30),
        pair("llama.epsilon", FLOAT32, struct.pack("<f", 0.5)),
        pair("tokenizer.add_bos", BOOL, b"\1"),
        pair("big", UINT64, struct.pack("<Q", 2**63)),
        array("heads", UINT32, 3, struct.pack("<3I", 9, 3, 9)),
        array("tokens", STRING, 3, text("a") + text("") + text("ção")),
    ],
    [tensor("token_embd.weight", (64, 3), Q4_0, 0), tensor("norm.weight", (5,), F32, 128)],
    data=128 + 20,
)


def read(tmp_path: Path, content: bytes) -> Header:
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    return read_header(path)


def why(tmp_path: Path, content: bytes) -> str:
    with pytest.raises(ModelDamaged) as caught:
        read(tmp_path, content)
    return str(caught.value.parameters["why"])


def test_metadata_of_every_kind_are_read(tmp_path: Path) -> None:
    metadata = read(tmp_path, SAMPLE).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 30
    assert metadata["llama.epsilon"] == 0.5
    assert metadata["tokenizer.add_bos"] is True
    assert metadata["big"] == 2**63
    assert metadata["heads"] == ArrayField("uint32", 3, 12, (9, 3, 9))


def test_strings_of_an_array_are_measured_and_not_kept(tmp_path: Path) -> None:
    assert read(tmp_path, SAMPLE).metadata["tokens"] == ArrayField("string", 3, 1 + 0 + 5, None)


def test_a_long_array_of_numbers_is_measured_and_not_kept(tmp_path: Path) -> None:
    length = KEPT_VALUES + 1
    found = read(tmp_path, gguf([array("scores", FLOAT32, length, bytes(4 * length))], [])).metadata["scores"]
    assert found == ArrayField("float32", length, 4 * length, None)


def test_tensors_stand_after_the_padded_header(tmp_path: Path) -> None:
    header = read(tmp_path, SAMPLE)
    start = len(SAMPLE) - 148
    first, second = header.tensors
    assert (first.name, first.shape, first.type) == ("token_embd.weight", (64, 3), "Q4_0")
    assert (first.offset, first.size_bytes) == (start, 6 * 18)
    assert (second.offset, second.size_bytes) == (start + 128, 20)
    assert header.size_bytes == len(SAMPLE)


def test_another_alignment_moves_the_tensors(tmp_path: Path) -> None:
    content = gguf([u32("general.alignment", 256)], [tensor("t", (2,), F32, 0)], data=8, alignment=256)
    assert read(tmp_path, content).tensors[0].offset == 256


def test_version_two_is_read_as_well(tmp_path: Path) -> None:
    assert read(tmp_path, gguf([u32("a", 1)], [], version=2)).metadata["a"] == 1


def test_a_file_that_ends_early_is_damaged_wherever_it_ends(tmp_path: Path) -> None:
    for length in range(len(SAMPLE)):
        why(tmp_path, SAMPLE[:length])


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (b"", "ends inside"),
        (b"PK\3\4" + bytes(64), "not a GGUF"),
        (gguf([], [], version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "more than this file can hold"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "more than this file can hold"),
        (gguf([u32("a", 1), u32("a", 2)], []), "stands twice"),
        (gguf([pair("a", 13, b"")], []), "type 13"),
        (gguf([array("a", ARRAY, 0, b"")], []), "type 9"),
        (gguf([array("a", STRING, 2**61, b"")], []), "more than this file can hold"),
        (gguf([pair("a", STRING, struct.pack("<Q", 2**63))], []), "bytes long"),
        (gguf([u32("general.alignment", 0)], []), "power of two"),
        (gguf([u32("general.alignment", 24)], []), "power of two"),
        (gguf([], [tensor("t", (2,) * 5, F32, 0)], data=128), "5 dimensions"),
        (gguf([], [tensor("t", (0, 2), F32, 0)], data=128), "impossible shape"),
        (gguf([], [tensor("t", (2**40, 2**40), F32, 0)], data=128), "impossible shape"),
        (gguf([], [tensor("t", (33,), Q4_0, 0)], data=128), "not made of blocks"),
        (gguf([], [tensor("t", (32,), 4, 0)], data=128), "type 4"),
        (gguf([], [tensor("t", (32,), F32, 64)], data=256), "stands at 64"),
        (gguf([], [tensor("t", (32,), F32, 0)] * 2, data=256), "same name"),
        (gguf([], [tensor("t" * 64, (32,), F32, 0)], data=128), "bytes long"),
        (gguf([], [tensor("t", (32,), F32, 0)], data=127), "ends inside tensor"),
    ],
)
def test_each_fault_is_named(tmp_path: Path, content: bytes, cause: str) -> None:
    assert cause in why(tmp_path, content)


def test_a_path_without_a_file_is_the_same_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(ModelDamaged):
            read_header(path)


def test_a_file_that_claims_endless_strings_is_refused_quickly(tmp_path: Path) -> None:
    content = gguf([array("tokens", STRING, 9_000_000, b"")], [])
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    with path.open("r+b") as file:
        file.truncate(2**30)  # sparse: zeros, each eight of them an empty string
    begun = time.process_time()
    with pytest.raises(ModelDamaged):
        read_header(path)
    assert time.process_time() - begun < 2


def test_any_other_bytes_end_in_a_header_or_in_that_error(tmp_path: Path) -> None:
    chance = random.Random(5)
    for _ in range(500):
        content = bytearray(SAMPLE)
        for _ in range(chance.choice((1, 1, 2, 8))):
            content[chance.randrange(len(content))] = chance.randrange(256)
        try:
            assert isinstance(read(tmp_path, bytes(content)), Header)
        except ModelDamaged:
            continue


def test_the_size_of_a_tensor_is_its_blocks(tmp_path: Path) -> None:
    assert tensor_size_bytes((576, 49152), "Q8_0") == 576 // 32 * 34 * 49152
    assert tensor_size_bytes((), "F32") == 4
