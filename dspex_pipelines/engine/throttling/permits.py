"""What is said about a call to a model, before and after it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple


class Verdict(Enum):
    """What a call's end says of its provider."""

    OK = "ok"
    REFUSED = "refused"
    """Too many requests or tokens (429)."""
    OVERLOADED = "overloaded"
    """The provider has no capacity now (503, 529)."""
    FAILED = "failed"
    """It does not work (other 5xx, time-out, connection lost)."""
    NEUTRAL = "neutral"
    """Nothing: the request itself was wrong (400), or the call was cancelled."""


class Answer(NamedTuple):
    """The one answer to an `ask`."""

    call_id: Hashable
    granted: bool
    reason: str
    """Why not, for the user to read: the provider is given up for now. Empty when granted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneStats:
    """One lane, as of the last event."""

    waiting: int
    in_flight: int
    window: int | None
    """Most calls in flight; None for no bound."""
    paced_per_s: float | None
    """Most calls granted per second; None for no bound."""
    granted: int
    refused: int
    """Calls that ended as REFUSED or OVERLOADED."""
    failed: int
    paused_for_s: float
    """For how long from now nothing is granted, because the provider asked for it or is down."""
    state: str
    """``open``, ``probing the limit``, ``limited``, ``paused``, ``down`` or ``given up``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """The throttle's numbers; `Throttle` says what they mean."""

    start_per_s: float = 700.0
    doubling_s: float = 0.1
    failures_to_open: int = 5
    open_s: float = 1.0
    longest_open_s: float = 15.0
    give_up_s: float = 300.0
    probe_every_s: float = 15.0
    longest_wait_s: float = 600.0
    idle_s: float = 600.0
    most_lanes: int = 1_000
