"""The token bucket, by a clock that the test turns."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex_pipelines.loopback.limits import Bucket


def test_a_full_bucket_lets_its_size_through_at_once_then_its_rate():
    bucket = Bucket(per_s=2.0, size=3)
    waits = []
    for _ in range(4):
        waits.append(bucket.wait_s(1, now_s=100.0))
        if not waits[-1]:
            bucket.take(1)
    assert waits == [0.0, 0.0, 0.0, 0.5]
    assert bucket.wait_s(1, now_s=100.5) == 0.0


def test_a_pause_fills_it_no_further_than_its_size():
    bucket = Bucket(per_s=10.0, size=2)
    bucket.wait_s(1, now_s=0.0)
    for _ in range(2):
        assert bucket.wait_s(1, now_s=1_000.0) == 0.0
        bucket.take(1)
    assert bucket.wait_s(1, now_s=1_000.0) == pytest.approx(0.1)


def test_more_than_its_size_passes_a_full_bucket_and_is_owed():
    bucket = Bucket(per_s=1.0, size=10)
    assert bucket.wait_s(25, now_s=0.0) == 0.0
    bucket.take(25)
    assert bucket.wait_s(1, now_s=0.0) == 16.0


@given(
    per_s=st.floats(min_value=0.1, max_value=1_000),
    size=st.integers(min_value=1, max_value=50),
    pauses=st.lists(st.floats(min_value=0, max_value=10), max_size=100),
)
def test_nobody_gets_more_than_was_permitted(per_s, size, pauses):
    bucket, now_s, taken = Bucket(per_s=per_s, size=size), 0.0, 0
    for pause_s in pauses:
        now_s += pause_s
        if not bucket.wait_s(1, now_s=now_s):
            bucket.take(1)
            taken += 1
    assert taken <= bucket.permitted + 1e-6
    passed_s = sum(pauses[1:])
    assert bucket.permitted == pytest.approx(size + per_s * passed_s)
