"""`dspex replay` of a program that ends the process, on a terminal and off it."""

from __future__ import annotations

import os
import py_compile
import re
import subprocess
import sys
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT

import psutil
import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import asyncio, ctypes, os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
def nap():
    time.sleep(1)
class Slow:
    def __await__(self):
        yield from asyncio.sleep(1).__await__()
def run(text, flag):
    print("it runs", flush=True)
    {body}
    return text
def same(example, outputs):
    return True
"""
ASYNC = PROGRAM.replace("def run", "async def run")
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
    folder: Path, body: str, script: str, option: str, stdin: int, out: int, err: int, *, program: str = PROGRAM
) -> subprocess.Popen[bytes]:
    (folder / "ended.py").write_text(program.format(body=body))
    arguments = [sys.executable, "-c", script, "replay", "a", *filter(None, [option])]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(arguments, cwd=folder, env=environment, stdin=stdin, stdout=out, stderr=err)


@pytest.mark.parametrize(
    ("body", "option", "told"),
    [
        pytest.param("os._exit(7)", "", "the program's process ended with exit code 7", id="exit"),
        pytest.param("os._exit(0)", "--debug", "the program's process ended with exit code 0", id="exit-0"),
        pytest.param(
            "os.kill(os.getpid(), signal.SIGKILL)",
            "",
            "the program's process was killed by signal 9 (SIGKILL; out of memory?)",
            id="kill",
        ),
        pytest.param(
            "ctypes.string_at(0)",
            "",
            "the program's process was killed by signal 11 (SIGSEGV)",
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


@pytest.mark.parametrize(
    ("program", "body", "lines"),
    [
        pytest.param(PROGRAM, "time.sleep(1)", [("run", "time.sleep(1)")], id="thread"),
        pytest.param(ASYNC, "time.sleep(1)", [("run", "time.sleep(1)")], id="holds-the-loop"),
        pytest.param(
            ASYNC,
            "await Slow()",
            [("run", "await Slow()"), ("__await__", "yield from asyncio.sleep(1).__await__()")],
            id="task",
        ),
        pytest.param(
            PROGRAM,
            "with ThreadPoolExecutor() as pool: pool.submit(time.sleep, 1)",
            [("run", "with ThreadPoolExecutor() as pool: pool.submit(time.sleep, 1)")],
            id="waits-for-threads",
        ),
    ],
)
def test_a_program_that_takes_too_long_is_told_by_its_own_lines(
    tmp_path: Path, program: str, body: str, lines: list[tuple[str, str]]
) -> None:
    script = REPLAY.replace("metrics=", "timeout_s=0.3, metrics=")
    process = started(tmp_path, body, script, "", DEVNULL, PIPE, PIPE, program=program)
    out, err = (text.decode() for text in process.communicate(timeout=60))
    assert process.returncode == 1, out + err
    assert "scores " in out
    assert re.search(r"\nIt ran for 1\.\d+ s: in an evaluation this is timeout_run, after 0\.3 s", out), out
    first, *told = err.splitlines()
    assert first.startswith("It has run for 0.3 s, which is its timeout_s.")
    seen = re.findall(r", in (\w+)\n +(.*)", "\n".join(told))
    assert seen[: len(lines)] == lines, err
    # Nothing leads to it, and beside it is nobody else.
    assert not re.search("typer|click|dspex_pipelines|select|Timeout", "\n".join(told)), err


def test_threads_of_a_program_that_takes_too_long_are_told_after_its_own(tmp_path: Path) -> None:
    body = "pool = ThreadPoolExecutor(); pool.submit(nap); pool.shutdown()"
    script = REPLAY.replace("metrics=", "timeout_s=0.3, metrics=")
    process = started(tmp_path, body, script, "", DEVNULL, PIPE, PIPE)
    err = process.communicate(timeout=60)[1].decode()
    own, beside = err.split("  beside it:\n")
    assert body in own
    assert "in nap" in beside


@pytest.mark.parametrize("version", ["1", "2"])
def test_a_trial_keeps_the_id_that_was_asked_for_and_a_program_that_has_changed_since_is_told(
    tmp_path: Path, version: str
) -> None:
    # The version that the program has now is declared; the made-up trial is of version 1.
    script = REPLAY.replace("metrics=", f"version='{version}', metrics=") + "\n"
    script = script.replace('version="1"', "version=program_version('ended:run', {}, declared='1')")
    imports = "from dspex_pipelines.engine.program_versions import program_version\nimport sys\nsys.path.insert(0, '.')"
    script = imports + script
    script = script.replace("commands.main()", "print(spec.trial_id.hex(), flush=True); commands.main()")
    process = started(tmp_path, "pass", script, "", DEVNULL, PIPE, STDOUT)
    asked, first, second, *_ = process.communicate(timeout=60)[0].decode().splitlines()
    assert first == f"trial          {asked}"
    if version == "1":
        assert second.startswith("configuration ")
    else:
        assert re.fullmatch(
            r"The program \(.*\) has changed since that trial; as it is now, this is trial [0-9a-f]{32}\.", second
        )
        assert asked not in second
