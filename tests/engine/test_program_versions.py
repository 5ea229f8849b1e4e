"""What is installed decides on a version too."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from dspex_pipelines.engine import program_versions

DISTRIBUTIONS = {
    "declares": {"top_level.txt": "first\nsecond\n", "RECORD": "third/__init__.py,,\n"},
    "records": {
        "RECORD": "own/__init__.py,,\nown/data.txt,,\nalone.py,,\nlib.so,,\n"
        '"own/a,b.py",,\n../bin/x.py,,\n./dotted/__init__.py,,\n'
    },
    "has-no-record": {},
}
FILES = ("own/__init__.py", "own/data.txt", "own/a,b.py", "alone.py", "lib.so", "../bin/x.py", "dotted/__init__.py")


def test_packages_are_of_the_distributions_that_importlib_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that are installed here, and of each kind of them one that is made up."""
    folder = tmp_path / "site-packages"
    for file in FILES:  # what is not there is left out by newer versions of importlib
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()
    for name, files in DISTRIBUTIONS.items():
        about = folder / f"{name}-1.0.dist-info"
        about.mkdir()
        for file, text in {**files, "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"}.items():
            (about / file).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    program_versions._distributions.cache_clear()
    try:
        found = program_versions._distributions()
    finally:
        program_versions._distributions.cache_clear()
    named = {package: [one.metadata["Name"] for one in distributions] for package, distributions in found.items()}
    theirs = importlib.metadata.packages_distributions()
    assert named == {name: theirs[name] for name in theirs if "." not in name}, "what has a dot is no module"
    assert {"first", "second", "own", "alone", "dotted"} <= named.keys()
