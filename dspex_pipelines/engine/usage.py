"""What the trial that runs here says that it has used, for budgets and sums."""

from __future__ import annotations

import math
from contextvars import ContextVar

from dspex_pipelines.errors import InvalidValue

MOST_NAMES = 64
_used: ContextVar[dict[str, float] | None] = ContextVar("used", default=None)


def report_usage(**amounts: float) -> None:
    """Add *amounts* to what the trial that calls this has used: ``tokens``, ``cost_usd``, or names of your own.

    Programs and metrics call it as often as they like, in coroutines too, but not in threads that they start
    themselves; outside a trial it does nothing. Budgets are about ``tokens`` and ``cost_usd`` (US dollars). Raises
    `InvalidValue` for what is no finite number of 0 or more.
    """
    used = _used.get()
    for name, amount in amounts.items():
        if isinstance(amount, bool) or not (math.isfinite(amount) and amount >= 0):
            raise InvalidValue(field=name, value=amount, fix="report a finite number, 0 or more")
        if used is None:
            continue
        if name not in used and len(used) >= MOST_NAMES:
            raise InvalidValue(field=name, value=amount, fix=f"a trial reports at most {MOST_NAMES} names")
        used[name] = used.get(name, 0) + amount


def collect_usage() -> dict[str, float]:
    """Return the amounts that the trial which starts here, in this coroutine or thread, is going to report."""
    used: dict[str, float] = {}
    _used.set(used)
    return used
