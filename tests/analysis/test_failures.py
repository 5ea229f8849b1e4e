"""What went wrong, by type of error."""

from __future__ import annotations

import pandas as pd

from dspex_pipelines.analysis.failures import FailureKind, failure_kinds


def trials(*errors: tuple[str | None, str | None]) -> pd.DataFrame:
    return pd.DataFrame(errors, columns=["error_type", "error_message"])


def test_the_commonest_type_is_first_with_what_most_of_them_say() -> None:
    found = failure_kinds(
        trials(
            (None, None),
            ("timeout", "after 1 s"),
            ("program_exception", "ValueError: a\nand more"),
            ("program_exception", "KeyError: b"),
            ("program_exception", "ValueError: a\nand more"),
            ("budget_exhausted", "not run"),
            ("worker_lost", None),
        )
    )
    assert found == (
        FailureKind(type="program_exception", count=3, message="ValueError: a", alike=2),
        FailureKind(type="timeout", count=1, message="after 1 s", alike=1),
        FailureKind(type="worker_lost", count=1, message="", alike=1),
    )
    assert [kind.said for kind in found] == ["2 of them: ValueError: a", "after 1 s", ""]


def test_failures_that_all_say_something_else_are_told_by_one_of_them() -> None:
    (kind,) = failure_kinds(trials(*(("program_exception", f"ValueError: {row}") for row in range(3))))
    assert kind.said == "each its own, one of them: ValueError: 0"


def test_without_failures_there_are_none() -> None:
    assert failure_kinds(trials((None, None), ("budget_exhausted", "not run"))) == ()
    assert failure_kinds(trials()) == ()
