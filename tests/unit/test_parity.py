"""Parity: how far two models' logits are apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lib.convert.parity import parity
from lib.errors import ModelDamaged


def kept(folder: Path, name: str, values: object) -> Path:
    path = folder / f"{name}.npy"
    np.save(path, np.asarray(values, np.float32))
    return path


def test_equal_logits_agree_everywhere(tmp_path: Path) -> None:
    values = np.random.default_rng(3).standard_normal((130, 40))
    found = parity(kept(tmp_path, "a", values), kept(tmp_path, "b", values))
    assert (found.max_abs_difference, found.top1_agreement_percent, found.agreeing, found.kld) == (0, 100, 130, 0)
    assert list(found.positions["position"]) == list(range(1, 131))


def test_one_changed_choice_is_counted_and_placed(tmp_path: Path) -> None:
    first = np.tile([3.0, 2.5, 0.0, 0.0], (4, 1))
    second = first.copy()
    second[2, 1] = 4.0
    found = parity(kept(tmp_path, "a", first), kept(tmp_path, "b", second))
    assert (found.agreeing, found.top1_agreement_percent, found.max_abs_difference) == (3, 75.0, 1.5)
    assert list(found.positions["same"]) == [True, True, False, True]
    assert list(found.positions["margin"]) == [0.5] * 4


def test_kld_is_the_textbooks(tmp_path: Path) -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.5, 0.3, 0.2])
    # A constant added to all logits of a row changes no probability.
    found = parity(kept(tmp_path, "a", [np.log(p) + 9]), kept(tmp_path, "b", [np.log(q) - 4]))
    assert found.kld == pytest.approx(float((p * np.log(p / q)).sum()), rel=1e-5)


def test_padded_tokens_are_nobodys_choice(tmp_path: Path) -> None:
    first = kept(tmp_path, "a", [[1.0, 2.0, 0.0]])
    assert parity(first, kept(tmp_path, "b", [[1.0, 2.0, 0.0, 99.0]])).agreeing == 1


@pytest.mark.parametrize(
    "other", [[[1.0, 2.0]], [[1.0, 2.0, 0.0]] * 2, [[1.0, np.nan, 0.0]], [[np.inf, 0.0, 0.0]]], ids=str
)
def test_what_cannot_be_compared_is_refused(tmp_path: Path, other: object) -> None:
    with pytest.raises(ModelDamaged):
        parity(kept(tmp_path, "a", [[1.0, 2.0, 0.0]]), kept(tmp_path, "b", other))
