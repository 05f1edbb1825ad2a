"""Lab 3 with the default model: real toolchains, real conversions, real kills."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import psutil
import pytest

from labs.convert.checks import LAB
from lib.convert import builders, gguf
from lib.convert.forms import FORMS, agree
from lib.convert.kept import MANIFEST, Recipe, convert, made_before, place_of
from lib.convert.measured import attempt
from lib.convert.reference import PROMPTS, ensure_hf, ensure_reference
from lib.course.draw import to_text
from lib.course.result import Progress, Result
from lib.course.run import Run, execute, latest_run
from lib.errors import (
    BancadaError,
    ChildFailed,
    DiskFull,
    ModelDamaged,
    UnsafeModel,
    UnsupportedArchitecture,
)
from lib.gguf.header import read_header
from lib.workbench import Workbench
from tests.conftest import DEFAULT, STOCKED
from tests.lab_runs import ran_and_watched
from tests.server.helpers import end, is_alive, start_python, wait_until
from tests.server.test_quantize import Events, finished
from tests.server.tiny import write_tiny
from tests.unit.test_hugging_face_directory import Canary

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")
MIB = 1 << 20
GONE_S = 60.0


def opened(home: Path) -> Workbench:
    return Workbench.open(home=home, language="en", _env_file=None)


def closed(workbench: Workbench) -> None:
    workbench.close()
    workbench.store.close()


@pytest.fixture
def shared(lab_home: Path) -> Iterator[Workbench]:
    """A workbench in which everything that was made once stays."""
    made = opened(lab_home)
    yield made
    closed(made)


@pytest.fixture
def fresh(tmp_path: Path, stock: Path, default_model: Path) -> Iterator[Workbench]:
    """A workbench with toolchains and quantized files, and nothing converted."""
    home = tmp_path / "fresh"
    (home / "models").mkdir(parents=True)
    (home / "models" / DEFAULT).symlink_to(default_model.parent, target_is_directory=True)
    for name in STOCKED:
        if name != "converted":
            (home / name).symlink_to(stock / name, target_is_directory=True)
    made = opened(home)
    yield made
    closed(made)


@pytest.fixture
def begun(fresh: Workbench, shared: Workbench) -> Workbench:
    """A workbench with the directory and the yardstick of others, and no other form."""
    finished(ensure_reference(shared, DEFAULT))
    for kind in ("hf", "reference"):
        target = place_of(fresh, DEFAULT, kind)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(place_of(shared, DEFAULT, kind), target_is_directory=True)
    return fresh


def ran(workbench: Workbench, step: str, **given: object) -> Run:
    """A step's run, drawn as a terminal and a page draw it, in both languages."""
    run, moved = ran_and_watched(LAB, workbench, step, **given)
    for language in ("en", "pt"):
        said = LAB.words(language)
        assert to_text(run, said) and run.figure(said) is not None
        assert all(said(f"progress.{one.what}") for one in moved)
    shares = {one.share for one in moved}
    assert len(shares) > 3 or "reused" in [one.key for one in run.result.notes], "the bar stood still"
    again = Result.from_json(run.result.to_json())
    assert dict(again.facts) == dict(run.result.facts)
    return run


def parts(workbench: Workbench) -> list[str]:
    """Half-made directories."""
    return [one.name for one in (workbench.settings.home / "converted").rglob("*.part-*")]


def test_the_directory_predicts_as_llama_cpp_does(shared: Workbench) -> None:
    run = ran(shared, "to_hf")
    facts = run.result.facts
    assert facts["agreeing"] >= 254 and facts["top1_agreement_percent"] >= 99  # type: ignore[operator]
    # llama.cpp rounds keys and values to 16 bits; a wrong tensor would be off by whole units.
    assert 0 < facts["max_abs_difference"] < 0.5 and 0 <= facts["kld"] < 1e-3  # type: ignore[operator]
    assert run.result.table is not None and len(run.result.table) == 256
    assert facts["parameters"] == sum(one.weights for one in read_header(shared.models.path(DEFAULT)).tensors)


def test_the_copy_of_the_gguf_is_not_left_as_a_tokenizer(shared: Workbench) -> None:
    hf = finished(ensure_hf(shared, DEFAULT))
    assert not (hf.path / "tokenizer.model").exists()
    assert hf.answer["tokenizer_model_bytes"] == shared.models.path(DEFAULT).stat().st_size
    for one in hf.path.iterdir():
        assert one.read_bytes()[:4] != b"GGUF", one.name


def test_the_tokenizer_reads_as_llama_cpp_does(shared: Workbench) -> None:
    from tokenizers import Tokenizer

    from lib.gguf.logits import tokens_of

    text = "In 1987 the keeper's 12 clocks cost £3,450.20…\n\n\tdef f(x):  return x**2  # ünïcödé 日本\r\nI'll go!"
    hf = finished(ensure_hf(shared, DEFAULT))
    ours = Tokenizer.from_file(str(hf.path / "tokenizer.json")).encode(text, add_special_tokens=False)
    assert ours.ids == list(finished(tokens_of(shared, shared.models.path(DEFAULT), text)))
    config = json.loads((hf.path / "tokenizer_config.json").read_text())
    assert (config["eos_token"], config["bos_token"]) == ("<|im_end|>", "<|im_start|>")


def test_the_way_there_and_back_changes_no_bit(shared: Workbench) -> None:
    run = ran(shared, "to_gguf")
    facts = run.result.facts
    assert facts["identical"] == facts["tensors"] == len(read_header(shared.models.path(DEFAULT)).tensors)
    assert facts["max_weight_difference"] == 0 and facts["tokenizer_identical"] is True


def test_a_directory_of_ones_own_is_converted_and_loads(shared: Workbench, tmp_path: Path) -> None:
    hf = finished(ensure_hf(shared, DEFAULT))
    own = tmp_path / "my model"
    own.mkdir()
    for one in hf.path.iterdir():
        if one.name != MANIFEST:
            os.link(one, own / one.name) if one.stat().st_dev == tmp_path.stat().st_dev else shutil.copy(one, own)
    run = ran(shared, "to_gguf", directory=str(own))
    assert run.result.facts["tensors"] == 272 and run.result.facts["identical"] is None
    made = finished(gguf.own_directory(shared, own))
    assert made.reused and not made.compared
    assert len(read_header(made.path).tensors) == 272


def test_the_graph_is_the_same_model(shared: Workbench) -> None:
    run = ran(shared, "to_onnx")
    facts = run.result.facts
    assert facts["top1_agreement_percent"] == 100 and 0 < facts["max_abs_difference"] < 0.01  # type: ignore[operator]
    assert facts["nodes"] > 1000 and facts["opset"] >= 13  # type: ignore[operator]
    # The matrix that is used twice is written once.
    assert facts["size_bytes"] < 1.05 * facts["safetensors_bytes"]  # type: ignore[operator]
    assert run.result.table is not None and len(run.result.table) == 10


def test_dynamic_int8_is_smaller_and_another_model(shared: Workbench) -> None:
    run = ran(shared, "onnx_runtime")
    facts = run.result.facts
    assert 4.5 > facts["fp32_bytes"] / facts["int8_bytes"] > 3.5  # type: ignore[operator]
    assert facts["top1_agreement_percent"] < 90  # type: ignore[operator]
    assert "CPUExecutionProvider" in facts["providers"]  # type: ignore[operator]
    table = run.result.table
    assert table is not None
    assert list(table.loc[table["kind"] == "level", "name"]) == ["disabled", "basic", "extended", "all"]
    spent = table[table["kind"] == "operator"]
    assert spent.iloc[0]["name"] == "MatMul" and len(spent) == 10
    said = [one.parameters["answer"] for one in run.result.notes if one.key == "answer"]
    assert len(said) == 2 * len(PROMPTS) and "Paris" in str(said[0])


def test_genai_builds_both_precisions_with_the_context_asked_for(shared: Workbench) -> None:
    run = ran(shared, "genai")
    table = run.result.table
    assert table is not None
    rows = table.set_index("form")
    assert rows.loc["genai-fp32", "top1_agreement_percent"] == 100
    assert rows.loc["genai-int4", "top1_agreement_percent"] < 95
    assert rows.loc["genai-int4", "size_bytes"] < 0.25 * rows.loc["genai-fp32", "size_bytes"]
    # 2 x 30 layers x 3 heads x 64 x 4 bytes x 2,048 tokens.
    assert run.result.facts["cache_bytes"] == 90 * MIB
    for form in rows.index:
        config = json.loads((place_of(shared, DEFAULT, form) / "genai_config.json").read_text())
        assert config["model"]["context_length"] == config["search"]["max_length"] == 2048
    # The cache is set aside whole: less than the file, the cache and a process of its own would be a wrong figure.
    assert rows.loc["genai-int4", "peak_bytes"] > rows.loc["genai-int4", "size_bytes"] + 90 * MIB


def test_a_longer_context_costs_its_cache(begun: Workbench) -> None:
    def usual_peak(context_tokens: int) -> int:
        """Of three: an allocator may set more aside than is needed, and the kernel take pages of the file away."""
        given: dict[str, object] = {"precisions": ("int4",), "context_tokens": context_tokens}
        return median(int(str(ran(begun, "genai", **given).result.facts["peak_bytes"])) for _ in range(3))

    more = usual_peak(4096) - usual_peak(512)
    cache = 46_080 * (4096 - 512)
    assert 0.8 * cache < more < 1.3 * cache


def test_every_stack_works_or_says_why(shared: Workbench) -> None:
    run = ran(shared, "stacks")
    table = run.result.table
    assert table is not None
    rows = table.set_index("form")
    failed = [one.parameters["form"] for one in run.result.notes if one.key == "failed"]
    assert list(rows.index) == ["olive-int8", "openvino-f16", "openvino-q8_0", "mlx-4bit"]
    assert failed == [], run.result.notes
    # Eight bits with a scale every 32 weights keep what one scale a matrix loses.
    assert rows.loc["olive-int8", "top1_agreement_percent"] > 90
    assert rows.loc["openvino-f16", "top1_agreement_percent"] > 95
    assert rows.loc["mlx-4bit", "top1_agreement_percent"] > 40


def test_one_table_holds_every_form_that_is_here(shared: Workbench) -> None:
    for step, kind in (("onnx_runtime", "onnx-int8"), ("genai", "genai-fp32"), ("stacks", "olive-int8")):
        if not made_before(shared, DEFAULT, kind):
            ran(shared, step)
    run = ran(shared, "table")
    table = run.result.table
    assert table is not None
    rows = table.set_index("form")
    here = set(FORMS) - {"genai-int8"}
    assert here <= set(rows.index)
    for column in ("size_bytes", "load_s", "ttft_s", "tokens_per_s", "peak_bytes"):
        assert (rows.loc[sorted(here), column] > 0).all(), column
    assert rows.loc["hf", "top1_agreement_percent"] == rows.loc["onnx", "top1_agreement_percent"] == 100
    # The same weights, but activations in eight bits: not quite the yardstick.
    assert 90 <= rows.loc["source", "top1_agreement_percent"] <= 100
    assert rows.loc["gguf-f16", "answer"] == rows.loc["hf", "answer"] == rows.loc["onnx", "answer"]
    assert rows.loc["source", "peak_bytes"] < rows.loc["gguf-f16", "peak_bytes"] < rows.loc["hf", "peak_bytes"]


def test_the_exercise_is_checked_against_the_newest_table(shared: Workbench) -> None:
    assert LAB.exercise is not None
    run = latest_run(LAB.steps["table"], shared, shared.learner) or ran(shared, "table")
    assert run.result.table is not None
    rows = run.result.table.set_index("form").drop(index="source")
    enough = rows[rows["top1_agreement_percent"] >= 90]
    right = enough["peak_bytes"].idxmin()
    worst = enough["peak_bytes"].idxmax()
    assert LAB.exercise(shared, share_percent=90, answer_form=right).correct
    wrong = LAB.exercise(shared, share_percent=90, answer_form=worst)
    assert not wrong.correct and wrong.result.notes[0].key == "exercise_smaller_exists"
    low = LAB.exercise(shared, share_percent=98, answer_form="onnx-int8")
    assert not low.correct and low.result.notes[0].key == "exercise_too_low"


def test_the_exercise_without_a_table_names_the_step(fresh: Workbench) -> None:
    assert LAB.exercise is not None
    verdict = LAB.exercise(fresh, share_percent=90, answer_form="hf")
    assert not verdict.correct and verdict.result.notes[0].key == "exercise_no_card"


def test_a_second_run_uses_what_is_here_and_says_so(shared: Workbench) -> None:
    first = finished(ensure_reference(shared, DEFAULT))
    stamp = (first.hf.path / "model.safetensors").stat().st_mtime_ns
    run = ran(shared, "to_hf")
    assert (first.hf.path / "model.safetensors").stat().st_mtime_ns == stamp
    assert "reused" in [one.key for one in run.result.notes]


def test_a_form_is_made_anew_when_something_else_goes_into_it(fresh: Workbench) -> None:
    made: list[int] = []

    def recipe(value: int) -> Recipe:
        def make(out: Path) -> Events[dict[str, object]]:
            yield Progress(0, 1, "write_weights")
            made.append(value)
            (out / "x").write_text(str(value))
            return {}

        return Recipe("thing", "here", "wire", {"value": value}, 1, make, lambda out: None)

    source = fresh.models.path(DEFAULT)
    for value in (1, 1, 2, 2, 1):
        found = finished(convert(fresh, DEFAULT, source, recipe(value)))
        assert (found.path / "x").read_text() == str(value)
    assert made == [1, 2, 1]


def test_two_that_ask_at_once_make_one(fresh: Workbench) -> None:
    made: list[int] = []
    begun = threading.Event()

    def make(out: Path) -> Events[dict[str, object]]:
        begun.set()
        made.append(1)
        for step in range(20):
            yield Progress(step, 20, "write_weights")
            threading.Event().wait(0.02)
        (out / "x").write_text("whole")
        return {}

    recipe = Recipe("thing", "here", "wire", {}, 1, make, lambda out: None)
    source = fresh.models.path(DEFAULT)
    threads = [threading.Thread(target=lambda: finished(convert(fresh, DEFAULT, source, recipe))) for _ in range(5)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert begun.is_set() and made == [1]


def test_a_cancelled_conversion_leaves_nothing(fresh: Workbench) -> None:
    events = ensure_hf(fresh, DEFAULT)
    for event in events:
        if event.what == "dequantize":
            break
    assert parts(fresh)
    events.close()
    assert parts(fresh) == [] and not place_of(fresh, DEFAULT, "hf").exists()
    wait_until("the child is gone", lambda: not below("hugging_face.py", os.getpid()), GONE_S)


def test_what_fails_its_check_gets_no_name(fresh: Workbench) -> None:
    def make(out: Path) -> Events[dict[str, object]]:
        yield Progress(0, 1, "write_weights")
        return {}

    def refuse(out: Path) -> None:
        raise ModelDamaged(path=str(out), why="half")

    with pytest.raises(ModelDamaged):
        finished(
            convert(fresh, DEFAULT, fresh.models.path(DEFAULT), Recipe("thing", "here", "wire", {}, 1, make, refuse))
        )
    assert parts(fresh) == [] and not place_of(fresh, DEFAULT, "thing").exists()


def test_a_full_disk_is_told_before_and_in_the_middle(fresh: Workbench) -> None:
    begun: list[Path] = []

    def make(out: Path) -> Events[dict[str, object]]:
        begun.append(out)
        yield Progress(0, 1, "write_weights")
        raise ChildFailed(toolchain="x", why="OSError: [Errno 28] No space left on device", log="x")

    source = fresh.models.path(DEFAULT)
    for need, runs in ((1 << 60, 0), (1, 1)):
        with pytest.raises(DiskFull):
            finished(convert(fresh, DEFAULT, source, Recipe("thing", "here", "wire", {}, need, make, lambda out: None)))
        assert len(begun) == runs
    assert parts(fresh) == []


def below(script: str, pid: int) -> list[int]:
    """Living processes below another one that run a child's script."""
    found = []
    with suppress(psutil.Error):
        for one in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                if any(part.endswith(script) for part in one.cmdline()) and is_alive(one.pid):
                    found.append(one.pid)
    return found


def _gone(pid: int) -> bool:
    return not is_alive(pid)


@pytest.mark.parametrize("step", ["to_hf", "genai"])
def test_a_kill_in_the_middle_leaves_nothing_and_the_next_run_succeeds(
    request: pytest.FixtureRequest, step: str
) -> None:
    workbench: Workbench = request.getfixturevalue("fresh" if step == "to_hf" else "begun")
    kind, script = ("hf", "hugging_face.py") if step == "to_hf" else ("genai-int4", "genai.py")
    target = place_of(workbench, DEFAULT, kind)
    given = ["--precisions", "int4"] if step == "genai" else []
    process = start_python(
        "-m", "lib.cli", "run", f"convert.{step}", *given,
        environment={"BANCADA_HOME": str(workbench.settings.home)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until("something is being written", lambda: any(target.parent.glob(f"{kind}.part-*")), 300)
        children = wait_until("its child runs", lambda: below(script, process.pid))
        process.send_signal(signal.SIGKILL)
        process.wait()
        for pid in children:
            wait_until("the child is gone", partial(_gone, pid), GONE_S)
    finally:
        end(process)
    assert parts(workbench) and not target.exists()
    if step == "to_hf":
        finished(ensure_hf(workbench, DEFAULT))
    else:
        reference = finished(ensure_reference(workbench, DEFAULT))
        finished(builders.ensure_genai(workbench, reference, "int4", 2048))
    assert (target / MANIFEST).is_file() and parts(workbench) == []


@pytest.mark.parametrize("content", [b"", b"GGUF", b"not a model at all" * 100], ids=["empty", "magic", "text"])
def test_what_is_no_model_is_refused_before_anything_runs(fresh: Workbench, content: bytes) -> None:
    own = fresh.settings.models_dir / "own"
    own.mkdir()
    (own / "broken.gguf").write_bytes(content)
    with pytest.raises(ModelDamaged):
        finished(execute(LAB.steps["to_hf"], fresh, {"model": "broken"}))
    assert not (fresh.settings.home / "converted").exists()


def test_an_architecture_that_transformers_does_not_know_is_refused_by_name(fresh: Workbench) -> None:
    own = fresh.settings.models_dir / "own"
    own.mkdir()
    write_tiny(own / "odd.gguf", architecture="rwkv6")
    with pytest.raises(UnsupportedArchitecture) as raised:
        finished(execute(LAB.steps["to_hf"], fresh, {"model": "odd"}))
    assert raised.value.parameters["architecture"] == "rwkv6" and "llama" in str(raised.value.parameters["known"])
    assert parts(fresh) == []


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A directory that is whole, apart from what a test adds."""
    made = tmp_path / "hostile"
    made.mkdir()
    (made / "config.json").write_text(
        json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1})
    )
    (made / "tokenizer.json").write_text("{}")
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (made / "model.safetensors").write_bytes(np.uint64(len(header)).tobytes() + header + bytes(4))
    return made


def _pickle(folder: Path, canary: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Canary(canary)))


def _remote_code(folder: Path, canary: Path) -> None:
    (folder / "modeling_x.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    _named_code(folder, canary)


def _named_code(folder: Path, canary: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling_x.X"}}))


@pytest.mark.parametrize("arm", [_pickle, _remote_code, _named_code])
def test_a_program_in_a_directory_never_runs(fresh: Workbench, hostile: Path, tmp_path: Path, arm: object) -> None:
    canary = tmp_path / "canary"
    arm(hostile, canary)  # type: ignore[operator]
    with pytest.raises(UnsafeModel):
        finished(execute(LAB.steps["to_gguf"], fresh, {"directory": str(hostile)}))
    assert not canary.exists() and not (fresh.settings.home / "converted").exists()


def test_a_truncated_safetensors_file_is_refused(fresh: Workbench, hostile: Path) -> None:
    file = hostile / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ModelDamaged):
        finished(execute(LAB.steps["to_gguf"], fresh, {"directory": str(hostile)}))


def test_a_whole_directory_that_is_no_model_is_the_converters_error(fresh: Workbench, hostile: Path) -> None:
    with pytest.raises(BancadaError):
        finished(execute(LAB.steps["to_gguf"], fresh, {"directory": str(hostile)}))
    assert parts(fresh) == []


def test_a_stack_that_fails_is_a_row_with_its_reason(shared: Workbench) -> None:
    def building() -> Events[object]:
        yield Progress(0, 1, "load_model")
        raise ChildFailed(toolchain="mlx", why="ImportError: no such library\nmore", log="x")

    reference = finished(ensure_reference(shared, DEFAULT))
    found = finished(attempt(shared, reference, "mlx-4bit", building()))  # type: ignore[arg-type]
    assert not found.works and found.why == "ImportError: no such library" and found.took_s >= 0


def test_parity_is_measured_once_for_the_same_files(shared: Workbench) -> None:
    reference = finished(ensure_reference(shared, DEFAULT))
    place = finished(builders.ensure_openvino(shared, reference, "F16"))
    first = finished(agree(shared, reference, place))
    events = agree(shared, reference, place)
    assert [one.what for one in _rest(events)] == [] and finished(agree(shared, reference, place)) == first


def _rest(events: Events[object]) -> list[Progress]:  # type: ignore[type-arg]
    return list(events)


@pytest.mark.parametrize(
    "template",
    ["{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "{{ 1 / 0 }}", "{% if %}"],
    ids=["bomb", "error", "nonsense"],
)
def test_a_hostile_chat_template_is_stopped(shared: Workbench, tmp_path: Path, template: str) -> None:
    hf = finished(ensure_hf(shared, DEFAULT))
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
        shutil.copy(hf.path / name, tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    request = {"op": "reference", "folder": str(tmp_path), "text": "x", "prompts": PROMPTS, "most": 4, "out": "none"}
    # As in an app that a script began in the background.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(ModelDamaged) as raised:
            finished(shared.toolchains.call("optimum", "hugging_face", request))
    finally:
        signal.signal(signal.SIGINT, before)
    assert "template" in str(raised.value.parameters["why"])


def test_the_converter_tells_how_far_it_is(begun: Workbench) -> None:
    run = ran(begun, "to_gguf")
    assert "reused" not in [one.key for one in run.result.notes]
