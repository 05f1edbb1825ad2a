"""The checks of the house: format, lint, types, import contracts. The same here and in CI."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

CHECKS = {
    "format": ["-m", "ruff", "format", "--check", "."],
    "lint": ["-m", "ruff", "check", "."],
    "types": ["-m", "mypy"],
    "imports": ["-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_house_is_in_order(check: str) -> None:
    done = subprocess.run([sys.executable, *CHECKS[check]], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_importing_a_module_does_nothing(tmp_path: Path) -> None:
    """No network, no file, no thread: every module of ours, in a process that forbids them."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for folder in ("lib", "labs")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "__init__.py" and not {"migrations", "children"} & set(path.parts)
    ]
    script = f"""
import builtins, importlib, socket, sys, threading
import pandas, plotly.graph_objects, streamlit, openai, sqlalchemy, huggingface_hub, numpy, psutil, alembic
def refuse(*args, **kwargs): raise AssertionError("a module reached for the network")
socket.socket.connect = refuse
real = builtins.open
def read_only(file, mode="r", *args, **kwargs):
    assert not set(mode) & set("wax+"), f"a module wrote {{file}}"
    return real(file, mode, *args, **kwargs)
builtins.open = read_only
before = threading.active_count()
for name in {modules!r}:
    importlib.import_module(name)
assert threading.active_count() == before, threading.enumerate()
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_app_and_its_labs_load_without_torch() -> None:
    script = """
import sys
for name in ("torch", "optimum", "transformers", "onnx"):
    sys.modules[name] = None
import lib.cli, lib.ui.home, lib.ui.lab
assert lib.cli.labs()
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
