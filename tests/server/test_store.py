"""The database, with real processes that write at once, are killed, and hold locks."""

from __future__ import annotations

import random
import uuid
from contextlib import closing
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import sqlalchemy
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from lib.errors import CannotWrite, DatabaseBusy, NotADatabase
from lib.store import KEPT_DELETED, MIGRATIONS, RunCard, Store, sqlite
from lib.store.tables import Base, now
from tests.server.helpers import Start


def write_cards(url: str, learner: str, count: int, wire: Connection) -> None:
    """Open the store, wait for the word, and send each card's id after its commit."""
    store = Store(url, busy_s=60)
    wire.send("open")
    wire.recv()
    for _ in range(count):
        wire.send(store.add_card(card(learner)))


def answer_often(url: str, count: int, wire: Connection) -> None:
    store = Store(url, busy_s=60)
    wire.send("open")
    wire.recv()
    for _ in range(count):
        store.answer("me", "lab", "question", "a", True)
    wire.send("done")


def hold(path: str, wire: Connection) -> None:
    """Lock the whole database until told to go."""
    connection = sqlite.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    wire.send("held")
    wire.recv()
    connection.close()


HOSTILE = [
    "'; DROP TABLE run_cards; --",
    "\"double\" and 'single'",
    "a\x00b",
    "é" * 100_000,
    "🦙🏽‍♂️ ‮right to left",
    "line\r\nline\ttab\\n",
    "%s %(x)s {0} ${y} :name ?",
    "",
]


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'home' / 'bancada.db'}"


def card(learner: str = "me", **other: object) -> RunCard:
    values = {
        "parameters": {},
        "result": "{}",
        "versions": {},
        "machine": {},
        "duration_s": 1.0,
        "lab": "l",
        "step": "s",
    }
    return RunCard(**({"id": uuid.uuid4().hex, "learner": learner} | values | other))


def test_cards_that_eight_processes_write_at_once_all_survive(url: str, start: Start) -> None:
    writers = [start(write_cards, url, f"learner {number}", 50) for number in range(8)]
    for writer in writers:
        assert writer.says() == "open"
    for writer in writers:
        writer.go()
    written = [writer.rest() for writer in writers]
    with closing(Store(url)) as store:
        for number, ids in enumerate(written):
            assert len(ids) == 50
            assert {one.id for one in store.cards(f"learner {number}")} == set(ids)


def test_a_writer_that_is_killed_loses_no_row_that_it_acknowledged(url: str, start: Start) -> None:
    pick = random.Random(7)
    acknowledged: set[str] = set()
    with closing(Store(url)):
        pass
    for _ in range(5):
        writers = [start(write_cards, url, "me", 100_000) for _ in range(4)]
        for writer in writers:
            assert writer.says() == "open"
            writer.go()
        for writer in writers:
            acknowledged |= {writer.says() for _ in range(pick.randrange(1, 12))}
            writer.end()
            acknowledged |= set(writer.rest())
    assert len(acknowledged) >= 20
    with closing(Store(url)) as store:
        assert acknowledged <= {one.id for one in store.cards("me", limit=1_000_000)}
    with closing(sqlite.connect(url.removeprefix("sqlite:///"))) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_every_attempt_counts_when_processes_answer_the_same_question_at_once(url: str, start: Start) -> None:
    answerers = [start(answer_often, url, 20) for _ in range(4)]
    for answerer in answerers:
        assert answerer.says() == "open"
    for answerer in answerers:
        answerer.go()
    assert [answerer.rest() for answerer in answerers] == [["done"]] * 4
    with closing(Store(url)) as store:
        assert store.answers("me", "lab")["question"].attempts == 80


@pytest.mark.parametrize("content", [b"This is a letter to my aunt.\n" * 200, bytes(range(256)) * 64])
def test_a_file_that_is_no_database_is_named_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bancada.db"
    path.write_bytes(content)
    with pytest.raises(NotADatabase) as caught:
        Store(f"sqlite:///{path}")
    assert str(path) in str(caught.value.parameters["path"])
    assert path.read_bytes() == content


def test_a_database_with_torn_pages_ends_in_an_error_of_ours(tmp_path: Path, url: str) -> None:
    with closing(Store(url)) as store:
        for number in range(200):
            store.add_card(card(result=f'{{"n": "{number:0500}"}}'))
    path = Path(url.removeprefix("sqlite:///"))
    content = bytearray(path.read_bytes())
    content[4096 * 3 :] = b"\xa5" * (len(content) - 4096 * 3)
    path.write_bytes(content)
    with pytest.raises((NotADatabase, CannotWrite)), closing(Store(url)) as store:
        store.cards("me")


def test_a_database_that_is_locked_for_longer_than_the_patience_is_busy(url: str, start: Start) -> None:
    with closing(Store(url, busy_s=0.2)) as store:
        path = url.removeprefix("sqlite:///")
        holder = start(hold, path)
        assert holder.says() == "held"
        with pytest.raises(DatabaseBusy) as caught:
            store.add_card(card())
        assert caught.value.parameters["path"] == path
        with pytest.raises(DatabaseBusy):
            store.answer("me", "l", "q", "a", True)
        holder.go()
        holder.process.join()
        assert store.add_card(card())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(CannotWrite) as caught:
        Store(f"sqlite:///{tmp_path / 'file' / 'home' / 'bancada.db'}")
    assert str(tmp_path / "file") in str(caught.value.parameters["path"])


def test_a_folder_in_the_databases_place_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotWrite) as caught:
        Store(f"sqlite:///{tmp_path}")
    assert caught.value.parameters["path"] == str(tmp_path)


@pytest.mark.parametrize(
    "address", ["garbage", "nosuchkind://me:hush@localhost/db", "postgresql://me:hush@host:x/db", ""]
)
def test_an_address_that_names_no_database_is_an_error_without_its_password(address: str) -> None:
    with pytest.raises(CannotWrite) as caught:
        Store(address)
    assert "hush" not in str(caught.value)


def test_processes_that_open_a_new_database_at_once_all_get_it(url: str, start: Start) -> None:
    openers = [start(write_cards, url, f"learner {number}", 1) for number in range(4)]
    for opener in openers:
        assert opener.says() == "open"
        opener.go()
    written = [opener.rest() for opener in openers]
    with closing(Store(url)) as store:
        assert [[one.id for one in store.cards(f"learner {number}")] for number in range(4)] == written


def alembic_over(connection: sqlalchemy.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def test_the_migrations_build_exactly_what_the_models_declare_and_can_be_undone(tmp_path: Path) -> None:
    engine = sqlalchemy.create_engine(f"sqlite:///{tmp_path / 'new.db'}")
    with engine.connect() as connection:
        command.upgrade(alembic_over(connection), "head")
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == []
        built = {table: sqlalchemy.inspect(connection).get_indexes(table) for table in Base.metadata.tables}
        assert [one["name"] for one in built["run_cards"]] == ["ix_run_cards_learner_lab_step"]
        command.downgrade(alembic_over(connection), "base")
        assert set(sqlalchemy.inspect(connection).get_table_names()) == {"alembic_version"}
        command.upgrade(alembic_over(connection), "head")
    engine.dispose()


def test_all_of_a_learners_cards_of_a_lab_are_counted(url: str) -> None:
    with closing(Store(url)) as store:
        for _ in range(203):  # more than are read at once
            store.add_card(card("me"))
        store.add_card(card("me", lab="another"))
        store.add_card(card("somebody else"))
        assert store.count_cards("me", "l") == 203
        assert store.count_cards("nobody", "l") == 0


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_comes_back_as_it_was(url: str, text: str) -> None:
    with closing(Store(url)) as store:
        kept = store.add_card(card(learner=text, lab=text, step=text, parameters={text: text}, result=text))
        store.answer(text, text, text, text, False)
    with closing(Store(url)) as store:
        (found,) = store.cards(text, text, text)
        assert (found.id, found.parameters, found.result) == (kept, {text: text}, text)
        assert store.steps_done(text, text) == {text}
        (answer,) = store.answers(text, text).values()
        assert (answer.given, answer.correct, answer.attempts) == (text, False, 1)


def ids_of(store: Store, learner: str = "me") -> list[str]:
    return [one.id for one in store.cards(learner)]


def test_deleted_cards_are_seen_no_more_and_come_back_as_they_were(url: str) -> None:
    with closing(Store(url)) as store:
        kept, gone = store.add_card(card()), store.add_card(card(parameters={"a": [1]}, result='{"x": 1}', step="t"))
        assert store.delete_cards("me", [gone, "unknown", gone]) == 1
        assert ids_of(store) == store.card_ids("me") == [kept]
        assert [one.id for one in store.cards_of("me", [gone, kept])] == [kept]
        assert store.count_cards("me", "l") == 1
        assert store.steps_done("me", "l") == {"s", "t"}, "who tidies up has still done the step"
        assert store.delete_cards("me", [gone]) == 0
    with closing(Store(url)) as store:
        ((_, deleted),) = store.deletions("me")
        assert deleted == [gone]
        assert store.restore_cards("me", [gone, "unknown", kept]) == 1
        assert set(ids_of(store)) == {kept, gone} and store.deletions("me") == []
        (back,) = store.cards_of("me", [gone])
        assert (back.parameters, back.result, back.deleted_at) == ({"a": [1]}, '{"x": 1}', None)


def test_nobody_deletes_or_restores_the_cards_of_another(url: str) -> None:
    with closing(Store(url)) as store:
        mine, theirs = store.add_card(card("me")), store.add_card(card("somebody else"))
        assert store.delete_cards("me", [theirs]) == 0
        assert ids_of(store, "somebody else") == [theirs]
        assert store.cards_of("me", [theirs]) == []
        store.delete_cards("somebody else", [theirs])
        assert store.restore_cards("me", [theirs]) == 0
        assert store.deletions("me") == [] and ids_of(store, "somebody else") == [] and ids_of(store) == [mine]


def test_what_was_deleted_together_comes_back_together_the_last_deletion_first(url: str) -> None:
    with closing(Store(url)) as store:
        ids = [store.add_card(card()) for _ in range(5)]
        store.delete_cards("me", ids[:2])
        store.delete_cards("me", ids[2:4])
        (late, second), (early, first) = store.deletions("me")
        assert set(second) == set(ids[2:4]) and set(first) == set(ids[:2]) and late > early
        assert late.tzinfo is not None


def test_what_was_deleted_long_ago_is_wiped_at_the_next_deletion_and_the_step_stays_done(url: str) -> None:
    with closing(Store(url)) as store:
        old, new = store.add_card(card(result='{"secret": 1}', step="old")), store.add_card(card())
        store.delete_cards("me", [old])
        with store._session() as session:
            row = session.get_one(RunCard, old)
            row.deleted_at = now() - KEPT_DELETED - timedelta(seconds=1)
        assert store.deletions("me") == [] and store.restore_cards("me", [old]) == 0
        store.delete_cards("me", [new])
        with store._session() as session:
            row = session.get_one(RunCard, old)
            assert (row.result, row.parameters, row.machine, row.versions) == ("", {}, {}, {})
        assert store.restore_cards("me", [old, new]) == 1 and ids_of(store) == [new]
        assert store.steps_done("me", "l") == {"old", "s"}


def test_more_cards_than_a_statement_takes_values_are_read_deleted_and_restored(url: str) -> None:
    with closing(Store(url)) as store:
        kept = [store.add_card(card()) for _ in range(3)]
        many = [f"unknown {number}" for number in range(260_000)]  # SQLite may take 250,000
        assert [one.id for one in store.cards_of("me", [*kept[:1], *many, *kept[1:]])] == kept
        assert store.delete_cards("me", [*many, *kept]) == 3
        assert store.restore_cards("me", [*many, *kept]) == 3


def test_a_database_of_the_version_before_keeps_its_cards_and_can_delete_them(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        command.upgrade(alembic_over(connection), "0002")
        columns = {one["name"] for one in sqlalchemy.inspect(connection).get_columns("run_cards")}
        assert "deleted_at" not in columns
        connection.execute(
            sqlalchemy.text(
                "INSERT INTO run_cards (id, learner, lab, step, parameters, result, versions, machine, duration_s,"
                " finished_at) VALUES ('old', 'me', 'l', 's', '{\"a\": 1}', '{}', '{}', '{}', 1.5, '2026-01-02 03:04:05')"
            )
        )
        connection.commit()
    engine.dispose()
    with closing(Store(f"sqlite:///{path}")) as store:
        (found,) = store.cards("me")
        assert (found.id, found.parameters, found.duration_s, found.deleted_at) == ("old", {"a": 1}, 1.5, None)
        assert store.delete_cards("me", ["old"]) == 1 and ids_of(store) == []
