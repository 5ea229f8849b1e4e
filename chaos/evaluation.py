"""The healthy trials as somebody would declare them: what `dspex evaluate` is killed over."""

import os
from collections.abc import Iterator
from typing import Any

from chaos.scenario import CONFIGURATIONS, SPACE
from dspex_pipelines.model.evaluation import Dataset, Evaluation


def rows() -> Iterator[dict[str, Any]]:
    """Yield as many examples as `CHAOS_TRIALS` trials need."""
    for x in range(int(os.environ["CHAOS_TRIALS"]) // CONFIGURATIONS):
        yield {"id": f"e{x}", "x": x, "act": "healthy", "at": 0, "y": x}


healthy = Evaluation(
    name="healthy",
    dataset=Dataset(source=rows, inputs=("x", "act", "at"), labels=("y",), example_id="id"),
    program="chaos.programs:awaited",
    metrics=("chaos.programs:share",),
    space=SPACE,
)
