"""docs/secrets.md is followed to the letter, block by block."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspex_pipelines.bridge import local_pool
from tests.test_dspy_docs import BLOCK, Reader, blocks, follow
from tests.test_readme import ROOT

PAGE = (ROOT / "docs" / "secrets.md").read_text()
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def reader() -> Iterator[Reader]:
    folder = Path(tempfile.mkdtemp(prefix="dspex-d-"))
    (folder / "run").mkdir(mode=0o700)
    one = Reader(folder)
    one.environment["XDG_RUNTIME_DIR"] = str(folder / "run")
    yield one
    local_pool.stop(runtime_root=folder / "run" / "dspex")
    shutil.rmtree(folder, ignore_errors=True)


def test_giving_a_key(reader: Reader) -> None:
    told = follow(reader, PAGE, "Giving a key")
    assert reader.environment["WEATHER_API_KEY"] == "no-real-key-4711"
    assert "no-real-key" not in told


def test_in_dagster(reader: Reader) -> None:
    told = follow(reader, PAGE, "In Dagster")
    assert "no-real-key" not in told


def test_what_is_refused(reader: Reader) -> None:
    (_, source), (_, command), (_, said) = blocks(PAGE, "What is refused")
    reader.write(source)
    told = reader.run(command, code=2)
    reader.sees(said, told)
    assert "no-real-key" not in told
    assert len(told.strip().splitlines()) == 1


def test_every_block_of_the_page_is_run() -> None:
    run = [block for title in ("Giving a key", "In Dagster", "What is refused") for block in blocks(PAGE, title)]
    assert BLOCK.findall(PAGE) == run
