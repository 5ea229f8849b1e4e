"""Partitions that are not named one by one, and what starts runs by itself."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex_pipelines import Automation, Dataset, Dates, Dynamic, Upstream
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.partitions import Every
from dspex_pipelines.orchestration.data.partitions import _dates

NOW = dt.datetime(2026, 6, 15, tzinfo=dt.UTC)


@given(st.dates(dt.date(2026, 1, 1), dt.date(2026, 6, 1)), st.sampled_from(["day", "week", "month"]))
def test_a_date_is_in_the_partition_that_dagster_puts_it_in(day: dt.date, every: Every) -> None:
    moment = dt.datetime(day.year, day.month, day.day, 13, tzinfo=dt.UTC)
    definition = _dates(every, "2026-01-01")
    found = Dates(start="2026-01-01", every=every).partition_of(day)
    keys = [
        key
        for key in definition.get_partition_keys(current_time=NOW)
        if definition.time_window_for_partition_key(key).start
        <= moment
        < definition.time_window_for_partition_key(key).end
    ]
    assert [found] == (keys or [None])


@pytest.mark.parametrize("value", [None, "", "soon", 20260101, 1.5, "2025-12-31", dt.date(2025, 12, 31)])
def test_what_is_no_date_since_the_start_is_in_none(value: object) -> None:
    assert Dates(start="2026-01-01").partition_of(value) is None


def test_times_and_texts_are_dates_as_they_are_written() -> None:
    dates = Dates(start="2026-01-01")
    for value in (
        " 2026-01-02 ",
        "2026-01-02T23:59:59+05:00",
        dt.datetime(2026, 1, 2, 23, tzinfo=dt.UTC),
        dt.date(2026, 1, 2),
    ):
        assert dates.partition_of(value) == "2026-01-02"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Dates(start="1.1.2026"), "dataset.partitions.start: '1.1.2026' is not accepted; give an ISO date"),
        (
            lambda: Dates(start="2026-01-01", every="hour"),
            "every: 'hour' is not accepted; give one of day, week, month",
        ),
        (
            lambda: declared(partitions=Dates(start="2026-01-01")),
            "partition_by: '' is not accepted; name the column of",
        ),
        (
            lambda: declared(source=list, partitions=Dynamic()),
            "partition_by: '' is not accepted; name the column whose",
        ),
        (lambda: declared(source=3), "dataset.source: 3 is not accepted; give a path, a function that yields rows"),
        (lambda: declared(max_bad_rows=-1), "dataset.max_bad_rows: -1 is not accepted; give a fraction below 1"),
        (lambda: declared(max_bad_rows=float("nan")), "dataset.max_bad_rows: nan"),
        (lambda: Upstream(""), "dataset.source: '' is not accepted; give an asset's key"),
        (lambda: Upstream("a//b"), "dataset.source: 'a//b' is not accepted"),
        (lambda: Automation(schedule="daily"), "automation.schedule: 'daily' is not accepted; give five fields"),
        (lambda: Automation(schedule="61 * * * *"), "automation.schedule: '61 * * * *' is not accepted"),
        (lambda: Automation(timezone="Mars"), "automation.timezone: 'Mars' is not accepted"),
        (lambda: Automation(latest=-1), "automation.latest: -1 is not accepted; give an integer in [0, 100,000]"),
        (lambda: Automation(look_every_s=0), "automation.look_every_s: 0 is not accepted"),
        (lambda: Automation(stale_after_h=-1), "automation.stale_after_h: -1 is not accepted; give hours"),
    ],
)
def test_what_cannot_be_is_named(make: Any, said: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        make()
    assert said in str(refused.value)


def declared(**changes: Any) -> Dataset:
    return Dataset(**{"source": Path("data"), "inputs": ("x",), **changes})


def test_a_folder_of_dynamic_partitions_has_one_for_each_file() -> None:
    assert declared(partitions=Dynamic()).a_partition_is_a_file
    assert not declared(partitions=Dynamic(), partition_by="topic").a_partition_is_a_file
    assert dg.AssetKey(Upstream("raw/messages").path) == dg.AssetKey(["raw", "messages"])
