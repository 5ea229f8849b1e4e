"""Where programs are imported from: the same in every process that has to do with them."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path


def add_folder(folder: Path) -> None:
    """Have what lies in a folder be importable, as if Python had been started there."""
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)


def python_path(folder: Path) -> str:
    """Return the `PYTHONPATH` under which a worker in *folder* imports what this process does.

    That is the one there is, and before it what has been put in front of Python's own since, as Dagster does with the
    folder of a project's code. The working folder, which workers have anyway, is not in it.
    """
    given = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    known = {str(folder.resolve()), *map(_resolved, given)}
    own = (f"{_resolved(sys.prefix)}{os.sep}", f"{_resolved(sys.base_prefix)}{os.sep}")
    added = list[str]()
    for place in map(_resolved, sys.path):
        if place == _resolved(sysconfig.get_path("stdlib")):
            break
        if place not in known and not place.startswith(own) and Path(place).is_dir():
            known.add(place)
            added.append(place)
    return os.pathsep.join([*added, *given])


def _resolved(entry: str) -> str:
    return str(Path(entry or ".").resolve())
