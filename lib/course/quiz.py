"""A quiz: questions with one right option and an explanation for every option."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

LETTERS = "abcdef"


@dataclass(frozen=True)
class Option:
    """One option, and what to learn from having chosen it."""

    letter: str
    text: str
    why: str


@dataclass(frozen=True)
class Question:
    """A question; ``answer`` is the letter of the right option."""

    id: str
    ask: str
    options: tuple[Option, ...]
    answer: str

    def option(self, letter: str) -> Option | None:
        """The option under a letter, or None."""
        return next((one for one in self.options if one.letter == letter), None)


def read_quiz(path: Path, language: str) -> tuple[Question, ...]:
    """The questions of a quiz file in one language."""
    raw = tomllib.loads(path.read_text(encoding="utf-8"))
    return tuple(_question(one, language) for one in raw["question"])


def _question(raw: dict[str, object], language: str) -> Question:
    texts = raw[language]
    assert isinstance(texts, dict)
    options = tuple(
        Option(letter, text, why) for letter, text, why in zip(LETTERS, texts["options"], texts["why"], strict=False)
    )
    return Question(str(raw["id"]), texts["ask"], options, str(raw["answer"]))
