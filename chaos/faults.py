"""What is done to a running evaluation from outside: to its processes, its journal and its pool."""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from chaos.processes import PoolProcesses, send
from chaos.run_process import journal_file, pool_root
from chaos.scenario import ROOT

LONGEST_PAUSE_S = 3.0
LOCK_S = 1.0
SERVED_S = 10.0
"""A bridge that has lived for so long is none of those that only end."""
MOST_BRIDGES = 4
"""The pool bears one more in a row."""


@dataclass(slots=True)
class Scene:
    """The campaign as a fault sees it. What a fault leaves to be undone goes into `later`."""

    folder: Path
    environment: Mapping[str, str]
    rng: random.Random
    run: subprocess.Popen[bytes] = field(init=False)
    outcomes: int = 0
    """Recorded so far."""
    pool: PoolProcesses = field(init=False)
    later: list[tuple[float, Callable[[], object]]] = field(default_factory=list)
    in_turn: list[tuple[int, Callable[[], object]]] = field(default_factory=list)
    companions: list[subprocess.Popen[bytes]] = field(default_factory=list)
    told_to_end: bool = False
    """Whether the run was killed, or told to end."""
    pool_killed: bool = False
    """Whether the pool was killed since the run that uses it was started."""
    quiet_until: int = 0
    """No fault that everybody feels before so many outcomes are recorded: after each, the pool serves again."""
    bridges: int = 0
    """Bridges in a row that were killed young."""

    def __post_init__(self) -> None:
        self.pool = PoolProcesses(pool_root(self.folder))

    def after(self, seconds: float, undo: Callable[[], object]) -> None:
        """Have *undo* called later: of what stands still nothing else can say when."""
        self.later.append((time.monotonic() + seconds, undo))

    def after_outcomes(self, count: int, undo: Callable[[], object]) -> None:
        """Have *undo* called once so many more outcomes are recorded."""
        self.in_turn.append((self.outcomes + count, undo))

    def undo(self, *, everything: bool = False) -> None:
        """Undo what is due."""
        for waiting, now in ((self.later, time.monotonic()), (self.in_turn, self.outcomes)):
            for one in [one for one in waiting if everything or one[0] <= now]:
                waiting.remove(one)  # type: ignore[arg-type]
                one[1]()

    def start(self, module: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Start a process of the campaign."""
        with (self.folder / "run.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", module, str(self.folder), *arguments],
                cwd=ROOT,
                env=dict(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


Fault = Callable[[Scene], bool]
"""Does it, and returns whether it could: what it is aimed at may be away just now."""


def _to_worker(number: signal.Signals) -> Fault:
    def fault(scene: Scene) -> bool:
        workers = scene.pool.workers()
        return bool(workers) and send(scene.rng.choice(workers), number)

    return fault


def _pause(process: psutil.Process | None, scene: Scene) -> bool:
    if process is None or not send(process, signal.SIGSTOP):
        return False
    scene.after(scene.rng.uniform(0.2, LONGEST_PAUSE_S), lambda: send(process, signal.SIGCONT))
    return True


def _pause_worker(scene: Scene) -> bool:
    workers = scene.pool.workers()
    return bool(workers) and _pause(scene.rng.choice(workers), scene)


def _pause_bridge(scene: Scene) -> bool:
    return _pause(scene.pool.bridge(), scene)


def _kill_bridge(scene: Scene) -> bool:
    bridge = scene.pool.bridge()
    if bridge is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        young = time.time() - bridge.create_time() < SERVED_S
        if young and scene.bridges >= MOST_BRIDGES:
            return False
        scene.bridges = scene.bridges + 1 if young else 1
        return send(bridge, signal.SIGKILL)
    return False


def _kill_supervisor(scene: Scene) -> bool:
    supervisor = scene.pool.supervisor()
    if supervisor is None or not send(supervisor, signal.SIGKILL):
        return False
    scene.pool_killed = True
    scene.bridges = 0
    return True


def _to_run(number: signal.Signals) -> Fault:
    def fault(scene: Scene) -> bool:
        scene.run.send_signal(number)
        scene.told_to_end = True
        return True

    return fault


def _lock_journal(scene: Scene) -> bool:
    # As long as its owner likes: a writer waits, and the run's loop with it.
    lock = sqlite3.connect(journal_file(scene.folder), isolation_level=None, timeout=5.0)
    try:
        lock.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        lock.close()
        return False

    def release() -> None:
        lock.execute("ROLLBACK")
        lock.close()

    scene.after(LOCK_S, release)
    return True


def _stranger(what: str) -> Fault:
    def fault(scene: Scene) -> bool:
        scene.companions.append(scene.start("chaos.stranger", what))
        return True

    return fault


def _twin(scene: Scene) -> bool:
    twin = scene.start("chaos.run_process")
    scene.companions.append(twin)
    scene.after_outcomes(scene.rng.randint(100, 1_000), twin.kill)
    return True


OUTSIDE: Mapping[str, tuple[float, Fault]] = {
    "worker: SIGKILL": (6, _to_worker(signal.SIGKILL)),
    "worker: SIGSEGV": (4, _to_worker(signal.SIGSEGV)),
    "worker: SIGTERM": (2, _to_worker(signal.SIGTERM)),
    "worker: stopped for a while": (5, _pause_worker),
    "bridge: SIGKILL": (2, _kill_bridge),
    "bridge: stopped for a while": (4, _pause_bridge),
    "supervisor: SIGKILL": (0.7, _kill_supervisor),
    "run: SIGKILL": (2, _to_run(signal.SIGKILL)),
    "run: SIGTERM": (1, _to_run(signal.SIGTERM)),
    "run: SIGINT": (1, _to_run(signal.SIGINT)),
    "run: a second one of the same plan": (1, _twin),
    "journal: locked by another process": (8, _lock_journal),
    "client: submits and vanishes": (2, _stranger("vanishes")),
    "client: cancels everything": (2, _stranger("cancels")),
}
"""Weight and deed of each kind; what costs seconds of computing is rarer."""

FELT_BY_ALL = frozenset({"bridge: SIGKILL", "supervisor: SIGKILL", "run: SIGKILL", "run: SIGTERM", "run: SIGINT"})


def schedule(*, seed: int, count: int, trials: int) -> list[tuple[int, str]]:
    """Return what is done after how many recorded outcomes: each kind once, the others by weight, in order."""
    rng = random.Random(f"faults-{seed}")
    kinds = list(OUTSIDE)
    rng.shuffle(kinds)
    chosen = kinds[:count] + rng.choices(kinds, [OUTSIDE[kind][0] for kind in kinds], k=max(0, count - len(kinds)))
    rng.shuffle(chosen)
    moments = sorted(rng.randint(trials // 50, trials * 85 // 100) for _ in chosen)
    return list(zip(moments, chosen, strict=True))
