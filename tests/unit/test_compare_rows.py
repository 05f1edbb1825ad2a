"""Lab 6's answers, drawn from races that were not as they should be: unfinished, of one round, with a death."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest

from labs.compare import advice, charts, rows
from labs.compare.steps import LAB
from lib.bench.contenders import Contender
from lib.bench.race import Entry, Turn
from lib.course.result import Result
from lib.errors import EngineDied
from lib.models.bandwidth import Bandwidth
from lib.text import LANGUAGES

MIB = 2**20
ENGINES = ("ollama", "embedded", "onnx")


def entry(engine: str, died: bool = False) -> Entry:
    def nobody() -> None:
        raise AssertionError("nothing starts here")

    contender = Contender(engine, "m", "w", nobody)  # type: ignore[arg-type]
    return Entry(contender, error=EngineDied(how="SIGKILL") if died else None)


def row(engine: str, parallel: int, speed: float, *, rounds: int = 3, mib: float | None = 500, died: bool = False):
    memory = None if mib is None else mib * MIB
    return {
        "engine": engine, "weights": "w", "slots": 4, "parallel": parallel, "rounds": rounds,
        "tokens_per_s": speed, "low_tokens_per_s": speed - 1, "high_tokens_per_s": speed + 1,
        "ttft_p50_s": 1 / speed, "low_ttft_p50_s": 0.9 / speed, "high_ttft_p50_s": 1.1 / speed,
        "memory_bytes": memory, "low_memory_bytes": memory, "high_memory_bytes": memory,
        "ttft_p95_s": 0.5, "failures": 0, "short": 0, "tokens": 32, "engine_tokens": 32, "died": died,
    }  # fmt: skip


def table_of(*found: dict[str, object]) -> pd.DataFrame:
    return pd.DataFrame(list(found), columns=rows.COLUMNS)


def advised(raced: pd.DataFrame, goal: str = "throughput", learners: int = 16) -> tuple[object, object, list[str]]:
    """Whom the figures name, whether the courses' table agrees, and the notes."""
    wishes = advice.Wishes(goal, learners, 4096 * MIB, 2.0)
    table = advice.advice_table(raced, wishes)
    facts = advice.advice_facts(table, wishes, advice.level(raced, learners))
    notes = advice.advice_notes(table, wishes, facts, advice.dead_in(raced))
    for language in LANGUAGES:
        for one in notes:
            assert LAB.words(language)(f"notes.{one.key}", **one.parameters)
    return facts["recommended"], facts["agree"], [one.key for one in notes]


def test_nobody_wins_a_question_before_all_rivals_were_asked_it() -> None:
    both = [entry("embedded"), entry("onnx")]
    begun = table_of(row("embedded", 1, 100), row("embedded", 16, 300))
    assert rows.winners(begun, both) == {}
    half = table_of(row("embedded", 1, 100), row("embedded", 16, 300), row("onnx", 1, 50))
    assert set(rows.winners(half, both)) == {"alone", "first"}
    # Who died is no rival any more.
    assert set(rows.winners(half, [both[0], entry("onnx", died=True)])) == set(rows.QUESTIONS)


def test_of_a_race_that_was_stopped_the_advice_takes_what_everybody_has() -> None:
    half = table_of(row("embedded", 1, 100), row("embedded", 16, 300), row("onnx", 1, 50))
    assert advice.level(half, 16) == 1
    best, _, said = advised(half)
    assert best == ("embedded",) and "other_level" in said


def test_one_round_agrees_with_nobody() -> None:
    once = table_of(row("onnx", 16, 300, rounds=1), row("vllm", 16, 40, rounds=1))
    _, agree, said = advised(once)
    assert agree is None and "one_round" in said and not {"agree", "advice_tied"} & set(said)
    _, agree, said = advised(table_of(row("vllm", 16, 300, rounds=1)))
    assert agree is True and "agree" in said


def test_who_broke_down_in_the_race_was_raced() -> None:
    raced = table_of(row("embedded", 1, 100), row("embedded", 16, 300), row("vllm", 1, 20, died=True))
    assert "disagree_died" in advised(raced)[2]
    assert "material_not_raced" in advised(table_of(row("embedded", 16, 300)))[2]


def test_the_slower_one_is_told_by_how_much() -> None:
    raced = table_of(row("embedded", 16, 104), row("vllm", 16, 100))
    (said,) = (one for one in _notes(raced) if one.key == "disagree_slower")
    assert said.parameters["percent"] == pytest.approx(4)


def _notes(raced: pd.DataFrame) -> list[object]:
    wishes = advice.Wishes("throughput", 16, 4096 * MIB, 2.0)
    table = advice.advice_table(raced, wishes)
    return list(advice.advice_notes(table, wishes, advice.advice_facts(table, wishes, 16)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_bar_of_the_four_questions_stands_beside_its_own_engine(language: str) -> None:
    raced = table_of(
        *(row(one, level, 50, mib=None if one == "ollama" else 500) for one in ENGINES for level in (1, 16))
    )
    words = LAB.words(language)
    made = charts.questions(Result({}, raced), words)
    names = [words.choice(one, "engine") for one in ENGINES]
    axes = list(made.select_yaxes())
    assert len(axes) == 4
    for axis in axes:
        assert list(axis.categoryarray) == names and list(axis.range) == [2.5, -0.5]
    # The names stand on the left, beside every row of figures.
    assert [axis.showticklabels for axis in axes] == [True, False] * 2
    memory = [bar for bar in made.data if bar.type == "bar" and bar.yaxis == "y3"]
    assert [list(bar.y) for bar in memory] == [names[1:]]


@pytest.mark.parametrize(("rounds", "key"), [(1, "one_round"), (3, "noise"), (8, "noise_seldom")])
def test_a_chance_is_never_rounded_to_none(rounds: int, key: str) -> None:
    raced = table_of(row("embedded", 1, 100, rounds=rounds), row("onnx", 1, 50, rounds=rounds))
    notes = rows.race_notes(raced, [entry("embedded"), entry("onnx")])
    (said,) = (one for one in notes if one.key in ("one_round", "noise", "noise_seldom"))
    assert said.key == key
    for language in LANGUAGES:
        assert " 0.0 %" not in (text := LAB.words(language)(f"notes.{key}", **said.parameters)) and " 0,0 %" not in text


def test_the_ceilings_that_are_drawn_are_those_the_shares_are_of() -> None:
    sizes = {16: 30e9, 64: 20e9, 256: 12e9, 512: 10e9}
    points = [Bandwidth(mib * MIB, speed, speed, speed) for mib, speed in sizes.items()]
    entries = []
    for engine, mib in (("embedded", 90), ("onnx", 86), ("embedded-f16", 257)):
        one = entry(engine)
        one.contender = replace(one.contender, token_bytes=mib * MIB)
        turn = Turn(1.0)
        turn.at[1] = SimpleNamespace(tpot_p50_s=0.02)  # type: ignore[assignment]
        one.turns.append(turn)
        entries.append(one)
    result = rows.roofline_result(entries, points, ())
    assert result.more["sizes"] == (str(256 * MIB), str(512 * MIB))
    assert result.table is not None
    drawn = [12e9, 12e9, 10e9]
    assert list(result.table["reached_percent"]) == pytest.approx(
        [100 * read / 0.02 / most for read, most in zip(result.table["token_bytes"], drawn, strict=True)]
    )
    nobody = rows.roofline_result([], points, ())
    assert nobody.more["sizes"] == (str(512 * MIB),)
    for found in (result, nobody):
        assert charts.roofline(found, LAB.words("en")).data
