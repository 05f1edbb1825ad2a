"""The first screen: what is this, what is my machine, where do I start, and a model to talk to."""

from __future__ import annotations

import streamlit as st

from lib.engines.chat import Reply, stream_chat
from lib.errors import BancadaError
from lib.text import Words
from lib.ui.model import is_ready, show_arrival
from lib.ui.shell import LABS, enter_by_the_front_door, errors_shown, header, show_error, words, workbench

MAX_TOKENS = 300
MAX_CHARACTERS = 4000
REMEMBERED_TURNS = 6
# A person sees no more than this, and every redraw costs the model's cores.
REDRAW_S = 0.06


def show() -> None:
    """Draw the page."""
    enter_by_the_front_door()
    said = words()
    header(said("home.title"))
    st.markdown(said("home.lead"))
    with errors_shown():
        _machine(said)
    left, right = st.columns([2, 3], gap="large")
    with left:
        _start(said)
    with right, errors_shown():
        _chat(said)


def _start(said: Words) -> None:
    with st.container(border=True):
        st.subheader(said("home.start"), anchor=False)
        st.markdown(said("home.start_text"))
        st.page_link("pages/choose.py", label=said("home.start_link"), icon=":material/arrow_forward:")
        st.markdown(said("home.then"))
        for name in LABS[1:]:
            st.page_link(f"pages/{name}.py", label=said(f"pages.{name}"), icon=":material/arrow_forward:")


def _machine(said: Words) -> None:
    with st.spinner(said("home.looking")):
        seen = workbench().machine
    gpus = ", ".join(gpu.name for gpu in seen.gpus) or said("none")
    with st.container(border=True):
        st.markdown(f"**{said('home.machine')}** · {seen.cpu}")
        with st.container(horizontal=True, gap="large"):
            st.metric(said.label("cores"), said.number(seen.cores), width="content")
            st.metric(said.label("memory_bytes"), said.size(seen.memory_bytes), width="content")
            st.metric(said.label("disk_free_bytes"), said.size(seen.disk_free_bytes), width="content")
            st.metric("GPU", gpus, width="content")
            st.metric(said.label("tier"), said.choice(seen.tier, "tier"), width="content")
        sets = ", ".join(seen.instruction_sets) or said("none")
        st.caption(f"{said.label('instruction_sets')}: {sets}. {said(f'home.tier_{seen.tier}')}")


def _chat(said: Words) -> None:
    model = workbench().settings.default_model
    st.subheader(said("home.chat", model=model), anchor=False)
    ready = is_ready()
    if not ready:
        show_arrival(said)
    history: list[tuple[str, Reply, BancadaError | None]] = st.session_state.setdefault("history", [])
    talk = st.container(height=330, border=True, autoscroll=True)
    with talk:
        if not history:
            st.markdown(said("home.chat_hint"))
        for question, reply, error in history:
            _turn(question, reply, error, said)
    suggestion = None
    if not history:
        suggested = [said(f"home.suggestion_{n}") for n in (1, 2, 3)]
        suggestion = st.pills(said("home.suggestions"), suggested, key="suggestion", wrap=True)
    # It stays while the model is on its way: what is half typed is not lost when the engine has to come back.
    typed = st.chat_input(said("home.ask"), max_chars=MAX_CHARACTERS, submit_mode="stop", key="ask", disabled=not ready)
    # A question asked while the engine was gone without the page knowing it waits for the engine.
    asked = typed or suggestion or st.session_state.pop("waiting_question", None)
    if asked and not ready:
        st.session_state["waiting_question"] = asked
    elif asked:
        _answer(asked, history, talk, said)
        st.rerun()
    if history and st.button(said("home.clear"), icon=":material/delete_sweep:"):
        st.session_state["cleared"] = history
        st.session_state["history"] = []
        st.rerun()
    if not history and st.session_state.get("cleared") and st.button(said("undo"), icon=":material/undo:"):
        st.session_state["history"] = st.session_state.pop("cleared")
        st.rerun()


def _turn(question: str, reply: Reply, error: BancadaError | None, said: Words) -> None:
    with st.chat_message("user"):
        st.text(question)
    with st.chat_message("assistant", avatar=":material/precision_manufacturing:"):
        # Plain text: a model's output is data, not markup.
        st.text(reply.text)
        _numbers(reply, None, said)
        if error is not None:
            show_error(error, said)


def _answer(question: str, history: list[tuple[str, Reply, BancadaError | None]], talk: object, said: Words) -> None:
    model, engine = workbench().settings.default_model, workbench().engine("embedded")
    messages = [
        {"role": role, "content": content}
        for asked, reply, error in history[-REMEMBERED_TURNS:]
        if error is None
        for role, content in (("user", asked), ("assistant", reply.text))
    ]
    messages.append({"role": "user", "content": question})
    history.append((question, Reply(), None))
    with talk:  # type: ignore[attr-defined]
        with st.chat_message("user"):
            st.text(question)
        with st.chat_message("assistant", avatar=":material/precision_manufacturing:"):
            text, numbers = st.empty(), st.empty()
            text.caption(said("home.thinking"))
            try:
                drawn = 0.0
                for reply in stream_chat(engine.client(model), model, messages, max_tokens=MAX_TOKENS, temperature=0.7):
                    # Kept at once: a stop or a closed tab ends the script between two pieces.
                    history[-1] = (question, reply, None)
                    if reply.duration_s - drawn < REDRAW_S and reply.finish is None:
                        continue
                    drawn = reply.duration_s
                    text.text(reply.text)
                    with numbers:
                        _numbers(reply, engine.status().memory_bytes, said)
            except BancadaError as error:
                history[-1] = (question, history[-1][1], error)


def _numbers(reply: Reply, memory_bytes: int | None, said: Words) -> None:
    parts = []
    if reply.ttft_s is not None:
        parts.append(f"TTFT {said.value('ttft_s', reply.ttft_s)}")
    if reply.decode_tokens_per_s is not None:
        parts.append(said.value("decode_tokens_per_s", reply.decode_tokens_per_s))
    if reply.completion_tokens:
        parts.append(said.value("completion_tokens", reply.completion_tokens))
    if memory_bytes is not None:
        parts.append(f"{said('home.engine_memory')} {said.size(memory_bytes)}")
    if reply.finish == "length":
        parts.append(said("home.cut"))
    st.caption(" · ".join(parts) or "…")
