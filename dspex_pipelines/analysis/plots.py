"""The leaderboard as a picture."""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from dspex_pipelines.analysis.leaderboard import Leaderboard

# Of what no font has there is a box in the picture, which is warning enough.
warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)

_BEST, _REST, _BOUNDS = "#0b6e4f", "#3b5b8c", "#c9c9c9"
_LABELS = 0.6
"""Of the width; labels that take more are folded."""
_TOP = 20
"""Configurations that are shown, the best."""
_LINES = 3
"""Of a label; what is left then is an ellipsis."""


def leaderboard_png(board: Leaderboard) -> bytes:
    """Return a PNG: each configuration's mean and 95% interval, with the bounds that failures leave.

    The object interface of matplotlib is used, so it may be called from any thread.
    """
    standings = board.standings[:_TOP]
    figure = Figure(figsize=(9.0, 1.2), dpi=100)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, standing in enumerate(standings):
        score = standing.scores[board.metric]
        colour = _BEST if standing is board.best else _REST
        if score.n < standing.n:
            axes.plot(standing.bounds, [row, row], color=_BOUNDS, linewidth=5, solid_capstyle="butt", zorder=1)
        if not math.isnan(score.low):
            axes.plot([score.low, score.high], [row, row], color=colour, linewidth=1.6, zorder=2)
        axes.plot([score.mean], [row], "o", color=colour, markersize=5, zorder=3)
    axes.tick_params(axis="y", labelsize=8, length=0)
    axes.set_ylim(len(standings) - 0.5, -0.5)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel(f"{board.metric}: mean and {board.interval}", fontsize=9, parse_math=False)
    shown = "" if len(standings) == len(board.standings) else f", best {len(standings)} of {len(board.standings)}"
    axes.set_title(
        f"Configurations by {board.metric}{shown}"
        + ("; grey: bounds of the mean over all trials, ranked by the worst" if board.has_gaps else ""),
        fontsize=10,
        loc="left",
        parse_math=False,
    )
    lines, label_width = _set_labels(axes, board.labels(_TOP), canvas, room=_LABELS * figure.bbox.width)
    figure.set_size_inches(9.0, 1.2 + max(0.27, 0.06 + 0.14 * lines) * len(standings))
    _make_room(figure, label_width)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _set_labels(axes: Axes, labels: Sequence[str], canvas: FigureCanvasAgg, *, room: float) -> tuple[int, float]:
    """Label the rows, folded to a *room* of so many pixels; return the most lines of one, and the pixels they take."""
    length, shown = max(map(len, labels)), list(labels)
    while True:
        axes.set_yticks(range(len(shown)), shown, parse_math=False)  # a prompt may have dollar signs
        width = max(text.get_window_extent(canvas.get_renderer()).width for text in axes.get_yticklabels())
        if width <= room:
            return 1 + max(label.count("\n") for label in shown), width
        length = int(length * room / width)
        shown = [
            textwrap.fill(label, length, max_lines=_LINES, placeholder=" …", break_on_hyphens=False) for label in labels
        ]


def _make_room(figure: Figure, label_width: float) -> None:
    """Leave room for the labels, a title and a caption; matplotlib's own layouts draw everything twice."""
    width, height = figure.get_size_inches() * figure.dpi
    left = (label_width + 16) / width
    figure.subplots_adjust(left=left, right=1 - 12 / width, bottom=48 / height, top=1 - 32 / height)
