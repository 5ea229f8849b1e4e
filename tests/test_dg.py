"""The package as `dg` sees it: installed from a wheel, in a project of somebody's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.test_project import ROOT

pytestmark = pytest.mark.timeout(300)
SHIPPED = """\
import sys
from dspex_pipelines.declarations import STDLIB_SEARCH
print(STDLIB_SEARCH.name, "dagster" in sys.modules)
"""
LOADED = """\
from dspex_pipelines.definitions import defs
print(sorted(key.to_user_string() for key in defs.resolve_all_asset_keys()))
"""


@dataclass(frozen=True)
class Installed:
    """Where the wheel is, and a project beside it."""

    packages: Path
    project: Path

    def run(self, *command: str, code: int = 0) -> str:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.packages}:{self.project / 'src'}",
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "DAGSTER_DG_UPDATE_CHECK_ENABLED": "0",
            "COLUMNS": "200",
        }
        environment.pop("DAGSTER_HOME", None)
        done = subprocess.run(
            command, cwd=self.project, env=environment, capture_output=True, text=True, timeout=110, check=False
        )
        told = done.stdout + done.stderr
        assert done.returncode == code, told
        return told

    def dg(self, *arguments: str, code: int = 0) -> str:
        return self.run(str(Path(sys.executable).with_name("dg")), *arguments, code=code)

    def python(self, script: str) -> str:
        return self.run(sys.executable, "-c", script)

    def edit(self, before: str, after: str) -> None:
        file = self.project / "src" / "own_project" / "defs" / "shortened" / "defs.yaml"
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, after))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("dspex", "dspex_pipelines"):
        shutil.copytree(ROOT / name, source / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    _pip("wheel", "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    _pip("install", "--target", str(folder / "packages"), *map(str, folder.glob("*.whl")))
    found = Installed(folder / "packages", folder / "own_project")
    found.project.mkdir()
    found.run(str(Path(sys.executable).with_name("create-dagster")), "project", ".", "--no-uv-sync")
    found.dg("scaffold", "defs", "dspex_pipelines.EvaluationComponent", "shortened")
    return found


def _pip(command: str, *arguments: str) -> None:
    pip: Sequence[str] = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        command,
        "--no-deps",
        "--no-index",
    ]
    done = subprocess.run([*pip, *arguments], capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_has_the_shipped_evaluation(installed: Installed) -> None:
    """Once as a value, which needs no Dagster, and once as definitions."""
    assert installed.python(SHIPPED).split() == ["stdlib_search", "False"]
    assert "'stdlib_search/leaderboard'" in installed.python(LOADED)
    assert str(installed.packages) in installed.python("import dspex_pipelines; print(dspex_pipelines.__file__)")


def test_dg_lists_the_component_of_the_wheel(installed: Installed) -> None:
    told = installed.dg("list", "components")
    assert "dspex_pipelines.EvaluationComponent" in told
    assert "A program evaluated on a data set" in told


def test_dg_check_yaml_says_file_line_and_what_would_be_accepted(installed: Installed) -> None:
    assert "validated successfully" in installed.dg("check", "yaml")
    installed.edit("type: boolean", "type: bool")
    told = installed.dg("check", "yaml", code=1)
    assert "defs/shortened/defs.yaml:18 - " in told
    assert "'bool' is not one of ['float', 'integer', 'boolean', 'choice', 'text', 'module']" in told
    installed.edit("type: bool", "type: boolean")


def test_dg_check_defs_says_file_line_and_what_would_be_accepted(installed: Installed) -> None:
    assert "loaded successfully" in installed.dg("check", "defs")
    installed.edit("program:same", "program:sane")
    told = installed.dg("check", "defs", code=1)
    assert "defs/shortened/defs.yaml:14 - attributes.metrics.0" in told
    assert "did you mean same?" in told
    installed.edit("program:sane", "program:same")


def test_dg_lists_what_the_component_gives(installed: Installed) -> None:
    told = installed.dg("list", "defs", "--json")
    for name in ("shortened/dataset", "shortened/evaluation", "shortened/leaderboard", "shortened_job"):
        assert f'"{name}"' in told


def test_dspex_takes_the_folder_and_says_file_and_line(installed: Installed) -> None:
    dspex = str(Path(sys.executable).with_name("dspex"))
    folder = "src/own_project/defs/shortened"
    told = installed.run(dspex, "evaluate", folder, "--samples", "2", "--limit", "3")
    assert "6/6" in told
    installed.edit("low: 1", "low: 6")
    for target in (folder, f"{folder}/defs.yaml"):
        told = installed.run(dspex, "leaderboard", target, code=2)
        assert "defs.yaml:17 - attributes.variables.words.low: words.low: 6 is not accepted" in told
        assert "Traceback" not in told
    installed.edit("low: 6", "low: 1")


def test_dspex_outside_of_a_project_says_so(installed: Installed, tmp_path: Path) -> None:
    dspex = str(Path(sys.executable).with_name("dspex"))
    (tmp_path / "defs.yaml").write_text("type: dspex_pipelines.EvaluationComponent\n")
    assert "Could not find config file" in installed.run(dspex, "evaluate", str(tmp_path), code=2)
    empty = installed.run(dspex, "evaluate", "src", code=2)
    assert "the folder of a defs.yaml" in empty
