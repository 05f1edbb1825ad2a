"""What every page shares: the workbench, the language, the navigation, the error card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import streamlit as st
from pydantic import ValidationError

from lib.background import Background
from lib.errors import BadParameter, BancadaError
from lib.jobs import Jobs
from lib.settings import Settings
from lib.text import LANGUAGES, Words, load_words
from lib.workbench import Workbench

# A :material/…: icon here would be fetched from a font server, and this machine may have no network.
ICON = Path(__file__).parent.parent.parent / "data" / "icon.png"
LABS = ("choose", "quantize", "convert", "ollama", "foundry", "compare")
PAGES = ("home", *LABS, "queue", "measurements")


@st.cache_resource(show_spinner=False)
def workbench() -> Workbench:
    """The workbench of this server."""
    return Workbench(Settings())


@st.cache_resource(show_spinner=False)
def jobs() -> Jobs:
    """The jobs of this machine: they outlive the tab that asked for them."""
    made = Jobs(workbench())
    made.start_watching()
    return made


@st.cache_resource(show_spinner=False)
def tasks() -> dict[str, Background[None]]:
    """Other work of this server by name, as the arrival of the default model."""
    return {}


def language() -> str:
    """The address's ``?lang=``, else the learner's choice, else the setting, else the browser's language."""
    asked = st.query_params.get("lang")
    if asked in LANGUAGES:
        st.session_state["lang"] = asked
    chosen = st.session_state.get("lang") or workbench().settings.language or (st.context.locale or "en")[:2].lower()
    return chosen if chosen in LANGUAGES else "en"


def words() -> Words:
    """The shared words in the learner's language."""
    return load_words(language())


def is_dark() -> bool:
    """Whether the page is dark now."""
    return st.context.theme.type == "dark"


def show_error(error: BancadaError, said: Words | None = None) -> None:
    """One error, one card: what happened, why, and what repairs it."""
    what, why, repair = (said or words()).error(error)
    st.error(f"**{what}**  \n{why}\n\n{repair}", icon=":material/error:")


@contextmanager
def errors_shown() -> Iterator[None]:
    """Turn an error of ours inside the block into its card."""
    try:
        yield
    except BancadaError as error:
        show_error(error)


def header(title: str) -> None:
    """The page's title with the choice of language beside it."""
    with st.container(horizontal=True, horizontal_alignment="distribute", vertical_alignment="center"):
        st.title(title, anchor=False, width="content")
        st.segmented_control(
            words()("language"),
            list(LANGUAGES),
            format_func=LANGUAGES.__getitem__,
            default=language(),
            required=True,
            key="language",
            on_change=_change_language,
            label_visibility="collapsed",
        )


def open_house() -> None:
    """Set the page up, draw the navigation, run the page."""
    global _is_open
    _is_open = True
    st.set_page_config(page_title="Bancada", page_icon=str(ICON), layout="wide")
    _stop_on_wrong_settings()
    jobs()
    st.html(_STYLE)
    st.navigation(_pages(), position="top").run()


def enter_by_the_front_door() -> None:
    """Let ``app.py`` run first; every page calls this.

    Until a server has run ``app.py`` once, Streamlit answers a direct link to a page by running
    that page's file alone, without the house around it.
    """
    global _is_open
    if not _is_open:
        _is_open = True
        st.navigation(_pages(), position="hidden")
        st.rerun()


_is_open = False


def _pages() -> list[st.Page]:
    said = words()
    return [
        st.Page(f"pages/{name}.py", title=said(f"pages.{name}"), default=name == "home", url_path=name)
        for name in PAGES
    ]


def _stop_on_wrong_settings() -> None:
    try:
        workbench()
    except ValidationError as wrong:
        said = load_words("en")
        for one in wrong.errors():
            name = f"BANCADA_{'_'.join(map(str, one['loc'])).upper()}"
            show_error(BadParameter(name=name, value=one["input"], allowed=one["msg"]), said)
        st.stop()


def _change_language() -> None:
    st.session_state["lang"] = st.query_params["lang"] = st.session_state["language"]


# Streamlit writes white on the primary colour whatever that is, and leaves the height of a
# screen's tenth above the title. Choices that do not fit in a line go on in the next.
# A formula in a narrow column wraps instead of hiding its end.
_STYLE = """<style>
[data-testid^="stBaseButton-primary"] { color: light-dark(#FFFFFF, #0B1118); }
[data-testid="stMainBlockContainer"] { padding-top: 4.5rem; }
[data-testid="stButtonGroup"] > div { flex-wrap: wrap; }
[data-testid="stMarkdownContainer"] pre, [data-testid="stMarkdownContainer"] pre * { white-space: pre-wrap !important; }
</style>"""
