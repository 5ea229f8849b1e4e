"""Checks of DAGSTER_HOME, the instance and the journal."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import yaml
from rich.filesize import decimal

from dspex_pipelines.cli.doctor.findings import Check, Finding, ok, problem, warning
from dspex_pipelines.cli.doctor.room import room
from dspex_pipelines.cli.results import SETTINGS, home_folder, instance, is_used
from dspex_pipelines.engine.journal.database import Database
from dspex_pipelines.engine.journal.schema import HEAD
from dspex_pipelines.orchestration.resources import JOURNAL_URL, ResultStore
from dspex_pipelines.orchestration.run_coordinator import EvaluationRunCoordinator
from dspex_pipelines.orchestration.tags import KIND, POOL, TARGET

CONNECT_S = 5
_SHIPPED = "as in the dagster.yaml of dspex-pipelines"


def checks() -> list[Check]:
    """Return the checks of this module."""
    home = home_folder()
    return [
        Check("dagster home", partial(dagster_home, home)),
        Check("run limits", partial(run_limits, home)),
        Check("instance", partial(opened_instance, home)),
        Check("journal", partial(journal, home)),
    ]


def dagster_home(home: Path) -> Iterator[Finding]:
    """Look at the folder where runs, results and, if nothing else is said, the journal are kept."""
    whose = "DAGSTER_HOME" if os.environ.get("DAGSTER_HOME") else "this folder's own"
    if not home.exists():
        yield ok(f"{home} ({whose}) is not there yet; the first evaluation makes it")
        return
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        yield problem(f"{home} is no folder that can be written to", "set DAGSTER_HOME to one")
        return
    yield ok(f"{home} ({whose})")
    yield from room(home)


def run_limits(home: Path) -> Iterator[Finding]:
    """Look whether runs that are launched from the UI are tagged, and limited by those tags and by the pool."""
    settings = _settings(home)
    if not os.environ.get("DAGSTER_HOME") and "run_coordinator" not in settings:
        yield ok("none, and `dspex evaluate` needs none; set DAGSTER_HOME to look at another instance")
        return
    coordinator = settings.get("run_coordinator")
    named = _named(coordinator)
    if named != (EvaluationRunCoordinator.__module__, EvaluationRunCoordinator.__name__):
        yield warning(
            f"the run coordinator is {named[1] or 'the default'}: runs that the UI launches get no tags",
            f"set run_coordinator in {home / SETTINGS} {_SHIPPED}: {EvaluationRunCoordinator.__name__}",
        )
    concurrency = _mapping(settings.get("concurrency"))
    limited = {str(limit.get("key")) for limit in _limits(concurrency)}
    if missing := [key for key in (TARGET, KIND) if key not in limited]:
        yield warning(
            f"no run-tag limit for {' and '.join(missing)}: runs of one evaluation may work on the same trials at once",
            f"set concurrency.runs.tag_concurrency_limits in {home / SETTINGS} {_SHIPPED}",
        )
    else:
        yield ok(f"run coordinator {named[1] or 'default'}, tag limits for {TARGET} and {KIND}")


def opened_instance(home: Path) -> Iterator[Finding]:
    """Look whether Dagster's storage answers, and whether `run_trials` steps are limited over all runs."""
    if not _is_used(home):
        yield ok("not used yet")
        return
    with instance() as opened:
        runs = opened.get_runs_count()
        yield ok(f"opens, with {runs:,} runs in {type(opened.run_storage).__name__}")
        storage = opened.event_log_storage
        if not storage.supports_global_concurrency_limits:
            yield warning("its storage has no pools", "use Dagster's SQLite or PostgreSQL storage")
            return
        limits = {limit.name: limit.limit for limit in storage.get_pool_limits()}
        limit = limits.get(POOL, opened.get_concurrency_config().pool_config.default_pool_limit)
        if limit is None:
            yield ok(f"any number of {POOL} steps at once; to limit them: dagster instance concurrency set {POOL} 2")
        elif limit < 1:
            fix = f"dagster instance concurrency set {POOL} 2"
            yield problem(f"the pool {POOL} has {limit} slots: no evaluation ever runs", fix)
        else:
            yield ok(f"at most {limit} {POOL} steps at once")


def journal(home: Path) -> Finding:
    """Look whether the journal answers, at which layout it is, and how large it is."""
    url = os.environ.get(JOURNAL_URL)
    if not url and not _is_used(home):
        return ok("none yet; the first evaluation starts one")
    if not url:
        with instance() as opened:
            url = ResultStore().journal(opened).database.url.render_as_string(hide_password=False)
    database = Database(url)
    file = database.file
    if file is not None and not file.exists():
        return ok(f"none yet; the first evaluation starts one at {file}")
    with _not_for_long():
        layout = database.layout()
    size = f", {decimal(file.stat().st_size)}" if file is not None else ""
    found = f"{database.shown} answers, layout {layout or 'none yet'}{size}"
    if layout > HEAD:
        return problem(f"{found}; this release knows up to {HEAD}", "install the release that wrote it")
    if layout and layout < HEAD:
        return ok(f"{found}; the next evaluation brings it to {HEAD}")
    return ok(found)


@contextmanager
def _not_for_long() -> Generator[None]:
    """Have PostgreSQL's client wait seconds for a server, and not minutes."""
    before = os.environ.get("PGCONNECT_TIMEOUT")
    os.environ.setdefault("PGCONNECT_TIMEOUT", str(CONNECT_S))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PGCONNECT_TIMEOUT"]


def _is_used(home: Path) -> bool:
    """Whether opening the instance makes nothing that is not there."""
    return (home / SETTINGS).exists() and is_used(home)


def _settings(home: Path) -> Mapping[str, Any]:
    file = home / SETTINGS
    return _mapping(yaml.safe_load(file.read_text(encoding="utf-8"))) if file.exists() else {}


def _named(coordinator: object) -> tuple[str, str]:
    described = _mapping(coordinator)
    return str(described.get("module", "")), str(described.get("class", ""))


def _limits(concurrency: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    listed = _mapping(concurrency.get("runs")).get("tag_concurrency_limits")
    return [_mapping(one) for one in cast("list[Any]", listed)] if isinstance(listed, list) else []


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, Mapping) else {}
