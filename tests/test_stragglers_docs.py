"""docs/stragglers.md is followed to the letter, in an empty folder, by subprocesses."""

from __future__ import annotations

import re
from pathlib import Path

from dspex_pipelines.engine import hedging
from dspex_pipelines.model.hedging import Hedging
from tests.test_checks_docs import run
from tests.test_readme import ROOT

PAGE = (ROOT / "docs" / "stragglers.md").read_text()


def test_the_page_is_true(tmp_path: Path) -> None:
    program, declaration = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "evaluation.py").write_text(declaration)
    declared, without = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)\n```", PAGE, re.DOTALL)
    told = run(tmp_path, declared)
    hedged = re.search(re.escape(shown).replace("…", "([0-9]+)"), told)
    assert hedged, told
    trials, won = map(int, hedged.groups())
    assert 0 < won <= trials <= 100
    assert told.index("best") < hedged.start(), "below the leaderboard"
    assert "Hedged" not in run(tmp_path, without)


def test_the_numbers_on_the_page_are_the_defaults() -> None:
    assert "Hedging(quantile=0.95, fraction=0.1, after=100)" in PAGE
    assert Hedging() == Hedging(quantile=0.95, fraction=0.1, after=100)
    assert f"the last {hedging.KEPT:,} trials" in PAGE
