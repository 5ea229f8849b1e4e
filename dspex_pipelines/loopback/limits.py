"""How much may pass in a time: a token bucket that reads no clock."""

from __future__ import annotations


class Bucket:
    """Holds up to *size*, gains *per_s* each second, and starts full.

    `permitted` is what a client that always asks could have had from the first look until the last.
    """

    def __init__(self, *, per_s: float, size: float) -> None:
        self._per_s = per_s
        self._size = size
        self._level = size
        self._seen_s: float | None = None
        self.permitted = size

    def wait_s(self, amount: float, *, now_s: float) -> float:
        """Return the seconds from *now_s* until *amount* may be taken, 0.0 where it may be at once.

        More than the bucket holds may be taken when it is full.
        """
        passed_s = 0.0 if self._seen_s is None else now_s - self._seen_s
        self._seen_s = now_s
        self._level = min(self._size, self._level + passed_s * self._per_s)
        self.permitted += passed_s * self._per_s
        return max(0.0, (min(amount, self._size) - self._level) / self._per_s)

    def take(self, amount: float) -> None:
        """Take *amount* out, which `wait_s` has just allowed; the bucket may be left owing."""
        self._level -= amount
