"""Our load generator and vLLM's own, ``bench serve``, on one engine: what needs no quiet machine to be compared.

How fast both say that it is, is for ``tests/bench/against_bench_serve.py``.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from lib.workbench import Workbench
from tests.bench.against_bench_serve import PROMPTS, bench_serve, embedded, ours
from tests.conftest import DEFAULT
from tests.server.test_engine_contract import built_home  # noqa: F401  a fixture

pytestmark = pytest.mark.skipif(os.name == "nt", reason="vLLM is not made for it")
CLIENTS, REQUESTS, TOKENS = 3, 7, 9


def test_both_count_the_same_requests_and_tokens(built_home: Path, tmp_path: Path) -> None:  # noqa: F811
    with ExitStack() as stack:
        workbench = Workbench.open(home=built_home, language="en", _env_file=None)
        stack.callback(workbench.store.close)
        stack.callback(workbench.close)
        target = embedded(stack, workbench, DEFAULT, 2)
        log = tmp_path / "bench_serve.log"
        theirs = stack.enter_context(bench_serve(workbench, target, DEFAULT, log))
        mine = ours(target, CLIENTS, REQUESTS, TOKENS)
        # On a machine that is very busy its client now and then loses a request; ours may not.
        tries = (theirs.round(CLIENTS, REQUESTS, TOKENS) for _ in range(12))
        other = next(one for one in tries if not one.failures)
    counted = [(one.requests, one.failures, one.prompt_tokens, one.tokens) for one in (mine, other)]
    assert counted[0] == counted[1], log.read_text()[-3000:]
    assert counted[0][:2] == (REQUESTS, 0) and counted[0][3] == REQUESTS * TOKENS
    # Every prompt was counted with the words that the chat's template puts around it.
    assert mine.prompt_tokens > sum(len(PROMPTS[at % len(PROMPTS)].split()) for at in range(REQUESTS))
