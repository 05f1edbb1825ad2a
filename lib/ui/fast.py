"""Make a page rerun as quick as its own script: no waiting for the network stack.

Streamlit 1.67 creates its listening socket without naming TCP as the protocol. asyncio therefore
does not recognise the accepted connections as TCP and leaves Nagle's algorithm on
(`asyncio.base_events._set_nodelay` asks for `proto == IPPROTO_TCP`). A rerun sends several small
messages, and each pair of them can wait for the browser's delayed acknowledgement: 40 ms.

Nothing of Streamlit is patched here: the option is set on the sockets that this process already
has. Connections accepted later inherit it from the listening socket, so doing it once is enough.
The other half, a full garbage collection after every run, is switched off in
`.streamlit/config.toml` (`runner.postScriptGC`). `tests/bench/reruns.py` measures both.
"""

import functools
import gc
import socket

from streamlit import config


@functools.cache
def speed_up_reruns() -> None:
    """Send small messages at once on every connection of this server; call it from `app.py`.

    Does nothing where Streamlit runs under another server (AppTest, a Unix socket), and is free
    after its first call. The walk over all objects takes 10 to 50 ms, once in a server's life.
    """
    port = config.get_option("server.port")
    for thing in gc.get_objects():
        # type(), not isinstance(): some libraries' lazy objects import half the world when asked.
        if type(thing) is socket.socket and _serves(thing, port):
            thing.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _serves(sock: socket.socket, port: int) -> bool:
    """Is this an open socket of the page's own server: its listener, or a browser's connection?"""
    try:
        return (
            sock.family in (socket.AF_INET, socket.AF_INET6)
            and sock.type == socket.SOCK_STREAM
            and sock.getsockname()[1] == port
        )
    except OSError:  # closed in the meantime
        return False
