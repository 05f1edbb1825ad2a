"""Searching the Hugging Face Hub for models in GGUF, with what decides whether they can be used."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from lib.course.result import Progress
from lib.errors import Offline

REACH_S = 3.0
WORKERS = 4


@dataclass(frozen=True)
class HubModel:
    """A repository on the Hub; ``smallest_bytes`` and ``largest_bytes`` span its GGUF files."""

    id: str
    license: str | None
    gated: bool
    downloads: int
    files: tuple[str, ...]
    smallest_bytes: int | None
    largest_bytes: int | None


def reach(endpoint: str) -> None:
    """Raise Offline unless the Hub answers within three seconds."""
    try:
        httpx2.head(endpoint, timeout=REACH_S, follow_redirects=True)
    except httpx2.HTTPError as error:
        raise Offline(host=httpx2.URL(endpoint).host, why=str(error) or type(error).__name__) from error


def search_hub(
    query: str, limit: int, token: str | None = None, endpoint: str | None = None, offline: bool = False
) -> Iterator[Progress | list[HubModel]]:
    """The most downloaded GGUF repositories that match ``query``; raises Offline."""
    api = HfApi(endpoint=endpoint, token=token or False)
    yield Progress(0, limit + 1, "ask_hub")
    if offline:
        raise Offline(host=httpx2.URL(api.endpoint).host, why="BANCADA_OFFLINE")
    reach(api.endpoint)
    try:
        found = list(api.list_models(search=query, filter="gguf", sort="downloads", limit=limit))
        models: list[HubModel] = []
        with ThreadPoolExecutor(WORKERS) as pool:
            for info in pool.map(lambda one: _with_files(api, one.id), found):
                models.append(_model(info))
                yield Progress(1 + len(models), 1 + len(found), "ask_hub", info.id)
    except (HfHubHTTPError, OSError) as error:
        raise Offline(host=httpx2.URL(api.endpoint).host, why=str(error).splitlines()[0]) from error
    yield models


def _with_files(api: HfApi, repo: str) -> Any:
    return api.model_info(repo, files_metadata=True, timeout=10)


def _model(info: Any) -> HubModel:
    files: Sequence[Any] = [one for one in info.siblings or () if one.rfilename.lower().endswith(".gguf")]
    sizes = [one.size for one in files if one.size]
    card = info.card_data.to_dict() if info.card_data else {}
    return HubModel(
        id=info.id,
        license=card.get("license"),
        gated=bool(info.gated),
        downloads=int(info.downloads or 0),
        files=tuple(one.rfilename for one in files),
        smallest_bytes=min(sizes, default=None),
        largest_bytes=max(sizes, default=None),
    )
