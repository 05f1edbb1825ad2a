"""The exercise of lab 1 and its check."""

from __future__ import annotations

from typing import Annotated

from labs.choose.steps import LAB
from lib.course.lab import Verdict
from lib.course.parameters import Choice, Range
from lib.course.result import Result, note
from lib.models.catalog import find_model, load_catalog
from lib.models.fit import nominal, sizable_models
from lib.workbench import Workbench

__all__ = ["LAB", "largest_that_fits"]

CONTEXT_TOKENS = 8192
QUANTIZATION = "Q4_0"
BUDGETS_GIB = (1, 2, 4, 8)
TOLERANCE = 0.05


@LAB.check
def largest_that_fits(
    workbench: Workbench,
    budget_gib: Annotated[int, Choice(BUDGETS_GIB)] = 4,
    answer_model: Annotated[str, Choice(sizable_models)] = "smollm2-135m-instruct",
    weights_mib: Annotated[float, Range(0, 1e6, 1)] = 0.0,
    kv_cache_mib: Annotated[float, Range(0, 1e6, 1)] = 0.0,
) -> Verdict:
    """Find the largest model that runs at Q4_0 with an 8k context in the memory given, and show the sum."""
    found = nominal(find_model(answer_model), QUANTIZATION, CONTEXT_TOKENS)
    best = best_within(budget_gib)
    terms = {term.id: term.size_bytes for term in found.terms}
    notes, correct = [], True
    if found.total_bytes > budget_gib * 2**30:
        notes.append(note("exercise_too_large", answer_model=answer_model))
        correct = False
    elif find_model(answer_model).parameters < find_model(best).parameters:
        notes.append(note("exercise_larger_fits"))
        correct = False
    for given, term in ((weights_mib, "weights"), (kv_cache_mib, "kv_cache")):
        if abs(given * 2**20 / terms[term] - 1) > TOLERANCE:
            notes.append(note(f"exercise_wrong_{term}"))
            correct = False
    if correct:
        notes.append(note("exercise_right", answer_model=answer_model))
    facts = {"total_bytes": found.total_bytes} if correct else {}
    return Verdict(correct, Result(facts, notes=tuple(notes)))


def best_within(budget_gib: int) -> str:
    """The largest catalog model whose estimate is within the budget."""
    fitting = [
        model_id
        for model_id in sizable_models()
        if nominal(find_model(model_id), QUANTIZATION, CONTEXT_TOKENS).total_bytes <= budget_gib * 2**30
    ]
    return max(fitting, key=lambda model_id: load_catalog()[model_id].parameters)
