"""Lab 3, convert: the same model in other forms. Is it still the same, and what does each form cost?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pandas as pd

from labs.convert import charts, rows
from lib.convert import builders, forms, gguf, onnx
from lib.convert.collected import collect
from lib.convert.measured import attempt, measure
from lib.convert.reference import ensure_reference
from lib.course.lab import Lab
from lib.course.parameters import Choice, ModelName, Text
from lib.course.result import Facts, Progress, Result, outcome, part_of
from lib.gguf.made import ensure_format
from lib.workbench import Workbench

LAB = Lab.beside(__file__, part=2, number=3, minutes=40)
MODEL = "smollm2-135m-instruct"


@LAB.step(chart=charts.positions, predict="agreeing", long=True)
def to_hf(workbench: Workbench, model: Annotated[str, ModelName()] = MODEL) -> Iterator[Progress | Result]:
    """Dequantize the GGUF into a Hugging Face directory; compare torch's logits with llama.cpp's."""
    reference = yield from part_of(outcome(ensure_reference(workbench, model)), 0, 3)
    f16 = yield from part_of(outcome(ensure_format(workbench, model, "F16")), 1, 3)
    place = forms.place_of_file("gguf-f16", f16)
    found = yield from part_of(outcome(forms.compare(workbench, reference, place)), 2, 3)
    hf = reference.hf
    facts: Facts = {
        "agreeing": found.agreeing,
        "top1_agreement_percent": found.top1_agreement_percent,
        "max_abs_difference": found.max_abs_difference,
        "kld": found.kld,
        "size_bytes": hf.size_bytes,
        "source_bytes": reference.source.stat().st_size,
        "parameters": hf.answer["parameters"],
        "convert_s": hf.seconds,
    }
    yield Result(facts, found.positions, rows.hf_notes(hf))


@LAB.step(chart=charts.tensors, predict="identical", long=True)
def to_gguf(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    directory: Annotated[str, Text(1000)] = "",
) -> Iterator[Progress | Result]:
    """Convert the directory back to GGUF, and compare it tensor by tensor with the F16 of the original."""
    own = directory.strip()
    work = gguf.own_directory(workbench, Path(own).expanduser()) if own else gguf.round_trip(workbench, model)
    made = yield from work
    far = made.table["max_weight_difference"].max() if made.compared else None
    facts: Facts = {
        "identical": int(made.table["identical"].sum()) if made.compared else None,
        "tensors": int(made.table["tensors"].sum()),
        "max_weight_difference": None if far is None else float(far),
        "tokenizer_identical": not made.metadata if made.compared else None,
        "size_bytes": made.size_bytes,
        "convert_s": made.seconds,
    }
    yield Result(facts, made.table, rows.gguf_notes(made))


@LAB.step(chart=charts.operators, predict="max_abs_difference", long=True)
def to_onnx(workbench: Workbench, model: Annotated[str, ModelName()] = MODEL) -> Iterator[Progress | Result]:
    """Export the directory to ONNX with Optimum, look into the graph, and compare it with torch."""
    reference = yield from part_of(outcome(ensure_reference(workbench, model)), 0, 3)
    made = yield from part_of(outcome(onnx.ensure_onnx(workbench, reference)), 1, 3)
    graph = yield from onnx.graph_summary(workbench, made)
    found = yield from part_of(outcome(forms.agree(workbench, reference, forms.place_of_directory(made))), 2, 3)
    facts: Facts = {
        "max_abs_difference": found.max_abs_difference,
        "top1_agreement_percent": found.top1_agreement_percent,
        "nodes": graph["nodes"],
        "opset": graph["opset"],
        "size_bytes": made.size_bytes,
        "safetensors_bytes": (reference.hf.path / "model.safetensors").stat().st_size,
        "convert_s": made.seconds,
    }
    table = pd.DataFrame(graph["operators"][:10], columns=["operator", "nodes"])
    yield Result(facts, table, rows.onnx_notes(made, graph))


@LAB.step(chart=charts.levels_and_profile, predict="top1_agreement_percent", long=True)
def onnx_runtime(workbench: Workbench, model: Annotated[str, ModelName()] = MODEL) -> Iterator[Progress | Result]:
    """Quantize the graph to dynamic INT8 and read both answers; time optimization levels; profile the graph."""
    reference = yield from part_of(outcome(ensure_reference(workbench, model)), 0, 8)
    fp32 = yield from part_of(outcome(onnx.ensure_onnx(workbench, reference)), 1, 8)
    int8 = yield from part_of(outcome(onnx.ensure_int8(workbench, reference, fp32)), 2, 8)
    places = [forms.place_of_directory(one) for one in (fp32, int8)]
    found = yield from part_of(outcome(forms.agree(workbench, reference, places[1])), 3, 8)
    said = []
    for done, place in enumerate(places, 4):
        said.append((yield from part_of(outcome(forms.ask(workbench, reference, place)), done, 8)))
    timed = yield from part_of(outcome(onnx.levels(workbench, reference, fp32)), 6, 8)
    spent = yield from part_of(outcome(onnx.profile(workbench, reference, fp32)), 7, 8)
    facts: Facts = {
        "top1_agreement_percent": found.top1_agreement_percent,
        "max_abs_difference": found.max_abs_difference,
        "int8_bytes": int8.size_bytes,
        "fp32_bytes": fp32.size_bytes,
        "int8_tokens_per_s": said[1].tokens_per_s,
        "fp32_tokens_per_s": said[0].tokens_per_s,
        "providers": tuple(spent["providers"]),
        "onnxruntime": spent["version"],
    }
    notes = (*rows.reused(int8), *rows.answers(places, said))
    yield Result(facts, rows.levels_table(timed["rows"], spent["rows"]), notes)


@LAB.step(chart=charts.sizes_and_peaks, predict="peak_bytes", long=True)
def genai(
    workbench: Workbench,
    model: Annotated[str, ModelName()] = MODEL,
    precisions: Annotated[tuple[str, ...], Choice(builders.PRECISIONS)] = ("int4", "fp32"),
    context_tokens: Annotated[int, Choice(builders.CONTEXTS)] = 2048,
) -> Iterator[Progress | Result]:
    """Build the model for ONNX Runtime GenAI in each precision, and chat with it."""
    reference = yield from part_of(outcome(ensure_reference(workbench, model)), 0, len(precisions) + 1)
    measured = []
    for done, precision in enumerate(precisions, 1):
        building = builders.ensure_genai(workbench, reference, precision, context_tokens)
        work = measure(workbench, reference, building)
        measured.append((yield from part_of(outcome(work), done, len(precisions) + 1)))
    table = rows.measured_table(measured)
    first = table.iloc[0]
    facts: Facts = {
        "peak_bytes": int(first["peak_bytes"]),
        "size_bytes": int(first["size_bytes"]),
        "cache_bytes": rows.cache_bytes(reference, context_tokens),
        "ttft_s": float(first["ttft_s"]),
        "decode_tokens_per_s": rows.number(first["tokens_per_s"]),
        "top1_agreement_percent": float(first["top1_agreement_percent"]),
        "context_tokens": context_tokens,
    }
    yield Result(facts, table, (*rows.measured_notes(measured), *rows.close_call(reference)))


@LAB.step(chart=charts.agreements, long=True)
def stacks(workbench: Workbench, model: Annotated[str, ModelName()] = MODEL) -> Iterator[Progress | Result]:
    """Try Olive, OpenVINO and MLX on the same model; one that fails says why and stops nobody."""
    reference = yield from part_of(outcome(ensure_reference(workbench, model)), 0, 5)
    tried = {
        "olive-int8": builders.ensure_olive(workbench, reference),
        "openvino-f16": builders.ensure_openvino(workbench, reference, "F16"),
        "openvino-q8_0": builders.ensure_openvino(workbench, reference, "Q8_0"),
        "mlx-4bit": builders.ensure_mlx(workbench, reference),
    }
    measured = []
    for done, (form, building) in enumerate(tried.items(), 1):
        work = attempt(workbench, reference, form, building)
        measured.append((yield from part_of(outcome(work), done, 5)))
    facts: Facts = {
        "working": sum(one.works for one in measured),
        "failed": sum(not one.works for one in measured),
        **{f"{one.form.id}_percent": one.agreement.top1_agreement_percent for one in measured if one.agreement},
    }
    yield Result(facts, rows.measured_table(measured), rows.stack_notes(reference, measured))


@LAB.step(chart=charts.speed_and_memory, long=True)
def table(workbench: Workbench, model: Annotated[str, ModelName()] = MODEL) -> Iterator[Progress | Result]:
    """Put every form that is here to the same prompts, and all figures into one table."""
    reference = yield from part_of(outcome(ensure_reference(workbench, model)), 0, 20)
    found, left_out = collect(workbench, reference)
    measured = []
    for done, (form, building) in enumerate(found.items(), 1):
        work = attempt(workbench, reference, form, building)
        measured.append((yield from part_of(outcome(work), done, len(found) + 1)))
    rows_ = rows.measured_table(measured)
    facts: Facts = {
        "forms": int(rows_["top1_agreement_percent"].notna().sum()),
        "smallest_form": rows.least(rows_, "size_bytes"),
        "smallest_peak_form": rows.least(rows_, "peak_bytes"),
        "fastest_form": rows.most(rows_, "tokens_per_s"),
    }
    yield Result(facts, rows_, rows.table_notes(reference, measured, left_out))
