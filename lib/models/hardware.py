"""What this machine is, as far as a process without privileges can see.

What could not be seen is said, with the reason, instead of being left out.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import psutil

Tier = Literal["low", "medium", "high"]

GIB = 2**30
# The instruction sets that decide how fast and in which layout llama.cpp computes.
_NOTABLE = ("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "amx_tile", "amx_int8")
_NOTABLE_ARM = ("asimd", "asimddp", "i8mm", "sve", "sve2", "sme")


@dataclass(frozen=True)
class Gpu:
    """A GPU with its memory; ``memory_bytes`` is None where the system shares its RAM."""

    name: str
    memory_bytes: int | None
    source: str


@dataclass(frozen=True)
class Unseen:
    """Something the probe could not see: a key of ``words.hardware.unseen`` and what fills it."""

    what: str
    why: str
    detail: str = ""


@dataclass(frozen=True)
class Machine:
    """One machine. Sizes in bytes; ``cores`` are those this process may use."""

    cpu: str
    architecture: str
    instruction_sets: tuple[str, ...]
    cores: int
    cores_of_machine: int
    memory_bytes: int
    memory_limit: Literal["ram", "cgroup"]
    disk_free_bytes: int
    disk_path: str
    system: str
    gpus: tuple[Gpu, ...]
    npus: tuple[str, ...]
    onnx_providers: tuple[str, ...]
    unseen: tuple[Unseen, ...]

    @property
    def tier(self) -> Tier:
        """low, medium or high, by the memory a model could use (a GPU's own, or half the RAM)."""
        budget = max([self.memory_bytes // 2, *(gpu.memory_bytes or 0 for gpu in self.gpus)])
        if budget < 4 * GIB:
            return "low"
        return "medium" if budget < 12 * GIB else "high"

    def summary(self) -> dict[str, object]:
        """What a run card keeps of the machine."""
        return {
            "cpu": self.cpu,
            "cores": self.cores,
            "memory_bytes": self.memory_bytes,
            "gpus": [gpu.name for gpu in self.gpus],
            "system": self.system,
        }


def probe(disk: Path) -> Machine:
    """Look at the machine; ``disk`` is the folder whose free space counts. About a second the first time."""
    unseen: list[Unseen] = []
    name, flags = _cpu(unseen)
    memory, limit = _memory()
    return Machine(
        cpu=name,
        architecture=platform.machine(),
        instruction_sets=tuple(flag for flag in (*_NOTABLE, *_NOTABLE_ARM) if flag in flags),
        cores=usable_cores(),
        cores_of_machine=psutil.cpu_count() or 1,
        memory_bytes=memory,
        memory_limit=limit,
        disk_free_bytes=shutil.disk_usage(_existing(disk)).free,
        disk_path=str(disk),
        system=f"{platform.system()} {platform.release()}",
        gpus=_gpus(unseen),
        npus=_npus(unseen),
        onnx_providers=_onnx_providers(unseen),
        unseen=tuple(unseen),
    )


def available_memory_bytes() -> int:
    """Memory that a new process could take now without swapping."""
    available = int(psutil.virtual_memory().available)
    limit = _cgroup_number("memory.max")
    used = _cgroup_number("memory.current")
    if limit is not None and used is not None:
        return max(0, min(available, limit - used))
    return available


def usable_cores() -> int:
    """Cores this process may use: affinity and cgroup quota both count."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = len(affinity(0)) if affinity else psutil.cpu_count() or 1
    quota = _cgroup_text("cpu.max")
    if quota and not quota.startswith("max"):
        share, period = quota.split()[:2]
        cores = min(cores, max(1, int(share) // int(period)))
    return cores


def _memory() -> tuple[int, Literal["ram", "cgroup"]]:
    total = int(psutil.virtual_memory().total)
    limit = _cgroup_number("memory.max")
    return (limit, "cgroup") if limit is not None and limit < total else (total, "ram")


def _cgroup_text(name: str) -> str | None:
    try:
        return (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return None


def _cgroup_number(name: str) -> int | None:
    text = _cgroup_text(name)
    return int(text) if text and text.isdigit() else None


def _existing(path: Path) -> Path:
    return next((one for one in (path, *path.parents) if one.exists()), Path.cwd())


@cache
def _cpuinfo() -> Mapping[str, object]:
    import cpuinfo

    found: Mapping[str, object] = cpuinfo.get_cpu_info()
    return found


def _cpu(unseen: list[Unseen]) -> tuple[str, frozenset[str]]:
    try:
        info = _cpuinfo()
    except Exception as error:  # cpuinfo raises plain Exception on architectures it does not know
        unseen.append(Unseen("cpu", "library", str(error)))
        return platform.processor() or platform.machine(), frozenset()
    flags = info.get("flags", [])
    assert isinstance(flags, list)
    if not flags:
        unseen.append(Unseen("instruction_sets", "not_reported"))
    # cpuinfo writes avx512_vnni as the kernel does, or without the underscore from CPUID.
    named = {"avx512vnni": "avx512_vnni"}
    return str(info.get("brand_raw") or platform.machine()), frozenset(
        named.get(str(flag), str(flag)) for flag in flags
    )


def _gpus(unseen: list[Unseen]) -> tuple[Gpu, ...]:
    found = _nvidia(unseen)
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        found.append(Gpu("Apple GPU", None, "Metal"))
    if not found and platform.system() == "Linux":
        found.extend(Gpu(f"{path.name} ({_vendor(path)})", None, "/sys/class/drm") for path in _drm_cards())
    if not found:
        unseen.append(Unseen("other_gpu", "no_interface"))
    return tuple(found)


def _nvidia(unseen: list[Unseen]) -> list[Gpu]:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        unseen.append(Unseen("nvidia", "no_driver", str(error)))
        return []
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            Gpu(str(pynvml.nvmlDeviceGetName(one)), int(pynvml.nvmlDeviceGetMemoryInfo(one).total), "NVML")
            for one in handles
        ]
    finally:
        pynvml.nvmlShutdown()


def _drm_cards() -> list[Path]:
    return sorted(path for path in Path("/sys/class/drm").glob("card[0-9]") if (path / "device/vendor").exists())


def _vendor(card: Path) -> str:
    known = {"0x1002": "AMD", "0x8086": "Intel", "0x10de": "NVIDIA"}
    vendor = (card / "device/vendor").read_text().strip()
    return known.get(vendor, vendor)


def _npus(unseen: list[Unseen]) -> tuple[str, ...]:
    found = tuple(sorted(path.name for path in Path("/dev/accel").glob("accel*")))
    if not found:
        unseen.append(Unseen("npu", "accel_only_linux" if platform.system() != "Linux" else "no_accel_device"))
    return found


def _onnx_providers(unseen: list[Unseen]) -> tuple[str, ...]:
    try:
        import onnxruntime
    except ImportError as error:
        unseen.append(Unseen("onnx_providers", "library", str(error)))
        return ()
    return tuple(onnxruntime.get_available_providers())
