"""A metric that cannot be called with an example and outputs is noticed before any trial is run."""

from __future__ import annotations

import pytest

from dspex_pipelines.engine.program_versions import metric_version
from dspex_pipelines.errors import ProgramUnavailable

HERE = "tests.engine.test_metric_version"


def of_one(outputs: object) -> float:
    return 1.0


def of_three(example: object, outputs: object, third: object) -> float:
    return 1.0


def by_name(*, example: object, outputs: object) -> float:
    return 1.0


async def of_none() -> float:
    return 1.0


def as_dspy_has_it(example: object, outputs: object, trace: object = None) -> float:
    return 1.0


def as_optimisers_have_it(gold: object, prediction: object, trace: object, pred_name: object) -> float:
    return 1.0


def of_anything(*given: object) -> float:
    return 1.0


class Judge:
    def __call__(self, example: object, outputs: object) -> float:
        return 1.0

    def alone(self, outputs: object) -> float:
        return 1.0


judge = Judge()


@pytest.mark.parametrize("name", ["of_one", "of_three", "by_name", "of_none", "judge.alone", "Judge"])
def test_a_metric_that_does_not_take_two_arguments_is_refused(name: str) -> None:
    with pytest.raises(ProgramUnavailable, match=r"\(example, outputs\)") as refusal:
        metric_version(f"{HERE}:{name}")
    assert refusal.value.entry_point == f"{HERE}:{name}"


@pytest.mark.parametrize("name", ["as_dspy_has_it", "as_optimisers_have_it", "of_anything", "judge"])
def test_a_metric_may_take_more_that_has_a_default_or_that_dspy_gives(name: str) -> None:
    assert metric_version(f"{HERE}:{name}")
