"""docs/dspy.md and docs/models.md are followed to the letter, block by block, against a real server on a free port."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_readme import ROOT

DSPY = (ROOT / "docs" / "dspy.md").read_text()
MODELS = (ROOT / "docs" / "models.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SERVER = "python -m dspex_pipelines.loopback"
DEADLINE_S = 100.0
pytestmark = pytest.mark.timeout(300)
pytest.importorskip("dspy")


class Reader:
    """Somebody who pastes what a page says: one terminal has the server, the others share folder and environment."""

    def __init__(self, home: Path) -> None:
        self.folder = home
        self.trial = ""
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = str(free.getsockname()[1])
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        apart = {"PATH": path, "COLUMNS": "250", "PYTHONPATH": str(ROOT), "DSPY_CACHEDIR": str(home / "cache")}
        ours = {name: value for name, value in os.environ.items() if name not in ("DAGSTER_HOME", "DSPEX_JOURNAL_URL")}
        self.environment = {**ours, **apart, "DSPEX_DOCS": str(home)}
        self.server: subprocess.Popen[str] | None = None
        self.background: subprocess.Popen[str] | None = None

    def literally(self, text: str) -> str:
        """Return what is pasted: another port, the same server in place of a real provider, an id for TRIAL."""
        text = text.replace("https://api.openai.com/v1", "http://localhost:8123/v1").replace("8123", self.port)
        return text.replace("TRIAL", self.trial)

    def serve(self, command: str) -> str:
        self.end_server()
        command = f"exec {command}"
        self.server = subprocess.Popen(
            ["bash", "-c", command], cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True
        )
        assert self.server.stdout is not None
        return "".join(self.server.stdout.readline() for _ in range(3))

    def end_server(self) -> None:
        if self.server is not None:
            self.server.terminate()
            self.server.communicate()
            self.server = None

    def write(self, source: str) -> str:
        name = re.match(r"# (\w+\.py)\n", source)
        assert name, "a file begins with its name"
        (self.folder / name[1]).write_text(source)
        return ""

    def run(self, script: str, *, code: int = 0) -> str:
        with tempfile.NamedTemporaryFile() as kept:
            # What it exports, and where it goes, stays; with what it ended is what its last command said.
            after = f"ended=$?\n{{ pwd; env -0; }} > {shlex.quote(kept.name)}\nexit $ended"
            command = ["bash", "-c", f"{script}\n{after}"]
            where = {"cwd": self.folder, "env": self.environment}
            done = subprocess.run(command, **where, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
            told = done.stdout + done.stderr
            assert done.returncode == code, told
            folder, _, variables = Path(kept.name).read_text().partition("\n")
        self.folder = Path(folder)
        self.environment = dict(one.split("=", 1) for one in variables.split("\0") if one)
        if "dspex trials" in script and (found := re.search(r"│ ([0-9a-f]{12}) │", told)):
            self.trial = found[1]
        return told

    def start(self, script: str) -> None:
        command = ["bash", "-c", f"exec {script.strip()}"]
        self.background = subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def finish(self) -> str:
        assert self.background is not None
        told, _ = self.background.communicate(timeout=DEADLINE_S)
        assert self.background.returncode == 0, told
        self.background = None
        return told

    def sees(self, expected: str, told: str) -> None:
        """Every line that the page shows is there, in any order; … is anything."""
        spaced = re.sub(r"\s+", " ", told)
        for line in self.literally(expected).strip().splitlines():
            pattern = ".*?".join(map(re.escape, re.sub(r"\s+", " ", line.strip()).split("…")))
            assert re.search(pattern, spaced), f"{line!r} is not in:\n{told}"


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    one = Reader(tmp_path_factory.mktemp("tutorial"))
    yield one
    one.end_server()
    if one.background is not None:
        one.background.kill()
        one.background.communicate()


def blocks(page: str, title: str) -> list[tuple[str, str]]:
    section = page.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    found: list[tuple[str, str]] = BLOCK.findall(section)
    assert found, title
    return found


def follow(reader: Reader, page: str, title: str) -> str:
    """Do what a section says, and see what it says one will see; return what was told last."""
    told = ""
    for language, body in blocks(page, title):
        match language:
            case "text":
                reader.sees(body, told)
            case "python":
                reader.write(reader.literally(body))
            case "sh" if body.startswith(SERVER):
                told = reader.serve(reader.literally(body))
            case _:
                told = reader.run(reader.literally(body))
    return told


def test_every_section_with_commands_is_followed() -> None:
    followed = {
        *("The packaged program", "The same against a provider", "Your own program", "What an optimiser has saved"),
        "When things go wrong",
    }
    assert {title for title in re.findall(r"^## (.+)$", DSPY, re.MULTILINE) if title != "Reference"} == followed
    assert not BLOCK.findall(DSPY.partition("\n## Reference\n")[2])


def test_the_packaged_program(reader: Reader) -> None:
    told = follow(reader, DSPY, "The packaged program")
    assert '"found"' in told


def test_what_the_server_prints_is_what_is_pasted(reader: Reader) -> None:
    _, (_, exports), *_ = blocks(DSPY, "The packaged program")
    (_, server), *_ = blocks(DSPY, "The packaged program")
    assert reader.literally(exports) in reader.serve(reader.literally(server))


def test_the_same_against_a_provider(reader: Reader) -> None:
    """Everything is asked, though the stand-in has answered it before: it is another address."""
    follow(reader, DSPY, "The same against a provider")
    assert reader.environment["DSPEX_QA_API_KEY"] == "sk-..."


def test_your_own_program(reader: Reader) -> None:
    follow(reader, DSPY, "Your own program")
    told = reader.run(f"dspex trace {reader.trial}")
    assert "cost_usd" in told
    assert "from a cache" not in told
    assert reader.environment["MOOD_API_KEY"] not in told


def test_what_an_optimiser_has_saved(reader: Reader) -> None:
    follow(reader, DSPY, "What an optimiser has saved")


def test_a_wrong_key(reader: Reader) -> None:
    (_, server), (_, evaluate), (_, said), *_ = blocks(DSPY, "When things go wrong")
    reader.serve(reader.literally(server))
    told = reader.run(evaluate, code=2)
    reader.sees(said, told)
    assert len(told.strip().splitlines()) == 2, "the bar and one line"


def test_a_model_that_is_not_there(reader: Reader) -> None:
    (_, server), (_, evaluate), (_, said) = blocks(DSPY, "When things go wrong")[3:6]
    reader.serve(reader.literally(server))
    reader.sees(said, reader.run(evaluate))


def test_a_missing_key_is_told_as_such(reader: Reader) -> None:
    _, (_, evaluate), *_ = blocks(DSPY, "When things go wrong")
    told = reader.run(evaluate.replace("MOOD_API_KEY=wrong", "env -u MOOD_API_KEY"), code=2)
    assert "error: there is no key for a model, so nothing more is run: " in told


def test_a_provider_that_is_down(reader: Reader) -> None:
    (_, evaluate), (_, status), (_, down), (_, partial) = blocks(DSPY, "When things go wrong")[6:10]
    reader.end_server()
    reader.start(evaluate)
    until = time.monotonic() + DEADLINE_S
    told = ""
    while not re.search(rf"{reader.port}/v1 +down ", told):
        assert time.monotonic() < until, told
        time.sleep(0.5)
        told = reader.run(status)
    reader.sees(down, told)
    told = reader.finish()
    reader.sees(partial, told)
    assert "not run" in told


def test_answers_that_cannot_be_read(reader: Reader) -> None:
    (_, server), (_, evaluate), (_, said) = blocks(DSPY, "When things go wrong")[10:]
    reader.serve(reader.literally(server))
    told = reader.run(evaluate)
    reader.sees(said, told)
    traced = reader.run(f"dspex trace {reader.trial}")
    assert "I am sorry, but as a stand-in" in traced
    assert traced.count("before         attempt") == 2


def test_a_program_without_dspy(reader: Reader, tmp_path: Path) -> None:
    """The example of docs/models.md, in its own folder."""
    reader.serve(f"{SERVER} --port {reader.port}")
    reader.folder = tmp_path
    follow(reader, MODELS, "Programs without DSPy")
    told = follow(reader, MODELS, "Traces")
    assert '"calls": [' in told
    assert reader.environment["SUMMARY_API_BASE"] not in told, "the program's own affair"


def test_every_block_of_the_page_on_calls_is_run() -> None:
    run = [block for title in ("Traces", "Programs without DSPy") for block in blocks(MODELS, title)]
    assert BLOCK.findall(MODELS) == run
