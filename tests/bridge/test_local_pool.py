"""The local pool: one for each identity, joined by all, gone without a trace."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.engine.recycling import Recycling
from dspex_pipelines.errors import InvalidValue


@pytest.fixture
def root() -> Iterator[Path]:
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    yield folder
    local_pool.stop(runtime_root=folder)
    shutil.rmtree(folder)


def until(true: Callable[[], bool], within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def workers(pool: local_pool.LocalPoolStatus) -> list[psutil.Process]:
    return [child for child in psutil.Process(pool.pid).children() if "dspex_pipelines.worker" in command_of(child)]


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; none of one that has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is none either
        return process.cmdline()
    return []


def test_leases_share_one_pool_that_ends_when_idle(root: Path) -> None:
    with (
        local_pool.lease(workers=1, slots=4, idle_s=0.5, runtime_root=root) as first,
        local_pool.lease(workers=1, slots=4, idle_s=0.5, runtime_root=root) as second,
    ):
        assert first.address == second.address
        (pool,) = local_pool.status(runtime_root=root)
        processes = [psutil.Process(pool.pid)]
        socket = Path(first.address.removeprefix("unix:"))
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        # The bridge, the worker, and what forks that one's isolated trials.
        until(lambda: len(family(pool.pid)) == 3)
        processes += family(pool.pid)
    until(lambda: all(map(gone, processes)))
    assert not socket.exists()
    assert local_pool.status(runtime_root=root) == ()


def test_a_killed_worker_is_replaced(root: Path) -> None:
    with local_pool.lease(workers=1, slots=4, idle_s=5, runtime_root=root):
        (pool,) = local_pool.status(runtime_root=root)
        until(lambda: len(workers(pool)) == 1)
        (first,) = workers(pool)
        first.kill()
        until(lambda: [worker.pid for worker in workers(pool)] not in ([], [first.pid]))


def test_when_memory_runs_out_workers_go_first(root: Path) -> None:
    """A worker that the kernel ends is then replaced as any other that is killed."""

    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    with local_pool.lease(workers=1, slots=4, idle_s=5, runtime_root=root):
        (pool,) = local_pool.status(runtime_root=root)
        until(lambda: len(workers(pool)) == 1 and len(workers(pool)[0].children()) == 2)
        (worker,) = workers(pool)
        others = [pool.pid, *(one.pid for one in psutil.Process(pool.pid).children() if one != worker)]
        assert len(others) == 2
        assert all(score(other) < score(worker.pid) for other in others)


def test_pools_of_other_limits_are_other_pools(root: Path) -> None:
    limits = [Recycling(), Recycling(max_rss_mb=100), Recycling(max_trials=100)]
    with contextlib.ExitStack() as held:
        for recycling in limits:
            held.enter_context(local_pool.lease(workers=1, slots=4, idle_s=5, recycling=recycling, runtime_root=root))
        pools = local_pool.status(runtime_root=root)
        # A pool is up before its workers are.
        until(lambda: [len(workers(pool)) for pool in pools] == [1, 1, 1])
        commands = [" ".join(worker.cmdline()) for pool in pools for worker in workers(pool)]
    for option, given in {"--max-rss-mb ": ["100", "2048", "2048"], "--max-trials ": ["0", "0", "100"]}.items():
        assert sorted(command.partition(option)[2].split()[0] for command in commands) == given


def test_a_killed_supervisor_leaves_nobody_and_is_followed(root: Path) -> None:
    with local_pool.lease(workers=1, slots=4, idle_s=5, runtime_root=root):
        (pool,) = local_pool.status(runtime_root=root)
        children = family(pool.pid)
        os.kill(pool.pid, signal.SIGKILL)
        until(lambda: all(map(gone, children)))
    with local_pool.lease(workers=1, slots=4, idle_s=5, runtime_root=root):
        (next_pool,) = local_pool.status(runtime_root=root)
        assert next_pool.pid != pool.pid


def test_stop_leaves_no_process_and_no_socket(root: Path) -> None:
    with local_pool.lease(workers=1, slots=4, idle_s=60, runtime_root=root) as lease:
        (pool,) = local_pool.status(runtime_root=root)
        children = family(pool.pid)
        assert local_pool.stop(runtime_root=root) == 1
        assert all(map(gone, children))
        assert not Path(lease.address.removeprefix("unix:")).exists()


def test_a_folder_that_others_may_read_is_refused(root: Path) -> None:
    root.chmod(0o755)
    with pytest.raises(InvalidValue, match="mode 700"), local_pool.lease(runtime_root=root):
        pass


def test_a_path_too_long_for_a_socket_is_refused(root: Path) -> None:
    with pytest.raises(InvalidValue, match="107 bytes"), local_pool.lease(runtime_root=root / ("x" * 100)):
        pass


def test_another_environment_is_another_pool(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL", "one")
    with local_pool.lease(workers=1, slots=1, idle_s=0, runtime_root=root) as first:
        monkeypatch.setenv("TERM", "another-terminal")
        with local_pool.lease(workers=1, slots=1, idle_s=0, runtime_root=root) as same:
            assert same.address == first.address
        monkeypatch.setenv("MODEL", "two")
        with local_pool.lease(workers=1, slots=1, idle_s=0, runtime_root=root) as other:
            assert other.address != first.address
