"""How DSPy programs are run and judged, trial by trial: settings, traces, examples and predictions.

This imports dspy, so it is itself imported only once a program, or a metric, needs it.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, cast

import dspy

from dspex_pipelines.engine.calls.trial_calls import TrialCalls
from dspex_pipelines.engine.programs import ProgramKind, ProgramShape, takes_trace
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, ProgramSpec
from dspex_pipelines.worker.dspy_models import MOST_HISTORY, TrialModels
from dspex_pipelines.worker.dspy_patches import manage_models
from dspex_pipelines.worker.dspy_programs import ByIdentity, build_module, configured_model, predictor_name
from dspex_pipelines.worker.dspy_settings import CONFIGURED, TRIAL, building, guard_configure

SCORE = "score"
_OWN = ("example_id", "group", "metadata")


class DspyConvention:
    """Runs a program in settings of its own, and judges it with metrics that are written for DSPy, or for us."""

    def __init__(self, shape: ProgramShape, *, modules: Collection[str]) -> None:
        guard_configure()
        manage_models()
        self._is_module = shape.kind is ProgramKind.DSPY_MODULE
        self._settings = _bounded(CONFIGURED.of(modules))
        self._of = ByIdentity()
        """Instance to what it has configured besides, and to the default model with its variables."""

        self._styles: dict[int, _Style] = {}
        """By the identity of a metric, which its program keeps."""

    def build(self, spec: ProgramSpec, shape: ProgramShape, configuration: Configuration) -> Any:
        """Return the module, built under its program's settings."""
        with building(self._settings) as configured:
            module = build_module(shape, spec.init, configuration.values, entry_point=spec.entry_point)
        settings = _bounded({**self._settings, **configured})
        self._of[module] = {**settings, "lm": configured_model(module) or settings["lm"]}
        return module

    @contextmanager
    def around(self, calls: TrialCalls, instance: Any) -> Generator[None]:
        """Hold while one trial's program and metrics run; then its steps are known."""
        settings = self._settings
        if self._is_module:
            settings = self._of.get(getattr(instance, "__self__", instance), settings)
        models, trace = TrialModels(calls), list[Any]()
        model = settings["lm"]
        own = models.of(model) if isinstance(model, dspy.BaseLM) else model
        try:
            with dspy.context(**{**settings, "lm": own, "trace": trace, TRIAL: models}):
                yield
        finally:
            if trace:
                calls.steps = [_step(*one) for one in trace]

    def outputs(self, stored: Any) -> Any:
        """Return a prediction that was stored as one again."""
        return _prediction(stored) if self._is_module else stored

    def judge(self, metric: Callable[..., Any], example: Example, outputs: Any) -> Any:
        """Return what a metric says of the outputs: of a prediction that it returns, its `score`."""
        style = self._styles.get(id(metric))
        if style is None:
            style = self._styles[id(metric)] = _style(metric)
        shown: Any = example
        if self._is_module or style.is_dspys:
            shown = SharedExample(example)
        if style.is_dspys:
            outputs = _prediction(outputs)
        if style.calls_models and _in_loop():
            # Neighbours wait for nobody else's judge.
            return _scored_later(asyncio.to_thread(metric, shown, outputs))
        value = metric(shown, outputs)
        return _scored_later(value) if inspect.isawaitable(value) else _scored(value)


def _bounded(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {**settings, "max_history_size": min(settings["max_history_size"], MOST_HISTORY)}


def _step(predictor: Any, inputs: Mapping[str, Any], outputs: Any) -> dict[str, Any]:
    return {"predictor": predictor_name(predictor), "inputs": inputs, "outputs": outputs}


def _prediction(outputs: Any) -> Any:
    if isinstance(outputs, Mapping) and all(isinstance(name, str) for name in cast("Mapping[Any, Any]", outputs)):
        # Not by name: an output may be called as a parameter of the constructor is.
        return dspy.Prediction(dict(cast("Mapping[str, Any]", outputs)))
    return outputs


# ---------------------------------------------------------------------------- metrics


class _Style(NamedTuple):
    """What a metric is written for."""

    is_dspys: bool
    calls_models: bool
    """Whether it is known to, and would keep a loop from going on."""


def _style(metric: Callable[..., Any]) -> _Style:
    function: Any = metric.func if isinstance(metric, functools.partial) else metric
    is_module = isinstance(function, dspy.Module)
    plain: Any = inspect.unwrap(function)
    from_dspy = is_module or str(getattr(plain, "__module__", "")).partition(".")[0] == "dspy"
    code, names = getattr(plain, "__code__", None), getattr(plain, "__globals__", {})
    used = [names.get(name) for name in code.co_names] if code is not None else []
    asks = is_module or any(isinstance(one, dspy.Module | dspy.BaseLM) for one in used)
    return _Style(from_dspy or takes_trace(function), asks and not inspect.iscoroutinefunction(plain))


def _in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _scored(value: Any) -> Any:
    return value[SCORE] if isinstance(value, dspy.Prediction) and SCORE in value else value


async def _scored_later(value: Any) -> Any:
    return _scored(await value)


# ---------------------------------------------------------------------------- examples


class _Fields(Mapping[str, Any]):
    """An example's inputs or labels: a map, as our metrics take them, that can be called, as DSPy's do."""

    __slots__ = ("_make", "_values")

    def __init__(self, values: Mapping[str, Any], make: Callable[[], Any]) -> None:
        self._values = values
        self._make = make

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(dict(self._values))

    def __call__(self) -> Any:
        """Return them as DSPy's methods of these names do."""
        return self._make()


class SharedExample(dspy.Example):
    """A `dspy.Example` that metrics written for our `Example` can read too."""

    def __init__(self, base: Any = None, **kwargs: Any) -> None:
        if isinstance(base, Example):
            # An input is what the program saw; a label of the same name is in `labels`.
            super().__init__({**base.labels, **base.inputs, **kwargs})
            self._input_keys: Any = set(base.inputs)
            self._ours: Example | None = base
        else:
            super().__init__(base, **kwargs)
            self._ours = base._ours if isinstance(base, SharedExample) else None  # noqa: SLF001 - a copy

    def __getattr__(self, key: str) -> Any:
        if key in _OWN and key not in self._store and self._ours is not None:
            return getattr(self._ours, key)
        return super().__getattr__(key)

    @property
    def inputs(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride] - can be called all the same
        """The inputs: ``example.inputs["q"]`` as well as ``example.inputs()``."""
        return _Fields(self._part(inputs=True), lambda: dspy.Example(self._split().inputs()).with_inputs(*self._keys))

    @property
    def labels(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The labels: ``example.labels["a"]`` as well as ``example.labels()``."""
        return _Fields(self._part(inputs=False), lambda: self._split().labels())

    @property
    def _keys(self) -> set[str]:
        return set(self._input_keys or ())

    def _split(self) -> Any:
        """Return it as DSPy has it."""
        plain = dspy.Example(dict(self._store))
        return plain if self._input_keys is None else plain.with_inputs(*self._keys)

    def _part(self, *, inputs: bool) -> Mapping[str, Any]:
        if not inputs and self._ours is not None:
            return {**self._ours.labels, **{n: self._store[n] for n in self._store if n not in self._keys}}
        return {name: value for name, value in self._store.items() if (name in self._keys) is inputs}
