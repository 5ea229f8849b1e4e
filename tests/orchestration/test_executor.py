"""When steps are copies of the run's process, and when they are not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("code", "forks"),
    [
        pytest.param("", True, id="shipped definitions"),
        pytest.param("threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", False, id="thread"),
        pytest.param(
            "threading.Thread(target=time.sleep, args=(60,), daemon=True, name='termination-handler').start()",
            True,
            id="Dagster's own thread",
        ),
        pytest.param(
            "for _ in range(200):\n"
            "    one = threading.Thread(target=int)\n"
            "    one.start()\n"
            "    one.join()\n"
            "    may_fork()",
            True,
            id="threads that have just ended",
        ),
        pytest.param("kept = socket.create_server(('127.0.0.1', 0))", False, id="socket"),
        pytest.param("kept = grpc.insecure_channel('127.0.0.1:1')", False, id="channel"),
        pytest.param("sys.platform = 'darwin'", False, id="another system"),
    ],
)
def test_a_process_is_copied_where_it_has_no_threads_or_connections(code: str, forks: bool) -> None:
    script = (
        "import socket, sys, threading, time\n"
        "import grpc\n"
        "import dspex_pipelines.definitions\n"
        "from dspex_pipelines.orchestration.executor import may_fork\n"
        f"{code}\n"
        "print(may_fork())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.split()[-1] == str(forks)


def test_a_step_ends_with_its_run_though_a_later_one_goes_on(tmp_path: Path) -> None:
    """Of forked processes, later ones hold what earlier ones watch of their parent."""
    script = tmp_path / "run.py"
    script.write_text(
        "import asyncio, multiprocessing, os, pathlib, signal, time\n"
        "from dspex_pipelines.wire import loop\n"
        "begun, ended = pathlib.Path('begun'), pathlib.Path('ended')\n"
        "async def works():\n"
        "    begun.touch()\n"
        "    try:\n"
        "        await asyncio.sleep(100)\n"
        "    finally:\n"
        "        ended.touch()\n"
        "def goes_on():\n"
        "    deadline = time.monotonic() + 60\n"
        "    while not ended.exists() and time.monotonic() < deadline:\n"
        "        time.sleep(0.01)\n"
        "    print('ended' if ended.exists() else 'went on', flush=True)\n"
        "fork = multiprocessing.get_context('fork')\n"
        "fork.Process(target=lambda: loop.run(works())).start()\n"
        "while not begun.exists():\n"
        "    time.sleep(0.01)\n"
        "fork.Process(target=goes_on).start()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout == "ended\n"
