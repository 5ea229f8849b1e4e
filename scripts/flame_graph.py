"""Draw a flame graph of collapsed stacks, as `py-spy record --format raw` writes them: a line for each, `a;b;c COUNT`.

    python -m scripts.flame_graph STACKS PNG [--under FRAME] [--title TEXT]

Callers are below what they call; widths are shares of the samples. Of each stack only what is above a frame whose name
contains FRAME is drawn, and stacks without one are left out: so that start-up is no part of it.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

LEAST = 0.004
"""Of the width, that a frame needs to be drawn."""
LETTERS = 190
"""That fit into the width."""
COLOURS = {"dspex": "#e8a33d", "grpc": "#5b8fd6", "uvloop": "#77b58a", "asyncio": "#77b58a", "sqlalchemy": "#b58ab8"}
OTHERS = "#c9c4bb"


@dataclass(slots=True)
class Frame:
    """A function, where it was called from, and in how many samples."""

    samples: int = 0
    calls: dict[str, Frame] = field(default_factory=lambda: defaultdict(Frame))


def main() -> None:
    """Read, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stacks", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--under", default="", metavar="FRAME")
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    root = read(arguments.stacks.read_text().splitlines(), under=arguments.under)
    if not root.samples:
        parser.error(f"{arguments.stacks} has no stack with {arguments.under or 'anything'} in it")
    depth = _depth(root, root.samples)
    figure, axes = plt.subplots(figsize=(16, 0.24 * depth + 0.6))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(0, depth)
    axes.set_title(arguments.title, loc="left", fontsize=10)
    _draw(axes, root, 0.0, 0, root.samples)
    figure.savefig(arguments.png, dpi=110, bbox_inches="tight")


def read(lines: list[str], *, under: str = "") -> Frame:
    """Return the tree of the stacks."""
    root = Frame()
    for line in lines:
        stack, count = line.rsplit(" ", 1)
        names = stack.split(";")
        if under:
            begin = next((place for place, name in enumerate(names) if under in name), None)
            if begin is None:
                continue
            names = names[begin + 1 :]
        root.samples += int(count)
        frame = root
        for name in names:
            frame = frame.calls[re.sub(r":\d+\)$", ")", name)]
            frame.samples += int(count)
    return root


def _depth(frame: Frame, total: int) -> int:
    deeper = [_depth(one, total) for one in frame.calls.values() if one.samples >= LEAST * total]
    return 1 + max(deeper, default=0)


def _draw(axes: Axes, frame: Frame, left: float, level: int, total: int) -> None:
    for name, one in sorted(frame.calls.items(), key=lambda item: -item[1].samples):
        width = one.samples / total
        if width < LEAST:
            break
        colour = next((colour for part, colour in COLOURS.items() if part in name), OTHERS)
        axes.add_patch(Rectangle((left, level), width, 0.94, facecolor=colour, edgecolor="white", linewidth=0.4))
        function = name.split(" (")[0]
        if letters := int(width * LETTERS):
            axes.text(left + 0.001, level + 0.45, function[:letters], fontsize=6.5, va="center", clip_on=True)
        _draw(axes, one, left, level + 1, total)
        left += width


if __name__ == "__main__":
    main()
