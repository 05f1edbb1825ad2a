"""Addresses of servers: what the learner typed, made whole, and whether it is this machine."""

from __future__ import annotations

import random
import re
import socket
from contextlib import suppress
from ipaddress import ip_address

import httpx2

from lib.errors import BadParameter


def base_url(typed: str) -> str:
    """The address under which an OpenAI API answers: a scheme and ``/v1`` are added where none is given.

    Raises BadParameter.
    """
    url = _parsed(typed, "http://host:port/v1")
    return str(url.copy_with(path=url.path.rstrip("/") or "/v1"))


def ollama_url(typed: str) -> str:
    """Where Ollama's server answers, by Ollama's own rules; a listener's way of writing it included.

    Without a scheme the port is 11434, with one it is the scheme's. Raises BadParameter.
    """
    text = typed.strip() or "127.0.0.1"
    text = f"127.0.0.1{text}" if text.startswith(":") else text
    url = _parsed(text, "http://host:11434")
    # A port that is the scheme's own is dropped from the URL, but it was named.
    if "://" not in text and not re.search(r":\d+/?$", text):
        url = url.copy_with(port=11434)
    host = "127.0.0.1" if url.host == "0.0.0.0" else url.host
    return str(url.copy_with(host=host, path=url.path.rstrip("/") or "/")).rstrip("/")


def shown(url: str) -> str:
    """An address as a screen may show it: without a user's name and password."""
    try:
        return str(httpx2.URL(url).copy_with(userinfo=b"")).rstrip("/")
    except (httpx2.InvalidURL, ValueError):
        return url


def _parsed(typed: str, allowed: str) -> httpx2.URL:
    text = typed.strip()
    try:
        url = httpx2.URL(text if "://" in text else f"http://{text}")
        fine = url.scheme in ("http", "https") and bool(url.host) and (url.port or 0) <= 65535 and " " not in text
    except (httpx2.InvalidURL, ValueError) as error:
        raise BadParameter(name="address", value=typed, allowed=allowed) from error
    if not fine:
        raise BadParameter(name="address", value=typed, allowed=allowed)
    return url.copy_with(query=None, fragment=None)


def is_here(host: str) -> bool:
    """Whether a host is this machine, as a listener's address may be written, too."""
    try:
        address = ip_address(host)
    except ValueError:
        return host in ("", "localhost")
    return address.is_loopback or address.is_unspecified


def http_client(url: str, timeout_s: float = 30.0) -> httpx2.Client:
    """A client for a server that follows no redirect: a key is for the host that it was given for."""
    # Loopback must never go through a proxy of the environment.
    outside = not is_here(httpx2.URL(url).host)
    return httpx2.Client(trust_env=outside, timeout=timeout_s, limits=httpx2.Limits(max_connections=None))


def free_port() -> int:
    """A port on which nobody listens, for a server that cannot choose one itself and binds it seconds later.

    It lies below those that Linux, macOS and Windows give to whoever asks for any, so that nobody gets it meanwhile
    by chance. Raises OSError where none is left.
    """
    for port in random.sample(range(20_000, 32_000), 100):
        with suppress(OSError), socket.socket() as one:
            one.bind(("127.0.0.1", port))
            return port
    raise OSError("no port between 20,000 and 32,000 is free")
