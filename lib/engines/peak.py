"""Memory of processes, as the system counts it: the most that one has held, and what a tree of them holds now."""

from __future__ import annotations

import platform
import re
from contextlib import suppress
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


def tree_memory(pid: int) -> Peak:
    """What a process and all below it hold now, each page counted once; 0 where the process is gone.

    Linux tells each process's share of the pages that several map (``PSS``); elsewhere what each has
    for itself alone (``USS``), which leaves out what they share.
    """
    total, counter = 0, "PSS" if platform.system() == "Linux" else "USS"
    with suppress(psutil.Error):
        root = psutil.Process(pid)
        for one in (root, *root.children(recursive=True)):
            with suppress(psutil.Error):
                memory = one.memory_full_info()
                total += int(memory.pss if counter == "PSS" else memory.uss)
    return Peak(total, counter)
