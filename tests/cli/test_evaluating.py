"""The bar of a run that failed, and the trial that a replay runs."""

from __future__ import annotations

import io
import os
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
from dspex_pipelines.cli import evaluating, exits, finding, replaying
from dspex_pipelines.cli.evaluating import BarReporter, EvaluatedPartitionsSummary, columns
from dspex_pipelines.cli.verdicts import Verdict
from dspex_pipelines.engine import executor
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec
from dspex_pipelines.model.usage import Usage
from dspex_pipelines.orchestration.config import EvaluationConfig, budget_of
from dspex_pipelines.orchestration.io_managers import NewestResults
from tests.cli.conftest import EVALUATION, Run, row


@pytest.mark.parametrize("how", ["failed", "interrupted"])
def test_the_bar_of_a_run_that_broke_off_says_so(how: str) -> None:
    written = io.StringIO()
    columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=Console(file=written, width=80)) as bars:
        reporter = BarReporter(bars)
        reporter.expect("all")
        reporter.started("all", 12, 12)
        reporter.broke_off(how)
    assert f"0/12 {how}" in written.getvalue()


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
    path = tmp_path / "trials.parquet"
    frame.to_parquet(path)
    newest = NewestResults(paths={"all": path}, left_out=(), missing=(), partial={})
    monkeypatch.setattr(finding, "newest_results", lambda _: newest)
    monkeypatch.setattr(finding, "instance", nullcontext)
    monkeypatch.setattr(finding.ResultStore, "datasets", lambda *_: tmp_path)
    monkeypatch.setattr(finding, "planned_examples", lambda *_: [example])
    found = replaying._as_it_is_now(evaluation, finding.find_trial(evaluation, planned).spec)
    assert found.trial_id.hex() == planned
    assert found.program.isolation == "process"
    frame["trial_id"] = earlier = "0" * 32
    frame.to_parquet(path)
    with pytest.raises(InvalidValue, match="were made by an earlier release"):
        finding.find_trial(evaluation, earlier)


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
            reporter.started("all", 2, 6)
            reporter.used(Usage({"calls": 1, "cost_usd": cost_usd}))
            reporter.moved(PROGRESS)
            reporter.ended(complete=True, reused=0, rescored=0)
        spent = note(bars)
        reporter.started("all", 2, 6)
        for second in (3, 6):
            reporter.waits("openai/[m] is not answering", second)
            reporter.warns(f"cost leaves out {second} calls", "m")
        waits = note(bars)
        reporter.used(Usage({"calls": 3, "cost_usd": 1.0}))
        reporter.moved(PROGRESS)
        reporter.ended(complete=False, reused=0, rescored=0)
    assert spent == "5 trials/s, $0.75"
    assert waits == "waiting for 6 s"
    said = [line.strip() for line in written.getvalue().splitlines()]
    assert said[:2] == ["all: waiting: openai/[m] is not answering (for 3 s)", "warning: cost leaves out 3 calls"]
    assert len(said) == 3, "each is said once"
    assert reporter.usage.amounts == {"calls": 5, "cost_usd": 1.75}


def test_second_copies_are_those_of_all_batches() -> None:
    reporter = BarReporter(Progress(console=Console(file=io.StringIO())))
    assert reporter.hedges is None
    reporter.hedged(3, 2)
    reporter.hedged(1, 0)
    assert reporter.hedges == (4, 2)


def test_the_bar_counts_the_failures_of_all_its_batches() -> None:
    with Progress(TextColumn("{task.fields[note]}"), console=Console(file=io.StringIO())) as bars:
        reporter = BarReporter(bars)
        told = []
        for partition in ("a", "b"):
            reporter.expect(partition)
            for _ in range(2):
                reporter.started(partition, 1, 2)
                reporter.moved(replace(PROGRESS, done=1, failed=1))
                reporter.ended(complete=True, reused=0, rescored=0)
            told.append([task.fields["note"] for task in bars.tasks])
    assert told == [["5 trials/s, 2 failed"] * bars for bars in (1, 2)], "each bar its own"
    assert reporter.failures == 4


@pytest.mark.parametrize(
    ("batches", "said"),
    [([2], "2 reused"), ([0, 2], "5 trials/s, 2 reused"), ([1, 1], "5 trials/s, 2 reused"), ([0], "5 trials/s")],
)
def test_the_bar_says_what_was_reused_instead_of_looking_idle(batches: list[int], said: str) -> None:
    with Progress(TextColumn("{task.fields[note]}"), console=Console(file=io.StringIO())) as bars:
        reporter = BarReporter(bars)
        reporter.expect("all")
        for reused in batches:
            reporter.started("all", 2, 2 * len(batches))
            done = 2 - reused
            reporter.moved(replace(PROGRESS, done=done, rate_per_s=5.0 if done else 0.0))
            reporter.ended(complete=True, reused=reused, rescored=0)
        assert note(bars) == said


def test_the_bar_is_as_long_as_the_partition_from_its_first_batch_on() -> None:
    written = io.StringIO()
    with Progress(*columns(), console=Console(file=written, width=80)) as bars:
        reporter = BarReporter(bars)
        reporter.expect("all")
        reporter.started("all", 100, 300)
        reporter.moved(replace(PROGRESS, done=100))
        reporter.ended(complete=True, reused=0, rescored=0)
        reporter.broke_off("interrupted")
    assert "100/300 " in written.getvalue()


def test_the_bar_says_what_was_only_scored_again() -> None:
    with Progress(TextColumn("{task.fields[note]}"), console=Console(file=io.StringIO())) as bars:
        reporter = BarReporter(bars)
        reporter.expect("all")
        for _ in range(2):
            reporter.started("all", 4, 8)
            reporter.moved(replace(PROGRESS, done=1))
            reporter.ended(complete=True, reused=3, rescored=1)
        assert note(bars) == "5 trials/s, 2 scored again, 6 reused"


def test_a_finished_bar_says_how_long_it_took() -> None:
    now = 100.0
    written = io.StringIO()
    with Progress(*columns(), console=Console(file=written, width=80), get_time=lambda: now) as bars:
        reporter = BarReporter(bars)
        reporter.expect("all")
        for _ in range(2):
            reporter.started("all", 2, 4)
            now += 60
            reporter.ended(complete=True, reused=2, rescored=0)
    assert "4/4 0:02:00 4 reused" in written.getvalue()


MOVED = executor.Progress(total=2_000, done=0, failed=0, in_flight=0, elapsed_s=1.0, rate_per_s=5.0, eta_s=None)


@pytest.mark.parametrize(("terminal", "told"), [(True, []), (False, ["200", "1,400"])])
def test_without_a_terminal_a_line_now_and_then_says_how_far_it_is(terminal: bool, told: list[str]) -> None:
    now = 0.0
    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=terminal)
    with Progress(*columns(), console=console, get_time=lambda: now, auto_refresh=False) as bars:
        reporter = BarReporter(bars)
        reporter.expect("all")
        reporter.started("all", 2_000, 2_000)
        for done in (100, 200, 300, 1_400):
            now += 20
            reporter.moved(replace(MOVED, done=done, failed=3))
    lines = [line for line in written.getvalue().splitlines() if " of 2,000 trials" in line]
    assert lines == [f"all: {done} of 2,000 trials, 5 trials/s, 3 failed" for done in told]


DECLARED = """
from dspex_pipelines import Boolean, ConfigurationSpace, Dataset, Evaluation

EVALUATION = Evaluation(
    name="parts",
    dataset=Dataset(source="data", example_id="id", inputs=("text",), labels=("expected",), partitions=Dynamic()),
    program="program:shorten",
    metrics=("program:same",),
    space=ConfigurationSpace(variables=(Boolean(name="ellipsis"),)),
)
"""
GOOD_ROWS = "id,text,expected\n1,a b c,a b\n2,d e f,d e\n"
BAD_ROWS = "id,text,expected\n1,,x\n"


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Evaluate these partitions, of which some are bad."""
    (tmp_path / "program.py").write_text(
        "def shorten(text, ellipsis):\n    return ' '.join(text.split()[:2]) + ('…' if ellipsis else '')\n\n\n"
        "def same(example, outputs):\n    return outputs == example.labels['expected']\n"
    )
    (tmp_path / "evaluation.py").write_text(DECLARED.replace("Evaluation\n", "Dynamic, Evaluation\n", 1))
    (tmp_path / "data").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "DAGSTER_HOME"}

    def run(*arguments: str, **rows: str) -> subprocess.CompletedProcess[str]:
        for name, text in rows.items():
            (tmp_path / "data" / f"{name}.csv").write_text(text)
        command = [str(Path(sys.executable).with_name("dspex")), "evaluate", "--workers", "1", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=110, check=False
        )

    return run


def test_a_bad_partition_is_told_and_the_others_are_ranked(
    parts: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = parts(a=GOOD_ROWS, b=BAD_ROWS, c=GOOD_ROWS, d=BAD_ROWS)
    assert done.returncode == exits.REFUSED, done.stdout + done.stderr
    assert done.stdout.count("4/4") == 2
    assert "ellipsis=False │ 4 │ 1.000" in done.stdout
    told = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert [line.partition(" row 1")[0] for line in told] == ["error: b: b.csv", "error: d: d.csv"], done.stderr


def test_where_every_partition_is_bad_that_is_all_that_is_told(
    parts: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = parts(b=BAD_ROWS)
    assert done.returncode == exits.REFUSED
    assert "configuration" not in done.stdout
    assert done.stderr.startswith("error: b: b.csv row 1")


def test_what_fails_every_partition_alike_ends_the_command_at_once(
    parts: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    done = parts("--pool-address", f"unix:{tmp_path}/none", a=BAD_ROWS, b=GOOD_ROWS, c=GOOD_ROWS)
    assert done.returncode == exits.REFUSED
    assert "a: a.csv row 1" in done.stderr
    assert done.stderr.count("no worker pool answered") == 1
    assert "Traceback" not in done.stderr
    assert "c " not in done.stdout


PROGRESS = executor.Progress(total=2, done=1, failed=0, in_flight=1, elapsed_s=0.2, rate_per_s=5.0, eta_s=0.2)


def note(bars: Progress) -> str:
    return bars.tasks[0].fields["note"]


@pytest.mark.parametrize(
    ("configurations", "said"), [(50, ""), (60, "50 of 60 configurations shown; all: dspex leaderboard")]
)
def test_of_many_configurations_the_best_are_printed(
    run: Run, results: Callable[..., None], monkeypatch: pytest.MonkeyPatch, configurations: int, said: str
) -> None:
    results(row("a"))
    rows = [row("a", configuration=f"c{number}", **{"var.k": number}) for number in range(configurations)]

    def evaluated(*_: object, **__: object) -> EvaluatedPartitionsSummary:
        return EvaluatedPartitionsSummary(
            board=leaderboard(pd.DataFrame(rows)),
            left_out=(),
            partial={},
            folder=Path("results"),
            usage=Usage(),
            failures=(),
            not_counted=(),
        )

    monkeypatch.setattr(evaluating, "evaluate_partitions", evaluated)
    told = run("evaluate").output
    assert told.count("k=") == 50
    assert [line for line in told.splitlines() if "shown" in line] == ([said] if said else [])


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
            failures=(FailureKind(type="timeout", count=1_000, message="[m] 9 s", alike=10),),
            failed=990,
            not_counted=tuple(usage.warnings(budget_of(config, evaluation)).values()),
            hedged=(1_200, 1_000) if config.hedge_fraction else None,
        )

    monkeypatch.setattr(evaluating, "evaluate_partitions", evaluated)
    told = run("evaluate", "--max-cost-usd", 5, "--hedge-fraction", 0.1).output
    assert "Hedged: 1,200 trials had a second copy, and 1,000 of them an answer from it first\n" in told
    assert "Used: m: 3 calls, 1,000 tokens in and 10 out, $0.50, throttled 10% of the time\n" in told
    assert "Not counted: cost leaves out 2 calls to m, and max_cost_usd does not hold for them" in told
    assert "1,000 trials failed: dspex trials --failed\n  1,000 × timeout: 10 of them: [m] 9 s\n" in told
    usage.amounts.clear()
    told = run("evaluate").output
    assert "Used" not in told
    assert "Hedged" not in told
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
        failures=(FailureKind(type="program_exception", count=2, message="no", alike=2),),
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
    assert "does only the rest" in str(run("evaluate").exception)
    assert "no other run reuses what it has done" in str(run("evaluate", "--reuse", "none").exception)


@pytest.mark.parametrize(
    ("checks", "code"),
    [((), 0), (((False, False),), 0), (((False, False), (True, False)), 3), (((True, True), (False, True)), 0)],
    ids=["none", "warning", "error", "passed"],
)
def test_checks_are_told_last_and_those_that_fail_are_the_exit_code(
    run: Run,
    results: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    checks: tuple[tuple[bool, bool], ...],
    code: int,
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
        verdicts=tuple(
            Verdict(
                name=f"check_{is_error}",
                partition="[all]",
                said="0.5 of 1",
                passed=passed,
                is_error=is_error,
                blocking=False,
            )
            for is_error, passed in checks
        ),
    )
    monkeypatch.setattr(evaluating, "evaluate_partitions", lambda *_, **__: summary)
    ended = run("evaluate")
    assert ended.exit_code == code
    told = ended.output.splitlines()
    assert told[len(told) - len(checks) :] == [
        f"Check check_{is_error} of [all] {'passed' if passed else 'failed'}: 0.5 of 1" for is_error, passed in checks
    ]
    assert "3 done, but" in " ".join(run("evaluate", "--help").output.split())
