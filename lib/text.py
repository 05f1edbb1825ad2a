"""Words, numbers, units and dates in the learner's language.

A unit is part of a name (``size_bytes``, ``ttft_s``, ``speed_tokens_per_s``),
so one table of suffixes formats facts, columns and axes alike. A missing word
is an error, never a silent fallback: a test reads every key in both languages.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from string import Template

from babel.dates import format_datetime
from babel.numbers import format_decimal

from lib.errors import BancadaError, from_record

LANGUAGES: Mapping[str, str] = {"en": "English", "pt": "Português (Brasil)"}
LOCALES: Mapping[str, str] = {"en": "en_US", "pt": "pt_BR"}
SHARED = Path(__file__).parent.parent / "data" / "text"


class MissingWord(KeyError):
    """A key that no words file of the language has: a defect, not an input error."""


class Words:
    """The words of one language, looked up by dotted key: ``words("home.title")``."""

    def __init__(self, language: str, tables: Sequence[Mapping[str, object]]) -> None:
        self.language = language
        self.locale = LOCALES[language]
        self._tables = tables

    def __call__(self, key: str, /, **parameters: object) -> str:
        """The text under ``key``, its ``$name`` places filled; raises MissingWord."""
        for table in self._tables:
            found = _dig(table, key)
            if isinstance(found, str):
                filled = {name: self._plain(value) for name, value in parameters.items()}
                return str(Template(found).substitute(filled))
        raise MissingWord(f"{key} ({self.language})")

    def has(self, key: str) -> bool:
        """Whether ``key`` has a text."""
        return any(isinstance(_dig(table, key), str) for table in self._tables)

    def label(self, name: str) -> str:
        """The display name of a fact, column, parameter or choice."""
        return self(f"labels.{name}")

    def choice(self, value: str, of: str = "") -> str:
        """The display name of a choice ``of`` a parameter or fact; one without a name (a model, say) is its own."""
        if "." in value:
            return value
        keys = (f"choices.{of}.{value}", f"choices.{value}")
        return next((self(key) for key in keys if self.has(key)), value)

    def error(self, error: BancadaError) -> tuple[str, str, str]:
        """What happened, why, and what repairs it."""
        base = f"errors.{error.id}"
        parts = [self(f"{base}.{part}", **error.parameters) for part in ("what", "why", "repair")]
        return parts[0], parts[1], parts[2]

    def number(self, value: float, digits: int = 0) -> str:
        """A number with the language's own separators."""
        pattern = "#,##0." + "0" * digits if digits else "#,##0"
        return str(format_decimal(value, format=pattern, locale=self.locale))

    def separators(self) -> str:
        """The decimal and the thousands mark, in this order, as Plotly takes them."""
        number = self.number(1000.5, 1)
        return number[5] + number[1]

    def value(self, name: str, value: object) -> str:
        """A value as people read it, in the unit that its name ends with."""
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return "–"
        if isinstance(value, bool):
            return self("yes" if value else "no")
        if isinstance(value, int | float):
            return self._measure(name, float(value))
        if isinstance(value, datetime):
            return str(format_datetime(value, "medium", locale=self.locale))
        if isinstance(value, list | tuple):
            return ", ".join(self.choice(str(part), name) for part in value) or self("none")
        return self.choice(str(value), name)

    def size(self, size_bytes: float) -> str:
        """A size in the binary unit that leaves one to four digits."""
        for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
            if abs(size_bytes) >= 0.95 * 1024**power:
                scaled = size_bytes / 1024**power
                return f"{self.number(scaled, 0 if abs(scaled) >= 100 else 1)} {unit}"
        return f"{self.number(size_bytes)} B"

    def _measure(self, name: str, value: float) -> str:
        if name.endswith("_bytes_per_s"):
            return f"{self.number(value / 1e9, 1)} GB/s"
        if name.endswith("_bytes"):
            return self.size(value)
        if name.endswith("tokens_per_s"):
            return f"{self.number(value, 1 if abs(value) < 100 else 0)} {self('units.tokens_per_s')}"
        if name.endswith("_per_s"):
            return f"{self.number(value, 2 if abs(value) < 10 else 1)} /s"
        if name.endswith("_tokens"):
            return f"{self.number(value)} {self('units.tokens')}"
        if name.endswith("_percent"):
            return f"{self.number(value, 1)} %"
        if name.endswith("_s"):
            return f"{self.number(value * 1000)} ms" if abs(value) < 1 else f"{self.number(value, 2)} s"
        if name == "parameters":
            return self.parameters(value)
        if value == int(value):
            return self.number(value)
        if abs(value) >= 0.1:
            return self.number(value, 2)
        # Two figures of a small number, as far as nine places can show them.
        return self.number(value, min(9, max(4, 1 - math.floor(math.log10(abs(value))))))

    def parameters(self, count: float) -> str:
        """A parameter count as the field writes it: 135 M, 3.8 B (pt: 3,8 bi)."""
        if count >= 0.95e9:
            return f"{self.number(count / 1e9, 1)} {self('units.billion')}"
        return f"{self.number(count / 1e6)} {self('units.million')}"

    def _plain(self, value: object) -> str:
        if isinstance(value, Mapping) and value.keys() == {"id", "parameters"}:
            # An error that a note tells of: in the reader's language, whoever wrote it down.
            return " ".join(self.error(from_record(value)))
        if isinstance(value, list | tuple):
            return ", ".join(self.choice(str(one)) for one in value)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return str(value)
        return self.number(value, 0 if isinstance(value, int) else 1)


class LenientWords(Words):
    """Words for what an earlier version has written: a name that has no word any more stands for itself."""

    @staticmethod
    def over(words: Words) -> LenientWords:
        """The same words, lenient."""
        return LenientWords(words.language, words._tables)

    def __call__(self, key: str, /, **parameters: object) -> str:
        """The text under ``key``, or else the key's last part with the parameters."""
        try:
            return super().__call__(key, **parameters)
        except (KeyError, ValueError):  # ValueError: a text whose $places are no places
            given = ", ".join(f"{name}={value}" for name, value in parameters.items())
            return f"{key.rpartition('.')[2]}: {given}" if given else key.rpartition(".")[2]


@lru_cache(maxsize=64)
def load_words(language: str, folder: Path | None = None) -> Words:
    """The shared words of a language and, in front of them, those of a lab's folder."""
    tables = [_read(SHARED / f"{language}.toml")]
    if folder is not None:
        tables.insert(0, _read(folder / f"words.{language}.toml"))
    return Words(language, tables)


def _read(path: Path) -> Mapping[str, object]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _dig(table: Mapping[str, object], key: str) -> object:
    found: object = table
    for part in key.split("."):
        if not isinstance(found, Mapping):
            return None
        found = found.get(part)
    return found
