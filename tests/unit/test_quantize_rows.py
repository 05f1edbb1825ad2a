"""Tables and verdicts of the quantize lab from made-up measurements, and ternary weights of a made-up file."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from gguf.quants import quantize

from labs.quantize import checks, rows
from labs.quantize.steps import LAB, QUANTIZED
from lib.bench.formats import FormatSpeed
from lib.course.parameters import checked
from lib.course.result import Result
from lib.errors import ModelDamaged
from lib.gguf.formats import FORMATS
from lib.gguf.header import Tensor
from lib.gguf.made import Plan, bits_per_weight
from lib.gguf.quality import Quality
from lib.gguf.ternary import ternary_weights
from lib.text import LANGUAGES

MIB = 1 << 20


def quality_of(format: str, kld: float = 0.1, agreement: float = 90.0) -> Quality:
    return Quality(format, 20.0, 1.0, 5.0, 0.5, kld, 0.01, agreement, 1.0, 3.0, 7.0)


def speed_of(format: str, speed: float = 100.0, answers: tuple[str, ...] = (), spread: float = 0.0) -> FormatSpeed:
    return FormatSpeed(format, speed, speed - spread, speed + spread, 0.1, 300 * MIB, 3, answers)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The sizes of made files, as a test sets them."""
    known: dict[str, int] = {}
    monkeypatch.setattr(rows, "_size", lambda _workbench, _model, format: known[format])
    return known


# The front.


def picture(sizes: dict[str, int], measured: Mapping[str, tuple[int, float, float]]) -> pd.DataFrame:
    """The picture's table of {format: (size, kld, speed)}."""
    sizes |= {name: size for name, (size, _, _) in measured.items()}
    speeds = [speed_of(name, speed) for name, (_, _, speed) in measured.items()]
    found = [quality_of(name, kld) for name, (_, kld, _) in measured.items()]
    return rows.picture_table(None, "any", found, [*speeds, speed_of("F16", 40)])  # type: ignore[arg-type]


def front(sizes: dict[str, int], measured: Mapping[str, tuple[int, float, float]]) -> set[str]:
    table = picture(sizes, measured)
    return set(table.loc[table["on_the_front"], "format"])


def test_a_format_is_beaten_by_a_smaller_and_better_one(sizes: dict[str, int]) -> None:
    assert front(sizes, {"a": (90, 0.1, 100), "b": (100, 0.2, 100)}) == {"a"}


def test_smaller_but_worse_beats_nothing(sizes: dict[str, int]) -> None:
    assert front(sizes, {"a": (90, 0.3, 100), "b": (100, 0.2, 100)}) == {"a", "b"}


def test_much_slower_beats_nothing_but_a_little_slower_does(sizes: dict[str, int]) -> None:
    assert front(sizes, {"a": (90, 0.1, 50), "b": (100, 0.2, 100)}) == {"a", "b"}
    assert front(sizes, {"a": (90, 0.1, 90), "b": (100, 0.2, 100)}) == {"a"}
    # Speed alone puts nobody ahead: one round does not tell two formats apart.
    assert front(sizes, {"a": (90, 0.1, 100), "b": (90, 0.1, 50)}) == {"a", "b"}


def test_one_equal_and_one_better_is_enough(sizes: dict[str, int]) -> None:
    assert front(sizes, {"a": (90, 0.1, 100), "b": (90, 0.2, 100)}) == {"a"}
    assert front(sizes, {"a": (90, 0.1, 100), "b": (100, 0.1, 100)}) == {"a"}


def test_equals_are_both_on_the_front(sizes: dict[str, int]) -> None:
    assert front(sizes, {"a": (90, 0.1, 100), "b": (90, 0.1, 100)}) == {"a", "b"}


def test_whatever_was_measured_every_format_on_the_front_is_beaten_by_none_and_every_other_by_one() -> None:
    pick = random.Random(3)
    for _ in range(300):
        measured = {
            name: (pick.randrange(3), float(pick.randrange(3)), float(pick.choice([50, 90, 100, 200])))
            for name in "abcdefg"
        }
        table = pd.DataFrame(
            [(name, *values) for name, values in measured.items()],
            columns=["format", "size_bytes", "kld", "tokens_per_s"],
        )
        on = {row["format"] for _, row in table.iterrows() if not rows._is_beaten(row, table)}
        assert on, measured
        for name, (size, kld, speed) in measured.items():
            beats = [
                other
                for other, (its_size, its_kld, its_speed) in measured.items()
                if its_size <= size
                and its_kld <= kld
                and (its_size, its_kld) != (size, kld)
                and its_speed >= 0.85 * speed
            ]
            assert (name in on) == (not beats), (name, measured)


def test_the_picture_counts_changed_answers_against_f16(sizes: dict[str, int]) -> None:
    sizes |= {"Q4_0": 90, "Q8_0": 140}
    speeds = [speed_of("Q8_0", answers=("Paris", "Blue")), speed_of("Q4_0", answers=("paris", "Red"))]
    reference = speed_of("F16", answers=("Paris", "Blue"))
    found = [quality_of("Q8_0"), quality_of("Q4_0")]
    table = rows.picture_table(None, "any", found, [*speeds, reference])  # type: ignore[arg-type]
    assert dict(zip(table["format"], table["changed_answers"], strict=True)) == {"Q4_0": 2, "Q8_0": 0}
    assert list(table["format"]) == ["Q4_0", "Q8_0"], "the smallest first"
    notes = rows.changed_notes(["Capital?", "Colour?"], [*speeds, reference])
    assert [(one.key, one.parameters["formats"], one.parameters["answer"]) for one in notes] == [
        ("answer_kept", "Q8_0, F16", "Paris"),
        ("answer_changed", "Q4_0", "paris"),
        ("answer_kept", "Q8_0, F16", "Blue"),
        ("answer_changed", "Q4_0", "Red"),
    ]
    assert rows.answers(["Capital?"], [reference]) == {"asked": ("Capital?",), "answers_F16": ("Paris", "Blue")}


def test_the_same_answer_of_several_formats_is_one_note() -> None:
    speeds = [speed_of(name, answers=(answer,)) for name, answer in (("a", "x"), ("b", "y"), ("c", "x"), ("F16", "z"))]
    notes = rows.changed_notes(["?"], speeds)
    assert [one.parameters["formats"] for one in notes] == ["F16", "a, c", "b"]


def test_long_answers_are_cut_and_lines_joined() -> None:
    assert rows._short("one\n two\t three") == "one two three"
    assert len(rows._short("word " * 200)) < 230


# Speeds that are not told apart.


def test_formats_whose_rounds_overlap_with_the_fastest_are_tied_with_it(sizes: dict[str, int]) -> None:
    speeds = [speed_of("a", 100, spread=5), speed_of("b", 93, spread=2), speed_of("c", 80, spread=3)]
    sizes |= {"a": 1, "b": 2, "c": 3}
    table = rows.speed_table(None, "any", speeds)  # type: ignore[arg-type]
    assert rows.tied_with(table.iloc[0], table) == ["b"]
    assert "answers" not in table.columns


def test_one_format_is_tied_with_none(sizes: dict[str, int]) -> None:
    sizes["a"] = 1
    table = rows.speed_table(None, "any", [speed_of("a", 100, spread=5)])  # type: ignore[arg-type]
    assert rows.tied_with(table.iloc[0], table) == []


# Tensors and types.


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("blk.3.attn_q.weight", "attn_q"),
        ("blk.29.ffn_down.weight", "ffn_down"),
        ("token_embd.weight", "token_embd"),
        ("output_norm.weight", "output_norm"),
        ("blk.0.attn_q.bias", "attn_q.bias"),
        ("blk.4.ffn_gate_exps.weight", "ffn_gate_exps"),
        ("rope_freqs.weight", "rope_freqs"),
    ],
)
def test_a_tensors_kind_is_its_name_without_the_layer(name: str, kind: str) -> None:
    assert rows.kind_of(name) == kind


def test_tensors_of_a_kind_and_type_are_one_row() -> None:
    tensors = (
        Tensor("blk.0.attn_v.weight", (256, 4), "Q6_K", 0, 840),
        Tensor("blk.1.attn_v.weight", (256, 4), "Q4_K", 0, 576),
        Tensor("blk.2.attn_v.weight", (256, 4), "Q4_K", 0, 576),
        Tensor("output_norm.weight", (256,), "F32", 0, 1024),
    )
    table = rows.by_type(Plan("Q4_K_M", tensors, 4096, 0))
    said = {(one.tensor, one.type): (one.tensors, one.size_bytes) for one in table.itertuples()}
    assert said == {("attn_v", "Q6_K"): (1, 840), ("attn_v", "Q4_K"): (2, 1152), ("output_norm", "F32"): (1, 1024)}
    assert list(table["size_bytes"]) == [1152, 1024, 840], "the largest first"
    assert table.set_index("type").loc["Q4_K", "bits_per_weight"] == 4.5


def test_bits_per_weight_are_those_of_all_weights() -> None:
    tensors = [Tensor("a", (256, 3), "Q4_0", 0, 432), Tensor("b", (256,), "F32", 0, 1024)]
    assert bits_per_weight(tensors) == pytest.approx((768 * 4.5 + 256 * 32) / 1024)


def test_every_formats_name_promises_its_types_bits() -> None:
    known = {"TQ1_0": 1.6875, "TQ2_0": 2.0625, "Q2_K": 2.625, "Q3_K_M": 3.4375, "Q4_0": 4.5, "Q4_K_M": 4.5}
    known |= {"Q5_K_S": 5.5, "Q5_1": 6.0, "Q6_K": 6.5625, "Q8_0": 8.5, "F16": 16.0}
    assert {name: one.block_bits for name, one in FORMATS.items()} == known
    assert list(known) == sorted(known, key=lambda name: known[name])
    assert "F16" not in QUANTIZED and len(QUANTIZED) == 10


# The exercise.


MEASURED = pd.DataFrame(
    {
        "format": ["Q2_K", "Q4_0", "Q4_K_M", "Q8_0"],
        "size_bytes": [88, 91, 105, 144],
        "top1_agreement_percent": [69.0, 74.0, 88.0, 96.0],
    }
)


def verdict(monkeypatch: pytest.MonkeyPatch, table: pd.DataFrame | None, **given: object) -> tuple[bool, str]:
    """Whether an answer is right and the note that says why, checked against a run card with the table."""
    run = None if table is None else SimpleNamespace(result=Result(table=table))
    monkeypatch.setattr(checks, "latest_run", lambda *_: run)
    assert LAB.exercise is not None
    found = LAB.exercise.function(SimpleNamespace(learner="me"), **checked(LAB.exercise.parameters, given))
    (only,) = found.result.notes
    for language in LANGUAGES:
        assert "$" not in LAB.words(language)(f"notes.{only.key}", **only.parameters)
    return found.correct, only.key


@pytest.mark.parametrize(
    ("share", "answer", "correct", "why"),
    [
        (85, "Q4_K_M", True, "exercise_right"),
        (85, "Q8_0", False, "exercise_smaller_exists"),
        (85, "Q4_0", False, "exercise_too_low"),
        (85, "Q6_K", False, "exercise_not_measured"),
        (95, "Q8_0", True, "exercise_right"),
        (70, "Q4_0", True, "exercise_right"),
        (70, "Q2_K", False, "exercise_too_low"),
    ],
)
def test_the_smallest_file_that_keeps_enough_is_right(
    monkeypatch: pytest.MonkeyPatch, share: int, answer: str, correct: bool, why: str
) -> None:
    assert verdict(monkeypatch, MEASURED, share_percent=share, answer_format=answer) == (correct, why)


def test_exactly_the_share_is_enough_and_the_order_of_the_table_does_not_matter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    exact = MEASURED.assign(top1_agreement_percent=[69.0, 85.0, 85.0, 96.0])
    for table in (exact, exact.iloc[::-1], exact.sample(frac=1, random_state=1)):
        assert verdict(monkeypatch, table, answer_format="Q4_0") == (True, "exercise_right")
        assert verdict(monkeypatch, table, answer_format="Q4_K_M") == (False, "exercise_smaller_exists")


def test_without_a_measurement_the_exercise_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert verdict(monkeypatch, None) == (False, "exercise_no_card")
    low = MEASURED.assign(top1_agreement_percent=[1.0, 2.0, 3.0, 4.0])
    assert verdict(monkeypatch, low, share_percent=70, answer_format="Q8_0") == (False, "exercise_none")
    nothing = MEASURED.assign(top1_agreement_percent=[None] * 4).astype({"top1_agreement_percent": float})
    assert verdict(monkeypatch, nothing, answer_format="Q8_0") == (False, "exercise_none")


# Ternary weights.


def write(path: Path, tensors: Mapping[str, tuple[np.ndarray, str]]) -> Path:
    writer = GGUFWriter(path, "llama")
    for name, (values, kind) in tensors.items():
        wanted = GGMLQuantizationType[kind]
        data = values if kind == "F32" else quantize(values, wanted)
        writer.add_tensor(name, data, raw_dtype=None if kind == "F32" else wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_zeros_are_counted_among_the_ternary_weights_only(tmp_path: Path) -> None:
    random_ = np.random.default_rng(5)
    values = random_.choice([-0.5, 0.0, 0.5], size=(6, 512), p=[0.5, 0.2, 0.3]).astype(np.float32)
    # Each block of 256 must hold its largest, or there is no scale to be ternary by.
    values[:, ::256] = 0.5
    rest = np.zeros((3, 256), np.float32)
    path = write(
        tmp_path / "t.gguf",
        {"a": (rest, "F32"), "b": (values, "TQ2_0"), "c": (rest, "Q8_0"), "d": (values[:2], "TQ2_0")},
    )
    found = ternary_weights(path)
    ternary = 8 * 512
    assert found.share == pytest.approx(ternary / (ternary + 2 * 768))
    assert found.zeros == pytest.approx(((values == 0).sum() + (values[:2] == 0).sum()) / ternary)


def test_a_file_without_ternary_weights_has_no_share_of_zeros(tmp_path: Path) -> None:
    path = write(tmp_path / "t.gguf", {"a": (np.zeros((3, 256), np.float32), "F32")})
    assert ternary_weights(path) == type(ternary_weights(path))(0.0, None)


def test_a_file_that_is_none_is_damaged(tmp_path: Path) -> None:
    for content in (b"", b"GGUF", b"GGUF" + (3).to_bytes(4, "little") + bytes(16)):
        (tmp_path / "t.gguf").write_bytes(content)
        with pytest.raises(ModelDamaged):
            ternary_weights(tmp_path / "t.gguf")
