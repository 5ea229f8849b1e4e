"""What a trial tells of itself in spans: its client of the whole, and of the queue; its worker of run, waits and calls.

::

    evaluate <name>            of the run, one for each step
    └─ trial                   at the client, whatever becomes of it
       ├─ queue                one for each attempt
       ├─ run                  in the worker, one for each attempt
       │  └─ chat <model>      one for each time that a call is made
       └─ throttle             one for each wait for leave to call
"""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from dspex_pipelines.model.outcome import Attempt, TrialError, TrialOutcome
from dspex_pipelines.model.tracing import EndedSpan, SpanSink, TraceContext
from dspex_pipelines.model.trial import TrialSpec

_S = 1_000_000_000
_PROVIDERS = {
    "azure": "azure.ai.openai",
    "azure_ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "cohere_chat": "cohere",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "vertex_ai": "gcp.vertex_ai",
    "watsonx": "ibm.watsonx.ai",
    "xai": "x_ai",
}
"""What the semantic conventions call providers whose models go by another prefix; others are called as the prefix."""


class CallUse(Protocol):
    """What a call used."""

    @property
    def input_tokens(self) -> int:
        """Tokens of the prompt."""
        ...

    @property
    def output_tokens(self) -> int:
        """Tokens of the answer."""
        ...

    @property
    def cached(self) -> bool:
        """Whether no provider was asked."""
        ...


# ---------------------------------------------------------------------------- at the client


@dataclass(frozen=True, slots=True)
class RunSpans:
    """The trials of one run's step, below its root span."""

    root: TraceContext
    put: SpanSink

    async def trial(self, spec: TrialSpec, running: Awaitable[TrialOutcome], *, rescored: bool) -> TrialOutcome:
        """Return what *running* returns, and tell of it."""
        started = time.time_ns()
        try:
            outcome = await running
        except BaseException as error:
            self._tell(spec, started, time.time_ns(), {"dspex.rescored": rescored}, type(error).__name__)
            raise
        ended = time.time_ns()
        attributes = {
            "dspex.attempts": outcome.attempts,
            "dspex.worker": outcome.worker,
            "dspex.queue_s": outcome.queue_s,
            "dspex.run_s": outcome.run_s,
            "dspex.throttled_s": outcome.throttled_s,
            "dspex.rescored": rescored,
        }
        error = outcome.type.value if isinstance(outcome, TrialError) else ""
        trial = self._tell(spec, started, ended, attributes, error)
        at = started
        for attempt in (*(one for one in outcome.history if not one.call), outcome):
            waited = min(ended, at + int(attempt.queue_s * _S))
            number = attempt.number if isinstance(attempt, Attempt) else attempt.attempts
            if number:
                queued = {"dspex.attempt": number}
                self.put(EndedSpan.of("queue", trial.child(), trial, at, waited, queued))
            at = min(ended, waited + int(attempt.run_s * _S))
        return outcome

    def _tell(
        self, spec: TrialSpec, started: int, ended: int, attributes: dict[str, str | int | float | bool], error: str
    ) -> TraceContext:
        context = self.root.of_trial(spec.trial_id)
        about = {
            "dspex.trial.id": spec.trial_id.hex(),
            "dspex.configuration.digest": spec.configuration.digest.hex(),
            "dspex.repeat": spec.repeat,
            **attributes,
        }
        self.put(EndedSpan.of("trial", context, self.root, started, ended, about, error=error))
        return context


# ---------------------------------------------------------------------------- in the worker


@dataclass(frozen=True, slots=True)
class SessionSpans:
    """What a worker tells of the trials of one session."""

    root: TraceContext
    put: SpanSink

    def begin(self, trial_id: bytes, attempt: int) -> AttemptSpans:
        """An attempt of that trial runs from now on."""
        return AttemptSpans(self, trial_id, attempt)


class AttemptSpans:
    """What is told of one attempt of a trial, by any thread; moments are those of `time.perf_counter`."""

    __slots__ = ("_attempt", "_epoch_ns", "_put", "_run", "_started", "_trial", "_trial_id")

    def __init__(self, session: SessionSpans, trial_id: bytes, attempt: int) -> None:
        self._put = session.put
        self._trial_id = trial_id
        self._attempt = attempt
        self._trial = session.root.of_trial(trial_id)
        self._run = self._trial.child()
        self._started = time.perf_counter()
        self._epoch_ns = time.time_ns() - int(self._started * _S)

    def throttled(self, model: str, since: float, until: float, error: str = "") -> None:
        """A call waited for leave; *error* says why in vain."""
        attributes = {"gen_ai.request.model": _name_of(model), "dspex.attempt": self._attempt}
        self._tell("throttle", self._trial.child(), self._trial, since, until, attributes, error)

    def called(
        self, model: str, since: float, until: float, *, used: CallUse | None, tries: int, error: str = ""
    ) -> None:
        """A call was made, for the *tries*-th time; *error* is the type of what went wrong."""
        name = _name_of(model)
        attributes: dict[str, str | int | float | bool] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": name,
            "dspex.call.try": tries,
            **_server_of(model),
        }
        prefix, slash, _ = model.partition("@")[0].partition("/")
        if slash:
            attributes["gen_ai.provider.name"] = _PROVIDERS.get(prefix, prefix)
        if used is not None and used.cached:
            attributes["dspex.call.cached"] = True
        elif used is not None:
            attributes["gen_ai.usage.input_tokens"] = used.input_tokens
            attributes["gen_ai.usage.output_tokens"] = used.output_tokens
        self._tell(f"chat {name}", self._run.child(), self._run, since, until, attributes, error, calls_out=True)

    def ended(self, error: str = "") -> None:
        """The attempt is over; *error* is its type."""
        attributes = {"dspex.trial.id": self._trial_id.hex(), "dspex.attempt": self._attempt}
        self._tell("run", self._run, self._trial, self._started, time.perf_counter(), attributes, error)

    def _tell(
        self,
        name: str,
        context: TraceContext,
        parent: TraceContext,
        since: float,
        until: float,
        attributes: dict[str, str | int | float | bool] | dict[str, str | int],
        error: str,
        *,
        calls_out: bool = False,
    ) -> None:
        start_ns, end_ns = (self._epoch_ns + int(moment * _S) for moment in (since, until))
        self._put(EndedSpan.of(name, context, parent, start_ns, end_ns, attributes, error=error, calls_out=calls_out))


def _name_of(lane: str) -> str:
    """Return the model's own name: the lane without its provider and endpoint."""
    name = lane.partition("@")[0]
    return name.partition("/")[2] or name


def _server_of(lane: str) -> dict[str, str | int | float | bool]:
    """Return host and port of the lane's endpoint, and nothing else of it: addresses may hold keys."""
    try:
        where = urlsplit(lane.partition("@")[2])
        host, port = where.hostname, where.port
    except ValueError:
        return {}
    found: dict[str, str | int | float | bool] = {}
    if host:
        found["server.address"] = host
        if port:
            found["server.port"] = port
    return found
