"""The pictures of profiles in the docs show what was sampled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from scripts.flame_graph import read

ROOT = Path(__file__).resolve().parent.parent
STACKS = [
    "start (a.py:1);turn (b.py:2);work (c.py:3) 6",
    "start (a.py:9);turn (b.py:5);idle (c.py:4) 2",
    "other (d.py:1) 5",
]


def test_stacks_that_begin_alike_are_one() -> None:
    root = read(STACKS, under="start")
    (turn,) = root.calls.values()
    assert (root.samples, turn.samples) == (8, 8)
    assert {name: one.samples for name, one in turn.calls.items()} == {"work (c.py)": 6, "idle (c.py)": 2}
    assert read(STACKS).samples == 13


def test_it_draws(tmp_path: Path) -> None:
    (tmp_path / "stacks").write_text("\n".join(STACKS))
    command = [sys.executable, "-m", "scripts.flame_graph", str(tmp_path / "stacks"), str(tmp_path / "flames.png")]
    subprocess.run(command, cwd=ROOT, check=True, timeout=100)
    assert (tmp_path / "flames.png").read_bytes().startswith(b"\x89PNG")
    command += ["--under", "nowhere"]
    lost = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert lost.returncode == 2
    assert "has no stack with nowhere in it" in lost.stderr
