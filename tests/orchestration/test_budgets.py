"""A run that reaches a bound of its budget stops, keeps what it has, says why, and is taken up by the next."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dspex_pipelines.engine import batch
from dspex_pipelines.model.budget import Budget
from tests.orchestration.conftest import Lab, failure, steps
from tests.orchestration.declared import declare, rows

CountLines = tuple[str, Callable[[], int]]
WIDTH = 4
LIMIT = {"dspex/max_concurrency": str(WIDTH)}


def sometimes(lab: Lab, log: str, count: int = 60, **changes: Any) -> Lab:
    return lab.declare(declare("raises_and_logs", rows(count, log=log), inputs=("x", "log"), **changes))


def test_too_many_errors_stop_the_run_and_the_next_one_goes_on(lab: Lab, count_lines: CountLines) -> None:
    log, ran = count_lines
    sometimes(lab, log)
    result = lab.evaluate(max_errors=5, tags=LIMIT)
    assert result.success, failure(result)
    table, metadata = lab.newest()
    assert len(table) == 120, "every planned trial has a row"
    by_type = table["error_type"].value_counts().to_dict()
    assert 5 <= by_type["program_exception"] <= 5 + 2 * WIDTH
    not_run = by_type["budget_exhausted"]
    assert not_run == 120 - ran() > 0
    assert metadata["partial"].startswith(f"{not_run} of 120 trials were not run: ")
    assert metadata["partial"].endswith("trials failed; the limit is 5 (max_errors). Evaluate it again to go on.")
    assert metadata["trials run"] == ran()
    assert metadata["trials reused"] == 0
    assert "budget_exhausted" not in metadata["sample failures"]
    assert table.loc[table["error_type"] == "budget_exhausted", "score.right"].isna().all()
    board = lab.ranked()
    assert "were not run" in board["partial"]
    assert "not run" in board["leaderboard"]

    before = ran()
    table, after = lab.evaluated()
    assert ran() == 120, "what was done is kept, and only the rest is run"
    assert (after["trials run"], after["trials reused"]) == (120 - before, before)
    assert "partial" not in after
    assert after["version"] != metadata["version"]
    assert "partial" not in lab.ranked()


def test_a_stopped_run_that_reuses_nothing_says_that_another_begins_anew(lab: Lab, count_lines: CountLines) -> None:
    log, ran = count_lines
    _, metadata = sometimes(lab, log).evaluated(max_errors=5, reuse="none", tags=LIMIT)
    assert metadata["partial"].endswith("(max_errors). It reused nothing, and no other run reuses what it has done.")
    before = ran()
    lab.evaluated()
    assert ran() == before + 120


def test_the_steps_of_a_run_share_its_budget(lab: Lab, count_lines: CountLines) -> None:
    log, ran = count_lines
    sometimes(lab, log, budget=Budget(max_errors=2))
    result = lab.evaluate(trials_per_op=10, tags=LIMIT)
    assert result.success, failure(result)
    assert len(steps(result, "run_trials")) == 12, "none of them fails"
    assert ran() <= 20, "the first ten trials have two failures"
    _, metadata = lab.newest()
    assert "max_errors" in metadata["partial"]
    # As declared, again: what failed before is kept and costs this run nothing.
    before = ran()
    lab.evaluated(trials_per_op=10)
    assert ran() > before


def test_a_budget_that_is_enough_leaves_no_trace(lab: Lab, count_lines: CountLines) -> None:
    log, _ = count_lines
    _, metadata = sometimes(lab, log, 10).evaluated(max_errors=5, max_time_s=300, max_tokens=10, max_cost_usd=1.5)
    assert "partial" not in metadata
    assert (metadata["trials run"], metadata["failures"]) == (20, 4)


def test_time_over_ends_what_hangs(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "STOP_S", 0.3)
    started = tmp_path / "started"
    evaluation = declare("hangs_when_odd", rows(40, log=str(started)), inputs=("x", "log"), timeout_s=3600.0)
    result = lab.declare(evaluation).evaluate(max_time_s=1.0, tags=LIMIT)
    assert result.success, failure(result)
    table, metadata = lab.newest()
    assert "1 s are over (max_time_s)" in metadata["partial"]
    done = int((table["status"] == "ok").sum())
    assert set(table["error_type"].dropna()) == {"budget_exhausted"}
    assert started.read_text().count("\n") == done + WIDTH, "what hung was in flight, and nothing else was started"


@pytest.mark.parametrize(("field", "value"), [("max_errors", -1.0), ("max_time_s", float("nan")), ("max_tokens", -5)])
def test_a_bound_that_is_none_is_refused_before_anything_runs(lab: Lab, field: str, value: float) -> None:
    result = lab.declare(declare("plain", rows(2))).evaluate(**{field: value})
    assert not result.success
    assert f"budget.{field}" in failure(result)
    assert not steps(result, "run_trials")


@pytest.mark.parametrize(("program", "tokens", "cost_usd"), [("costs", 180, 0.16), ("costs_in_a_thread", 200, 0.2)])
def test_what_trials_report_is_summed_and_a_column(lab: Lab, program: str, tokens: int, cost_usd: float) -> None:
    table, metadata = lab.declare(declare(program, rows(10))).evaluated()
    assert metadata["used tokens"] == table["usage.tokens"].sum() == tokens
    assert metadata["used cost_usd"] == pytest.approx(cost_usd)
    failed = table[table["status"] == "error"]
    assert set(failed["usage.tokens"]) <= {5}, "what a failed trial had used by then counts too"


def test_tokens_over_budget_stop_the_run(lab: Lab) -> None:
    lab.declare(declare("costs_in_a_thread", rows(100)))
    result = lab.evaluate(max_tokens=100, trials_per_op=20, tags=LIMIT)
    assert result.success, failure(result)
    table, metadata = lab.newest()
    assert int((table["status"] == "ok").sum()) == 10
    assert "100 of 100 tokens are spent (max_tokens)" in metadata["partial"]
    assert metadata["used tokens"] == 100, "what is in flight is reserved"


def test_money_is_reserved_before_a_trial_starts(lab: Lab) -> None:
    lab.declare(declare("costs_in_a_thread", rows(100)))
    result = lab.evaluate(max_cost_usd=0.255, tags={"dspex/max_concurrency": "50"})
    assert result.success, failure(result)
    _, metadata = lab.newest()
    assert metadata["used cost_usd"] == pytest.approx(0.25), "one more would cost a cent too much"
    assert "$0.25 of $0.2550 are spent, and a trial costs about $0.0100 (max_cost_usd)" in metadata["partial"]
