"""What every page shares: the workbench, the language, the navigation, the error card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import streamlit as st

from lib.background import Background
from lib.course.run import BackgroundRuns
from lib.errors import BancadaError
from lib.settings import Settings
from lib.text import LANGUAGES, Words, load_words
from lib.workbench import Workbench

PAGES = (("home", "pages/home.py", ":material/home:"), ("choose", "pages/choose.py", ":material/straighten:"))


@st.cache_resource(show_spinner=False)
def workbench() -> Workbench:
    """The workbench of this server."""
    return Workbench(Settings())


@st.cache_resource(show_spinner=False)
def runs() -> BackgroundRuns:
    """The runs of this server: they outlive the tab that started them."""
    return BackgroundRuns()


@st.cache_resource(show_spinner=False)
def tasks() -> dict[str, Background[None]]:
    """Other work of this server by name, as the arrival of the default model."""
    return {}


def language() -> str:
    """The learner's choice, else the setting, else the browser's language."""
    chosen = st.session_state.get("lang")
    if chosen in LANGUAGES:
        return str(chosen)
    preferred = workbench().settings.language or (st.context.locale or "en")[:2].lower()
    return preferred if preferred in LANGUAGES else "en"


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


def open_house() -> None:
    """Set the page up, draw the navigation, run the page."""
    st.set_page_config(page_title="Bancada", page_icon=":material/precision_manufacturing:", layout="wide")
    first = language()
    said = load_words(first)
    pages = [
        st.Page(path, title=said(f"pages.{name}"), icon=icon, default=name == "home", url_path=name)
        for name, path, icon in PAGES
    ]
    page = st.navigation(pages)
    with st.sidebar:
        st.segmented_control(
            said("language"),
            list(LANGUAGES),
            format_func=LANGUAGES.__getitem__,
            default=first,
            required=True,
            key="lang",
            bind="query-params",
        )
    page.run()
