"""When steps are copies of the run's process, and when they are not."""

from __future__ import annotations

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
