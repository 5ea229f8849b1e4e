"""The code location: what Dagster loads."""

from __future__ import annotations

from dspex_pipelines.declarations import STDLIB_SEARCH
from dspex_pipelines.orchestration.build import build_evaluation

defs = build_evaluation(STDLIB_SEARCH)
