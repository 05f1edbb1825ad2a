"""Model files that are cut, flipped and forged: a typed error or a working engine, never a crash of ours."""

from __future__ import annotations

import random
import shutil
import struct
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from lib.engines.chat import stream_chat
from lib.engines.embedded import EmbeddedEngine, EmbeddedOptions
from lib.errors import BancadaError, EngineError, ModelDamaged, ModelError
from lib.gguf.header import Header, read_header
from lib.models.store import ModelStore
from tests.server.helpers import Start, drain

MUTATIONS = 500
ON_THE_ENGINE = 20
HEADER_S = 30.0
HUGE = (0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1)

Damage = Callable[[random.Random, bytearray, int], None]


def flip_bits(pick: random.Random, header: bytearray, size: int) -> None:
    # Half of them among the first kilobytes, where the counts and the model's shape stand.
    end = 4096 if pick.random() < 0.5 else len(header)
    for _ in range(pick.choice([1, 1, 3, 30])):
        header[pick.randrange(end)] ^= 1 << pick.randrange(8)


def forge_count(pick: random.Random, header: bytearray, size: int) -> None:
    at = pick.choice([8, 16, pick.randrange(24, 2048), pick.randrange(24, len(header) - 8)])
    struct.pack_into("<Q", header, at, pick.choice(HUGE))


def forge_type(pick: random.Random, header: bytearray, size: int) -> None:
    at = header.find(b".", pick.randrange(24, 2048)) + pick.randrange(1, 24)
    struct.pack_into("<I", header, at, pick.choice([9, 13, 255, 2**31, 2**32 - 1]))


def forge_magic(pick: random.Random, header: bytearray, size: int) -> None:
    at, forged = pick.choice([(0, b"GGML"), (0, b"\x80\x04pi"), (4, b"\0\0\0\3"), (4, b"\x63\0\0\0"), (0, b"PK\3\4")])
    header[at : at + 4] = forged


def zero_a_stretch(pick: random.Random, header: bytearray, size: int) -> None:
    at = pick.randrange(len(header))
    length = min(pick.choice([1, 8, 64, 4096]), len(header) - at)
    header[at : at + length] = bytes(length)


def move_a_piece(pick: random.Random, header: bytearray, size: int) -> None:
    source, to, length = pick.randrange(len(header)), pick.randrange(len(header)), pick.choice([4, 8, 100])
    piece = header[source : source + length]
    header[to : to + len(piece)] = piece


DAMAGES: tuple[Damage, ...] = (flip_bits, forge_count, forge_type, forge_magic, zero_a_stretch, move_a_piece)


@pytest.fixture(scope="module")
def header_bytes(default_model: Path) -> bytes:
    """The real file up to its tensors' data."""
    first = min(tensor.offset for tensor in read_header(default_model).tensors)
    with default_model.open("rb") as file:
        return file.read(first)


def mutated(real: bytes, size: int, path: Path) -> Iterator[str]:
    """Write one damaged file after the other to ``path`` (its data are a hole); yields how it was damaged."""
    for seed in range(MUTATIONS):
        pick = random.Random(seed)
        header, length, damage = bytearray(real), size, pick.choice(DAMAGES)
        if seed % 5 == 0:
            length = int(2 ** pick.uniform(0, 27)) % size
        else:
            damage(pick, header, size)
        path.write_bytes(header[:length])
        with path.open("r+b") as file:
            file.truncate(length)
        yield f"seed {seed}, {damage.__name__ if seed % 5 else 'cut'} at {length}"


def read_all(real: bytes, size: int, folder: Path, wire: Connection) -> None:
    """In a process of its own: what ``read_header`` makes of every damaged file."""
    path = folder / "damaged.gguf"
    for how in mutated(real, size, path):
        started = time.process_time()
        try:
            found: object = read_header(path)
            said = ("header", isinstance(found, Header), "")
        except ModelDamaged as error:
            said = ("damaged", error.parameters["path"] == str(path), str(error.parameters["why"]))
        except BaseException as error:
            said = ("untyped", False, repr(error))
        wire.send((how, *said, time.process_time() - started))


def test_every_damaged_header_is_read_or_refused_with_name_and_cause(
    header_bytes: bytes, default_model: Path, tmp_path: Path, start: Start
) -> None:
    reader = start(read_all, header_bytes, default_model.stat().st_size, tmp_path)
    outcomes = reader.rest()
    assert len(outcomes) == MUTATIONS, f"the reader's process died after {outcomes[-1:]}"
    assert [one for one in outcomes if one[1] == "untyped" or not one[2]] == []
    assert all(why for _, kind, _, why, _ in outcomes if kind == "damaged")
    assert max(seconds for *_, seconds in outcomes) < HEADER_S
    kinds = {kind for _, kind, *_ in outcomes}
    assert kinds == {"header", "damaged"}


def run_on_engine(models: ModelStore, logs: Path) -> str:
    """Load the learner's own file ``damaged`` and ask it something."""
    engine = EmbeddedEngine(models, logs, EmbeddedOptions(256, 1))
    try:
        drain(engine.ensure("damaged"))
        *_, reply = stream_chat(engine.client("damaged"), "damaged", [{"role": "user", "content": "Hi"}], max_tokens=4)
        return reply.finish or "no finish"
    except (ModelError, EngineError) as error:
        return error.id
    finally:
        engine.release()


def test_a_damaged_model_of_the_learners_own_ends_in_a_typed_error_or_in_an_answer(
    header_bytes: bytes, default_model: Path, tmp_path: Path
) -> None:
    models, size = ModelStore(tmp_path / "models"), default_model.stat().st_size
    own = models.folder / "own"
    own.mkdir(parents=True)
    target, trial = own / "damaged.gguf", tmp_path / "trial.gguf"
    shutil.copy(default_model, target)
    outcomes: dict[str, str] = {}
    for how in mutated(header_bytes, size, trial):
        try:
            read_header(trial)
        except ModelDamaged:
            continue
        with target.open("r+b") as file:
            file.write(trial.read_bytes()[: len(header_bytes)])
        outcomes[how] = run_on_engine(models, tmp_path / "logs")
        if len(outcomes) == ON_THE_ENGINE:
            break
    assert len(outcomes) == ON_THE_ENGINE
    with target.open("r+b") as file:
        file.write(header_bytes)
    pick = random.Random(11)
    for number, forged in enumerate((b"\xff" * 65536, bytes(65536), pick.randbytes(65536))):
        with target.open("r+b") as file:
            for _ in range(40):
                file.seek(pick.randrange(len(header_bytes), size - 65536))
                file.write(forged)
        outcomes[f"data {number}"] = run_on_engine(models, tmp_path / "logs")
    typed = {
        "stop",
        "length",
        "engine-did-not-start",
        "engine-died",
        "engine-refused",
        "model-damaged",
        "model-too-large",
    }
    assert set(outcomes.values()) <= typed, outcomes
    assert threading.main_thread().is_alive()
    # The machinery itself works: the whole file answers.
    shutil.copy(default_model, target)
    assert run_on_engine(models, tmp_path / "logs") in ("stop", "length")


@pytest.mark.parametrize("content", [b"", b"G", b"GGUF", b"GGUF\3\0\0\0", bytes(100), b"\xff" * 100])
def test_a_file_of_a_few_bytes_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "few.gguf"
    path.write_bytes(content)
    with pytest.raises(BancadaError) as caught:
        read_header(path)
    assert caught.value.parameters["path"] == str(path)
