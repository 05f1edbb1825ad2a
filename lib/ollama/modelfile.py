"""Ollama's Modelfile: read as its own parser reads it (v0.33), but all faults at once instead of the first.

An instruction begins a line; its value goes to the line's end, or, begun with a quotation mark,
to the closing one. A ``#`` is a comment only where an instruction could begin.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

INSTRUCTIONS = (
    "FROM",
    "PARAMETER",
    "TEMPLATE",
    "SYSTEM",
    "ADAPTER",
    "LICENSE",
    "MESSAGE",
    "REQUIRES",
    "RENDERER",
    "PARSER",
    "DRAFT",
)
ROLES = ("system", "user", "assistant")
PARAMETERS: Mapping[str, type] = MappingProxyType(
    {
        **dict.fromkeys(("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "num_predict"), int),
        **dict.fromkeys(("seed", "top_k", "repeat_last_n", "draft_num_predict"), int),
        **dict.fromkeys(("temperature", "top_p", "min_p", "typical_p"), float),
        **dict.fromkeys(("repeat_penalty", "presence_penalty", "frequency_penalty"), float),
        "use_mmap": bool,
        "stop": str,
    }
)
DEPRECATED = (
    "penalize_newline",
    "low_vram",
    "f16_kv",
    "logits_all",
    "vocab_only",
    "use_mlock",
    "mirostat",
    "mirostat_tau",
    "mirostat_eta",
)
# What other programs and older texts call it.
INSTEAD: Mapping[str, str] = MappingProxyType(
    {
        "context_length": "num_ctx",
        "n_ctx": "num_ctx",
        "max_tokens": "num_predict",
        "n_predict": "num_predict",
        "threads": "num_thread",
        "num_threads": "num_thread",
        "gpu_layers": "num_gpu",
        "n_gpu_layers": "num_gpu",
        "repetition_penalty": "repeat_penalty",
        "file": "SYSTEM",
        "prompt": "SYSTEM",
        "set": "PARAMETER",
        "env": "PARAMETER",
        "param": "PARAMETER",
        "model": "FROM",
    }
)
_BOOLEANS = {"1": True, "t": True, "true": True, "0": False, "f": False, "false": False}
_VERSION = re.compile(r"v?\d+(\.\d+){0,2}([-+][0-9A-Za-z.+-]+)?$")

Kind = Literal[
    "no-from",
    "unknown-instruction",
    "no-value",
    "unclosed",
    "unknown-parameter",
    "no-parameter",
    "not-a-number",
    "not-a-version",
    "unknown-role",
    "deprecated",
    "comment-in-value",
]
WARNINGS: frozenset[Kind] = frozenset({"deprecated", "comment-in-value"})


@dataclass(frozen=True)
class Problem:
    """A fault in a line, counted from 1: its kind, the word that is wrong, and what is meant, if that is known."""

    line: int
    kind: Kind
    word: str = ""
    instead: str = ""

    @property
    def is_error(self) -> bool:
        """Whether Ollama refuses the file for it."""
        return self.kind not in WARNINGS


@dataclass
class Modelfile:
    """What a Modelfile says. ``parameters`` have the types that Ollama's API wants; ``stop`` is a list."""

    source: str = ""
    parameters: dict[str, object] = field(default_factory=dict)
    template: str = ""
    system: str = ""
    adapter: str = ""
    licenses: list[str] = field(default_factory=list)
    messages: list[dict[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_valid(self) -> bool:
        """Whether Ollama would take it."""
        return not any(one.is_error for one in self.problems)


def read_modelfile(text: str) -> Modelfile:
    """Everything that the text says, and everything that is wrong with it; never raises."""
    made = Modelfile()
    for line, instruction, value in _instructions(text, made.problems):
        _READERS.get(instruction, _nothing)(made, line, value)
    if not made.source and not any(one.kind == "no-from" for one in made.problems):
        made.problems.append(Problem(1, "no-from"))
    return made


def _instructions(text: str, problems: list[Problem]) -> Iterator[tuple[int, str, str]]:
    """Each instruction with the line it begins in and its value, quotation marks taken off."""
    lines = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    at = 0
    while at < len(lines):
        begun, line = at, lines[at].lstrip(" \t")
        at += 1
        if not line or line.startswith("#"):
            continue
        word, space, value = _cut(line)
        if word.upper() not in INSTRUCTIONS:
            problems.append(Problem(begun + 1, "unknown-instruction", word[:40], INSTEAD.get(word.lower(), "")))
            continue
        if not space:
            problems.append(Problem(begun + 1, "no-value", word))
            continue
        head, value = _head(word.upper(), value)
        while (whole := _unquoted(value.strip())) is None and at < len(lines):
            value += "\n" + lines[at]
            at += 1
        if whole is None:
            problems.append(Problem(begun + 1, "unclosed", word))
            continue
        if "#" in whole and "\n" not in whole and " #" in whole:
            problems.append(Problem(begun + 1, "comment-in-value", whole[whole.index(" #") + 1 :][:40]))
        yield begun + 1, word.upper(), f"{head} {whole}" if head is not None else whole


def _cut(line: str) -> tuple[str, str, str]:
    found = re.match(r"([^ \t]*)([ \t]?)(.*)", line, re.DOTALL)
    assert found is not None
    return found[1], found[2], found[3]


def _head(instruction: str, value: str) -> tuple[str | None, str]:
    """The name of a parameter or the role of a message, apart from the value that follows."""
    if instruction not in ("PARAMETER", "MESSAGE"):
        return None, value
    head, _, rest = _cut(value)
    return head, rest


def _unquoted(value: str) -> str | None:
    """A value without its quotation marks; None while the closing ones are missing."""
    for mark in ('"""', '"'):
        if value.startswith(mark):
            closed = len(value) >= 2 * len(mark) and value.endswith(mark)
            return value[len(mark) : -len(mark)] if closed else None
    return value


def _from(made: Modelfile, line: int, value: str) -> None:
    made.source = value
    if not value:
        made.problems.append(Problem(line, "no-from"))


def _parameter(made: Modelfile, line: int, value: str) -> None:
    name, _, text = value.partition(" ")
    if name in DEPRECATED:
        made.problems.append(Problem(line, "deprecated", name))
    elif not name or not text:
        made.problems.append(Problem(line, "no-parameter", name))
    elif name not in PARAMETERS:
        made.problems.append(Problem(line, "unknown-parameter", name[:40], INSTEAD.get(name.lower(), "")))
    elif name == "stop":
        stops = made.parameters.setdefault("stop", [])
        assert isinstance(stops, list)
        stops.append(text)
    else:
        try:
            made.parameters[name] = _BOOLEANS[text.lower()] if PARAMETERS[name] is bool else PARAMETERS[name](text)
        except (ValueError, KeyError):
            made.problems.append(Problem(line, "not-a-number", f"{name} {text}"[:40]))


def _message(made: Modelfile, line: int, value: str) -> None:
    role, _, text = value.partition(" ")
    if role not in ROLES:
        instead = role.lower() if role.lower() in ROLES else ""
        made.problems.append(Problem(line, "unknown-role", role[:40], instead))
    else:
        made.messages.append({"role": role, "content": text})


def _requires(made: Modelfile, line: int, value: str) -> None:
    if not _VERSION.match(value):
        made.problems.append(Problem(line, "not-a-version", value[:40]))


def _template(made: Modelfile, _: int, value: str) -> None:
    made.template = value


def _system(made: Modelfile, _: int, value: str) -> None:
    made.system = value


def _adapter(made: Modelfile, _: int, value: str) -> None:
    made.adapter = value


def _license(made: Modelfile, _: int, value: str) -> None:
    made.licenses.append(value)


def _nothing(_made: Modelfile, _line: int, _value: str) -> None:
    """RENDERER, PARSER and DRAFT are for models with code of their own in Ollama."""


_READERS = {
    "FROM": _from,
    "PARAMETER": _parameter,
    "MESSAGE": _message,
    "REQUIRES": _requires,
    "TEMPLATE": _template,
    "SYSTEM": _system,
    "ADAPTER": _adapter,
    "LICENSE": _license,
}
