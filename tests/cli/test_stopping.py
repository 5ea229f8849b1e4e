"""`dspex pool stop` beside pools that are just being started."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from dspex_pipelines.bridge import local_pool
from tests.bridge.test_local_pool import until
from tests.cli.conftest import DSPEX, Run, Shell

STARTERS = {
    "foreground": (*DSPEX, "pool", "start", "--address", "127.0.0.1:0", "--workers", "1"),
    "detached": (*DSPEX, "pool", "start", "--address", "127.0.0.1:0", "--workers", "1", "--detach"),
    "local": (
        sys.executable,
        "-c",
        "from dspex_pipelines.bridge.local_pool import lease\nwith lease(workers=1): pass",
    ),
}
HELD_BRIDGE = """
import sys
if sys.orig_argv[1:3] == ["-m", "dspex_pipelines.bridge"]:
    open({gate!r}).read()
"""


def prepare_gate(shell: Shell) -> Path:
    """Have every bridge that is started from here wait at the gate that is returned."""
    gate = shell.folder / "gate"
    os.mkfifo(gate)
    (shell.folder / "sitecustomize.py").write_text(HELD_BRIDGE.format(gate=str(gate)))
    shell.environment["PYTHONPATH"] += f":{shell.folder}"
    return gate


def bridge_at(gate: Path) -> IO[bytes]:
    """Return once a bridge waits there; it waits until what is returned is closed."""
    opened: list[IO[bytes]] = []

    def at_the_gate() -> bool:
        # It can be opened so once its bridge reads there.
        with contextlib.suppress(OSError):
            opened.append(os.fdopen(os.open(gate, os.O_WRONLY | os.O_NONBLOCK), "wb"))
        return bool(opened)

    until(at_the_gate)
    return opened[0]


@pytest.fixture
def held_start(shell: Shell, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[IO[bytes]]:
    """A pool that is being started, until what is given is closed."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shell.folder))
    gate = prepare_gate(shell)
    shell.start(command=STARTERS[request.param])
    with bridge_at(gate) as held:
        yield held


@pytest.mark.parametrize(
    ("held_start", "starter_killed"),
    [
        *(pytest.param(name, False, id=name) for name in STARTERS),
        *(pytest.param(name, True, id=f"{name}-orphaned") for name in STARTERS if name != "foreground"),
    ],
    indirect=["held_start"],
)
def test_stop_ends_a_pool_that_is_being_started(
    shell: Shell, held_start: IO[bytes], run: Run, monkeypatch: pytest.MonkeyPatch, *, starter_killed: bool
) -> None:
    if starter_killed:
        (process,) = shell.started
        process.kill()
        process.wait()
    sleep = time.sleep
    waited: list[float] = []

    def wait(for_s: float) -> None:
        held_start.close()
        waited.append(for_s)
        sleep(for_s)

    monkeypatch.setattr(time, "sleep", wait)
    assert run("pool", "stop").output == "1 ended\n"
    assert waited
    assert local_pool.status() == ()


@pytest.mark.usefixtures("held_start")
@pytest.mark.parametrize("held_start", ["foreground"], indirect=True)
def test_a_start_that_takes_too_long_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_pool, "START_S", 0.0)
    assert re.fullmatch(
        r"a pool is still starting or ending after 0 s; see \S+/pool.log, or try again",
        str(run("pool", "stop").exception),
    )


@pytest.mark.usefixtures("held_start")
@pytest.mark.parametrize("held_start", ["foreground"], indirect=True)
def test_a_start_that_is_killed_is_not_waited_for(shell: Shell, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (process,) = shell.started
    process.kill()
    process.wait()
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is waited for"))
    assert run("pool", "stop").output == "No pool of yours runs on this machine.\n"
