"""vLLM's scenarios: what is pasted is what was meant, and what each one needs. No vLLM here."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from labs.compare.scenario_charts import scenarios
from labs.compare.scenario_rows import need_notes, needs_table, old_names_table, option_table, packed
from lib.course.result import Progress, Result
from lib.errors import ToolchainDied
from lib.text import LANGUAGES, Words
from lib.vllm.old_names import OLD_NAMES, OldName
from lib.vllm.scenarios import (
    AWQ_MODEL,
    DRAFT,
    SCENARIOS,
    Scenario,
    Value,
    arguments,
    chosen,
    command,
    config_yaml,
    model_for,
    needs,
)
from lib.vllm.trials import Answer, Card, Described, Judged, judge, paired, trial_of, trials_of

EVERY = pytest.mark.parametrize("scenario", SCENARIOS.values(), ids=list(SCENARIOS))
HOSTILE = 'it\'s a "model"; rm -rf $HOME/`x`'
GIB = 1 << 30


def pasted(text: str) -> list[str]:
    """What a shell makes of it."""
    return shlex.split(text.replace("\\\n", ""))


@EVERY
def test_a_pasted_command_is_the_arguments(scenario: Scenario) -> None:
    assert pasted(command(scenario, "some/model")) == ["vllm", *arguments(scenario, "some/model")]


@pytest.mark.parametrize("value", [HOSTILE, {"model": HOSTILE}, "", "two words", "ünïcödé"])
def test_no_value_escapes_its_quotes(value: Value) -> None:
    scenario = SCENARIOS["production_high"]
    words = pasted(command(scenario, HOSTILE, speculative_config=value))
    assert words[:3] == ["vllm", "serve", HOSTILE]
    after = words[words.index("--speculative-config") + 1]
    assert (json.loads(after) if isinstance(value, dict) else after) == value


@EVERY
def test_the_yaml_reads_back_as_the_same(scenario: Scenario) -> None:
    read = yaml.safe_load(config_yaml(scenario, HOSTILE))
    assert read.pop("model") == HOSTILE
    assert {name.replace("-", "_"): value for name, value in read.items()} == {
        name: dict(value) if not isinstance(value, bool | int | float | str) else value
        for name, value in scenario.options.items()
    }
    assert list(read) == [name.replace("_", "-") for name in scenario.options]


@pytest.mark.parametrize("value", [HOSTILE, "yes", "null", "1e3", "a: b # c", {"a": {"b": [1, None, True]}}])
def test_no_value_means_something_else_in_yaml(value: Value) -> None:
    read = yaml.safe_load(config_yaml(SCENARIOS["staging"], "m", quantization=value))
    assert read["quantization"] == value


def test_an_override_takes_a_place_leaves_one_or_adds_one() -> None:
    staging = SCENARIOS["staging"]
    found = arguments(staging, "m", max_num_seqs=8, quantization=None, enforce_eager=True, enable_prefix_caching=False)
    assert found[found.index("--max-num-seqs") + 1] == "8"
    assert "--quantization" not in found and "awq" not in found
    assert "--no-enable-prefix-caching" in found and "--enable-prefix-caching" not in found
    assert found[-1] == "--enforce-eager"
    assert "enforce_eager" not in staging.options


def test_each_scenario_has_its_figures() -> None:
    found = {
        name: (one.memory_share, one.context_tokens, one.gpus, one.sequences, one.batch_tokens)
        for name, one in ((name, needs(scenario)) for name, scenario in SCENARIOS.items())
    }
    assert found == {
        "development": (0.6, 2048, 1, 32, 2048),
        "staging": (0.8, 4096, 1, 64, 4096),
        "production_low": (0.85, 4096, 1, 128, 8192),
        "production_high": (0.9, 8192, 2, 256, 16384),
        "enterprise": (0.95, 16384, 8, 512, 32768),
    }


def test_what_a_scenario_needs_beside_gpus() -> None:
    assert {name: needs(one).quantized_weights for name, one in SCENARIOS.items() if needs(one).quantized_weights} == {
        "staging": "awq",
        "production_low": "awq",
    }
    assert {name: needs(one).draft_model for name, one in SCENARIOS.items() if needs(one).draft_model} == {
        "production_high": DRAFT
    }
    assert model_for(SCENARIOS["staging"]) == AWQ_MODEL
    assert model_for(SCENARIOS["staging"], quantization=None) != AWQ_MODEL
    assert trial_of(SCENARIOS["staging"]).weights == "awq"
    assert trial_of(SCENARIOS["staging"], quantization=None).weights == "plain"


def test_gpus_follow_an_override() -> None:
    assert needs(SCENARIOS["enterprise"], pipeline_parallel_size=None).gpus == 4
    assert needs(SCENARIOS["development"], tensor_parallel_size=3, pipeline_parallel_size=5).gpus == 15


def test_full_sequences_are_what_the_cache_holds() -> None:
    one = needs(SCENARIOS["development"])
    # 0.6 of 10 GiB is 6 GiB; 2 GiB of weights leave 4 GiB, and a full sequence takes 2048 times 128 KiB.
    assert one.full_sequences(10 * GIB, 2 * GIB, 128 << 10) == 16
    assert one.full_sequences(10 * GIB, 7 * GIB, 128 << 10) == 0
    assert one.full_sequences(1000 * GIB, 2 * GIB, 128 << 10) == one.sequences
    assert one.most_cache_tokens == 32 * 2048


def test_what_is_written_down_cannot_be_changed_by_a_user_of_it() -> None:
    with pytest.raises(TypeError):
        SCENARIOS["staging"].options["max_num_seqs"] = 1  # type: ignore[index]
    with pytest.raises(TypeError):
        SCENARIOS["production_high"].options["speculative_config"]["model"] = "x"  # type: ignore[index]


def test_old_names_have_one_word_each_and_something_to_try() -> None:
    assert len({one.id for one in OLD_NAMES}) == len(OLD_NAMES)
    for one in OLD_NAMES:
        before, after = trials_of(one)
        assert bool(one.arguments) != bool(one.environment)
        assert before.arguments[2:] == one.arguments and before.environment == one.environment
        assert after.arguments[2:] == one.today and not after.environment


# Patience, with a toolchain that only says it.


class Slow:
    """A toolchain that says the same thing over and over, then answers."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.told: BaseException | None = None

    def call(self, *_: object) -> Iterator[Progress]:
        try:
            for _ in range(5):
                yield Progress(0, 0, self.what)
        except BaseException as told:
            self.told = told
            raise
        return {"version": "0", "answers": [], "usual": {}, "options": {}, "cards": []}


def waited_for(toolchains: Slow) -> list[Progress]:
    bench = SimpleNamespace(toolchains=toolchains, logs=Path("logs"))
    return list(judge(bench, [], patience_s=-1))  # type: ignore[arg-type]


def test_a_parser_that_says_nothing_new_is_told_to_end() -> None:
    slow = Slow("vllm_parse")
    with pytest.raises(ToolchainDied) as raised:
        waited_for(slow)
    # Told within, so that its log stays.
    assert slow.told is raised.value


def test_a_toolchain_that_is_being_built_may_take_its_time() -> None:
    assert len(waited_for(Slow("toolchain_download"))) == 5


# Tables, from made-up answers.


def answered(accepted: bool = True, stage: str = "", message: str = "", *warnings: str, **became: object) -> Answer:
    return Answer(accepted, stage, message, warnings, {}, became)  # type: ignore[arg-type]


def made_up(**usual: object) -> Judged:
    options = {"max_num_seqs": Described(("--max-num-seqs", "-s"), None, "How many.")}
    every = {"max_model_len": 131072, **usual}
    return Judged("0.0", (), {"plain": every, "awq": {**every, "quantization": "awq"}}, options, ())


def test_an_option_that_only_says_the_usual_changes_nothing() -> None:
    staging = SCENARIOS["staging"]
    became = chosen(staging)
    judged = made_up(enable_prefix_caching=True, max_num_seqs=64, gpu_memory_utilization=0.92)
    table = option_table(judged, answered(**became), staging).set_index("explanation")
    assert not table["changed"][["enable_prefix_caching", "max_num_seqs", "quantization"]].any()
    assert table["changed"][["gpu_memory_utilization", "max_num_batched_tokens"]].all()
    assert table["option"]["max_num_seqs"] == "--max-num-seqs" and table["usual"]["gpu_memory_utilization"] == "0.92"
    assert table["value"]["enable_prefix_caching"] == "true" and table["usual"]["max_num_batched_tokens"] == "–"


def test_the_context_of_the_stand_in_is_not_shown_as_usual() -> None:
    table = option_table(made_up(), answered(max_model_len=2048), SCENARIOS["development"]).set_index("explanation")
    assert table["usual"]["max_model_len"] == "–" and table["changed"]["max_model_len"]


def test_the_usual_batch_is_that_of_the_card() -> None:
    development = SCENARIOS["development"]
    card = Card("some GPU", 80, max_num_seqs=32, max_num_batched_tokens=8192)
    became = chosen(development)
    judged = made_up(max_num_seqs=128, max_num_batched_tokens=2048)
    here = option_table(judged, answered(**became), development).set_index("explanation")
    there = option_table(judged, answered(**became), development, card).set_index("explanation")
    assert here["changed"]["max_num_seqs"] and not there["changed"]["max_num_seqs"]
    assert not here["changed"]["max_num_batched_tokens"] and there["changed"]["max_num_batched_tokens"]


def test_of_a_refused_command_what_was_asked_for_is_compared() -> None:
    table = option_table(made_up(max_num_seqs=128), answered(False, "engine", "no"), SCENARIOS["development"])
    assert not table["accepted"].any() and table["changed"].all()


def test_what_became_of_an_old_name() -> None:
    gone, variable = OldName("gone", ("--gone",)), OldName("v", today=("--v", "1"), environment={"VLLM_V": "1"})
    same = OldName("same", ("--same",), ("--same",), still=True)
    answers = [
        *(answered(False, "parser", "unrecognized arguments: --gone\n\nmore"), answered()),
        *(answered(True, "", "", "Unknown vLLM environment variable detected: VLLM_V"), answered(False, "parser", "?")),
        *(answered(True, "", "", "Something else."), answered(False, "engine", "No Ray here.")),
    ]
    table = old_names_table(paired((gone, variable, same), answers))
    assert list(table["fate"]) == ["refused", "ignored", "taken"]
    assert table["said"].iloc[0] == "unrecognized arguments: --gone"
    assert list(table["today_accepted"]) == [None, False, True]
    assert list(table["written"]) == ["--gone", "VLLM_V=1", "--same"]


def test_the_notes_say_what_a_scenario_needs_and_how_far_the_check_went() -> None:
    said = {name: [one.key for one in need_notes(scenario)] for name, scenario in SCENARIOS.items()}
    assert all(keys[-1] == "needs_not_checked" and "needs_cache" in keys for keys in said.values())
    assert {name for name, keys in said.items() if "needs_one_gpu" in keys} == {
        *("development", "staging", "production_low")
    }
    assert {name for name, keys in said.items() if "needs_quantized_weights" in keys} == {"staging", "production_low"}
    assert [name for name, keys in said.items() if "needs_draft_model" in keys] == ["production_high"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_figure_shows_every_scenario_in_every_panel(language: str) -> None:
    table = needs_table(list(SCENARIOS.values()))
    choices = {"scenario": {name: f"<{name}>" for name in SCENARIOS}}
    words = Words(language, [{"choices": choices, "labels": {name: f"[{name}]" for name in table.columns}}])
    kept = Result.from_json(Result(facts={}, more=packed(table)).to_json())
    made = scenarios(kept, words)
    assert len(made.data) == 6
    for bars in made.data:
        assert list(bars.y) == [f"<{name}>" for name in SCENARIOS]
    shown = {one.text for one in made.layout.annotations}
    assert "[gpus]" in shown and "[most_cache_tokens]" in shown
    assert list(made.data[0].x) == [1, 1, 1, 2, 8]
    assert made.data[-1].text[-1] == words.number(512 * 16384)
