"""Trials per second of programs that do nothing, beside other systems in the same rounds.

Ours go from executor through bridge to two workers, each under its own configuration, and their outcomes into the
journal; the peers answer and score, and keep nothing. DSPy is the one that is installed here; others are installed into
a folder that is gone afterwards (--install, some 100 MB from the package index). Values are medians over the rounds.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from statistics import median

from benchmarks._report import report
from benchmarks.throughput import ROOT, SLOTS, WORKERS, trials_per_s
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.wire.loop import run

INSTALLED = "dspy.Evaluate"
REQUIREMENTS = {"Ray tasks": "ray==2.60.0"}
PEERS = Path(__file__).with_name("_peers.py")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="make bench BENCH=peers", description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[2_000, 20_000], help="a case for each number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--install", action="store_true", help=f"also {', '.join(REQUIREMENTS)}")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dspex-") as name:
        folder = Path(name)
        pythons = {INSTALLED: sys.executable}
        if arguments.install:
            pythons |= {peer: _installed(folder, requirement) for peer, requirement in REQUIREMENTS.items()}
        with local_pool.lease(workers=WORKERS, slots=SLOTS, cwd=ROOT, runtime_root=folder / "pool") as lease:
            run(trials_per_s(lease.address, folder, case="async", count=1_000, generation="warm"))
            for peer, python in pythons.items():
                for count in arguments.trials:
                    theirs: list[float] = []
                    ours: list[float] = []
                    for number in range(arguments.rounds):
                        theirs.append(_theirs(python, peer, count))
                        generation = f"{peer}-{count}-{number}".replace(" ", "-")
                        ours.append(
                            run(trials_per_s(lease.address, folder, case="async", count=count, generation=generation))
                        )
                    report(
                        benchmark="peers",
                        case=f"{peer}, {count:,} trials",
                        value=median(ours),
                        unit="trials/s",
                        reference=peer,
                        reference_value=median(theirs),
                        rounds=[round(rate) for rate in ours],
                        reference_rounds=[round(rate) for rate in theirs],
                    )
        local_pool.stop(runtime_root=folder / "pool")


def _installed(folder: Path, requirement: str) -> str:
    """Return the interpreter of an environment that has *requirement*."""
    place = folder / requirement
    venv.create(place, with_pip=True)
    python = str(place / "bin" / "python")
    subprocess.run([python, "-I", "-m", "pip", "install", "--quiet", requirement], check=True)
    return python


def _theirs(python: str, peer: str, count: int) -> float:
    # On its own: what is importable here is nothing that a peer should meet.
    command = [python, "-I", str(PEERS), peer, str(count)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
