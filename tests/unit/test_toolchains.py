"""The toolchains' requirement files and words."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lib.errors import ToolchainFailed
from lib.text import LANGUAGES, load_words
from lib.toolchains.registry import TOOLCHAINS, Toolchain

ROOT = Path(__file__).parent.parent.parent
KINDS = pytest.mark.parametrize("toolchain", TOOLCHAINS.values(), ids=list(TOOLCHAINS))


def lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]


@KINDS
def test_every_requirement_is_pinned_and_names_no_place(toolchain: Toolchain) -> None:
    found = [Requirement(line) for line in lines(toolchain.requirements)]
    assert found
    for one in found:
        assert [spec.operator for spec in one.specifier] == ["=="], one
        assert one.url is None and "*" not in str(one.specifier) and "+" not in str(one.specifier), one
    head = toolchain.requirements.read_text(encoding="utf-8").splitlines()[0]
    assert head.startswith("# ") and head.endswith(".")


@KINDS
def test_a_requirement_applies_once_on_every_system(toolchain: Toolchain) -> None:
    found = [Requirement(line) for line in lines(toolchain.requirements)]
    for system in ("linux", "darwin", "win32"):
        names = [
            canonicalize_name(one.name)
            for one in found
            if one.marker is None or one.marker.evaluate({"sys_platform": system})
        ]
        assert len(names) == len(set(names))


@KINDS
def test_both_languages_say_what_it_is_for(toolchain: Toolchain) -> None:
    for language in LANGUAGES:
        assert load_words(language)(f"toolchains.{toolchain.name}")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_failed_build_has_words(language: str) -> None:
    said = load_words(language).error(ToolchainFailed(toolchain="mlx", why="No matching distribution", log="x.log"))
    assert "No matching distribution" in said[1] and "x.log" in said[2]


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_progress_and_state_has_words(language: str) -> None:
    said = load_words(language)
    whats = ["toolchain_start", "toolchain_venv", "toolchain_download", "toolchain_install", "toolchain_prove"]
    assert all(said(f"progress.{one}") for one in [*whats, "shared_toolchain"])
    assert all(said(f"cli.toolchain_{one}") for one in ("ready", "not_built", "damaged", "unsupported"))


def test_optimum_is_pinned_as_the_workbench_so_that_one_environment_can_serve_both() -> None:
    tested = dict(line.split("==") for line in lines(ROOT / "constraints.txt"))
    top = dict(line.split("==") for line in lines(ROOT / "requirements.txt") if "==" in line)
    for line in lines(TOOLCHAINS["optimum"].requirements):
        name, wanted = line.split(";")[0].strip().split("==")
        assert wanted == (tested | top).get(name, wanted), name


def test_a_changed_line_changes_the_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "tiny.txt"
    prints = set()
    for text in ("six==1.17.0\n", "six==1.16.0\n"):
        path.write_text(text)
        prints.add(Toolchain("tiny", path, 0, ()).fingerprint())
    assert len(prints) == 2 and all(len(one) == 12 for one in prints)
