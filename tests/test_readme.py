"""The README is followed to the letter, in an empty folder, by subprocesses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("own-program")


def dspex(home: Path, *arguments: str, code: int = 0) -> str:
    command = [str(Path(sys.executable).with_name("dspex")), *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "DAGSTER_HOME"}
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, env=environment, timeout=110, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_the_readme_names_only_targets_that_the_makefile_has() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"make ([a-z]+)", README):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_evaluate_your_own_program(home: Path) -> None:
    """The commands of the section, in order, exactly as they stand there."""
    section = README.partition("## Evaluate your own program")[2].partition("\n## ")[0]
    commands = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert commands
    told = [dspex(home, *line.split()[1:]) for line in commands[1].strip().splitlines()]
    assert "evaluation.py" in told[0]
    assert "words=3 ellipsis=True" in told[1]
    assert "best" in told[2]
    assert "No trial failed." in told[3]


def test_the_declaration_becomes_dagster_definitions(home: Path) -> None:
    """What `dagster dev -f definitions.py` loads, in the home that the README names."""
    snippet = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippet
    (home / "definitions.py").write_text(snippet[1])
    assert 'DAGSTER_HOME="$PWD/.dagster_home"' in README
    assert "dagster dev -f definitions.py" in README
    shown = "from definitions import defs; print(sorted(key.to_user_string() for key in defs.resolve_all_asset_keys()))"
    for command in (
        [sys.executable, "-c", shown],
        [str(Path(sys.executable).with_name("dagster")), "definitions", "validate", "-f", "definitions.py"],
    ):
        done = subprocess.run(
            command,
            cwd=home,
            capture_output=True,
            text=True,
            env={**os.environ, "DAGSTER_HOME": str(home / ".dagster_home")},
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        if command[1] == "-c":
            assert done.stdout.strip() == "['shorten/dataset', 'shorten/evaluation', 'shorten/leaderboard']"


def test_again_runs_nothing_and_an_edit_runs_all(home: Path) -> None:
    rows = json.loads(dspex(home, "trials", "--json", "--limit", "0"))
    again = dspex(home, "evaluate")
    assert json.loads(dspex(home, "trials", "--json", "--limit", "0")) == rows
    assert "best" in again
    program = home / "program.py"
    program.write_text(
        program.read_text().replace("found = text.split()", "found = text.split()\n    1 / len(found[1:])")
    )
    told = dspex(home, "evaluate")
    assert "best" in told
    failed = json.loads(dspex(home, "trials", "--failed", "--json", "--limit", "0"))
    assert len(failed) == 6
    assert {row["error_type"] for row in failed} == {"program_exception"}
    assert all("ZeroDivisionError" in row["error_traceback"] for row in failed)
    replayed = dspex(home, "replay", failed[0]["trial_id"][:16], code=1)
    assert "ZeroDivisionError" in replayed
    assert "program.py" in replayed
    good = next(row for row in json.loads(dspex(home, "trials", "--json", "--limit", "0")) if row["status"] == "ok")
    assert "scores" in dspex(home, "replay", good["trial_id"])


def test_a_bad_row_is_named_and_left_out(tmp_path: Path) -> None:
    dspex(tmp_path, "init")
    data = tmp_path / "data.csv"
    data.write_text(data.read_text() + "1,Short again,Short\n")
    told = dspex(tmp_path, "evaluate")
    assert (
        "1 row is left out, the first: data.csv row 6 (line 7), column 'id': '1' is not accepted; "
        "data.csv row 1 (line 2) has it already" in told
    )
    assert "30/30" in told


def test_a_file_that_can_be_no_partition_is_told_once_and_costs_no_other(tmp_path: Path) -> None:
    dspex(tmp_path, "init")
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("monday.csv", "tuesday.csv", "a...b.csv"):
        (folder / name).write_text((tmp_path / "data.csv").read_text())
    declaration = tmp_path / "evaluation.py"
    text = declaration.read_text()
    text = text.replace("import ", "import Dynamic, ", 1) if "from dspex_pipelines import " in text else text
    assert 'source="data.csv",' in text
    declaration.write_text(text.replace('source="data.csv",', 'source="data", partitions=Dynamic(),'))
    told = dspex(tmp_path, "evaluate")
    assert told.count("left out: 'a...b.csv': a partition names a folder") == 1
    assert told.count("30/30") == 2
    looked = dspex(tmp_path, "doctor")
    assert "a file is left out: 'a...b.csv'" in looked
    assert "tuesday: 5 examples" in looked


@pytest.mark.parametrize(
    ("change", "says"),
    [
        pytest.param(("program:shorten", "program:shortn"), "did you mean shorten", id="unknown-program"),
        pytest.param(("program:shorten", "nowhere:f"), "no module 'nowhere'", id="unknown-module"),
        pytest.param(("program:shorten", "program:<lambda>"), "top of a module", id="lambda"),
        pytest.param(("program:shorten", "__main__:shorten"), "into a module", id="notebook"),
        pytest.param(('name="words"', 'name="wrods"'), "wrods", id="unknown-variable"),
        pytest.param((' Boolean(name="ellipsis")', ""), "'ellipsis'", id="parameter-nobody-supplies"),
        pytest.param(("points=(2, 3, 4)", "points=(2, 9)"), "[1, 5]", id="out-of-bounds"),
        pytest.param(
            ('inputs=("text",)', 'inputs=("txt",)'), "the columns are id, text, expected", id="no-such-column"
        ),
        pytest.param(("data.csv", "absent.csv"), "no such file", id="no-such-file"),
    ],
)
def test_bad_input_is_named_with_its_fix(tmp_path: Path, change: tuple[str, str], says: str) -> None:
    dspex(tmp_path, "init")
    data = tmp_path / "data.csv"
    data.write_text(data.read_text() + "6,Short again,Short\n")
    declaration = tmp_path / "evaluation.py"
    assert change[0] in declaration.read_text()
    declaration.write_text(declaration.read_text().replace(*change))
    told = dspex(tmp_path, "evaluate", code=2)
    assert says in told
    assert "Traceback" not in told


def test_an_empty_input_and_an_unreachable_pool_are_named(tmp_path: Path) -> None:
    dspex(tmp_path, "init")
    assert "no worker pool answered" in dspex(
        tmp_path, "evaluate", "--pool-address", f"unix:{tmp_path}/none.sock", code=2
    )
    (tmp_path / "data.csv").write_text("id,text,expected\n1,,x\n")
    assert "column 'text'" in dspex(tmp_path, "evaluate", code=2)
    (tmp_path / "data.csv").write_text("id,text,expected\n")
    assert "no examples" in dspex(tmp_path, "evaluate", code=2)


def test_init_overwrites_nothing(tmp_path: Path) -> None:
    dspex(tmp_path, "init")
    (tmp_path / "program.py").write_text("mine")
    assert "exists already" in dspex(tmp_path, "init", code=2)
    assert (tmp_path / "program.py").read_text() == "mine"


@pytest.mark.parametrize(
    "command",
    [
        *("", "init", "evaluate", "leaderboard", "trials", "replay", "trace", "pool", "pool start", "pool status"),
        *("pool stop", "worker", "doctor", "journal", "journal size", "journal prune"),
    ],
)
def test_every_command_has_help(tmp_path: Path, command: str) -> None:
    assert "Usage" in dspex(tmp_path, *command.split(), "--help")
