"""`dspex pool stop` beside pools that are just being started."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from collections.abc import Iterator
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


@pytest.fixture
def held_start(shell: Shell, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[IO[bytes]]:
    """A pool that is being started, until what is given is closed."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(shell.folder))
    os.mkfifo(shell.folder / "gate")
    (shell.folder / "sitecustomize.py").write_text(HELD_BRIDGE.format(gate=str(shell.folder / "gate")))
    shell.environment["PYTHONPATH"] += f":{shell.folder}"
    shell.start(command=STARTERS[request.param])
    opened: list[IO[bytes]] = []

    def at_the_gate() -> bool:
        # It can be opened so once its bridge reads there.
        with contextlib.suppress(OSError):
            opened.append(os.fdopen(os.open(shell.folder / "gate", os.O_WRONLY | os.O_NONBLOCK), "wb"))
        return bool(opened)

    until(at_the_gate)
    with opened[0] as gate:
        yield gate


@pytest.mark.parametrize("held_start", STARTERS, indirect=True)
def test_stop_ends_a_pool_that_is_being_started(
    held_start: IO[bytes], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        r"a pool is still starting after 0 s; see \S+/pool.log, or try again", str(run("pool", "stop").exception)
    )


@pytest.mark.usefixtures("held_start")
@pytest.mark.parametrize("held_start", ["foreground"], indirect=True)
def test_a_start_that_is_killed_is_not_waited_for(shell: Shell, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (process,) = shell.started
    process.kill()
    process.wait()
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("it is waited for"))
    assert run("pool", "stop").output == "No pool of yours runs on this machine.\n"
