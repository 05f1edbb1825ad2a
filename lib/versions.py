"""The versions that a run card keeps."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

BANCADA = "0.1.0"
_PACKAGES = ("xllamacpp", "cyllama", "openai", "streamlit", "pandas", "plotly", "huggingface-hub", "onnxruntime")


@cache
def versions() -> dict[str, str]:
    """Bancada, Python, the system and the packages that shape a measurement."""
    found = {"bancada": BANCADA, "python": platform.python_version(), "system": platform.platform(terse=True)}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
