"""What tests of several kinds share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from lib.errors import DownloadFailed
from lib.models.store import ModelStore
from lib.workbench import Workbench

pytest.register_assert_rewrite("tests.contract", "tests.lab_runs", "tests.ollama_lab")

ROOT = Path(__file__).parent.parent
IN_CI = os.environ.get("CI") == "true"
if not IN_CI:
    # In CI Hypothesis takes its own profile: the same examples every time, and no clock.
    settings.register_profile("house", deadline=None)
    settings.load_profile("house")
DEFAULT = "smollm2-135m-instruct"
STOCKED = ("toolchains", "converted", "models/made")


def missing(what: str) -> None:
    """Skip on a learner's machine; in CI a missing part is a failure."""
    if IN_CI:
        pytest.fail(f"CI must have {what}")
    pytest.skip(f"this machine lacks {what}")


def _of_the_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that every process of this test run has; who makes something in it does so under its own lock."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of models for the whole test run; BANCADA_TEST_MODELS keeps it from run to run."""
    given = os.environ.get("BANCADA_TEST_MODELS")
    return Path(given) if given else _of_the_run(tmp_path_factory) / "models"


@pytest.fixture(scope="session")
def default_model(models_dir: Path) -> Path:
    """The default model's file, fetched by the real store from its real sources."""
    models = ModelStore(models_dir)
    for left in (2, 1, 0):
        try:
            for _ in models.fetch(DEFAULT):
                pass
            break
        except DownloadFailed:
            # A connection that broke costs one attempt; what had come is kept.
            if not left:
                raise
    return models.path(DEFAULT)


@pytest.fixture
def home(tmp_path: Path, default_model: Path) -> Path:
    """A home of its own with the default model already here."""
    made = tmp_path / "home"
    (made / "models").mkdir(parents=True)
    (made / "models" / DEFAULT).symlink_to(default_model.parent, target_is_directory=True)
    return made


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What takes long to make and is the same for every test that only uses it; BANCADA_TEST_STOCK keeps it."""
    given = os.environ.get("BANCADA_TEST_STOCK")
    folder = Path(given) if given else _of_the_run(tmp_path_factory) / "stock"
    for name in STOCKED:
        (folder / name).mkdir(parents=True, exist_ok=True)
    return folder


def link_stock(home: Path, stock: Path) -> None:
    """Let a home use the stock's toolchains, quantized files and converted models as its own."""
    for name in STOCKED:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).symlink_to(stock / name, target_is_directory=True)


@pytest.fixture(scope="session")
def lab_home(stock: Path, default_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for a whole file of tests: what one of them makes, the next one finds."""
    home = tmp_path_factory.mktemp("convert")
    (home / "models").mkdir()
    (home / "models" / DEFAULT).symlink_to(default_model.parent, target_is_directory=True)
    link_stock(home, stock)
    return home


@pytest.fixture
def stocked_home(home: Path, stock: Path) -> Path:
    """A home of its own with everything of the stock in it."""
    link_stock(home, stock)
    return home


@pytest.fixture
def workbench(home: Path) -> Iterator[Workbench]:
    """A workbench of its own with the default model already here."""
    made = Workbench.open(home=home, language="en", _env_file=None)
    yield made
    made.close()
    made.store.close()
