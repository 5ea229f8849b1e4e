"""The leaderboard on a terminal: the configuration stays readable, and what has no room is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len
from rich.table import Table

from dspex_pipelines.analysis.leaderboard import Estimate, Leaderboard, Standing

CONFIGURATION = "configuration"
LEAST = 20
"""Columns that a configuration gets before it is folded."""
_PADDING = 3
_RIGHT = {"#", "n", "failures", "not run"}


def leaderboard_table(board: Leaderboard, limit: int | None, *, width: int) -> tuple[Table, tuple[str, ...]]:
    """Return the table, and the names of the columns that *width* has no room for.

    Bounds go first, of which the rank's own end stays where anything failed, then further metrics, the last one first.
    What is left is never cut: a terminal that is narrower still folds the lines itself.
    """
    rows = board.rows(limit)
    names = list(rows[0])
    widths = {name: max(cell_len(name), *(cell_len(row[name]) for row in rows)) for name in names}
    least = {**widths, CONFIGURATION: min(widths[CONFIGURATION], LEAST)}
    dropped: list[str] = []
    for name in ("bounds", *reversed(board.metrics[1:])):
        if _taken(least, names) <= width:
            break
        names.remove(name)
        dropped.append(name)
    table = Table(title=f"By {board.metric}: mean and {board.interval}", title_justify="left")
    for name in names:
        table.add_column(
            name,
            justify="right" if name in _RIGHT else "left",
            no_wrap=name != CONFIGURATION,
            overflow="fold",
            min_width=least[name],
        )
    for row in rows:
        table.add_row(*(row[name] for name in names))
    needed = _taken(least, names)
    if needed > width:
        table.width = needed
    return table, tuple(dropped)


def leaderboard_documents(board: Leaderboard, limit: int | None) -> list[dict[str, Any]]:
    """Return the rows of the table, each with its values by variable, and its numbers under ``numbers``."""
    documents = zip(board.rows(limit), board.standings, strict=False)
    return [{**row, **_counts(row), "values": one.variables, "numbers": _numbers(one)} for row, one in documents]


def _counts(row: Mapping[str, str]) -> dict[str, int]:
    return {name: int(text.replace(",", "")) for name, text in row.items() if name in _RIGHT}


def _numbers(standing: Standing) -> dict[str, Any]:
    return {
        "rank": standing.rank,
        "configuration": standing.configuration,
        "n": standing.n,
        "failures": standing.failures,
        "not_run": standing.not_run,
        "scores": {name: _estimate(score) for name, score in standing.scores.items()},
        "bounds": [_number(bound) for bound in standing.bounds],
        "vs_best": _estimate(standing.difference),
    }


def _estimate(estimate: Estimate) -> dict[str, float | int | None]:
    return {
        "mean": _number(estimate.mean),
        "low": _number(estimate.low),
        "high": _number(estimate.high),
        "n": estimate.n,
        "clusters": estimate.clusters,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _taken(widths: dict[str, int], names: list[str]) -> int:
    return sum(widths[name] + _PADDING for name in names) + 1
