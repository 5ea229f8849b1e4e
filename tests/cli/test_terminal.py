"""What somebody sees who evaluates in a terminal: a real one, with a process of its own on it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from pathlib import Path

import pytest

from tests.cli.conftest import DSPEX, Shell

PATIENCE_S = 60.0
EVALUATION = """
import fcntl

from dspex_pipelines import Boolean, ConfigurationSpace, Dataset, Evaluation


def waits(gate, flag):
    with open(gate) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
    return "done"


def one(example, outputs):
    return 1.0


EVALUATION = Evaluation(
    name="seen",
    dataset=Dataset(source="data.csv", example_id="id", inputs=("gate",), labels=()),
    program="seen:waits",
    metrics=("seen:one",),
    space=ConfigurationSpace(variables=(Boolean(name="flag"),)),
)
"""


class Terminal:
    """A terminal with the command in its foreground."""

    def __init__(self, shell: Shell, *arguments: str) -> None:
        self._end, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
        self.process = subprocess.Popen(
            [*DSPEX, *arguments],
            cwd=shell.folder,
            env={**shell.environment, "TERM": "xterm-256color"},
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            # The terminal is the session's own, so that what is typed reaches it.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - between fork and exec, no more
        )
        shell.started.append(self.process)
        os.close(other)
        self.shown = ""

    def see(self, text: str) -> None:
        """Wait until *text* is shown."""
        until = time.monotonic() + PATIENCE_S
        while text not in self.shown:
            assert time.monotonic() < until, self.shown[-500:]
            assert self._read(), self.shown[-500:]

    def type(self, keys: bytes) -> None:
        os.write(self._end, keys)

    def ended(self) -> int:
        """Wait for the command to end; return its exit code."""
        while self._read():
            pass
        os.close(self._end)
        return self.process.wait(PATIENCE_S)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._end], [], [], PATIENCE_S)
        assert ready, self.shown[-500:]
        try:
            read = os.read(self._end, 65_536)
        except OSError:  # nobody has it open any more
            return False
        self.shown += read.decode()
        return bool(read)


@pytest.fixture
def gate(shell: Shell) -> Path:
    """What the third example waits for."""
    (shell.folder / "seen.py").write_text(EVALUATION)
    (shell.folder / "open").touch()
    gate = shell.folder / "gate"
    gate.touch()
    (shell.folder / "data.csv").write_text(f"id,gate\n1,open\n2,open\n3,{gate}\n")
    return gate


def test_the_bar_moves_while_trials_run_and_an_interruption_is_told_in_one_line(shell: Shell, gate: Path) -> None:
    with gate.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        terminal = Terminal(shell, "evaluate", "seen:EVALUATION", "--workers", "1")
        terminal.see("4/6")
        terminal.type(b"\x03")
        assert terminal.ended() == 130
    assert "interrupted" in terminal.shown
    assert "Traceback" not in terminal.shown


def test_the_bar_goes_on_to_the_end(shell: Shell, gate: Path) -> None:
    with gate.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        terminal = Terminal(shell, "evaluate", "seen:EVALUATION", "--workers", "1")
        terminal.see("4/6")
    terminal.see("6/6")
    assert terminal.ended() == 0
