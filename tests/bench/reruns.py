"""Measure page reruns over a real websocket: stock Streamlit against this workbench's settings.

    python tests/bench/reruns.py [--rounds 5] [--page plain|figure|house]

Both servers run the same small page, started by `streamlit run app.py` on loopback: one with an
empty configuration, one with `.streamlit/config.toml` and `lib.ui.fast`. Rounds alternate between
them, so that a neighbour's load falls on both. A rerun is what a learner's click costs: from
sending the widget's new value to Streamlit's "script finished", every message in between read.

Prints one JSON line. Times in ms, rates in reruns/s, memory in MiB of resident size.
"""

import argparse
import asyncio
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

REPOSITORY = Path(__file__).resolve().parents[2]
SESSIONS = 30

PLAIN = """
import streamlit as st
st.title("Estimate memory")
st.markdown("How much memory does a model need? Predict first.")
tokens = st.slider("Context", 0, 100000, 1024)
left, right = st.columns(2)
left.metric("Weights", "98 MiB")
right.metric("KV cache", f"{tokens * 23040 / 2**20:.1f} MiB")
st.code("def kv(tokens): return tokens * 23040")
st.button("Run")
"""

FIGURE = (
    PLAIN
    + """
import pandas as pd
import plotly.graph_objects as go
steps = list(range(0, 20))
size = [tokens * step * 23040 / 2**20 for step in steps]
st.dataframe(pd.DataFrame({"step": steps, "MiB": size}))
st.plotly_chart(go.Figure(go.Scatter(x=steps, y=size)))
"""
)
# The same page in a process that has imported what the real pages import.
HOUSE = "import lib.ui.shell, lib.ui.lab\n" + PLAIN
PAGES = {"plain": PLAIN, "figure": FIGURE, "house": HOUSE}
FAST = "from lib.ui.fast import speed_up_reruns\nspeed_up_reruns()\n"


@dataclass(frozen=True)
class App:
    """A running Streamlit server."""

    port: int
    process: psutil.Process

    def rss_mib(self) -> float:
        """Resident memory of the server."""
        return float(self.process.memory_info().rss) / 2**20


@dataclass(frozen=True)
class Visitor:
    """One browser tab: its connection and the id of the slider it moves."""

    websocket: ClientConnection
    slider: str

    async def rerun(self, value: int) -> float:
        """Move the slider and read until the script has finished; returns seconds."""
        message = BackMsg()
        state = message.rerun_script.widget_states.widgets.add()
        state.id = self.slider
        state.double_array_value.data.append(value)
        started = time.perf_counter()
        await self.websocket.send(message.SerializeToString())
        await _until_finished(self.websocket)
        return time.perf_counter() - started


async def _until_finished(websocket: ClientConnection) -> list[ForwardMsg]:
    messages = []
    while True:
        data = await websocket.recv()
        assert isinstance(data, bytes)
        message = ForwardMsg.FromString(data)
        messages.append(message)
        if message.WhichOneof("type") == "script_finished":
            if message.script_finished != ForwardMsg.FINISHED_SUCCESSFULLY:
                raise RuntimeError(f"the page ended with {message.script_finished}")
            if any(m.delta.new_element.HasField("exception") for m in messages):
                raise RuntimeError("the page raised an exception")
            return messages


async def _visit(app: App) -> Visitor:
    websocket = await connect(
        f"ws://127.0.0.1:{app.port}/_stcore/stream",
        subprotocols=[Subprotocol("streamlit")],
        max_size=None,
        compression=None,
    )
    message = BackMsg()
    message.rerun_script.query_string = ""
    await websocket.send(message.SerializeToString())
    seen = await _until_finished(websocket)
    sliders = [m.delta.new_element.slider.id for m in seen if m.delta.new_element.slider.id]
    return Visitor(websocket, sliders[0])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def _server(page: str, *, ours: bool) -> Iterator[App]:
    """Run `streamlit run app.py` in a fresh folder and a fresh home, as on a new machine."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "app.py").write_text(FAST + page if ours else page, encoding="utf-8")
        (place / "home").mkdir()
        if ours:
            shutil.copytree(REPOSITORY / ".streamlit", place / ".streamlit")
        environment = os.environ | {
            "HOME": str(place / "home"),
            "PYTHONPATH": str(REPOSITORY),
            "STREAMLIT_SERVER_PORT": str(port),
            "STREAMLIT_SERVER_HEADLESS": "true",
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "streamlit", "run", "app.py"],
            cwd=place,
            env=environment,
            stdout=subprocess.DEVNULL,
        )
        try:
            _wait_for(port)
            yield App(port, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(timeout=20)


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("the page's server did not start")


async def _one_session(visitor: Visitor, reruns: int) -> float:
    """Median ms of reruns, one after the other."""
    return 1000 * statistics.median([await visitor.rerun(i + 1) for i in range(reruns)])


async def _class(visitors: list[Visitor], seconds: float) -> float:
    """Reruns/s while every visitor clicks as fast as the page answers."""
    started = time.perf_counter()

    async def click(visitor: Visitor) -> int:
        count = 0
        while time.perf_counter() - started < seconds:
            count += 1
            await visitor.rerun(count)
        return count

    counts = await asyncio.gather(*map(click, visitors))
    return sum(counts) / (time.perf_counter() - started)


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "min": round(min(values), 2),
        "max": round(max(values), 2),
    }


async def _measure(apps: dict[str, App], rounds: int) -> dict[str, object]:
    first = {name: await _visit(app) for name, app in apps.items()}
    for visitor in first.values():
        await _one_session(visitor, 20)
    before = {name: app.rss_mib() for name, app in apps.items()}
    everyone = {name: [first[name], *[await _visit(app) for _ in range(SESSIONS - 1)]] for name, app in apps.items()}
    per_session = {name: (app.rss_mib() - before[name]) / (SESSIONS - 1) for name, app in apps.items()}
    single: dict[str, list[float]] = {name: [] for name in apps}
    rate: dict[str, list[float]] = {name: [] for name in apps}
    for _ in range(rounds):
        for name in apps:
            single[name].append(await _one_session(first[name], 40))
        for name in apps:
            rate[name].append(await _class(everyone[name], 3))
    return {
        "rerun_ms": {name: _spread(values) for name, values in single.items()},
        "rerun_ratio": _spread([b / a for a, b in zip(*single.values(), strict=True)]),
        "reruns_per_s": {name: _spread(values) for name, values in rate.items()},
        "reruns_per_s_ratio": _spread([b / a for a, b in zip(*rate.values(), strict=True)]),
        "mib_per_extra_session": {name: round(mib, 2) for name, mib in per_session.items()},
        "mib_at_end": {name: round(app.rss_mib(), 1) for name, app in apps.items()},
    }


def main() -> None:
    """Start both servers, measure, print one JSON line."""
    # So that a terminated run ends the processes it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", choices=PAGES, default="plain")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        apps = {
            name: stack.enter_context(_server(PAGES[arguments.page], ours=name == "ours")) for name in ("stock", "ours")
        }
        result = asyncio.run(_measure(apps, arguments.rounds))
    print(json.dumps({"page": arguments.page, "sessions": SESSIONS, "rounds": arguments.rounds} | result))


if __name__ == "__main__":
    main()
