"""When a worker has had its day: what programs leak goes with the process that they leaked it in."""

from __future__ import annotations

from dataclasses import dataclass

from dspex_pipelines.errors import InvalidValue

MAX_RSS_MB = 2048
"""A worker has some 50 MB, and 220 with DSPy and its model client loaded, so what reaches this has accumulated. Four
workers of this size leave a machine of 16 GB room for everything else."""

_GROWTH = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recycling:
    """After what a worker takes no more trials, finishes those that it has, and is replaced."""

    max_rss_mb: int = MAX_RSS_MB
    """Resident memory of its own process, in MiB; 0 for no limit."""
    max_trials: int = 0
    """Trials that it was sent; 0 for no limit."""

    def __post_init__(self) -> None:
        for name in ("max_rss_mb", "max_trials"):
            if (value := getattr(self, name)) < 0:
                raise InvalidValue(field=name, value=value, fix="give a number above 0, or 0 for no limit")

    def reason(self, *, rss_mb: float, first_rss_mb: float, trials: int) -> str:
        """Return why a worker is to be replaced; empty for one that may go on.

        *first_rss_mb* is what it held when it answered its first trial. What is large from the start (a model of its
        own) would be followed by another as large, again and again, so it has to have doubled as well.
        """
        if self.max_trials and trials >= self.max_trials:
            return f"it was sent {trials:,} trials, the limit is {self.max_trials:,}"
        if self.max_rss_mb and rss_mb > max(self.max_rss_mb, _GROWTH * first_rss_mb):
            return f"it holds {rss_mb:,.0f} MiB, the limit is {self.max_rss_mb:,}"
        return ""
