"""The leaderboard asset: every configuration over all evaluated partitions, ranked."""

import base64
from collections.abc import Mapping
from typing import Any

import dagster as dg

from dspex_pipelines.analysis.leaderboard import RANKED_BY, Leaderboard, leaderboard
from dspex_pipelines.analysis.plots import leaderboard_png
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.payload import digest_of
from dspex_pipelines.orchestration.freshness import stale_leaderboard
from dspex_pipelines.orchestration.io_managers import EvaluatedPartitions
from dspex_pipelines.orchestration.tags import PARTIAL, RESULTS

SHOWN = 50
"""Configurations in the asset's metadata, and partitions that have no results."""
TOP = 10
"""Configurations shown without a click."""
_READING = """

The rank is by the mean over all `n` planned trials, where one that failed, or was not run, counts as the worst score:
failing on hard examples gains nothing. Where any did, that mean is in the column `ranked by`; the first row's is
`best …`. A score is the mean of the trials that succeeded, ± half of its 95% interval, clustered by group where
examples are in groups. `bounds` are the mean had every trial without a score scored worst, and best. `vs best` is the
mean difference to the first row over the examples where both succeeded, ± likewise: where that reaches 0, the two are
not told apart.
"""


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
        owners=list(evaluation.owners),
        automation_condition=stale_leaderboard(),
        description=f"The configurations of {evaluation.name}, best first, over all partitions.{_READING}",
    )
    def ranked(context: dg.AssetExecutionContext, trials: EvaluatedPartitions) -> dg.MaterializeResult[Any]:
        board = leaderboard(trials.ranked, score_range=evaluation.score_range)
        if board.outside:
            context.log.warning(board.outside)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(digest_of(repr(board)).hex()),
            metadata=leaderboard_metadata(board, trials),
        )

    return ranked


def leaderboard_metadata(board: Leaderboard, trials: EvaluatedPartitions) -> Mapping[str, dg.MetadataValue]:
    """Return the tables, the plot and the counts; the UI shows `top` in place, `leaderboard` and `plot` at a click."""
    metadata: dict[str, dg.MetadataValue] = {
        **board_metadata(board),
        "partitions": dg.MetadataValue.text(", ".join(trials.partitions)),
        "left out (other plans)": dg.MetadataValue.text(", ".join(trials.left_out) or "none"),
        "trials": dg.MetadataValue.int(len(trials.ranked)),
        "failures": dg.MetadataValue.int(sum(standing.failures for standing in board.standings)),
    }
    if missing := trials.newest.missing:
        rest = f" and {len(missing) - SHOWN:,} more" if len(missing) > SHOWN else ""
        metadata["not evaluated yet"] = dg.MetadataValue.text(", ".join(missing[:SHOWN]) + rest)
    if trials.partial:
        said = "\n".join(f"- {name}: {what}" for name, what in trials.partial.items())
        metadata[PARTIAL] = dg.MetadataValue.md(said)
    return metadata


def board_metadata(board: Leaderboard) -> Mapping[str, dg.MetadataValue]:
    """Return how the configurations compare: tables and a picture, of a size that does not grow with the trials."""
    picture = base64.b64encode(leaderboard_png(board)).decode()
    metadata: dict[str, dg.MetadataValue] = {
        "best": dg.MetadataValue.text(board.labels(1)[0] if board.best else "none: no trial succeeded"),
        "plot": dg.MetadataValue.md(f"![leaderboard](data:image/png;base64,{picture})"),
        "leaderboard": dg.MetadataValue.md(_unbroken(board.to_markdown(limit=SHOWN))),
        "top": _top(board),
    }
    if board.outside:
        metadata["outside score_range"] = dg.MetadataValue.text(board.outside)
    # A number of its own, which the UI plots over materialisations.
    if board.best:
        metadata[f"best {board.metric}"] = dg.MetadataValue.float(round(board.best.bounds[0], 6))
    return metadata


def _top(board: Leaderboard) -> dg.MetadataValue:
    """Return the best few, with only the columns that fit beside one another."""
    columns = {
        "#": "rank",
        "configuration": "the variables that differ",
        "n": "trials, failures included",
        **({RANKED_BY: "mean where what failed or was not run scores worst"} if board.has_gaps else {}),
        board.metric: f"mean of the successes, and its {board.interval}",
        "vs best": "paired difference to the best configuration, and its 95% interval",
    }
    if any(standing.not_run for standing in board.standings):
        columns["not run"] = "trials that a stopped run did not get to; for the rank they scored worst"
    if any(standing.failures for standing in board.standings[:TOP]):
        columns["failures"] = "trials that failed; for the rank they scored worst"
    return dg.MetadataValue.table(
        [dg.TableRecord({name: _unbroken(row[name]) for name in columns}) for row in board.rows(TOP)],
        dg.TableSchema(columns=[dg.TableColumn(name, "string", text) for name, text in columns.items()]),
    )


def _unbroken(text: str) -> str:
    """Keep a mean and its interval in one line of a narrow cell."""
    return text.replace(" ± ", "\u00a0±\u00a0").replace("…", "\u2060…\u2060")
