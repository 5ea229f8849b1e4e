"""What is installed is found as `importlib.metadata` finds it."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import pytest

from dspex_pipelines.engine.distributions import packages_distributions

INSTALLED = {
    "declared-1": {"METADATA": "Name: declared\n", "top_level.txt": "one\ntwo\n", "RECORD": "three.py,,\n"},
    "recorded-1": {
        "METADATA": "Metadata-Version: 2.1\nName: Recorded.Name\n\nName: of none\n",
        "RECORD": 'package/a.py,sha256=x,1\npackage/b/c.py,,\n"comma,d/e.py",,\nmodule.py,,\nnative.so,,\n',
    },
    "odd-1": {"METADATA": "name:   odd\nVersion: 1\n", "RECORD": "odd.py,,\n"},
    "bare-1": {"METADATA": "Name: bare\n"},
}


def test_it_says_what_the_standard_library_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, files in INSTALLED.items():
        (tmp_path / f"{folder}.dist-info").mkdir()
        for name, text in files.items():
            (tmp_path / f"{folder}.dist-info" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    found = packages_distributions()
    told = importlib.metadata.packages_distributions()
    assert found["package"] == found["module"] == found["comma,d"] == ["Recorded.Name"]
    assert {name: sorted(by) for name, by in found.items()} == {name: sorted(told[name]) for name in found}
    assert {"one", "two", "odd", "msgpack", "dagster"} <= found.keys()
    assert not {"three", "native", "bare"} & found.keys()
