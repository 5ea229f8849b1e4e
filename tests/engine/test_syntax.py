"""Source code as a syntax tree, whatever is collected meanwhile."""

from __future__ import annotations

import ast
import gc
import subprocess
import sys

import pytest

from dspex_pipelines.engine.syntax import parsed

COLLECTED = """
import ast, gc, sys
from dspex_pipelines.engine import syntax

class Logs:
    def __init__(self):
        self.itself = self

    def __del__(self):
        # As a traceback does of the line that it shows.
        deeper(50)
        finalised.append(1)

def deeper(levels):
    return deeper(levels - 1) if levels else ast.parse("a + b")

finalised = []
source = "x = [1, 2, 3]\\n" * 2_000
gc.set_threshold(1)
Logs()
tree = getattr(*{"ours": (syntax, "parsed"), "bare": (ast, "parse")}[sys.argv[1]])(source)
assert len(tree.body) == 2_000
gc.collect()
assert finalised == [1] and gc.isenabled()
"""


def test_what_is_collected_meanwhile_may_parse_too() -> None:
    def run(whose: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", COLLECTED, whose]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    ours = run("ours")
    assert ours.returncode == 0, ours.stderr
    bare = run("bare")
    # Newer versions of Python have it mended.
    assert bare.returncode == 0 or "recursion depth mismatch" in bare.stderr


def test_it_is_as_python_says() -> None:
    assert ast.dump(parsed("a = 1\n")) == ast.dump(ast.parse("a = 1\n"))
    with pytest.raises(SyntaxError):
        parsed(b"a = = 1")
    gc.disable()
    try:
        parsed("a")
        assert not gc.isenabled()
    finally:
        gc.enable()
