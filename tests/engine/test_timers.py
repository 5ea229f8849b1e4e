"""Timers fire in their order, each once, however they are armed and taken away."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dspex_pipelines.engine.timers import UNSET, Timers


@dataclass(eq=False)
class Owner:
    due: float = UNSET


STEPS = st.tuples(st.sampled_from(["arm", "arm", "disarm", "pop"]), st.integers(0, 6))


@given(steps=st.lists(STEPS, max_size=60))
@example([("arm", 5), ("arm", 3), ("disarm", 1), ("arm", 3), ("pop", 3)])
def test_they_fire_in_order_and_each_once(steps: list[tuple[str, int]]) -> None:
    timers: Timers[Owner] = Timers()
    expected: list[Owner] = []
    for what, number in steps:
        if what == "arm":
            expected.append(Owner())
            timers.arm(expected[-1], number)
            # Those that fire at the same time stay in the order in which they were armed.
            expected.sort(key=lambda one: one.due)
        elif what == "disarm":
            if number < len(expected):
                timers.disarm(expected.pop(number))
        elif expected and expected[0].due <= number:
            assert timers.pop(number) is expected.pop(0)
        else:
            assert timers.pop(number) is None
        assert timers.next() == (expected[0].due if expected else None)


@pytest.mark.parametrize("step", [1.0, 0.0, -1.0], ids=["later-and-later", "at-once", "sooner-and-sooner"])
def test_those_that_were_taken_away_do_not_pile_up(step: float) -> None:
    timers: Timers[Owner] = Timers()
    owners = [Owner() for _ in range(5_005)]
    for number, owner in enumerate(owners):
        timers.arm(owner, 1e5 + number * step if number >= 5 else 1e6 + number)
        if number >= 10:
            timers.disarm(owners[number - 5])
    assert len(timers._line) + len(timers._heap) <= 2 * 10 + 2 * 64
    fired: list[Owner] = []
    while (owner := timers.pop(1e7)) is not None:
        fired.append(owner)
    assert [owners.index(one) for one in fired[5:]] == [0, 1, 2, 3, 4]
    assert sorted(owners.index(one) for one in fired[:5]) == [5_000, 5_001, 5_002, 5_003, 5_004]
