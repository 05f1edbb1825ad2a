"""Names of Ollama's library: taken apart as Ollama takes them, refused where it would refuse, forecast by their size."""

from __future__ import annotations

import random

import pytest

from lib.engines.ollama import full_name
from lib.errors import BadParameter
from lib.gguf.formats import FORMATS
from lib.models.catalog import load_catalog
from lib.ollama.names import forecast_bytes, known_model, meant, parameters_in, take_apart

DEFAULTS = {"registry": "registry.ollama.ai", "namespace": "library", "tag": "latest", "size": "", "quantization": ""}
PARTS = {
    "smollm2:135m": {"model": "smollm2", "tag": "135m", "size": "135m", "variant": ""},
    "smollm2": {"model": "smollm2", "variant": "latest"},
    " llama3.2:3b-instruct-q8_0\n": {
        "model": "llama3.2",
        "tag": "3b-instruct-q8_0",
        "size": "3b",
        "variant": "instruct",
        "quantization": "q8_0",
    },
    "mixtral:8x7b-instruct-v0.1-q4_K_M": {
        "model": "mixtral",
        "tag": "8x7b-instruct-v0.1-q4_K_M",
        "size": "8x7b",
        "variant": "instruct-v0.1",
        "quantization": "q4_K_M",
    },
    "qwen2.5:0.5b-fp16": {"model": "qwen2.5", "tag": "0.5b-fp16", "size": "0.5b", "quantization": "fp16"},
    "me/tutor": {"namespace": "me", "model": "tutor"},
    "hf.co/bartowski/SmolLM2-135M-Instruct-GGUF:Q4_K_M": {
        "registry": "hf.co",
        "namespace": "bartowski",
        "model": "SmolLM2-135M-Instruct-GGUF",
        "tag": "Q4_K_M",
        "quantization": "Q4_K_M",
    },
    "hf.co/a/b:IQ3_XXS": {"registry": "hf.co", "namespace": "a", "model": "b", "quantization": "IQ3_XXS"},
    "localhost:5000/me/mine:1b": {"registry": "localhost:5000", "namespace": "me", "model": "mine", "size": "1b"},
    "registry.ollama.ai/library/smollm2:135m": {"model": "smollm2", "size": "135m"},
    "https://ollama.com/library/smollm2:135m": {"model": "smollm2", "size": "135m"},
    "http://ollama.com/me/tutor": {"namespace": "me", "model": "tutor"},
}
BAD = (
    "",
    " ",
    ":",
    "x:",
    ":x",
    "/",
    "//",
    "x/",
    "a/b/c/d:e",
    "a//b",
    "x:1b:2",
    "x y",
    "modèle:1b",
    "模型",
    "🙂:1b",
    "-x",
    ".x",
    "..",
    "a/../b",
    "x:../y",
    "x\x00y",
    "a\nb",
    "x?y=1",
    "x@sha256:0",
    "a" * 81,
    "a" * 400,
    "x:" + "1" * 81,
    "http://",
    "https://ollama.com/",
    "$(id)",
)


@pytest.mark.parametrize("name", PARTS)
def test_a_name_is_taken_apart(name: str) -> None:
    found = vars(take_apart(name))
    wanted = PARTS[name]
    assert {key: found[key] for key in wanted} == wanted
    for key, value in DEFAULTS.items():
        assert key in wanted or key == "tag" or found[key] == value, key


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(BadParameter):
        take_apart(name)


@pytest.mark.parametrize("name", ["a\n/b:c", "b\n:c"], ids=ascii)
def test_a_line_end_inside_a_name_is_refused(name: str) -> None:
    with pytest.raises(BadParameter):
        take_apart(name)


def test_a_name_that_begins_with_a_slash_is_refused() -> None:
    with pytest.raises(BadParameter):
        take_apart("/x")


def test_whatever_is_typed_is_a_name_or_refused_and_a_names_short_form_means_the_same() -> None:
    pick = random.Random(5)
    letters = "aZ09._-:/ é🙂%\t"
    names = 0
    for _ in range(20_000):
        text = "".join(pick.choice(letters) for _ in range(pick.randrange(12)))
        try:
            found = take_apart(text)
        except BadParameter:
            continue
        names += 1
        assert take_apart(found.short) == found
        assert full_name(found.short) == found.short
        assert all((found.registry, found.namespace, found.model, found.tag))
    assert names > 200


@pytest.mark.parametrize(
    ("size", "parameters"),
    [("135m", 135e6), ("3b", 3e9), ("0.5B", 5e8), ("8x7b", 56e9), ("1.5b", 1.5e9), ("", 0), ("mini", 0), ("7", 0)],
)
def test_a_size_promises_parameters(size: str, parameters: float) -> None:
    assert parameters_in(size) == parameters


def test_a_file_is_forecast_by_the_bits_of_its_format() -> None:
    assert forecast_bytes(0, "Q8_0") == 0
    assert forecast_bytes(134_515_008, "F16") == 134_515_008 * 2
    assert forecast_bytes(32_000, "Q8_0") == 34_000
    assert forecast_bytes(32_000, "Q4_0") == 18_000
    assert all(forecast_bytes(10**9, one) > 10**8 for one in FORMATS)


def test_every_library_name_of_the_catalog_is_known_whatever_its_quantization() -> None:
    known = [one for one in load_catalog().values() if one.ollama]
    assert len(known) > 10
    for model in known:
        name = take_apart(str(model.ollama))
        found = known_model(name)
        assert found is not None and found.ollama == model.ollama
        assert meant(name) == ""
    wanted = known_model(take_apart("smollm2:135m"))
    assert wanted is not None and wanted.id == "smollm2-135m-instruct"
    for tag in ("135m-instruct-q4_0", "135m-instruct-fp16", "135m-q8_0"):
        assert known_model(take_apart(f"smollm2:{tag}")) == wanted
    assert known_model(take_apart("smollm2:7b")) is None
    assert known_model(take_apart("hf.co/library/smollm2:135m")) is None
    assert known_model(take_apart("me/smollm2:135m")) is None


def test_a_colon_for_a_hyphen_is_understood() -> None:
    assert meant(take_apart("phi4:mini")) == "phi4-mini"
    assert meant(take_apart("phi3:mini")) == "", "that one is a name of the library"
    assert meant(take_apart("smollm2:nonsense")) == ""
