"""The leaderboard as a picture."""

from __future__ import annotations

import io
import math

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dspex_pipelines.analysis.leaderboard import Leaderboard, varying

_BEST, _REST, _BOUNDS = "#0b6e4f", "#3b5b8c", "#c9c9c9"


def leaderboard_png(board: Leaderboard, *, top: int = 20) -> bytes:
    """Return a PNG: each configuration's mean and 95% interval, with the bounds that failures leave.

    The object interface of matplotlib is used, so it may be called from any thread.
    """
    standings = board.standings[:top]
    names = varying(board.standings)
    figure = Figure(figsize=(9.0, 1.2 + 0.27 * len(standings)), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, standing in enumerate(standings):
        score = standing.scores[board.metric]
        colour = _BEST if standing is board.best else _REST
        if standing.failures:
            axes.plot(standing.bounds, [row, row], color=_BOUNDS, linewidth=5, solid_capstyle="butt", zorder=1)
        if not math.isnan(score.low):
            axes.plot([score.low, score.high], [row, row], color=colour, linewidth=1.6, zorder=2)
        axes.plot([score.mean], [row], "o", color=colour, markersize=5, zorder=3)
    labels = [standing.label(names) or standing.configuration for standing in standings]
    axes.set_yticks(range(len(standings)), labels, parse_math=False)  # a prompt may have dollar signs
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.invert_yaxis()
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(f"{board.metric}: mean and {board.interval}", fontsize=9, parse_math=False)
    failed = any(standing.failures for standing in standings)
    shown = "" if len(standings) == len(board.standings) else f", best {len(standings)} of {len(board.standings)}"
    axes.set_title(
        f"Configurations by {board.metric}{shown}" + ("; grey: bounds left by failures" if failed else ""),
        fontsize=10,
        loc="left",
        parse_math=False,
    )
    _make_room(figure, max(text.get_window_extent(canvas.get_renderer()).width for text in axes.get_yticklabels()))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _make_room(figure: Figure, label_width: float) -> None:
    """Leave room for labels of so many pixels, a title and a caption; matplotlib's own layouts draw everything twice.

    Of labels that would leave less than a quarter to what they are about, the beginning is cut off.
    """
    width, height = figure.get_size_inches() * figure.dpi
    left = min(label_width + 16, 0.75 * width)
    figure.subplots_adjust(left=left / width, right=1 - 12 / width, bottom=48 / height, top=1 - 32 / height)
