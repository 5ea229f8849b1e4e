"""docs/journal.md is followed to the letter, in a folder with an evaluated program, by subprocesses."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from typer.testing import CliRunner

from dspex_pipelines.cli import app
from dspex_pipelines.engine.journal.rows import OK, STATUS
from dspex_pipelines.engine.journal.schema import executions, metadata
from dspex_pipelines.errors import DspexError
from tests.engine.conftest import postgresql_server as postgresql_server  # noqa: PLC0414 - a fixture
from tests.engine.conftest import postgresql_url as postgresql_url  # noqa: PLC0414 - a fixture
from tests.test_readme import ROOT

PAGE = (ROOT / "docs" / "journal.md").read_text()
JOURNAL = Path(".dagster_home") / "storage" / "dspex" / "journal.sqlite"


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def blocks(title: str, language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", section(title), re.DOTALL)
    assert found
    return found


def run(home: Path, *command: str, code: int = 0, **environment: str) -> str:
    given = {key: value for key, value in os.environ.items() if key not in ("DAGSTER_HOME", "DSPEX_JOURNAL_URL")}
    given = {**given, "PATH": f"{Path(sys.executable).parent}:{given['PATH']}", **environment}
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, env=given, timeout=110, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def told(home: Path, *command: str, answer: str = "", **environment: str) -> str:
    """The same for `dspex journal`, in this process: starting one takes longer than what it does."""
    assert command[:2] == ("dspex", "journal")
    with patch.dict(os.environ, environment), contextlib.chdir(home):
        os.environ.pop("DAGSTER_HOME", None)
        result = CliRunner().invoke(app, command[1:], input=answer)
    if isinstance(result.exception, DspexError):
        return f"error: {result.exception}"
    assert result.exit_code == 0, result.output
    return result.output


def commands(title: str, index: int = 0) -> list[list[str]]:
    return [shlex.split(line) for line in blocks(title, "sh")[index].strip().splitlines()]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose journal holds the outcomes of two versions of a program, a failed trial among them."""
    folder = tmp_path_factory.mktemp("journal")
    run(folder, "dspex", "init")
    program = folder / "program.py"
    text = program.read_text()
    for edit in ("found = text.split(); 1 / len(found[1:])", "found = text.split()"):
        program.write_text(text.replace("found = text.split()", edit))
        run(folder, "dspex", "evaluate")
    return folder


def size(home: Path, **environment: str) -> dict[str, Any]:
    return json.loads(told(home, "dspex", "journal", "size", "--json", **environment))


def test_the_page_names_every_table_column_and_status() -> None:
    for table in metadata.tables:
        assert f"| `{table}` |" in section("What is in it")
    described = re.findall(
        r"^\| (`[^|]*`) \|", section("What is in it").partition("column of `executions`")[2], re.MULTILINE
    )
    named = [name for cell in described for name in re.findall(r"`(\w+)`", cell)]
    assert named[: len(executions.columns)] == [column.name for column in executions.columns]
    pairs = dict(re.findall(r"\| (\d+) \| (\w+)(?= \|)", section("What is in it")))
    assert pairs == {str(OK): "ok", **{str(number): kind.value for kind, number in STATUS.items()}}


def test_it_is_where_the_page_says(home: Path) -> None:
    assert "`storage/dspex/journal.sqlite` in `DAGSTER_HOME` (`.dagster_home`" in PAGE
    assert (home / JOURNAL).exists()


def test_its_size_is_told_to_people_and_programs(home: Path) -> None:
    shown, document = (told(home, *command) for command in commands("How large it gets"))
    assert "60 executions" in shown
    assert "program_exception" in shown
    assert "Prunable  30 executions" in shown
    found = json.loads(document)
    assert (found["executions"], found["live_results"], found["prunable"]["executions"]) == (60, 1, 30)
    assert sum(group["executions"] for group in found["groups"]) == 60
    assert found["bytes"]["data"] == (home / JOURNAL).stat().st_size


def test_it_is_read_with_sql(home: Path) -> None:
    with sqlite3.connect(home / JOURNAL) as journal:
        failed, slowest, by_hour = (journal.execute(sql).fetchall() for sql in blocks("Reading it with SQL", "sql"))
    # Whichever workers they ran on.
    assert ({status for _, status, _, _ in failed}, sum(trials for _, _, trials, _ in failed)) == ({1}, 6)
    assert len(slowest) == 10
    assert all(re.fullmatch(r"[0-9a-f]{32}", row[0]) for row in slowest)
    assert sum(row[1] for row in by_hour) == 60
    said = run(home, sys.executable, "-c", blocks("Reading it with SQL", "python")[0])
    assert len(said.splitlines()) == 54
    assert "{'same': True}" in said


def test_it_is_backed_up_and_put_back(home: Path) -> None:
    (command,) = commands("Back-up")
    run(home, *command)
    with sqlite3.connect(home / "backup.sqlite") as copy:
        assert copy.execute("SELECT count(*) FROM executions").fetchone() == (60,)
    before = (home / JOURNAL).read_bytes()
    (home / JOURNAL).write_text("damaged " * 1_000)
    said = run(home, "dspex", "journal", "size", code=2)
    assert "is not an SQLite database, or is damaged" in said
    assert "restore it from a back-up" in said
    assert "Traceback" not in said
    (home / JOURNAL).write_bytes((home / "backup.sqlite").read_bytes())
    assert size(home)["executions"] == 60
    (home / JOURNAL).write_bytes(before)


def test_it_is_pruned(home: Path) -> None:
    """The commands in order; only the last one has something to delete that is old enough."""
    dry, older, kept, rest = commands("Pruning")
    said = told(home, *dry)
    assert "30 executions and 0 scores in" in said
    assert "--older-than 1 keeps them" in said
    assert "Nothing to delete" in told(home, *older)
    assert "Nothing to delete" in told(home, *kept)
    assert "Nothing was deleted" in told(home, "dspex", "journal", "prune", answer="n\n")
    assert size(home)["executions"] == 60
    assert "Deleted 30 executions and 0 scores" in told(home, *rest)
    assert size(home)["executions"] == 30
    assert "Nothing to delete" in told(home, *rest)


def test_it_may_be_in_postgresql(home: Path, postgresql_url: str) -> None:
    named, evaluate = commands("Where it is")
    assert named[1].startswith("DSPEX_JOURNAL_URL=postgresql+psycopg://")
    run(home, *evaluate, DSPEX_JOURNAL_URL=postgresql_url)
    found = size(home, DSPEX_JOURNAL_URL=postgresql_url)
    assert (found["executions"], found["prunable"]["executions"]) == (30, 0)
    assert found["journal"].startswith("postgresql+psycopg://")
    source = blocks("Where it is", "python")[0]
    run(home, sys.executable, "-c", f"{source}\nassert defs.resolve_all_asset_keys()")


@pytest.mark.parametrize("command", ["size", "prune"])
def test_where_there_is_none_it_says_so(tmp_path: Path, command: str) -> None:
    assert f"error: nothing has been evaluated in {tmp_path}" in told(tmp_path, "dspex", "journal", command)


@pytest.mark.parametrize("option", [("--keep", "0"), ("--older-than", "-1")])
def test_bounds_are_named(home: Path, option: tuple[str, str]) -> None:
    assert f"error: {option[0].strip('-')}: " in told(home, "dspex", "journal", "prune", *option)
