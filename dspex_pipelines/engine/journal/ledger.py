"""What one run has spent of its budget, over all its steps and processes: kept in the journal's database."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.engine.journal.schema import runs
from dspex_pipelines.model.budget import Budget, Spent
from dspex_pipelines.model.outcome import TrialError, TrialOutcome
from dspex_pipelines.model.usage import UNTOLD_COPIES, usage_of

MOST_USED = 2**40
"""Tokens, or US dollars, of one trial: what says more has used neither, and would overflow the account."""
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class Ledger:
    """The account of the run *run_id*, in an open journal; `open` starts its clock, the first of its steps to do so.

    `stopped` says why the run has stopped, whichever step reached the bound; it is empty while it goes on.
    """

    def __init__(self, journal: Journal, *, run_id: str, budget: Budget) -> None:
        self._journal = journal
        self._run_id = run_id
        self.budget = budget
        self.spent = Spent()
        """What the run had spent when it was last booked."""
        self._started_at = time.time()
        self.stopped = ""

    @property
    def is_bounded(self) -> bool:
        """Whether there is anything to book."""
        return self.budget.is_bounded

    @property
    def counts_usage(self) -> bool:
        """Whether tokens or money are bounded."""
        return bool(self.budget.max_tokens or self.budget.max_cost_usd)

    @property
    def left_s(self) -> float | None:
        """Seconds until the time is over; None where it is not bounded."""
        limit_s = self.budget.max_time_s
        return max(0.0, self._started_at + limit_s - time.time()) if limit_s else None

    @property
    def errors_left(self) -> float | None:
        """How many more trials may fail; None where their number is not bounded."""
        limit = self.budget.max_errors
        return limit - self.spent.failed if limit >= 1 else None

    def open(self) -> None:
        """Start the account, or take it up where earlier steps of the run have left it."""
        if not self.budget.is_bounded:
            return
        with self._journal.database.writing() as connection:
            new = _INSERT[connection.dialect.name](runs).on_conflict_do_nothing(index_elements=["run_id"])
            connection.execute(
                new.values(
                    run_id=self._run_id,
                    started_at=self._started_at,
                    trials=0,
                    failed=0,
                    tokens=0,
                    cost_usd=0.0,
                    stopped="",
                )
            )
        self.spend(())

    def stop(self, reason: str) -> None:
        """Have the run stop for *reason*, unless it has already."""
        self.stopped = self.stopped or reason
        self.spend(())

    def spend(self, outcomes: Iterable[TrialOutcome]) -> None:
        """Book what these outcomes have cost, then look whether a bound is reached."""
        if not self.budget.is_bounded:
            return
        trials = failed = tokens = 0
        cost_usd = 0.0
        for outcome in outcomes:
            trials += 1
            failed += isinstance(outcome, TrialError)
            if outcome.usage_payload:
                used = spent_by(outcome)
                tokens += used[0]
                cost_usd += used[1]
        columns, mine = runs.c, runs.c.run_id == self._run_id
        with self._journal.database.writing() as connection:
            booked = (
                runs.update()
                .where(mine)
                .values(
                    trials=columns.trials + trials,
                    failed=columns.failed + failed,
                    tokens=columns.tokens + tokens,
                    cost_usd=columns.cost_usd + cost_usd,
                )
            )
            connection.execute(booked)
            row = _row(connection, self._run_id)
            assert row is not None
            self._started_at = row.started_at
            self.spent = Spent(
                trials=row.trials,
                failed=row.failed,
                elapsed_s=time.time() - row.started_at,
                tokens=row.tokens,
                cost_usd=row.cost_usd,
            )
            self.stopped = self.stopped or row.stopped or self.budget.exceeded_by(self.spent)
            if self.stopped and not row.stopped:
                connection.execute(runs.update().where(mine).values(stopped=self.stopped))


def spent_by(outcome: TrialOutcome) -> tuple[int, float]:
    """Return the tokens and the US dollars that a trial says it has used; 0 where it says nothing, or nonsense.

    A copy of it that could not tell counts as much as the one that could.
    """
    usage = usage_of(outcome)
    copies = 1 + max(0, usage.get(UNTOLD_COPIES, 0))
    tokens, cost_usd = (min(max(0, usage.get(name, 0)) * copies, MOST_USED) for name in ("tokens", "cost_usd"))
    return int(tokens), float(cost_usd)


def why_stopped(journal: Journal, run_id: str) -> str:
    """Return which bound of its budget stopped that run; empty when none did."""
    with journal.database.reading() as connection:
        row = _row(connection, run_id)
    return "" if row is None else row.stopped


def _row(connection: sa.Connection, run_id: str) -> Any:
    return connection.execute(sa.select(runs).where(runs.c.run_id == run_id)).one_or_none()
