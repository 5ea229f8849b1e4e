"""How far a run is, told in its log and as observations of its asset, and never in more than a few hundred events."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import dagster as dg

from dspex_pipelines.engine.executor import Progress
from dspex_pipelines.engine.running_scores import RunningScores
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.usage import Usage
from dspex_pipelines.orchestration.tags import RESULTS

LOG_EVERY_S = 5.0
LOG_WAITING_EVERY_S = 30.0
SHARE = 0.05
"""The pause is at least this share of how long the run has taken: so many more events at most each time it doubles."""


def pause_s(elapsed_s: float) -> float:
    """Return how long to say nothing, *elapsed_s* after the run's start."""
    return max(LOG_EVERY_S, SHARE * elapsed_s)


@dataclass(slots=True, kw_only=True)
class ToldProgress:
    """Tells how far a batch is, seldom enough."""

    plan: Plan
    batch: Batch
    say: Callable[[str], None]
    observe: Callable[[dg.AssetObservation], None]
    started_at: float
    """When the run began, in seconds since the epoch."""
    _said: float = 0.0
    _why: str = ""

    def __post_init__(self) -> None:
        self._said = time.monotonic()

    def moved(self, progress: Progress, usage: Usage, scores: RunningScores) -> None:
        """Tell of it, unless that was done a moment ago."""
        now = time.monotonic()
        if now - self._said < pause_s(time.time() - self.started_at):
            return
        self._said = now
        eta = "" if progress.eta_s is None else f", about {progress.eta_s:.0f} s to go"
        facts = "".join(f"; {fact}" for fact in (str(scores), usage.short()) if fact)
        self.say(
            f"{progress.done:,} of {progress.total or 0:,} trials done, {progress.failed:,} failed, "
            f"{progress.in_flight} in flight, {progress.rate_per_s:,.0f}/s{eta}{facts}"
        )
        self.observe(
            dg.AssetObservation(
                asset_key=[self.plan.evaluation, RESULTS],
                partition=self.plan.partition,
                description="How far the run is.",
                metadata=self._metadata(progress, usage, scores),
            )
        )

    def _metadata(self, progress: Progress, usage: Usage, scores: RunningScores) -> Mapping[str, float | int | str]:
        share = (self.batch.start + progress.done) / self.plan.total
        metadata: dict[str, float | int | str] = {
            "share done": round(share, 4),
            "trials done": progress.done,
            "trials failed": progress.failed,
            "trials in flight": progress.in_flight,
            "trials/s": round(progress.rate_per_s, 1),
        }
        if progress.eta_s is not None:
            metadata["seconds to go"] = round(progress.eta_s, 1)
        if scores.n:
            metadata[f"mean {scores.metric} so far"] = round(scores.mean, 6)
        if not math.isnan(scores.half_width):
            metadata[f"± of mean {scores.metric}"] = round(scores.half_width, 6)
        if used := usage.short():
            metadata["used"] = used
        return metadata

    def waits(self, why: str, for_s: float) -> None:
        """Tell that nothing moves, and again when the reason is another or a while has passed."""
        now = time.monotonic()
        if why == self._why and now - self._said < max(LOG_WAITING_EVERY_S, pause_s(time.time() - self.started_at)):
            return
        self._why, self._said = why, now
        self.say(f"waiting for {for_s:.0f} s: {why}")
