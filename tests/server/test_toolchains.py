"""Toolchains' environments and children: real pip, real environments, real kills."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, suppress
from http.server import BaseHTTPRequestHandler
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

from lib import cli
from lib.doctor import Finding
from lib.doctor import _toolchains as toolchain_findings
from lib.errors import (
    BancadaError,
    ChildFailed,
    DiskFull,
    ModelDamaged,
    ToolchainBroken,
    ToolchainDied,
    ToolchainFailed,
    ToolchainNeedsCompiler,
    ToolchainUnreachable,
    ToolchainUnsupported,
    Unforeseen,
    UnknownToolchain,
)
from lib.text import LANGUAGES, load_words
from lib.toolchains import Toolchains
from lib.toolchains import child as one_child
from lib.toolchains.registry import TOOLCHAINS, Toolchain
from lib.workbench import Workbench
from tests.conftest import missing
from tests.server.helpers import (
    Behaviour,
    FileServer,
    Loopback,
    Other,
    drain,
    is_alive,
    read_line,
    start_python,
    wait_until,
)
from tests.server.helpers import end as end_process

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")

# Not the version that the tests' own environment has.
PIN, OLDER = "iniconfig==2.1.0", "iniconfig==2.0.0"
GONE_S = 60.0
MIB = 1 << 20


def tiny(folder: Path, *lines: str, probe: str = "iniconfig", need_bytes: int = MIB) -> dict[str, Toolchain]:
    """A registry of one small toolchain, its requirement file in ``folder``."""
    path = folder / "tiny.txt"
    path.write_text("\n".join(lines) + "\n")
    return {"tiny": Toolchain("tiny", path, need_bytes, (probe,))}


def made(folder: Path, registry: Mapping[str, Toolchain], offline: bool = False) -> Toolchains:
    return Toolchains(folder / "toolchains", folder / "logs", offline, registry)


def ensured(toolchains: Toolchains, name: str = "tiny") -> Path:
    """The Python of a toolchain, whatever it takes."""
    events = toolchains.ensure(name)
    while True:
        try:
            next(events)
        except StopIteration as stop:
            path: Path = stop.value
            return path


def leftovers(toolchains: Toolchains) -> list[str]:
    """What lies in the folder beside locks and whole environments."""
    found = sorted(path.name for path in toolchains.folder.iterdir()) if toolchains.folder.exists() else []
    return [one for one in found if not one.endswith(".lock") and not re.fullmatch(r"\w+-[0-9a-f]{12}", one)]


def environments(toolchains: Toolchains) -> list[str]:
    return sorted(path.parent.name for path in toolchains.folder.glob("*/bancada.json"))


def below(pid: int, word: str) -> list[psutil.Process]:
    """The processes below one whose command has that word."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for one in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                if word in " ".join(one.cmdline()) and one.status() != psutil.STATUS_ZOMBIE:
                    found.append(one)
    return found


def wheel(folder: Path, name: str, size_bytes: int) -> Path:
    """A wheel with one module and that many bytes which do not compress."""
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/__init__.py": b"",
        f"{name}/weights.bin": random.Random(7).randbytes(size_bytes),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: house\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}\n"
        for path, content in files.items()
    )
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for one, content in (files | {f"{info}/RECORD": f"{record}{info}/RECORD,,\n".encode()}).items():
            archive.writestr(one, content)
    return path


@pytest.fixture
def server() -> Iterator[FileServer]:
    made = FileServer()
    yield made
    made.close()


@pytest.fixture
def slow_index(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FileServer:
    """An index with one package, ``slowly``, whose download takes minutes until somebody lifts the brake."""
    content = wheel(tmp_path, "slowly", 8 * MIB).read_bytes()
    page = b'<html><body><a href="/slowly-1.0-py3-none-any.whl">slowly-1.0-py3-none-any.whl</a></body></html>'
    server.paths = {
        "/simple/slowly/": Behaviour(page, content_type="text/html"),
        "/slowly-1.0-py3-none-any.whl": Behaviour(content, block_s=1.0),
    }
    only(monkeypatch, f"{server.address}/simple/")
    return server


def only(monkeypatch: pytest.MonkeyPatch, index: str) -> None:
    """Let pip know that index alone."""
    for name in [one for one in os.environ if one.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", index)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")


# Building


def test_an_environment_is_built_counted_proven_and_used(tmp_path: Path) -> None:
    toolchains = made(tmp_path, tiny(tmp_path, PIN))
    assert [one.why for one in toolchains.states()] == ["not_built"]
    events = drain(toolchains.ensure("tiny"))
    whats = list(dict.fromkeys(one.what for one in events))
    assert whats == ["toolchain_venv", "toolchain_download", "toolchain_install", "toolchain_prove"]
    counted = [one.share for one in events if one.total]
    assert counted == sorted(counted) and counted[-1] == 1.0
    python = ensured(toolchains)
    said = subprocess.run([python, "-c", "import iniconfig; print(iniconfig.__file__)"], capture_output=True, text=True)
    assert Path(said.stdout).is_relative_to(toolchains.folder)
    (state,) = toolchains.states()
    assert state.ready and state.where == python and state.size_bytes > MIB
    assert toolchains.versions("tiny")["iniconfig"] == "2.1.0"
    assert drain(toolchains.ensure("tiny")) == []
    assert leftovers(toolchains) == []
    assert list(toolchains.logs.iterdir()) == []


def test_openvino_is_built_from_its_real_pins(tmp_path: Path) -> None:
    toolchains = made(tmp_path, TOOLCHAINS)
    drain(toolchains.ensure("openvino"))
    drain(toolchains.prove("openvino"))
    assert toolchains.versions("openvino")["openvino-genai"].startswith("2026.4.1")
    size = next(one.size_bytes for one in toolchains.states() if one.name == "openvino")
    assert size < TOOLCHAINS["openvino"].need_bytes


def test_an_interpreter_that_has_everything_is_used_as_it_is(tmp_path: Path) -> None:
    pins = [f"pytest=={version('pytest')}", 'no-such-package==1.0; sys_platform == "amiga"']
    toolchains = made(tmp_path, tiny(tmp_path, *pins, probe="pytest"))
    assert ensured(toolchains) == Path(sys.executable)
    assert toolchains.states()[0].ready
    assert toolchains.versions("tiny")["pytest"] == version("pytest")
    assert not toolchains.folder.exists()
    drain(toolchains.prove("tiny"))


def test_what_only_pythonpath_brings_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child does not get PYTHONPATH, so it would not find it."""
    info = tmp_path / "path" / "iniconfig-2.1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: iniconfig\nVersion: 2.1.0\n")
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.setenv("PYTHONPATH", str(info.parent))
    assert not tiny(tmp_path, PIN)["tiny"].satisfied()
    monkeypatch.delenv("PYTHONPATH")
    assert tiny(tmp_path, PIN)["tiny"].satisfied()


def test_a_changed_requirement_builds_anew_and_the_old_environment_goes(tmp_path: Path) -> None:
    toolchains = made(tmp_path, tiny(tmp_path, PIN))
    drain(toolchains.ensure("tiny"))
    (first,) = environments(toolchains)
    bystander = toolchains.folder / "tinyother-0123456789ab"
    bystander.mkdir()
    toolchains = made(tmp_path, tiny(tmp_path, OLDER))
    assert [one.why for one in toolchains.states()] == ["not_built"]
    drain(toolchains.ensure("tiny"))
    (second,) = environments(toolchains)
    assert second != first
    assert not (toolchains.folder / first).exists()
    assert bystander.exists()
    assert toolchains.versions("tiny")["iniconfig"] == "2.0.0"


def test_an_environment_that_lost_files_is_damaged_and_is_built_anew(tmp_path: Path) -> None:
    toolchains = made(tmp_path, tiny(tmp_path, PIN))
    python = ensured(toolchains)
    (info,) = python.parent.parent.glob("lib/*/site-packages/iniconfig-*.dist-info")
    shutil.rmtree(info)
    assert [one.why for one in toolchains.states()] == ["damaged"]
    with pytest.raises(ToolchainBroken) as caught:
        drain(toolchains.prove("tiny"))
    assert "iniconfig" in str(caught.value.parameters["why"])
    drain(toolchains.ensure("tiny"))
    assert toolchains.states()[0].ready
    assert leftovers(toolchains) == []


def test_an_environment_whose_import_fails_is_found_out_and_mended(tmp_path: Path) -> None:
    toolchains = made(tmp_path, tiny(tmp_path, PIN))
    python = ensured(toolchains)
    (module,) = python.parent.parent.glob("lib/*/site-packages/iniconfig/__init__.py")
    module.write_text("raise ImportError('libhouse.so.3: cannot open shared object file')\n")
    with pytest.raises(ToolchainBroken) as caught:
        drain(toolchains.prove("tiny"))
    assert "libhouse.so.3" in str(caught.value.parameters["why"])
    drain(toolchains.renew("tiny"))
    drain(toolchains.prove("tiny"))
    assert list(toolchains.logs.iterdir()) == []


def test_what_cannot_be_imported_never_counts_as_built(tmp_path: Path) -> None:
    toolchains = made(tmp_path, tiny(tmp_path, PIN, probe="iniconfig.no_such_module"))
    with pytest.raises(ToolchainFailed) as caught:
        drain(toolchains.ensure("tiny"))
    assert "no_such_module" in str(caught.value.parameters["why"])
    assert leftovers(toolchains) == environments(toolchains) == []


def _build(folder: Path, wire: Connection) -> None:
    toolchains = made(folder, tiny(folder, PIN))
    wire.send("ready")
    wire.recv()
    whats = {one.what for one in toolchains.ensure("tiny")}
    wire.send((sorted(whats), str(ensured(toolchains))))


def test_two_processes_that_ask_at_once_make_one_environment(tmp_path: Path) -> None:
    others = [Other(_build, tmp_path) for _ in range(2)]
    try:
        assert [one.says() for one in others] == ["ready", "ready"]
        for one in others:
            one.go()
        answers = [one.says() for one in others]
    finally:
        for one in others:
            one.end()
    assert sum("toolchain_venv" in whats for whats, _ in answers) == 1
    assert sum("shared_toolchain" in whats for whats, _ in answers) == 1
    assert len({python for _, python in answers}) == 1
    assert len(environments(made(tmp_path, {}))) == 1


def _build_slowly(folder: Path, environment: dict[str, str], wire: Connection) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for one in made(folder, tiny(folder, "slowly==1.0", probe="slowly")).ensure("tiny"):
        wire.send((one.what, one.detail))


@pytest.mark.parametrize("moment", ["toolchain_venv", "toolchain_download"])
def test_killed_in_mid_build_it_leaves_nothing_usable_and_no_pip_and_the_next_one_succeeds(
    tmp_path: Path, slow_index: FileServer, moment: str
) -> None:
    toolchains = made(tmp_path, tiny(tmp_path, "slowly==1.0", probe="slowly"))
    builder = Other(_build_slowly, tmp_path, dict(os.environ))
    try:
        while builder.says()[0] != moment:
            pass
        if moment == "toolchain_download":
            wait_until("the download runs", lambda: slow_index.downloads("/slowly-1.0-py3-none-any.whl"))
        processes = wait_until("it works", lambda: below(builder.process.pid, str(toolchains.folder)))
        builder.process.kill()
        wait_until("nothing of it lives", lambda: not any(is_alive(one.pid) for one in processes), GONE_S)
    finally:
        builder.end()
    assert environments(toolchains) == []
    assert not toolchains.states()[0].ready
    assert leftovers(toolchains), "the kill came too late to test anything"
    slow_index.paths["/slowly-1.0-py3-none-any.whl"].block_s = 0.0
    drain(toolchains.ensure("tiny"))
    assert leftovers(toolchains) == []
    assert toolchains.versions("tiny")["slowly"] == "1.0"


def test_cancelled_in_mid_build_it_ends_pip_and_takes_everything_away(tmp_path: Path, slow_index: FileServer) -> None:
    toolchains = made(tmp_path, tiny(tmp_path, "slowly==1.0", probe="slowly"))
    with closing(toolchains.ensure("tiny")) as events:
        for one in events:
            if one.what == "toolchain_download" and one.detail != "0 MiB":
                break
        processes = below(os.getpid(), str(toolchains.folder))
        assert any("pip" in one.cmdline() for one in processes)
    assert not any(is_alive(one.pid) for one in processes)
    assert leftovers(toolchains) == environments(toolchains) == []
    assert list(toolchains.logs.iterdir()) == []
    slow_index.paths["/slowly-1.0-py3-none-any.whl"].block_s = 0.0
    drain(toolchains.ensure("tiny"))


def failure(toolchains: Toolchains) -> BancadaError:
    """How a build fails; nothing usable and no part may be left, and both languages have words for it."""
    with pytest.raises(BancadaError) as caught:
        drain(toolchains.ensure("tiny"))
    assert leftovers(toolchains) == environments(toolchains) == []
    for language in LANGUAGES:
        assert all(load_words(language).error(caught.value))
    return caught.value


def test_a_package_that_does_not_exist_is_named(
    tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, f"{server.address}/simple/")
    error = failure(made(tmp_path, tiny(tmp_path, "bancada-has-no-such-package==9.9")))
    assert type(error) is ToolchainFailed
    assert "bancada-has-no-such-package" in str(error.parameters["why"])
    assert "No matching distribution" in Path(str(error.parameters["log"])).read_text()


def test_a_retry_that_helped_is_not_a_missing_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked_again = threading.Event()
    asked: list[str] = []

    class Sleepy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if len(asked) == 1:
                asked_again.wait(60)
                return
            asked_again.set()
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    with Loopback(("127.0.0.1", 0), Sleepy) as index:
        threading.Thread(target=index.serve_forever, daemon=True).start()
        only(monkeypatch, f"http://127.0.0.1:{index.server_port}/simple/")
        monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "1")
        error = failure(made(tmp_path, tiny(tmp_path, "bancada-has-no-such-package==9.9")))
        index.shutdown()
    assert type(error) is ToolchainFailed
    assert "ReadTimeoutError" in Path(str(error.parameters["log"])).read_text()


def test_without_a_network_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "http://127.0.0.1:9/simple/")
    monkeypatch.setenv("PIP_RETRIES", "1")
    error = failure(made(tmp_path, tiny(tmp_path, PIN)))
    assert isinstance(error, ToolchainUnreachable)
    assert "Connection refused" in str(error.parameters["why"])


def test_offline_it_fails_at_once_and_touches_nothing(tmp_path: Path) -> None:
    toolchains = made(tmp_path, tiny(tmp_path, PIN), offline=True)
    assert isinstance(failure(toolchains), ToolchainUnreachable)
    assert not toolchains.folder.exists()


def test_offline_an_environment_that_is_here_is_used(tmp_path: Path) -> None:
    registry = tiny(tmp_path, PIN)
    python = ensured(made(tmp_path, registry))
    assert ensured(made(tmp_path, registry, offline=True)) == python


def test_a_package_that_had_to_be_compiled_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "house_ext-1.0"
    source.mkdir()
    (source / "setup.py").write_text(
        "from setuptools import Extension, setup\n"
        "setup(name='house_ext', version='1.0', ext_modules=[Extension('house_ext', ['house.c'])])\n"
    )
    (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: house_ext\nVersion: 1.0\n")
    (source / "house.c").write_text("int house(void) { return 1; }\n")
    with tarfile.open(tmp_path / "house_ext-1.0.tar.gz", "w:gz") as archive:
        archive.add(source, source.name)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("CC", str(tmp_path / "no-such-compiler"))
    error = failure(made(tmp_path, tiny(tmp_path, "house_ext==1.0")))
    assert isinstance(error, ToolchainNeedsCompiler), error
    assert "house" in str(error.parameters["package"])
    assert "no-such-compiler" in Path(str(error.parameters["log"])).read_text()


def test_too_little_disk_is_said_before_anything_starts(tmp_path: Path) -> None:
    toolchains = made(tmp_path, tiny(tmp_path, PIN, need_bytes=1 << 60))
    assert isinstance(failure(toolchains), DiskFull)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True).returncode
    ):
        missing("the right to mount a small file system (needs root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_in_mid_build_loses_the_part_and_nothing_else(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel(tmp_path, "bulky", 50 * MIB)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr("lib.models.fetch.RESERVE_BYTES", 0)
    precious = small_disk / "precious"
    precious.write_bytes(b"p" * MIB)
    (small_disk / "tiny.txt").touch()
    error = failure(made(small_disk, tiny(tmp_path, "bulky==1.0", probe="bulky")))
    assert isinstance(error, DiskFull), error
    assert precious.read_bytes() == b"p" * MIB


def test_a_toolchain_that_nobody_knows_or_that_is_not_for_this_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownToolchain):
        drain(made(tmp_path, {}).ensure("tiny"))
    known = tiny(tmp_path, PIN)["tiny"]
    elsewhere = Toolchain("tiny", known.requirements, MIB, ("iniconfig",), where='sys_platform == "amiga"')
    toolchains = made(tmp_path, {"tiny": elsewhere})
    assert [one.why for one in toolchains.states()] == ["unsupported"]
    assert isinstance(failure(toolchains), ToolchainUnsupported)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    """A workbench whose one toolchain is a tiny one."""
    made_bench = Workbench.open(home=tmp_path / "home", language="en", _env_file=None)
    made_bench.toolchains = made(tmp_path, tiny(tmp_path, PIN))
    yield made_bench
    made_bench.close()


def test_the_doctor_tells_ready_from_not_built_and_from_broken(bench: Workbench) -> None:
    def finding() -> Finding:
        (one,) = toolchain_findings(bench)
        return one

    assert finding().ok is None
    python = ensured(bench.toolchains)
    assert finding().ok is True
    (package,) = python.parent.parent.glob("lib/*/site-packages/iniconfig")
    shutil.rmtree(package)
    assert finding().ok is False and isinstance(finding().error, ToolchainBroken)
    python.unlink()
    assert finding().ok is False and isinstance(finding().error, ToolchainBroken)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_command_line_lists_them_and_refuses_an_unknown_one(
    tmp_path: Path, language: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BANCADA_HOME", str(tmp_path / "home"))
    assert cli.main(["toolchains", "--lang", language]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == list(TOOLCHAINS)
    assert cli.main(["toolchain", "no-such-one", "--lang", language]) == 2
    assert "no-such-one" in capsys.readouterr().err
    assert not (tmp_path / "home").exists()


# Children

CHILD = """
import ctypes, json, os, signal, subprocess, sys, time
import wire

def answer(request):
    wire.progress(1, 2, "load", "half")
    return {"got": request["payload"], "peak": wire.peak_bytes()}

def look(request):
    open("dropped.txt", "w").write("x")
    return {"environment": dict(os.environ), "cwd": os.getcwd(), "executable": sys.executable, "stdin": sys.stdin.read()}

def refuse(request):
    raise wire.Refused("model-damaged", path="a.gguf", why="too short")

def refuse_oddly(request):
    raise wire.Refused("no-such-error", a=1)

def fail(request):
    raise ValueError("boom in the library")

def leave(request):
    sys.exit("a converter that exits")

def unfit(request):
    return {"answer": object()}

def die(request):
    os.kill(os.getpid(), getattr(signal, request["signal"]))
    time.sleep(60)

def quit(request):
    os._exit(3)

def chatter(request):
    print('{"result": {"forged": true}}')
    os.write(1, b"nonsense \\xff\\xfe\\n" * 1000)
    subprocess.run(["echo", '{"result": {"forged": "twice"}}'])
    return {"honest": True}

def shout(request):
    for _ in range(64):
        os.write(2, b"e" * 131072)
    return {"said": 64 * 131072}

def linger(request):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    grandchild = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    wire.progress(os.getpid(), grandchild.pid, "load")
    if request["end"] == "answer":
        return {}
    if request["end"] == "death":
        os._exit(3)
    ctypes.PyDLL(None).sleep(600)  # native code that never lets go of the interpreter

def talk(request):
    wire.progress(1, 1, "load")
    while True:
        time.sleep(60)

wire.serve(dict(globals()))
"""
RAW = {
    "nonsense": "print('Segmentation fault? no, just chatty', flush=True)\nimport time; time.sleep(60)",
    "endless": "import sys, time\nwhile True: sys.stdout.write('x' * 65536)",
    "cut": "import os, signal, sys\nsys.stdout.write('{\"resu'); sys.stdout.flush(); os.kill(os.getpid(), signal.SIGKILL)",
    "number": "print(7, flush=True)\nimport time; time.sleep(60)",
}


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of children: one that does everything through the wire, and raw ones that do not know it."""
    folder = tmp_path / "children"
    folder.mkdir()
    shutil.copy(one_child.CHILDREN / "wire.py", folder)
    (folder / "child.py").write_text(CHILD)
    for name, code in RAW.items():
        (folder / f"{name}.py").write_text(code)
    monkeypatch.setattr(one_child, "CHILDREN", folder)
    return folder


def asked(folder: Path, op: str, child: str = "child", **request: object) -> dict[str, object]:
    """The answer of a child that this very interpreter runs."""
    events = made(folder, {}).call("here", child, {"op": op, **request})
    while True:
        try:
            next(events)
        except StopIteration as stop:
            answer: dict[str, object] = stop.value
            return answer


def logs(folder: Path) -> list[Path]:
    return sorted((folder / "logs").iterdir())


def test_a_child_answers_and_its_progress_comes_through(children: Path, tmp_path: Path) -> None:
    payload = {"tokens": list(range(200_000)), "text": "ação 😀", "number": 0.1}
    events = made(tmp_path, {}).call("here", "child", {"op": "answer", "payload": payload})
    seen = []
    with pytest.raises(StopIteration) as stop:
        while True:
            seen.append(next(events))
    assert stop.value.value["got"] == payload
    assert 4 * MIB < stop.value.value["peak"] < 1 << 34
    assert (1, 2, "load", "half") in [(one.done, one.total, one.what, one.detail) for one in seen]
    assert logs(tmp_path) == []


def test_a_child_runs_offline_without_secrets_in_a_folder_that_goes(
    children: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BANCADA_HUB_TOKEN", "hf_canary")
    monkeypatch.setenv("HF_TOKEN", "hf_canary")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    seen = asked(tmp_path, "look")
    environment = seen["environment"]
    assert isinstance(environment, dict)
    assert "hf_canary" not in json.dumps(environment)
    assert "PYTHONPATH" not in environment
    wanted = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    wanted |= {"TOKENIZERS_PARALLELISM": "false", "CI": "true", "OLIVE_DISABLE_TELEMETRY": "1"}
    assert wanted.items() <= environment.items()
    assert environment["TMPDIR"] == seen["cwd"]
    assert Path(str(seen["cwd"])).is_relative_to(tmp_path) and not Path(str(seen["cwd"])).exists()
    assert seen["stdin"] == ""


def test_a_child_of_a_toolchain_runs_in_its_environment(children: Path, tmp_path: Path) -> None:
    toolchains = made(tmp_path, tiny(tmp_path, PIN))
    events = toolchains.call("tiny", "child", {"op": "look"})
    with pytest.raises(StopIteration) as stop:
        while True:
            next(events)
    assert Path(stop.value.value["executable"]).is_relative_to(toolchains.folder)
    assert stop.value.value["environment"]["PYTHONNOUSERSITE"] == "1"


def test_what_a_library_prints_cannot_forge_an_answer(children: Path, tmp_path: Path) -> None:
    assert asked(tmp_path, "chatter") == {"honest": True}


def test_megabytes_of_warnings_do_not_stop_a_child(children: Path, tmp_path: Path) -> None:
    assert asked(tmp_path, "shout") == {"said": 8 * MIB}
    assert logs(tmp_path) == []


def test_a_refusal_comes_as_the_error_it_names(children: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelDamaged) as caught:
        asked(tmp_path, "refuse")
    assert caught.value.parameters == {"path": "a.gguf", "why": "too short"}
    with pytest.raises(Unforeseen, match="no-such-error"):
        asked(tmp_path, "refuse_oddly")


@pytest.mark.parametrize(
    ("op", "why"),
    [
        ("fail", "ValueError: boom in the library"),
        ("leave", "SystemExit: a converter that exits"),
        ("unfit", "not JSON serializable"),
        ("unknown", "KeyError"),
    ],
)
def test_a_library_that_raises_is_quoted_and_its_traceback_kept(
    children: Path, tmp_path: Path, op: str, why: str
) -> None:
    with pytest.raises(ChildFailed) as caught:
        asked(tmp_path, op)
    assert why in str(caught.value.parameters["why"])
    assert "Traceback" in Path(str(caught.value.parameters["log"])).read_text()


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSEGV", "SIGABRT"])
def test_a_child_that_dies_is_named_with_its_signal(children: Path, tmp_path: Path, how: str) -> None:
    with pytest.raises(ToolchainDied) as caught:
        asked(tmp_path, "die", signal=how)
    assert caught.value.parameters["how"] == how
    assert Path(str(caught.value.parameters["log"])).exists()


def test_a_child_that_ends_without_an_answer_is_named_with_its_status(children: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolchainDied) as caught:
        asked(tmp_path, "quit")
    assert caught.value.parameters["how"] == "exit status 3"


@pytest.mark.parametrize(
    ("child", "how"),
    [("nonsense", "just chatty"), ("number", "7"), ("endless", "longer than 4 MiB"), ("cut", "SIGKILL")],
)
def test_what_is_no_answer_is_refused(children: Path, tmp_path: Path, child: str, how: str) -> None:
    with pytest.raises(ToolchainDied) as caught:
        asked(tmp_path, "go", child)
    assert how in str(caught.value.parameters["how"])


def lingering(folder: Path, end: str = "") -> tuple[object, list[int]]:
    """A child deep in native code, and a grandchild in a session of its own; both process ids."""
    events = made(folder, {}).call("here", "child", {"op": "linger", "end": end})
    for one in events:
        if one.what == "load":
            return events, [int(one.done), int(one.total)]
    raise AssertionError


@pytest.fixture
def watched() -> Iterator[list[int]]:
    """Processes to kill when a test fails to see them gone."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_cancel_ends_a_child_in_native_code_and_its_grandchild(
    children: Path, tmp_path: Path, watched: list[int]
) -> None:
    events, pids = lingering(tmp_path)
    watched += pids
    assert all(map(is_alive, pids))
    events.close()  # type: ignore[attr-defined]
    assert not any(map(is_alive, pids))
    assert logs(tmp_path) == []
    assert drain((tmp_path / "toolchains" / "scratch").iterdir()) == []


@pytest.mark.parametrize(("end", "how"), [("answer", StopIteration), ("death", ToolchainDied)])
def test_a_grandchild_does_not_outlive_the_child(
    children: Path, tmp_path: Path, watched: list[int], end: str, how: type[Exception]
) -> None:
    events, pids = lingering(tmp_path, end)
    watched += pids
    with pytest.raises(how):
        while True:
            next(events)  # type: ignore[call-overload]
    assert not any(map(is_alive, pids))


PARENT = """
import sys
from pathlib import Path
from lib.toolchains import Toolchains, child
folder = Path(sys.argv[1])
child.CHILDREN = folder / "children"
for one in Toolchains(folder / "toolchains", folder / "logs").call("here", "child", {"op": "linger", "end": ""}):
    if one.what == "load":
        print(int(one.done), int(one.total), flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_a_child_and_its_grandchild_end_with_the_process_that_asked(
    children: Path, tmp_path: Path, watched: list[int], how: signal.Signals
) -> None:
    with ExitStack() as stack:
        parent = start_python("-c", PARENT, str(tmp_path))
        stack.callback(end_process, parent)
        pids = [int(one) for one in read_line(parent.stdout).split()]
        watched += pids
        assert all(map(is_alive, pids))
        parent.send_signal(how)
        wait_until("both are gone", lambda: not any(map(is_alive, pids)), GONE_S)
        parent.wait(GONE_S)
    if how is signal.SIGKILL:
        assert drain((tmp_path / "toolchains" / "scratch").iterdir()), "the kill left nothing to test"
        asked(tmp_path, "answer", payload=1)
        assert drain((tmp_path / "toolchains" / "scratch").iterdir()) == []


def test_a_child_ends_even_when_its_supervisor_is_killed(children: Path, tmp_path: Path, watched: list[int]) -> None:
    events = made(tmp_path, {}).call("here", "child", {"op": "talk"})
    while next(events).what != "load":
        pass
    (supervisor,) = below(os.getpid(), "supervise.py")
    (child,) = supervisor.children()
    watched.append(child.pid)
    supervisor.kill()
    wait_until("the child is gone", lambda: not is_alive(child.pid), GONE_S)
    with pytest.raises(ToolchainDied):
        drain(events)


INTERRUPTED = """
import sys
from pathlib import Path
from lib.toolchains import Toolchains, child
folder = Path(sys.argv[1])
child.CHILDREN = folder / "children"
events = Toolchains(folder / "toolchains", folder / "logs").call("here", "child", {"op": "talk"})
while next(events).what != "load":
    pass
"""


def test_a_program_that_forgets_a_running_child_still_ends_in_order(children: Path, tmp_path: Path) -> None:
    with ExitStack() as stack:
        process = start_python("-c", INTERRUPTED, str(tmp_path))
        stack.callback(end_process, process)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert said == ""


def test_logs_of_a_week_ago_go_and_newer_ones_stay(children: Path, tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    old, new, other = folder / "toolchain-here-1-a.log", folder / "toolchain-here-2-b.log", folder / "embedded-1-a.log"
    for one in (old, new, other):
        one.touch()
    week_ago = time.time() - 8 * 86400
    os.utime(old, (week_ago, week_ago))
    os.utime(other, (week_ago, week_ago))
    asked(tmp_path, "answer", payload=1)
    assert logs(tmp_path) == sorted([new, other])
