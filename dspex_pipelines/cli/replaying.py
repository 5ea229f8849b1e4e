"""`dspex replay`: one trial alone, in this process, with its traceback. `survived` tells where the process ends."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import pdb  # noqa: T100 - asked for by --debug
import sys
import threading
import traceback
from collections.abc import Generator

from rich.console import Console

from dspex_pipelines.analysis.results import as_json
from dspex_pipelines.cli import exits
from dspex_pipelines.cli.finding import find_trial
from dspex_pipelines.cli.whereabouts import program_lines
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.outcome import ErrorType, TrialError
from dspex_pipelines.model.trial import MetricSpec, ProgramSpec, TrialSpec
from dspex_pipelines.redaction import redact, redact_values
from dspex_pipelines.wire.scribe import foreground
from dspex_pipelines.worker.__main__ import set_environment
from dspex_pipelines.worker.alone import run_alone, run_here

_AFTER_S = 1.0
"""So much later all threads are told, by what needs no interpreter, unless the program's own lines have been told."""


def replay_trial(evaluation: Evaluation, trial: str, console: Console, *, debug: bool = False) -> int:
    """Run the trial again with the program as it is now; return the exit code, 1 when it fails or takes too long.

    With *debug* it runs in this thread, where its own breakpoints stop, and what it raises opens the debugger.
    """
    set_environment()
    asked = find_trial(evaluation, trial).spec
    spec = _as_it_is_now(evaluation, asked)
    metrics = [MetricSpec(entry_point=metric, version=metric_version(metric)) for metric in evaluation.metrics]
    console.print(f"trial          {asked.trial_id.hex()}")
    if spec.trial_id != asked.trial_id:
        what = "The program (or its init, files or environment) has changed since that trial"
        changed = f"{what}; as it is now, this is trial {spec.trial_id.hex()}."
        console.print(changed, style="yellow", soft_wrap=True)
    console.print(f"configuration  {spec.configuration}", soft_wrap=True)
    console.print(f"inputs         {as_json(redact_values(dict(spec.example.inputs)))}", soft_wrap=True)
    console.print(f"labels         {as_json(redact_values(dict(spec.example.labels)))}", soft_wrap=True)
    if debug:
        return _debug(spec, metrics, evaluation, console)
    runner = asyncio.Runner()
    with _tells_where(evaluation.timeout_s, runner), foreground(), runner:
        outcome = runner.run(run_alone(spec, metrics, calls=evaluation.calls))
    if outcome.outputs_payload:
        console.print(f"outputs        {as_json(outcome.outputs)}", soft_wrap=True)
    if isinstance(outcome, TrialError):
        console.print(f"{outcome.type}: {outcome.message}", style="red", soft_wrap=True)
        if outcome.traceback:
            console.print(outcome.traceback.rstrip(), soft_wrap=True)
    else:
        console.print(f"scores         {as_json(dict(outcome.scores))}", soft_wrap=True)
        console.print(f"ran for        {outcome.run_s:.3f} s")
    is_late = outcome.run_s > evaluation.timeout_s
    if is_late:
        late = f"in an evaluation this is {ErrorType.TIMEOUT_RUN.value}, after {evaluation.timeout_s:g} s (timeout_s)"
        console.print(f"It ran for {outcome.run_s:.3f} s: {late}.", style="red", soft_wrap=True)
    return exits.PROBLEM if is_late or isinstance(outcome, TrialError) else 0


def _debug(spec: TrialSpec, metrics: list[MetricSpec], evaluation: Evaluation, console: Console) -> int:
    try:
        outputs, scores = run_here(spec, metrics, calls=evaluation.calls)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, this is where to look at it
        raised = redact("".join(traceback.format_exception(error))).rstrip()
        console.print(raised, soft_wrap=True)
        console.print("The debugger is where it was raised: `up` and `down` move, `q` ends.", style="yellow")
        pdb.post_mortem(error.__traceback__)
        return exits.PROBLEM
    console.print(f"outputs        {as_json(redact_values(outputs))}", soft_wrap=True)
    console.print(f"scores         {as_json(scores)}", soft_wrap=True)
    return 0


@contextlib.contextmanager
def _tells_where(timeout_s: float, runner: asyncio.Runner | None = None) -> Generator[None]:
    """Print, once this has taken *timeout_s*, where the program is; all threads where that is not seen."""
    timer = threading.Timer(timeout_s, _say_where, (timeout_s, runner))
    timer.daemon = True
    timer.start()
    # Standard error may be one that has no descriptor, as under a test.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        faulthandler.dump_traceback_later(timeout_s + _AFTER_S, file=sys.stderr)
    try:
        yield
    finally:
        timer.cancel()
        faulthandler.cancel_dump_traceback_later()


def _say_where(timeout_s: float, runner: asyncio.Runner | None) -> None:
    lines = program_lines(_loop(runner))
    if lines:
        # All threads need not be told; where it is in none of its own lines, that is all there is.
        faulthandler.cancel_dump_traceback_later()
    said = f"It has run for {timeout_s:g} s, which is its timeout_s. This is where it is; Ctrl-C ends it:\n"
    # In one piece and to one of the two, or the program's own words may come between.
    print(said + lines, end="", file=sys.stderr, flush=True)


def _loop(runner: asyncio.Runner | None) -> asyncio.AbstractEventLoop | None:
    # It may just have been closed.
    with contextlib.suppress(RuntimeError):
        return runner and runner.get_loop()
    return None


def _as_it_is_now(evaluation: Evaluation, spec: TrialSpec) -> TrialSpec:
    version = program_version(
        evaluation.program,
        evaluation.init,
        files=evaluation.files,
        declared=evaluation.version,
        environment=evaluation.environment,
    )
    program = ProgramSpec(
        entry_point=evaluation.program, init=evaluation.init, version=version, isolation=evaluation.isolation
    )
    return TrialSpec(
        program=program,
        example=spec.example,
        configuration=spec.configuration,
        repeat=spec.repeat,
        seed=spec.seed,
    )
