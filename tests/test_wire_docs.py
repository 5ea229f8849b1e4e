"""docs/wire.md is followed to the letter: its bridge, its worker and its clients are run, and its numbers looked up."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from dspex.v1 import execution_pb2, pool_pb2, session_pb2, worker_pb2
from dspex_pipelines.bridge import holding, hub, server, services, session_service
from dspex_pipelines.bridge.sessions import SessionLimits
from dspex_pipelines.wire import codec

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/wire.md").read_text()
SNIPPET = re.compile(r"```(sh|python)\n(.*?)```(?:\n\n```text\n(.*?)```)?", re.DOTALL)
SNIPPETS = {
    re.match(r"# (\w+)\.py", source)[1] if language == "python" else "bridge": (source, said)  # type: ignore[index]
    for language, source, said in SNIPPET.findall(TEXT)
}
CLIENTS = ["client", "many", "refused", "drain"]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Where the document's bridge serves, with the document's worker attached."""
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    environment = {**os.environ, **path, "DSPEX_ADDRESS": f"unix:{folder}/s"}
    # exec, so that what is ended is the bridge and not its shell.
    bridge = subprocess.Popen(
        ["sh", "-c", f"exec {SNIPPETS['bridge'][0]}"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert bridge.stdout is not None
    assert json.loads(bridge.stdout.readline()) == {"address": environment["DSPEX_ADDRESS"]}
    worker = subprocess.Popen([sys.executable, "-c", SNIPPETS["worker"][0]], cwd=folder, env=environment)
    yield environment
    for process in (bridge, worker):
        process.terminate()
        process.wait(10)
    bridge.stdout.close()
    shutil.rmtree(folder)


def test_it_speaks_the_version_that_is_spoken() -> None:
    assert set(re.findall(r"protocol_version=(\d+)", TEXT)) == {str(codec.PROTOCOL_VERSION)}


def test_every_snippet_is_run() -> None:
    assert TEXT.count("```sh\n") + TEXT.count("```python\n") == len(SNIPPETS)
    assert sorted(SNIPPETS) == sorted(["bridge", "worker", *CLIENTS])
    assert TEXT.count("```text\n") == len(CLIENTS)


@pytest.mark.parametrize("name", CLIENTS)
def test_a_snippet_says_what_it_is_said_to(environment: dict[str, str], name: str) -> None:
    """In the document's order: the last one drains the pool."""
    source, said = SNIPPETS[name]
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.returncode) == (said, 0), done.stderr


ROWS = re.findall(r"^\| ([\d,]+)( MiB| KiB| s|) \|.*\| `(\w+)` \|$", TEXT, re.MULTILINE)


@pytest.mark.parametrize(("number", "unit", "name"), ROWS, ids=[name for _, _, name in ROWS])
def test_a_limit_is_what_it_is_said_to_be(number: str, unit: str, name: str) -> None:
    limits = asdict(SessionLimits())
    known = [
        vars(module)[name]
        for module in (codec, hub, holding, server, services, session_service)
        if name in vars(module)
    ]
    (value,) = {limits[name]} if name in limits else set(known)
    said = int(number.replace(",", "")) * {" MiB": 1 << 20, " KiB": 1 << 10}.get(unit, 1)
    assert said == value
    assert unit in (
        (" MiB", " KiB") if name.endswith(("BYTES", "_bytes", "LIMIT")) and name != "CREDIT_LIMIT" else (" s", "")
    )


def test_every_limit_of_sessions_is_said() -> None:
    assert set(asdict(SessionLimits())) <= {name for _, _, name in ROWS}


def test_every_call_is_named() -> None:
    for module in (session_pb2, execution_pb2, worker_pb2, pool_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            row = next(line for line in TEXT.splitlines() if line.startswith(f"| `{service.name}` |"))
            assert [method.name for method in service.methods if f"`{method.name}`" not in row] == []
