"""Whatever goes wrong is one line that says what to do, and exit code 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dspex_pipelines.bridge.local_pool import lease
from dspex_pipelines.cli import commands
from dspex_pipelines.cli.results import instance
from dspex_pipelines.cli.starter import DECLARATION
from dspex_pipelines.cli.targets import find_evaluation
from dspex_pipelines.errors import DspexError, InvalidValue, PoolUnreachable
from tests.cli.conftest import Run

MAIN = "from dspex_pipelines.cli.commands import main; main()"


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


@pytest.mark.parametrize("text", ["[/b] closes nothing", "[bold]kept[/bold]", "[/]", ":smile: [link=x]"])
def test_the_text_of_an_error_is_printed_as_it_is(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails() -> None:
        raise DspexError(text)

    monkeypatch.setattr(commands, "app", fails)
    assert main(monkeypatch) == 2
    assert capsys.readouterr().err == f"error: {text}\n"


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


@pytest.mark.parametrize("workers", [-1, 1_025])
def test_no_local_pool_of_so_many_workers_is_started(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InvalidValue, match="workers"), lease(workers=workers, runtime_root=tmp_path / "pools"):
        pass
    assert not (tmp_path / "pools").exists()


def test_a_pool_that_is_not_there_is_told_with_a_command_that_exists(run: Run) -> None:
    told = str(PoolUnreachable(address="unix:/x", waited_s=1))
    assert "`dspex pool start --address …`" in told
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
