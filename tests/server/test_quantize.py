"""Quantizing and its cost in quality: real files, real kills, and the figures computed a second way."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import struct
import subprocess
import threading
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil
import pytest

from lib.course.draw import to_text
from lib.course.result import Progress, Result
from lib.course.run import Run, execute
from lib.errors import (
    BancadaError,
    CannotWrite,
    DiskFull,
    ModelDamaged,
    ModelError,
    QuantizerRefused,
    TextTooShort,
    ToolchainDied,
    UnknownModel,
)
from lib.gguf.formats import FORMATS
from lib.gguf.header import read_header
from lib.gguf.logits import logits_of, tokens_of
from lib.gguf.made import Made, make_format, plan_formats
from lib.gguf.quality import CHUNK_TOKENS, MOST_CHUNKS, TEXT, Quality, Scored, measure_quality
from lib.text import LANGUAGES
from lib.workbench import Workbench
from tests.conftest import DEFAULT, missing
from tests.server.helpers import Other, Start, wait_until
from tests.server.test_damaged_models import DAMAGES
from tests.server.tiny import write_tiny

MIB = 1 << 20
GONE_S = 60.0
MUTATIONS = 50
EIGHT_CHUNKS = "a" * 5000
T = TypeVar("T")
Events = Generator[Progress, None, T]


def finished(events: Events[T]) -> T:
    """What a generator gives back, whatever it takes; closed, as a failed test's traceback would hold it."""
    with closing(events):
        while True:
            try:
                next(events)
            except StopIteration as stop:
                value: T = stop.value
                return value


def opened(home: Path) -> Workbench:
    return Workbench.open(home=home, language="en", _env_file=None)


@pytest.fixture(scope="session")
def shared(default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """A workbench with every format of the default model, which tests only read."""
    home = tmp_path_factory.mktemp("shared")
    (home / "models").mkdir()
    (home / "models" / DEFAULT).symlink_to(default_model.parent, target_is_directory=True)
    yield from with_every_format(home, DEFAULT)


@pytest.fixture(scope="session")
def small(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """The same with the small model."""
    home = tmp_path_factory.mktemp("small")
    own = home / "models" / "own"
    own.mkdir(parents=True)
    shutil.copy(tiny, own)
    yield from with_every_format(home, "tiny")


def with_every_format(home: Path, model: str) -> Iterator[Workbench]:
    workbench = opened(home)
    for name in FORMATS:
        finished(make_format(workbench, model, name))
    yield workbench
    workbench.close()
    workbench.store.close()
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small whole model in F16."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of 40 MB, which takes long enough to be stopped in the middle."""
    return write_tiny(tmp_path_factory.mktemp("larger") / "larger.gguf", layers=8, width=512)


@pytest.fixture
def bench(tmp_path: Path, tiny: Path, larger: Path) -> Iterator[Workbench]:
    """A workbench of its own with the small models, nothing made yet."""
    own = tmp_path / "home" / "models" / "own"
    own.mkdir(parents=True)
    shutil.copy(tiny, own / "tiny.gguf")
    (own / "larger.gguf").symlink_to(larger)
    made = opened(tmp_path / "home")
    yield made
    made.close()
    made.store.close()


def made_folder(workbench: Workbench, model: str = "tiny") -> Path:
    return workbench.settings.models_dir / "made" / model


def leftovers(workbench: Workbench) -> set[str]:
    """All that lies where files are made, but for locks."""
    folder = workbench.settings.models_dir / "made"
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"}


def own_children(workbench: Workbench) -> list[psutil.Process]:
    """The toolchain processes that work for this home, told by where their temporary files go."""
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            place = one.environ().get("TMPDIR", "")
            if place.startswith(str(workbench.settings.home)) and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


class Counting:
    """The toolchains, and which operations were asked of their children."""

    def __init__(self, workbench: Workbench) -> None:
        self.ops: list[str] = []
        self._real = workbench.toolchains
        workbench.__dict__["toolchains"] = self

    def call(self, name: str, child: str, request: Mapping[str, Any]) -> Events[dict[str, Any]]:
        self.ops.append(request["op"])
        return (yield from self._real.call(name, child, request))


def is_whole(path: Path) -> bool:
    """Whether a file stands as its manifest says, every tensor inside it."""
    wanted = json.loads(path.with_suffix(".json").read_text())["size_bytes"]
    header = read_header(path)
    last = max(one.offset + one.size_bytes for one in header.tensors)
    return path.stat().st_size == wanted and wanted - last < header.alignment


# What a format makes.


@pytest.mark.parametrize(("made", "model"), [("shared", DEFAULT), ("small", "tiny")])
def test_the_forecast_and_the_planned_types_are_those_of_every_real_file(
    request: pytest.FixtureRequest, made: str, model: str
) -> None:
    workbench: Workbench = request.getfixturevalue(made)
    plans = finished(plan_formats(workbench, model, FORMATS))
    assert list(plans) == list(FORMATS)
    for name, plan in plans.items():
        header = read_header(workbench.models.made_path(model, name))
        assert abs(plan.size_bytes / header.size_bytes - 1) < 0.01, name
        assert {one.name: one.type for one in plan.tensors} == {one.name: one.type for one in header.tensors}, name
        assert plan.bits_per_weight == pytest.approx(
            8 * sum(one.size_bytes for one in header.tensors) / sum(one.weights for one in header.tensors)
        )


def test_a_format_named_after_a_type_has_it_where_the_rows_allow_it(shared: Workbench, small: Workbench) -> None:
    for name, one in FORMATS.items():
        types = {tensor.type for tensor in read_header(small.models.made_path("tiny", name)).tensors}
        assert one.type in types, name
    plans = finished(plan_formats(small, "tiny", ["Q4_K_M", "Q8_0"]))
    assert [plan.fallbacks for plan in plans.values()] == [0, 0]
    assert finished(plan_formats(shared, DEFAULT, ["Q4_K_M"]))["Q4_K_M"].fallbacks > 100


def values_of(gguf: Path, wanted: Container[str] | None = None) -> dict[str, np.ndarray]:
    """Tensors in float32, as the gguf package reads their blocks; shapes as torch has them."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    data, found = np.memmap(gguf, np.uint8, "r"), {}
    for one in read_header(gguf).tensors:
        if wanted is None or one.name in wanted:
            raw = data[one.offset : one.offset + one.size_bytes]
            values = dequantize(raw.reshape(one.weights // one.shape[0], -1), GGMLQuantizationType[one.type])
            found[one.name] = values.reshape(one.shape[::-1])
    return found


def test_the_f16_of_a_quantized_source_holds_the_numbers_that_the_source_stands_for(
    shared: Workbench, default_model: Path
) -> None:
    names = ("blk.0.attn_q.weight", "blk.29.ffn_down.weight", "blk.7.attn_v.weight", "output_norm.weight")
    source, made = values_of(default_model, names), values_of(shared.models.made_path(DEFAULT, "F16"), names)
    assert {one.type for one in read_header(default_model).tensors if one.name in names} == {"Q4_1", "F32"}
    for name in names:
        rounded = source[name] if "norm" in name else source[name].astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(made[name], rounded)


def test_a_quantized_tensor_is_near_the_f16_it_was_made_from(shared: Workbench) -> None:
    name = "blk.3.ffn_down.weight"
    wanted = values_of(shared.models.made_path(DEFAULT, "F16"), (name,))[name]
    off = {}
    for format in ("Q8_0", "Q6_K", "Q4_0", "TQ2_0"):
        found = values_of(shared.models.made_path(DEFAULT, format), (name,))[name]
        off[format] = float(np.sqrt(((found - wanted) ** 2).mean() / (wanted**2).mean()))
    assert off["Q8_0"] < 0.01 and off["Q8_0"] < off["Q6_K"] < off["Q4_0"] < 0.15 < off["TQ2_0"], off


# Made once.


def test_a_format_that_is_here_is_not_written_again(bench: Workbench) -> None:
    first = finished(make_format(bench, "tiny", "Q4_0"))
    before = first.path.stat()
    counting = Counting(bench)
    second = finished(make_format(bench, "tiny", "Q4_0"))
    assert (first.reused, second.reused) == (False, True)
    assert {**asdict(first), "reused": True} == asdict(second)
    assert (second.path.stat().st_ino, second.path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert counting.ops == []


def test_what_was_made_is_described_as_it_is(bench: Workbench) -> None:
    import hashlib

    made = finished(make_format(bench, "tiny", "Q4_0"))
    source = bench.models.path("tiny")
    assert made.sha256 == hashlib.sha256(made.path.read_bytes()).hexdigest()
    assert made.source_sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert made.size_bytes == made.path.stat().st_size
    assert made.path == bench.models.path("tiny.Q4_0")
    assert made.seconds > 0 and made.peak_bytes > MIB and made.quantizer.startswith("cyllama ")


def make_in_process(home: Path, model: str, formats: tuple[str, ...], wire: Connection) -> None:
    """Another process that makes formats; says every progress and, of each format, whether it was here."""
    workbench = opened(home)
    wire.send("ready")
    wire.recv()
    try:
        for name in formats:
            events = make_format(workbench, model, name)
            while True:
                try:
                    event = next(events)
                except StopIteration as stop:
                    wire.send(("made", name, stop.value.reused))
                    break
                wire.send((event.what, event.done, event.detail))
    except BancadaError as error:
        wire.send(("error", error.id, str(error)))


def test_processes_and_threads_that_ask_at_once_make_one_file(bench: Workbench, start: Start) -> None:
    others = [start(make_in_process, bench.settings.home, "larger", ("F16", "Q8_0")) for _ in range(3)]
    for other in others:
        assert other.says() == "ready"
    mine: list[Made] = []
    threads = [
        threading.Thread(target=lambda: mine.append(finished(make_format(bench, "larger", "Q8_0")))) for _ in range(2)
    ]
    for other in others:
        other.go()
    for thread in threads:
        thread.start()
    said = [one for other in others for one in other.rest()]
    for thread in threads:
        thread.join()
    assert [one for one in said if one[0] == "error"] == []
    made = [one for one in said if one[0] == "made"]
    assert len(made) == 6 and len(mine) == 2
    news = [name for _, name, reused in made if not reused] + ["Q8_0" for one in mine if not one.reused]
    assert news.count("Q8_0") == 1 and news.count("F16") <= 1, said
    assert leftovers(bench) == {f"larger/{name}" for name in ("F16.gguf", "F16.json", "Q8_0.gguf", "Q8_0.json")}
    assert is_whole(bench.models.made_path("larger", "Q8_0"))


def change_content(source: Path, made: Path) -> None:
    write_tiny(source, seed=8)


def change_content_and_nothing_else(source: Path, made: Path) -> None:
    at = source.stat()
    write_tiny(source, seed=9)
    os.utime(source, ns=(at.st_atime_ns, at.st_mtime_ns + 1))


def truncate(source: Path, made: Path) -> None:
    with made.open("r+b") as file:
        file.truncate(made.stat().st_size - 1)


def append(source: Path, made: Path) -> None:
    with made.open("ab") as file:
        file.write(b"x")


def remove(source: Path, made: Path) -> None:
    made.unlink()


def remove_manifest(source: Path, made: Path) -> None:
    made.with_suffix(".json").unlink()


@pytest.mark.parametrize(
    "spoil", [change_content, change_content_and_nothing_else, truncate, append, remove, remove_manifest]
)
@pytest.mark.parametrize("format", ["F16", "Q4_0"])
def test_what_is_not_whole_or_of_another_source_is_made_anew(
    bench: Workbench, spoil: Callable[[Path, Path], None], format: str
) -> None:
    before = finished(make_format(bench, "tiny", format))
    spoil(bench.models.path("tiny"), before.path)
    after = finished(make_format(bench, "tiny", format))
    assert not after.reused and is_whole(after.path)
    changed = "content" in spoil.__name__
    assert (after.sha256 != before.sha256) == changed
    assert (after.source_sha256 != before.source_sha256) == changed
    assert finished(make_format(bench, "tiny", format)).reused


GARBAGE = [b"", b"{", b"null", b"5", b"[]", b'"text"', b"\xff\xfe", b"{}", b'{"source_stat": 5}', b"[" * 100_000]


@pytest.mark.parametrize("content", GARBAGE, ids=lambda one: repr(one[:20]))
def test_a_manifest_that_is_garbage_is_as_good_as_none(bench: Workbench, content: bytes) -> None:
    before = finished(make_format(bench, "tiny", "F16"))
    before.path.with_suffix(".json").write_bytes(content)
    after = finished(make_format(bench, "tiny", "F16"))
    assert not after.reused and after.sha256 == before.sha256


def test_a_manifest_whose_values_are_of_other_kinds_is_as_good_as_none(bench: Workbench) -> None:
    made = finished(make_format(bench, "tiny", "F16"))
    manifest = made.path.with_suffix(".json")
    real = json.loads(manifest.read_text())
    for change in ({"seconds": "long"}, {"sha256": None}, {"format": 4}, {"more": 1}, {"peak_bytes": []}):
        manifest.write_text(json.dumps(real | change))
        again = finished(make_format(bench, "tiny", "F16"))
        assert (again.format, again.sha256) == ("F16", made.sha256), change
        assert isinstance(again.seconds, float) and isinstance(again.peak_bytes, int), change


# What it costs, computed a second way.


@pytest.fixture(scope="module")
def text() -> str:
    """A little more than two chunks."""
    return TEXT.read_text(encoding="utf-8")[:5200]


@pytest.fixture(scope="module")
def measured(shared: Workbench, text: str) -> tuple[Scored, Quality]:
    scored, (found,) = finished(measure_quality(shared, DEFAULT, ["Q4_0"], text))
    return scored, found


ROLES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def in_torch(gguf: Path) -> Any:
    """The file as transformers' own Llama in float32."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    of, values = read_header(gguf).metadata, values_of(gguf)
    heads, kv_heads = int(of["llama.attention.head_count"]), int(of["llama.attention.head_count_kv"])  # type: ignore[arg-type]
    config = LlamaConfig(
        vocab_size=len(values["token_embd.weight"]),
        hidden_size=of["llama.embedding_length"],
        intermediate_size=of["llama.feed_forward_length"],
        num_hidden_layers=of["llama.block_count"],
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rms_norm_eps=of["llama.attention.layer_norm_rms_epsilon"],
        rope_theta=of["llama.rope.freq_base"],
        max_position_embeddings=of["llama.context_length"],
        tie_word_embeddings="output.weight" not in values,
    )
    weights = {
        "model.embed_tokens.weight": values["token_embd.weight"],
        "model.norm.weight": values["output_norm.weight"],
    }
    for name, value in values.items():
        if name.startswith("blk."):
            _, layer, role, _ = name.split(".")
            if role in ("attn_q", "attn_k"):
                # llama.cpp turns neighbouring numbers, transformers the two halves of a head.
                count = heads if role == "attn_q" else kv_heads
                value = value.reshape(count, -1, 2, value.shape[-1]).swapaxes(1, 2).reshape(value.shape)
            weights[f"model.layers.{layer}.{ROLES[role]}.weight"] = value
    model = LlamaForCausalLM(config).eval()
    state = {name: torch.from_numpy(np.array(value, np.float32)) for name, value in weights.items()}
    absent = model.load_state_dict(state, strict=False)
    assert set(absent.missing_keys) <= {"lm_head.weight"} and not absent.unexpected_keys
    model.tie_weights()
    return model


def log_probabilities(gguf: Path, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of the second half of each chunk: log-probabilities (n_scored, n_vocab), and the tokens that came."""
    import torch

    model, rows, came = in_torch(gguf), [], []
    # Several threads that wait for each other take minutes where other work shares the cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        for chunk in torch.tensor(tokens[: len(tokens) // CHUNK_TOKENS * CHUNK_TOKENS]).split(CHUNK_TOKENS):
            logits = model(chunk[None]).logits[0, CHUNK_TOKENS // 2 : -1]
            rows.append(torch.log_softmax(logits, dim=-1).numpy())
            came.append(chunk[CHUNK_TOKENS // 2 + 1 :].numpy())
    torch.set_num_threads(threads)
    return np.concatenate(rows), np.concatenate(came)


def test_the_figures_are_those_of_an_independent_computation(
    shared: Workbench, text: str, measured: tuple[Scored, Quality]
) -> None:
    scored, quality = measured
    tokens = finished(tokens_of(shared, shared.models.made_path(DEFAULT, "F16"), text))
    base, came = log_probabilities(shared.models.made_path(DEFAULT, "F16"), tokens)
    other, _ = log_probabilities(shared.models.made_path(DEFAULT, "Q4_0"), tokens)
    at = np.arange(len(came))
    assert scored.chunks >= 2 and scored.scored_tokens == len(came)
    negative = -base[at, came]
    assert scored.perplexity == pytest.approx(float(np.exp(negative.mean())), rel=0.005)
    assert scored.perplexity_error == pytest.approx(
        float(np.exp(negative.mean()) * negative.std(ddof=1) / np.sqrt(len(came))), rel=0.02
    )
    kld = (np.exp(base) * (base - other)).sum(axis=1, dtype=np.float64)
    assert quality.kld == pytest.approx(float(kld.mean()), rel=0.15)
    assert quality.kld_error == pytest.approx(float(kld.std(ddof=1) / np.sqrt(len(kld))), rel=0.25)
    same = 100 * float((base.argmax(axis=1) == other.argmax(axis=1)).mean())
    assert abs(quality.top1_agreement_percent - same) < 4
    assert quality.perplexity == pytest.approx(float(np.exp(-other[at, came].mean())), rel=0.05)
    ratio = float(np.exp(negative.mean()) ** -1 * np.exp(-other[at, came].mean()))
    assert quality.perplexity_ratio_percent == pytest.approx(100 * (ratio - 1), abs=5)
    change = np.exp(other[at, came]) - np.exp(base[at, came])
    assert quality.rms_probability_change_percent == pytest.approx(100 * float(np.sqrt((change**2).mean())), rel=0.15)


def test_a_model_does_not_differ_from_itself(shared: Workbench, text: str, tmp_path: Path) -> None:
    reference = str(shared.models.made_path(DEFAULT, "F16"))
    common = {"folder": str(tmp_path), "chunk_tokens": CHUNK_TOKENS, "threads": 2, "gguf": reference}
    call = shared.toolchains.call
    finished(call("here", "logits", {"op": "reference", **common, "name": "a", "text": text, "most_chunks": 1}))
    finished(call("here", "logits", {"op": "compare", **common, "name": "b"}))
    negative, divergence, same, change = np.load(tmp_path / "b.npy")
    assert divergence.mean() < 1e-4 and same.mean() == 1 and abs(change).max() < 1e-3
    np.testing.assert_allclose(negative, np.load(tmp_path / "a.npy"), atol=1e-4)


def test_what_was_measured_is_kept_and_another_measurement_finds_the_same(
    shared: Workbench, text: str, measured: tuple[Scored, Quality]
) -> None:
    counting = Counting(shared)
    try:
        assert finished(measure_quality(shared, DEFAULT, ["Q4_0"], text)) == (measured[0], [measured[1]])
        assert counting.ops == []
        for kept in made_folder(shared, DEFAULT).glob("quality-*.json"):
            kept.unlink()
        scored, (quality,) = finished(measure_quality(shared, DEFAULT, ["Q4_0"], text))
        assert counting.ops == ["reference", "compare"]
    finally:
        shared.__dict__["toolchains"] = counting._real
    assert asdict(scored) == pytest.approx(asdict(measured[0]), rel=1e-6)
    drop = {"took_s", "format"}
    now, before = ({k: v for k, v in asdict(one).items() if k not in drop} for one in (quality, measured[1]))
    assert now == pytest.approx(before, rel=1e-6)


def test_a_format_is_scored_once_for_a_text_and_again_when_its_file_is_another(bench: Workbench) -> None:
    text = TEXT.read_text(encoding="utf-8")[:2000]
    before, _ = finished(measure_quality(bench, "tiny", ["Q4_0"], text))
    counting = Counting(bench)
    finished(measure_quality(bench, "tiny", ["Q4_0", "Q8_0"], text))
    assert counting.ops.count("compare") == 1
    finished(measure_quality(bench, "tiny", ["Q8_0", "Q4_0"], text))
    assert counting.ops.count("compare") == 1
    finished(measure_quality(bench, "tiny", ["Q4_0"], text + " And more."))
    assert counting.ops.count("compare") == 2
    bench.models.made_path("tiny", "Q4_0").unlink()
    finished(measure_quality(bench, "tiny", ["Q4_0", "Q8_0"], text))
    assert counting.ops.count("compare") == 3
    write_tiny(bench.models.path("tiny"), seed=8)
    after, _ = finished(measure_quality(bench, "tiny", [], text))
    assert after.perplexity != before.perplexity
    finished(measure_quality(bench, "tiny", ["Q4_0", "Q8_0"], text))
    assert counting.ops.count("compare") == 5


@pytest.mark.parametrize(
    "content", [*GARBAGE, b'{"reference": 1}', b'{"formats": []}', b'{"formats": {"Q4_0": 5}}', b'{"scored": 5}']
)
def test_kept_figures_that_are_garbage_are_as_good_as_none(bench: Workbench, content: bytes) -> None:
    text = TEXT.read_text(encoding="utf-8")[:1500]
    before = finished(measure_quality(bench, "tiny", ["Q4_0"], text))
    (kept,) = made_folder(bench).glob("quality-*.json")
    with suppress(ValueError, TypeError):
        real = json.loads(kept.read_text())
        content = json.dumps(real | json.loads(content)).encode() if content[:1] == b"{" else content
    kept.write_bytes(content)
    scored, (quality,) = finished(measure_quality(bench, "tiny", ["Q4_0"], text))
    assert scored == before[0] and quality.kld == pytest.approx(before[1][0].kld, rel=1e-6)


# Texts.


def test_a_text_that_is_too_short_is_told_with_both_numbers(shared: Workbench) -> None:
    for text, tokens in (("Hello, world!", 4), ("\0", 1)):
        with pytest.raises(TextTooShort) as caught:
            finished(measure_quality(shared, DEFAULT, ["Q4_0"], text))
        assert caught.value.parameters == {"need": CHUNK_TOKENS, "found": tokens}


def test_marks_of_a_chat_in_a_text_are_plain_text(shared: Workbench) -> None:
    gguf = shared.models.made_path(DEFAULT, "F16")
    tokens = finished(tokens_of(shared, gguf, "<|im_start|>user"))
    assert not {0, 1, 2} & set(tokens) and len(tokens) > 4
    plain = finished(tokens_of(shared, gguf, "The sea is calm."))
    assert len(plain) == 5


def test_logits_are_those_of_every_token(shared: Workbench, tmp_path: Path) -> None:
    gguf = shared.models.made_path(DEFAULT, "F16")
    tokens = finished(tokens_of(shared, gguf, "The capital of France is"))
    out = finished(logits_of(shared, gguf, tokens, tmp_path / "out.npy"))
    logits = np.load(out)
    assert logits.shape == (len(tokens), 49152) and logits.dtype == np.float32
    (paris,) = finished(tokens_of(shared, gguf, " Paris"))
    assert logits[-1].argmax() == paris


TEXTS = {
    "binary": random.Random(1).randbytes(20_000).decode("latin-1"),
    "lone surrogates": "\ud800" * 5000,
    "a surrogate in a text": "word \udfff " * 800,
    "NUL": "\0" * 5000,
    "NUL in a text": "one\0two " * 800,
    "emoji": "💥" * 40_000,
    "spaces": " " * 40_000,
    "lines": "\r\n" * 10_000,
    "marks": "<|im_start|>user\nHi<|im_end|>\n" * 200,
    "one word": "a" * 40_000,
    "right to left": "\u202eمرحبا " * 2000,
}


@pytest.mark.parametrize("name", TEXTS)
def test_any_text_ends_in_an_answer_or_in_a_typed_error(small: Workbench, name: str) -> None:
    scored, (quality,) = finished(measure_quality(small, "tiny", ["Q4_0"], TEXTS[name]))
    assert scored.chunks >= 1 and np.isfinite(scored.perplexity) and np.isfinite(quality.kld)


@pytest.mark.parametrize("name", TEXTS)
def test_any_text_has_tokens_in_a_vocabulary_of_pairs(shared: Workbench, name: str) -> None:
    assert finished(tokens_of(shared, shared.models.made_path(DEFAULT, "Q4_0"), TEXTS[name]))


# Models that are none.


def forge_value(pick: random.Random, header: bytearray, size: int) -> None:
    """A number of the model's shape, where llama.cpp reads it."""
    key = pick.choice(
        [
            b"block_count",
            b"embedding_length",
            b"head_count",
            b"head_count_kv",
            b"context_length",
            b"feed_forward_length",
        ]
    )
    at = header.find(b"llama." + key) + len(b"llama." + key)
    struct.pack_into("<I", header, at + 4, pick.choice([0, 1, 3, 255, 2**16, 2**31, 2**32 - 1]))


def outcome(workbench: Workbench, model: str) -> tuple[str, ...]:
    """How planning and making end: ids of errors, or that they made something."""
    said = []
    for work in (
        lambda: plan_formats(workbench, model, ["F16", "Q4_K_M"]),
        lambda: make_format(workbench, model, "F16"),
    ):
        try:
            finished(work())
            said.append("made")
        except (ModelError, ToolchainDied) as error:
            said.append(error.id)
    return tuple(said)


def test_damaged_headers_end_in_typed_errors_and_leave_nothing(bench: Workbench, tiny: Path) -> None:
    real, target = tiny.read_bytes(), bench.models.path("tiny")
    end = min(one.offset for one in read_header(tiny).tensors)
    outcomes: dict[str, tuple[str, ...]] = {}
    for seed in range(MUTATIONS):
        pick = random.Random(seed)
        damage = pick.choice([*DAMAGES, forge_value, forge_value])
        header = bytearray(real[:end])
        damage(pick, header, len(real))
        cut = pick.randrange(len(real)) if seed % 8 == 0 else len(real)
        target.write_bytes((bytes(header) + real[end:])[:cut])
        outcomes[f"{seed} {damage.__name__} {cut}"] = outcome(bench, "tiny")
        made = {"tiny/F16.gguf", "tiny/F16.json"} if outcomes[f"{seed} {damage.__name__} {cut}"][1] == "made" else set()
        assert leftovers(bench) == made, (seed, outcomes)
        for name in made:
            (bench.settings.models_dir / "made" / name).unlink()
    # llama.cpp ends its process at a shape that cannot be: only the child's.
    allowed = {"made", "model-damaged", "quantizer-refused", "toolchain-died"}
    assert {one for pair in outcomes.values() for one in pair} <= allowed, outcomes
    kinds = {pair[1] for pair in outcomes.values()}
    assert kinds >= {"made", "model-damaged"}, outcomes
    assert own_children(bench) == []


def not_gguf(path: Path) -> None:
    path.write_bytes(b"Dear aunt" * 1000)


def truncated(path: Path) -> None:
    write_tiny(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)


def alien(path: Path) -> None:
    write_tiny(path, architecture="alien")


def odd_rows(path: Path) -> None:
    write_tiny(path, width=40)


def no_tensors(path: Path) -> None:
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))


def not_numbers(path: Path) -> None:
    write_tiny(path)
    header = read_header(path)
    with path.open("r+b") as file:
        for one in header.tensors:
            if one.type == "F16":
                file.seek(one.offset)
                file.write(b"\xff\x7f" * one.weights)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (not_gguf, ModelDamaged),
        (truncated, ModelDamaged),
        (alien, QuantizerRefused),
        (odd_rows, QuantizerRefused),
        (no_tensors, ModelError),
        (not_numbers, QuantizerRefused),
    ],
)
def test_a_file_that_no_format_can_be_made_of_is_told_so(
    bench: Workbench, spoil: Callable[[Path], None], error: type[BancadaError]
) -> None:
    spoil(bench.models.path("tiny"))
    with pytest.raises(error) as caught:
        finished(make_format(bench, "tiny", "Q4_0"))
    assert all(str(value) for value in caught.value.parameters.values())
    assert not {name for name in leftovers(bench) if "Q4_0" in name or name.endswith(".part")}
    if spoil is not not_numbers:
        with pytest.raises(error):
            finished(plan_formats(bench, "tiny", ["Q4_0"]))
        assert spoil is odd_rows or leftovers(bench) == set()  # F16 has no blocks


def test_an_unknown_model_or_a_folder_in_its_place_is_unknown(bench: Workbench) -> None:
    (bench.settings.models_dir / "own" / "folder.gguf").mkdir()
    for name in ("folder", "nothing", "../own/tiny", "tiny.Q4_0"):
        with pytest.raises(UnknownModel):
            finished(make_format(bench, name, "F16"))
        with pytest.raises(UnknownModel):
            finished(plan_formats(bench, name, ["F16"]))


def test_a_folder_where_the_made_file_goes_is_told_with_its_place(bench: Workbench) -> None:
    (made_folder(bench) / "F16.gguf").mkdir(parents=True)
    with pytest.raises(CannotWrite) as caught:
        finished(make_format(bench, "tiny", "F16"))
    assert str(made_folder(bench)) in str(caught.value.parameters["path"])
    assert not [name for name in leftovers(bench) if name.endswith(".part")]
    shutil.rmtree(bench.settings.models_dir / "made")
    (bench.settings.models_dir / "made").write_text("a file")
    with pytest.raises(CannotWrite):
        finished(make_format(bench, "tiny", "F16"))


# Stopped in the middle.


def only_whole_files(workbench: Workbench) -> set[str]:
    """The formats that stand under their names; each of them is whole."""
    found = set(made_folder(workbench, "larger").glob("*.gguf"))
    assert all(is_whole(path) for path in found), found
    return {path.stem for path in found}


def test_killed_at_any_moment_nothing_half_made_has_a_formats_name(bench: Workbench, start: Start) -> None:
    pick, standing = random.Random(5), set()
    for _ in range(6):
        other = start(make_in_process, bench.settings.home, "larger", tuple(FORMATS))
        other.says()
        other.go()
        for _ in range(pick.randrange(1, 160)):
            if other.says()[0] == "error":
                raise AssertionError("it failed by itself")
        other.process.kill()
        wait_until("no quantizer is left", lambda: not own_children(bench), GONE_S)
        now = only_whole_files(bench)
        assert standing <= now
        standing = now
    finisher = start(make_in_process, bench.settings.home, "larger", tuple(FORMATS))
    finisher.says()
    finisher.go()
    said = finisher.rest()
    assert [one[1] for one in said if one[0] == "made"] == list(FORMATS)
    assert only_whole_files(bench) == set(FORMATS)
    assert leftovers(bench) == {f"larger/{name}.{end}" for name in FORMATS for end in ("gguf", "json")}


def stopped_in_the_middle(workbench: Workbench, format: str = "F16") -> Events[Made]:
    """A generator that is quantizing, its part on the disk."""
    events = make_format(workbench, "larger", format)
    wait_until("the part is growing", lambda: next(events).what == "quantize" and parts(workbench))
    return events


def parts(workbench: Workbench) -> list[Path]:
    return list((workbench.settings.models_dir / "made").rglob("*.part"))


def test_a_part_of_a_killed_process_goes_when_the_format_is_made(bench: Workbench, start: Start) -> None:
    # The second has to be computed: F16 is copied, and may be there before the process is killed.
    other = start(make_in_process, bench.settings.home, "larger", ("F16", "Q2_K"))
    other.says()
    other.go()
    # Read as fast as it comes: nobody waits for us.
    while other.says()[0] != "made":
        pass
    while not (other.says()[0] == "quantize" and parts(bench)):
        pass
    other.end()
    wait_until("no quantizer is left", lambda: not own_children(bench), GONE_S)
    assert parts(bench)
    finished(make_format(bench, "larger", "Q2_K"))
    assert leftovers(bench) == {f"larger/{name}.{end}" for name in ("F16", "Q2_K") for end in ("gguf", "json")}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_cancelled_it_ends_at_once_and_the_next_can_make_it(bench: Workbench, elsewhere: bool) -> None:
    events = stopped_in_the_middle(bench)
    if elsewhere:
        closer = threading.Thread(target=events.close)
        closer.start()
        closer.join()
    else:
        events.close()
    assert leftovers(bench) == set()
    wait_until("no quantizer is left", lambda: not own_children(bench), GONE_S)
    made: list[Made] = []
    another = threading.Thread(target=lambda: made.append(finished(make_format(bench, "larger", "F16"))), daemon=True)
    another.start()
    another.join(60)
    assert made, "the lock was never given back"


def test_a_quantizer_that_is_killed_is_a_typed_error_and_leaves_nothing(bench: Workbench) -> None:
    finished(make_format(bench, "larger", "F16"))
    before = leftovers(bench)
    # A format that it has to compute: F16 is copied, and may be done before it is killed.
    events = stopped_in_the_middle(bench, "Q2_K")
    victims = [one for one in own_children(bench) if any("quantizer.py" in part for part in one.cmdline())]
    for one in victims:
        one.send_signal(signal.SIGKILL)
    assert victims
    with pytest.raises(ToolchainDied) as caught:
        finished(events)
    assert "SIGKILL" in str(caught.value.parameters["how"])
    assert leftovers(bench) == before
    assert not finished(make_format(bench, "larger", "Q2_K")).reused


def measure_in_process(home: Path, wire: Connection) -> None:
    """Another process that measures quality; says every progress."""
    wire.send("ready")
    for event in measure_quality(opened(home), "tiny", ["Q4_0", "Q8_0"], EIGHT_CHUNKS):
        wire.send((event.what, event.detail))


@pytest.mark.parametrize("at", ["F16", "Q4_0"])
def test_killed_while_it_measures_its_scratch_goes_with_the_next(bench: Workbench, start: Start, at: str) -> None:
    for name in ("Q4_0", "Q8_0"):
        finished(make_format(bench, "tiny", name))
    other: Other = start(measure_in_process, bench.settings.home)
    wait_until("it scores", lambda: other.says() == ("score", at))
    other.end()
    wait_until("no scorer is left", lambda: not own_children(bench), GONE_S)
    scratch = bench.settings.home / "scratch"
    assert list(scratch.iterdir())
    scored, found = finished(measure_quality(bench, "tiny", ["Q4_0", "Q8_0"], EIGHT_CHUNKS))
    assert scored.chunks == MOST_CHUNKS and len(found) == 2
    assert list(scratch.iterdir()) == []


def test_cancelled_while_it_measures_nothing_is_left_and_what_was_measured_is_kept(bench: Workbench) -> None:
    events = measure_quality(bench, "tiny", ["Q4_0", "Q8_0"], EIGHT_CHUNKS)
    wait_until("the second format is scored", lambda: (one := next(events)).what == "score" and one.detail == "Q8_0")
    events.close()
    assert list((bench.settings.home / "scratch").iterdir()) == []
    wait_until("no scorer is left", lambda: not own_children(bench), GONE_S)
    counting = Counting(bench)
    finished(measure_quality(bench, "tiny", ["Q4_0", "Q8_0"], EIGHT_CHUNKS))
    assert counting.ops == ["reference", "compare"]


# A full disk.


@pytest.fixture
def small_disk(bench: Workbench) -> Iterator[Path]:
    """The place of made files, on a file system of 96 MiB."""
    folder = bench.settings.models_dir / "made"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)]
    if not mount or os.name != "posix" or subprocess.run(command, capture_output=True).returncode:
        missing("the right to mount a small file system (needs root)")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_too_little_room_is_found_before_anything_is_written(bench: Workbench, small_disk: Path) -> None:
    with pytest.raises(DiskFull) as caught:
        finished(make_format(bench, "larger", "F16"))
    assert str(small_disk) in str(caught.value.parameters["path"])
    assert leftovers(bench) == set()


@pytest.mark.parametrize("format", ["F16", "Q4_0"])
def test_a_disk_that_fills_up_in_the_middle_is_told_and_keeps_what_was_there(
    bench: Workbench, small_disk: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.models.fetch.RESERVE_BYTES", 0)
    if format != "F16":
        finished(make_format(bench, "larger", "F16"))
    before = leftovers(bench)
    precious = small_disk / "precious"

    def fill(path: Path, need_bytes: int) -> None:
        """Another program takes the room after the check."""
        free = shutil.disk_usage(small_disk).free
        precious.write_bytes(b"p" * (free - 3 * MIB))

    monkeypatch.setattr("lib.gguf.made.check_space", fill)
    with pytest.raises(DiskFull) as caught:
        finished(make_format(bench, "larger", format))
    assert str(small_disk) in str(caught.value.parameters["path"])
    assert leftovers(bench) == before | {"precious"}
    precious.unlink()
    monkeypatch.setattr("lib.gguf.made.check_space", lambda *_: None)
    assert not finished(make_format(bench, "larger", format)).reused


def test_a_disk_without_room_for_the_figures_is_told(
    bench: Workbench, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.models.fetch.RESERVE_BYTES", 0)
    for name in ("F16", "Q4_0"):
        finished(make_format(bench, "tiny", name))
    (small_disk / "other").write_bytes(b"o" * shutil.disk_usage(small_disk).free)
    with pytest.raises(DiskFull):
        finished(measure_quality(bench, "tiny", ["Q4_0"], "a" * 2000))
    (small_disk / "other").unlink()
    finished(measure_quality(bench, "tiny", ["Q4_0"], "a" * 2000))
    assert len(list(small_disk.rglob("quality-*"))) == 1


# Whole steps.

TINY_STEPS: dict[str, dict[str, object]] = {
    "formats": {"format": "Q4_K_M"},
    "quantize": {"formats": ("Q8_0", "Q4_0")},
    "quality": {"formats": ("Q4_0",), "text": "a" * 2000},
    "speed": {"formats": ("Q4_0",), "rounds": 1},
    "picture": {"formats": ("Q4_0",), "prompts": "Hello"},
    "ternary": {"prompt": "Hello"},
    "ollama": {},
}


def ran(workbench: Workbench, step: str, **given: object) -> Run:
    from labs.quantize.checks import LAB

    return finished(execute(LAB.steps[step], workbench, given))


def assert_it_is_shown(run: Run) -> None:
    """Facts, table, notes and chart, in both languages, before and after the store."""
    again = Result.from_json(run.result.to_json())
    assert again.facts == run.result.facts and again.notes == run.result.notes and again.more == run.result.more
    for language in LANGUAGES:
        said = run.step.lab.words(language)
        shown = to_text(run, said)
        for name in (*run.result.facts, *(run.result.table.columns if run.result.table is not None else ())):
            assert said.label(str(name)) in shown, (language, name)
        drawn = run.figure(said)
        if drawn is not None:
            json.loads(drawn.to_json())
            assert drawn.data
        assert run.step.chart is None or run.result.table is None or drawn is not None


def without_ollama(workbench: Workbench) -> Workbench:
    """The same home, and a port where nobody listens."""
    return Workbench.open(
        home=workbench.settings.home, language="en", _env_file=None, BANCADA_OLLAMA_HOST="http://127.0.0.1:9"
    )


@pytest.mark.parametrize("step", TINY_STEPS)
def test_every_step_runs_and_is_shown_in_both_languages(small: Workbench, step: str) -> None:
    run = ran(without_ollama(small), step, model="tiny", **TINY_STEPS[step])
    assert run.result.facts
    assert_it_is_shown(run)


def test_the_default_models_steps_say_what_was_found(shared: Workbench) -> None:
    formats = ran(shared, "formats").result
    assert formats.facts["block_bits"] == 4.5 and formats.facts["bits_per_weight"] > 6
    assert [one.key for one in formats.notes] == ["fallbacks"]
    made = ran(shared, "quantize", formats=("Q8_0", "Q2_K")).result
    assert made.table is not None and list(made.table["format"]) == ["Q2_K", "Q8_0", "F16"]
    assert made.facts["smallest_bytes"] == shared.models.made_path(DEFAULT, "Q2_K").stat().st_size
    assert {one.key for one in made.notes} == {"twice", "reused"}
    assert made.notes[0].parameters["type"] == "Q4_1"
    assert 0 <= float(str(made.facts["largest_forecast_error_percent"])) < 1


def test_a_format_that_is_named_twice_counts_once(small: Workbench) -> None:
    twice = ("Q4_0", "Q4_0")
    for step, more in (("quantize", {}), ("quality", {"text": "a" * 2000}), ("speed", {"rounds": 1})):
        run = ran(small, step, model="tiny", formats=twice, **more)
        assert run.result.table is not None
        assert list(run.result.table["format"]).count("Q4_0") == 1, step
        assert_it_is_shown(run)


def test_a_step_keeps_any_text_with_its_run_card(small: Workbench) -> None:
    for text in ("word \udfff " * 120, "one\0two " * 120):
        assert_it_is_shown(ran(small, "quality", model="tiny", formats=("Q4_0",), text=text))


def test_prompts_that_are_none_leave_the_picture_without_answers(small: Workbench) -> None:
    run = ran(small, "picture", model="tiny", formats=("Q4_0",), prompts=" \n \n")
    assert run.result.facts["prompt_count"] == 0 and run.result.facts["changed_answers"] == 0
    assert_it_is_shown(run)


def test_a_model_whose_formats_are_not_to_be_told_apart_is_shown(bench: Workbench) -> None:
    """Weights of zero: every format is F16's equal, and no divergence is more than none."""
    write_tiny(bench.models.path("tiny"), scale=0)
    run = ran(bench, "quality", model="tiny", formats=("Q4_0", "Q8_0"), text="a" * 2000)
    assert run.result.facts["lowest_agreement_percent"] == 100
    assert_it_is_shown(run)


def test_the_exercise_is_judged_by_the_newest_quality_run_and_its_answer_kept(bench: Workbench) -> None:
    from labs.quantize.checks import LAB

    assert LAB.exercise is not None
    assert LAB.exercise(bench).result.notes[0].key == "exercise_no_card"
    ran(bench, "quality", model="tiny", formats=("Q2_K", "Q8_0"), text="a" * 2000)
    # Of random weights a coarse format keeps few top tokens, and a fine one most.
    assert LAB.exercise(bench, share_percent=70, answer_format="Q2_K").result.notes[0].key == "exercise_too_low"
    verdict = LAB.exercise(bench, share_percent=70, answer_format="Q8_0")
    assert verdict.correct
    assert LAB.exercise(bench, share_percent=70, answer_format="Q4_0").result.notes[0].key == "exercise_not_measured"
    ran(bench, "quality", model="tiny", formats=("Q8_0", "Q4_0"), text="a" * 2000)
    assert LAB.exercise(bench, share_percent=70, answer_format="Q2_K").result.notes[0].key == "exercise_not_measured"
