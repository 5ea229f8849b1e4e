"""The leaderboard asset: every configuration over all evaluated partitions, ranked."""

import base64
from collections.abc import Mapping
from typing import Any

import dagster as dg

from dspex_pipelines.analysis.leaderboard import Leaderboard, leaderboard
from dspex_pipelines.analysis.plots import leaderboard_png
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.payload import digest_of
from dspex_pipelines.orchestration.io_managers import EvaluatedPartitions
from dspex_pipelines.orchestration.tags import RESULTS

SHOWN = 50
"""Configurations in the asset's metadata; the file has all."""


def leaderboard_asset(evaluation: Evaluation) -> dg.AssetsDefinition:
    """Return the asset that ranks the configurations; plans are held against like plans only."""

    @dg.asset(
        name="leaderboard",
        key_prefix=evaluation.name,
        ins={
            "trials": dg.AssetIn(
                key=dg.AssetKey([evaluation.name, RESULTS]),
                input_manager_key="trials_io_manager",
                partition_mapping=dg.AllPartitionMapping(),
            )
        },
        group_name=evaluation.name,
        kinds={"python"},
        description=f"The configurations of {evaluation.name}, best first, over all partitions.",
    )
    def ranked(trials: EvaluatedPartitions) -> dg.MaterializeResult[Any]:
        board = leaderboard(trials.trials, score_range=evaluation.score_range)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(digest_of(board.to_markdown(limit=10**9)).hex()),
            metadata=leaderboard_metadata(board, trials),
        )

    return ranked


def leaderboard_metadata(board: Leaderboard, trials: EvaluatedPartitions) -> Mapping[str, dg.MetadataValue]:
    """Return the table, the plot and the counts that the UI shows."""
    picture = base64.b64encode(leaderboard_png(board)).decode()
    return {
        "leaderboard": dg.MetadataValue.md(board.to_markdown(limit=SHOWN)),
        "plot": dg.MetadataValue.md(f"![leaderboard](data:image/png;base64,{picture})"),
        "partitions": dg.MetadataValue.text(", ".join(trials.partitions)),
        "left out (other plans)": dg.MetadataValue.text(", ".join(trials.left_out) or "none"),
        "trials": dg.MetadataValue.int(len(trials.trials)),
        "failures": dg.MetadataValue.int(int((trials.trials["status"] != "ok").sum())),
    }
