"""docs/quickstart.md is followed to the letter, in an empty folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.test_project import ROOT

PAGE = (ROOT / "docs" / "quickstart.md").read_text()
BLOCK = re.compile(r"(?:^`(?P<file>[\w/.]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
COMMANDS = [line for block in BLOCK.finditer(PAGE) if block["language"] == "sh" for line in block["text"].splitlines()]
MINUTES = 5


def script() -> str:
    """The page as one script: its commands, each told before it runs, and its files."""
    said: list[str] = []
    for block in BLOCK.finditer(PAGE):
        if block["file"]:
            said.append(f"cat > {block['file']} <<'END OF FILE'\n{block['text']}END OF FILE")
        else:
            said += [f"echo '$ {line}'\n{line}" for line in block["text"].splitlines()]
    return "\n".join(["set -e", *said])


def test_there_are_ten_commands_at_most() -> None:
    assert 5 <= len(COMMANDS) <= 10


@pytest.mark.timeout(MINUTES * 60)
def test_the_quickstart_is_quick_and_ends_with_a_leaderboard(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "COLUMNS": "200",
        "DAGSTER_DISABLE_TELEMETRY": "1",
        "DAGSTER_DG_UPDATE_CHECK_ENABLED": "0",
    }
    started = time.monotonic()
    done = subprocess.run(
        ["bash", "-c", script()],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=MINUTES * 60,
        check=False,
    )
    told = dict(part.split("\n", 1) for part in done.stdout.split("\n$ ")[1:] if "\n" in part)
    assert done.returncode == 0, done.stdout
    assert time.monotonic() - started < MINUTES * 60
    board = told["dspex leaderboard src/my_project/defs/sentiment"]
    assert re.search(r"1 │ threshold=1 negation=True +│ 10 │ 1\.000", board), board
    assert "60/60" in told["dspex evaluate src/my_project/defs/sentiment"]
    assert "loaded successfully" in told["dg check defs"]
    launched = told["dg launch --job sentiment_job --partition all"]
    assert "60 trials: 0 run (0 failed), 0 scored again, 60 reused" in launched
    assert "RUN_SUCCESS" in launched
