"""What `make dev` shows: one partition launched with real clicks in a real browser, and what is seen of it."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient, PoolStatus
from tests.ui import driving
from tests.ui.driving import DagsterUi, Run

# The first test waits for Dagster's processes to start, and for a run.
pytestmark = pytest.mark.timeout(600)

PICTURES = driving.ROOT / "artifacts" / "ui"
PARTITION, EXAMPLES, CONFIGURATIONS = "numbers", 2, 32
TAGS = {
    "dspex/kind": "evaluation",
    "dspex/evaluation": "stdlib_search",
    "dspex/target": f"stdlib_search/{PARTITION}",
    "dspex/pool": "local",
    "dspex/cost": "free",
    "dagster/partition": PARTITION,
}


# Not of session scope: while Playwright is open its event loop counts as running, which asynchronous tests do not bear.
@pytest.fixture(scope="module")
def browser(require: Callable[[str], Path]) -> Path:
    return require("browser")


@pytest.fixture(scope="module")
def ui(browser: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DagsterUi]:
    with driving.dagster_dev(tmp_path_factory.mktemp("home")) as running:
        yield running


@pytest.fixture(scope="module")
def page(browser: Path) -> Iterator[Page]:
    with driving.browsing(browser) as opened:
        yield opened


@pytest.fixture(autouse=True)
def picture(page: Page, request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep what the browser shows at the end of each test, for people to look at."""
    yield
    PICTURES.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=PICTURES / f"{request.node.name}.png")


@pytest.fixture(scope="module")
def run(page: Page, ui: DagsterUi) -> Run:
    """A run of all assets for one partition, on few examples; its local pool does not outlive it for long."""
    driving.open_launchpad(page, ui)
    driving.launch(page, PARTITION, {"limit": EXAMPLES, "idle_s": 1})
    return ui.ended("leaderboard")


@pytest.fixture
def leaderboard(page: Page, ui: DagsterUi, run: Run) -> Page:
    page.goto(f"{ui.url}/{driving.LEADERBOARD}")
    return page


def test_the_launchpad_has_every_default_and_explains_it(page: Page, ui: DagsterUi) -> None:
    driving.open_launchpad(page, ui)
    written = "\n".join(page.locator(".CodeMirror-line").all_inner_texts())
    for default in (
        "limit: 0",
        "samples: 0",
        "repeats: 1",
        "max_concurrency: 0",
        "trials_per_op: 0",
        "reuse: all",
        "max_attempts: 0",
    ):
        assert f" {default}\n" in written
    page.locator(".CodeMirror-line", has_text="limit:").click()
    # What the launchpad calls help are comments in the schema beside the editor.
    for explained in ("limit", "samples", "repeats", "max_concurrency", "timeout_s", "trials_per_op", "reuse"):
        expect(page.get_by_text(re.compile(rf"/\*[^/]+\*/\s*{explained}\?:")).last).to_be_attached()


def test_a_launched_partition_succeeds_with_its_tags(run: Run) -> None:
    assert run.status == "SUCCESS", run.log
    assert run.tags.items() >= TAGS.items()
    trials = EXAMPLES * CONFIGURATIONS
    assert f"{trials} trials: {trials} run (0 failed), 0 scored again, 0 reused" in run.log


def test_the_run_shows_its_tags(page: Page, ui: DagsterUi, run: Run) -> None:
    page.goto(f"{ui.url}/runs/{run.run_id}")
    page.get_by_role("button", name="View tags and config").click()
    dialog = page.get_by_role("dialog")
    for name, value in TAGS.items():
        expect(dialog.get_by_text(f"{name.removeprefix('dagster/')}: {value}", exact=True)).to_be_visible()
    expect(dialog.get_by_text(f"limit: {EXAMPLES}")).to_be_visible()


def test_the_best_configurations_are_a_table_on_the_page(leaderboard: Page) -> None:
    top = driving.metadata(leaderboard, "top").locator("table")
    rows = top.locator("tbody tr")
    expect(rows).to_have_count(10)
    assert top.locator("th").all_inner_texts() == ["#", "configuration", "n", "reciprocal_rank", "vs best"]
    cells = [row.locator("td").all_inner_texts() for row in rows.all()]
    assert [row[0] for row in cells] == [str(rank) for rank in range(1, 11)]
    assert cells[0][4] == "best"
    expect(driving.metadata(leaderboard, "best")).to_contain_text(cells[0][1])
    scores = [float(row[3].split()[0]) for row in cells]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0


def test_the_whole_leaderboard_opens_as_a_table(leaderboard: Page) -> None:
    table = driving.shown_at_a_click(leaderboard, "leaderboard").locator("table")
    expect(table.locator("tbody tr")).to_have_count(CONFIGURATIONS)
    names = ["#", "configuration", "n", "reciprocal_rank", "hit_at_1", "hit_at_10", "failures", "bounds", "vs best"]
    assert table.locator("th").all_inner_texts() == names


def test_the_plot_opens_as_a_picture(leaderboard: Page) -> None:
    picture = driving.shown_at_a_click(leaderboard, "plot").get_by_role("img", name="leaderboard")
    expect(picture).to_be_visible()
    # A picture that the browser cannot decode has no size of its own.
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") == 900


def test_the_graph_shows_what_is_materialised(page: Page, ui: DagsterUi, run: Run) -> None:
    page.goto(f"{ui.url}/{driving.GROUP}")
    # One of six partitions, of the data set and of the evaluation.
    expect(page.get_by_text(re.compile("^1[67]% filled$"))).to_have_count(2)
    expect(page.get_by_text("Materialized", exact=True)).to_have_count(1)


DESCRIBED = "{assetNodes {assetKey {path} description}}"


@pytest.mark.parametrize("asset", ["dataset", "evaluation", "leaderboard"])
def test_an_asset_says_what_it_is(page: Page, ui: DagsterUi, asset: str) -> None:
    nodes = {node["assetKey"]["path"][-1]: node for node in ui.graphql(DESCRIBED)["assetNodes"]}
    page.goto(f"{ui.url}/assets/stdlib_search/{asset}?view=overview")
    expect(page.get_by_text(nodes[asset]["description"].split("\n")[0]).first).to_be_visible()


def test_the_switch_says_what_it_does(page: Page, ui: DagsterUi) -> None:
    page.goto(f"{ui.url}/automation")
    page.get_by_role("link", name="stdlib_search_keep_fresh").click()
    expect(page.get_by_text(re.compile("Off until it is turned on"))).to_be_visible()


def test_a_terminated_run_cancels_its_trials_and_keeps_what_is_done(page: Page, ui: DagsterUi, run: Run) -> None:
    driving.open_launchpad(page, ui)
    # So many trials that it would run for many minutes; in one step, so that what is recorded is of its middle.
    driving.launch(page, PARTITION, {"repeats": 2000, "trials_per_op": 10_000_000, "idle_s": 5})
    terminated = page.url.rpartition("/")[2]
    before = recorded(ui)
    deadline = time.monotonic() + 90
    while recorded(ui) < before + 500:
        assert time.monotonic() < deadline, ui.log.read_text()[-2000:]
        time.sleep(0.1)
    page.get_by_role("button", name="Terminate").click()
    page.get_by_role("dialog").get_by_role("button", name="Terminate").click()
    ended = ui.ended("evaluation")
    assert (ended.run_id, ended.status) == (terminated, "CANCELED"), ended.log
    assert recorded(ui) >= before + 500
    (pool,) = local_pool.status(runtime_root=ui.runtime_root)
    deadline = time.monotonic() + 30
    while (status := run_apart(pool_status(pool.address))).in_flight or status.queue_depth or status.clients > 1:
        assert time.monotonic() < deadline, status
        time.sleep(0.1)


def recorded(ui: DagsterUi) -> int:
    """How many executions the journal has."""
    with sqlite3.connect(ui.home / "storage" / "dspex" / "journal.sqlite") as journal:
        return journal.execute("SELECT count(*) FROM executions").fetchone()[0]


async def pool_status(address: str) -> PoolStatus:
    async with PoolClient(address) as client:
        return await client.status()


def run_apart(coroutine: Coroutine[Any, Any, PoolStatus]) -> PoolStatus:
    """In a thread of its own: Playwright's loop runs in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()
