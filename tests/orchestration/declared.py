"""Evaluations of this folder's programs."""

from __future__ import annotations

from typing import Any

from dspex_pipelines.model.evaluation import Dataset, Evaluation
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.variables import Integer

WORKERS, SLOTS = 2, 64
PROGRAMS = "tests.orchestration.programs"
SPACE = ConfigurationSpace(variables=(Integer(name="k", low=1, high=3, points=(1, 2)),))


def rows(count: int, **more: object) -> list[dict[str, Any]]:
    return [{"id": f"e{x}", "x": x, "y": x, "group": f"g{x % 3}", **more} for x in range(count)]


def declare(program: str, source: Any = None, **changes: Any) -> Evaluation:
    """An evaluation of a program of this folder, by default over twenty examples in one partition."""
    given = rows(20) if source is None else source
    dataset: dict[str, Any] = {
        "source": given if callable(given) else lambda: given,
        "inputs": changes.pop("inputs", ("x",)),
        "labels": ("y",),
        "example_id": "id",
        "group": "group",
        "partition_by": changes.pop("partition_by", ""),
        "partitions": changes.pop("partitions", ("all",)),
    }
    return Evaluation(
        **{
            "name": "tested",
            "dataset": Dataset(**dataset),
            "program": f"{PROGRAMS}:{program}",
            "metrics": (f"{PROGRAMS}:right",),
            "space": SPACE,
            "timeout_s": 30.0,
            **changes,
        }
    )
