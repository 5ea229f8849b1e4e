"""`dspex doctor`: each thing that can be wrong is found with what to do, and nothing is changed by looking."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.cli.doctor import environment
from dspex_pipelines.cli.doctor.findings import Check, Level, examined, ok
from dspex_pipelines.cli.starter import write_starter
from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.wire.processes import started_at
from tests.cli.conftest import Run

ROOT = Path(__file__).parents[2]
Look = Callable[..., dict[str, list[dict[str, str]]]]


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to evaluate in, with a runtime folder of its own; a short one."""
    made = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    monkeypatch.chdir(made)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("evaluation", "program"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name in ("DAGSTER_HOME", "DSPEX_JOURNAL_URL", "DSPEX_OTEL", "DSPEX_SECRETS"):
        monkeypatch.delenv(name, raising=False)
    (made / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(made / "run"))
    yield made
    for name in ("evaluation", "program"):
        sys.modules.pop(name, None)
    shutil.rmtree(made)


@pytest.fixture
def look(run: Run, folder: Path) -> Look:
    """What the command finds, by check; the exit code is that of the findings."""

    def found(*arguments: str) -> dict[str, list[dict[str, str]]]:
        done = run("doctor", "--json", *arguments)
        documents: list[dict[str, str]] = json.loads(done.output)
        assert done.exit_code == any(one["level"] == "problem" for one in documents), documents
        assert all(one["fix"] for one in documents if one["level"] != "ok"), documents
        by_check: dict[str, list[dict[str, str]]] = {}
        for one in documents:
            by_check.setdefault(one["check"], []).append(one)
        return by_check

    return found


def one(found: list[dict[str, str]], level: Level) -> dict[str, str]:
    """The finding of that level, which is the only one of it."""
    (only,) = [each for each in found if each["level"] == level]
    return only


def files(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_a_fresh_folder_is_well_and_stays_as_it_is(look: Look, folder: Path) -> None:
    before = files(folder)
    found = look()
    assert {each["level"] for documents in found.values() for each in documents} == {"ok"}
    assert "is not there yet" in found["dagster home"][0]["found"]
    assert "no evaluation.py" in found["evaluation"][0]["found"]
    assert files(folder) == before


@pytest.mark.timeout(300)
def test_what_was_evaluated_is_looked_at_and_stays_as_it_is(look: Look, folder: Path) -> None:
    write_starter(folder)
    dspex = [sys.executable, "-c", "from dspex_pipelines.cli.commands import main; main()"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([*dspex, "evaluate", "--workers", "1"], cwd=folder, env=environment, timeout=200, check=True)
    try:
        before = {path: at for path, at in files(folder).items() if not path.endswith(("-wal", "-shm"))}
        found = look()
        (pool,) = found["pools"]
        assert "answers: 1 workers, 0 trials in flight" in pool["found"]
        assert found["instance"][0]["found"].startswith("opens, with ")
        assert ", layout 0" in found["journal"][0]["found"]
        assert found["data set"][0]["found"] == "all: 5 examples"
        after = {path: at for path, at in files(folder).items() if not path.endswith(("-wal", "-shm"))}
        assert {path for path in before if "runs" not in path} == {path for path in after if "runs" not in path}
        assert (
            after[str(folder / ".dagster_home/storage/dspex/journal.sqlite")]
            == before[str(folder / ".dagster_home/storage/dspex/journal.sqlite")]
        )
    finally:
        local_pool.stop()


def test_it_is_told_to_people_as_well(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("doctor").output.splitlines()[-1] == "All is well."
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "file"))
    (folder / "file").touch()
    done = run("doctor")
    assert done.exit_code == 1
    assert "→ set DAGSTER_HOME to one" in done.output
    assert done.output.splitlines()[-1] == "1 problem, 2 warnings"


def test_a_check_that_raises_is_a_finding() -> None:
    def raises() -> Any:
        raise KeyError("[/b]\nsecond line")

    def leaves() -> Any:
        yield ok("fine so far")
        sys.exit("gone")

    first, second = examined([Check("one", raises), Check("two", leaves)])
    assert first["level"] == second["level"] == "problem"
    assert "KeyError" in first["found"]
    assert "\n" not in first["found"]
    assert "SystemExit: gone" in second["found"]


def test_a_package_that_is_missing_or_too_old_is_named_with_who_needs_it(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = metadata.version
    needed = {"dspex-pipelines": ["absent-one>=1", "rich>=999", "dspy; extra == 'dspy'"], "rich": []}
    monkeypatch.setattr(environment.metadata, "requires", lambda name: needed.get(name, []))

    def found(name: str) -> str:
        if name == "absent-one":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(environment.metadata, "version", found)
    told = one(look()["packages"], Level.PROBLEM)["found"]
    assert "absent-one is missing, which dspex-pipelines requires" in told
    assert f"dspex-pipelines requires rich >=999, {version('rich')} is installed" in told


def test_an_extra_that_is_not_installed_says_what_it_is_for(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_EXTRAS", {"dspy": ("absent-one", "programs that are DSPy modules")})
    (extra,) = look()["extras"]
    assert (extra["level"], "pip install 'dspex-pipelines[dspy]'" in extra["found"]) == ("ok", True)


def test_spans_that_are_asked_for_in_no_words_are_a_problem(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSPEX_OTEL", "perhaps")
    assert one(look()["spans"], Level.PROBLEM)["fix"] == "give 1 for on, or 0 for off"


def test_few_files_are_a_warning(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4_096))
    assert one(look()["open files"], Level.WARNING)["fix"].startswith("ulimit -n 1024 (at most 4096 here)")


@pytest.mark.parametrize(
    ("spoil", "fix"),
    [
        (lambda root: root.mkdir(mode=0o755), "a folder of your own with mode 700"),
        (lambda root: root.touch(), "a folder of your own with mode 700"),
    ],
    ids=["open", "file"],
)
def test_a_runtime_folder_that_cannot_be_used(
    look: Look, folder: Path, spoil: Callable[[Path], object], fix: str
) -> None:
    spoil(folder / "run" / "dspex")
    assert fix in one(look()["runtime folder"], Level.PROBLEM)["fix"]


def test_a_runtime_folder_with_a_path_too_long(look: Look, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = folder / ("x" * 90)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    assert "107 bytes" in one(look()["runtime folder"], Level.PROBLEM)["fix"]


def test_a_full_disk_is_a_warning(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    assert "1.0 MB are free" in one(look()["runtime folder"], Level.WARNING)["found"]


def announced(folder: Path, name: str, pid: int, started: str, address: str) -> Path:
    pool = folder / "run" / "dspex" / name
    pool.parent.mkdir(mode=0o700, exist_ok=True)
    pool.mkdir(mode=0o700)
    (pool / "pool.json").write_text(json.dumps({"pid": pid, "started": started, "address": address}))
    return pool


def test_a_pool_that_was_killed_is_told_and_one_that_is_silent_is_a_problem(look: Look, folder: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        left = announced(folder, "left", process.pid, started_at(process.pid), "unix:/nowhere")
        process.send_signal(signal.SIGKILL)
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{folder}/s")
        silent.listen()
        announced(folder, "silent", os.getpid(), started_at(os.getpid()), f"unix:{folder}/s")
        found = look()["pools"]
    problem = one(found, Level.PROBLEM)
    assert "it does not answer within 2 s" in problem["found"]
    assert "dspex pool stop" in problem["fix"]
    assert f"{left} was left by a pool that was killed" in one(found, Level.OK)["found"]


def home(folder: Path, monkeypatch: pytest.MonkeyPatch, settings: str) -> Path:
    made = folder / "home"
    made.mkdir()
    (made / "dagster.yaml").write_text(settings)
    monkeypatch.setenv("DAGSTER_HOME", str(made))
    return made


def test_the_shipped_settings_are_well(look: Look, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = home(folder, monkeypatch, (ROOT / "dagster.yaml").read_text())
    assert look()["run limits"][0]["level"] == "ok"
    assert [path.name for path in made.iterdir()] == ["dagster.yaml"]
    (made / "history").mkdir()
    assert look()["instance"][1]["found"] == "at most 2 dspex_run_trials steps at once"


def test_settings_without_our_coordinator_and_limits_are_told(
    look: Look, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home(folder, monkeypatch, "concurrency: {runs: {tag_concurrency_limits: [{key: dspex/kind, limit: 1}]}}\n")
    coordinator, limits = look()["run limits"]
    assert (coordinator["level"], limits["level"]) == ("warning", "warning")
    assert "EvaluationRunCoordinator" in coordinator["fix"]
    assert "no run-tag limit for dspex/target:" in limits["found"]


def test_a_pool_without_slots_is_a_problem(look: Look, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = home(folder, monkeypatch, "concurrency: {pools: {default_limit: 0}}\n")
    (made / "history").mkdir()
    assert "no evaluation ever runs" in one(look()["instance"], Level.PROBLEM)["found"]


@pytest.mark.parametrize("settings", ["a: [b\n", "nonsense: 1\n", "- 1\n"], ids=["no-yaml", "unknown", "a-list"])
def test_settings_that_cannot_be_read_are_a_problem_and_no_traceback(
    look: Look, folder: Path, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    made = home(folder, monkeypatch, settings)
    (made / "history").mkdir()
    assert one(look()["instance"], Level.PROBLEM)


def journal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = folder / "journal.sqlite"
    with Journal(f"sqlite:///{file}"):
        pass
    monkeypatch.setenv("DSPEX_JOURNAL_URL", f"sqlite:///{file}")
    return file


@pytest.mark.parametrize(("layout", "level"), [("0001", "ok"), ("9999", "problem")])
def test_a_journal_of_another_release(
    look: Look, folder: Path, monkeypatch: pytest.MonkeyPatch, layout: str, level: str
) -> None:
    file = journal(folder, monkeypatch)
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", [layout])
    connection.close()
    (found,) = look()["journal"]
    assert (found["level"], f"layout {layout}" in found["found"]) == (level, True)
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchone() == (layout,)
    connection.close()


def test_a_journal_that_is_none_is_a_problem(look: Look, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal(folder, monkeypatch).write_bytes(b"no database" * 1_000)
    assert "is not an SQLite database" in one(look()["journal"], Level.PROBLEM)["found"]


def test_a_server_that_is_not_there_is_a_problem_without_its_password(
    look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg")
    monkeypatch.setenv("DSPEX_JOURNAL_URL", "postgresql+psycopg://me:hunter2hunter2@127.0.0.1:1/x")
    told = str(one(look()["journal"], Level.PROBLEM))
    assert "127.0.0.1:1" in told
    assert "hunter2" not in told
    assert "PGCONNECT_TIMEOUT" not in os.environ


@pytest.mark.parametrize(
    ("check", "change", "says"),
    [
        ("program", ("program:shorten", "program:shortn"), "did you mean shorten"),
        ("program", ('name="words"', 'name="wrods"'), "wrods"),
        ("metrics", ("program:same", "nowhere:same"), "no module 'nowhere'"),
        ("data set", ("data.csv", "absent.csv"), "no such file"),
        ("data set", ('inputs=("text",)', 'inputs=("txt",)'), "the columns are id, text, expected"),
        ("files", ('name="shorten",', 'name="shorten", files=("absent.txt",),'), "absent.txt"),
        ("evaluation", ("EVALUATION = ", "1 / 0\nEVALUATION = "), "ZeroDivisionError"),
        ("evaluation", ('name="shorten"', 'name="no name"'), "letters, digits and underscores"),
    ],
)
def test_what_is_wrong_with_the_evaluation_of_this_folder(
    look: Look, folder: Path, check: str, change: tuple[str, str], says: str
) -> None:
    write_starter(folder)
    declaration = folder / "evaluation.py"
    assert change[0] in declaration.read_text()
    declaration.write_text(declaration.read_text().replace(*change))
    found = one(look()[check], Level.PROBLEM)
    assert says in found["found"] + found["fix"]


def test_variables_are_looked_for_by_name_and_no_value_is_told(
    look: Look, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_starter(folder)
    declaration = folder / "evaluation.py"
    given = 'name="shorten", environment=("OUR_MODEL", "OUR_BASE"),'
    declaration.write_text(declaration.read_text().replace('name="shorten",', given))
    monkeypatch.setenv("OUR_MODEL", "a-value-of-a-model")
    monkeypatch.setenv("DSPEX_SECRETS", "OUR_LOGIN")
    found = look()["variables"]
    assert [(one["level"], one["found"]) for one in found] == [
        ("warning", "OUR_BASE is not set"),
        ("warning", "OUR_LOGIN is not set"),
        ("ok", "OUR_MODEL is set"),
    ]
    assert "a-value-of-a-model" not in str(found)


def test_an_evaluation_that_is_not_there_is_told_with_those_that_are(look: Look) -> None:
    assert "stdlib_search" in one(look("nothing_of_the_kind")["evaluation"], Level.PROBLEM)["fix"]


def test_the_key_of_qa_rag_is_looked_for_where_it_is_asked_about(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("DSPEX_QA_API_BASE", "DSPEX_QA_API_KEY")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    found = look("qa_rag")["variables"]
    for name in names:
        assert ("warning", f"{name} is not set") in [(one["level"], one["found"]) for one in found]
    assert "DSPEX_QA" not in str(look())
    monkeypatch.setenv("DSPEX_QA_API_KEY", "no-real-key-4711")
    found = look("qa_rag")["variables"]
    assert ("ok", "DSPEX_QA_API_KEY is set") in [(one["level"], one["found"]) for one in found]
    assert "4711" not in str(found)
