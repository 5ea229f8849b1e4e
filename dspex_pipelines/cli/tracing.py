"""`dspex trace`: what a trial's program asked its models, what they answered, and what it made of that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from rich.console import Console
from rich.text import Text

from dspex_pipelines.analysis.results import as_json
from dspex_pipelines.cli.finding import FoundTrial
from dspex_pipelines.cli.results import instance
from dspex_pipelines.engine.trace import CALLS, LEFT_OUT, STEPS, unpack_trace
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.outcome import TrialError, TrialOutcome
from dspex_pipelines.model.usage import model_of
from dspex_pipelines.orchestration.resources import ResultStore

_INDENT = "    "


def recorded(trial: FoundTrial) -> TrialOutcome:
    """Return the recorded outcome of a trial; raises `DspexError` where the journal has it no more."""
    spec, plan = trial.spec, trial.plan
    with instance() as opened, ResultStore().journal(opened) as journal:
        found = journal.find(plan.generation, {spec.trial_id: plan.scoring_of(spec.example)})
    if spec.trial_id not in found:
        raise DspexError(
            f"the journal has no outcome of trial {spec.trial_id.hex()}: it was not run, or has been pruned since; "
            "`dspex replay` runs it"
        )
    return found[spec.trial_id].outcome


def trace_document(trial: FoundTrial) -> dict[str, Any]:
    """Return what is known of a trial's calls as plain values."""
    outcome = recorded(trial)
    failed = isinstance(outcome, TrialError)
    return {
        "trial_id": outcome.trial_id.hex(),
        "configuration": dict(trial.spec.configuration.values),
        "inputs": dict(trial.spec.example.inputs),
        "outcome": outcome.type.value if failed else "ok",
        "message": outcome.message if failed else "",
        "attempts": outcome.attempts,
        "queue_s": outcome.queue_s,
        "throttled_s": outcome.throttled_s,
        "run_s": outcome.run_s,
        "usage": dict(outcome.usage),
        "history": [
            {
                "attempt": one.number,
                "call": one.call,
                "type": one.type.value,
                "message": one.message,
                "run_s": one.run_s,
            }
            for one in outcome.history
        ],
        **unpack_trace(outcome.trace_payload),
    }


def print_trace(document: Mapping[str, Any], console: Console) -> None:
    """Print it for people: the trial, its calls in their order, then what the program's parts made of them."""
    console.print(f"trial          {document['trial_id']}")
    console.print(f"configuration  {as_json(document['configuration'])}", soft_wrap=True)
    console.print(f"inputs         {as_json(document['inputs'])}", soft_wrap=True)
    outcome = document["outcome"]
    message = f": {document['message']}" if document["message"] else ""
    console.print(Text(f"outcome        {outcome}{message}", style="" if outcome == "ok" else "red"), soft_wrap=True)
    times = " · ".join(f"{document[f'{name}_s']:.3f} s {name}" for name in ("queue", "throttled", "run"))
    console.print(f"time           {times}")
    if document["usage"]:
        amounts: Mapping[str, float] = document["usage"]
        # Sums first; by model only where there are several.
        names = sorted(amounts, key=lambda name: bool(model_of(name)))
        if len({model_of(name) for name in names} - {""}) == 1:
            names = [name for name in names if not model_of(name)]
        used = ", ".join(f"{name} {amounts[name]:,.6g}" for name in names)
        console.print(f"used           {used}", soft_wrap=True)
    for one in document["history"]:
        what = f"call to {one['call']}" if one["call"] else f"attempt {one['attempt']}"
        line = f"before         {what}: {one['type']}: {one['message']} ({one['run_s']:.3f} s)"
        console.print(Text(line, style="yellow"), soft_wrap=True)
    calls = cast("list[dict[str, Any]]", document[CALLS])
    if not calls:
        console.print("No calls to models are kept of it.", style="yellow")
    for number, call in enumerate(calls, start=1):
        _print_call(number, call, console)
    if left_out := document.get(LEFT_OUT):
        console.print(f"… {left_out:,} calls in the middle are left out (trace_bytes)", style="yellow")
    for step in cast("list[dict[str, Any]]", document[STEPS]):
        console.print()
        console.print(Text(f"{step.get('predictor', 'step')}", style="bold"))
        for name in ("inputs", "outputs"):
            for field, value in cast("dict[str, Any]", step.get(name) or {}).items():
                _print_field(f"{'→' if name == 'inputs' else '←'} {field}", value, console)


def _print_call(number: int, call: Mapping[str, Any], console: Console) -> None:
    used = call.get("used") or {}
    facts = [f"{call['run_s']:.3f} s", f"at {call['at_s']:.3f} s"]
    if call.get("throttled_s", 0) >= 0.001:  # noqa: PLR2004 - what is shown
        facts.append(f"throttled {call['throttled_s']:.3f} s")
    if used.get("cached"):
        facts.append("from a cache")
    elif used:
        facts.append(f"{used.get('input_tokens', 0):,} + {used.get('output_tokens', 0):,} tokens")
    if call.get("tries", 1) > 1:
        facts.append(f"{call['tries']} tries")
    settings = cast("dict[str, Any]", call.get("settings") or {})
    facts += [f"{name}={value}" for name, value in settings.items() if not isinstance(value, dict | list)]
    console.print()
    console.print(Text(f"call {number}  {call['model']}  ({', '.join(facts)})", style="bold"), soft_wrap=True)
    asked = call["asked"]
    messages = cast("list[Any]", asked) if isinstance(asked, list) else [asked]
    for message in messages:
        if isinstance(message, dict):
            told = cast("dict[str, Any]", message)
            _print_field(str(told.get("role", "message")), told.get("content", told), console)
        elif message is not None:
            _print_field("prompt", message, console)
    if call.get("error"):
        console.print(Text(f"{_INDENT}failed: {call['error']}", style="red"), soft_wrap=True)
    answers = cast("list[Any]", call["answered"]) if isinstance(call["answered"], list) else [call["answered"]]
    for answer in answers:
        if answer is not None:
            _print_field("answer", answer, console)


def _print_field(name: str, value: Any, console: Console) -> None:
    text = value if isinstance(value, str) else as_json(value)
    console.print(Text(f"  {name}", style="cyan"))
    for line in text.strip().splitlines() or [""]:
        console.print(Text(f"{_INDENT}{line}"), soft_wrap=True)
