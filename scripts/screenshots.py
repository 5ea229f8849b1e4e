"""Takes the README's pictures, of a terminal and of the Dagster UI in a browser: `python -m scripts.screenshots`."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from playwright.sync_api import Page, expect
from rich.console import Console
from rich.text import Text

from tests.conftest import find_browser
from tests.ui import driving

IMAGES = driving.ROOT / "docs" / "images"
COLUMNS = 178


def main() -> int:
    """Evaluate in a new instance, and photograph terminal, graph, checks, leaderboard and plot."""
    browser = find_browser()
    if browser is None:
        print("no Chromium on this machine")
        return 1
    IMAGES.mkdir(parents=True, exist_ok=True)
    home = Path(tempfile.mkdtemp(prefix="dspex-pictures-"))
    try:
        shutil.copy(driving.ROOT / "dagster.yaml", home)
        terminal = home / "evaluate.svg"
        terminal.write_text(_evaluated(home))
        with driving.dagster_dev(home) as ui, driving.browsing(browser) as page:
            _of_terminal(page, terminal)
            _of_graph(page, ui)
            _of_checks(page, ui)
            _of_leaderboard(page, ui)
    finally:
        shutil.rmtree(home)
    for picture in sorted(IMAGES.glob("*.png")):
        print(f"{picture.relative_to(driving.ROOT)}: {picture.stat().st_size // 1000} kB")
    return 0


def _evaluated(home: Path) -> str:
    """Run what `make evaluate` runs in a terminal, and return what it shows as a drawing."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("dspex")), "evaluate", "stdlib_search"],
        cwd=driving.ROOT,
        # Not interactive: the bars are written once, as they are at the end.
        env={**os.environ, "DAGSTER_HOME": str(home), "COLUMNS": str(COLUMNS), "TTY_INTERACTIVE": "0"},
        stdout=theirs,
    )
    os.close(theirs)
    written = b""
    with suppress(OSError):  # how a terminal's other end says that it is closed
        while part := os.read(ours, 65536):
            written += part
    os.close(ours)
    if process.wait() != 0:
        raise RuntimeError(written.decode())
    output = written.decode().replace("\r\n", "\n").replace(str(home), ".dagster_home")
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text.from_ansi(f"$ make evaluate\n{output}"))
        return console.export_svg(title="make evaluate")


def _of_terminal(page: Page, drawing: Path) -> None:
    page.goto(drawing.as_uri())
    _, _, width, height = map(float, str(page.locator("svg").first.get_attribute("viewBox")).split())
    page.set_viewport_size({"width": 1320, "height": round(1320 * height / width)})
    _save(page, "evaluate")


def _of_graph(page: Page, ui: driving.DagsterUi) -> None:
    page.set_viewport_size({"width": 1280, "height": 520})
    page.goto(f"{ui.url}/{driving.GROUP}")
    expect(page.get_by_text("100% filled")).to_have_count(2)
    _save(page, "asset-graph")


def _of_checks(page: Page, ui: driving.DagsterUi) -> None:
    page.set_viewport_size({"width": 1280, "height": 640})
    page.goto(f"{ui.url}/{driving.RESULTS}?view=checks")
    expect(page.get_by_text("failure_rate").first).to_be_visible()
    page.wait_for_load_state("networkidle")
    _save(page, "checks")


def _of_leaderboard(page: Page, ui: driving.DagsterUi) -> None:
    page.set_viewport_size({"width": 1600, "height": 1400})
    page.goto(f"{ui.url}/{driving.LEADERBOARD}")
    row = driving.metadata(page, "top").locator("table tbody tr").nth(4)
    row.wait_for()
    page.wait_for_load_state("networkidle")
    box = row.bounding_box()
    assert box is not None
    page.set_viewport_size({"width": 1600, "height": round(box["y"] + box["height"])})
    _save(page, "leaderboard-ui")
    page.set_viewport_size({"width": 1280, "height": 900})
    driving.shown_at_a_click(page, "plot").get_by_role("img", name="leaderboard").wait_for()
    _save(page, "leaderboard-plot")


def _save(page: Page, name: str) -> None:
    # Dialogs fade in; without animations they are there at once.
    page.screenshot(path=IMAGES / f"{name}.png", animations="disabled")


if __name__ == "__main__":
    sys.exit(main())
