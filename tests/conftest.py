"""What every test may ask for."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from dspex_pipelines.bridge import local_pool

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> Path | None:
    """A Chromium of the system."""
    return next((Path(found) for name in BROWSERS if (found := shutil.which(name))), None)


def find_postgres() -> Path | None:
    """The directory with PostgreSQL's `initdb` and `postgres`, which Debian keeps off the path."""
    on_path = [Path(found).resolve().parent] if (found := shutil.which("initdb")) else []
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((bin_ for bin_ in on_path + packaged if (bin_ / "postgres").exists()), None)


FINDERS: dict[str, Callable[[], Path | None]] = {
    "browser": find_browser,
    "postgres": find_postgres,
}


def missing(reason: str) -> NoReturn:
    """Skip the test with *reason*; under DSPEX_TEST_ALL=1 fail it."""
    if os.environ.get("DSPEX_TEST_ALL") == "1":
        pytest.fail(f"{reason}, and DSPEX_TEST_ALL=1 allows no skipping", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def own_pools() -> Iterator[None]:
    """Local pools of these tests are nobody else's: `dspex pool stop` in a test ends no pool of the user's.

    A short folder, as a socket's path has few bytes.
    """
    with tempfile.TemporaryDirectory(prefix="dspex-t-") as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", folder)
        yield
        local_pool.stop()


@pytest.fixture(autouse=True)
def own_import_path() -> Iterator[None]:
    """What a test puts onto the path is gone with it: pools differ by where they import from."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def require() -> Callable[[str], Path]:
    """`require("browser")` is the path of what a fresh machine may lack, or skips the test.

    Known are "browser" (an executable) and "postgres" (a directory of executables).
    """

    def find(name: str) -> Path:
        return FINDERS[name]() or missing(f"no {name} on this machine")

    return find
