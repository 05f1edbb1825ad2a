"""Lab 6, step by step, on real engines; and what it makes of bad input, of dead engines and of being cancelled."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pandas as pd
import psutil
import pytest

from labs.compare import advice, rows, taking
from labs.compare.checks import LAB, NONE, who_wins
from lib.bench.contenders import CONTENDERS
from lib.course.draw import to_text
from lib.course.result import Result
from lib.course.run import Run, execute, from_card, latest_run
from lib.errors import BadParameter, EngineAway, EngineDied, ModelDamaged, NotMeasured, ToolchainUnsupported
from lib.store import RunCard
from lib.text import LANGUAGES
from lib.workbench import Workbench
from tests.conftest import DEFAULT
from tests.lab_runs import ran_and_drawn
from tests.server.helpers import is_alive, wait_until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")
NOBODY = "http://127.0.0.1:9"
SERVERS = ("lib.engines.embedded_server", "lib.engines.onnx_server", "lib.engines.vllm_server")


@pytest.fixture(scope="module")
def workbench(lab_home: Path) -> Iterator[Workbench]:
    made = Workbench.open(home=lab_home, language="en", endpoint=NOBODY, BANCADA_OLLAMA_HOST=NOBODY, _env_file=None)
    yield made
    made.close()
    made.store.close()


def ran(workbench: Workbench, step: str, drawn: bool = True, **given: object) -> Run:
    run = ran_and_drawn(LAB, workbench, step, drawn=drawn, **given)
    assert not servers(), "a server outlived its step"
    return run


def servers() -> list[psutil.Process]:
    """The engines that this process has started itself."""
    found = []
    for one in psutil.Process().children():
        with suppress(psutil.Error):
            if any(name in one.cmdline() for name in SERVERS) and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one)
    return found


def keys(result: Result) -> list[str]:
    return [one.key for one in result.notes]


def test_one_prompt_goes_through_each_engine_with_its_wire_and_without_its_key(workbench: Workbench) -> None:
    result = ran(workbench, "one_prompt", engines=("embedded", "onnx", "endpoint"), max_tokens=16).result
    assert result.table is not None and list(result.table["engine"]) == ["embedded", "onnx"]
    assert set(result.table["prompt_tokens"]) == {37}, "one template, one count"
    assert [one.name for one in result.listings] == ["wire_embedded", "wire_onnx"]
    for listing in result.listings:
        assert "POST /chat/completions" in listing.text and "[DONE]" in listing.text
        assert "Bearer" not in listing.text and "authorization" not in listing.text.lower()
    (out,) = (one for one in result.notes if one.key == "out")
    assert out.parameters["engine"] == ["endpoint"]
    for language, sentence in (("en", "OpenAI API"), ("pt", "OpenAI API")):
        assert sentence in LAB.words(language)("notes.out", **out.parameters)


@pytest.fixture(scope="module")
def raced(workbench: Workbench) -> Run:
    return ran(workbench, "race", engines=("embedded", "onnx"), rounds=1, max_tokens=16)


def test_the_race_answers_four_questions_and_calls_no_winner_after_one_round(raced: Run) -> None:
    result = raced.result
    assert result.table is not None and not result.partial
    assert list(result.table["parallel"]) == [1, 4, 16] * 2
    assert not result.table["failures"].any() and not result.table["short"].any()
    # Of a text that was cut in the middle of a word another tokenizer may make a token more or less; eight of
    # sixteen clients have the same prompt, so where one is cut so, all are.
    apart = (result.table["tokens"] - result.table["engine_tokens"]).abs()
    assert (apart <= [3, 8, 32] * 2).all()
    for question in rows.QUESTIONS:
        assert result.facts[f"{question}_engine"] in ("embedded", "onnx")
    assert "one_round" in keys(result) and not [one for one in keys(result) if one.startswith("tied_")]


def test_an_engine_that_dies_is_out_and_the_others_go_on(workbench: Workbench) -> None:
    killed = False
    given = {"engines": ("onnx", "embedded"), "rounds": 2, "max_tokens": 16}

    with closing(execute(LAB.steps["race"], workbench, given)) as events:
        for moved in events:
            if moved.what == "at_once" and moved.detail == "onnx × 4" and not killed:
                killed = True
                (one,) = servers()
                one.kill()
    run = latest_run(LAB.steps["race"], workbench, workbench.learner)
    assert run is not None
    result = run.result
    assert killed and result.table is not None
    by_engine = {str(name): part for name, part in result.table.groupby("engine")}
    assert by_engine["onnx"]["died"].all() and 1 in set(by_engine["onnx"]["parallel"]), "what it had is kept"
    assert list(by_engine["embedded"]["rounds"]) == [2, 2, 2] and not by_engine["embedded"]["died"].any()
    assert next(one for one in result.notes if one.key == "out").parameters["engine"] == ["onnx"]
    assert not servers()


def cards(workbench: Workbench, step: str) -> set[str]:
    return {one.id for one in workbench.store.cards(workbench.learner, LAB.id, step)}


def kept(workbench: Workbench, step: str, before: set[str]) -> Result:
    """What a step that did not come to its end has left; it can be drawn like any other."""
    (card,) = (one for one in workbench.store.cards(workbench.learner, LAB.id, step) if one.id not in before)
    run = from_card(LAB.steps[step], card, LAB.words("en"))
    assert run.result.partial and keys(run.result)[0] == "partial"
    for language in LANGUAGES:
        said = LAB.words(language)
        assert to_text(run, said) and run.figure(said) is not None
    return run.result


def test_what_a_cancelled_race_had_measured_is_kept_and_nothing_runs_on(workbench: Workbench) -> None:
    before = cards(workbench, "race")
    given = {"engines": ("embedded", "onnx"), "rounds": 5, "max_tokens": 16}
    with closing(execute(LAB.steps["race"], workbench, given)) as events:
        for moved in events:
            if moved.detail.startswith("onnx"):
                break
    wait_until("nothing runs on", lambda: not servers())
    table = kept(workbench, "race", before).table
    assert table is not None and set(table["engine"]) == {"embedded"}
    assert list(table["rounds"]) == [1, 1, 1]


def test_what_the_engines_said_before_a_prompt_was_cancelled_is_kept(workbench: Workbench) -> None:
    before = cards(workbench, "one_prompt")
    given = {"engines": ("embedded", "onnx"), "max_tokens": 16}
    with closing(execute(LAB.steps["one_prompt"], workbench, given)) as events:
        for moved in events:
            if moved.detail == "onnx":
                break
    wait_until("nothing runs on", lambda: not servers())
    result = kept(workbench, "one_prompt", before)
    assert result.table is not None and list(result.table["engine"]) == ["embedded"]
    assert [one.name for one in result.listings] == ["wire_embedded"]


def test_the_roofline_is_bandwidth_over_bytes_and_who_lies_above_it_is_named(workbench: Workbench) -> None:
    result = ran(workbench, "roofline", engines=("embedded", "embedded-f16"), rounds=1).result
    assert result.table is not None and len(result.table) == 2
    # Where the machine is busy with something else, memory may seem slower than an engine reads it.
    assert ("above_ceiling" in keys(result)) == (result.table["reached_percent"] > 100).any()
    for _, row in result.table.iterrows():
        assert row["reached_percent"] == pytest.approx(100 * row["tokens_per_s"] / row["ceiling_tokens_per_s"])
        assert row["moved_bytes_per_s"] == pytest.approx(row["tokens_per_s"] * row["token_bytes"])
    small, large = result.table["token_bytes"]
    assert 2.5 < large / small < 3.5, "F16 reads about three times what Q4_1 does"


def test_vllm_works_on_as_many_requests_at_once_as_it_may(workbench: Workbench) -> None:
    result = ran(workbench, "vllm", sequences=4, max_tokens=16).result
    assert result.facts["served"] == (f"{DEFAULT}.hf",)
    assert result.facts["most_running"] == 4, "no more than --max-num-seqs"
    assert isinstance(result.facts["most_waiting"], float) and result.facts["most_waiting"] > 4
    assert result.table is not None and list(result.table["parallel"]) == [1, 4, 16]
    assert keys(result) == ["for_learning"]


def test_the_scenarios_are_taken_by_vllms_own_parser(workbench: Workbench) -> None:
    for scenario in ("development", "enterprise"):
        result = ran(workbench, "scenarios", drawn=False, scenario=scenario).result
        assert result.facts["accepted"] == result.facts["scenarios"] == 5
        assert result.table is not None and result.table["accepted"].all()
        assert result.listings[0].text.startswith("vllm serve ")
    old = ran(workbench, "old_names").result
    assert isinstance(old.facts["refused"], int) and old.facts["refused"] > 10


def test_arrivals_beyond_the_capacity_let_the_queue_grow(workbench: Workbench) -> None:
    result = ran(workbench, "saturation", slots=1, max_tokens=16, requests=8).result
    assert result.table is not None and list(result.table["share_percent"]) == [25, 50, 75, 100, 125]
    assert not result.table["failures"].any()
    capacity = result.facts["capacity_per_s"]
    assert isinstance(capacity, float)
    assert list(result.table["offered_per_s"]) == pytest.approx(
        [capacity * share for share in (0.25, 0.5, 0.75, 1, 1.25)]
    )
    assert isinstance(result.facts["learners"], int)
    assert result.facts["slots"] == 1 and set(result.table["requests"]) == {8}


def test_a_class_at_once_finds_a_slot_for_each_in_its_own_profile(workbench: Workbench) -> None:
    result = ran(workbench, "burst", learners=16, max_tokens=16, rounds=1).result
    assert result.table is not None
    assert dict(zip(result.table["profile"], result.table["slots"], strict=True)) == {"default": 4, "class": 16}
    assert len(result.more["class"]) == 16  # type: ignore[arg-type]
    assert isinstance(result.facts["ttft_percent"], float)


def table_of(**figures: tuple[float, float, float, float]) -> pd.DataFrame:
    """A race's table with sixteen clients: tokens a second, their half spread, memory in MiB, p95 TTFT."""
    return pd.DataFrame(
        [
            {
                "engine": name, "parallel": 16, "rounds": 3, "tokens_per_s": speed, "low_tokens_per_s": speed - spread,
                "high_tokens_per_s": speed + spread, "memory_bytes": mib * 2**20, "ttft_p95_s": ttft,
                "failures": 0, "died": False,
            }
            for name, (speed, spread, mib, ttft) in figures.items()
        ]
    )  # fmt: skip


def advised(raced: pd.DataFrame, goal: str, memory_mib: int = 4096) -> tuple[object, list[str]]:
    wishes = advice.Wishes(goal, 16, memory_mib * 2**20, 2.0)
    table = advice.advice_table(raced, wishes)
    facts = advice.advice_facts(table, wishes, 16)
    return facts["recommended"], [one.key for one in advice.advice_notes(table, wishes, facts)]


def test_the_advice_names_the_fastest_that_keeps_the_bounds_and_every_disagreement() -> None:
    raced = table_of(vllm=(120.0, 5.0, 3300.0, 1.0), embedded=(180.0, 5.0, 900.0, 1.5), onnx=(60.0, 5.0, 400.0, 9.0))
    best, said = advised(raced, "throughput")
    assert best == ("embedded",) and "disagree_slower" in said
    best, said = advised(raced, "throughput", memory_mib=1024)
    assert best == ("embedded",) and "disagree_in_memory" in said
    best, said = advised(raced, "throughput", memory_mib=512)
    assert best == ("none",) and "none_fits" in said
    best, said = advised(raced, "portable")
    assert "material_not_raced" in said and "not_measured_here" in said
    best, said = advised(table_of(vllm=(180.0, 9.0, 900.0, 1.0), embedded=(175.0, 9.0, 900.0, 1.0)), "throughput")
    assert best == ("vllm", "embedded") and {"agree", "advice_tied"} <= set(said)


def test_every_sentence_of_the_advice_is_there_in_both_languages(workbench: Workbench, raced: Run) -> None:
    for goal in advice.MATERIAL:
        for memory_mib in (128, 65536):
            result = ran(workbench, "recommend", goal=goal, memory_mib=memory_mib, ttft_bound_s=60.0).result
            assert result.table is not None and set(result.table["engine"]) <= set(CONTENDERS)


def test_advice_and_cards_ask_for_a_measurement_first(home: Path) -> None:
    with closing(Workbench.open(home=home, language="en", _env_file=None)) as empty:
        for step in ("recommend", "take_along"):
            with pytest.raises(NotMeasured) as caught:
                ran(empty, step)
            for language in ("en", "pt"):
                assert all(LAB.words(language).error(caught.value))
        assert not who_wins.function(empty).correct
        empty.store.close()


def test_what_is_taken_along_holds_every_card(workbench: Workbench, raced: Run) -> None:
    result = ran(workbench, "take_along").result
    assert result.table is not None and "race" in set(result.table["step"])
    assert {one.name for one in result.listings} == {"json", "csv"}
    assert result.facts["cards"] == len(result.table)


def test_the_exercise_is_checked_against_the_learners_own_race(workbench: Workbench, raced: Run) -> None:
    workbench.store.add_card(recarded(raced, table_of(
        vllm=(120.0, 1.0, 3300.0, 1.0), embedded=(180.0, 1.0, 900.0, 1.5), onnx=(60.0, 1.0, 400.0, 9.0)
    )))  # fmt: skip
    for answer, memory_mib, right, key in (
        ("embedded", 1024, True, "exercise_right"),
        ("vllm", 1024, False, "exercise_breaks"),
        ("onnx", 1024, False, "exercise_slower"),
        ("onnx", 512, True, "exercise_right"),
        ("ollama", 1024, False, "exercise_not_raced"),
        (NONE, 1024, False, "exercise_one_fits"),
        (NONE, 256, True, "exercise_none_fits"),
    ):
        verdict = who_wins.function(workbench, learners=16, memory_mib=memory_mib, answer_engine=answer)
        assert (verdict.correct, keys(verdict.result)) == (right, [key]), answer
        for language in ("en", "pt"):
            for one in verdict.result.notes:
                assert LAB.words(language)(f"notes.{one.key}", **one.parameters)
    assert keys(who_wins.function(workbench, learners=4).result) == ["exercise_not_measured"]
    # One round tells nobody apart, and so no answer is right.
    once = table_of(vllm=(120.0, 0.0, 900.0, 1.0), embedded=(180.0, 0.0, 900.0, 1.5)).assign(rounds=1)
    workbench.store.add_card(recarded(raced, once))
    verdict = who_wins.function(workbench, learners=16, memory_mib=1024, answer_engine="vllm")
    assert (verdict.correct, keys(verdict.result)) == (False, ["exercise_one_round"])


def recarded(run: Run, table: pd.DataFrame) -> RunCard:
    """A newer card of the learner's race, with another table."""
    result = Result(run.result.facts, table, run.result.notes)
    return RunCard(
        id=os.urandom(16).hex(), learner="me", lab=LAB.id, step="race", parameters=dict(run.parameters),
        prediction=None, result=result.to_json(), versions={}, machine={}, model_sha256=None, duration_s=1.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("step", "given"),
    [
        ("race", {"rounds": 0}),
        ("race", {"engines": ("nobody",)}),
        ("race", {"max_tokens": 17}),
        ("race", {"prompts": "x" * 2001}),
        ("saturation", {"requests": 7}),
        ("saturation", {"ttft_bound_s": float("nan")}),
        ("saturation", {"think_s": 0}),
        ("burst", {"learners": 31}),
        ("vllm", {"sequences": 3}),
        ("scenarios", {"scenario": "world"}),
        ("recommend", {"goal": "love"}),
    ],
)
def test_what_is_out_of_bounds_is_refused_before_anything_runs(
    workbench: Workbench, step: str, given: dict[str, object]
) -> None:
    with pytest.raises(BadParameter):
        next(execute(LAB.steps[step], workbench, given))


def test_where_no_engine_can_be_had_the_reason_is_told(workbench: Workbench) -> None:
    for engines in (("endpoint",), ("ollama", "endpoint")):
        with pytest.raises(EngineAway):
            list(execute(LAB.steps["one_prompt"], workbench, {"engines": engines}))
    with pytest.raises(EngineAway):
        list(execute(LAB.steps["saturation"], workbench, {"engine": "ollama"}))


def test_prompts_of_nothing_but_white_space_and_hostile_ones_are_asked_all_the_same(workbench: Workbench) -> None:
    for prompts in ("\n \n", "<script>alert(1)</script>\n\x00\n🙂 {} $x"):
        result = ran(workbench, "race", engines=("embedded",), rounds=1, max_tokens=16, prompts=prompts).result
        assert result.table is not None and not result.table["failures"].any()


def test_a_system_that_vllm_is_not_made_for_is_told_so(
    workbench: Workbench, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lib.toolchains.registry.Toolchain.supported", lambda self: self.name != "vllm")
    with closing(Workbench.open(home=home, language="en", _env_file=None)) as bare:
        with pytest.raises(ToolchainUnsupported):
            list(execute(LAB.steps["scenarios"], bare, {}))
        bare.store.close()


def test_a_killed_vllm_is_an_error_of_ours_and_what_it_did_before_is_kept(workbench: Workbench) -> None:
    before, pid = cards(workbench, "vllm"), 0
    with (
        pytest.raises((EngineDied, EngineAway)),
        closing(execute(LAB.steps["vllm"], workbench, {"max_tokens": 96})) as events,
    ):
        for moved in events:
            if moved.what == "at_once" and moved.detail == "vllm × 16" and not pid:
                (one,) = servers()
                pid = one.pid
                os.kill(pid, signal.SIGKILL)
    assert pid and not is_alive(pid)
    wait_until("nothing runs on", lambda: not servers())
    result = kept(workbench, "vllm", before)
    assert result.table is not None and list(result.table["parallel"]) == [1, 4]
    assert result.facts["four_tokens_per_s"] and result.facts["sixteen_tokens_per_s"] is None


def test_a_tokenizer_that_is_damaged_is_told_before_the_race(
    workbench: Workbench, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "tokenizer.json"
    broken.write_text("{")
    monkeypatch.setattr("lib.bench.tokens.ensure_hf", lambda *_: _found(tmp_path))
    with pytest.raises(ModelDamaged):
        list(execute(LAB.steps["race"], workbench, {"engines": ("embedded",)}))


def _found(folder: Path) -> Iterator[object]:
    class Made:
        path = folder

    yield from ()
    return Made()  # type: ignore[return-value]


def test_a_note_about_an_error_reads_in_the_readers_language() -> None:
    told = taking.out("endpoint", EngineAway(engine="OpenAI API", address=NOBODY, why="refused"))
    english, portuguese = (LAB.words(one)("notes.out", **told.parameters) for one in ("en", "pt"))
    assert english != portuguese and NOBODY in english and NOBODY in portuguese
