"""What checks have found is told in a line for each that failed, and one for all that have passed alike."""

from __future__ import annotations

import pytest

from dspex_pipelines.cli.verdicts import Verdict, told

NOTHING = "nothing to compare with"


def verdict(partition: str, said: str, *, name: str = "floor", passed: bool = True) -> Verdict:
    return Verdict(name=name, partition=partition, said=said, passed=passed, is_error=True, blocking=False)


@pytest.mark.parametrize(
    ("verdicts", "lines"),
    [
        pytest.param([], [], id="none"),
        pytest.param([verdict("a", NOTHING)], [f"Check floor of a passed: {NOTHING}"], id="one"),
        pytest.param(
            [verdict(one, NOTHING) for one in "abc"], [f"Check floor of 3 partitions passed: {NOTHING}"], id="the same"
        ),
        pytest.param(
            [verdict("a", "0 of 1,862"), verdict("b", "3 of 20.5")],
            ["Check floor of 2 partitions passed; of a: 0 of 1,862"],
            id="other numbers",
        ),
        pytest.param(
            [
                verdict("a", "0 of 10"),
                verdict("b", NOTHING),
                verdict("c", "1 of 10"),
                verdict("b", "0 of 9", name="ce"),
            ],
            [
                "Check floor of 2 partitions passed; of a: 0 of 10",
                f"Check floor of b passed: {NOTHING}",
                "Check ce of b passed: 0 of 9",
            ],
            id="another reason, another check",
        ),
        pytest.param(
            [verdict("a", "5 of 10", passed=False), verdict("b", "0 of 10"), verdict("c", "5 of 10", passed=False)],
            [
                "Check floor of a failed: 5 of 10",
                "Check floor of b passed: 0 of 10",
                "Check floor of c failed: 5 of 10",
            ],
            id="each that failed",
        ),
    ],
)
def test_what_has_passed_alike_is_one_line(verdicts: list[Verdict], lines: list[str]) -> None:
    assert [line for line, _ in told(verdicts)] == lines


def test_a_line_comes_with_what_it_tells_of() -> None:
    passed, failed = verdict("a", "0 of 1"), verdict("b", "1 of 1", passed=False)
    assert [one for _, one in told([passed, failed, verdict("c", "0 of 9")])] == [passed, failed]
