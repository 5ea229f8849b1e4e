"""Trials that hang the first time do not hold up a run that is hedged, and a budget knows of their second copies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dspex_pipelines.engine import batch
from dspex_pipelines.model.hedging import Hedging
from dspex_pipelines.model.space import ConfigurationSpace
from tests.orchestration.conftest import Lab, failure
from tests.orchestration.declared import declare, rows

COUNT = 400
HEDGING = Hedging(quantile=0.95, fraction=0.25, after=50)
LIMIT = {"dspex/max_concurrency": "16"}


def hanging(lab: Lab, folder: Path, *, every: int, **changes: Any) -> Lab:
    folder.mkdir()
    for x in range(0, COUNT, every):
        (folder / str(x)).touch()
    source = rows(COUNT, folder=str(folder))
    given: dict[str, Any] = {"inputs": ("x", "folder"), "space": ConfigurationSpace(), "timeout_s": 5.0, **changes}
    return lab.declare(declare("hangs_once", source, **given))


def test_a_run_says_what_was_hedged(lab: Lab, tmp_path: Path) -> None:
    table, metadata = hanging(lab, tmp_path / "asked", every=40, hedging=HEDGING).evaluated(tags=LIMIT)
    hung = table["example_id"].isin([f"e{x}" for x in range(0, COUNT, 40)])
    # The last that is sent has none after it.
    answered = hung & (table["status"] == "ok")
    assert answered.sum() >= 5
    assert (table[answered]["attempts"] == 2).all()
    assert (table[answered]["usage.untold_copies"] == 1).all()
    assert (table[~hung]["status"] == "ok").all()
    assert answered.sum() <= metadata["hedges won"] <= metadata["trials hedged"] <= 0.25 * COUNT


@pytest.mark.parametrize(("declared", "asked"), [(None, None), (HEDGING, 0.0)], ids=["not-declared", "not-in-this-run"])
def test_without_it_nothing_is_said(lab: Lab, tmp_path: Path, declared: Hedging | None, asked: float | None) -> None:
    lab = hanging(lab, tmp_path / "asked", every=COUNT, hedging=declared, timeout_s=0.5)
    table, metadata = lab.evaluated(hedge_fraction=asked, tags=LIMIT)
    assert (table["attempts"] == 1).all()
    assert "trials hedged" not in metadata
    assert table["error_type"].value_counts().to_dict() == {"timeout_run": 1}


def test_a_run_may_ask_for_what_is_not_declared(lab: Lab, tmp_path: Path) -> None:
    _, metadata = hanging(lab, tmp_path / "asked", every=COUNT).evaluated(hedge_fraction=0.25, tags=LIMIT)
    assert "trials hedged" in metadata


def test_a_budget_is_not_passed_by_second_copies(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "STOP_S", 0.3)
    lab = hanging(lab, tmp_path / "asked", every=20, hedging=HEDGING)
    result = lab.evaluate(max_tokens=3_000, tags=LIMIT)
    assert result.success, failure(result)
    table, metadata = lab.newest()
    assert "(max_tokens)" in metadata["partial"]
    untold = table["usage.untold_copies"].sum()
    assert untold > 0
    assert 2_500 < table["usage.tokens"].sum() + 10 * untold <= 3_000
    assert "cancelled once the other answered" in metadata["not counted"]
