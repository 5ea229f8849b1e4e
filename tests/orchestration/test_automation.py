"""docs/datasets.md, followed with a real `dagster dev`: files come and change, and nobody clicks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from tests.test_dspy_docs import Reader, blocks
from tests.test_readme import ROOT
from tests.ui.driving import DagsterUi

PAGE = (ROOT / "docs" / "datasets.md").read_text()
DEADLINE_S = 400.0
OTHER_TICKS = 5
pytestmark = pytest.mark.timeout(1_500)

START = """mutation {startSensor(sensorSelector: {repositoryName: "__repository__", repositoryLocationName: "LOCATION",
    sensorName: "shout_keep_fresh"}) {__typename ... on PythonError {message}}}"""
TICKS = """{sensorOrError(sensorSelector: {repositoryName: "__repository__", repositoryLocationName: "LOCATION",
    sensorName: "shout_keep_fresh"}) {... on Sensor {sensorState {ticks(limit: 1000) {tickId status}}}}}"""
STOPPED = """{sensorOrError(sensorSelector: {repositoryName: "__repository__", repositoryLocationName: "LOCATION",
    sensorName: "shout_keep_fresh"}) {... on Sensor {sensorState {status}}}}"""
RUNS = """{runsOrError(limit: 200) {... on Runs {results {runId status tags {key value} assetSelection {path}}}}}"""


class Follower:
    """Somebody with two terminals: one has `dagster dev`."""

    def __init__(self, folder: Path) -> None:
        self.reader = Reader(folder)
        self.reader.environment.update(DAGSTER_HOME=str(folder / ".dagster_home"), XDG_RUNTIME_DIR=str(folder))
        self.folder = folder
        self.ui: DagsterUi
        self.location = ""

    def materialised(self, asset: str, partition: str | None) -> list[dict[str, Any]]:
        """Metadata of each materialisation, newest first."""
        with dg.DagsterInstance.from_config(str(self.folder / ".dagster_home")) as instance:
            wanted = dg.AssetRecordsFilter(
                asset_key=dg.AssetKey(["shout", asset]), asset_partitions=[partition] if partition else None
            )
            records = instance.fetch_materializations(wanted, limit=100).records
            found = [record.asset_materialization for record in records]
            return [{name: value.value for name, value in one.metadata.items()} for one in found if one]

    def graphql(self, query: str) -> dict[str, Any]:
        return self.ui.graphql(query.replace("LOCATION", self.location))

    def until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not what():
            assert time.monotonic() < deadline, self.ui.log.read_text()[-6000:]
            time.sleep(0.3)

    def ticks(self) -> int:
        return len(self.graphql(TICKS)["sensorOrError"]["sensorState"]["ticks"])

    def runs(self) -> list[dict[str, Any]]:
        return self.graphql(RUNS)["runsOrError"]["results"]

    def rests(self) -> bool:
        return all(run["status"] in {"SUCCESS", "FAILURE", "CANCELED"} for run in self.runs())


@pytest.fixture(scope="module")
def follower(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Follower]:
    one = Follower(tmp_path_factory.mktemp("shout"))
    for title in ("Kept fresh", "See it"):
        for language, body in blocks(PAGE, title):
            if language == "python":
                one.reader.write(body)
    _, (_, first), (_, said), *_ = blocks(PAGE, "See it")
    one.reader.sees(said, one.reader.run(first))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    home = one.folder / ".dagster_home"
    one.ui = DagsterUi(url=f"http://127.0.0.1:{port}", log=one.folder / "dev.log", home=home)
    command = [sys.executable, "-m", "dagster", "dev", "-f", "evaluation.py", "--host", "127.0.0.1", "--port", port]
    with one.ui.log.open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=one.folder,
            env={**one.reader.environment, "DAGSTER_DISABLE_TELEMETRY": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        one.until(one.ui.is_up)
        (location,) = one.ui.graphql("{repositoriesOrError {... on RepositoryConnection {nodes {location {name}}}}}")[
            "repositoriesOrError"
        ]["nodes"]
        one.location = location["location"]["name"]
        yield one
    finally:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_every_block_of_the_page_is_followed() -> None:
    followed = [block for title in ("Kept fresh", "See it") for block in blocks(PAGE, title)]
    assert PAGE.count("```") == 2 * len(followed)


def test_nothing_is_on_before_it_is_turned_on(follower: Follower) -> None:
    assert follower.graphql(STOPPED)["sensorOrError"]["sensorState"]["status"] == "STOPPED"
    assert follower.graphql(START)["startSensor"]["__typename"] == "Sensor"
    follower.until(lambda: follower.ticks() >= OTHER_TICKS)
    follower.until(follower.rests)


def test_files_that_come_and_change_are_evaluated_and_ranked(follower: Follower) -> None:
    more = blocks(PAGE, "See it")[4][1]
    follower.reader.run(more)
    for partition, rows in (("monday", 2), ("tuesday", 1), ("wednesday", 4)):
        follower.until(
            lambda partition=partition, rows=rows: any(
                found["examples"] == rows and found["dataset digest"] == dataset["digest"]
                for dataset in follower.materialised("dataset", partition)[:1]
                for found in follower.materialised("evaluation", partition)[:1]
            )
        )
    follower.until(
        lambda: any(one["trials"] == 7 for one in follower.materialised("leaderboard", None)[:1]) and follower.rests()
    )
    (monday, *_) = follower.materialised("evaluation", "monday")
    assert (monday["trials run"], monday["trials reused"]) == (1, 1), "of the changed row alone"
    (wednesday, *_) = follower.materialised("dataset", "wednesday")
    assert wednesday["rows rejected"] == 1
    (_, show), (_, said) = blocks(PAGE, "See it")[5:]
    follower.reader.sees(said, follower.reader.run(show))


def test_a_file_that_is_touched_leads_to_nothing(follower: Follower) -> None:
    follower.until(follower.rests)
    before = {run["runId"] for run in follower.runs()}
    (follower.folder / "data" / "monday.csv").touch()
    ticks = follower.ticks()
    follower.until(lambda: follower.ticks() >= ticks + OTHER_TICKS)
    assert {run["runId"] for run in follower.runs()} == before


def test_runs_that_start_by_themselves_have_the_tags_that_limits_go_by(follower: Follower) -> None:
    evaluated = [
        run for run in follower.runs() if ["shout", "evaluation"] in [k["path"] for k in run["assetSelection"]]
    ]
    assert len(evaluated) >= 3
    for run in evaluated:
        tags = {tag["key"]: tag["value"] for tag in run["tags"]}
        assert tags["dspex/kind"] == "evaluation"
        assert tags["dspex/target"] == f"shout/{tags['dagster/partition']}"
