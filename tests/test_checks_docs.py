"""docs/checks.md is followed to the letter, in an empty folder, by subprocesses."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.test_readme import ROOT

PAGE = (ROOT / "docs" / "checks.md").read_text()


def run(home: Path, script: str, code: int = 0) -> str:
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home / ".dagster_home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT}:{home}",
    }
    done = subprocess.run(
        ["sh", "-c", script], cwd=home, capture_output=True, text=True, env=environment, timeout=110, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_the_page_is_true(tmp_path: Path) -> None:
    program, declaration = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "evaluation.py").write_text(declaration)
    first, worse = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    passed, shown = re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL)
    assert run(tmp_path, first).endswith(passed)
    told = run(tmp_path, worse, code=3)
    assert told.index("best") < told.index(shown), "below the leaderboard"
    assert "Check " not in told.replace(shown, "")
    inline = re.findall(r"`(FailureRate\(at_most=0[^`]*)`", PAGE)
    assert inline
    for snippet in inline:
        run(tmp_path, f"{sys.executable} -c 'from dspex_pipelines import *; {snippet}'")
