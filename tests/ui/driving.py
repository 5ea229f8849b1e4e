"""Starts the Dagster UI as `make dev` does, and presses its buttons in a real browser."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, Page, expect, sync_playwright

ROOT = Path(__file__).parents[2]
GROUP = "locations/dspex_pipelines/asset-groups/stdlib_search/lineage"
RESULTS = "assets/stdlib_search/evaluation"
LEADERBOARD = "assets/stdlib_search/leaderboard"
SIZE = (1600, 1000)
RUNS = """{runsOrError(limit: 50) {... on Runs {results {
    runId status tags {key value} assetSelection {path}
    eventConnection(limit: 1000) {events {... on MessageEvent {message}}}
}}}}"""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run that has ended."""

    run_id: str
    status: str
    tags: Mapping[str, str]
    log: str


@dataclass(frozen=True, kw_only=True)
class DagsterUi:
    """The UI at `url`, and its own log."""

    url: str
    log: Path
    home: Path

    @property
    def runtime_root(self) -> Path:
        """Where its runs have their local pools."""
        return self.home / "dspex"

    def graphql(self, query: str) -> dict[str, Any]:
        """Ask the webserver; raises `URLError` while it does not listen yet."""
        body = json.dumps({"query": query}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["data"]

    def is_up(self) -> bool:
        """Tell whether the code location is loaded."""
        with suppress(urllib.error.URLError, ConnectionError):
            return len(self.graphql("{assetNodes {id}}")["assetNodes"]) > 0
        return False

    def ended(self, asset: str, *, within_s: float = 240.0) -> Run:
        """Wait for the end of the newest run that materialises *asset*."""
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            for run in self.graphql(RUNS)["runsOrError"]["results"]:
                if asset in [key["path"][-1] for key in run["assetSelection"] or ()]:
                    if run["status"] in {"SUCCESS", "FAILURE", "CANCELED"}:
                        return Run(
                            run_id=run["runId"],
                            status=run["status"],
                            tags={tag["key"]: tag["value"] for tag in run["tags"]},
                            log="\n".join(e["message"] for e in run["eventConnection"]["events"] if e.get("message")),
                        )
                    break
            time.sleep(0.3)
        raise TimeoutError(f"no run of {asset} ended within {within_s:.0f} s; see {self.log}")


@contextmanager
def dagster_dev(home: Path, *, within_s: float = 240.0) -> Iterator[DagsterUi]:
    """Run `dagster dev` with the instance of *home* on a free port."""
    shutil.copy(ROOT / "dagster.yaml", home)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ui = DagsterUi(url=f"http://127.0.0.1:{port}", log=home / "dev.log", home=home)
    command = [sys.executable, "-m", "dagster", "dev", "--workspace", "workspace.yaml", "--host", "127.0.0.1"]
    with ui.log.open("w") as log:
        process = subprocess.Popen(
            [*command, "--port", port],
            cwd=ROOT,
            env={
                **os.environ,
                "DAGSTER_HOME": str(home),
                "DAGSTER_DISABLE_TELEMETRY": "1",
                "XDG_RUNTIME_DIR": str(home),
            },
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + within_s
        while not ui.is_up():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dagster dev did not come up:\n{ui.log.read_text()[-4000:]}")
            time.sleep(0.2)
        yield ui
    finally:
        # As Ctrl-C does: the whole group, so that code server, daemon and webserver end with it.
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=15)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def browsing(executable: Path) -> Iterator[Page]:
    """Open a page of a headless Chromium."""
    with sync_playwright() as playwright:
        # Containers offer no user namespaces, and the pages are our own.
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=30_000)
        yield page
        browser.close()


SELECT_LINE = """(element, name) => {
    const editor = element.CodeMirror;
    const line = editor.getValue().split("\\n").findIndex(text => text.trim().startsWith(name + ":"));
    const text = editor.getLine(line);
    editor.focus();
    editor.setSelection({line, ch: text.indexOf(name)}, {line, ch: text.length});
}"""
"""Selects what an editor's line says about *name*, from its name to its end."""


def open_launchpad(page: Page, ui: DagsterUi) -> None:
    """Open the launchpad of all assets in the graph."""
    page.goto(f"{ui.url}/{GROUP}")
    page.get_by_role("button", name="Materialize all").locator("xpath=following::button[1]").click()
    page.get_by_text("Open launchpad").click()
    page.locator(".CodeMirror-line", has_text="limit:").wait_for()


def launch(page: Page, partition: str, config: Mapping[str, object]) -> None:
    """Change values of the open launchpad's defaults, choose a partition, and materialise."""
    for name, value in config.items():
        # The line is found by the editor, not by where it was drawn: the page still moves while it loads.
        page.locator(".cm-s-config-editor").evaluate(SELECT_LINE, name)
        page.keyboard.type(f"{name}: {value}")
        expect(page.locator(".CodeMirror-line", has_text=f"{name}:")).to_have_text(f"{name}: {value}")
    page.get_by_placeholder("Partition").click()
    page.get_by_role("menuitem", name=partition).click()
    expect(page.get_by_text("No errors", exact=True)).to_be_visible()
    page.locator(".dagster-portal").get_by_text("Materialize", exact=True).click()
    page.wait_for_url("**/runs/*")


def metadata(page: Page, key: str) -> Locator:
    """Return the row of an asset page's metadata with that key."""
    return page.locator("tr", has=page.locator("td:first-child").get_by_text(key, exact=True))


def shown_at_a_click(page: Page, key: str) -> Locator:
    """Open what the metadata shows at a click, and return the dialog."""
    metadata(page, key).get_by_text("Show Markdown").click()
    return page.get_by_role("dialog")
