"""One request to a toolchain's child process, from its first progress to its answer."""

from __future__ import annotations

import json
import queue
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from lib import errors
from lib.course.result import Progress
from lib.errors import BancadaError, CannotWrite, ChildFailed, ToolchainDied, Unforeseen
from lib.scratch import scratch
from lib.toolchains.process import LINE_BYTES, Supervised, clean_environment, new_log

CHILDREN = Path(__file__).parent / "children"
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    # Olive and OpenVINO ask for this before they report that they started; Olive's own switch comes too late.
    "CI": "true",
    "OLIVE_DISABLE_TELEMETRY": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "OTEL_SDK_DISABLED": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUTF8": "1",
    # Without it vLLM looks for a package of the name ``vllm`` to learn that it is the build for processors.
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_NO_USAGE_STATS": "1",
}


def run(
    python: Path, script: Path, request: Mapping[str, Any], toolchain: str, folder: Path, logs: Path
) -> Generator[Progress, None, dict[str, Any]]:
    """Run ``script`` with ``python`` on the request; closing the generator ends all of it.

    ``folder`` gets the child's temporary folder. Raises the error that the
    child names, ChildFailed, ToolchainDied, CannotWrite.
    """
    try:
        log = new_log(logs, f"{toolchain}-{script.stem}")
        stderr = log.open("wb")
    except OSError as error:
        raise CannotWrite(path=logs, why=error.strerror or str(error)) from error
    keep = False
    try:
        with scratch(folder) as work:
            with stderr:
                process = _start(python, script, request, work, stderr)
            try:
                first = Progress(0, 0, "toolchain_start", script.stem)
                died = partial(ToolchainDied, toolchain=toolchain, log=log)
                refused = partial(_error, toolchain=toolchain, log=log)
                return (yield from answered(process, first, died, refused))
            finally:
                process.stop()
    except (ToolchainDied, ChildFailed, Unforeseen):
        keep = True
        raise
    finally:
        if not keep:
            log.unlink(missing_ok=True)


def environment_of(python: Path, work: Path) -> dict[str, str]:
    """What a child sees: no network, no telemetry, temporary files where they are removed."""
    places = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(work))
    # An environment of its own must not see the user's packages; this interpreter may have its own among them.
    alone = {} if str(python) == sys.executable else {"PYTHONNOUSERSITE": "1"}
    return clean_environment() | _SETTINGS | places | alone


def _start(python: Path, script: Path, request: Mapping[str, Any], work: Path, stderr: BinaryIO) -> Supervised:
    return Supervised([str(python), str(script)], work, environment_of(python, work), stderr, json.dumps(dict(request)))


def answered(
    process: Supervised,
    progress: Progress,
    died: Callable[..., BancadaError],
    refused: Callable[[Mapping[str, Any]], BancadaError],
) -> Generator[Progress, None, dict[str, Any]]:
    """Pass on a child's progress, of which ``progress`` is the first, until it answers; gives back the answer.

    The messages are those of ``children/wire.py``. ``died`` makes an error of ``how`` it ended without an
    answer, ``refused`` of the error that it names.
    """
    yield progress
    while True:
        try:
            line = process.lines.get(timeout=0.1)
        except queue.Empty:
            yield progress  # a moment in which it can be cancelled
            continue
        if line is None:
            raise died(how=process.how() or "it ended without an answer")
        if not line.endswith(b"\n") and len(line) <= LINE_BYTES:
            continue  # it died in the middle of a line; how it ended says more
        message = _message(line)
        if "result" in message:
            result: dict[str, Any] = message["result"]
            return result
        if "error" in message:
            raise refused(message["error"])
        if "progress" not in message:
            raise died(how=_nonsense(line))
        progress = _progress(message["progress"])
        yield progress


def _message(line: bytes) -> dict[str, Any]:
    """The message of a line; of one that is none, nothing."""
    with suppress(ValueError):
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return {}


def _nonsense(line: bytes) -> str:
    if len(line) > LINE_BYTES:
        return f"it wrote a line longer than {LINE_BYTES >> 20} MiB"
    return f"it wrote {line[:60]!r} instead of an answer"


def _progress(raw: Mapping[str, Any]) -> Progress:
    return Progress(float(raw["done"]), float(raw["total"]), str(raw["what"]), str(raw["detail"]))


def _error(raw: Mapping[str, Any], toolchain: str, log: Path) -> BancadaError:
    known = {kind().id: kind for kind in _kinds(errors.BancadaError)}
    kind = known.get(raw["id"])
    if kind is None:
        return Unforeseen(why=f"{toolchain}: {raw['id']} {raw['parameters']}")
    if kind is ChildFailed:
        return ChildFailed(toolchain=toolchain, why=raw["parameters"]["why"], log=log)
    return kind(**raw["parameters"])


def _kinds(kind: type[BancadaError]) -> Iterator[type[BancadaError]]:
    for one in kind.__subclasses__():
        yield one
        yield from _kinds(one)
