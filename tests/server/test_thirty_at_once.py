"""A class of thirty asks one engine at the same moment: each gets an answer, and it is their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lib.bench.parallel import at_once
from lib.engines import chat
from lib.engines.embedded import EmbeddedEngine, EmbeddedOptions
from lib.models.store import ModelStore
from tests.conftest import DEFAULT
from tests.contract import CONTEXT, Case, ask, drain
from tests.server.test_engine_contract import (
    MAKERS,
    built_home,  # noqa: F401  a fixture
    owned,
)
from tests.server.test_quantize import finished

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")

CLIENTS = 30
TOKENS = 10
WORDS = (
    "apple",
    "bridge",
    "candle",
    "dolphin",
    "eagle",
    "forest",
    "guitar",
    "hammer",
    "island",
    "jacket",
    "kitchen",
    "lemon",
    "mirror",
    "needle",
    "orange",
    "pencil",
    "queen",
    "rabbit",
    "silver",
    "tiger",
    "umbrella",
    "violin",
    "window",
    "yellow",
    "zebra",
    "castle",
    "desert",
    "engine",
    "flower",
    "garden",
)


def make_four_slots(stack: ExitStack, home: Path) -> Case:
    options = EmbeddedOptions(CONTEXT, 4)
    return owned(stack, EmbeddedEngine(ModelStore(home / "models"), home / "logs", options), DEFAULT)


ENGINES = {"embedded": make_four_slots, "endpoint": MAKERS["endpoint"], "onnx": MAKERS["onnx"]}


@pytest.fixture(params=ENGINES)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """An engine that is ready."""
    with ExitStack() as stack:
        made = ENGINES[request.param](stack, request.getfixturevalue("built_home"))
        drain(made)
        yield made


@pytest.fixture(scope="module")
def known() -> dict[str, list[str]]:
    """What each model says to each prompt when it is asked alone."""
    return {}


def test_thirty_who_ask_at_once_are_all_answered_each_their_own(
    case: Case, known: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last of them waits for all the others.
    monkeypatch.setattr(chat, "FIRST_TOKEN_S", 600.0)
    assert len(set(WORDS)) == CLIENTS
    prompts = [f"Write one sentence about the word {word}." for word in WORDS]
    if case.model not in known:
        known[case.model] = [ask(case, prompt, max_tokens=TOKENS).text for prompt in prompts]
    alone = known[case.model]
    together = finished(at_once(case.engine, case.model, prompts, CLIENTS, TOKENS))
    assert [row.client for row in together] == list(range(1, CLIENTS + 1))
    assert [row.prompt for row in together] == prompts
    assert all(row.text and 0 < row.completion_tokens <= TOKENS for row in together)
    # Rounding may differ when prompts are computed together, but no answer is another question's.
    # One that does not name its word proves nothing: a question of somebody else may be answered so as well.
    telling = {text for text, word in zip(alone, WORDS, strict=True) if word in text.lower()}
    for row, own in zip(together, alone, strict=True):
        assert row.text not in telling - {own}, row.prompt
    # Of the answers that name what they were asked about, nearly all must still do so.
    named = [row for row, own, word in zip(together, alone, WORDS, strict=True) if word in own.lower()]
    assert len(named) > CLIENTS / 2, alone
    kept = [row for row in named if WORDS[row.client - 1] in row.text.lower()]
    assert len(kept) >= 0.8 * len(named)
    assert ask(case, "Say hello.", max_tokens=4).text
