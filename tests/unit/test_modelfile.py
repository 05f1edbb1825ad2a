"""Modelfiles as Ollama's own parser reads them, and what older texts write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.ollama.modelfile import INSTRUCTIONS, PARAMETERS, Problem, read_modelfile

WHOLE = '''# A tutor.
FROM smollm2:135m

PARAMETER temperature 0.2
parameter num_ctx 4096
PARAMETER use_mmap false
PARAMETER stop "<|im_end|>"
PARAMETER stop User:
SYSTEM """You are a tutor.
# This line is part of the text.
Answer in one sentence."""
MESSAGE user What is a token?
MESSAGE assistant "A piece of
a word."
LICENSE """MIT"""
REQUIRES 0.14.0
'''


def faults(text: str) -> list[Problem]:
    return read_modelfile(text).problems


def test_everything_is_read() -> None:
    made = read_modelfile(WHOLE)
    assert made.problems == [] and made.is_valid
    assert made.source == "smollm2:135m"
    stops = ["<|im_end|>", "User:"]
    assert made.parameters == {"temperature": 0.2, "num_ctx": 4096, "use_mmap": False, "stop": stops}
    assert made.system == "You are a tutor.\n# This line is part of the text.\nAnswer in one sentence."
    assert made.messages == [
        {"role": "user", "content": "What is a token?"},
        {"role": "assistant", "content": "A piece of\na word."},
    ]
    assert made.licenses == ["MIT"]


@pytest.mark.parametrize("ends", ["\r\n", "\r"])
def test_line_ends_and_a_byte_order_mark_of_other_systems_do_no_harm(ends: str) -> None:
    assert read_modelfile("\ufeff" + WHOLE.replace("\n", ends)) == read_modelfile(WHOLE)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("PARAMETER context_length 4096", Problem(2, "unknown-parameter", "context_length", "num_ctx")),
        ("PARAMETER gpu_layers 32", Problem(2, "unknown-parameter", "gpu_layers", "num_gpu")),
        ("PARAMETER max_tokens 10", Problem(2, "unknown-parameter", "max_tokens", "num_predict")),
        ("PARAMETER warmth 1", Problem(2, "unknown-parameter", "warmth")),
        ("FILE ./guidelines.txt", Problem(2, "unknown-instruction", "FILE", "SYSTEM")),
        ("RUN ollama pull x", Problem(2, "unknown-instruction", "RUN")),
        ("SYSTEM", Problem(2, "no-value", "SYSTEM")),
        ("PARAMETER num_ctx", Problem(2, "no-parameter", "num_ctx")),
        ("PARAMETER num_ctx four", Problem(2, "not-a-number", "num_ctx four")),
        ("PARAMETER num_ctx 4096.5", Problem(2, "not-a-number", "num_ctx 4096.5")),
        ("PARAMETER use_mmap perhaps", Problem(2, "not-a-number", "use_mmap perhaps")),
        ("MESSAGE User Hello", Problem(2, "unknown-role", "User", "user")),
        ("MESSAGE tool Hello", Problem(2, "unknown-role", "tool")),
        ("REQUIRES soon", Problem(2, "not-a-version", "soon")),
        ('SYSTEM """You are', Problem(2, "unclosed", "SYSTEM")),
        ('SYSTEM "You are', Problem(2, "unclosed", "SYSTEM")),
        ("=== diff", Problem(2, "unknown-instruction", "===")),
    ],
)
def test_a_fault_is_named_with_its_line(line: str, problem: Problem) -> None:
    made = read_modelfile(f"FROM a\n{line}\n")
    assert made.problems == [problem]
    assert not made.is_valid


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("PARAMETER mirostat 1", Problem(2, "deprecated", "mirostat")),
        ("PARAMETER stop END # the end", Problem(2, "comment-in-value", "# the end")),
    ],
)
def test_what_ollama_takes_and_the_learner_did_not_mean_is_a_warning(line: str, problem: Problem) -> None:
    made = read_modelfile(f"FROM a\n{line}")
    assert made.problems == [problem]
    assert made.is_valid


@pytest.mark.parametrize("text", ["", "\n\n# nothing\n", "SYSTEM hello", "from", 'FROM ""'])
def test_without_from_it_is_no_modelfile(text: str) -> None:
    assert any(one.kind in ("no-from", "no-value") for one in faults(text))
    assert not read_modelfile(text).is_valid


def test_all_faults_are_told_at_once() -> None:
    made = faults("FROM a\nFILE b\nPARAMETER warmth 1\nMESSAGE nobody x")
    assert [one.line for one in made] == [2, 3, 4]


@given(st.text())
def test_any_text_is_read_without_an_exception(text: str) -> None:
    read_modelfile(text)


@given(st.lists(st.sampled_from([*INSTRUCTIONS, *PARAMETERS, '"', '"""', " ", "\n", "#", "1", "user", "x"])))
def test_any_mixture_of_its_words_is_read_without_an_exception(words: list[str]) -> None:
    read_modelfile(" ".join(words))
    read_modelfile("".join(words))
