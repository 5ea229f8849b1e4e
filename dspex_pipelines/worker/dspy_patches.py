"""What is changed in DSPy itself: calls of language models are a trial's, and hop to no thread for nothing.

Where a release of DSPy has one of these places no more, that is left as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, cast

import dspy
from dspy.clients import base_lm, capabilities, execution
from dspy.clients.engines import lm15_engine

from dspex_pipelines.worker.dspy_models import (
    KEYS_ARE_GUARDED,
    MOST_HISTORY,
    TIMEOUT,
    OurTimeout,
    models_for_call,
    trial_models,
)
from dspex_pipelines.worker.hops import is_quick

_DECIDES = "_forward_preprocess"


def manage_models() -> None:
    """Have whatever calls a language model in a trial call the trial's own; once is enough."""
    if hasattr(base_lm.BaseLM, "_dspex_unmanaged"):
        return
    call, acall = base_lm.BaseLM.__call__, base_lm.BaseLM.acall

    # Programs also call models by themselves, and models that they have just made.
    @functools.wraps(call)
    def managed_call(self: Any, *args: Any, **kwargs: Any) -> Any:
        models = models_for_call()
        return call(self, *args, **kwargs) if models is None else models.of(self)(*args, **kwargs)

    @functools.wraps(acall)
    async def managed_acall(self: Any, *args: Any, **kwargs: Any) -> Any:
        models = models_for_call()
        if models is None:
            return await acall(self, *args, **kwargs)
        return await models.of(self).acall(*args, **kwargs)

    changed: Any = base_lm.BaseLM
    changed.__call__, changed.acall, changed._dspex_unmanaged = managed_call, managed_acall, call  # noqa: SLF001
    base_lm.MAX_HISTORY_SIZE = MOST_HISTORY

    # Here a predictor decides on its model, wherever it has it from: for those that have a `__call__` of their own.
    decide = getattr(dspy.Predict, _DECIDES, None)
    if decide is not None:

        @functools.wraps(decide)
        def managed_decide(self: Any, **kwargs: Any) -> Any:
            model, *others = decide(self, **kwargs)
            models = trial_models()
            if models is not None and isinstance(model, dspy.BaseLM):
                model = models.of(model)
            return (model, *others)

        setattr(dspy.Predict, _DECIDES, managed_decide)
    if KEYS_ARE_GUARDED:
        key = execution.PreparedCall.key

        @functools.wraps(key)
        def key_without_ours(self: Any, lm: Any, asynchronous: Any) -> dict[str, Any]:
            made = key(self, lm, asynchronous)
            if type(made.get(TIMEOUT)) is OurTimeout:
                del made[TIMEOUT]
            return made

        execution.PreparedCall.key = key_without_ours
    _hop_no_more()


def _hop_no_more() -> None:
    """Say what of DSPy's hops to threads takes no time: of a model that has been called before, what only computes."""

    def of_text(model: Any, prompt: Any, messages: Any, *_: Any) -> str | None:
        # Anything else may be read from a file.
        return model.model if _is_text(messages or prompt) else None

    def of_model(model: Any, *_: Any) -> str:
        return model.model

    def of_engine(engine: Any, request: Any, *_: Any) -> tuple[Any, str]:
        return engine, request.model

    owners = {execution: {"prepare": of_text, "_price_legacy": of_model, "_price_result": of_model}}
    owners |= {lm15_engine.AsyncLM15Engine: {"_target": of_engine}, capabilities: {"capabilities": of_model}}
    for owner, functions in owners.items():
        for name, key in functions.items():
            # They are DSPy's own business, and may be called otherwise one day.
            if (function := getattr(owner, name, None)) is not None:
                is_quick(function, key)


def _is_text(asked: Any) -> bool:
    if isinstance(asked, list | tuple):
        return all(_is_text(one) for one in cast("list[Any]", asked))
    if isinstance(asked, Mapping):
        return isinstance(cast("Mapping[str, Any]", asked).get("content"), str)
    return isinstance(asked, str)
