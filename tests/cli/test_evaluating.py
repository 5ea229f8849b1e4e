"""The bar of a run that failed, and the trial that a replay runs."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from dspex_pipelines.analysis.failures import FailureKind
from dspex_pipelines.analysis.leaderboard import leaderboard
from dspex_pipelines.cli import evaluating, finding, replaying
from dspex_pipelines.cli.evaluating import BarReporter, EvaluatedPartitionsSummary, FailedCheck
from dspex_pipelines.engine import executor
from dspex_pipelines.errors import Interrupted
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec
from dspex_pipelines.model.usage import Usage
from dspex_pipelines.orchestration.config import EvaluationConfig, budget_of
from dspex_pipelines.orchestration.io_managers import NewestResults
from tests.cli.conftest import EVALUATION, Run, row


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
        environment=("HOME",),
        isolation="process",
    )
    plan = Plan(
        evaluation="made_up",
        partition="all",
        dataset_digest="d",
        rows=1,
        program=ProgramSpec(
            entry_point="tests.programs:first",
            version=replaying.program_version("tests.programs:first", {}, files=(prompt,), environment=("HOME",)),
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
    newest = NewestResults(paths={"all": tmp_path / "trials.parquet"}, left_out=(), missing=(), partial={})
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


def test_the_bar_says_what_is_spent_and_why_nothing_moves() -> None:
    written = io.StringIO()
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(file=written, width=80)) as bars:
        reporter = BarReporter(bars)
        reporter.expect("all")
        for cost_usd in (0.25, 0.5):
            reporter.started("all", 2)
            reporter.used(Usage({"calls": 1, "cost_usd": cost_usd}))
            reporter.moved(PROGRESS)
            reporter.ended(complete=True)
        spent = note(bars)
        reporter.started("all", 2)
        for second in (3, 6):
            reporter.waits("openai/[m] is not answering", second)
            reporter.warns(f"cost leaves out {second} calls", "m")
        waits = note(bars)
        reporter.used(Usage({"calls": 3, "cost_usd": 1.0}))
        reporter.moved(PROGRESS)
        reporter.ended(complete=False)
    assert spent == "5 trials/s, $0.75"
    assert waits == "waiting for 6 s"
    said = [line.strip() for line in written.getvalue().splitlines()]
    assert said[:2] == ["all: waiting: openai/[m] is not answering (for 3 s)", "warning: cost leaves out 3 calls"]
    assert len(said) == 3, "each is said once"
    assert reporter.usage.amounts == {"calls": 5, "cost_usd": 1.75}


def test_the_bar_counts_the_failures_of_all_its_batches() -> None:
    with Progress(TextColumn("{task.fields[note]}"), console=Console(file=io.StringIO())) as bars:
        reporter = BarReporter(bars)
        told = []
        for partition in ("a", "b"):
            reporter.expect(partition)
            for _ in range(2):
                reporter.started(partition, 1)
                reporter.moved(replace(PROGRESS, done=1, failed=1))
                reporter.ended(complete=True)
            told.append([task.fields["note"] for task in bars.tasks])
    assert told == [["5 trials/s, 2 failed"] * bars for bars in (1, 2)], "each bar its own"
    assert reporter.failures == 4


PROGRESS = executor.Progress(total=2, done=1, failed=0, in_flight=1, elapsed_s=0.2, rate_per_s=5.0, eta_s=0.2)


def note(bars: Progress) -> str:
    return bars.tasks[0].fields["note"]


def test_the_command_says_at_its_end_what_was_used_and_what_is_in_no_sum(
    run: Run, results: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    results(row("a"))
    usage = Usage({"calls": 3, "input_tokens": 1_000, "output_tokens": 10, "cost_usd": 0.5}, run_s=9.0, throttled_s=1.0)
    usage.add({"m.calls": 3, "unpriced_calls": 2, "m.unpriced_calls": 2})
    asked: list[float] = []

    def evaluated(evaluation: Evaluation, config: EvaluationConfig, **_: object) -> EvaluatedPartitionsSummary:
        asked.append(config.max_cost_usd)
        return EvaluatedPartitionsSummary(
            board=leaderboard(pd.DataFrame([row("a"), row("b")])),
            left_out=(),
            partial={},
            folder=Path("results"),
            usage=usage,
            failures=(FailureKind(type="timeout", count=1_000, message="[m] 9 s"),),
            failed=990,
            not_counted=tuple(usage.warnings(budget_of(config, evaluation)).values()),
        )

    monkeypatch.setattr(evaluating, "evaluate_partitions", evaluated)
    told = run("evaluate", "--max-cost-usd", 5).output
    assert "Used: m: 3 calls, 1,000 tokens in and 10 out, $0.50, throttled 10% of the time\n" in told
    assert "Not counted: cost leaves out 2 calls to m, and max_cost_usd does not hold for them" in told
    assert "1,000 trials failed: dspex trials --failed\n  1,000 × timeout: [m] 9 s\n" in told
    usage.amounts.clear()
    told = run("evaluate").output
    assert "Used" not in told
    assert "Not counted" not in told
    assert asked == [5.0, 0.0]


@pytest.mark.parametrize(("failed_now", "said"), [(0, "2 of them"), (1, "1 of them"), (2, "")])
def test_failures_of_earlier_runs_are_told_with_how_to_run_them_again(
    run: Run, results: Callable[..., None], monkeypatch: pytest.MonkeyPatch, failed_now: int, said: str
) -> None:
    results(row("a"))
    board = leaderboard(
        pd.DataFrame([row("a", error=("program_exception", "no")), row("b", error=("program_exception", "no"))])
    )
    summary = EvaluatedPartitionsSummary(
        board=board,
        left_out=(),
        partial={},
        folder=Path("results"),
        usage=Usage(),
        not_counted=(),
        failures=(FailureKind(type="program_exception", count=2, message="no"),),
        failed=failed_now,
    )
    monkeypatch.setattr(evaluating, "evaluate_partitions", lambda *_, **__: summary)
    told = run("evaluate").output
    assert "2 trials failed: dspex trials" in told
    line = next((line for line in told.splitlines() if "of them" in line), "")
    assert line.startswith(said)
    assert bool(said) is line.endswith("--reuse successes")


def test_an_interruption_between_steps_is_told_too(
    run: Run, results: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    results(row("a"))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluating, "evaluate_partitions", interrupted)
    assert isinstance(run("evaluate").exception, Interrupted)


@pytest.mark.parametrize(
    ("severities", "code"), [((), 0), ((False,), 0), ((False, True), 3)], ids=["none", "warning", "error"]
)
def test_failed_checks_are_told_last_and_are_the_exit_code(
    run: Run, results: Callable[..., None], monkeypatch: pytest.MonkeyPatch, severities: tuple[bool, ...], code: int
) -> None:
    results(row("a"))
    summary = EvaluatedPartitionsSummary(
        board=leaderboard(pd.DataFrame([row("a")])),
        left_out=(),
        partial={},
        folder=Path("results"),
        usage=Usage({}),
        failures=(),
        not_counted=(),
        failed_checks=tuple(
            FailedCheck(name=f"check_{is_error}", partition="[all]", said="0.5 of 1", is_error=is_error, blocking=False)
            for is_error in severities
        ),
    )
    monkeypatch.setattr(evaluating, "evaluate_partitions", lambda *_, **__: summary)
    ended = run("evaluate")
    assert ended.exit_code == code
    told = ended.output.splitlines()
    assert told[len(told) - len(severities) :] == [f"Check check_{one} of [all] failed: 0.5 of 1" for one in severities]
    assert "3 done, but" in " ".join(run("evaluate", "--help").output.split())
