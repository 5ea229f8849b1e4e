"""One account for all steps of a run, in SQLite and PostgreSQL alike."""

from __future__ import annotations

import math
import threading

import pytest

from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.engine.journal.ledger import Ledger, why_stopped
from dspex_pipelines.engine.journal.reservation import Reservation
from dspex_pipelines.model.budget import Budget
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import encode

BUDGET = Budget(max_errors=10)


def outcomes(good: int = 0, bad: int = 0, **usage: float) -> list[TrialOutcome]:
    payload = encode(usage) if usage else b""
    results = [TrialResult(trial_id=b"", configuration_digest=b"", usage_payload=payload) for _ in range(good)]
    error = TrialError(trial_id=b"", configuration_digest=b"", type=ErrorType.PROGRAM_EXCEPTION, message="no")
    return [*results, *[error] * bad]


def opened(journal: Journal, *, run_id: str = "run", budget: Budget = BUDGET) -> Ledger:
    ledger = Ledger(journal, run_id=run_id, budget=budget)
    ledger.open()
    return ledger


def test_steps_of_one_run_spend_from_one_budget(journal_url: str) -> None:
    with Journal(journal_url) as first, Journal(journal_url) as second:
        one, other = opened(first), opened(second)
        one.spend(outcomes(good=5, bad=4))
        other.spend(outcomes(bad=5))
        assert (one.stopped, other.stopped) == ("", "")
        one.spend(outcomes(bad=1))
        said = "10 of the first 15 trials failed; the limit is 10 (max_errors)"
        assert one.stopped == said
        other.spend(())
        assert other.stopped == said
        assert opened(second).stopped == said, "a step that starts later starts nothing"
        assert why_stopped(second, "run") == said


def test_why_a_run_stopped_stays_the_first_reason(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        ledger = opened(journal)
        ledger.spend(outcomes(bad=10))
        first = ledger.stopped
        ledger.spend(outcomes(bad=10))
        assert ledger.stopped == first == why_stopped(journal, "run")


def test_every_run_has_the_whole_budget(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        opened(journal).spend(outcomes(bad=10))
        assert opened(journal, run_id="next").stopped == ""
        assert why_stopped(journal, "next") == why_stopped(journal, "unknown") == ""


@pytest.mark.parametrize(
    "usage",
    [
        b"\xc1",
        encode([1]),
        encode({"tokens": "many"}),
        encode({"tokens": math.nan}),
        encode({"tokens": -5, "cost_usd": -1.0}),
        encode({"tokens": 2**64 - 1, "cost_usd": 1e308}),
    ],
)
def test_what_a_trial_says_wrongly_breaks_no_account(journal_url: str, usage: bytes) -> None:
    with Journal(journal_url) as journal:
        ledger = opened(journal, budget=Budget(max_tokens=2**60))
        (said,) = outcomes(good=1)
        for _ in range(3):
            ledger.spend([said._replace(usage_payload=usage)])
        assert ledger.stopped == ""


def test_tokens_and_dollars_are_those_that_trials_report(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        ledger = opened(journal, budget=Budget(max_tokens=100, max_cost_usd=1))
        ledger.spend([*outcomes(good=3, tokens=30, cost_usd=0.25), *outcomes(good=50)])
        assert ledger.stopped == ""
        ledger.spend(outcomes(good=1, cost_usd=0.25))
        assert ledger.stopped == "$1.00 of $1.00 are spent (max_cost_usd)"
        ledger = opened(journal, run_id="tokens", budget=Budget(max_tokens=100))
        ledger.spend(outcomes(good=4, tokens=30, cost_usd=9))
        assert ledger.stopped == "120 of 100 tokens are spent (max_tokens)"


def test_a_copy_that_could_not_tell_counts_as_much_as_the_one_that_could(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        ledger = opened(journal, budget=Budget(max_tokens=100))
        ledger.spend([*outcomes(good=1, tokens=30), *outcomes(good=1, tokens=30, untold_copies=1)])
        assert ledger.spent.tokens == 90


async def test_a_second_copy_is_reserved_for_as_a_trial_is(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        ledger = opened(journal, budget=Budget(max_tokens=100))
        reservation = Reservation(ledger)
        trials = reservation.over([b"a", b"b", b"c"])
        first, second = outcomes(good=2, tokens=30)
        for one in (b"a", b"b"):
            assert await anext(trials) == one
        ledger.spend([first])
        reservation.settle([first._replace(trial_id=b"a")])
        assert reservation.take_second(b"b"), "30 are spent, and 30 in flight"
        assert reservation.take_second(b"b"), "it was sent to a pool that is gone"
        assert not reservation.take_second(b"d"), "30 more would be too much"
        ledger.spend([second])
        reservation.settle([second._replace(trial_id=b"b")])
        assert await anext(trials) == b"c", "60 are spent, and nothing is in flight"
        assert not reservation.take_second(b"c")


def test_the_clock_is_the_runs_and_not_the_steps(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        first = opened(journal, budget=Budget(max_time_s=1_000))
        left_s = first.left_s
        assert left_s is not None
        assert 0 < left_s <= 1_000
        # As if the run had begun long ago.
        with journal.engine.begin() as connection:
            connection.exec_driver_sql("UPDATE runs SET started_at = started_at - 2000")
        later = opened(journal, budget=Budget(max_time_s=1_000))
        assert later.left_s == 0
        assert later.stopped == "1000 s are over (max_time_s)"
        assert opened(journal, run_id="unbounded", budget=Budget()).left_s is None


def test_nothing_is_written_for_a_run_without_a_budget(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        opened(journal, budget=Budget()).spend(outcomes(good=1, bad=99))
        with journal.engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM runs").scalar_one() == 0


def test_steps_that_start_and_spend_at_once_lose_nothing(journal_url: str) -> None:
    with Journal(journal_url):
        pass  # the tables are made once, before the race
    start = threading.Barrier(6)
    failures: list[BaseException] = []

    def step() -> None:
        try:
            with Journal(journal_url) as journal:
                start.wait()
                ledger = opened(journal, budget=Budget(max_errors=10**6))
                for _ in range(20):
                    ledger.spend(outcomes(good=1, bad=1))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=step) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with Journal(journal_url) as journal, journal.engine.connect() as connection:
        row = connection.exec_driver_sql("SELECT trials, failed FROM runs").one()
    assert tuple(row) == (240, 120)
