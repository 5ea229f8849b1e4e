"""Programs tell their keys in every way that they can; whatever is kept, shown or logged is searched for these."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.loopback.process import serving
from tests.secrets.scanning import CommandLines, files, found, text_of

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
DEADLINE_S = 120
pytestmark = pytest.mark.timeout(400)
pytest.importorskip("dspy")
UI = """{
  runsOrError(limit: 50) {... on Runs {results {
    runId status runConfigYaml tags {key value}
    eventConnection(limit: 1000) {events {
      ... on MessageEvent {message eventType}
      ... on ExecutionStepFailureEvent {error {message stack causes {message stack} errorChain {error {message stack}}}
        failureMetadata {metadataEntries {label ... on TextMetadataEntry {text}}}}
      ... on EngineEvent {error {message stack}}
    }}
  }}}
  assetNodes {assetKey {path} description
    assetMaterializations(limit: 5) {metadataEntries {label description
      ... on TextMetadataEntry {text} ... on MarkdownMetadataEntry {mdStr} ... on PathMetadataEntry {path}
      ... on TableMetadataEntry {table {records}} ... on JsonMetadataEntry {jsonString}
      ... on TableSchemaMetadataEntry {schema {columns {name}}}}}}
  repositoriesOrError {... on RepositoryConnection {nodes {
    allTopLevelResourceDetails {name configuredValues {key value type}}}}}
}"""


class Leaking:
    """A folder in which everything is evaluated, an instance, and a folder of local pools."""

    def __init__(self, *, taken_out: bool) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="dspex-s-"))
        self.work, self.home, self.runtime = (self.root / name for name in ("work", "home", "run"))
        for folder in (self.work, self.home):
            folder.mkdir()
        self.runtime.mkdir(mode=0o700)
        self.mark = f"mark{secrets.token_hex(8)}"
        names = ("CANARY_API_KEY", "CANARY_OF_DAGSTER", "CANARY_LATE_TOKEN")
        self.canaries = {name: f"cnry{secrets.token_hex(16)}" for name in names}
        (self.work / "late").write_text(self.canaries["CANARY_LATE_TOKEN"])
        shutil.copy(HERE / "leaks.py", self.work)
        shutil.copy(HERE / "defined.py", self.work)
        (self.work / "broken.py").write_text(
            "import leaks\n\n\ndef leak(way):\n    pass\n\n\nraise OSError(leaks.TOLD)\n"
        )
        (self.home / "dagster.yaml").write_text("telemetry:\n  enabled: false\n")
        exempt = {} if taken_out else {"DSPEX_NOT_SECRETS": ",".join((*names, "CANARY_GIVEN_KEY"))}
        given = {name: self.canaries[name] for name in names[:2]}
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("DSPEX_", "DAGSTER_"))},
            **given,
            **exempt,
            "CANARY_MARK": self.mark,
            "PYTHONPATH": f"{ROOT}:{self.work}",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_RUNTIME_DIR": str(self.runtime),
            "DAGSTER_HOME": str(self.home),
            "DSPY_CACHEDIR": str(self.root / "cache"),
            "COLUMNS": "400",
        }
        self.said: dict[str, str] = {}
        """What commands printed."""

    def run(self, *command: str, code: int | None = 0) -> str:
        done = subprocess.run(
            command,
            cwd=self.work,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        told = done.stdout + done.stderr
        self.said[" ".join(command)] = told
        assert code is None or done.returncode == code, told
        return told

    def run_all(self, *commands: tuple[str, ...], code: int | None = 0) -> list[str]:
        """Run commands that need not wait for each other, one on each core: most of their time is imports."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return list(threads.map(lambda command: self.run(*command, code=code), commands))

    def end(self) -> None:
        local_pool.stop(runtime_root=self.runtime / "dspex")
        shutil.rmtree(self.root, ignore_errors=True)

    def evaluate(self) -> None:
        """Everything from the command line, and the same by Dagster's own, with steps in processes."""
        self.run("dspex", "evaluate", "leaks:SHARED", "--workers", "1")
        # At once: the pool ends when nobody has used it for a minute.
        listed = json.loads(self.run("dspex", "trials", "leaks:SHARED", "--json", "--limit", "0"))
        self.trials = {row["example_id"]: row["trial_id"] for row in listed}
        self.run_all(
            ("dspex", "pool", "status"),
            ("dspex", "pool", "status", "--json"),
            ("dspex", "leaderboard", "leaks:SHARED"),
            ("dspex", "leaderboard", "leaks:SHARED", "--json"),
            ("dspex", "trials", "leaks:SHARED"),
            *(
                ("dspex", "trace", self.trials[way], "leaks:SHARED", *options)
                for way in ("asks", "retries", "raises")
                for options in ((), ("--json",))
            ),
        )
        replayed = ("raises", "returns", "prints", "asks", "metric_raises")
        self.run_all(*(("dspex", "replay", self.trials[way], "leaks:SHARED") for way in replayed), code=None)
        refused = [("dspex", "evaluate", f"leaks:{name}", "--workers", "1") for name in ("REFUSED", "UNREAD", "BROKEN")]
        assert all("error" in told for told in self.run_all(*refused, code=2))
        for name, code in (("alone", 0), ("unread", 1), ("broken", 1)):
            job = ("dagster", "job", "execute", "-f", "defined.py", "-j", f"{name}_job")
            self.run(*job, "--tags", json.dumps({"dagster/partition": "all", "dagster/max_retries": "0"}), code=code)

    def ui(self) -> str:
        """What the webserver tells a browser of all runs, assets and resources, and of what steps printed."""
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "dagster_webserver", "-f", "defined.py", "-h", "127.0.0.1", "-p", port]
        with (self.root / "webserver.log").open("w") as log:
            server = subprocess.Popen(command, cwd=self.work, env=self.environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + DEADLINE_S
            while True:
                with contextlib.suppress(urllib.error.URLError, ConnectionError):
                    answer = self._ask(url)
                    break
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.2)
        finally:
            server.terminate()
            server.wait(30)
        assert "errors" not in answer, answer["errors"]
        assert '{\\"env\\": \\"CANARY_OF_DAGSTER\\"}' in json.dumps(answer).replace("\\\\\\", "\\"), "its name is shown"
        return json.dumps(answer) + (self.root / "webserver.log").read_text()

    def _ask(self, url: str) -> dict[str, Any]:
        request = urllib.request.Request(
            f"{url}/graphql", json.dumps({"query": UI}).encode(), {"content-type": "application/json"}
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as response:
            return json.load(response)

    def sinks(self) -> dict[str, str]:
        """Return the text of everything that is kept, file by file, and of what was printed."""
        kept = {
            str(path.relative_to(self.root)): text_of(path)
            for folder in (self.home, self.runtime)
            for path in files(folder)
        }
        return {**kept, **self.said}


def of_kind(name: str) -> str:
    """Return what kind of sink that is."""
    kinds = {
        r"home/storage/dspex/journal\.sqlite": "journal",
        r"home/.*trials\.parquet$": "results",
        r"home/storage/.*compute_logs.*": "compute logs",
        r"home/history/.*": "event log",
        r"run/.*pool\.log$": "pool's log",
        r"dspex (\w+)( status)?.*": r"dspex \1",
        r"dagster job.*": "dagster job",
    }
    for pattern, kind in kinds.items():
        if matched := re.match(pattern, name):
            return matched.expand(kind)
    return name


EXPECTED = {
    *("journal", "results", "event log", "pool's log", "dspex trials", "dspex trace", "dspex replay", "dspex pool"),
    *("dspex evaluate", "dagster job", "ui"),
}
"""Kinds of sinks in which the mark, which goes with each canary, is to be found."""


@contextlib.contextmanager
def refusing() -> Generator[str]:
    """Serve a provider that takes no key, and repeats it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["content-length"])).decode()
            mark = re.search(r"mark[0-9a-f]{16}", asked)
            key = self.headers["authorization"].removeprefix("Bearer ")
            message = f"{mark[0] if mark else ''} Incorrect API key provided: {key}."
            error = {"message": message, "type": "invalid_request_error", "code": "invalid_api_key"}
            body = json.dumps({"error": error}).encode()
            self.send_response(401)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is called there
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()


@pytest.fixture(scope="module", params=[True, False], ids=["taken-out", "left-in"])
def searched(request: pytest.FixtureRequest) -> Iterator[tuple[bool, Leaking, dict[str, str], set[str]]]:
    """Evaluate once with redaction and once without; what was found is looked at by the tests."""
    leaking = Leaking(taken_out=request.param)
    try:
        with serving() as server, refusing() as other, CommandLines() as commands:
            leaking.environment |= {"CANARY_SERVER": server.base_url, "CANARY_REFUSING": other}
            leaking.evaluate()
            leaking.said["ui"] = leaking.ui()
            sinks = leaking.sinks()
        yield request.param, leaking, sinks, commands.seen
    finally:
        leaking.end()


def test_a_canary_is_nowhere_and_its_mark_is_everywhere(
    searched: tuple[bool, Leaking, dict[str, str], set[str]],
) -> None:
    taken_out, leaking, sinks, commands = searched
    marked = {of_kind(name) for name, text in sinks.items() if leaking.mark in text}
    assert marked >= EXPECTED, "where nothing is told, that nothing is found says nothing"
    told = found(sinks, leaking.canaries)
    if taken_out:
        assert told == {}
        assert any("[redacted CANARY_API_KEY]" in text for text in sinks.values())
        assert any("[redacted CANARY_GIVEN_KEY]" in text for text in sinks.values())
        assert any("[redacted CANARY_LATE_TOKEN]" in text for text in sinks.values())
    else:
        assert {of_kind(name) for name in told} >= EXPECTED, "the search would have found it"
        assert {name for names in told.values() for name in names} == set(leaking.canaries)
    assert any("dspex_pipelines.worker" in command for command in commands)
    assert found({one: one for one in commands}, leaking.canaries) == {}
