"""Fetching a file: in pieces, resumable, counted in bytes, checked before it counts.

A file is written as ``<name>.part`` and takes its name only when its SHA-256 is
the expected one. A download that was cut or cancelled leaves the part and goes
on from there where the server supports ranges.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

import httpx2

from lib.course.result import Progress
from lib.errors import BancadaError, CannotWrite, ChecksumMismatch, DiskFull

CHUNK = 1 << 20
CONNECT_S = 3.0
READ_S = 30.0
RESERVE_BYTES = 64 << 20


def check_space(folder: Path, need_bytes: int) -> None:
    """Raise DiskFull unless ``folder`` has room for ``need_bytes`` and a reserve."""
    free = shutil.disk_usage(folder).free
    if free < need_bytes + RESERVE_BYTES:
        raise DiskFull(path=folder, need=_mib(need_bytes + RESERVE_BYTES), free=_mib(free))


def download(
    url: str, part: Path, size_bytes: int | None, headers: Mapping[str, str] | None = None
) -> Iterator[Progress]:
    """Bring ``url`` into ``part``, going on where an earlier try stopped.

    Raises httpx2.HTTPError (the caller names the source), DiskFull, CannotWrite.
    """
    if urlsplit(url).scheme == "file":
        source = Path(httpx2.URL(url).path)
        with source.open("rb") as stream:
            yield from _copy(iter(lambda: stream.read(CHUNK), b""), part, 0, source.stat().st_size, "download")
        return
    have = part.stat().st_size if part.exists() else 0
    if size_bytes is not None and have == size_bytes:
        return
    # Of a compressed answer neither the length nor a part to go on from could be counted in bytes of the file.
    request_headers = {**(headers or {}), "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    timeout = httpx2.Timeout(READ_S, connect=CONNECT_S)
    with (
        httpx2.Client(follow_redirects=True, timeout=timeout, event_hooks={"response": [_refuse_downgrade]}) as client,
        client.stream("GET", url, headers=request_headers) as response,
    ):
        if response.status_code == 416:
            if response.headers.get("content-range") == f"bytes */{have}":
                return
            # The part is longer than the file: it is not a part of this file.
            part.unlink()
            raise httpx2.TransportError("the server has no such range; the part was removed, try again")
        response.raise_for_status()
        if response.status_code != 206:
            have = 0
        length = int(response.headers.get("content-length", 0))
        total = have + length if length else size_bytes or 0
        if size_bytes is not None and total != size_bytes:
            raise httpx2.TransportError(f"the file there has {total} bytes, not {size_bytes}")
        yield from _copy(response.iter_bytes(CHUNK), part, have, total, "download")
        done = part.stat().st_size
        if total and done < total:
            raise httpx2.ReadError(f"the connection closed after {done} of {total} bytes")


def verify(path: Path, sha256: str) -> Iterator[Progress]:
    """Read the file and compare its SHA-256; raises ChecksumMismatch."""
    digest = hashlib.sha256()
    total = path.stat().st_size
    with path.open("rb") as stream:
        while block := stream.read(4 * CHUNK):
            digest.update(block)
            yield Progress(stream.tell(), total, "verify")
    if digest.hexdigest() != sha256:
        raise ChecksumMismatch(path=path.name, expected=sha256, found=digest.hexdigest())


def append(source: BinaryIO, target: Path, start: int, total: int) -> Iterator[Progress]:
    """Append a stream to ``target`` from byte ``start``, counting towards ``total``."""
    yield from _copy(iter(lambda: source.read(CHUNK), b""), target, start, total, "unpack")


def _copy(blocks: Iterator[bytes], part: Path, start: int, total: int, what: str) -> Iterator[Progress]:
    done = start
    try:
        with part.open("r+b" if start else "wb") as out:
            out.seek(start)
            out.truncate()
            for block in blocks:
                out.write(block)
                done += len(block)
                yield Progress(done, total, what)
            out.flush()
            os.fsync(out.fileno())
    except OSError as error:
        raise place_error(error, part) from error


def place_error(error: OSError, path: Path) -> BancadaError:
    """Ours for an operating system's error while writing ``path``; a full disk loses the part, nothing else."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        written = path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)
        return DiskFull(path=path.parent, need=f"> {_mib(written)}", free=_mib(shutil.disk_usage(path.parent).free))
    return CannotWrite(path=path, why=error.strerror or str(error))


def _refuse_downgrade(response: httpx2.Response) -> None:
    target = response.next_request.url if response.next_request else None
    if target is not None and response.url.scheme == "https" and target.scheme != "https":
        raise httpx2.TransportError(f"a redirect from https to {target.scheme} was refused")


def _mib(size_bytes: float) -> str:
    return f"{size_bytes / 2**20:.0f} MiB"
