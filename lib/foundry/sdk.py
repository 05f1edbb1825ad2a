"""The child process of lab 5: one trial with Foundry Local's SDK, asked in one JSON line, answered in JSON lines.

Reads its request from standard input, writes progress and one result or error to standard output, and ends; it
ends at once when standard input closes before, because then the parent is dead or has cancelled.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import inspect
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil

from lib.engines.peak import peak_memory
from lib.pipes import read_line

if TYPE_CHECKING:
    from foundry_local_sdk import ChatSession, FoundryLocalManager, IModel

Request = Mapping[str, Any]
Raw = dict[str, Any]
Say = Callable[[float, float, str], None]
# "name:version" is what a local catalog wants; the name alone is the alias.
LOCAL_ID = "own-generic-cpu:1"
LOOK_S = 0.01


class DidNotStartError(Exception):
    """Foundry Local could not be initialised, or could not load the model."""


def versions(request: Request, say: Say) -> Raw:
    """What is installed, and whether names from older texts exist in it."""
    import foundry_local_sdk as sdk
    from foundry_local_sdk._native.lib_loader import find_library

    say(0, 1, "start_sdk")
    library = find_library()
    manager = _initialise(Path(request["folder"]), web=True)
    manager.start_web_service()
    return {
        "sdk": sdk.__version__,
        "library": library.name if library else "",
        "library_bytes": library.stat().st_size if library and library.is_file() else None,
        "onnxruntime": importlib.metadata.version("onnxruntime"),
        "genai": importlib.metadata.version("onnxruntime-genai-core"),
        "address": (manager.urls or [""])[0],
        "glibc": " ".join(platform.libc_ver()).strip() or None,
        "exists": {
            "module": importlib.util.find_spec("foundry_local") is not None,
            "sdk_module": importlib.util.find_spec("foundry_local_sdk") is not None,
            "psutil": hasattr(psutil.Process(), "memory_info"),
            "select_variant": hasattr(sdk.IModel, "select_variant"),
            "request_options": hasattr(sdk, "RequestOptions"),
            **{name: hasattr(manager, name) for name in ("get_memory_usage", "health_check", "get_inference_count")},
            "model_config": hasattr(sdk, "ModelConfig"),
            "hardware": "hardware" in inspect.signature(sdk.Configuration).parameters,
            "gguf": _takes_gguf(manager, Path(request["folder"])),
            **{path: _answers(manager, path) for path in request["paths"]},
        },
    }


def catalog(request: Request, say: Say) -> Raw:
    """Execution providers, the local catalog and, where it is asked for, the public one; each with its seconds."""
    from foundry_local_sdk import CatalogType

    say(0, 3, "start_sdk")
    manager = _initialise(Path(request["folder"]))
    providers, discover_s = _timed(manager.discover_eps)
    _register(manager, request["path"])
    local, local_s = _timed(manager.get_catalog(CatalogType.LOCAL).list_models)
    said: Raw = {
        "providers": [[one.name, one.is_registered] for one in providers],
        "discover_s": discover_s,
        "local": [_described(one) for one in local],
        "local_s": local_s,
    }
    if request["public"]:
        say(2, 3, "ask_catalog")
        public, said["public_s"] = _timed(manager.get_catalog().list_models)
        said["public"] = [_described(one) for one in public]
    return said


def load(request: Request, say: Say) -> Raw:
    """The life of a model, from an empty process to memory given back: seconds and resident bytes at every stage."""
    stages: list[tuple[str, float, int]] = []
    started = time.perf_counter()
    names = ("start", "import", "initialise", "register", "load_model", "answer", "unload", "trim")

    def reached(stage: str) -> None:
        say(len(stages) + 1, len(names), stage)
        stages.append((stage, time.perf_counter() - started, _resident()))

    reached("start")
    import foundry_local_sdk  # noqa: F401

    reached("import")
    manager = _initialise(Path(request["folder"]))
    reached("initialise")
    model = _register(manager, request["path"])
    reached("register")
    _load(model)
    reached("load_model")
    said = _ask(model, request["prompt"], max_output_tokens=request["max_tokens"], temperature=0)
    reached("answer")
    model.unload()
    reached("unload")
    if _trim():
        reached("trim")
    peak = peak_memory(os.getpid())
    return {"stages": stages, "peak_bytes": peak.size_bytes, "counter": peak.counter, "text": said["text"]}


def chat(request: Request, say: Say) -> Raw:
    """The same greedy answer several times, each in a session of its own; the first, which warms up, is left out."""
    model = _loaded(request, say)
    rounds = []
    for done in range(request["rounds"] + 1):
        say(done, request["rounds"] + 1, "answer_sdk")
        rounds.append(_ask(model, request["prompt"], max_output_tokens=request["max_tokens"], temperature=0))
    return {"rounds": rounds[1:]}


def budget(request: Request, say: Say) -> Raw:
    """What preflight says of prompts of ``words`` words, the longest one that fits, and what sending a longer one does.

    The text is repeated until it has the words.
    """
    from foundry_local_sdk import ChatSession
    from foundry_local_sdk.exception import FoundryLocalException

    model = _loaded(request, say)
    session, source, reserve = ChatSession(model), request["text"].split(), request["reserve_tokens"]
    say(0, 1, "preflight")
    rows = []
    for words in request["words"]:
        times = []
        for _ in range(5):
            asked = _prompt(_grown(source, words), reserve)
            found, took_s = _timed(partial(session.preflight_request, asked))
            times.append(took_s)
        rows.append({"words": words, "preflight_s": median(times), **vars(found)})
    low, high = 0, found.context_limit_tokens
    while low + 1 < high:
        middle = (low + high) // 2
        fits = session.preflight_request(_prompt(_grown(source, middle), reserve)).fits
        low, high = (middle, high) if fits else (low, middle)
    longest = session.preflight_request(_prompt(_grown(source, low), reserve))
    sent: Raw = {"refused": False, "why": ""}
    say(0.5, 1, "send_too_long")
    started = time.perf_counter()
    try:
        session.process_request(_prompt(_grown(source, high), reserve))
    except FoundryLocalException as error:
        sent = {"refused": True, "why": str(error)}
    sent["seconds"] = time.perf_counter() - started
    return {"rows": rows, "longest": {"words": low, **vars(longest)}, "sent": sent}


def guided(request: Request, say: Say) -> Raw:
    """Answers to every ask: messages, and what guides the decoding, if anything does."""
    model = _loaded(request, say)
    said = []
    for done, ask in enumerate(request["asks"]):
        say(done, len(request["asks"]), "ask_forms")
        said.append(_ask(model, **ask))
    return {"answers": said}


def tools(request: Request, say: Say) -> Raw:
    """Native tool calling for every question: the calls that came back, the text, or why it was refused."""
    from foundry_local_sdk import ChatSession
    from foundry_local_sdk.exception import FoundryLocalException

    model = _loaded(request, say)
    said: list[Raw] = []
    for done, question in enumerate(request["questions"]):
        say(done, len(request["questions"]), "ask_tools")
        session = ChatSession(model)
        for one in request["tools"]:
            session.add_tool_definition(one["name"], one["description"], json.dumps(one["parameters"]))
        try:
            with session.process_request(_prompt(question, request["max_tokens"], temperature=0)) as response:
                said.append({"items": [_read_item(one) for one in response], "why": ""})
        except FoundryLocalException as error:
            said.append({"items": [], "why": str(error)})
    return {"answers": said}


def sessions(request: Request, say: Say) -> Raw:
    """The most that is resident while 1, 2, … sessions write: all at once or, ``in_turn``, one after another."""
    from foundry_local_sdk import ChatSession

    manager = _initialise(Path(request["folder"]))
    empty = _resident()
    model = _register(manager, request["path"])
    say(0, 1, "load_model")
    _load(model)
    # What loading gave back must not hide what the sessions take, nor what the first ones gave back.
    _trim()
    loaded = _resident()
    rows = []
    for done, many in enumerate(request["sessions"]):
        say(done, len(request["sessions"]), "open_sessions")
        opened = [ChatSession(model) for _ in range(many)]
        most = _Most()
        with most:
            _write_all(opened, request["prompt"], request["max_tokens"], request["in_turn"])
        rows.append({"sessions": many, "measured_bytes": most.size_bytes})
        for one in opened:
            one._close()
        _trim()
    return {"empty_bytes": empty, "loaded_bytes": loaded, "rows": rows}


def rehearse(request: Request, say: Say) -> Raw:
    """Initialise, list a catalog, load, answer once, then wait for whoever is called later; seconds of each."""
    started = time.perf_counter()
    say(0, 4, "initialise")
    manager = _initialise(Path(request["folder"]))
    init_s = time.perf_counter() - started
    public = None
    if request["public"]:
        say(1, 4, "ask_catalog")
        public, _ = _timed(lambda: len(manager.get_catalog().list_models()))
    model = _register(manager, request["path"])
    say(2, 4, "load_model")
    _load(model)
    said = _ask(model, request["prompt"], max_output_tokens=request["max_tokens"], temperature=0)
    ready_s = time.perf_counter() - started
    deadline = time.monotonic() + request["wait_s"]
    while (left := deadline - time.monotonic()) > 0:
        say(4 - left / request["wait_s"], 4, "listen")
        time.sleep(min(left, 0.5))
    return {"init_s": init_s, "ready_s": ready_s, "text": said["text"], "public": public}


TRIALS: Mapping[str, Callable[[Request, Say], Raw]] = {
    one.__name__: one for one in (versions, catalog, load, chat, budget, guided, tools, sessions, rehearse)
}


class _Most:
    """The most that this process has resident inside the block; looked at every few milliseconds."""

    def __init__(self) -> None:
        self.size_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> _Most:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            self._look()

    def _look(self) -> None:
        self.size_bytes = max(self.size_bytes, _resident())


def _initialise(folder: Path, web: bool = False) -> FoundryLocalManager:
    from foundry_local_sdk import Configuration, FoundryLocalManager
    from foundry_local_sdk.exception import FoundryLocalException

    configuration = Configuration(
        app_name="bancada",
        app_data_dir=str(folder / "data"),
        model_cache_dir=str(folder / "cache"),
        logs_dir=str(folder / "logs"),
        disable_nonessential_telemetry=True,
        web=Configuration.WebService(urls="http://127.0.0.1:0") if web else None,
    )
    try:
        FoundryLocalManager.initialize(configuration)
    except FoundryLocalException as error:
        raise DidNotStartError(str(error)) from error
    manager = FoundryLocalManager.instance
    assert manager is not None
    return manager


def _register(manager: FoundryLocalManager, path: str) -> IModel:
    from foundry_local_sdk import CatalogType, ModelInfoBuilder
    from foundry_local_sdk.exception import FoundryLocalException

    with ModelInfoBuilder() as metadata:
        metadata.set_string_property("task", "chat-completion")
        try:
            return manager.get_catalog(CatalogType.LOCAL).register_model(path, LOCAL_ID, metadata)
        except FoundryLocalException as error:
            raise DidNotStartError(str(error)) from error


def _load(model: IModel) -> None:
    from foundry_local_sdk.exception import FoundryLocalException

    try:
        model.load()
    except FoundryLocalException as error:
        raise DidNotStartError(str(error)) from error


def _loaded(request: Request, say: Say) -> IModel:
    say(0, 1, "initialise")
    model = _register(_initialise(Path(request["folder"])), request["path"])
    say(0, 1, "load_model")
    _load(model)
    return model


def _prompt(prompt: str, max_output_tokens: int, system: str = "", guidance: Sequence[str] = (), **search: Any) -> Any:
    """A request; ``guidance`` is its type and its data."""
    from foundry_local_sdk import MessageItem, MessageRole, Request, RequestOptions, SearchOptions

    made = Request()
    if system:
        made.add_item(MessageItem(MessageRole.SYSTEM, system))
    made.add_item(MessageItem(MessageRole.USER, prompt))
    options = RequestOptions(search=SearchOptions(max_output_tokens=max_output_tokens, **search))
    if guidance:
        options.additional_options = {"guidance_type": guidance[0], "guidance_data": guidance[1]}
    return made.set_options(options)


def _ask(model: IModel, prompt: str, **options: Any) -> Raw:
    """One streamed answer in a session of its own; ``arrivals_s`` is when each piece of it came."""
    from foundry_local_sdk import ChatSession

    request = _prompt(prompt, **options)
    with ChatSession(model) as session:
        session.set_streaming(True)
        started = time.perf_counter()
        pieces, arrivals = [], []
        with session.process_streaming_request(request) as stream:
            for item in stream:
                arrivals.append(time.perf_counter() - started)
                pieces.append(_text_of(item))
            with stream.final_response as last:
                usage, finish = last.get_usage(), last.finish_reason.name.lower()
    return {
        "text": "".join(pieces),
        "arrivals_s": arrivals,
        "duration_s": time.perf_counter() - started,
        "finish": finish,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
    }


def _write_all(opened: Sequence[ChatSession], prompt: str, max_tokens: int, in_turn: bool) -> None:
    def write(session: ChatSession) -> None:
        session.set_streaming(True)
        with session.process_streaming_request(_prompt(prompt, max_tokens, temperature=0)) as stream:
            for _ in stream:
                pass
        # What is free again must not count as held.
        if in_turn:
            _trim()

    with ThreadPoolExecutor(1 if in_turn else len(opened)) as pool:
        for _ in pool.map(write, opened):
            pass


def _read_item(item: Any) -> Raw:
    kind = type(item).__name__
    if kind == "ToolCallItem":
        return {"kind": kind, "name": item.name, "arguments": item.arguments}
    return {"kind": kind, "text": _text_of(item)}


def _text_of(item: Any) -> str:
    return str(item.get_simple_text() if hasattr(item, "get_simple_text") else getattr(item, "text", ""))


def _described(model: IModel) -> Raw:
    info = model.info
    return {
        "alias": info.alias,
        "model_id": info.id,
        "task": info.task,
        "device": info.runtime.device_type if info.runtime and info.runtime.device_type else None,
        "size_bytes": info.file_size_mb * 2**20 if info.file_size_mb else None,
        "license": info.license,
        "context_tokens": info.context_length,
    }


def _takes_gguf(manager: FoundryLocalManager, folder: Path) -> bool:
    """Whether a directory that holds a GGUF file and nothing else can be registered."""
    place = folder / "gguf"
    place.mkdir()
    (place / "model.gguf").write_bytes(b"GGUF")
    try:
        _register(manager, str(place))
    except DidNotStartError:
        return False
    return True


def _answers(manager: FoundryLocalManager, path: str) -> bool:
    import httpx2

    # Loopback must never go through a proxy of the environment.
    with httpx2.Client(trust_env=False, timeout=30.0) as client:
        return client.get(f"{(manager.urls or [''])[0]}{path}").status_code == 200


def _grown(source: Sequence[str], words: int) -> str:
    return " ".join(source[at % len(source)] for at in range(words))


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    found = work()
    return found, time.perf_counter() - started


def _trim() -> bool:
    """Give freed memory back to the system; False where the C library has no such call.

    glibc keeps what is freed for whoever asks next, in this process only.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
    return trim is not None


def _resident() -> int:
    return int(psutil.Process().memory_info().rss)


def main() -> None:
    """Answer the one request, and end."""
    # Native libraries log to standard error, but one may print: answers get a stream of their own.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr

    # In the words of lib/toolchains/children/wire.py.
    def write(message: Raw) -> None:
        print(json.dumps(message), file=answers, flush=True)

    def say(done: float, total: float, what: str) -> None:
        write({"progress": {"done": done, "total": total, "what": what, "detail": ""}})

    def refuse(id: str, why: str) -> None:
        write({"error": {"id": id, "parameters": {"why": why}}})

    line = read_line()
    if not line:
        return
    request = json.loads(line)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        write({"result": TRIALS[request["op"]](request, say)})
    except ImportError as error:
        refuse("unsupported", str(error))
    except DidNotStartError as error:
        refuse("did-not-start", str(error))
    except Exception as error:
        refuse("refused", f"{type(error).__name__}: {error}")
    # Taking native libraries down may hang; nothing is left to do.
    os._exit(0)


def _end_with_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
