"""What the commands print through: text goes out as it is, whatever brackets or characters are in it."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress

SHOWN_LENGTH = 120
"""Characters of a message in a table."""
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
UNFOLDED = 150
"""Columns where there is no terminal, and so nobody to fold lines for."""


def _is_terminal() -> bool:
    # A process may be started with its standard output closed.
    return sys.stdout is not None and sys.stdout.isatty()  # pyright: ignore[reportUnnecessaryComparison]


def write_anything() -> None:
    """Let standard output and error replace the characters that their encoding lacks, instead of raising."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def shortened(text: str) -> str:
    """Return the first line of *text*, with an ellipsis where it is cut."""
    first = (text.splitlines() or [""])[0]
    return first if len(first) <= SHOWN_LENGTH else f"{first[: SHOWN_LENGTH - 1]}…"


class Bars(Progress):
    """Bars that leave no empty line where none of them is seen."""

    def stop(self) -> None:
        """Stop showing them."""
        if any(task.visible for task in self.tasks):
            super().stop()
        else:
            # Without a terminal Progress ends with a line, after a bar or not.
            self.live.stop()


console = Console(width=None if _is_terminal() else UNFOLDED, markup=False, emoji=False, highlight=False)
errors = Console(stderr=True, markup=False, emoji=False, highlight=False)
