"""docs/telemetry.md is followed to the letter, on a free port."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from dspex_pipelines import telemetry
from dspex_pipelines.errors import DspexError
from dspex_pipelines.worker import serving
from tests.test_dspy_docs import BLOCK, Reader, blocks, follow
from tests.test_readme import ROOT

PAGE = (ROOT / "docs" / "telemetry.md").read_text()
exporting = pytest.importorskip("dspex_pipelines.telemetry.exporting", exc_type=DspexError)
pytestmark = pytest.mark.timeout(300)


class ReaderBesideACollector(Reader):
    def __init__(self, home: Path) -> None:
        super().__init__(home)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.collects_at = str(free.getsockname()[1])

    def literally(self, text: str) -> str:
        return super().literally(text).replace("4318", self.collects_at)


@pytest.fixture
def reader(tmp_path: Path) -> Reader:
    return ReaderBesideACollector(tmp_path)


def test_see_it(reader: Reader) -> None:
    told = follow(reader, PAGE, "See it")
    assert len(re.findall(r"^ +\d+ ", told, re.MULTILINE)) == 6, "the page shows all of it"


def test_every_block_of_the_page_is_run() -> None:
    assert BLOCK.findall(PAGE) == blocks(PAGE, "See it")


def test_the_bounds_are_what_they_are_said_to_be() -> None:
    assert f"({exporting.QUEUE:,} unless said)" in PAGE
    assert (
        f"waits {telemetry.FLUSH_S:g} s at its end for its own to be sent, a worker {serving.FLUSH_S:g} s"
        in " ".join(PAGE.split())
    )
