"""The one root of every exception this package raises on purpose, and its branches.

What happens to a *trial* is a value (`model.outcome.TrialError`), never one of these: an exception here
means that the caller did something wrong, or that a system it needs is gone.
"""

from __future__ import annotations

from dspex_pipelines.redaction import redact

NOT_REUSED = "it reused nothing, and no other run reuses what it has done"
"""What is said of a run that was stopped where running it again begins anew."""
_SHOWN_LENGTH = 200
"""Characters of a value that was refused."""


class DspexError(Exception):
    """Root of all errors raised by this package; the message says what to do next, and no secret that is known."""

    def __init__(self, *said: object) -> None:
        super().__init__(*(redact(one) if isinstance(one, str) else one for one in said))


class InvalidValue(DspexError, ValueError):
    """A value was refused at the edge.

    `field` is the dotted name of what was wrong, `value` what was given, `fix` what would be accepted.
    """

    def __init__(self, *, field: str, value: object, fix: str) -> None:
        self.field = field
        self.value = value
        self.fix = fix
        super().__init__(f"{field}: {_short(value)} is not accepted; {fix}")


class ProgramUnavailable(DspexError):
    """An entry point cannot be used as a program or a metric: not importable, not allowed, or stale."""

    def __init__(self, *, entry_point: str, reason: str) -> None:
        self.entry_point = entry_point
        self.reason = reason
        super().__init__(f"{entry_point}: {reason}")


class SerializationError(DspexError):
    """A value cannot cross a process boundary exactly; `path` says where it sits in the payload."""

    def __init__(self, *, path: str, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}")


_SERVED = ("unix:", "127.", "localhost:", "[::1]:")
"""How addresses begin at which a pool may be started."""


class PoolUnreachable(DspexError):
    """No bridge answered at `address` within `waited_s` seconds; *fix* says what can be done about it."""

    def __init__(
        self,
        *,
        address: str,
        waited_s: float,
        reason: str = "no answer",
        fix: str = "",
    ) -> None:
        self.address = address
        self.waited_s = waited_s
        self.reason = reason
        if not fix:
            fix = "leave the address (--pool-address) empty for a local pool"
            if address.startswith(_SERVED):
                fix += f", or start one there: `dspex pool start --address {address}`"
            if address.startswith("unix:"):
                fix += "; where it is empty, the local pool was killed: run again, what is done is kept"
        super().__init__(f"no worker pool answered at {address} within {waited_s:g} s ({reason}); {fix}")


class PoolFailed(PoolUnreachable):
    """The pool at `address` has given up, for a reason that lies in what it was given to run."""

    def __init__(self, *, address: str, reason: str) -> None:
        self.address = address
        self.waited_s = 0.0
        self.reason = reason
        DspexError.__init__(self, f"the worker pool at {address} gave up: {reason}")


class PoolInterrupted(DspexError):
    """The bridge at `address` went away and is dialled again; whatever was in flight is to be sent once more."""

    def __init__(self, *, address: str) -> None:
        self.address = address
        super().__init__(f"the connection to the bridge at {address} was interrupted; send the request again")


class ProtocolMismatch(DspexError):
    """Two ends speak different versions of the wire protocol."""

    def __init__(self, *, ours: int, theirs: int) -> None:
        self.ours = ours
        self.theirs = theirs
        super().__init__(
            f"this process speaks wire protocol {ours}, the other end {theirs}; "
            "install the same dspex-pipelines version at both ends and restart the pool"
        )


class VersionConflict(DspexError):
    """A compare-and-set on a session failed because the session has moved on to `actual`."""

    def __init__(self, *, session_id: str, expected: int, actual: int) -> None:
        self.session_id = session_id
        self.expected = expected
        self.actual = actual
        super().__init__(f"session {session_id} is at version {actual}, not {expected}; read it again and retry")


class QuotaExceeded(DspexError):
    """The bridge holds, or is sent, no more of what `field` names than `limit`; `fix` says what helps."""

    def __init__(self, *, field: str, limit: int, fix: str) -> None:
        self.field = field
        self.limit = limit
        self.fix = fix
        super().__init__(f"{field}: the limit of {limit:,} is reached; {fix}")


class UnknownSession(DspexError):
    """The bridge holds no session, or no snapshot, of that name: closed, expired, or never opened."""

    def __init__(self, *, session_id: str, version: int | None = None) -> None:
        self.session_id = session_id
        self.version = version
        what = f"session {session_id}" if version is None else f"session {session_id}@{version}"
        super().__init__(f"{what} is not held by the bridge; open it again")


class Interrupted(DspexError):
    """A signal ended the work; what was done by then is kept, and where it *resumes* is not done again."""

    def __init__(self, *, resumes: bool = True) -> None:
        rest = "what is done is kept, and running it again does only the rest" if resumes else NOT_REUSED
        super().__init__(f"interrupted; {rest}")


class ProviderGivenUp(DspexError):
    """Calls to `model` are not made any more for now, because it has failed for too long."""

    def __init__(self, *, model: str, reason: str) -> None:
        self.model = model
        self.reason = reason
        super().__init__(reason if model in reason else f"{model}: {reason}")


NO_KEY = "no key"
"""How the message of a trial's error begins where a client library had no key to send."""


class ProviderRefused(DspexError):
    """A model's provider has refused whoever calls it, or there is no key to call it with: no trial can succeed."""

    def __init__(self, message: str) -> None:
        # What else a client library says is advice of its own, over several lines.
        said = message.strip().partition("\n")[0].rstrip(". ")
        if said.startswith(f"{NO_KEY}: "):
            super().__init__(
                f"there is no key for a model, so nothing more is run: {said.removeprefix(NO_KEY + ': ')}. Set it in "
                "the environment the pool starts from (a local pool has that of `dspex evaluate`), then run again"
            )
            return
        super().__init__(
            f"a model's provider refused the key, so nothing more is run: {said}. Check the key in the environment "
            "that the pool was started from, and run again; outcomes so far are kept"
        )


class JournalError(DspexError):
    """The journal at `journal` cannot be used, because of `reason`; what failed has left nothing half-written."""

    def __init__(self, *, journal: str, reason: str, fix: str) -> None:
        self.journal = journal
        self.reason = reason
        self.fix = fix
        super().__init__(f"the journal {journal} {reason}; {fix}")


class EvaluationIncomplete(DspexError):
    """The journal lacks outcomes for planned trials, so no result may be made of it."""

    def __init__(self, *, planned: int, found: int, examples: tuple[str, ...] = ()) -> None:
        self.planned = planned
        self.found = found
        self.examples = examples
        some = f", for instance {', '.join(examples)}" if examples else ""
        super().__init__(
            f"{planned - found} of {planned} planned trials have no outcome{some}; "
            "run the evaluation again: what is done is kept and only the rest is run"
        )


def _short(value: object) -> str:
    # Cut after that: half of a secret is not known for one.
    text = redact(repr(value))
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 1]}…"


class TelemetryUnavailable(DspexError):
    """Spans are asked for, and what sends them is not installed."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(
            f"DSPEX_OTEL is on, but OpenTelemetry cannot be imported ({reason}); "
            "install it with `pip install 'dspex-pipelines[otel]'`, or unset DSPEX_OTEL"
        )
