"""The commands in this process, over results that are made up and not evaluated, and in processes of their own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from click.testing import Result
from typer.testing import CliRunner

from dspex_pipelines import Boolean, ConfigurationSpace, Dataset, Evaluation
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.cli.commands import app
from dspex_pipelines.orchestration.io_managers import NewestResults

ROOT = Path(__file__).parents[2]
DSPEX = (
    sys.executable,
    "-c",
    "import sys; sys.argv[0] = 'dspex'; from dspex_pipelines.cli import app, commands; commands.main()",
)
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
def results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """Let the commands find these rows as the newest results."""
    path = tmp_path / "trials.parquet"

    def give(*rows: dict[str, Any], left_out: tuple[str, ...] = (), partial: dict[str, str] | None = None) -> None:
        newest = NewestResults(paths={"all": path}, left_out=left_out, missing=(), partial=partial or {})
        texts = dict.fromkeys(("error_type", "error_message"), str)
        pd.DataFrame(list(rows)).astype(texts).to_parquet(path, index=False, row_group_size=2)
        monkeypatch.setattr("dspex_pipelines.cli.targets.find_evaluation", lambda *_, **__: EVALUATION)
        monkeypatch.setattr("dspex_pipelines.cli.results.newest_results", lambda _: newest)

    return give


class Shell:
    """Starts commands in a folder, and with a runtime folder, of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "dspex"
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder), "PYTHONPATH": str(ROOT)}
        # Commands that were run in this process have set it.
        self.environment.pop("DAGSTER_HOME", None)
        self.started: list[subprocess.Popen[str]] = []

    def start(self, *arguments: str, command: tuple[str, ...] = DSPEX) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def run(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        told, _ = process.communicate(timeout=60)
        assert process.returncode == code, told
        return told

    def bridge(self, address: str) -> subprocess.Popen[str]:
        process = self.start("--address", address, command=(sys.executable, "-m", "dspex_pipelines.bridge"))
        assert json.loads(line_of(process, "address"))["address"] == address
        return process

    def end(self) -> None:
        for process in self.started:
            if process.poll() is None:
                process.kill()
            if process.stdout is not None and not process.stdout.closed:
                process.communicate()
        local_pool.stop(runtime_root=self.root)


@pytest.fixture
def shell() -> Iterator[Shell]:
    one = Shell(Path(tempfile.mkdtemp(prefix="dspex-t-")))
    one.folder.chmod(0o700)
    yield one
    one.end()
    shutil.rmtree(one.folder)


def line_of(process: subprocess.Popen[str], word: str) -> str:
    """The next line with that word; what came before is passed over."""
    assert process.stdout is not None
    read: list[str] = []
    for line in process.stdout:
        read.append(line)
        if word in line:
            return line.strip()
    raise AssertionError(f"no line has {word!r}: {read}")
