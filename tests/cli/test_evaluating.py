"""The bar of a run that failed, and the trial that a replay runs."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from dspex_pipelines.cli import finding, replaying
from dspex_pipelines.cli.evaluating import BarReporter
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec
from dspex_pipelines.orchestration.io_managers import NewestResults
from tests.cli.conftest import EVALUATION


def test_the_bar_of_a_failed_run_says_so() -> None:
    written = io.StringIO()
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(file=written, width=80)) as bars:
        reporter = BarReporter(bars)
        reporter.expect("all")
        reporter.started("all", 12)
        reporter.failed()
    assert "0/12 failed" in written.getvalue()


def test_a_replay_is_of_the_same_files_and_isolation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Be brief.")
    evaluation = EVALUATION.__class__(
        name="made_up",
        dataset=EVALUATION.dataset,
        program="tests.programs:first",
        metrics=("tests.programs:same",),
        space=EVALUATION.space,
        files=(prompt,),
        isolation="process",
    )
    plan = Plan(
        evaluation="made_up",
        partition="all",
        dataset_digest="d",
        rows=1,
        program=ProgramSpec(
            entry_point="tests.programs:first",
            version=replaying.program_version("tests.programs:first", {}, files=(prompt,)),
            isolation="process",
        ),
        metrics=(MetricSpec(entry_point="tests.programs:same", version="1"),),
        space_json="{}",
        configurations=(Configuration({"flag": True}),),
    )
    (tmp_path / "plan.json").write_text(plan.to_json())
    example = Example(example_id="a", inputs={"text": "x"})
    planned = next(plan.trials(next(plan.batches(1)), [example])).trial_id.hex()
    frame = pd.DataFrame([{"trial_id": planned, "partition": "all"}])
    newest = NewestResults(paths={"all": tmp_path / "trials.parquet"}, left_out=(), partial={})
    monkeypatch.setattr(finding, "newest_results", lambda _: (frame, newest))
    monkeypatch.setattr(finding, "instance", nullcontext)
    monkeypatch.setattr(finding.ResultStore, "datasets", lambda *_: tmp_path)
    monkeypatch.setattr(finding, "load_examples", lambda *_, **__: [example])
    found = replaying._as_it_is_now(evaluation, finding.find_trial(evaluation, planned).spec)
    assert found.trial_id.hex() == planned
    assert found.program.isolation == "process"


@pytest.mark.parametrize("hang", ["time.sleep(3600)", "ctypes.PyDLL(None).sleep(3600)"])
def test_a_replay_that_takes_long_tells_where_it_is(hang: str) -> None:
    source = f"""
import ctypes, time
from dspex_pipelines.cli.replaying import _tells_where
def lost():
    {hang}
with _tells_where(0.2):
    lost()
"""
    with subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        told = next(line for line in process.stderr if "in lost" in line)
        process.kill()
    assert "line 5" in told
