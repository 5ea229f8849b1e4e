"""Whether a failed attempt is followed by another, and when."""

from __future__ import annotations

import random

import pytest

from dspex_pipelines.engine.dispatch.retries import MOST_ATTEMPTS, Fault, RetryPolicy
from dspex_pipelines.model.outcome import Attempt, ErrorType

RAISED = Fault(ErrorType.PROGRAM_EXCEPTION, "gone", retryable=True)
RNG = random.Random(0)


def past(*faults: Fault) -> list[Attempt]:
    return [
        Attempt(number=number, worker="w", type=fault.type, message=fault.message, fingerprint=fault.fingerprint)
        for number, fault in enumerate(faults, start=1)
    ]


def delay(policy: RetryPolicy, fault: Fault, *before: Fault, most_attempts: int = 0) -> float | None:
    return policy.delay_s(fault, past(*before), most_attempts=most_attempts, rng=RNG)


def other(number: int) -> Fault:
    return RAISED._replace(fingerprint=f"f{number}")


@pytest.mark.parametrize("kind", sorted(ErrorType))
def test_each_type_has_its_own_cap(kind: ErrorType) -> None:
    faults = [Fault(kind, retryable=True, fingerprint=str(number)) for number in range(50)]
    allowed = next(n for n in range(50) if delay(RetryPolicy(), faults[n], *faults[:n]) is None) + 1
    assert allowed == MOST_ATTEMPTS.get(kind, 1)


def test_what_does_not_pass_is_not_tried_again() -> None:
    assert delay(RetryPolicy(), RAISED._replace(retryable=False)) is None


def test_a_trial_may_bound_its_attempts_of_all_types() -> None:
    malformed = Fault(ErrorType.MALFORMED_OUTPUT, retryable=True)
    assert delay(RetryPolicy(), malformed, other(1), most_attempts=3) is not None
    assert delay(RetryPolicy(), malformed, other(1), other(2), most_attempts=3) is None


def test_attempts_that_were_lost_with_their_worker_are_not_charged() -> None:
    lost = Fault(ErrorType.WORKER_LOST)
    assert delay(RetryPolicy(), other(1), *[lost] * 9, most_attempts=2) is not None


def test_the_same_error_running_is_permanent_and_another_between_starts_anew() -> None:
    policy = RetryPolicy(same_error=3)
    assert delay(policy, other(1), other(1)) is not None
    assert delay(policy, other(1), other(1), other(1)) is None
    assert delay(policy, other(1), other(1), other(2), other(1)) is not None


def test_an_error_without_a_fingerprint_is_like_no_other() -> None:
    assert delay(RetryPolicy(), RAISED, RAISED, RAISED) is not None


def test_a_rate_limit_looks_the_same_each_time_and_is_no_fault_of_the_trial() -> None:
    limited = Fault(ErrorType.RATE_LIMITED, retryable=True, fingerprint="429")
    assert delay(RetryPolicy(), limited, *[limited] * 5) is not None


@pytest.mark.parametrize(("failures", "most_s"), [(1, 0.5), (2, 1.0), (3, 2.0), (4, 4.0), (9, 8.0)])
def test_the_wait_is_anything_up_to_a_bound_that_doubles(failures: int, most_s: float) -> None:
    policy = RetryPolicy(base_s=0.5, cap_s=8.0, most={ErrorType.RATE_LIMITED: 99})
    limited = Fault(ErrorType.RATE_LIMITED, retryable=True)
    waits = [delay(policy, limited, *[limited] * (failures - 1)) for _ in range(500)]
    assert all(wait is not None and 0.0 <= wait <= most_s for wait in waits)
    numbers = sorted(wait for wait in waits if wait is not None)
    assert numbers[25] < 0.1 * most_s
    assert numbers[-25] > 0.9 * most_s


def test_the_provider_is_obeyed_within_reason() -> None:
    policy = RetryPolicy(base_s=0.5, longest_wait_s=60.0)
    asked = Fault(ErrorType.RATE_LIMITED, retryable=True, retry_after_s=30.0)
    wait = delay(policy, asked)
    assert wait is not None
    assert 30.0 <= wait <= 30.5
    assert delay(policy, asked._replace(retry_after_s=61.0)) is None


@pytest.mark.parametrize("asked_s", [float("nan"), float("inf")])
def test_a_provider_that_asks_for_no_number_of_seconds_ends_the_trial(asked_s: float):
    assert delay(RetryPolicy(), RAISED._replace(retry_after_s=asked_s)) is None


def test_a_provider_that_asks_for_less_than_nothing_asks_for_nothing():
    wait = delay(RetryPolicy(base_s=0.5), RAISED._replace(retry_after_s=-9.0))
    assert wait is not None
    assert 0.0 <= wait <= 0.5


def test_the_wait_stays_a_number_however_often_it_has_doubled():
    policy = RetryPolicy(most={ErrorType.RATE_LIMITED: 10**9}, cap_s=30.0)
    limited = Fault(ErrorType.RATE_LIMITED, retryable=True)
    wait = delay(policy, limited, *[limited] * 5_000)
    assert wait is not None
    assert wait <= 30.0
