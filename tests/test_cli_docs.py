"""docs/cli.md is followed to the letter, block by block; its table of exit codes is what there is."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspex_pipelines.cli import exits
from tests.test_readme import ROOT

PAGE = (ROOT / "docs" / "cli.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
DEADLINE_S = 110.0


class Reader:
    """Somebody who pastes what the page says; what stays in the foreground has a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trial = ""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        apart = {"PATH": path, "PYTHONPATH": str(ROOT), "XDG_RUNTIME_DIR": str(folder / "run")}
        ours = {name: value for name, value in os.environ.items() if name not in ("DAGSTER_HOME", "DSPEX_JOURNAL_URL")}
        self.environment = {**ours, **apart}
        self.foreground: subprocess.Popen[str] | None = None

    def literally(self, text: str) -> str:
        """Return what is pasted: a free port, and an id for TRIAL."""
        return text.replace("50051", self.port).replace("TRIAL", self.trial)

    def paste(self, script: str) -> str:
        script = self.literally(script)
        if script.startswith("dspex pool start"):
            script = script.replace("start", f"start --address 127.0.0.1:{self.port}", 1)
        if script.startswith("dspex worker"):
            return self.stay(script)
        done = subprocess.run(
            ["bash", "-ec", script], cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=DEADLINE_S, check=False,
        )  # fmt: skip
        told = done.stdout + done.stderr
        assert done.returncode == 0, told
        if found := re.search(r"│ ([0-9a-f]{12}) │", told):
            self.trial = found[1]
        return told

    def stay(self, script: str) -> str:
        self.foreground = subprocess.Popen(
            ["bash", "-c", f"exec {script}"], cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True
        )
        assert self.foreground.stderr is not None
        return self.foreground.stderr.readline()

    def sees(self, expected: str, told: str) -> None:
        """Every line that the page shows is there; … is anything."""
        spaced = re.sub(r"\s+", " ", told)
        for line in self.literally(expected).strip().splitlines():
            pattern = ".*?".join(map(re.escape, re.sub(r"\s+", " ", line.strip()).split("…")))
            assert re.search(pattern, spaced), f"{line!r} is not in:\n{told}"

    def end(self) -> None:
        if self.foreground is not None:
            self.foreground.terminate()
            self.foreground.communicate()
        self.paste("dspex pool stop --all")


@pytest.fixture
def reader() -> Iterator[Reader]:
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    (folder / "run").mkdir(mode=0o700)
    one = Reader(folder)
    yield one
    one.end()
    shutil.rmtree(folder)


@pytest.mark.timeout(600)
def test_the_page_from_its_beginning_to_its_end(reader: Reader) -> None:
    told = ""
    for language, body in BLOCK.findall(PAGE):
        if language == "text":
            reader.sees(body, told)
        else:
            told = reader.paste(body)


def test_every_block_is_run_or_seen() -> None:
    assert {language for language, _ in BLOCK.findall(PAGE)} == {"sh", "text"}
    assert PAGE.count("```") == 2 * len(BLOCK.findall(PAGE))


def test_every_command_is_on_the_page() -> None:
    from typer.main import get_command

    from dspex_pipelines.cli import app

    def names(command: object, before: str) -> Iterator[str]:
        for name, one in getattr(command, "commands", {}).items():
            yield f"{before} {name}"
            yield from names(one, f"{before} {name}")

    groups = ("dspex pool", "dspex journal")
    missing = [name for name in names(get_command(app), "dspex") if name not in PAGE and name not in groups]
    assert missing == []


def test_every_exit_code_is_in_the_table() -> None:
    told = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.MULTILINE)}
    assert told == {0, *(value for name, value in vars(exits).items() if name.isupper())}
