"""Checks of the runtime folder and of the pools that run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import dspex_pipelines
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.cli.doctor.findings import Check, Finding, ok, problem, warning
from dspex_pipelines.cli.doctor.room import room
from dspex_pipelines.cli.pools import AskedPool, ask_pools

_NAME = "x" * 15
"""As long as the longest name of a pool's folder."""


def checks() -> list[Check]:
    """Return the checks of this module."""
    return [Check("runtime folder", runtime_folder), Check("pools", pools)]


def runtime_folder() -> Iterator[Finding]:
    """Look whether a pool's socket, locks and log can be kept."""
    root = local_pool.default_root()
    local_pool.check_root(root, _NAME)
    nearest = next(path for path in (root, *root.parents) if path.exists())
    if not os.access(nearest, os.W_OK | os.X_OK):
        yield problem(f"{root} cannot be written to", "set XDG_RUNTIME_DIR to a folder of your own")
        return
    yield ok(f"{root}{'' if root.exists() else ', which the first pool makes'}")
    yield from room(nearest)


def pools() -> Iterator[Finding]:
    """Look whether the pools of this machine answer, and for what killed ones have left."""
    asked = ask_pools()
    for one in asked:
        yield _of_pool(one)
    for folder in left_behind():
        yield ok(f"{folder} was left by a pool that was killed; the next one of its kind takes it over")
    if not asked:
        yield ok("none runs; the next evaluation starts one")


def _of_pool(asked: AskedPool) -> Finding:
    found = f"pid {asked.pool.pid} at {asked.pool.address}"
    status = asked.status
    if status is None:
        fix = f"see {asked.pool.runtime_dir / 'pool.log'}, and end it: dspex pool stop {asked.pool.pid}"
        return problem(f"{found}: {asked.problem}", fix)
    if status.package_version != dspex_pipelines.__version__:
        fix = f"end it, so that the next evaluation starts its own: dspex pool stop {asked.pool.pid}"
        return warning(f"{found} is of release {status.package_version}, this is {dspex_pipelines.__version__}", fix)
    if not status.workers:
        fix = f"wait for its workers; where none comes, see {asked.pool.runtime_dir / 'pool.log'}"
        return warning(f"{found} answers and has no worker", fix)
    return ok(f"{found} answers: {len(status.workers)} workers, {status.in_flight:,} trials in flight")


def left_behind() -> tuple[Path, ...]:
    """Return the folders that say there is a pool where there is none."""
    root = local_pool.default_root()
    said = sorted(root.glob("*/pool.json")) if root.is_dir() else []
    return tuple(path.parent for path in said if local_pool.running(path.parent) is None)
