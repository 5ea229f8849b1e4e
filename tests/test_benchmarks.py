"""Every benchmark runs and prints what readers of its lines rely on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "throughput": ["--trials", "200", "--rounds", "1"],
    "fairness": ["--trials", "20000", "--rounds", "1", "--seconds", "0.5"],
    "isolation": ["--trials", "8"],
    "peers": ["--trials", "200", "--rounds", "1"],
    "dspy_calls": ["--calls", "40"],
    "providers": ["--trials", "100", "--rounds", "1"],
    "events": ["--trials", "1000"],
    "latency": ["--trials", "100", "--rounds", "1"],
    "cpu": ["--seconds", "0.1", "--rounds", "1"],
    "configurations": ["--trials", "400", "--many", "40", "200", "--rounds", "1"],
    "growth": ["--sizes", "400", "--reference", "200", "--rounds", "1"],
    "journal": ["--outcomes", "5000", "--trials", "200", "--rounds", "1"],
    "start": ["--imports", "1", "--rounds", "1", "--trials", "10"],
    "payload": ["--mib", "4", "--rounds", "1"],
    "resume": ["--trials", "200", "--rounds", "1"],
    "dagster": ["--trials", "30", "--rounds", "1"],
}
CASES = {
    "throughput": ["async", "threads"],
    "fairness": ["100 trials beside 20,000", "weight 3 beside 1"],
    "isolation": ["process"],
    "peers": ["dspy.Evaluate, 200 trials"],
    "dspy_calls": ["thread", "coroutine"],
    "providers": [
        *("2 s, HTTP", "200 ms, HTTP", "200 ms, in process", "200 ms, in process, DSPy alone"),
        *("declared limit", "discovered limit"),
    ],
    "events": [f"{what} of 1,000 trials" for what in ("events", "event log", "largest materialisation")],
    "latency": ["jitter-200", "constant-200", "threads-200", "mixed", "jitter-2000", "constant-2000"],
    "configurations": ["40 configurations", "200 configurations"],
    "growth": [f"{what}400 trials" for what in ("", "client of ", "bridge of ", "workers of ")],
    "journal": [
        *("throughput into small", "throughput into large"),
        *("record into small", "record into large"),
        *("find by id", "size", "prune", "reclaim"),
    ],
    "start": ["import", "first trial, cold", "first trial, warm"],
    "payload": ["1 KiB", "32 KiB", "1 MiB", "4 MiB"],
    "resume": ["200 trials"],
    "cpu": ["trials of 5 ms", "trials of 20 ms"],
    "dagster": ["30 trials", "30 trials, unchanged"],
}
NAMES = sorted(path.stem for path in (ROOT / "benchmarks").glob("[!_]*.py"))


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_prints_a_line_for_each_case(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", *SMALL[name]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["case"] for line in lines] == CASES[name]
    for line in lines:
        assert line["benchmark"] == name
        assert {"value", "unit", "reference", "reference_value", "ratio"} <= line.keys()
        assert line["ratio"] == pytest.approx(line["value"] / line["reference_value"], rel=1e-3, abs=1e-3)
