"""The most memory a process has held, as the system counts it."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class Peak:
    """Peak resident memory in bytes, and the counter it comes from."""

    size_bytes: int
    counter: str


def peak_memory(pid: int) -> Peak:
    """The peak of a living process, mapped file pages included.

    Linux keeps it as ``VmHWM`` and Windows as ``PeakWorkingSetSize``. macOS
    shows no peak of another process: there it is what is resident now, which
    after a full context differs little.
    """
    system = platform.system()
    if system == "Linux":
        status = Path(f"/proc/{pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
        assert found is not None, "the kernel reports no VmHWM"
        return Peak(int(found[1]) * 1024, "VmHWM")
    memory = psutil.Process(pid).memory_info()
    if system == "Windows":
        return Peak(int(memory.peak_wset), "PeakWorkingSetSize")
    return Peak(int(memory.rss), "RSS")
