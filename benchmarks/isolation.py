"""Processor time of a trial in a process of its own: forked, run, ended. Beside it, a bare interpreter's start."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks._report import report
from dspex_pipelines.engine.calls.trial_calls import Caller
from dspex_pipelines.engine.program_versions import know_distributions, program_version
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, ProgramSpec, TrialSpec
from dspex_pipelines.wire.codec import trial_to_wire
from dspex_pipelines.worker.forks import Forks
from dspex_pipelines.worker.instances import ProgramLoader
from dspex_pipelines.worker.isolated import IsolatedTrial, serve_one
from dspex_pipelines.worker.permits import PermitsHere

PROGRAM = "benchmarks._programs:alone"
REFERENCES = 10


def main() -> None:
    """Print the one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--at-once", type=int, default=16)
    arguments = parser.parse_args()
    before = _children_ms()
    for _ in range(REFERENCES):
        subprocess.run([sys.executable, "-c", "pass"], check=True)
    bare_ms = (_children_ms() - before) / REFERENCES

    know_distributions()
    forks = Forks.start(serve_one)
    program = ProgramSpec(entry_point=PROGRAM, version=program_version(PROGRAM, {}), isolation="process")
    loaded = ProgramLoader().load(program, (), ("x",), ())
    caller = Caller(PermitsHere())

    def run(number: int) -> float:
        example = Example(example_id=str(number), inputs={"x": number})
        spec = TrialSpec(program=program, example=example, configuration=_NONE)
        trial = trial_to_wire(spec, id=number + 1, session_id=1, version=1, timeout_s=0)
        started = time.perf_counter()
        outcome = IsolatedTrial(forks, loaded, _NONE, trial, caller).run()
        assert outcome is not None
        assert not outcome.HasField("failure"), outcome.failure
        return time.perf_counter() - started

    before, own = _children_ms(), time.process_time()
    with ThreadPoolExecutor(arguments.at_once) as threads:
        took_s = sorted(threads.map(run, range(arguments.trials)))
    own_ms = (time.process_time() - own) * 1e3 / arguments.trials
    # The fork parent's children are counted here once it has ended.
    forks.end()
    report(
        benchmark="isolation",
        case="process",
        value=(_children_ms() - before) / arguments.trials,
        unit="ms of processor time per trial",
        reference="start of an interpreter",
        reference_value=bare_ms,
        worker_ms=round(own_ms, 3),
        at_once=arguments.at_once,
        median_s=round(took_s[len(took_s) // 2], 3),
        longest_s=round(took_s[-1], 3),
    )


_NONE = Configuration({})


def _children_ms() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) * 1e3


if __name__ == "__main__":
    main()
