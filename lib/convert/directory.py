"""A Hugging Face directory, looked at before anything is run: only data may be in it.

A pickle is a program, and so is a ``modeling_x.py`` that a configuration names.
They are refused by their names, never opened: whoever looks into one to see
whether it is harmless has already lost. Nothing here imports what reads models.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.errors import ModelDamaged, UnsafeModel, UnsupportedArchitecture

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npz", ".npy")
PROGRAMS = (".py", ".pyc", ".so", ".dll", ".dylib", ".sh", ".ps1", ".bat", ".exe")
REMOTE_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")
# Decoders whose tensors llama.cpp's converter and the exporters of this lab know.
ARCHITECTURES = (
    *("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM"),
    *("GemmaForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "PhiForCausalLM", "Phi3ForCausalLM"),
    *("GraniteForCausalLM", "OlmoForCausalLM", "Olmo2ForCausalLM", "StableLmForCausalLM", "GPT2LMHeadModel"),
)
_BYTES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2,
    "I8": 1, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
_MOST_HEADER_BYTES = 100 * 2**20  # the limit of the safetensors library
_MOST_JSON_BYTES = 64 * 2**20
_MOST_FILES = 1000


@dataclass(frozen=True)
class Directory:
    """A directory that was found to be data only. Sizes are of all its safetensors files."""

    path: Path
    architecture: str
    layers: int
    tensors: int
    parameters: int
    weights_bytes: int


def check_directory(path: Path) -> Directory:
    """Look at a directory; raises ModelDamaged, UnsafeModel, UnsupportedArchitecture.

    Every name in it is looked at before any content; content is read with bounds and as JSON only.
    """
    if not path.is_dir():
        raise ModelDamaged(path=str(path), why="there is no directory of that name")
    files = list(_files(path))
    for one in files:
        _refuse_by_name(path, one)
    for one in files:
        if one.suffix == ".json":
            _refuse_remote_code(one, _json(one))
    config = _json(path / "config.json")
    if not isinstance(config, dict):
        raise ModelDamaged(path=str(path / "config.json"), why="it is not a JSON object")
    architecture = _architecture(path, config)
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ModelDamaged(path=str(path), why="it has no tokenizer.json")
    tensors, parameters, weights_bytes = _weights(path)
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    if not isinstance(layers, int) or not 0 < layers < 10_000:
        raise ModelDamaged(path=str(path / "config.json"), why=f"num_hidden_layers is {layers!r}")
    return Directory(path, architecture, layers, tensors, parameters, weights_bytes)


def read_safetensors(path: Path) -> Mapping[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor in a safetensors file; raises ModelDamaged, whatever is wrong with it.

    Format: eight bytes of length, that much JSON, then the numbers, without gaps
    (https://huggingface.co/docs/safetensors).
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_MOST_HEADER_BYTES, size - 8):
            raise ModelDamaged(path=str(path), why=f"its header claims {length} bytes; the file has {size}")
        raw = file.read(length)
    header = _parsed(path, raw)
    if not isinstance(header, dict):
        raise ModelDamaged(path=str(path), why="its header is not a JSON object")
    ends: list[tuple[int, int]] = []
    found = {}
    for name, one in header.items():
        if name != "__metadata__":
            found[name] = _tensor(path, name, one, ends)
    _check_gaps(path, sorted(ends), size - 8 - length)
    return found


def _tensor(path: Path, name: str, one: Any, ends: list[tuple[int, int]]) -> tuple[str, tuple[int, ...]]:
    try:
        type_, shape, (begin, end) = one["dtype"], tuple(one["shape"]), one["data_offsets"]
        whole = all(type(value) is int and value >= 0 for value in (*shape, begin, end))
        count = 1
        for length in shape:
            count *= length
        if not whole or end - begin != count * _BYTES[type_]:
            raise ValueError
    except (KeyError, TypeError, ValueError) as error:
        raise ModelDamaged(path=str(path), why=f"its entry for {name[:60]} makes no sense") from error
    ends.append((begin, end))
    return type_, shape


def _check_gaps(path: Path, ends: list[tuple[int, int]], room: int) -> None:
    at = 0
    for begin, end in ends:
        if begin != at:
            raise ModelDamaged(path=str(path), why="its tensors overlap or leave gaps")
        at = end
    if at != room:
        raise ModelDamaged(path=str(path), why=f"its tensors need {at} bytes; the file has {room} for them")


def _files(path: Path) -> Iterator[Path]:
    """Every file below, links not followed; a link that leaves the directory is refused."""
    root = path.resolve()
    for seen, one in enumerate(path.rglob("*")):
        if seen == _MOST_FILES:
            raise ModelDamaged(path=str(path), why=f"it holds more than {_MOST_FILES} files")
        if one.is_symlink() and not one.resolve().is_relative_to(root):
            raise UnsafeModel(path=str(path), file=one.name, why=f"→ {one.readlink()}")
        if one.is_symlink() and one.is_dir():
            raise UnsafeModel(path=str(path), file=one.name, why=f"→ {one.readlink()}")
        if one.is_file():
            yield one


def _refuse_by_name(path: Path, one: Path) -> None:
    # What a link inside leads to stands among the files, too.
    name = one.name.lower()
    if name.endswith(PICKLES):
        raise UnsafeModel(path=str(path), file=one.name, why="pickle")
    if name.endswith(PROGRAMS):
        raise UnsafeModel(path=str(path), file=one.name, why=Path(name).suffix)


def _refuse_remote_code(path: Path, value: Any) -> None:
    """Refuse a configuration that names code, however deep; loops, because a hostile one may be nested deep."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            for name in REMOTE_CODE:
                if one.get(name):
                    raise UnsafeModel(path=str(path.parent), file=path.name, why=name)
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _architecture(path: Path, config: Mapping[str, Any]) -> str:
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    if first not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise UnsupportedArchitecture(architecture=str(first), tool="Bancada", known=known)
    return str(first)


def _weights(path: Path) -> tuple[int, int, int]:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelDamaged(path=str(path), why="it has no *.safetensors file")
    tensors, parameters = 0, 0
    for one in files:
        found = read_safetensors(one)
        tensors += len(found)
        for _, shape in found.values():
            count = 1
            for length in shape:
                count *= length
            parameters += count
    return tensors, parameters, sum(one.stat().st_size for one in files)


def _json(path: Path) -> Any:
    if not path.is_file():
        raise ModelDamaged(path=str(path.parent), why=f"it has no {path.name}")
    if path.stat().st_size > _MOST_JSON_BYTES:
        raise ModelDamaged(path=str(path), why=f"it is larger than {_MOST_JSON_BYTES >> 20} MiB")
    return _parsed(path, path.read_bytes())


def _parsed(path: Path, raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ModelDamaged(path=str(path), why=f"it is not JSON ({type(error).__name__})") from error
