"""Which toolchains there are, and what each one is made of."""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DATA = Path(__file__).parent.parent.parent / "data" / "toolchains"


@dataclass(frozen=True)
class Toolchain:
    """One stack. Importing all of ``probe`` proves it; ``where`` is a marker of the systems it has packages for."""

    name: str
    requirements: Path
    need_bytes: int
    """Free disk that building it takes, pip's downloads included, as measured on Linux x86-64 without CUDA."""
    probe: tuple[str, ...]
    where: str = ""
    whole: bool = False
    """The list is all there is to install: what a package asks for beside it is left out."""

    def supported(self) -> bool:
        """Whether this system is one that its packages are made for."""
        return not self.where or Marker(self.where).evaluate()

    def pins(self) -> dict[str, Requirement]:
        """The requirement lines that apply to this system, by canonical name."""
        lines = (line.split("#")[0].strip() for line in self.requirements.read_text(encoding="utf-8").splitlines())
        pins = [Requirement(line) for line in lines if line]
        return {canonicalize_name(one.name): one for one in pins if one.marker is None or one.marker.evaluate()}

    def fingerprint(self) -> str:
        """Twelve digits that change with the requirements, the Python and the system."""
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        text = "\n".join([self.requirements.read_text(encoding="utf-8"), python, sysconfig.get_platform()])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def satisfied(self) -> bool:
        """Whether this very interpreter has every requirement in the version asked for."""
        return all(
            found is not None and one.specifier.contains(found, True)
            for one, found in ((one, _version(name, _own_path())) for name, one in self.pins().items())
        )


def installed_here(names: Mapping[str, Requirement]) -> dict[str, str]:
    """The versions that this interpreter has of the named packages."""
    found = {name: _version(name, _own_path()) for name in names}
    return {name: one for name, one in found.items() if one is not None}


def installed_in(environment: Path) -> dict[str, str]:
    """Name and version of everything that is installed in an environment."""
    found = distributions(path=[str(packages_of(environment))])
    return {canonicalize_name(one.metadata["Name"]): one.version for one in found if one.read_text("METADATA")}


def python_of(environment: Path) -> Path:
    """The interpreter of an environment, the one door to it: its console scripts hold the path it was built at."""
    return environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def packages_of(environment: Path) -> Path:
    """The folder that its packages are installed in."""
    places = {"base": str(environment), "platbase": str(environment)}
    return Path(sysconfig.get_path("purelib", "venv", vars=places))


def _version(name: str, path: list[str]) -> str | None:
    """The version that an import would find; None where there is none, or its METADATA is gone."""
    for one in distributions(name=name, path=path):
        return one.version if one.read_text("METADATA") else None
    return None


def _own_path() -> list[str]:
    """Where this interpreter finds packages by itself: without what PYTHONPATH adds, which a child does not get."""
    added = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return [one for one in sys.path if one and one not in added]


_WITH_TORCH = 'sys_platform != "darwin" or platform_machine == "arm64"'

TOOLCHAINS: Mapping[str, Toolchain] = {
    one.name: one
    for one in (
        Toolchain(
            "optimum",
            DATA / "optimum.txt",
            need_bytes=1536 << 20,
            probe=("torch", "transformers", "optimum.onnxruntime", "onnx", "gguf", "accelerate", "sentencepiece"),
            where=_WITH_TORCH,
        ),
        Toolchain(
            "transformers5",
            DATA / "transformers5.txt",
            need_bytes=1792 << 20,
            probe=("torch", "transformers", "onnxruntime_genai", "olive", "onnx", "onnx_ir", "gguf", "accelerate"),
            where=_WITH_TORCH,
        ),
        Toolchain("openvino", DATA / "openvino.txt", need_bytes=400 << 20, probe=("openvino", "openvino_genai")),
        Toolchain(
            "mlx",
            DATA / "mlx.txt",
            need_bytes=448 << 20,
            probe=("mlx.core", "mlx_lm", "gguf"),
            where='sys_platform == "linux" or (sys_platform == "darwin" and platform_machine == "arm64")',
        ),
        Toolchain(
            "vllm",
            DATA / "vllm.txt",
            need_bytes=4608 << 20,
            probe=("torch", "transformers", "vllm.entrypoints.openai.api_server"),
            where='sys_platform == "linux" and platform_machine == "x86_64"',
            whole=True,
        ),
    )
}
