"""Long steps as jobs: real processes that ask at once, are cancelled, and are killed with SIGKILL."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest

import labs
from lib.course.lab import Step
from lib.course.labs import find_step
from lib.course.result import Progress, Result
from lib.course.run import execute, perform
from lib.errors import JobDied, ModelTooLarge, Unforeseen
from lib.jobs import Job, Jobs
from lib.jobs.processes import settings_as_json, settings_from_json
from lib.settings import Settings
from lib.store import RunCard, Store
from lib.text import LANGUAGES, load_words
from lib.workbench import Workbench
from tests.server.helpers import (
    PATIENCE_S,
    ROOT,
    Start,
    end,
    engine_children,
    is_alive,
    read_line,
    start_python,
    wait_until,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has other ways to end a process")

DRILLS = Path(__file__).parent / "drills"
# Ten seconds are promised, however it ends; two cores that are busy with other tests get more.
RESOLVED_S = 60.0
APP = """
import time
from lib.jobs import Jobs
from lib.workbench import Workbench

Jobs(Workbench.open(_env_file=None)).start_watching()
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def drill(monkeypatch: pytest.MonkeyPatch) -> Step:
    """The step that only tests know, found by this process and by every one that it starts."""
    monkeypatch.setattr(labs, "__path__", [*labs.__path__, str(DRILLS / "labs")])
    monkeypatch.setenv("PYTHONPATH", f"{DRILLS}{os.pathsep}{ROOT}")
    return find_step("drill.work")


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Workbench]:
    made = Workbench.open(home=tmp_path / "home", language="en", _env_file=None)
    yield made
    made.close()
    made.store.close()


@pytest.fixture
def jobs(bench: Workbench) -> Iterator[Jobs]:
    """Jobs that nobody runs until somebody watches; whatever runs then ends with the test."""
    made = Jobs(bench)
    yield made
    made.close()


@pytest.fixture
def start_app(bench: Workbench) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts what stands for an app: a process that watches over the jobs of the same home."""
    with ExitStack() as stack:

        def one() -> subprocess.Popen[str]:
            environment = {"BANCADA_HOME": str(bench.settings.home), "PYTHONPATH": os.environ["PYTHONPATH"]}
            process = start_python("-c", APP, environment=environment)
            stack.callback(end, process)
            assert read_line(process.stdout) == "up"
            return process

        yield one


def below(pid: int, module: str) -> list[psutil.Process]:
    """The living processes below one that run a module."""
    found = []
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.Error):
                if module in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                    found.append(child)
    return found


def worker_of(pid: int) -> psutil.Process:
    """The worker that an app has started."""
    return wait_until("a worker", lambda: below(pid, "lib.jobs.worker"))[0]


def at_work(jobs: Jobs, job: Job) -> int:
    """Wait until the job's step has begun; the process it runs in."""
    wait_until("the step has begun", lambda: jobs.get(job.id).raw_progress)
    pid = jobs._table.get(job.id).row.pid
    assert pid is not None and is_alive(pid)
    return pid


def state(jobs: Jobs, job: Job, learner: str | None = None) -> str:
    return jobs.get(job.id, learner).state


def ended(jobs: Jobs, job: Job, seconds: float = PATIENCE_S) -> Job:
    wait_until("the job has ended", lambda: not jobs.get(job.id).active, seconds)
    return jobs.get(job.id)


def trace(bench: Workbench) -> list[tuple[str, str, float]]:
    """What the drill's steps wrote: start or end, tag, when."""
    path = bench.settings.home / "trace.txt"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(kind, tag, float(when)) for kind, tag, when in (line.split(" ") for line in lines)]


def starts(bench: Workbench) -> list[str]:
    return [tag for kind, tag, _ in trace(bench) if kind == "start"]


# Asking.


def ask(home: str, learner: str, prediction: float, wire: Connection) -> None:
    """Open everything, wait for the word, and ask for the same as all others."""
    labs.__path__.append(str(DRILLS / "labs"))
    bench = Workbench.open(home=Path(home), _env_file=None)
    # Thirty who write at once, on a disk that may be busy.
    bench.store = Store(bench.settings.store_url, busy_s=60)
    jobs, step = Jobs(bench), find_step("drill.work")
    assert jobs.active() == ()
    wire.send("open")
    wire.recv()
    wire.send(jobs.submit(learner, step, {"tag": "same", "seconds": 1.0}, prediction).id)


def test_thirty_who_ask_for_the_same_at_once_share_one_run_and_keep_their_own_predictions(
    bench: Workbench, jobs: Jobs, start: Start
) -> None:
    askers = [start(ask, str(bench.settings.home), f"learner {number}", float(number)) for number in range(30)]
    for asker in askers:
        assert asker.says() == "open"
    for asker in askers:
        asker.go()
    assert len({asker.says() for asker in askers}) == 1
    jobs.start_watching()
    (job,) = jobs.active()
    assert ended(jobs, job).state == "done"
    assert starts(bench) == ["same"]
    cards = [bench.store.cards(f"learner {number}") for number in range(30)]
    assert [[card.prediction for card in own] for own in cards] == [[float(number)] for number in range(30)]
    assert len({card.id for own in cards for card in own}) == 30


def finish_again_and_again(home: str, wire: Connection) -> None:
    """A worker that needs no time: takes each job and ends it at once."""
    table, queue = Store(f"sqlite:///{home}/bancada.db", busy_s=60).jobs, "q"
    wire.send("open")
    while not wire.poll():
        if (record := table.claim(queue)) is not None:
            table.finish(record.row.id, a_card)
    wire.send("done")


def ask_again_and_again(home: str, name: str, wire: Connection) -> None:
    table = Store(f"sqlite:///{home}/bancada.db", busy_s=60).jobs
    wire.send("open")
    wire.recv()
    for number in range(150):
        table.submit("q", "lab", "step", {}, f"{name}-{number}", None)
    wire.send("done")


def a_card(learner: str, prediction: float | None) -> RunCard:
    return RunCard(
        learner=learner, id=os.urandom(16).hex(), lab="lab", step="step", parameters={}, result="{}", versions={},
        machine={}, duration_s=0.0, prediction=prediction,
    )  # fmt: skip


def test_whoever_joins_in_the_moment_in_which_a_job_ends_gets_a_card_all_the_same(
    bench: Workbench, start: Start
) -> None:
    home = str(bench.settings.home)
    table = bench.store.jobs
    finisher = start(finish_again_and_again, home)
    askers = [start(ask_again_and_again, home, name) for name in "abc"]
    for one in (finisher, *askers):
        assert one.says() == "open"
    for one in askers:
        one.go()
    for one in askers:
        assert one.says() == "done"
    wait_until("all has run", lambda: table.count("q") == (0, 0))
    finisher.go()
    assert finisher.says() == "done"
    for name in "abc":
        for number in range(150):
            assert bench.store.count_cards(f"{name}-{number}", "lab") == 1, f"{name}-{number}"


def test_a_job_is_refused_before_it_is_kept_when_a_value_is_out_of_bounds(jobs: Jobs, drill: Step) -> None:
    from lib.errors import BadParameter

    for given, prediction in (({"seconds": 601.0}, None), ({"seconds": float("nan")}, None), ({}, float("inf"))):
        with pytest.raises(BadParameter):
            jobs.submit("me", drill, given, prediction)
    assert jobs.active() == ()


def test_learners_are_served_in_turn_and_each_ones_own_jobs_in_their_order(
    bench: Workbench, jobs: Jobs, drill: Step
) -> None:
    for learner, tag in (("ana", "a1"), ("ana", "a2"), ("ana", "a3"), ("bia", "b1")):
        jobs.submit(learner, drill, {"tag": tag})
    fair = ["a1", "b1", "a2", "a3"]
    assert [job.parameters["tag"] for job in jobs.active()] == fair
    newest = jobs.newest("bia", drill)
    assert newest is not None and newest.before == 1
    jobs.start_watching()
    wait_until("all have run", lambda: len(jobs.ended()) == len(fair))
    assert starts(bench) == fair


def test_the_order_that_is_shown_is_the_order_in_which_jobs_are_taken(bench: Workbench) -> None:
    table, taken = bench.store.jobs, []
    asked = ["ana", "ana", "ana", "bia", "caio", "bia", "ana"]

    def tags() -> list[str]:
        return [record.row.parameters["tag"] for record in table.active("q") if record.row.state == "queued"]

    def take() -> str:
        record = table.claim("q")
        assert record is not None and table.finish(record.row.id, a_card)
        return str(record.row.parameters["tag"])

    for number, learner in enumerate(asked):
        table.submit("q", "lab", "step", {"tag": f"{learner} {number}"}, learner, None)
    shown = tags()
    assert shown == ["ana 0", "bia 3", "caio 4", "ana 1", "bia 5", "ana 2", "ana 6"]
    taken = [take() for _ in range(4)]
    # Dora was never served; ana was served after bia and caio.
    for learner in ("ana", "caio", "dora"):
        table.submit("q", "lab", "step", {"tag": f"{learner} late"}, learner, None)
    later = tags()
    assert later == ["dora late", "bia 5", "caio late", "ana 2", "ana 6", "ana late"]
    assert taken + [take() for _ in later] == shown[:4] + later


def test_machines_that_share_a_database_run_their_own_jobs(tmp_path: Path, drill: Step) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    here, there = (Workbench.open(home=tmp_path / name, database_url=url, _env_file=None) for name in ("a", "b"))
    with closing(here.store), closing(there.store), closing(Jobs(here)) as ours, closing(Jobs(there)) as theirs:
        ours.submit("me", drill, {"tag": "ours"})
        theirs.submit("me", drill, {"tag": "theirs"})
        assert [job.parameters["tag"] for job in theirs.active()] == ["theirs"]
        assert theirs.recover()
        ours.start_watching()
        wait_until("ours has run", lambda: ours.ended())
        assert starts(here) == ["ours"] and starts(there) == []
        assert [job.state for job in theirs.active()] == ["queued"]


def test_the_settings_reach_the_worker_whole(tmp_path: Path) -> None:
    given = Settings(
        _env_file=None,
        home=tmp_path,
        language="pt",
        learner="ana",
        database_url="postgresql://me:hush@host/db",
        default_model="another",
        hub_token="hf_secret",
        endpoint="http://127.0.0.1:2/v1",
        endpoint_key="sk-secret",
        offline=True,
        OLLAMA_HOST="http://127.0.0.1:1",
        slots=7,
        context_tokens=512,
    )
    fields = type(given).model_fields
    assert [name for name, field in fields.items() if getattr(given, name) == field.get_default()] == []
    assert settings_from_json(settings_as_json(given)) == given


# Ending as it should.


def test_a_real_step_runs_as_a_job_and_keeps_its_card(bench: Workbench, jobs: Jobs) -> None:
    jobs.start_watching()
    job = ended(jobs, jobs.submit("me", find_step("choose.machine"), {}))
    assert (job.state, job.error) == ("done", None)
    (card,) = bench.store.cards("me", "choose", "machine")
    assert card.duration_s > 0 and card.versions["bancada"] and card.machine
    assert bench.store.jobs.get(job.id).askers[0].card_id == card.id
    assert len(list(bench.logs.glob("job-*.log"))) <= 1  # the next child's


def test_an_error_of_a_step_is_read_in_both_languages(bench: Workbench, jobs: Jobs, drill: Step) -> None:
    jobs.start_watching()
    job = ended(jobs, jobs.submit("me", drill, {"how": "fail"}))
    assert job.state == "failed" and isinstance(job.error, ModelTooLarge)
    for language, number in (("en", "8,192"), ("pt", "8.192")):
        what, why, _ = load_words(language).error(job.error)
        assert "drill" in what and "9,000 MiB" in why and number in why
    assert bench.store.cards("me") == []
    newest = jobs.newest("me", drill)
    assert newest is not None and newest.state == "failed"
    later = jobs.submit("me", drill, {"tag": "later"})
    ended(jobs, later)
    jobs.hide(later.id, "me")
    assert jobs.newest("me", drill) is None, "what came before it is past"


def test_a_defect_of_a_step_ends_as_an_error_and_its_traceback_in_the_log(
    bench: Workbench, jobs: Jobs, drill: Step
) -> None:
    jobs.start_watching()
    job = ended(jobs, jobs.submit("me", drill, {"how": "defect"}))
    assert isinstance(job.error, Unforeseen) and "ZeroDivisionError: a drill" in str(job.error.parameters["why"])
    assert any("Traceback" in log.read_text() for log in bench.logs.glob("job-*.log"))


def test_a_worker_without_work_ends_by_itself_and_the_next_job_gets_a_new_one(
    bench: Workbench, jobs: Jobs, drill: Step
) -> None:
    jobs.start_watching()
    ended(jobs, jobs.submit("me", drill, {"tag": "first"}))
    wait_until("no process is left", lambda: not below(os.getpid(), "lib.jobs.worker"))
    assert below(os.getpid(), "lib.jobs.child") == []
    assert list(bench.logs.glob("job-*.log")) == []
    assert ended(jobs, jobs.submit("me", drill, {"tag": "second"})).state == "done"


# Cancelling.


def test_a_waiting_job_is_cancelled_and_never_runs(bench: Workbench, jobs: Jobs, drill: Step) -> None:
    first, second = (jobs.submit("me", drill, {"tag": tag}) for tag in ("stays", "goes"))
    jobs.cancel(second.id, "me")
    assert state(jobs, second) == "cancelled"
    jobs.start_watching()
    ended(jobs, first)
    ended(jobs, jobs.submit("me", drill, {"tag": "last"}))
    assert starts(bench) == ["stays", "last"]


def test_a_running_job_is_cancelled_and_cleans_up_and_what_cannot_is_killed(
    bench: Workbench, jobs: Jobs, drill: Step
) -> None:
    jobs.start_watching()
    job = jobs.submit("me", drill, {"tag": "mess", "how": "litter", "seconds": 600.0})
    child = at_work(jobs, job)
    litter = bench.settings.home / "mess.part"
    wait_until("it has begun", lambda: litter.exists() and litter.read_text())
    sleeper = int(litter.read_text())
    jobs.cancel(job.id, "me")
    assert state(jobs, job) == "stopping"
    assert ended(jobs, job, RESOLVED_S).state == "cancelled"
    assert not litter.exists()
    assert not is_alive(child)
    wait_until("nothing is left of it", lambda: not is_alive(sleeper), 2.0)
    assert bench.store.cards("me") == []


def test_a_step_that_hangs_is_cancelled(jobs: Jobs, drill: Step) -> None:
    jobs.start_watching()
    job = jobs.submit("me", drill, {"how": "hang"})
    child = at_work(jobs, job)
    jobs.cancel(job.id, "me")
    again = jobs.submit("me", drill, {"how": "hang"})
    assert again.id != job.id, "it would wait for a run that is being stopped"
    assert ended(jobs, job, RESOLVED_S).state == "cancelled"
    assert not is_alive(child)


def test_a_cancelled_measurement_leaves_no_engine(home: Path) -> None:
    bench = Workbench.open(home=home, _env_file=None)
    with closing(bench.store), closing(Jobs(bench)) as jobs:
        jobs.start_watching()
        # Other tests' apps may live below this process, and have engines.
        others = set(engine_children(os.getpid()))
        job = jobs.submit("me", find_step("choose.measure"), {"contexts": (512, 4096)})
        (engine,) = wait_until("the engine runs", lambda: set(engine_children(os.getpid())) - others)
        jobs.cancel(job.id, "me")
        assert ended(jobs, job, RESOLVED_S).state == "cancelled"
        assert not is_alive(engine)
        assert bench.store.cards("me") == []


def test_what_is_killed_is_gone_with_its_memory_before_the_next_job_begins() -> None:
    program = """
import subprocess, sys
import psutil
from lib.jobs.processes import end_orphans
large = subprocess.Popen([sys.executable, "-c", "x = b'1' * 2**30; print(flush=True); input()"],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
large.stdout.readline()
end_orphans()
print(psutil.pid_exists(large.pid))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert said.stdout.strip() == "False"


def test_one_of_two_who_cancels_gets_no_card_and_the_other_does(bench: Workbench, jobs: Jobs, drill: Step) -> None:
    jobs.start_watching()
    for learner in ("ana", "bia"):
        job = jobs.submit(learner, drill, {"tag": "shared", "seconds": 15.0})
    at_work(jobs, job)
    jobs.cancel(job.id, "ana")
    assert state(jobs, job, "ana") == "cancelled" and state(jobs, job, "bia") == "running"
    assert ended(jobs, job).state == "done"
    assert state(jobs, job, "ana") == "cancelled"
    assert bench.store.cards("ana") == [] and len(bench.store.cards("bia")) == 1


def kept(bench: Workbench, learner: str = "me") -> list[tuple[object, bool]]:
    """What a learner's cards say, newest first: the fact, and whether the run came to no end."""
    results = [Result.from_json(one.result) for one in bench.store.cards(learner)]
    return [(one.facts["slept_s"], one.partial) for one in results]


def test_what_a_cancelled_job_had_measured_is_kept(bench: Workbench, jobs: Jobs, drill: Step) -> None:
    jobs.start_watching()
    job = jobs.submit("me", drill, {"how": "tell", "seconds": 600.0}, prediction=3.0)
    at_work(jobs, job)
    wait_until("it has told", lambda: (jobs.get(job.id).raw_progress or {}).get("done", 0) > 0)
    jobs.cancel(job.id, "me")
    assert ended(jobs, job, RESOLVED_S).state == "cancelled"
    wait_until("the card", lambda: bench.store.cards("me"))
    assert kept(bench) == [(-1.0, True)]
    assert bench.store.cards("me")[0].prediction == 3.0


def test_what_a_failed_or_killed_job_had_measured_is_kept(bench: Workbench, jobs: Jobs, drill: Step) -> None:
    jobs.start_watching()
    assert ended(jobs, jobs.submit("me", drill, {"how": "tell_and_fail"})).state == "failed"
    wait_until("the card", lambda: len(bench.store.cards("me")) == 1)
    job = jobs.submit("me", drill, {"how": "tell", "seconds": 600.0})
    child = at_work(jobs, job)
    wait_until("it has told", lambda: (jobs.get(job.id).raw_progress or {}).get("done", 0) > 0)
    os.kill(child, signal.SIGKILL)
    assert isinstance(ended(jobs, job).error, JobDied)
    wait_until("the card", lambda: len(bench.store.cards("me")) == 2)
    assert kept(bench) == [(-1.0, True)] * 2


def test_a_job_that_comes_to_its_end_keeps_only_that(bench: Workbench, jobs: Jobs, drill: Step) -> None:
    jobs.start_watching()
    assert ended(jobs, jobs.submit("me", drill, {"how": "tell"})).state == "done"
    ((slept_s, partial),) = kept(bench)
    assert slept_s != -1.0 and not partial


def test_what_a_notebook_had_measured_is_kept_when_it_is_interrupted_or_fails(bench: Workbench, drill: Step) -> None:
    with closing(execute(drill, bench, {"how": "tell", "seconds": 600.0})) as events:
        while next(events).done == 0:
            pass
    assert kept(bench) == [(-1.0, True)]
    with pytest.raises(ModelTooLarge):
        list(execute(drill, bench, {"how": "tell_and_fail"}))
    assert kept(bench) == [(-1.0, True)] * 2


# Ending as it should not.


def test_a_killed_worker_leaves_an_interrupted_job_and_the_next_one_runs(
    bench: Workbench, jobs: Jobs, drill: Step
) -> None:
    jobs.start_watching()
    job = jobs.submit("me", drill, {"tag": "mess", "how": "litter", "seconds": 600.0}, 2.0)
    following = jobs.submit("me", drill, {"tag": "next"})
    child = at_work(jobs, job)
    worker_of(os.getpid()).kill()
    assert ended(jobs, job, RESOLVED_S).state == "interrupted"
    wait_until("its child is gone", lambda: not is_alive(child), RESOLVED_S)
    assert not (bench.settings.home / "mess.part").exists(), "its child had the time to clean up"
    assert ended(jobs, following).state == "done"
    again = jobs.again(jobs.get(job.id, "me"), "me")
    assert (again.parameters, again.prediction, again.state) == (job.parameters, 2.0, "queued")
    jobs.cancel(again.id, "me")


def test_with_a_killed_app_its_worker_and_the_job_end_and_what_waited_runs_when_the_next_app_looks(
    bench: Workbench, jobs: Jobs, drill: Step, start_app: Callable[[], subprocess.Popen[str]]
) -> None:
    app = start_app()
    job = jobs.submit("me", drill, {"tag": "long", "seconds": 600.0})
    following = jobs.submit("me", drill, {"tag": "next"})
    child = at_work(jobs, job)
    worker = worker_of(app.pid)
    app.kill()
    wait_until("worker and child are gone", lambda: not is_alive(worker.pid) and not is_alive(child), RESOLVED_S)
    assert (state(jobs, job), state(jobs, following)) == ("interrupted", "queued")
    start_app()
    assert ended(jobs, following).state == "done"


def test_when_app_and_worker_are_killed_together_another_app_sees_it(
    jobs: Jobs, drill: Step, start_app: Callable[[], subprocess.Popen[str]]
) -> None:
    app = start_app()
    job = jobs.submit("me", drill, {"tag": "long", "seconds": 600.0})
    child = at_work(jobs, job)
    start_app()
    worker = worker_of(app.pid)
    worker.kill()
    app.kill()
    assert ended(jobs, job, RESOLVED_S).state == "interrupted"
    wait_until("its child is gone", lambda: not is_alive(child), RESOLVED_S)


def test_a_child_that_cannot_end_itself_is_ended_by_the_next_worker(bench: Workbench, jobs: Jobs, drill: Step) -> None:
    jobs.start_watching()
    job = jobs.submit("me", drill, {"tag": "stuck", "seconds": 600.0})
    following = jobs.submit("me", drill, {"tag": "next"})
    child = at_work(jobs, job)
    os.kill(child, signal.SIGSTOP)  # as deep in native code
    try:
        worker_of(os.getpid()).kill()
        assert ended(jobs, job, RESOLVED_S).state == "interrupted"
        assert ended(jobs, following).state == "done", "it would wait for the turn that the stuck one holds"
        assert not is_alive(child)
    finally:
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def test_two_apps_of_one_home_have_one_worker(
    bench: Workbench, jobs: Jobs, drill: Step, start_app: Callable[[], subprocess.Popen[str]]
) -> None:
    apps = [start_app() for _ in range(3)]
    submitted = [jobs.submit("me", drill, {"tag": f"t{number}", "seconds": 0.5}) for number in range(4)]
    for job in submitted:
        assert ended(jobs, job).state == "done"
    assert starts(bench) == ["t0", "t1", "t2", "t3"]
    # Those that found the lock taken have left.
    wait_until("one is left", lambda: sum(len(below(app.pid, "lib.jobs.worker")) for app in apps) <= 1)


def test_a_killed_child_is_an_error_with_a_sentence_and_the_next_job_runs(
    bench: Workbench, jobs: Jobs, drill: Step
) -> None:
    jobs.start_watching()
    job = jobs.submit("me", drill, {"tag": "mess", "how": "litter", "seconds": 600.0})
    following = jobs.submit("me", drill, {"tag": "next"})
    child = at_work(jobs, job)
    litter = bench.settings.home / "mess.part"
    wait_until("it has begun", lambda: litter.exists() and litter.read_text())
    os.kill(child, signal.SIGKILL)
    died = ended(jobs, job, RESOLVED_S)
    assert died.state == "failed" and isinstance(died.error, JobDied)
    for language in LANGUAGES:
        assert "SIGKILL" in load_words(language).error(died.error)[0]
    assert Path(str(died.error.parameters["log"])).exists()
    wait_until("what it had started is gone", lambda: not is_alive(int(litter.read_text())), 2.0)
    assert ended(jobs, following).state == "done"


def test_a_worker_that_cannot_start_is_said_and_not_tried_for_ever(
    jobs: Jobs, drill: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRILL_BREAKS", "lib.jobs.worker")
    job = jobs.submit("me", drill, {})
    jobs.start_watching()
    failed = ended(jobs, job)
    assert isinstance(failed.error, JobDied) and failed.error.parameters["how"] == "exit status 3"


def test_killed_at_any_moment_a_job_is_resolved_and_no_card_is_half_there(
    bench: Workbench, jobs: Jobs, drill: Step
) -> None:
    pick = random.Random(11)
    jobs.start_watching()
    asked = []
    for number in range(20):
        for learner in ("ana", "bia"):
            job = jobs.submit(learner, drill, {"tag": f"k{number}", "seconds": 0.3})
        asked.append(job)
        worker = worker_of(os.getpid())
        time.sleep(pick.uniform(0, 4))
        children = below(worker.pid, "lib.jobs.child")
        victim = pick.choice([worker, *children])
        with suppress(psutil.NoSuchProcess):
            victim.kill()

        def orphaned() -> bool:
            running = any(one.state in ("running", "stopping") for one in jobs.active())
            return running and not below(os.getpid(), "lib.jobs.worker")

        wait_until("nothing runs without a worker", lambda: not orphaned(), RESOLVED_S)
        ended(jobs, job)
    states = [state(jobs, job) for job in asked]
    assert set(states) <= {"done", "failed", "interrupted"}
    for job, how in zip(asked, states, strict=True):
        askers = bench.store.jobs.get(job.id).askers
        assert [asker.card_id is not None for asker in askers] == [how == "done"] * 2
    kept = {card.id for learner in ("ana", "bia") for card in bench.store.cards(learner)}
    assert kept == {asker.card_id for job in asked for asker in bench.store.jobs.get(job.id).askers} - {None}


# The machine's turn.


def hold_the_turn(home: str, wire: Connection) -> None:
    """Run the drill as a notebook does, until killed."""
    labs.__path__.append(str(DRILLS / "labs"))
    bench = Workbench.open(home=Path(home), _env_file=None)
    for progress in perform(find_step("drill.work"), bench, {"tag": "notebook", "seconds": 600.0}):
        if progress.what == "decode" and progress.done == 0:
            wire.send("at work")


def test_a_job_does_not_measure_while_a_notebook_does_and_a_killed_notebook_gives_the_turn_back(
    bench: Workbench, jobs: Jobs, drill: Step, start: Start
) -> None:
    notebook = start(hold_the_turn, str(bench.settings.home))
    assert notebook.says() == "at work"
    jobs.start_watching()
    job = jobs.submit("me", drill, {"tag": "job"})
    wait_until("it waits", lambda: jobs.get(job.id).progress.what == "wait_for_turn")
    time.sleep(1)
    assert starts(bench) == ["notebook"]
    notebook.end()
    assert ended(jobs, job, RESOLVED_S).state == "done"


def test_a_notebook_waits_for_the_job_that_measures(bench: Workbench, jobs: Jobs, drill: Step) -> None:
    jobs.start_watching()
    job = jobs.submit("me", drill, {"tag": "job", "seconds": 15.0})
    at_work(jobs, job)
    seen = {one.what for one in perform(drill, bench, {"tag": "notebook"}) if isinstance(one, Progress)}
    assert "wait_for_turn" in seen
    assert [(kind, tag) for kind, tag, _ in trace(bench)] == [
        ("start", "job"), ("end", "job"), ("start", "notebook"), ("end", "notebook")
    ]  # fmt: skip


def test_a_step_that_is_abandoned_in_a_notebook_gives_the_turn_back(bench: Workbench, drill: Step) -> None:
    with closing(perform(drill, bench, {"tag": "first", "seconds": 600.0})) as events:
        next(events)
    (only,) = perform(drill, bench, {"tag": "second"})
    assert isinstance(only, Progress) and only.what == "decode"
