"""What the shell completes, and that it needs neither Dagster nor the user's code for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dspex_pipelines.cli.completing import complete_outcome, complete_target
from dspex_pipelines.cli.starter import write_starter

ROOT = Path(__file__).parents[2]
OURS = """
from dspex_pipelines import Dataset, Evaluation
raise RuntimeError("nobody may run this")
SMALL = Evaluation(name="small", dataset=Dataset(source="x.csv", partition_by="p", partitions=("dev", "test")))
"""


def completed(folder: Path, words: str) -> list[str]:
    """What bash is given for the last word."""
    source = (
        "import sys; from dspex_pipelines.cli.commands import app\n"
        "try: app(prog_name='dspex')\n"
        "finally: print(sorted({'dagster', 'pandas', 'grpc', 'dspy'} & {m.partition('.')[0] for m in sys.modules}))"
    )
    asked = {"_DSPEX_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)}
    environment = {**os.environ, **asked, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", source]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)
    *found, loaded = done.stdout.splitlines()
    assert loaded == "[]", "completing is to be quick"
    return found


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("dspex evaluate ", ["stdlib_search", "qa_rag", "shorten", "ours:"]),
        ("dspex trials st", ["stdlib_search"]),
        ("dspex evaluate ours:", ["ours:SMALL"]),
        ("dspex evaluate qa_rag --partition ", ["all"]),
        ("dspex evaluate stdlib_search --partition t", ["text"]),
        ("dspex trials ours:SMALL --partition ", ["dev", "test"]),
        ("dspex trials --outcome timeout", ["timeout_queue", "timeout_run"]),
    ],
)
def test_the_shell_is_told(tmp_path: Path, words: str, found: list[str]) -> None:
    write_starter(tmp_path)
    (tmp_path / "ours.py").write_text(OURS)
    assert completed(tmp_path, words) == found


def test_a_folder_that_cannot_be_parsed_completes_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "evaluation.py").write_text("x = = 1")
    (tmp_path / "binary.py").write_bytes(b"\xff\0")
    monkeypatch.chdir(tmp_path)
    assert complete_target("") == ["stdlib_search", "qa_rag"]
    assert complete_target("nowhere:") == []
    assert complete_outcome("o") == ["ok"]
