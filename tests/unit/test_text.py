"""Words, numbers and units."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lib import errors
from lib.text import LANGUAGES, MissingWord, load_words

ROOT = Path(__file__).parent.parent.parent
PAIRS = [
    ROOT / "data" / "text" / "{}.toml",
    *(folder / "words.{}.toml" for folder in sorted((ROOT / "labs").iterdir()) if (folder / "steps.py").exists()),
]


def leaves(table: dict[str, object], before: str = "") -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{before}{key}.")
        else:
            yield before + key, str(value)


def read(pattern: Path, language: str) -> dict[str, str]:
    return dict(leaves(tomllib.loads(Path(str(pattern).format(language)).read_text(encoding="utf-8"))))


@pytest.mark.parametrize("pattern", PAIRS, ids=lambda path: path.parent.name)
def test_both_languages_have_the_same_keys_and_the_same_places(pattern: Path) -> None:
    english, portuguese = read(pattern, "en"), read(pattern, "pt")
    assert set(english) == set(portuguese)
    for key, text in english.items():
        places = set(re.findall(r"\$(\w+)", text))
        assert places == set(re.findall(r"\$(\w+)", portuguese[key])), key
        assert text.strip() and portuguese[key].strip(), key


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_error_says_what_why_and_repair(language: str) -> None:
    said = load_words(language)

    def below(kind: type) -> Iterator[type]:
        for one in kind.__subclasses__():
            yield one
            yield from below(one)

    for kind in below(errors.BancadaError):
        if kind.__subclasses__():
            continue
        # "Parameters: toolchain, why (pip's last words), log." names three.
        listed = re.sub(r"\([^)]*\)", "", kind.__doc__ or "").partition("Parameters: ")[2]
        places = re.findall(r"\w+", listed)
        assert all(said.error(kind(**dict.fromkeys([*places, "filename"], "x")))), kind


def test_numbers_units_and_dates_follow_the_language() -> None:
    english, portuguese = load_words("en"), load_words("pt")
    assert english.value("peak_bytes", 225_000_000) == "215 MiB"
    assert english.value("memory_bytes", 8 * 2**30) == "8.0 GiB"
    assert portuguese.value("memory_bytes", 8 * 2**30) == "8,0 GiB"
    assert english.value("parameters", 3_821_079_552) == "3.8 B"
    assert english.value("context_tokens", 8192) == "8,192 tokens"
    assert portuguese.number(8192) == "8.192"
    assert english.value("ttft_s", 0.0834) == "83 ms"
    assert portuguese.value("ttft_s", 1.5) == "1,50 s"
    assert english.value("speed_tokens_per_s", 109.4) == "109 tokens/s"
    assert english.value("read_bytes_per_s", 32.6e9) == "32.6 GB/s"
    assert english.value("anything", None) == "–"
    assert english.value("anything", float("nan")) == "–"


def test_a_missing_word_is_an_error_and_never_its_own_key() -> None:
    with pytest.raises(MissingWord):
        load_words("en")("no.such.word")


def test_a_value_with_a_dollar_in_it_is_not_taken_for_a_place() -> None:
    assert "$HOME" in load_words("en")("errors.model-not-here.what", model="$HOME")


@pytest.mark.parametrize("pattern", PAIRS[1:], ids=lambda path: path.parent.name)
def test_what_the_library_is_at_is_said_in_every_lab(pattern: Path) -> None:
    """A lab's own progress words are for what its own code is at, or say in another way what all labs can say."""
    general = {name for name in read(PAIRS[0], "en") if name.startswith("progress.")}
    own = {name for name in read(pattern, "en") if name.startswith("progress.")} - general
    code = "".join(one.read_text(encoding="utf-8") for one in pattern.parent.glob("*.py"))
    assert not [name for name in own if f'"{name.removeprefix("progress.")}"' not in code]


def test_whatever_the_library_says_it_is_at_has_words() -> None:
    said = load_words("en")
    for source in (ROOT / "lib").rglob("*.py"):
        for call in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in ("Progress", "progress"):
                whats = [one.value for one in call.args[2:3] if isinstance(one, ast.Constant)]
                assert all(said.has(f"progress.{what}") for what in whats), (source, whats)
