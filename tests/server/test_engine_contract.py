"""The contract of engines, kept by every one of them: real ones, and the fake of Ollama's server."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lib.convert.builders import ensure_genai
from lib.convert.reference import ensure_reference
from lib.engines.child import ChildEngine
from lib.engines.embedded import EmbeddedEngine, EmbeddedOptions
from lib.engines.endpoint import EndpointEngine
from lib.engines.foundry import FoundryEngine
from lib.engines.ollama import OllamaEngine
from lib.engines.onnx import OnnxEngine
from lib.engines.vllm import TOOLCHAIN, VllmEngine
from lib.models.store import ModelStore
from lib.toolchains import Toolchains
from lib.workbench import Workbench
from tests.conftest import DEFAULT
from tests.contract import *  # noqa: F403  the tests
from tests.contract import CONTEXT, Case, drain
from tests.fakes.ollama_fake import OllamaFake
from tests.server.test_quantize import finished

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")
GENAI = f"{DEFAULT}.genai-int4"


Maker = Callable[[ExitStack, Path], Case]


@pytest.fixture(scope="session")
def built_home(lab_home: Path) -> Path:
    """A home with a model for ONNX Runtime GenAI and for vLLM, and vLLM itself."""
    workbench = Workbench.open(home=lab_home, _env_file=None)
    finished(workbench.toolchains.ensure(TOOLCHAIN))
    finished(ensure_genai(workbench, finished(ensure_reference(workbench, DEFAULT)), "int4", CONTEXT))
    workbench.store.close()
    return lab_home


def owned(stack: ExitStack, engine: ChildEngine, model: str) -> Case:
    stack.callback(engine.release)

    def process() -> int:
        pid = engine.status().pid
        assert pid is not None
        return pid

    return Case(engine, model, process)


def make_embedded(stack: ExitStack, home: Path) -> Case:
    options = EmbeddedOptions(CONTEXT, 2)
    return owned(stack, EmbeddedEngine(ModelStore(home / "models"), home / "logs", options), DEFAULT)


def make_onnx(stack: ExitStack, home: Path) -> Case:
    return owned(stack, OnnxEngine(home, home / "logs", 2), GENAI)


def make_foundry(stack: ExitStack, home: Path) -> Case:
    return owned(stack, FoundryEngine(home, home / "logs"), f"{GENAI}:1")


def make_vllm(stack: ExitStack, home: Path) -> Case:
    toolchains = Toolchains(home / "toolchains", home / "logs")
    return owned(stack, VllmEngine(home, home / "logs", toolchains), f"{DEFAULT}.hf")


def make_endpoint(stack: ExitStack, home: Path) -> Case:
    behind = make_embedded(stack, home)
    assert isinstance(behind.engine, EmbeddedEngine)
    list(behind.engine.ensure(DEFAULT))
    key = behind.engine.headers()["Authorization"].removeprefix("Bearer ")
    engine = EndpointEngine(str(behind.engine.status().address), key)
    return Case(engine, DEFAULT, behind.process, comes_back=False)


def make_ollama(stack: ExitStack, home: Path) -> Case:
    models = ModelStore(home / "models")
    fake = stack.enter_context(OllamaFake(home / f"ollama-{uuid.uuid4().hex}", models.path(DEFAULT), CONTEXT))
    return Case(
        OllamaEngine(fake.address), "smollm2:135m", lambda: fake.pid, comes_back=False, embedder="all-minilm:latest"
    )


MAKERS: dict[str, Maker] = {
    "embedded": make_embedded,
    "endpoint": make_endpoint,
    "ollama": make_ollama,
    "onnx": make_onnx,
    "foundry": make_foundry,
    "vllm": make_vllm,
}


@pytest.fixture(scope="module", params=MAKERS)
def made(request: pytest.FixtureRequest, built_home: Path) -> Iterator[Case]:
    """An engine that is ready; for tests that leave it so."""
    with ExitStack() as stack:
        case = MAKERS[request.param](stack, built_home)
        drain(case)
        yield case


@pytest.fixture(params=MAKERS)
def fresh(request: pytest.FixtureRequest, built_home: Path) -> Iterator[Case]:
    """An engine that a test may harm."""
    with ExitStack() as stack:
        yield MAKERS[request.param](stack, built_home)
