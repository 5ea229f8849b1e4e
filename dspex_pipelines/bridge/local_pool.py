"""The local pool that starts itself: the first client starts it, others of the same identity join.

Its folder holds `pool.lock` (held by the pool from before its start until nothing of it is left), `clients.lock` (held
shared by every client for as long as it lives), `pool.json` (there while the pool serves), the socket and a log.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import select
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import dspex_pipelines
from dspex_pipelines.bridge.addresses import SOCKET_PATH_BYTES
from dspex_pipelines.bridge.locks import LOOK_S, is_locked, try_lock
from dspex_pipelines.engine.recycling import Recycling
from dspex_pipelines.engine.worker_options import SLOTS
from dspex_pipelines.errors import DspexError, InvalidValue, PoolUnreachable
from dspex_pipelines.wire.import_path import python_path
from dspex_pipelines.wire.processes import started_at

START_S = 60.0
STOP_S = 15.0
DRAIN_S = 5.0
"""Of that, until a pool that finishes what it has accepted is told again, and ends at once."""
MOST_WORKERS = 1_024
_WHEREABOUTS = (
    *("_", "PWD", "OLDPWD", "SHLVL", "TERM", "COLUMNS", "LINES", "TTY", "GPG_TTY", "SSH_", "TMUX", "STY", "WINDOWID"),
    *(
        "XDG_",
        "DBUS_",
        "DISPLAY",
        "DAGSTER_",
        "PYTEST_",
        "PYTHONBREAKPOINT",
        "MAKE",
        "MFLAGS",
        "INVOCATION_ID",
        "JOURNAL_",
    ),
)
"""Beginnings of the names of variables that tell terminals, calls and runs apart, and no two ways to evaluate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPoolLease:
    """A running local pool; it stays for as long as the lease is held."""

    address: str
    runtime_dir: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalPoolStatus:
    """A local pool that runs on this machine."""

    pid: int
    address: str
    runtime_dir: Path


def check_workers(workers: int) -> None:
    """Raise `InvalidValue` for a number of workers that a pool cannot have."""
    if not 0 <= workers <= MOST_WORKERS:
        fix = f"give 0 (one for each core) to {MOST_WORKERS:,} workers"
        raise InvalidValue(field="workers", value=workers, fix=fix)


@contextlib.contextmanager
def lease(
    *,
    workers: int = 0,
    slots: int = SLOTS,
    idle_s: float = 60.0,
    recycling: Recycling | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    runtime_root: Path | None = None,
) -> Generator[LocalPoolLease]:
    """Join the local pool of this identity, starting it if there is none, and hold it.

    The identity is interpreter, package source, working directory, where the caller imports from, environment (the
    caller's and what *environment* declares, but for what says only where it was called from), *workers*, *slots* and
    *recycling*. After the last lease the pool waits *idle_s* for another one, then ends.

    Raises `PoolUnreachable` when it does not start, or one that is there neither serves nor ends within `START_S`, and
    `InvalidValue` for a folder that cannot hold its socket or a number of workers that cannot be.
    """
    check_workers(workers)
    count = workers or os.cpu_count() or 1
    folder = cwd or Path.cwd()
    environment = {"PYTHONPATH": python_path(folder), **(environment or {})}
    recycling = recycling or Recycling()
    name = _identity(count, slots, folder, environment, recycling)
    runtime_dir = made_runtime_dir(runtime_root or default_root(), name)

    def start(lock: int) -> None:
        options = pool_options(count, slots, idle_s, recycling)
        start_supervisor(runtime_dir, options, folder=folder, environment=environment, held=(lock,))

    with (runtime_dir / "clients.lock").open("a") as clients:
        give_up_at = time.monotonic() + START_S
        while (status := _joined(runtime_dir, clients, start)) is None:
            if time.monotonic() > give_up_at:
                raise _in_the_way(runtime_dir)
            time.sleep(LOOK_S)
        yield LocalPoolLease(address=status.address, runtime_dir=runtime_dir)


def _joined(runtime_dir: Path, clients: IO[str], start: Callable[[int], None]) -> LocalPoolStatus | None:
    """Return the pool there, whose client this is from now on; None while there is one that does not serve.

    Where there is none, *start* starts it, and has it keep the descriptor that it is given.
    """
    # From here on no pool ends under us for being idle; one that does so already has this lock to itself.
    if not try_lock(clients, shared=True):
        return None
    if status := running(runtime_dir):
        return status
    with (runtime_dir / "pool.lock").open("a") as lock:
        # A pool has it while it starts, even if its starter has been killed, and while it ends.
        if try_lock(lock):
            start(lock.fileno())
            if status := running(runtime_dir):
                return status
            raise _not_started(runtime_dir, 0, f"it ended as soon as it was up; see {runtime_dir / 'pool.log'}")
    # Who waits for a pool to end is no reason for it to stay.
    fcntl.flock(clients, fcntl.LOCK_UN)
    return None


def status(*, runtime_root: Path | None = None) -> tuple[LocalPoolStatus, ...]:
    """Return the local pools of this user that run."""
    root = runtime_root or default_root()
    if not root.is_dir():
        return ()
    found = (running(folder) for folder in sorted(root.iterdir()) if folder.is_dir())
    return tuple(pool for pool in found if pool is not None)


def wait_for_starts(*, runtime_root: Path | None = None) -> None:
    """Return once each pool of this user that is being started runs, or has failed to, and each that ends has ended.

    Raises `DspexError` when that takes longer than `START_S`.
    """
    root = runtime_root or default_root()
    give_up_at = time.monotonic() + START_S
    for folder in root.iterdir() if root.is_dir() else ():
        while running(folder) is None and is_locked(folder / "pool.lock"):
            if time.monotonic() > give_up_at:
                log = folder / "pool.log"
                raise DspexError(f"a pool is still starting or ending after {START_S:g} s; see {log}, or try again")
            time.sleep(LOOK_S)


def stop(pools: Sequence[LocalPoolStatus] | None = None, *, runtime_root: Path | None = None) -> int:
    """End these *pools*, or all of this user on this machine, whoever uses them; return how many.

    Those at a stated address have `DRAIN_S` to finish what they have accepted. Without *pools*, those that are being
    started are waited for and ended too, and those that are ending are waited for. Raises `DspexError` for one that
    does not end.
    """
    if pools is None:
        wait_for_starts(runtime_root=runtime_root)
        pools = status(runtime_root=runtime_root)
    if not _ended(pools, within_s=DRAIN_S) and not _ended(pools, within_s=STOP_S - DRAIN_S):
        left = next((pool for pool in pools if started_at(pool.pid)), pools[0])
        raise DspexError(f"the pool at {left.address} does not end; see {left.runtime_dir / 'pool.log'}, or try again")
    return len(pools)


def _ended(pools: Sequence[LocalPoolStatus], *, within_s: float) -> bool:
    """Tell the pools to end; return whether they have."""
    for pool in pools:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pool.pid, signal.SIGTERM)
    deadline = time.monotonic() + within_s
    while any(running(pool.runtime_dir) is not None or started_at(pool.pid) for pool in pools):
        if time.monotonic() > deadline:
            return False
        time.sleep(LOOK_S)
    return True


def _identity(workers: int, slots: int, folder: Path, environment: Mapping[str, str], recycling: Recycling) -> str:
    source = Path(dspex_pipelines.__file__).parent
    files = [[str(path), path.stat().st_mtime_ns] for path in sorted(source.rglob("*.py"))]
    # What a program sees of the environment decides what it does: a model's name, a key, a path.
    seen = {name: value for name, value in os.environ.items() if not name.startswith(_WHEREABOUTS)}
    parts = [sys.executable, files, str(folder.resolve()), sorted({**seen, **environment}.items()), workers, slots]
    parts += [recycling.max_rss_mb, recycling.max_trials]
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=6).hexdigest()


def default_root() -> Path:
    """Return the folder that has the folders of this user's pools."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and Path(runtime).is_dir():
        return Path(runtime) / "dspex"
    return Path(tempfile.gettempdir()) / f"dspex-{os.getuid()}"


def made_runtime_dir(root: Path, name: str) -> Path:
    """Return the folder of a pool, which is its user's only; raises `InvalidValue` where it cannot be."""
    check_root(root, name)
    path = root / name
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    # What has come to be there meanwhile is somebody else's.
    check_root(root, name)
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def check_root(root: Path, name: str) -> None:
    """Raise `InvalidValue` where a pool of that name could not have its socket, or others could get at it."""
    path = root / name
    if len(os.fsencode(path / "bridge.sock")) > SOCKET_PATH_BYTES:
        raise InvalidValue(
            field="runtime folder",
            value=str(path),
            fix=f"a socket's path has at most {SOCKET_PATH_BYTES} bytes; set XDG_RUNTIME_DIR to a shorter folder",
        )
    if not os.path.lexists(root):
        return
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InvalidValue(
            field="runtime folder",
            value=str(root),
            fix="it must be a folder of your own with mode 700; remove it, or set XDG_RUNTIME_DIR to another",
        )


def running(runtime_dir: Path) -> LocalPoolStatus | None:
    """Return the pool whose folder that is; None where none runs."""
    try:
        document = json.loads((runtime_dir / "pool.json").read_text())
        pid, address = int(document["pid"]), str(document["address"])
    except (OSError, ValueError, KeyError):
        return None
    if started_at(pid) != document.get("started"):
        return None
    return LocalPoolStatus(pid=pid, address=address, runtime_dir=runtime_dir)


def pool_options(workers: int, slots: int, idle_s: float, recycling: Recycling) -> list[str]:
    """Return what a supervisor is told of its pool."""
    options = ["--workers", str(workers), "--slots", str(slots), "--idle-s", str(idle_s)]
    return [*options, "--max-rss-mb", str(recycling.max_rss_mb), "--max-trials", str(recycling.max_trials)]


def start_supervisor(
    runtime_dir: Path,
    options: Sequence[str],
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    held: Sequence[int] = (),
) -> None:
    """Start a supervisor in a session of its own; return once the pool is up, or raise `PoolUnreachable`.

    It keeps the descriptors *held* open for as long as it lives.
    """
    for left in ("pool.json", "bridge.sock"):
        (runtime_dir / left).unlink(missing_ok=True)
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "dspex_pipelines.bridge.supervisor", "--runtime-dir", str(runtime_dir)]
    with (runtime_dir / "pool.log").open("ab") as log, os.fdopen(reading, "rb") as ready:
        try:
            subprocess.run(  # noqa: S603 - our own command; it leaves a child of its own behind
                [*command, *options, "--ready-fd", str(writing)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                pass_fds=(writing, *held),
                check=True,
            )
        finally:
            os.close(writing)
        readable, _, _ = select.select([ready], [], [], START_S)
        line = ready.readline() if readable else b""
    answer = json.loads(line) if line else {"error": f"it said nothing; see {runtime_dir / 'pool.log'}"}
    if "error" in answer:
        raise _not_started(runtime_dir, START_S, str(answer["error"]))


def _not_started(runtime_dir: Path, waited_s: float, reason: str) -> PoolUnreachable:
    fix = "mend what it says there, or give the address of a pool that runs"
    return PoolUnreachable(address=str(runtime_dir), waited_s=waited_s, reason=reason, fix=fix)


def _in_the_way(runtime_dir: Path) -> PoolUnreachable:
    lock = runtime_dir / "pool.lock"
    reason = f"a pool that was started there neither serves nor ends; see {runtime_dir / 'pool.log'}"
    fix = f"end the process that has {lock} open (`fuser {lock}` names it), or give the address of a pool that runs"
    return PoolUnreachable(address=str(runtime_dir), waited_s=START_S, reason=reason, fix=fix)
