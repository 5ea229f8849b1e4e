"""The check of a queue's records finds what it is for."""

from __future__ import annotations

import pytest

from tests.orchestration.queueing import Limits, Stay, in_turn, peak, violations

EACH = {"applyLimitPerUniqueValue": True}
LIMITS = Limits(
    most=3,
    tags=(
        {"key": "kind", "value": "evaluation", "limit": 2},
        {"key": "target", "value": EACH, "limit": 1},
    ),
)


def stay(name: str, began: float | None, ended: float | None, **tags: str) -> Stay:
    return Stay(name=name, queued=0, began=began, ended=ended, tags=tags)


def run(target: str, began: float | None, ended: float | None) -> Stay:
    return stay(target, began, ended, kind="evaluation", target=target[0])


@pytest.mark.parametrize(
    ("stays", "let_go", "found"),
    [
        pytest.param([run("a", 1, 3), run("b", 2, 5), run("c", 4, 6)], [2.5, 4.5], [], id="in-turn"),
        pytest.param([run("a", 1, 3), run("a2", 3, 5)], [2, 4], [], id="as-the-other-ends"),
        pytest.param(
            [run("a", 1, 4), run("b", 2, 5), run("c", 3, 6)],
            [3.5],
            ["c started beside a, b, against 2 of kind evaluation"],
            id="one-too-many-of-a-value",
        ),
        pytest.param(
            [run("a", 1, 4), run("a2", 2, 5)], [3], ["a2 started beside a, against 1 of target a"], id="two-of-each"
        ),
        pytest.param([run("a", 1, 4), stay("x", 2, 5), stay("y", 3, 6)], [3.5], [], id="untagged-beside"),
        pytest.param(
            [stay(name, 1 + number, 9) for number, name in enumerate("wxyz")],
            [5],
            ["z started beside w, x, y, against 3 at once"],
            id="one-too-many-at-all",
        ),
        pytest.param(
            [run("a", 1, 3), run("b", 4, 5)],
            [2],
            ["b could have started, and had not when others were let go"],
            id="a-slot-stayed-free",
        ),
        pytest.param([run("a", 1, 3), run("a2", 4, 5)], [2], [], id="no-slot-for-what-waited"),
        pytest.param([run("a", 1, 3), run("b", None, None)], [], ["b never started"], id="left-behind"),
    ],
)
def test_what_the_records_show(stays: list[Stay], let_go: list[float], found: list[str]) -> None:
    assert violations(stays, LIMITS, let_go) == found


def test_peak_and_turns() -> None:
    stays = [run("a", 1, 3), run("b", 2, 5), run("c", 4, 6)]
    assert peak(stays) == 2
    assert in_turn(stays, 2)
    assert not in_turn(stays, 1)
