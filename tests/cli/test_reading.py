"""The commands read of the results what they print, and no more: outputs may be large."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from dspex_pipelines.cli import finding, results
from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.orchestration.io_managers import NewestResults
from tests.cli.conftest import EVALUATION, Run, Shell, row
from tests.damaged import damage

RAISED = ("program_exception", "IndexError: 3")
TRIALS = [
    row("a", run_s=3.0, outputs='"first"', **{"score.same": 0.25}),
    row("b", run_s=1.0, outputs='"second"'),
    row("c", run_s=2.0, error=RAISED, outputs=None),
    row("a", run_s=9.0, configuration="beef", outputs='"fourth"'),
]
SPY = """
import sys
import pyarrow.parquet as pq

def told(owner, name):
    read = getattr(owner, name)
    def reads(*given, columns=None, **more):
        print("reads", columns, flush=True)
        return read(*given, columns=columns, **more)
    setattr(owner, name, reads)

told(pq, "read_table")
told(pq.ParquetFile, "iter_batches")
sys.argv[0] = "dspex"
from dspex_pipelines.cli import app, commands
commands.main()
"""


@pytest.fixture
def path(results: Callable[..., None], tmp_path: Path) -> Path:
    """The newest results, in row groups of two."""
    results(*TRIALS)
    return tmp_path / "trials.parquet"


@pytest.mark.parametrize(
    "command",
    ["leaderboard", "leaderboard --json", "leaderboard --metric same", "trials", "trials --failed --sort run_s"],
)
def test_outputs_are_not_read_for_a_list(run: Run, path: Path, command: str) -> None:
    whole = run(*command.split())
    damage(path, "outputs")
    done = run(*command.split())
    assert (done.exit_code, done.output) == (0, whole.output)


def test_outputs_are_not_read_to_find_a_trial(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "newest_results", results.newest_results)
    damage(path, "outputs")
    with pytest.raises(InvalidValue, match="no trial begins with it"):
        finding.find_trial(EVALUATION, "d")
    with pytest.raises(InvalidValue, match="several begin with it"):
        finding.find_trial(EVALUATION, "c0ffee")


def test_outputs_are_read_where_a_trial_is_printed_with_them(run: Run, path: Path) -> None:
    damage(path, "outputs", [1])
    done = run("trials", "--json", "--sort", "score", "--limit", 1)
    assert [one["outputs"] for one in json.loads(done.output)] == ['"first"']
    for options in ("--failed", "--limit 0", "--example c"):
        failed = run("trials", "--json", *options.split()).exception
        assert isinstance(failed, DspexError)
        assert f"{path} is damaged" in str(failed)
        assert "evaluate the partition again" in str(failed)


@pytest.mark.parametrize("options", ["", "--sort run_s", "--sort usage.calls --limit 3", "--example a --sort score"])
def test_trials_as_json_have_all_columns_of_all_partitions_in_order(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: str
) -> None:
    tables = [
        pd.DataFrame(TRIALS),
        pd.DataFrame([{**one, "partition": "test", "usage.calls": number} for number, one in enumerate(TRIALS)]),
    ]
    paths = {name: tmp_path / f"{name}.parquet" for name in ("all", "test")}
    for path, table in zip(paths.values(), tables, strict=True):
        table.to_parquet(path, index=False, row_group_size=3)
    newest = NewestResults(paths=paths, left_out=(), missing=(), partial={})
    monkeypatch.setattr("dspex_pipelines.cli.targets.find_evaluation", lambda *_, **__: EVALUATION)
    monkeypatch.setattr("dspex_pipelines.cli.results.newest_results", lambda _: newest)
    told: list[dict[str, Any]] = json.loads(run("trials", "--json", *options.split()).output)
    every = newest.load()
    assert [list(one) for one in told] == [list(every.columns)] * len(told)
    expected = {
        "": every,
        "--sort run_s": every.sort_values("run_s", ascending=False, kind="stable"),
        "--sort usage.calls --limit 3": every.sort_values("usage.calls", ascending=False, kind="stable").head(3),
        "--example a --sort score": every[every["example_id"] == "a"].sort_values("score.same", kind="stable"),
    }[options]
    assert told == json.loads(expected.to_json(orient="records"))


def test_an_evaluation_reads_no_outputs_for_what_it_prints(shell: Shell) -> None:
    shell.run("init")
    process = shell.start("evaluate", "--workers", "1", command=(sys.executable, "-c", SPY))
    told, _ = process.communicate(timeout=120)
    assert process.returncode == 0, told
    read = [line for line in told.splitlines() if line.startswith("reads")]
    assert "reads ['error_type', 'error_message']" in read
    assert [line for line in read if "outputs" in line or "None" in line] == []
