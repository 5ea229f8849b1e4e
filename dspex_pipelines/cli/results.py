"""Reads the newest results of an evaluation through the Dagster instance."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast
from urllib.parse import unquote

import dagster as dg
import yaml
from dagster._core.instance.ref import InstanceRef
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster_shared.check import CheckError
from dagster_shared.error import DagsterError
from sqlalchemy.exc import DBAPIError
from yaml import YAMLError

from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.data.partitions import known_partitions
from dspex_pipelines.orchestration.io_managers import NewestResults

HOME = ".dagster_home"
SETTINGS = "dagster.yaml"
_NO_CAPTURE = {
    "compute_logs": {"module": NoOpComputeLogManager.__module__, "class": NoOpComputeLogManager.__name__},
}
_STORAGES = frozenset({"storage", "run_storage", "event_log_storage"})


def home_folder() -> Path:
    """Return DAGSTER_HOME, or ./.dagster_home where that is not set."""
    return Path(os.environ.get("DAGSTER_HOME") or Path.cwd() / HOME).absolute()


def is_used(home: Path) -> bool:
    """Whether there is an instance, in that folder or where its settings say; what only reads is to make none."""
    if (home / "history").is_dir():
        return True
    try:
        settings = yaml.safe_load((home / SETTINGS).read_bytes())
    except FileNotFoundError:
        return False
    except (OSError, YAMLError):
        # Whoever opens it says what is wrong with it.
        return True
    return isinstance(settings, dict) and not _STORAGES.isdisjoint(cast("dict[object, object]", settings))


@contextmanager
def instance() -> Generator[dg.DagsterInstance]:
    """Open the instance of DAGSTER_HOME, or of ./.dagster_home where that is not set.

    What its runs print goes where this process prints, and is not captured: Dagster would put files in the place of
    standard output and error, so that no terminal is left to show a bar in.
    """
    home = home_folder()
    settings = home / SETTINGS
    if "?" in str(home) or unquote(str(home)) != str(home):
        # Dagster makes a URL of it for SQLite.
        fix = "give a folder without ? and without % before two digits in its path: Dagster would open another one"
        raise InvalidValue(field="DAGSTER_HOME", value=str(home), fix=fix)
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(home, error.strerror or str(error)) from error
    if not os.access(home, os.W_OK | os.X_OK):
        raise _unusable(home, "not writable")
    os.environ["DAGSTER_HOME"] = str(home)
    with _alone_in(home), _explained(home):
        try:
            if not (settings.exists() or settings.is_symlink()):
                settings.write_text("telemetry:\n  enabled: false\n")
        except OSError as error:
            raise _unusable(home, error.strerror or str(error)) from error
        try:
            opened = dg.DagsterInstance.from_ref(InstanceRef.from_dir(str(home), overrides=_NO_CAPTURE))
        except (DagsterError, CheckError, YAMLError, UnicodeDecodeError) as error:
            fix = f"Dagster cannot open its instance by it; mend it, or remove it for the defaults. It says: {error}"
            raise InvalidValue(field="settings", value=str(settings), fix=fix) from error
    with _explained(home), opened:
        yield opened


@contextmanager
def _explained(home: Path) -> Generator[None]:
    """Say what a failure of Dagster's own databases means."""
    try:
        yield
    except DBAPIError as error:
        said = str(error.orig or error).partition("\n")[0]
        raise DspexError(
            f"Dagster could not read or write its instance in {home} ({said}); see that its disk is healthy and has "
            "room, and run again: what was recorded before is kept"
        ) from error


@contextmanager
def _alone_in(home: Path) -> Generator[None]:
    """Hold the folder's lock: Dagster looks for its SQLite tables, then makes them, at which a second process fails."""
    descriptor = os.open(home, os.O_RDONLY)
    try:
        # Not every network file system can lock a folder; there it is as if nobody else came.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _unusable(home: Path, reason: str) -> InvalidValue:
    fix = f"results cannot be kept there ({reason}); set DAGSTER_HOME to a folder that can be written to"
    return InvalidValue(field="DAGSTER_HOME", value=str(home), fix=fix)


def newest_results(evaluation: Evaluation) -> NewestResults:
    """Return the newest like-planned results; raises `DspexError` when there are none."""
    home = home_folder()
    if is_used(home):
        with instance() as opened:
            newest = NewestResults.find(opened, evaluation.name, known_partitions(evaluation, opened))
        if newest.paths:
            return newest
    raise DspexError(
        f"{evaluation.name} has no results in {home}; run `dspex evaluate` for it first, or set DAGSTER_HOME to where "
        "it was evaluated"
    )
