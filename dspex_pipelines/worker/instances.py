"""Loaded programs and metrics, and program instances: one per (program version, configuration)."""

from __future__ import annotations

import copy
import importlib
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from dspex_pipelines.engine.programs import (
    ProgramKind,
    ProgramShape,
    inspect_program,
    is_version_here,
    metric_version,
    project_modules,
    resolve,
)
from dspex_pipelines.errors import ProgramUnavailable
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import MetricSpec, ProgramSpec

MOST_INSTANCES = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedProgram:
    """A program of exactly the version that was asked for, with its metrics."""

    spec: ProgramSpec
    shape: ProgramShape
    metrics: tuple[tuple[MetricSpec, Callable[..., Any]], ...]


class ProgramLoader:
    """Imports programs and checks that what is on disk is the version that was asked for.

    After an edit the project's modules are imported anew; instances of the older version keep theirs.
    """

    def __init__(self) -> None:
        self._loaded: dict[tuple[Any, ...], LoadedProgram] = {}
        self._imported: dict[str, str] = {}
        """Entry point to the version its modules were imported at."""
        self._lock = threading.Lock()

    def load(
        self, spec: ProgramSpec, metrics: tuple[MetricSpec, ...], inputs: tuple[str, ...], variables: tuple[str, ...]
    ) -> LoadedProgram:
        """Return the program; raises `ProgramUnavailable` when its source is of another version."""
        key = (spec.digest, metrics, inputs, variables)
        loaded = self._loaded.get(key)
        if loaded is not None:
            return loaded
        with self._lock:
            loaded = self._loaded.get(key)
            if loaded is None:
                self._refresh(spec)
                for metric in metrics:
                    self._check_metric(metric)
                loaded = self._loaded[key] = LoadedProgram(
                    spec=spec,
                    shape=inspect_program(spec.entry_point, spec.init, inputs=inputs, variables=variables),
                    metrics=tuple((metric, resolve(metric.entry_point)) for metric in metrics),
                )
            return loaded

    def _refresh(self, spec: ProgramSpec) -> None:
        importlib.invalidate_caches()
        self._renew(spec.entry_point, spec.version)
        if not is_version_here(spec):
            raise ProgramUnavailable(
                entry_point=spec.entry_point,
                reason=(
                    f"its source here is not version {spec.version[:12]} that the trial asks for; "
                    "it was edited since the run was planned, so run the evaluation again"
                ),
            )

    def _check_metric(self, metric: MetricSpec) -> None:
        self._renew(metric.entry_point, metric.version)
        if (found := metric_version(metric.entry_point)) != metric.version:
            raise ProgramUnavailable(
                entry_point=metric.entry_point,
                reason=f"the metric's source here is version {found[:12]}, not {metric.version[:12]}; "
                "it was edited since the run was planned, so run the evaluation again",
            )

    def _renew(self, entry_point: str, version: str) -> None:
        """Import the project anew when it was imported at another version."""
        if self._imported.get(entry_point, version) != version:
            for name in project_modules(entry_point):
                if name.split(".")[0] not in ("dspex", "dspex_pipelines"):
                    sys.modules.pop(name, None)
        self._imported[entry_point] = version


class Instances:
    """Built once for a (program version, configuration), however many ask; the least used go first."""

    def __init__(self, most: int = MOST_INSTANCES) -> None:
        self._most = most
        self._built: OrderedDict[tuple[bytes, bytes], Future[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, program: LoadedProgram, configuration: Configuration) -> Any:
        """Return the instance; what its building raises, every asker gets, and the next one tries again."""
        shape = program.shape
        if shape.kind is ProgramKind.FUNCTION:
            return shape.target
        key = (program.spec.digest, configuration.digest if shape.configured else b"")
        with self._lock:
            future = self._built.get(key)
            builds = future is None
            if future is None:
                future = self._built[key] = Future()
                while len(self._built) > self._most:
                    self._built.popitem(last=False)
            else:
                self._built.move_to_end(key)
        if builds:
            try:
                future.set_result(_build(program, configuration))
            except BaseException as error:  # noqa: BLE001 - every asker gets it
                future.set_exception(error)
                with self._lock:
                    if self._built.get(key) is future:
                        del self._built[key]
        return future.result()


def _build(program: LoadedProgram, configuration: Configuration) -> Any:
    shape, init = program.shape, program.spec.init
    match shape.kind:
        case ProgramKind.CLASS_CONFIGURED:
            return shape.target(**{**init, **configuration.values})
        case ProgramKind.CLASS_CONFIGURE:
            instance = shape.target(**init)
            instance.configure(dict(configuration.values))
            return instance
        case ProgramKind.DSPY_MODULE:
            return _configured_module(shape.target(**init), configuration)
        case _:
            return shape.target(**init)


def _configured_module(module: Any, configuration: Configuration) -> Any:
    """Return the DSPy module with a language model of its own that has the variables as its settings."""
    if not configuration.values:
        return module
    settings: Any = importlib.import_module("dspy").settings
    model = module.get_lm() if _own_models(module) else settings.lm
    if model is None:
        names = ", ".join(configuration.values)
        raise ValueError(
            f"the variables {names} set up a language model, but the module has none: set one in its "
            "constructor with set_lm, or give the module a configure(variables) method"
        )
    mine = copy.copy(model)
    mine.kwargs = {**model.kwargs, **{n: v for n, v in configuration.values.items() if n != "model"}}
    if "model" in configuration.values:
        mine.model = configuration.values["model"]
    mine.history = []
    module.set_lm(mine)
    return module


def _own_models(module: Any) -> bool:
    return any(getattr(predictor, "lm", None) is not None for predictor in module.predictors())
