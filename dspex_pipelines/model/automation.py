"""When an evaluation is to run by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from dspex_pipelines.errors import InvalidValue

_FIELDS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
"""Least and most of a cron expression's minute, hour, day, month and weekday."""
_NAMES = frozenset(
    [
        "jan",
        "feb",
        "mar",
        "apr",
        "may",
        "jun",
        "jul",
        "aug",
        "sep",
        "oct",
        "nov",
        "dec",
        "sun",
        "mon",
        "tue",
        "wed",
        "thu",
        "fri",
        "sat",
        "l",
    ]
)
LATEST_MOST = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Automation:
    """What starts an evaluation besides somebody's click. Nothing of it is on before somebody turns it on."""

    schedule: str = ""
    """Cron expression of five fields, such as ``0 3 * * *``; empty: no schedule."""
    timezone: str = "UTC"
    """Of the schedule."""
    latest: int = 0
    """Only the newest so many partitions are scheduled; 0: all of them."""
    look_every_s: int = 30
    """Seconds between two looks at the files, and at what they made stale."""
    stale_after_h: float = 0.0
    """Hours after which results count as stale in the UI; 0: never."""
    triggers: Path | None = None
    """A folder: each JSON file that is put there starts a run."""

    def __post_init__(self) -> None:
        if self.schedule and not _is_cron(self.schedule):
            fix = "give five fields: minute, hour, day, month, weekday, such as 0 3 * * *"
            raise InvalidValue(field="automation.schedule", value=self.schedule, fix=fix)
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:
            fix = "give a name such as UTC or Europe/Berlin"
            raise InvalidValue(field="automation.timezone", value=self.timezone, fix=fix) from error
        for name, least, most in (("latest", 0, LATEST_MOST), ("look_every_s", 1, 86_400)):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                fix = f"give an integer in [{least}, {most:,}]"
                raise InvalidValue(field=f"automation.{name}", value=value, fix=fix)
        hours = self.stale_after_h
        if isinstance(hours, bool) or not (math.isfinite(hours) and hours >= 0):
            raise InvalidValue(field="automation.stale_after_h", value=hours, fix="give hours; 0: never")
        if isinstance(self.triggers, str):
            object.__setattr__(self, "triggers", Path(self.triggers))


def _is_cron(text: str) -> bool:
    fields = text.split()
    return len(fields) == len(_FIELDS) and all(
        _is_field(field, least, most) for field, (least, most) in zip(fields, _FIELDS, strict=True)
    )


def _is_field(field: str, least: int, most: int) -> bool:
    for part in field.lower().split(","):
        span, _, step = part.partition("/")
        ends = span.split("-") if span != "*" else []
        if step and not (step.isdecimal() and int(step)):
            return False
        if not all(end in _NAMES or (end.isdecimal() and least <= int(end) <= most) for end in ends):
            return False
    return True
