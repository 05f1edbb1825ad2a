"""Addresses of servers: what the learner typed, made whole, and whether it is this machine."""

from __future__ import annotations

from ipaddress import ip_address

import httpx2

from lib.errors import BadParameter


def base_url(typed: str) -> str:
    """The address under which an OpenAI API answers: a scheme and ``/v1`` are added where none is given.

    Raises BadParameter.
    """
    text = typed.strip()
    try:
        url = httpx2.URL(text if "://" in text else f"http://{text}")
    except (httpx2.InvalidURL, ValueError) as error:
        raise BadParameter(name="address", value=typed, allowed="http://host:port/v1") from error
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65535 or " " in text:
        raise BadParameter(name="address", value=typed, allowed="http://host:port/v1")
    path = url.path.rstrip("/")
    return str(url.copy_with(path=path or "/v1", query=None, fragment=None))


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
