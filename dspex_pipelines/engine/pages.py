"""The order in which a batch runs its trials."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from operator import attrgetter

from dspex_pipelines.model.trial import TrialSpec

PAGE = 4_000
"""Trials that are looked up, and put into the order of the journal's index, at a time."""
FIRST_PAGE = 250
"""Those of the first page, each later one being twice as long up to `PAGE`: so that the first trials run at once."""
_BY_ID = attrgetter("trial_id")


class Pages(Iterator[list[TrialSpec]]):
    """The trials in the order in which a batch runs them, a page at a time.

    In a page they have the order of their ids: those side by side in the journal's index are run, and so recorded, one
    after the other. `prepare` takes some of the next page, so that it is there when the one before it is run.
    """

    def __init__(self, trials: Iterator[TrialSpec]) -> None:
        self._trials = trials
        self._size = FIRST_PAGE
        self._next: list[TrialSpec] = []
        self._error: Exception | None = None
        """Raised once the page that it is about is wanted: the one before it can be run."""

    def __next__(self) -> list[TrialSpec]:
        if self._error is not None:
            raise self._error
        self._take(self._size)
        page, self._next = self._next, []
        if not page:
            raise StopIteration
        self._size = min(2 * self._size, PAGE)
        return sorted(page, key=_BY_ID)

    def prepare(self, count: int) -> bool:
        """Take so many of the next page's trials; return whether there may be more to take."""
        try:
            return self._take(count)
        except Exception as error:  # noqa: BLE001 - whatever reading examples raises
            self._error = self._error or error
            return False

    def _take(self, most: int) -> bool:
        before = len(self._next)
        # A trial's id is worked out when it is made, and takes most of the time.
        self._next.extend(islice(self._trials, min(most, self._size - before)))
        return before < len(self._next) < self._size
