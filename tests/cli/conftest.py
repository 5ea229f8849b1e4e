"""The commands in this process, over results that are made up and not evaluated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from dspex_pipelines import Boolean, ConfigurationSpace, Dataset, Evaluation
from dspex_pipelines.cli.commands import app
from dspex_pipelines.orchestration.io_managers import NewestResults

EVALUATION = Evaluation(
    name="made_up",
    dataset=Dataset(source="data.csv", example_id="id", inputs=("text",), labels=("expected",)),
    program="tests.programs:first",
    metrics=("tests.programs:same",),
    space=ConfigurationSpace(variables=(Boolean(name="flag"),)),
)


def row(
    example: str, *, configuration: str = "c0ffee", error: tuple[str, str] | None = None, **more: Any
) -> dict[str, Any]:
    """One trial as results hold it: where nothing went wrong there is no error, which pandas reads as NaN or None."""
    return {
        "trial_id": f"{configuration}{example}".ljust(32, "0"),
        "partition": "all",
        "example_id": example,
        "group": example,
        "repeat": 0,
        "configuration": configuration,
        "var.flag": configuration == "c0ffee",
        "status": "error" if error else "ok",
        "error_type": error[0] if error else float("nan"),
        "error_message": error[1] if error else float("nan"),
        "score.same": float("nan") if error else 1.0,
        **more,
    }


Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    return lambda *arguments: CliRunner().invoke(app, [str(one) for one in arguments])


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the commands find these rows as the newest results."""

    def give(*rows: dict[str, Any], left_out: tuple[str, ...] = (), partial: dict[str, str] | None = None) -> None:
        newest = NewestResults(
            paths={"all": Path("trials.parquet")}, left_out=left_out, missing=(), partial=partial or {}
        )
        frame = pd.DataFrame(list(rows))
        monkeypatch.setattr("dspex_pipelines.cli.targets.find_evaluation", lambda *_, **__: EVALUATION)
        monkeypatch.setattr("dspex_pipelines.cli.results.newest_results", lambda _: (frame, newest))

    return give
