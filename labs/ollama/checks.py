"""The exercise of lab 4, computed from the default model's own header."""

from __future__ import annotations

from typing import Annotated

from labs.ollama.measured import CACHE_BITS
from labs.ollama.steps import LAB
from lib.course.lab import Verdict
from lib.course.parameters import Choice
from lib.course.result import Result, note
from lib.gguf.header import read_header
from lib.models.memory import shape_of
from lib.workbench import Workbench

__all__ = ["LAB", "largest_context"]

CONTEXTS = (512, 1024, 2048, 4096, 8192)


@LAB.check
def largest_context(
    workbench: Workbench,
    budget_mib: Annotated[int, Choice((96, 128, 192, 256, 512))] = 128,
    requests: Annotated[int, Choice((1, 2, 4, 8))] = 4,
    cache_type: Annotated[str, Choice(("f16", "q8_0", "q4_0"))] = "f16",
    answer_tokens: Annotated[int, Choice(CONTEXTS)] = 512,
) -> Verdict:
    """Find the largest context for each request whose KV cache fits into a budget."""
    shape = shape_of(read_header(workbench.models.path(workbench.settings.default_model)))
    numbers = sum(heads * (shape.key_length + shape.value_length) for heads in shape.kv_heads)
    per_token = numbers * CACHE_BITS[cache_type] / 8

    def mib(tokens: int) -> float:
        return per_token * tokens * requests / 2**20

    right = max((one for one in CONTEXTS if mib(one) <= budget_mib), default=0)
    said = {"per_token": round(per_token), "mib": mib(answer_tokens), "budget": budget_mib, "answer": answer_tokens}
    if mib(answer_tokens) > budget_mib:
        return _verdict(False, "exercise_too_large", **said)
    if answer_tokens < right:
        return _verdict(False, "exercise_larger_fits", **said, larger=mib(CONTEXTS[CONTEXTS.index(answer_tokens) + 1]))
    return _verdict(True, "exercise_right_all" if answer_tokens == CONTEXTS[-1] else "exercise_right", **said)


def _verdict(correct: bool, key: str, **parameters: object) -> Verdict:
    return Verdict(correct, Result(notes=(note(key, **parameters),)))
