"""Every run card of the learner: find one, read it, compare two, draw many, take them along, delete with undo."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import pandas as pd
import streamlit as st

from lib.course.cards import Brief, briefs, lab_title, recall, step_title, title, words_of
from lib.course.draw import chief_facts
from lib.course.export import FORMS
from lib.text import Words, load_words
from lib.ui.comparison import show_one, show_two
from lib.ui.plot import show_plot
from lib.ui.shell import enter_by_the_front_door, errors_shown, header, language, words, workbench

FOUND_FACTS = 3
# Pixels: all five stand in a line on a desk, one below the other on a phone.
FIELD = 200
PERIODS = (1, 7, 30)
_CHOSEN, _TURN, _DELETED = "measurements.chosen", "measurements.turn", "measurements.deleted"


def show() -> None:
    """Draw the page."""
    enter_by_the_front_door()
    said = words()
    header(said("measurements.title"))
    st.markdown(said("measurements.lead"))
    with errors_shown():
        everything = briefs(workbench().store, workbench().learner, _known(workbench().learner))
        _just_deleted(said)
        if everything:
            _bench(everything, said)
        else:
            st.info(said("measurements.empty"), icon=":material/science:")
            st.page_link("pages/choose.py", label=said("home.start_link"), icon=":material/arrow_forward:")
        _deletions(said)


@st.cache_resource(show_spinner=False)
def _known(learner: str) -> dict[str, Brief]:
    """What was read of a learner's cards before: a card never changes."""
    return {}


def _bench(everything: Sequence[Brief], said: Words) -> None:
    shown = _filtered(everything, said)
    here = {one.id for one in everything}
    st.session_state[_CHOSEN] = [one for one in st.session_state.get(_CHOSEN, []) if one in here]
    st.caption(said("measurements.count", shown=len(shown), all=len(everything)))
    if shown:
        _list(shown, said)
    else:
        st.info(said("measurements.nothing"), icon=":material/filter_alt_off:")
    chosen: list[str] = st.session_state[_CHOSEN]
    _actions(chosen, [one.id for one in shown], said)
    cards = workbench().store.cards_of(workbench().learner, chosen) if len(chosen) in (1, 2) else []
    runs = sorted((recall(card, language()) for card in cards), key=lambda run: run.finished_at)
    if len(runs) == 1:
        show_one(runs[0], said)
    elif len(runs) == 2:
        show_two(runs[0], runs[1], said)
    if shown:
        show_plot(shown, runs[0].step.key if runs else None, said)


def _filtered(everything: Sequence[Brief], said: Words) -> list[Brief]:
    with st.container(horizontal=True, vertical_alignment="bottom"):
        lab = _one_of(
            "lab", [one.lab for one in everything], lambda name: lab_title(name, words_of(name, language())), said
        )
        in_lab = [one for one in everything if lab in ("", one.lab)]
        step = _one_of("step", [one.key for one in in_lab], lambda key: _step_name(key, lab), said)
        model = _one_of("model", [one.model for one in in_lab if one.model], str, said)
        days = st.selectbox(
            said("measurements.period"),
            [0, *PERIODS],
            format_func=lambda days: said(f"measurements.period_{days or 'any'}"),
            key="measurements.period",
            width=FIELD,
        )
        text = st.text_input(
            said("measurements.search"),
            key="measurements.search",
            placeholder=said("measurements.search_hint"),
            max_chars=200,
            width=FIELD,
        )
    since = datetime.now(UTC) - timedelta(days=days) if days else None
    sought = text.casefold().split()
    return [
        one
        for one in in_lab
        if step in ("", one.key)
        and model in ("", one.model)
        and (since is None or one.finished_at >= since)
        and all(part in _searched(one, language()) for part in sought)
    ]


def _one_of(name: str, options: Sequence[str], readable: Callable[[str], str], said: Words) -> str:
    """A choice of one among those that occur, or "" for any of them."""
    found = sorted(set(options), key=readable)
    return st.selectbox(
        said(f"measurements.{name}"),
        ["", *found],
        format_func=lambda one: readable(one) if one else said("choices.any"),
        key=f"measurements.{name}",
        width=FIELD,
    )


def _step_name(key: str, lab: str) -> str:
    of_lab, _, step = key.partition(".")
    return step_title(of_lab, step, language()) if lab else title(of_lab, step, language())


def _list(shown: Sequence[Brief], said: Words) -> None:
    ids = [one.id for one in shown]
    about = f"{said.language} {st.session_state.get(_TURN, 0)} {''.join(ids)}"
    key = f"measurements.list.{hashlib.sha256(about.encode()).hexdigest()[:16]}"
    chosen = set(st.session_state[_CHOSEN])
    st.dataframe(
        _styled(shown, said),
        hide_index=True,
        key=key,
        on_select=lambda: _choose(key, ids),
        selection_mode="multi-row",
        selection_default={"selection": {"rows": [place for place, one in enumerate(ids) if one in chosen]}},
        height=min(420, 38 + 35 * len(shown)),
        placeholder="–",
        alt=said("measurements.title"),
    )
    st.caption(said("measurements.how"))


def _styled(shown: Sequence[Brief], said: Words) -> pd.io.formats.style.Styler:
    """The list with numbers and dates underneath, so that it sorts, and as people of the language read them."""
    when, took, off = said("measurements.when_utc"), said("measurements.took"), said("measurements.off")
    frame = pd.DataFrame(
        {
            when: [one.finished_at.replace(tzinfo=None) for one in shown],
            said("measurements.lab"): [lab_title(one.lab, words_of(one.lab, said.language)) for one in shown],
            said("measurements.step"): [step_title(one.lab, one.step, said.language) for one in shown],
            said("measurements.model"): [one.model for one in shown],
            took: [one.duration_s for one in shown],
            off: [one.error_percent for one in shown],
            said("measurements.facts"): [_found(one, said.language) for one in shown],
        }
    )
    forms = {
        when: lambda moment: _readable("", moment, said),
        took: lambda seconds: _readable("took_s", seconds, said),
        off: lambda percent: f"{'+' if percent > 0 else ''}{_readable('off_percent', percent, said)}",
    }
    return frame.style.format(forms, na_rep="–")


@lru_cache(maxsize=50_000)
def _readable(name: str, value: object, said: Words) -> str:
    """The same cells are written at every rerun."""
    return said.value(name, value)


@lru_cache(maxsize=20_000)
def _found(one: Brief, spoken: str) -> str:
    said = words_of(one.lab, spoken)
    facts = " · ".join(f"{name} {value}" for name, value in chief_facts(one.facts, said)[:FOUND_FACTS])
    return f"{said('measurements.partial')} · {facts}" if one.partial else facts


@lru_cache(maxsize=20_000)
def _searched(one: Brief, spoken: str) -> str:
    """All that a search looks through, in small letters."""
    said = words_of(one.lab, spoken)
    values = {**one.facts, **one.parameters}
    parts = [f"{name} {said.label(name)} {said.value(name, value)} {value}" for name, value in values.items()]
    return " ".join([title(one.lab, one.step, spoken), one.key, one.id, *parts]).casefold()


def _choose(key: str, ids: Sequence[str]) -> None:
    """Keep what is ticked in the list, and what was ticked before and a filter hides now."""
    listed = set(ids)
    rows = st.session_state[key]["selection"]["rows"]
    hidden = [one for one in st.session_state[_CHOSEN] if one not in listed]
    st.session_state[_CHOSEN] = hidden + [ids[row] for row in rows]


def _untick() -> None:
    st.session_state[_CHOSEN] = []
    st.session_state[_TURN] = st.session_state.get(_TURN, 0) + 1


def _actions(chosen: Sequence[str], shown: Sequence[str], said: Words) -> None:
    st.caption(_count(chosen, shown, said))
    with st.container(horizontal=True, vertical_alignment="center"):
        _downloads(chosen or shown, said)
        if chosen:
            st.button(said("measurements.unpick"), icon=":material/remove_done:", on_click=_untick)
            st.button(
                said("measurements.delete"), icon=":material/delete:", key="measurements.delete", on_click=_delete,
                args=(chosen,),
            )  # fmt: skip


def _count(chosen: Sequence[str], shown: Sequence[str], said: Words) -> str:
    if not chosen:
        return said("measurements.chosen_none", count=len(shown))
    if set(chosen) - set(shown):
        return said("measurements.chosen_hidden", count=len(chosen))
    if len(chosen) == 1:
        return said("measurements.chosen_one")
    text = said("measurements.chosen", count=len(chosen))
    return text if len(chosen) == 2 else f"{text} {said('measurements.only_two')}"


def _downloads(ids: Sequence[str], said: Words) -> None:
    """A file is made when it is asked for: one of hundreds of cards takes a while."""
    store, learner, spoken = workbench().store, workbench().learner, said.language
    with st.popover(said("measurements.download"), icon=":material/download:", disabled=not ids):
        for name, form in FORMS.items():
            st.download_button(
                said(f"measurements.download_{name}"),
                lambda form=form: form.make(  # type: ignore[misc]
                    [recall(card, spoken) for card in store.cards_of(learner, ids)], load_words(spoken)
                ),
                f"bancada-{datetime.now(UTC):%Y-%m-%d}.{form.suffix}",
                form.mime,
                key=f"measurements.download.{name}",
                on_click="ignore",
                icon=":material/download:",
                width="stretch",
            )
        st.caption(said("measurements.download_why"))


def _delete(ids: Sequence[str]) -> None:
    with errors_shown():
        store, learner = workbench().store, workbench().learner
        # What another tab has deleted meanwhile is that one's to bring back.
        here = [card.id for card in store.cards_of(learner, ids)]
        store.delete_cards(learner, here)
        st.session_state[_DELETED] = here
        _untick()


def _restore(ids: Sequence[str]) -> None:
    with errors_shown():
        workbench().store.restore_cards(workbench().learner, ids)
        st.session_state.pop(_DELETED, None)


def _just_deleted(said: Words) -> None:
    ids = st.session_state.get(_DELETED)
    if not ids:
        return
    with st.container(border=True, horizontal=True, vertical_alignment="center"):
        one = len(ids) == 1
        st.markdown(
            said("measurements.deleted_one" if one else "measurements.deleted", count=len(ids)), width="content"
        )
        st.button(
            said("undo"),
            key="measurements.undo",
            icon=":material/undo:",
            type="primary",
            on_click=_restore,
            args=(ids,),
        )


def _deletions(said: Words) -> None:
    """What can still be brought back, whichever tab or day it was deleted in."""
    deletions = workbench().store.deletions(workbench().learner)
    if not deletions:
        return
    with st.expander(said("measurements.recently"), icon=":material/restore_from_trash:"):
        st.caption(said("measurements.recently_why"))
        for moment, ids in deletions:
            with st.container(horizontal=True, vertical_alignment="center"):
                key = "measurements.deletion_one" if len(ids) == 1 else "measurements.deletion"
                st.markdown(said(key, count=len(ids), when=said.value("", moment)), width="content")
                st.button(
                    said("measurements.back"), key=f"measurements.back.{ids[0]}", icon=":material/undo:",
                    on_click=_restore, args=(ids,),
                )  # fmt: skip
