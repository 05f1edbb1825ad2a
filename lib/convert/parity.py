"""Whether two forms are still the same model: their logits for the same tokens, position by position."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from lib.errors import ModelDamaged

_ROWS = 64  # positions at a time: a vocabulary is wide


@dataclass(frozen=True)
class Parity:
    """How far a model is from a reference. KLD in nats a token, the mean over the positions.

    A row of ``positions`` is one position: the gap between the reference's best two logits
    (``margin``), the largest difference of any logit, and whether both choose the same token.
    """

    max_abs_difference: float
    top1_agreement_percent: float
    agreeing: int
    kld: float
    positions: pd.DataFrame


def parity(reference: Path, other: Path) -> Parity:
    """Compare two .npy files of logits (n_tokens, n_vocab); raises ModelDamaged where they cannot be compared."""
    first, second = np.load(reference, mmap_mode="r"), np.load(other, mmap_mode="r")
    if first.shape[0] != second.shape[0] or second.shape[1] < first.shape[1]:
        raise ModelDamaged(path=str(other), why=f"its logits have shape {second.shape}, not {first.shape}")
    rows = []
    for at in range(0, len(first), _ROWS):
        # Some exporters pad the vocabulary; nobody can choose a padded token.
        block = second[at : at + _ROWS, : first.shape[1]]
        if not np.isfinite(block).all():
            raise ModelDamaged(path=str(other), why="its logits are not numbers")
        rows.append(_compared(first[at : at + _ROWS], block))
    margin, far, same, kld = np.concatenate(rows, axis=1)
    positions = pd.DataFrame(
        {"position": range(1, len(margin) + 1), "margin": margin, "max_abs_difference": far, "same": same.astype(bool)}
    )
    return Parity(float(far.max()), float(100 * same.mean()), int(same.sum()), float(kld.mean()), positions)


def _compared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Margin, largest difference, same top token and KLD of each row, in float64."""
    p, q = first.astype(np.float64), second.astype(np.float64)
    best = np.partition(p, -2, axis=1)[:, -2:]
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    kld = np.maximum((np.exp(log_p) * (log_p - log_q)).sum(axis=1), 0)
    same = p.argmax(axis=1) == q.argmax(axis=1)
    return np.stack([best[:, 1] - best[:, 0], np.abs(p - q).max(axis=1), same, kld])


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    shifted = rows - rows.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
