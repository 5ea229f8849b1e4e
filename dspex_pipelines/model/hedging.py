"""When a trial that takes long gets a second copy, as the user declares it."""

from __future__ import annotations

from dataclasses import dataclass

from dspex_pipelines.errors import InvalidValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Hedging:
    """A trial that runs longer than most others have is run a second time beside; whichever answers first counts.

    Raises `InvalidValue`.
    """

    quantile: float = 0.95
    """Of how long the last trials took: one that has run for longer than this share of them gets the second copy."""
    fraction: float = 0.1
    """Most second copies, for each trial that has a final outcome. A quantile of 0.95 asks for about 0.05; the rest is
    for times at which everything is slower."""
    after: int = 100
    """So many trials of a step have a final outcome before the first second copy."""

    def __post_init__(self) -> None:
        if not _is_number(self.quantile) or not 0 < self.quantile < 1:
            raise InvalidValue(field="hedging.quantile", value=self.quantile, fix="give a number between 0 and 1")
        if not _is_number(self.fraction) or not 0 < self.fraction <= 1:
            fix = "give a number above 0, 1 at most; leave hedging out for no second copies"
            raise InvalidValue(field="hedging.fraction", value=self.fraction, fix=fix)
        if type(self.after) is not int or self.after < 1:
            raise InvalidValue(field="hedging.after", value=self.after, fix="give an integer of 1 or more")


def hedged_in_words(trials: int, won: int) -> str:
    """Return how many trials had a second copy, and of how many it answered first, for people."""
    had = "1 trial" if trials == 1 else f"{trials:,} trials"
    return f"{had} had a second copy" + (f", and {won:,} of them an answer from it first" if trials else "")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
