"""`python -m chaos --seed N --trials N`: the campaign. `python -m chaos resume --seed N`: kill -9, over and over."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from chaos.campaign import Campaign, Say, table, undisturbed
from chaos.resume import IN_FLIGHT, Route, ThroughDagster, resume
from chaos.scenario import KINDS, Scenario

TRIALS = 20_000
SMALL, FEW = 300, 6
LEAST_FAULTS = 2 * KINDS


def main() -> int:
    """Run the command line; return 0 when nothing was found wrong."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("mode", nargs="?", choices=("campaign", "resume"), default="campaign")
    parser.add_argument("--seed", type=int, default=1, help="decides everything that is done")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--faults", type=int, default=0, help="of a campaign; 0: one in eighty trials, at least 54")
    parser.add_argument("--kills", type=int, default=10, help="of the run that is resumed")
    parser.add_argument("--dagster", action="store_true", help="kill `dspex evaluate` instead of a bare run")
    parser.add_argument("--keep", action="store_true", help="keep the folder, whatever was found")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    rows, wrong = (_resume if arguments.mode == "resume" else _campaign)(arguments, folder, _progress())
    for name, value in rows:
        print(f"  {name:<36}{value}")
    if wrong:
        print("RED")
        for one in wrong:
            print(f"  - {one}")
        print(f"Again: {_command(arguments)}\nLeft to look at: {folder}")
        return 1
    print("GREEN: every trial has one outcome, the one it has when nothing happens, and nothing is left")
    if not arguments.keep:
        shutil.rmtree(folder)
    return 0


Found = tuple[list[tuple[str, str]], list[str]]


def _campaign(arguments: argparse.Namespace, folder: Path, say: Say) -> Found:
    seed, trials = arguments.seed, arguments.trials
    faults = arguments.faults or max(LEAST_FAULTS, trials // 80)
    calm, storm = folder / "u", folder / "c"
    calm.mkdir()
    storm.mkdir()
    found = undisturbed(scenario=Scenario(seed=seed, trials=SMALL, acts=KINDS, in_flight=FEW), folder=calm, say=say)
    if found.wrong:
        found.wrong.insert(0, "without any fault from outside:")
    else:
        acts = max(faults * 3 // 5, min(faults, KINDS))
        scenario = Scenario(seed=seed, trials=trials, acts=acts)
        found = Campaign(scenario=scenario, faults=faults - acts, folder=storm, say=say).run()
    say("")
    return table(found), found.wrong


def _resume(arguments: argparse.Namespace, folder: Path, say: Say) -> Found:
    make = ThroughDagster if arguments.dagster else Route
    route = make(seed=arguments.seed, trials=arguments.trials)
    found = resume(route=route, seed=arguments.seed, kills=arguments.kills, folder=folder, say=say)
    say("")
    rows = [
        ("seed", str(arguments.seed)),
        ("trials", f"{found.trials:,}"),
        ("run killed", f"{found.kills} times"),
        ("executions", f"{found.executions:,}, of which {found.ran_again:,} of a trial that had run before"),
        ("allowed", f"{found.allowed:,}, {IN_FLIGHT} in flight at each kill"),
        ("data version", found.data_version),
        ("time", f"{found.elapsed_s:.0f} s"),
    ]
    return rows, found.wrong


def _command(arguments: argparse.Namespace) -> str:
    command = f"python -m chaos {arguments.mode} --seed {arguments.seed} --trials {arguments.trials}"
    if arguments.mode == "resume":
        return f"{command} --kills {arguments.kills}{' --dagster' if arguments.dagster else ''}"
    return f"{command} --faults {arguments.faults}" if arguments.faults else command


def _progress() -> Say:
    """Return what tells how far it is: one line on a terminal, a line now and then elsewhere."""
    started = time.monotonic()
    told = 0.0

    def say(text: str) -> None:
        nonlocal told
        elapsed = time.monotonic() - started
        if sys.stdout.isatty():
            print(f"\r\033[K{f'{elapsed:4.0f} s  {text}' if text else ''}", end="", flush=True)
        elif text and elapsed - told > 10.0:
            told = elapsed
            print(f"{elapsed:4.0f} s  {text}", flush=True)

    return say


if __name__ == "__main__":
    sys.exit(main())
