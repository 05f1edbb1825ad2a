"""The tables, facts and notes of lab 6, made of what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from labs.compare.taking import Batched, Heard, Spoken, out
from lib.bench.burst import Burst
from lib.bench.noise import Spread, chance_of_apart
from lib.bench.race import Entry
from lib.bench.saturation import Saturation
from lib.course.result import Facts, Listing, Note, Result, note
from lib.models.bandwidth import Bandwidth, bandwidth_at, bandwidth_point
from lib.vllm.batching import CACHE, RUNNING, TOKENS, WAITING

# The four questions of the race: which metric answers them, and whether more of it is better.
QUESTIONS: Mapping[str, tuple[str, bool]] = {
    "alone": ("tokens_per_s", True),
    "together": ("tokens_per_s", True),
    "memory": ("memory_bytes", False),
    "first": ("ttft_p50_s", False),
}
_SPREAD = ("tokens_per_s", "ttft_p50_s", "memory_bytes")
_MEDIAN = (
    "requests_per_s", "goodput_per_s", "ttft_p95_s", "tpot_p50_s", "tpot_p95_s",
    "itl_p50_s", "itl_p95_s", "itl_p99_s", "e2e_p50_s", "e2e_p95_s",
)  # fmt: skip


COLUMNS = [
    "engine", "weights", "slots", "parallel", "rounds",
    *(f"{end}{name}" for name in _SPREAD for end in ("", "low_", "high_")), *_MEDIAN,
    "load_s", "failures", "short", "tokens", "engine_tokens", "joules_per_token", "died",
]  # fmt: skip


def spoken_table(spoken: Sequence[Spoken]) -> pd.DataFrame:
    """One row an engine: its answer to the one prompt, and what came over the wire for it."""
    rows = [
        {
            "engine": one.contender.id,
            "weights": one.contender.weights,
            "text": one.text,
            "same_text": one.text == spoken[0].text,
            "ttft_s": one.arrivals_s[0],
            "last_s": one.arrivals_s[-1],
            "pieces": len(one.arrivals_s),
            "prompt_tokens": one.prompt_tokens,
            "completion_tokens": one.completion_tokens,
            "finish": one.finish,
            "wire_bytes": one.exchange.size_bytes,
        }
        for one in spoken
    ]
    return pd.DataFrame(rows)


def spoken_result(heard: Heard, notes: tuple[Note, ...]) -> Result:
    """Who was first, how many different texts there are, and what went over each wire."""
    table = spoken_table(heard.spoken)
    first = table.loc[table["ttft_s"].idxmin()]
    facts: Facts = {
        "first_ttft_s": float(first["ttft_s"]),
        "first_engine": str(first["engine"]),
        "different_texts": int(table["text"].nunique()),
        "most_wire_bytes": int(table["wire_bytes"].max()),
    }
    more = {one.contender.id: tuple(f"{at:.4f}" for at in one.arrivals_s) for one in heard.spoken}
    return Result(facts, table, (*notes, *heard.lost, note("one_is_no_race")), more, wires(heard.spoken))


def wires(spoken: Sequence[Spoken]) -> tuple[Listing, ...]:
    """What went over each wire."""
    return tuple(Listing(f"wire_{one.contender.id.replace('-', '_')}", one.wire) for one in spoken)


def race_table(entries: Sequence[Entry]) -> pd.DataFrame:
    """One row an engine and number of parallel clients: medians of the rounds; of two metrics the spread as well.

    An engine that died before its first figure has a row without figures.
    """
    rows = []
    for entry in entries:
        levels = sorted({clients for turn in entry.turns for clients in turn.at})
        rows += [_race_row(entry, clients) for clients in levels]
        if not levels and entry.error is not None:
            rows.append({"engine": entry.contender.id, "weights": entry.contender.weights, "died": True})
    return pd.DataFrame(rows, columns=COLUMNS)


def _race_row(entry: Entry, clients: int) -> dict[str, object]:
    at = [turn.at[clients] for turn in entry.turns if clients in turn.at]
    load = entry.load()
    row: dict[str, object] = {
        "engine": entry.contender.id,
        "weights": entry.contender.weights,
        "slots": entry.contender.slots or None,
        "parallel": clients,
        "rounds": len(at),
    }
    for name in _SPREAD:
        spread = entry.memory() if name == "memory_bytes" else entry.spread(clients, name)
        row[name] = spread.median if spread else None
        row[f"low_{name}"] = spread.low if spread else None
        row[f"high_{name}"] = spread.high if spread else None
    for name in _MEDIAN:
        spread = entry.spread(clients, name)
        row[name] = spread.median if spread else None
    return row | {
        # Of somebody else's server nobody here sees the start.
        "load_s": load.median if load and entry.memory() else None,
        "failures": sum(one.failures for one in at),
        "short": sum(one.short for one in at),
        "tokens": sum(one.tokens for one in at),
        "engine_tokens": sum(one.engine_tokens for one in at),
        "joules_per_token": entry.joules_per_token(clients),
        "died": entry.error is not None,
    }


def winners(table: pd.DataFrame, entries: Sequence[Entry]) -> dict[str, tuple[str, ...]]:
    """Who answers each question best: the first by its median, then all whom its noise does not tell apart from it.

    Nobody does before all who are still in have been measured at it.
    """
    found: dict[str, tuple[str, ...]] = {}
    table = measured(table)
    rivals = {one.contender.id for one in entries if one.error is None}
    there = engines_at(table)
    # Who left requests without an answer, or died, was not quick but gone.
    table = table[(table["failures"] == 0) & ~table["died"].astype(bool)]
    if not len(table):
        return found
    few, many = table["parallel"].min(), table["parallel"].max()
    for question, (metric, more) in QUESTIONS.items():
        clients = many if question in ("together", "memory") else few
        if not rivals <= there[clients]:
            continue
        at = table[table["parallel"] == clients]
        at = at.dropna(subset=[metric]).sort_values(metric, ascending=not more)
        if len(at):
            best = at.iloc[0]
            tied = [row["engine"] for _, row in at.iloc[1:].iterrows() if not told_apart(best, row, metric)]
            found[question] = (str(best["engine"]), *tied)
    return found


def measured(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a race that have figures."""
    return table.dropna(subset=["parallel"])


def engines_at(table: pd.DataFrame) -> dict[int, set[str]]:
    """Who has figures, by the number of parallel clients."""
    return {int(clients): set(rows["engine"]) for clients, rows in table.groupby("parallel")}


def told_apart(one: pd.Series, other: pd.Series, metric: str) -> bool:
    """Whether the rounds of two rows lie apart; what has no spread is told apart by its value."""
    if f"low_{metric}" not in one:
        return bool(one[metric] != other[metric])
    mine, theirs = (
        Spread(row[metric], row[f"low_{metric}"], row[f"high_{metric}"], int(row["rounds"])) for row in (one, other)
    )
    return mine.differs(theirs)


def race_facts(table: pd.DataFrame, entries: Sequence[Entry]) -> Facts:
    """The answers to the four questions, with their figures."""
    first = winners(table, entries)
    facts: dict[str, object] = {}
    for question, names in first.items():
        metric = QUESTIONS[question][0]
        at = table[table["engine"] == names[0]].sort_values("parallel")
        row = at.iloc[-1 if question in ("together", "memory") else 0]
        facts[f"{question}_engine"] = names[0]
        facts[f"{question}_{metric.replace('_p50', '')}"] = float(row[metric])
    failures = sum(one.failures() for one in entries)
    return {**facts, "rounds": finished_rounds(table), "failures": failures}  # type: ignore[dict-item]


def finished_rounds(table: pd.DataFrame) -> int:
    """How many rounds everybody has who is still in."""
    alive = measured(table)
    alive = alive[~alive["died"].astype(bool)]
    return int(alive["rounds"].min()) if len(alive) else 0


def race_notes(table: pd.DataFrame, entries: Sequence[Entry]) -> tuple[Note, ...]:
    """Ties, the dead, whose answers were too short, and by whose count."""
    table, rounds = measured(table), finished_rounds(table)
    notes = [out(one.contender.id, one.error) for one in entries if one.error is not None]
    notes += [
        note(f"tied_{question}", engines=names[:1], others=names[1:])
        for question, names in winners(table, entries).items()
        if len(names) > 1 and rounds > 1
    ]
    if rounds > 1:
        percent = 100 * chance_of_apart(rounds)
        notes.append(
            note("noise", rounds=rounds, percent=percent) if percent >= 0.1 else note("noise_seldom", rounds=rounds)
        )
    else:
        notes.append(note("one_round"))
    if len(table) and table["short"].sum():
        short = sorted(set(table.loc[table["short"] > 0, "engine"]))
        notes.append(note("short", engines=short))
    if len(table) and (table["tokens"] != table["engine_tokens"]).any():
        off = sorted(set(table.loc[table["tokens"] != table["engine_tokens"], "engine"]))
        notes.append(note("counts_differ", engines=off))
    if len(table) and table["joules_per_token"].isna().all():
        notes.append(note("no_energy"))
    return (*notes, note("not_the_same_weights"))


def race_result(entries: Sequence[Entry], notes: tuple[Note, ...]) -> Result:
    """What is known so far of a race."""
    table = race_table(entries)
    return Result(race_facts(table, entries), table, (*notes, *race_notes(table, entries)))


def roofline_table(entries: Sequence[Entry], points: Sequence[Bandwidth]) -> pd.DataFrame:
    """One row an engine: the bytes it reads a token, the ceiling that bandwidth sets, and how near it comes."""
    rows = []
    for entry in entries:
        speed, read = entry.spread(1, "tpot_p50_s"), entry.contender.token_bytes
        if speed is None or read is None:
            continue
        ceiling = bandwidth_at(list(points), read) / read
        rows.append(
            {
                "engine": entry.contender.id,
                "weights": entry.contender.weights,
                "token_bytes": read,
                "tokens_per_s": 1 / speed.median,
                "low_tokens_per_s": 1 / speed.high,
                "high_tokens_per_s": 1 / speed.low,
                "ceiling_tokens_per_s": ceiling,
                "moved_bytes_per_s": read / speed.median,
                "reached_percent": 100 / speed.median / ceiling,
            }
        )
    columns = ["engine", "weights", "token_bytes", "tokens_per_s", "reached_percent"]
    return pd.DataFrame(rows, columns=list(rows[0]) if rows else columns)


def roofline_result(entries: Sequence[Entry], points: Sequence[Bandwidth], notes: tuple[Note, ...]) -> Result:
    """What is known so far of engines under the machine's ceiling."""
    table = roofline_table(entries, points)
    facts: Facts = {
        "best_reached_percent": float(table["reached_percent"].max()) if len(table) else None,
        "memory_bytes_per_s": points[-1].median_bytes_per_s,
        "most_moved_bytes_per_s": float(table["moved_bytes_per_s"].max()) if len(table) else None,
    }
    # The ceilings that the shares are of, no others.
    drawn = dict.fromkeys(bandwidth_point(list(points), read) for read in sorted(table["token_bytes"]))
    drawn = drawn or dict.fromkeys(points[-1:])
    more = {
        "sizes": tuple(str(one.size_bytes) for one in drawn),
        "bandwidths": tuple(str(one.median_bytes_per_s) for one in drawn),
    }
    lost = tuple(out(one.contender.id, one.error) for one in entries if one.error is not None)
    unknown = tuple(one.contender.id for one in entries if one.contender.token_bytes is None)
    unread = (note("weights_unknown", engines=unknown),) if unknown else ()
    above = tuple(table.loc[table["reached_percent"] > 100, "engine"])
    disturbed = (note("above_ceiling", engines=above),) if above else ()
    return Result(facts, table, (*notes, *lost, *unread, *disturbed, note("roofline")), more)


def batching_result(made: Batched) -> Result:
    """What vLLM writes with 1, 4 and 16 clients, and what its own metrics said; None where not measured yet."""
    at = {clients: one.tokens_per_s for clients, one in made.at.items()}
    facts: Facts = {
        "sixteen_tokens_per_s": at.get(16),
        "four_tokens_per_s": at.get(4),
        "one_tokens_per_s": at.get(1),
        "times_more": at[16] / at[1] if at.get(16) and at.get(1) else None,
        "load_s": made.load_s,
        "memory_bytes": made.memory_bytes,
        "health_ms": made.health_ms,
        "served": made.models,
        "most_running": made.watch.most(RUNNING),
        "most_waiting": made.watch.most(WAITING),
        "most_cache_percent": 100 * made.watch.most(CACHE),
    }
    return Result(facts, batching_table(made), (note("for_learning"),), seen(made))


def batching_table(made: Batched) -> pd.DataFrame:
    """One row a number of clients: all tokens a second, each one's, and the waits."""
    rows = [
        {
            "parallel": clients,
            "tokens_per_s": one.tokens_per_s,
            "each_tokens_per_s": one.tokens_per_s / clients,
            "ttft_p50_s": one.ttft_p50_s,
            "ttft_p95_s": one.ttft_p95_s,
            "tpot_p50_s": one.tpot_p50_s,
            "requests_per_s": one.requests_per_s,
            "failures": one.failures,
        }
        for clients, one in made.at.items()
    ]
    return pd.DataFrame(rows)


def seen(made: Batched) -> dict[str, tuple[str, ...]]:
    """vLLM's own gauges over the time, for the chart."""
    names = {"running": RUNNING, "waiting": WAITING, "cache": CACHE, "written": TOKENS}
    found = {name: tuple(f"{look.values.get(key, 0):g}" for look in made.watch.looks) for name, key in names.items()}
    cuts = tuple(f"{one:.3f}" for one in made.cut_s.values())
    return {**found, "at_s": tuple(f"{look.at_s:.3f}" for look in made.watch.looks), "cuts_s": cuts}


def saturation_table(found: Saturation) -> pd.DataFrame:
    """One row a rate of arrivals."""
    rows = [
        {
            "share_percent": 100 * one.share,
            "offered_per_s": one.offered_per_s,
            "requests_per_s": one.metrics.requests_per_s,
            "tokens_per_s": one.metrics.tokens_per_s,
            "goodput_per_s": one.metrics.goodput_per_s,
            "ttft_p50_s": one.metrics.ttft_p50_s,
            "ttft_p95_s": one.metrics.ttft_p95_s,
            "tpot_p95_s": one.metrics.tpot_p95_s,
            "e2e_p95_s": one.metrics.e2e_p95_s,
            "requests": one.metrics.requests,
            "failures": one.metrics.failures,
        }
        for one in found.rates
    ]
    return pd.DataFrame(rows)


def saturated(found: Saturation, ttft_bound_s: float, think_s: int, slots: int) -> Result:
    """What is known so far of arrivals at an engine that answers ``slots`` at a time, and how many learners that is."""
    table, rate = saturation_table(found), found.bearable_per_s(ttft_bound_s)
    facts: Facts = {
        "learners": int(rate * think_s),
        "bearable_per_s": rate,
        "capacity_per_s": found.capacity_per_s,
        "slots": slots,
        "failures": int(table["failures"].sum()),
    }
    notes = [note("learners", seconds=think_s)]
    if not rate:
        notes.append(note("never_in_time"))
    elif rate >= max(table["offered_per_s"]):
        notes.append(note("always_in_time"))
    more = {"ttft_bound_s": str(ttft_bound_s), "think_s": str(think_s)}
    return Result(facts, table, (*notes, note("few_requests", requests=int(table["requests"].min()))), more)


def burst_table(found: Sequence[Burst]) -> pd.DataFrame:
    """One row a burst."""
    rows = [
        {
            "profile": one.profile,
            "slots": one.slots,
            "round": one.round,
            "ttft_p50_s": one.metrics.ttft_p50_s,
            "ttft_p95_s": one.metrics.ttft_p95_s,
            "tpot_p50_s": one.metrics.tpot_p50_s,
            "tpot_p95_s": one.metrics.tpot_p95_s,
            "fairness": one.metrics.fairness,
            "tokens_per_s": one.metrics.tokens_per_s,
            "failures": one.metrics.failures,
        }
        for one in found
    ]
    return pd.DataFrame(rows)


def burst_result(found: Sequence[Burst]) -> Result:
    """What is known so far of the bursts."""
    table = burst_table(found)
    return Result(burst_facts(table), table, (note("warm"),), first_tokens(found))


def burst_facts(table: pd.DataFrame) -> Facts:
    """Medians of the rounds of each profile, and the class profile against the other."""
    facts: dict[str, float] = {}
    for profile, name in (("class", "class"), ("default", "usual")):
        rounds = table[table["profile"] == profile]
        if len(rounds):
            for metric in ("ttft_p95_s", "tpot_p50_s", "fairness", "tokens_per_s"):
                facts[f"{name}_{metric}"] = float(rounds[metric].median())
    if "class_ttft_p95_s" in facts and "usual_ttft_p95_s" in facts:
        facts["ttft_percent"] = 100 * facts["class_ttft_p95_s"] / facts["usual_ttft_p95_s"]
        facts["aggregate_percent"] = 100 * facts["class_tokens_per_s"] / facts["usual_tokens_per_s"]
    return facts


def first_tokens(found: Sequence[Burst]) -> dict[str, tuple[str, ...]]:
    """When each learner of the last round saw the first word, in order; for the chart."""
    last = {one.profile: one for one in found}
    return {name: tuple(f"{t:.3f}" for t in sorted(a.ttft_s for a in one.answers)) for name, one in last.items()}
