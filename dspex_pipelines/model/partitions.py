"""How a data set is divided, where its partitions are not named one by one."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Literal, TypeAlias

from dspex_pipelines.errors import InvalidValue

Every: TypeAlias = Literal["day", "week", "month"]
PERIODS: tuple[Every, ...] = ("day", "week", "month")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dynamic:
    """Partitions that come with the data: one for each file of a folder, or for each value of `partition_by`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dates:
    """A partition for each day, week or month from *start* on; `partition_by` is the column of dates.

    A partition is named by its first day, and a week begins on Sunday, as in Dagster.
    """

    start: str
    """ISO date, such as 2026-01-31."""
    every: Every = "day"

    def __post_init__(self) -> None:
        if self.every not in PERIODS:
            raise InvalidValue(
                field="dataset.partitions.every", value=self.every, fix=f"give one of {', '.join(PERIODS)}"
            )
        if isinstance(self.start, dt.date):
            object.__setattr__(self, "start", self.start.strftime("%Y-%m-%d"))
        start = as_date(self.start)
        if start is None or str(start) != self.start:
            raise InvalidValue(
                field="dataset.partitions.start", value=self.start, fix="give an ISO date, such as 2026-01-31"
            )

    def partition_of(self, value: object) -> str | None:
        """Return the partition that a date, a time or its ISO text falls into; None where it falls into none."""
        day = as_date(value)
        if day is None:
            return None
        if self.every == "week":
            day -= dt.timedelta(days=(day.weekday() + 1) % 7)
        elif self.every == "month":
            day = day.replace(day=1)
        return day.isoformat() if day.isoformat() >= self.start else None


def as_date(value: object) -> dt.date | None:
    """Return the day of a date, a time or an ISO text, as it is written; None for what is none of these."""
    if isinstance(value, dt.datetime):
        return value.date()
    if isinstance(value, dt.date):
        return value
    if not isinstance(value, str):
        return None
    try:
        return dt.datetime.fromisoformat(value.strip()).date()
    except ValueError:
        return None
