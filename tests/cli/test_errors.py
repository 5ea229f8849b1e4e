"""Whatever goes wrong is one line that says what to do, and exit code 2."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from dspex_pipelines.bridge.local_pool import lease
from dspex_pipelines.cli import commands
from dspex_pipelines.cli.results import instance, is_used
from dspex_pipelines.cli.starter import DECLARATION, write_starter
from dspex_pipelines.cli.targets import find_evaluation
from dspex_pipelines.errors import DspexError, Interrupted, InvalidValue, PoolUnreachable
from dspex_pipelines.orchestration import resources
from dspex_pipelines.orchestration.component.scaffolding import EvaluationScaffolder
from dspex_pipelines.wire.import_path import python_path
from tests.cli.conftest import Run

MAIN = "from dspex_pipelines.cli.commands import main; main()"
OPENERS = """
import multiprocessing
from dspex_pipelines.cli.results import instance

def open_it() -> None:
    together.wait()
    with instance() as opened:
        assert opened.get_runs() == []

fork = multiprocessing.get_context("fork")
together = fork.Barrier(8)
openers = [fork.Process(target=open_it) for _ in range(8)]
for opener in openers:
    opener.start()
for opener in openers:
    opener.join()
assert [opener.exitcode for opener in openers] == [0] * 8
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "evaluation", raising=False)
    return tmp_path


def main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> object:
    monkeypatch.setattr(sys, "argv", ["dspex", *arguments])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    return ended.value.code


@pytest.mark.parametrize(
    ("source", "says"),
    [
        pytest.param("x = 1\n1 / 0\n", "evaluation.py:2: ZeroDivisionError: division by zero", id="raises"),
        pytest.param("\nx = = 1\n", "evaluation.py:2: SyntaxError: invalid syntax", id="syntax"),
        pytest.param("import nowhere_at_all\n", "evaluation.py:1: ModuleNotFoundError: No module named", id="import"),
        pytest.param("import sys\nsys.exit(0)\n", "evaluation.py:2: SystemExit: 0", id="exit"),
        pytest.param("raise KeyError('[/b]')\n", "evaluation.py:1: KeyError: '[/b]'", id="brackets"),
    ],
)
@pytest.mark.parametrize("target", ["", "evaluation:EVALUATION"])
def test_a_declaration_that_raises_is_named_with_its_line(
    folder: Path,
    source: str,
    says: str,
    target: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "evaluation.py").write_text(source)
    assert main(monkeypatch, "leaderboard", *filter(None, [target])) == 2
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1, told
    where, _, what = says.partition(": ")
    assert where in told or "no module 'nowhere_at_all'" in told
    assert what in told or "no module 'nowhere_at_all'" in told


def test_an_evaluation_with_two_names_counts_once(folder: Path) -> None:
    (folder / "evaluation.py").write_text(DECLARATION + "\nSAME = EVALUATION\n")
    assert find_evaluation("").name == "shorten"


PROJECT = '[tool.dg]\ndirectory_type = "project"\n[tool.dg.project]\nroot_module = "found_by_dg"\n'


@pytest.fixture
def declared(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a defs.yaml in a project of dg that nobody has installed."""
    monkeypatch.setenv("PYTHONPATH", "")
    (folder / "pyproject.toml").write_text(PROJECT)
    defs = folder / "src" / "found_by_dg" / "defs"
    (defs / "short").mkdir(parents=True)
    (defs.parent / "__init__.py").touch()
    (defs / "__init__.py").touch()
    request = dg.ScaffoldRequest(
        type_name="dspex_pipelines.EvaluationComponent",
        target_path=defs / "short",
        scaffold_format="yaml",
        project_root=folder,
        params=None,
    )
    EvaluationScaffolder().scaffold(request)
    yield defs / "short"
    for name in [name for name in sys.modules if name.split(".")[0] == "found_by_dg"]:
        del sys.modules[name]


def test_modules_of_a_dg_project_are_found_as_dg_finds_them(declared: Path, folder: Path) -> None:
    assert find_evaluation(str(declared.relative_to(folder)), check=True).name == "short"
    assert find_evaluation(str(declared)).program == "found_by_dg.defs.short.program:shorten"
    assert python_path(Path("/")).split(os.pathsep).count(str(folder / "src")) == 1, "for the workers, and once"


def test_a_dg_project_without_src_is_its_own_path(declared: Path, folder: Path) -> None:
    (folder / "src" / "found_by_dg").rename(folder / "found_by_dg")
    (folder / "src").rmdir()
    moved = folder / "found_by_dg" / "defs" / "short"
    assert find_evaluation(str(moved), check=True).name == "short"
    assert str(folder) in python_path(Path("/")).split(os.pathsep)


@pytest.mark.parametrize(
    ("change", "line", "says"),
    [
        pytest.param(("program:shorten", "program:shortn"), 12, "did you mean shorten", id="program"),
        pytest.param(("    ellipsis: {type: boolean}\n", ""), 12, "nobody supplies it", id="parameter"),
        pytest.param(("EvaluationComponent", "EvaluationComponen"), 1, "has no attribute", id="type"),
        pytest.param(("dspex_pipelines.Eval", "nowhere.Eval"), 1, "No module named 'nowhere'", id="module-of-type"),
    ],
)
def test_what_is_wrong_with_a_declaration_in_yaml_is_told_by_file_and_line(
    declared: Path, change: tuple[str, str], line: int, says: str
) -> None:
    file = declared / "defs.yaml"
    assert change[0] in file.read_text()
    file.write_text(file.read_text().replace(change[0], change[1], 1))
    with pytest.raises(DspexError) as caught:
        find_evaluation(str(declared), check=True)
    assert str(caught.value).startswith(f"{file}:{line} - ")
    assert says in str(caught.value)
    assert "DAGSTER_IS_DEFS_VALIDATION_CLI" not in os.environ


def test_evaluate_imports_what_a_declaration_names_and_what_only_lists_does_not(declared: Path, run: Run) -> None:
    (declared / "program.py").write_text("1 / 0\n")
    assert "defs.yaml:12 - " in str(run("evaluate", declared).exception)
    assert "has no results in" in str(run("leaderboard", declared).exception)


def test_an_interruption_while_the_pool_is_opened_is_one(
    declared: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(**_: object) -> None:
        raise dg.DagsterExecutionInterruptedError

    monkeypatch.setattr(resources, "lease", interrupted)
    assert isinstance(run("evaluate", declared).exception, Interrupted)


def test_where_nothing_is_declared_what_is_declared_below_is_named(declared: Path, folder: Path, run: Run) -> None:
    (folder / ".venv" / "hidden").mkdir(parents=True)
    (folder / ".venv" / "hidden" / "defs.yaml").touch()
    told = str(run("leaderboard").exception)
    assert told.startswith("no evaluation.py here; name one that is declared below: src/found_by_dg/defs/short, or")
    (declared / "defs.yaml").unlink()
    assert "no evaluation.py here; run `dspex init` to write one" in str(run("leaderboard").exception)


@pytest.mark.parametrize("command", ["evaluate", "trials", "leaderboard"])
def test_the_help_names_the_folder_of_a_declaration_in_yaml(run: Run, command: str) -> None:
    assert "the folder of a defs.yaml" in " ".join(run(command, "--help").output.split())


@pytest.mark.parametrize("text", ["[/b] closes nothing", "[bold]kept[/bold]", "[/]", ":smile: [link=x]"])
def test_the_text_of_an_error_is_printed_as_it_is(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise DspexError(text)

    monkeypatch.setattr(commands, "app", fails)
    assert main(monkeypatch) == 2
    assert capsys.readouterr().err == f"error: {text}\n"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("leaderboard", "shorten has no results in"),
        ("trials", "shorten has no results in"),
        ("trace ab", "shorten has no results in"),
        ("journal size", "nothing has been evaluated in"),
        ("journal prune --yes", "nothing has been evaluated in"),
    ],
)
@pytest.mark.parametrize("home", ["", "there", "nowhere"])
def test_what_only_reads_makes_nothing_and_says_what_to_run(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: str, says: str, home: str
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", home and str(folder / home))
    (folder / "there").mkdir()
    (folder / "there" / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    write_starter(folder)
    before = sorted(folder.rglob("*"))
    told = str(run(*command.split()).exception)
    assert f"{says} {folder / (home or '.dagster_home')}" in told
    assert "run `dspex evaluate`" in told
    assert [path for path in sorted(folder.rglob("*")) if path.name != "__pycache__"] == before


@pytest.mark.parametrize(
    "settings",
    ["storage:\n  sqlite:\n    base_dir: {}\n", "{{'storage': {{sqlite: {{base_dir: {}}}}}}}\n", ""],
    ids=["elsewhere", "in-one-line", "by-itself"],
)
def test_a_home_that_dagster_has_used_is_read(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, settings: str
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    (folder / "dagster.yaml").write_text(settings.format(folder / "elsewhere"))
    assert is_used(folder) == bool(settings)
    with instance():
        pass
    assert is_used(folder)
    assert "there is no journal at" in str(run("journal", "size").exception)


@pytest.mark.parametrize(
    ("command", "begins"),
    [("evaluate --partition nope", ""), ("journal size", "Journal "), ("journal prune", "Nothing to delete: ")],
)
def test_no_empty_line_stands_for_a_bar_that_nobody_sees(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch, command: str, begins: str
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "home"))
    monkeypatch.delenv("DSPEX_JOURNAL_URL", raising=False)
    write_starter(folder)
    with instance() as opened, resources.ResultStore().journal(opened):
        pass
    done = run(*command.split())
    assert done.output.startswith(begins)
    assert "" not in done.output.splitlines()
    assert ("partition: 'nope'" in str(done.exception)) == ("nope" in command)


def test_a_home_that_is_a_file_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "file"))
    with pytest.raises(InvalidValue, match="DAGSTER_HOME"), instance():
        pass


def test_a_home_that_cannot_be_written_to_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "dagster.yaml").write_text("")
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    # Whoever runs the tests may be allowed to write everywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(InvalidValue, match="not writable"), instance():
        pass


@pytest.mark.parametrize("name", ["h?1", "h%41"])
def test_a_home_that_dagster_would_not_find_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DAGSTER_HOME", str(folder / name))
    with pytest.raises(InvalidValue, match="Dagster would open another one"), instance():
        pass
    assert list(folder.iterdir()) == []


def test_a_process_that_opens_a_home_waits_for_the_one_that_does(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "DAGSTER_HOME": str(home)}
    command = [sys.executable, "-c", "from dspex_pipelines.cli.results import instance\nwith instance():\n    pass"]
    descriptor = os.open(home, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        opener = subprocess.Popen(command, env=environment)
        # The kernel lists who waits for a lock, with an arrow before it.
        while not re.search(rf"-> FLOCK .* {opener.pid} ", Path("/proc/locks").read_text()):
            assert opener.poll() is None, "it waits for nobody"
            time.sleep(0.01)
        assert list(home.iterdir()) == []
    finally:
        os.close(descriptor)
    assert opener.wait(60) == 0
    assert (home / "history").is_dir()


def test_processes_that_open_a_new_home_at_once_all_have_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OPENERS],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "DAGSTER_HOME": str(tmp_path / "home"),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("settings", "says"),
    [("nonsense: 1\n", "nonsense"), ("a: [b\n", "line 1, column 4"), ("- 1\n", "dictionary"), ("\udcff\n", "decode")],
    ids=["unknown", "no-yaml", "a-list", "no-utf-8"],
)
def test_settings_that_dagster_cannot_use_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: str, says: str
) -> None:
    (folder / "dagster.yaml").write_bytes(settings.encode(errors="surrogateescape"))
    monkeypatch.setenv("DAGSTER_HOME", str(folder))
    with pytest.raises(InvalidValue, match=r"dagster\.yaml' is not accepted; .* remove it") as caught, instance():
        pass
    assert says in str(caught.value)


def test_init_where_nothing_can_be_written_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(monkeypatch, "init", "/dev/null/below") == 2
    assert capsys.readouterr().err == "error: /dev/null/below: Not a directory\n"


@pytest.mark.parametrize("workers", [-1, 1_025])
def test_a_number_of_workers_that_cannot_be_is_refused(run: Run, folder: Path, workers: int) -> None:
    (folder / "evaluation.py").write_text(DECLARATION)
    done = run("evaluate", "--workers", workers)
    assert isinstance(done.exception, InvalidValue)
    assert (done.exception.field, done.exception.value) == ("workers", workers)


def test_an_address_without_a_port_is_refused_before_anything_is_evaluated(run: Run, folder: Path) -> None:
    run("init")
    done = run("evaluate", "--pool-address", "foo")
    assert isinstance(done.exception, InvalidValue)
    assert (done.exception.field, done.exception.value) == ("pool_address", "foo")
    assert "host:port" in done.exception.fix
    assert not (folder / ".dagster_home").exists()


@pytest.mark.parametrize("workers", [-1, 1_025])
def test_no_local_pool_of_so_many_workers_is_started(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InvalidValue, match="workers"), lease(workers=workers, runtime_root=tmp_path / "pools"):
        pass
    assert not (tmp_path / "pools").exists()


def test_a_pool_that_is_not_there_is_told_with_a_command_that_exists(run: Run) -> None:
    told = str(PoolUnreachable(address="unix:/x", waited_s=1))
    assert "`dspex pool start --address unix:/x`" in told
    assert "--address" in run("pool", "start", "--help").output


def test_a_resource_that_cannot_start_says_why_and_no_bar_looks_done(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("init")
    monkeypatch.setenv("DAGSTER_HOME", str(folder / "home"))
    deep = folder / ("x" * 90)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    done = run("evaluate")
    assert isinstance(done.exception, DspexError)
    assert str(done.exception).startswith("runtime folder: ")
    assert "set XDG_RUNTIME_DIR to a shorter folder" in str(done.exception)
    assert "Traceback" not in str(done.exception)
    assert "━" not in done.output


def test_the_version_is_told(run: Run) -> None:
    assert run("--version").output.startswith("dspex-pipelines 0.")


def test_output_that_is_ascii_or_closed_raises_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", MAIN, "init"]
    (tmp_path / "é").mkdir()
    usual = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ascii_only = {**usual, "PYTHONIOENCODING": "ascii"}
    plain = subprocess.run([*command, "é"], cwd=tmp_path, env=ascii_only, capture_output=True, timeout=60, check=False)
    assert (plain.returncode, plain.stderr) == (0, b"")
    assert b"wrote ?/program.py" in plain.stdout
    shell = ["sh", "-c", '"$@" >&-', "sh", *command, "closed"]
    closed = subprocess.run(shell, cwd=tmp_path, env=usual, capture_output=True, timeout=60, check=False)
    assert (closed.returncode, closed.stderr) == (0, b"")


@pytest.mark.parametrize("name", ["runs.db", "runs/index.db"])
def test_what_dagster_cannot_read_or_write_is_told_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    home = folder / "home"
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    write_starter(folder)
    with instance() as opened:
        opened.get_runs()
    (home / "history" / name).write_bytes(b"no database" * 1_000)
    capsys.readouterr()
    assert main(monkeypatch, "evaluate", "evaluation:EVALUATION") == 2
    told = capsys.readouterr().err
    assert f"error: Dagster could not read or write its instance in {home} (file is not a database);" in told
    assert "Traceback" not in told
