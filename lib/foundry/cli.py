"""Foundry Local on this machine, looked at from outside: its command line, and the systems its wheel is made for."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

ASK_S = 10.0
# Before it the commands had other names, and a service ran beside.
CURRENT = Version("0.10")
_WHEELS = {
    ("Linux", "x86_64"),
    ("Linux", "aarch64"),
    ("Windows", "AMD64"),
    ("Windows", "ARM64"),
    ("Darwin", "arm64"),
}


@dataclass(frozen=True)
class Cli:
    """The command ``foundry`` as it is found here; ``current`` is unknown where it tells no version."""

    path: str
    version: str
    current: bool | None


def find_cli() -> Cli | None:
    """The command line on the learner's path, if there is one."""
    path = shutil.which("foundry")
    if path is None:
        return None
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=ASK_S)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return Cli(path, "", None)
    found = re.search(r"\d+(\.\d+)+", done.stdout)
    if found is None:
        return Cli(path, "", None)
    try:
        return Cli(path, found[0], Version(found[0]) >= CURRENT)
    except InvalidVersion:
        return Cli(path, found[0], None)


def system() -> str:
    """The system and its processor."""
    return f"{platform.system()} {platform.machine()}"


def has_wheel() -> bool:
    """Whether a wheel of the SDK is made for a system like this one."""
    return (platform.system(), platform.machine()) in _WHEELS
