"""Which configurations of a space a run tries, where nobody says otherwise."""

from __future__ import annotations

from dataclasses import dataclass

from dspex_pipelines.errors import InvalidValue

MOST_CONFIGURATIONS = 1_000_000
"""Of a run: its plan names each."""
LARGEST = 2**31 - 1
"""Of what a run's config can hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """So many configurations drawn at random, or the whole grid. A run's config may ask for others."""

    samples: int = 0
    """Configurations to draw; 0: the whole grid."""
    seed: int = 0
    """Of the draw, and of the trials."""

    def __post_init__(self) -> None:
        for name in ("samples", "seed"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= LARGEST:
                fix = f"give an integer in [0, {LARGEST}]"
                raise InvalidValue(field=f"search.{name}", value=value, fix=fix)
        if self.samples > MOST_CONFIGURATIONS:
            fix = f"draw at most {MOST_CONFIGURATIONS:,} configurations"
            raise InvalidValue(field="search.samples", value=self.samples, fix=fix)
