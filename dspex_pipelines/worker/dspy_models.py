"""A DSPy program's language models, trial by trial: each call has leave, is counted, and leaves nothing behind.

A trial uses copies of the models that its predictors have, made when they are first called. What a program writes to a
copy's settings or history is gone with the trial. Outside trials all of this does nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import threading
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any, cast
from urllib.parse import urlsplit
from weakref import WeakSet

import dspy
from dspy.clients import backend_selection, execution
from dspy.clients._litellm import get_litellm
from dspy.utils.usage_tracker import UsageTracker

from dspex_pipelines.engine.calls.trial_calls import Call, TrialCalls, running_trial
from dspex_pipelines.engine.calls.used import Used, used_of
from dspex_pipelines.redaction import is_secret_field, is_secret_setting, learn
from dspex_pipelines.worker.dspy_settings import BUILDING, TRIAL

MOST_HISTORY = 20
"""Entries of a history in a worker: it is looked at by the program that runs, and else only grows."""
_ROLLOUT = "rollout_id"
TIMEOUT = "timeout"
KEYS_ARE_GUARDED = hasattr(execution, "PreparedCall") and hasattr(execution.PreparedCall, "key")
"""Whether an answer's key in the cache can be had without a timeout of ours: DSPy has, or has not, where to do it."""
_OWNER = "_dspex_models"
_CHARACTERS_PER_TOKEN = 4
_DEPTH = 12
"""Of settings that are shown: they may lead back to themselves."""


class TrialModels:
    """The language models of one trial."""

    __slots__ = ("_copies", "_lock", "calls")

    def __init__(self, calls: TrialCalls) -> None:
        self.calls = calls
        self._copies: dict[int, tuple[Any, Any]] = {}
        """By the identity of a model, which is kept so that no other has it: the model and its copy."""
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: object) -> TrialModels:
        """Programs copy their modules, models included: they stay this trial's."""
        return self

    def owns(self, model: Any) -> bool:
        """Return whether a language model is a copy that this trial made."""
        owner = model.__dict__.get(_OWNER)
        return owner is not None and owner.calls is self.calls

    def of(self, model: Any) -> Any:
        """Return this trial's copy of a language model."""
        if self.owns(model):
            return model
        with self._lock:
            known = self._copies.get(id(model))
            if known is None:
                known = self._copies[id(model)] = (model, self._copy(model))
            return known[1]

    def _copy(self, model: Any) -> Any:
        mine = model.copy()
        mine.__class__ = _managed(type(mine))
        mine.__dict__[_OWNER] = self
        # The throttle is to see every refusal.
        mine.num_retries = 0
        # Repeats are told apart in the cache by it, at any temperature.
        mine._warned_zero_temp_rollout = True  # noqa: SLF001
        by_name = isinstance(model, dspy.LM) and isinstance(model.engine, str)
        if by_name and self.calls.timeout_s > 0 and mine.kwargs.get(TIMEOUT) is None and KEYS_ARE_GUARDED:
            # A call that hangs would keep its thread for ever.
            mine.kwargs[TIMEOUT] = OurTimeout(self.calls.timeout_s)
        if by_name:
            _import_litellm(model)
        return mine


_importing = threading.Lock()
_ready: WeakSet[Any] = WeakSet()
"""Models of which it is known what DSPy calls them by, and that it is there."""


def _import_litellm(model: Any) -> None:
    """Import LiteLLM in one piece where DSPy is going to call *model* by it.

    Threads that begin with different parts of it (one calls, one reads an answer out of the cache) wait for each other,
    until Python fails one of them for the deadlock.
    """
    if model in _ready:
        return
    # What cannot be imported, it says when it is called.
    with _importing, contextlib.suppress(Exception):
        if not backend_selection.select_backend(model).native:
            get_litellm(feature="dspy.LM")
    _ready.add(model)


class TrialOver(RuntimeError):
    """A trial that nobody waits for any more asks a model; its thread could not be stopped, and is to end."""


class OurTimeout(float):
    """A timeout that is not the user's, and so no part of what answers are kept under in DSPy's cache."""


class _Meter(UsageTracker):
    """What one call to a model used, told as well to the tracker that the program has."""

    def __init__(self, around: Any) -> None:
        super().__init__()
        self._around = around
        self.billed = False
        self.entry: Mapping[str, Any] | None = None
        self.keeps_history = True

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """Count a call that was made: what comes out of the cache is not told here."""
        self.billed = True
        super().add_usage(lm, usage_entry)
        if self._around:
            self._around.add_usage(lm, usage_entry)

    def used(self, *, answered: bool, may_be_cached: bool) -> Used | None:
        if self.billed:
            # A usage may be anything, and the answer is there all the same.
            with contextlib.suppress(Exception):
                total = next(iter(self.get_total_tokens().values()), {})
                return used_of(total, None if self.entry is None else self.entry["cost"])
            return Used()
        if answered:
            return Used(cached=may_be_cached and self.entry is not None)
        return None


_metering: ContextVar[_Meter | None] = ContextVar("metering", default=None)
"""Of the call that this coroutine or thread is in: a model that calls another makes one call."""


def trial_models() -> TrialModels | None:
    """Return the models of the trial that runs here; None outside a trial."""
    models = dspy.settings.get(TRIAL)
    # A thread that builds a module may have run a trial before.
    if models is None and (calls := running_trial()) is not None and BUILDING not in dspy.settings:
        models = TrialModels(calls)
    return models


@functools.lru_cache(maxsize=256)
def _managed(cls: type[Any]) -> type[Any]:
    """Return a subclass whose calls are a trial's; it goes by its parent's name, which saved programs have."""
    if _OWNER in cls.__dict__:
        return cls

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807 - the method of a class made here
        parent: Any = super(made, self)
        call_model = parent.__call__
        models = models_for_call()
        if models is None:
            return call_model(*args, **kwargs)
        if not models.owns(self):
            return models.of(self)(*args, **kwargs)
        asking = _Asking(self, models.calls, args, kwargs)

        def make(call: Call) -> Any:
            with asking.begun(call) as attempt, attempt.settings:
                attempt.outputs = call_model(*args, **asking.kwargs)
            return attempt.outputs

        return models.calls.call(asking.lane, make, tokens=asking.tokens)

    async def acall(self: Any, *args: Any, **kwargs: Any) -> Any:
        parent: Any = super(made, self)
        call_model = parent.acall
        models = models_for_call()
        if models is None:
            return await call_model(*args, **kwargs)
        if not models.owns(self):
            return await models.of(self).acall(*args, **kwargs)
        asking = _Asking(self, models.calls, args, kwargs)

        async def make(call: Call) -> Any:
            with asking.begun(call) as attempt, attempt.settings:
                attempt.outputs = await call_model(*args, **asking.kwargs)
            return attempt.outputs

        return await models.calls.acall(asking.lane, make, tokens=asking.tokens)

    def update_history(self: Any, entry: Mapping[str, Any]) -> None:
        meter = _metering.get()
        if meter is not None:
            meter.entry = entry
            if not meter.keeps_history:
                return
        if cls.update_history is not dspy.BaseLM.update_history:
            parent: Any = super(made, self)
            parent.update_history(entry)
        else:
            _record(self, entry)

    own = {"__call__": __call__, "acall": acall, "update_history": update_history, _OWNER: None}
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    made: type[Any] = type(cls.__name__, (cls,), {**own, **names})
    return made


def models_for_call() -> TrialModels | None:
    """Return the models of the trial that a call here is one of; None outside a trial, and within another call."""
    return trial_models() if _metering.get() is None else None


def _record(model: Any, entry: Mapping[str, Any]) -> None:
    """Do as DSPy does with an entry of a history, but for the one history that all trials of the worker would share."""
    most = min(dspy.settings.max_history_size, MOST_HISTORY)
    for owner in (model, *(dspy.settings.caller_modules or ())) if most > 0 else ():
        if len(owner.history) >= most:
            del owner.history[0 : len(owner.history) - most + 1]
        owner.history.append(entry)


# ---------------------------------------------------------------------------- one call


class _Asking:
    """What is asked of a model, in however many attempts."""

    __slots__ = ("_caches", "_calls", "_messages", "_settings", "kwargs", "lane", "tokens")

    def __init__(self, model: Any, calls: TrialCalls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._calls = calls
        set_ = {**model.kwargs, **kwargs}
        _learn_keys(set_)
        base = set_.get("api_base") or set_.get("base_url")
        self.lane = _lane(model.model, base if isinstance(base, str) else "")
        self._messages: Any = kwargs.get("messages") or (args[0] if args else kwargs.get("prompt"))
        self.tokens = _characters(self._messages) // _CHARACTERS_PER_TOKEN
        self._caches = _caches(model, kwargs)
        self._settings = set_
        self.kwargs = kwargs
        if self._caches:
            rollout = rollout_of(calls.seed, calls.attempt, set_.get(_ROLLOUT))
            if rollout is not None:
                self.kwargs = {**kwargs, _ROLLOUT: rollout}

    def begun(self, call: Call) -> _Attempt:
        """Return an attempt at it, which is written down in *call*; raises `TrialOver`."""
        if self._calls.timeout_s > 0 and self._calls.ran_s > self._calls.timeout_s:
            raise TrialOver(
                f"the trial has run for longer than its {self._calls.timeout_s:g} s; {call.model} is not asked"
            )
        call.asked = self._messages
        # What cannot be shown can be asked all the same.
        with contextlib.suppress(Exception):
            call.settings = shown_settings(self._settings)
        return _Attempt(call, may_be_cached=self._caches)


def _learn_keys(settings: Mapping[str, Any]) -> None:
    """Know what a model is asked with for secrets, wherever the program has it from."""
    headers = [settings.get(name) for name in ("headers", "extra_headers")]
    maps = [settings, *(cast("Mapping[str, Any]", one) for one in headers if isinstance(one, Mapping))]
    for one in maps:
        for name, value in one.items():
            if isinstance(value, str) and is_secret_field(str(name)):
                learn({str(name): value.rpartition(" ")[2]})


class _Attempt:
    """One attempt at a call: while it lasts, what it uses is metered."""

    __slots__ = ("_call", "_may_be_cached", "_meter", "_token", "outputs", "settings")

    def __init__(self, call: Call, *, may_be_cached: bool) -> None:
        self._call = call
        self._may_be_cached = may_be_cached
        self._meter = _Meter(dspy.settings.usage_tracker)
        self._meter.keeps_history = not dspy.settings.disable_history
        # The history has the cost.
        self.settings = dspy.context(usage_tracker=self._meter, disable_history=False)
        self.outputs: Any = None

    def __enter__(self) -> _Attempt:
        self._token = _metering.set(self._meter)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        _metering.reset(self._token)
        call, meter = self._call, self._meter
        call.used = meter.used(answered=kind is None, may_be_cached=self._may_be_cached)
        if meter.entry is not None:
            call.answered = meter.entry["outputs"]
            call.asked = meter.entry["messages"] or call.asked
        elif kind is None:
            call.answered = self.outputs


@functools.lru_cache(maxsize=1_024)
def _lane(model: str, base: str) -> str:
    """Return the name of what the throttle counts together: a model, and the endpoint where it has one of its own."""
    if not base:
        return model
    parts = urlsplit(base if "//" in base else f"//{base}")
    # Without user, password and query: they may be secrets.
    place = f"{parts.netloc.rpartition('@')[2]}{parts.path}"
    return f"{model}@{parts.scheme}://{place}" if parts.scheme else f"{model}@{place}"


def _characters(asked: Any) -> int:
    """Return how many characters of text a prompt, or messages, have; 0 where that cannot be told."""
    if isinstance(asked, str):
        return len(asked)
    if isinstance(asked, Mapping):
        message = cast("Mapping[str, Any]", asked)
        return _characters(message.get("content") or message.get("text"))
    if isinstance(asked, list | tuple):
        return sum(_characters(one) for one in cast("list[Any]", asked))
    return 0


def _caches(model: Any, kwargs: Mapping[str, Any]) -> bool:
    """Return whether DSPy looks the answer up in its cache, which it does for its own models alone."""
    own = hasattr(model, "_engine_spec") and getattr(model, "_cache_responses", True)
    return bool(own and kwargs.get("cache", model.cache))


def rollout_of(seed: int, attempt: int, theirs: Any) -> Any:
    """Return what tells a trial's answers apart in DSPy's cache: the same for one seed and attempt, and no other.

    The first attempt under seed 0 has *theirs*, which the program has set, or none: it shares the user's cache.
    """
    if seed == 0 and attempt <= 1:
        return theirs
    name = f"{seed}/{attempt}/{theirs if theirs is not None else ''}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big") >> 1


def shown_settings(settings: Mapping[str, Any], depth: int = _DEPTH) -> dict[str, Any]:
    """Return the settings of a call that may be kept: no keys, tokens or headers, however deep."""
    shown: dict[str, Any] = {}
    for name, value in settings.items():
        if value is None or name in ("messages", "prompt", "request") or is_secret_setting(str(name)):
            continue
        if name in ("api_base", "base_url"):
            shown[name] = _lane("", str(value)).removeprefix("@")
        else:
            shown[name] = _shown(value, depth - 1)
    return shown


def _shown(value: Any, depth: int) -> Any:
    if not isinstance(value, Mapping | list | tuple):
        return value
    if depth < 0:
        return "…"
    if isinstance(value, Mapping):
        return shown_settings(cast("Mapping[str, Any]", value), depth)
    return [_shown(one, depth - 1) for one in cast("list[Any]", value)]
