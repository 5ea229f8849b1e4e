"""Programs are found by workers where Dagster has found what declares them, whatever `PYTHONPATH` says."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from dspex_pipelines.bridge import local_pool

ROOT = Path(__file__).parents[2]
PROGRAM = """
def program(x, k):
    return x * k

def right(example, outputs):
    return outputs == example.labels["y"]
"""
DECLARATION = """
from dspex_pipelines import ConfigurationSpace, Dataset, Evaluation, Integer, build_evaluation

defs = build_evaluation(Evaluation(
    name="found",
    dataset=Dataset(source=lambda: [{"x": x, "y": x} for x in range(5)], inputs=("x",), labels=("y",)),
    program="answering:program",
    metrics=("answering:right",),
    space=ConfigurationSpace(variables=(Integer(name="k", low=1, high=2, points=(1, 2)),)),
))
"""


@pytest.mark.parametrize(
    ("place", "options"),
    [
        pytest.param("src", ["-m", "declared", "-d", "src"], id="as-dg-does"),
        pytest.param(".", ["-f", "declared.py"], id="beside-what-declares-it"),
    ],
)
def test_all_trials_succeed(tmp_path: Path, runtime_root: Path, place: str, options: list[str]) -> None:
    code = tmp_path / place
    code.mkdir(exist_ok=True)
    (code / "answering.py").write_text(PROGRAM)
    (code / "declared.py").write_text(DECLARATION)
    (tmp_path / "home").mkdir()
    runtime = runtime_root / "found"
    runtime.mkdir(exist_ok=True)
    paths = {"XDG_RUNTIME_DIR": str(runtime), "DAGSTER_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    # The command as it is installed: its folder, not the working folder, is on the path.
    command = [str(Path(sys.executable).parent / "dagster"), "job", "execute", *options, "-j", "found_job"]
    try:
        done = subprocess.run(
            [*command, "--tags", '{"dagster/partition": "all"}'],
            cwd=tmp_path,
            env={**os.environ, **paths},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    finally:
        local_pool.stop(runtime_root=runtime / "dspex")
    assert done.returncode == 0, done.stderr
    with contextlib.closing(sqlite3.connect(tmp_path / "home" / "storage" / "dspex" / "journal.sqlite")) as journal:
        assert journal.execute("SELECT status, count(*) FROM executions GROUP BY status").fetchall() == [(0, 10)]
