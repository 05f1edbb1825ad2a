"""What the tests of real processes share: other processes and a server, gone when the test ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.server.helpers import FileServer, Other, Start


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts other processes; none outlives the test."""
    with ExitStack() as stack:

        def one(work: Callable[..., None], *arguments: object) -> Other:
            other = Other(work, *arguments)
            stack.callback(other.end)
            return other

        yield one


@pytest.fixture
def server() -> Iterator[FileServer]:
    """An HTTP server on loopback."""
    made = FileServer()
    yield made
    made.close()
