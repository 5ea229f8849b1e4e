"""`dspex replay` of a program that ends the process, on a terminal and off it."""

from __future__ import annotations

import os
import py_compile
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

import psutil
import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import ctypes, os, signal, sys, time
def run(text, flag):
    print("it runs", flush=True)
    {body}
    return text
def same(example, outputs):
    return True
"""
# Its evaluation is made up, and has not been run.
REPLAY = """
import sys
from dspex_pipelines import Boolean, Configuration, ConfigurationSpace, Dataset, Evaluation, Example
from dspex_pipelines.cli import commands, finding, targets
from dspex_pipelines.model.trial import ProgramSpec, TrialSpec

evaluation = Evaluation(
    name="made_up",
    dataset=Dataset(source="data.csv", example_id="id", inputs=("text",)),
    program="ended:run",
    metrics=("ended:same",),
    space=ConfigurationSpace(variables=(Boolean(name="flag"),)),
)
spec = TrialSpec(
    program=ProgramSpec(entry_point="ended:run", version="1"),
    example=Example(example_id="a", inputs={"text": "x"}),
    configuration=Configuration({"flag": True}),
)
sys.path.insert(0, ".")
targets.find_evaluation = lambda *_: evaluation
finding.find_trial = lambda *_: finding.FoundTrial(spec=spec, plan=None)
commands.main()
"""
# Its standard input becomes the terminal that it is controlled from.
ON_A_TERMINAL = "import os; os.login_tty(0)\n"


def started(
    folder: Path, body: str, script: str, option: str, stdin: int, out: int, err: int
) -> subprocess.Popen[bytes]:
    (folder / "ended.py").write_text(PROGRAM.format(body=body))
    arguments = [sys.executable, "-c", script, "replay", "a", *filter(None, [option])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(arguments, cwd=folder, env=environment, stdin=stdin, stdout=out, stderr=err)


@pytest.mark.parametrize(
    ("body", "option", "told"),
    [
        pytest.param("os._exit(7)", "", "the program ended its process with exit code 7", id="exit"),
        pytest.param("os._exit(0)", "--debug", "the program ended its process with exit code 0", id="exit-0"),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)",
            "",
            "the program's process was killed by signal 9 (Killed)",
            id="kill",
        ),
        pytest.param(
            "ctypes.string_at(0)",
            "",
            "the program's process was killed by signal 11 (Segmentation fault)",
            id="crash",
        ),
    ],
)
def test_a_program_that_ends_the_process_is_told(tmp_path: Path, body: str, option: str, told: str) -> None:
    process = started(tmp_path, body, REPLAY, option, DEVNULL, PIPE, PIPE)
    out, err = (text.decode() for text in process.communicate(timeout=60))
    assert process.returncode == 1
    # The program's own words come first, whoever writes them.
    assert out.endswith(f"it runs\nworker_lost: {told}\n"), out + err
    assert ("ended.py" in err and "in run" in err) == ("string_at" in body), err


@pytest.mark.parametrize(
    ("body", "option", "code", "told"),
    [
        pytest.param("pass", "", 0, "scores ", id="returns"),
        pytest.param("raise KeyError(text)", "", 1, "KeyError: 'x'", id="raises"),
        pytest.param("sys.exit(3)", "--debug", 1, "SystemExit: 3", id="exits"),
    ],
)
def test_a_program_that_does_not_is_told_as_it_went(
    tmp_path: Path, body: str, option: str, code: int, told: str
) -> None:
    process = started(tmp_path, body, REPLAY, option, DEVNULL, PIPE, STDOUT)
    out = process.communicate(timeout=60)[0].decode()
    assert process.returncode == code, out
    assert told in out
    assert "" not in out.splitlines()
    assert "worker_lost" not in out


@pytest.mark.parametrize("option", ["", "--debug"])
def test_it_is_the_program_as_it_is_written_now(tmp_path: Path, option: str) -> None:
    """Though who declared the evaluation has imported what was compiled of it as it was, which Python takes for it."""
    source = tmp_path / "ended.py"
    source.write_text(PROGRAM.format(body="print('as it was')"))
    os.utime(source, (1_700_000_000, 1_700_000_000))
    py_compile.compile(str(source), doraise=True, invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    declared = "import os, sys; sys.path.insert(0, '.'); os.utime('ended.py', (1_700_000_000, 1_700_000_000))\n"
    process = started(
        tmp_path, "print('as it is!')", f"{declared}import ended\n{REPLAY}", option, DEVNULL, PIPE, STDOUT
    )
    out = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, out
    assert "as it is!\n" in out
    assert "as it was" not in out


@pytest.mark.parametrize("option", ["", "--debug"])
@pytest.mark.parametrize("then", ["signal.pause()", "return text", "raise KeyError(text)"])
def test_what_the_program_forks_ends_with_it_and_is_no_second_replay(tmp_path: Path, option: str, then: str) -> None:
    body = f"child = os.fork()\n    if not child:\n        {then}\n    open('forked', 'w').write(str(child))"
    process = started(tmp_path, body, REPLAY, option, DEVNULL, PIPE, STDOUT)
    out = process.communicate(timeout=60)[0].decode()
    assert process.returncode == 0, out
    assert out.count("scores ") == 1
    # What still had standard output has ended by now, or there would be no end of it; this is for what had not.
    assert not psutil.wait_procs(forked(tmp_path), timeout=20)[1]


def forked(folder: Path) -> list[psutil.Process]:
    number = int((folder / "forked").read_text())
    return [one for one in psutil.process_iter() if one.pid == number and one.status() != psutil.STATUS_ZOMBIE]


def typed(folder: Path, body: str, at: str, keys: bytes, option: str = "") -> tuple[str, int]:
    """Return what a terminal shows of a replay, on which *keys* are typed once it shows *at*; and the exit code."""
    ours, theirs = os.openpty()
    process = started(folder, body, ON_A_TERMINAL + REPLAY, option, theirs, theirs, theirs)
    os.close(theirs)
    shown, waiting = b"", True
    try:
        while said := os.read(ours, 4_096):
            shown += said
            if waiting and at.encode() in shown:
                waiting = False
                os.write(ours, keys)
    except OSError:
        pass  # how Linux says that nobody has the terminal any more
    finally:
        os.close(ours)
    return shown.decode(), process.wait(60)


def test_a_breakpoint_has_the_terminal(tmp_path: Path) -> None:
    shown, code = typed(tmp_path, "breakpoint()", "(Pdb) ", b"p text * 3\nc\n", "--debug")
    assert "'xxx'" in shown
    assert "scores " in shown
    assert code == 0


def test_ctrl_c_ends_the_program_and_is_no_end_of_its_own(tmp_path: Path) -> None:
    shown, code = typed(tmp_path, "time.sleep(3600)", "it runs", b"\x03")
    assert code == 130
    assert "worker_lost" not in shown
