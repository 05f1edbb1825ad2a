"""Which engine? The material's table, the learner's own figures, and where the two disagree."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import pandas as pd

from labs.compare.rows import engines_at, measured, told_apart
from lib.course.result import Facts, Note, note

MIB = 2**20
KEPT = ("in_time", "in_memory", "all_answered")
# Courses on these engines teach this table; it was written before anything was measured on your machine.
MATERIAL: Mapping[str, str] = {
    "prototype": "ollama",
    "portable": "ollama",
    "windows_npu": "foundry",
    "enterprise": "foundry",
    "throughput": "vllm",
    "multi_gpu": "vllm",
}


@dataclass(frozen=True)
class Wishes:
    """What the learner needs. ``learners`` ask at the same time; bounds in bytes and seconds."""

    goal: str
    learners: int
    memory_bytes: int
    ttft_s: float


def advice_table(raced: pd.DataFrame, wishes: Wishes) -> pd.DataFrame:
    """One row an engine: its figures with as many clients as asked for, which bounds it keeps, what the table says."""
    at = raced[raced["parallel"] == level(raced, wishes.learners)]
    rows: list[dict[str, object]] = []
    for _, row in at.iterrows():
        memory = None if pd.isna(row["memory_bytes"]) else int(row["memory_bytes"])
        keeps = {
            "in_time": bool(row["ttft_p95_s"] <= wishes.ttft_s),
            "in_memory": None if memory is None else memory <= wishes.memory_bytes,
            "all_answered": not row["failures"] and not row["died"],
        }
        figures = {name: row[name] for name in ("tokens_per_s", "low_tokens_per_s", "high_tokens_per_s", "ttft_p95_s")}
        rows.append({"engine": row["engine"], "memory_bytes": memory, **figures, "rounds": row["rounds"], **keeps})
    table = pd.DataFrame(rows)
    table["fits"] = [
        all(one is True for one in kept) for kept in zip(*(table[name].tolist() for name in KEPT), strict=True)
    ]
    table["material"] = table["engine"] == MATERIAL[wishes.goal]
    return table.sort_values(["fits", "tokens_per_s"], ascending=False, ignore_index=True)


def level(raced: pd.DataFrame, learners: int) -> int:
    """The smallest number of parallel clients that is not below ``learners``, else the largest.

    Of those that everybody was measured with who is still in; a race that was stopped may have others.
    """
    known = measured(raced)
    alive = set(known.loc[~known["died"].astype(bool), "engine"])
    there = engines_at(known)
    levels = sorted(clients for clients, engines in there.items() if alive <= engines) or sorted(there)
    return int(next((one for one in levels if one >= learners), levels[-1]))


def best_of(table: pd.DataFrame) -> tuple[str, ...]:
    """The fastest that keeps every bound, and whom its noise does not tell apart from it; nothing where none does."""
    fit = table[table["fits"]]
    if not len(fit):
        return ()
    best = fit.iloc[0]
    tied = (row["engine"] for _, row in fit.iloc[1:].iterrows() if not told_apart(best, row, "tokens_per_s"))
    return (str(best["engine"]), *tied)


def untold(table: pd.DataFrame) -> bool:
    """Whether several keep every bound and one round is all there is, which tells nobody apart."""
    fit = table[table["fits"]]
    return len(fit) > 1 and int(fit["rounds"].min()) < 2


def dead_in(raced: pd.DataFrame) -> frozenset[str]:
    """Who died in a race."""
    return frozenset(raced.loc[raced["died"].astype(bool), "engine"])


def advice_facts(table: pd.DataFrame, wishes: Wishes, measured_at: int) -> Facts:
    """Whom the figures name and whom the table names."""
    best, material = best_of(table), MATERIAL[wishes.goal]
    raced = material in set(table["engine"])
    return {
        "recommended": best or ("none",),
        "material_engine": material,
        "agree": material in best if raced and best and not untold(table) else None,
        "measured_parallel": measured_at,
        "fitting": int(table["fits"].sum()),
    }


def advice_notes(table: pd.DataFrame, wishes: Wishes, facts: Facts, dead: Collection[str] = ()) -> tuple[Note, ...]:
    """Every disagreement between table and figures, and what no figure of this machine can decide."""
    material, best = MATERIAL[wishes.goal], best_of(table)
    notes = [note(f"material_{wishes.goal}")]
    here = table[table["engine"] == material]
    if not best:
        notes.append(note("none_fits"))
    if not len(here):
        notes.append(note("disagree_died" if material in dead else "material_not_raced", engine=(material,)))
    elif best and material not in best:
        own = here.iloc[0]
        first = table[table["engine"] == best[0]].iloc[0]
        if not own["fits"]:
            broken = [name for name in KEPT if own[name] is not None and not own[name]]
            notes += [note(f"disagree_{name}", engine=(material,)) for name in broken]
        else:
            percent = 100 * (float(first["tokens_per_s"] / own["tokens_per_s"]) - 1)
            notes.append(note("disagree_slower", engine=(material,), best=best[:1], percent=percent))
    elif best and not untold(table):
        notes.append(note("agree", engine=(material,)))
    if unknown := tuple(table.loc[table["in_memory"].isna(), "engine"]):
        notes.append(note("memory_unknown", engines=unknown))
    if untold(table):
        notes.append(note("one_round"))
    elif len(best) > 1:
        notes.append(note("advice_tied", engines=best))
    if facts["measured_parallel"] != wishes.learners:
        notes.append(note("other_level", asked=wishes.learners, measured=facts["measured_parallel"]))
    if wishes.goal in ("windows_npu", "multi_gpu", "enterprise", "portable"):
        notes.append(note("not_measured_here"))
    return tuple(notes)
