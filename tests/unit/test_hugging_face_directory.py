"""What may stand in a Hugging Face directory: data, and nothing that runs."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.convert.directory import ARCHITECTURES, check_directory, read_safetensors
from lib.errors import ModelDamaged, UnsafeModel, UnsupportedArchitecture
from tests.server.tiny import CONFIG, safetensors, write_tiny_directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A whole directory of the smallest kind."""
    return write_tiny_directory(tmp_path / "model")


class Canary:
    """Unpickling one creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_whole_directory_is_described(directory: Path) -> None:
    found = check_directory(directory)
    assert (found.architecture, found.layers, found.tensors, found.parameters) == ("LlamaForCausalLM", 2, 1, 4)
    assert found.weights_bytes == (directory / "model.safetensors").stat().st_size


def test_an_index_and_several_files_are_counted_together(directory: Path) -> None:
    (directory / "model-2.safetensors").write_bytes(safetensors())
    assert check_directory(directory).parameters == 8


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.PTH", "a.pkl", "last.ckpt", "x.pickle", "w.npy"])
@pytest.mark.parametrize("below", [".", "deep/er"])
def test_a_pickle_is_refused_by_its_name_and_never_opened(
    directory: Path, tmp_path: Path, name: str, below: str
) -> None:
    canary = tmp_path / "canary"
    place = directory / below
    place.mkdir(parents=True, exist_ok=True)
    (place / name).write_bytes(pickle.dumps(Canary(canary)))
    assert pickle.loads(pickle.dumps(Canary(canary))) is None and canary.exists()  # the trap is armed
    canary.rmdir()
    with pytest.raises(UnsafeModel) as raised:
        check_directory(directory)
    assert raised.value.parameters["file"] == name and raised.value.parameters["why"] == "pickle"
    assert not canary.exists()


@pytest.mark.parametrize("name", ["modeling_x.py", "hook.PY", "kernel.so", "setup.sh"])
def test_a_program_is_refused(directory: Path, name: str) -> None:
    (directory / name).write_text("raise SystemExit")
    with pytest.raises(UnsafeModel) as raised:
        check_directory(directory)
    assert raised.value.parameters["file"] == name


@pytest.mark.parametrize("setting", ["auto_map", "trust_remote_code", "custom_pipelines"])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "deep/generation_config.json"])
@pytest.mark.parametrize("nested", [False, True])
def test_a_setting_that_names_code_is_refused_wherever_it_stands(
    directory: Path, setting: str, file: str, nested: bool
) -> None:
    value: object = {setting: {"AutoModel": "modeling_x.X"}}
    (directory / "deep").mkdir()
    (directory / file).write_text(json.dumps(CONFIG | {"text_config": [1, {"inner": value}]} if nested else value))
    with pytest.raises(UnsafeModel) as raised:
        check_directory(directory)
    assert raised.value.parameters["why"] == setting


def test_a_setting_that_is_off_names_no_code(directory: Path) -> None:
    (directory / "tokenizer_config.json").write_text(json.dumps({"auto_map": {}, "trust_remote_code": False}))
    assert check_directory(directory).layers == 2


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_a_link_that_leaves_the_directory_is_refused(directory: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.json"
    secret.write_text("{}")
    (directory / "generation_config.json").symlink_to(secret)
    with pytest.raises(UnsafeModel):
        check_directory(directory)


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_a_link_to_a_directory_is_refused_even_inside(directory: Path) -> None:
    (directory / "again").symlink_to(directory, target_is_directory=True)
    with pytest.raises(UnsafeModel):
        check_directory(directory)


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_a_harmless_name_may_not_hide_a_pickle(directory: Path) -> None:
    (directory / "data.bin").write_bytes(b"")
    (directory / "data.json").symlink_to(directory / "data.bin")
    (directory / "data.bin").rename(directory / "data.pkl")
    (directory / "data.json").unlink()
    (directory / "data.json").symlink_to(directory / "data.pkl")
    with pytest.raises(UnsafeModel):
        check_directory(directory)


@pytest.mark.parametrize("named", [["XForCausalLM"], [], None, "LlamaForCausalLM", [7], [["LlamaForCausalLM"]]])
def test_an_unknown_architecture_is_refused_with_the_known_ones(directory: Path, named: object) -> None:
    (directory / "config.json").write_text(json.dumps(CONFIG | {"architectures": named}))
    with pytest.raises(UnsupportedArchitecture) as raised:
        check_directory(directory)
    assert ARCHITECTURES[0] in str(raised.value.parameters["known"])


@pytest.mark.parametrize("gone", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_part_is_named(directory: Path, gone: str) -> None:
    (directory / gone).unlink()
    with pytest.raises(ModelDamaged) as raised:
        check_directory(directory)
    assert gone.split(".")[-1] in str(raised.value.parameters["why"])


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(ModelDamaged):
            check_directory(path)


@pytest.mark.parametrize("layers", [0, -1, "30", None, 10**9])
def test_a_layer_count_that_is_none_is_refused(directory: Path, layers: object) -> None:
    (directory / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    with pytest.raises(ModelDamaged):
        check_directory(directory)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_configuration_that_is_no_object_is_refused(directory: Path, content: bytes) -> None:
    (directory / "config.json").write_bytes(content)
    with pytest.raises(ModelDamaged):
        check_directory(directory)


def test_every_cut_of_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    whole = safetensors()
    path = tmp_path / "cut.safetensors"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(ModelDamaged):
            read_safetensors(path)


ONE = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    "content",
    [
        safetensors(length=2**63),
        safetensors(length=1),
        safetensors(b"nonsense"),
        safetensors([]),
        safetensors({"a": 7}),
        safetensors({"a": ONE | {"dtype": "F7"}}),
        safetensors({"a": ONE | {"dtype": ["F32"]}}),
        safetensors({"a": ONE | {"shape": [2, 3]}}),
        safetensors({"a": ONE | {"shape": [-2, -2]}}),
        safetensors({"a": ONE | {"shape": [2.0, 2.0]}}),
        safetensors({"a": ONE | {"data_offsets": [0, 17]}}),
        safetensors({"a": ONE | {"data_offsets": [16, 0]}}),
        safetensors({"a": ONE | {"data_offsets": [0]}}),
        safetensors({"a": ONE, "b": ONE}),
        safetensors({"a": ONE | {"data_offsets": [8, 24]}}, bytes(24)),
        safetensors(data=bytes(17)),
        safetensors(data=bytes(15)),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelDamaged):
        read_safetensors(path)


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 200), byte=st.integers(0, 255))
def test_any_changed_byte_ends_in_tensors_or_in_that_error(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    content = bytearray(safetensors())
    content[at % len(content)] = byte
    path = tmp_path_factory.mktemp("changed") / "x.safetensors"
    path.write_bytes(bytes(content))
    with suppress(ModelDamaged):
        assert len(read_safetensors(path)) <= 1
