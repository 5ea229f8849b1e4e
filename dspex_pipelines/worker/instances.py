"""Loaded programs and metrics, and program instances: one per (program version, configuration)."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dspex_pipelines.engine.calls.trial_calls import TrialCalls
from dspex_pipelines.engine.compiled import runs_other_code
from dspex_pipelines.engine.program_versions import (
    DECLARED,
    imported_packages,
    is_version_here,
    metric_version,
    other_environment,
    project_modules,
)
from dspex_pipelines.engine.programs import (
    ProgramKind,
    ProgramShape,
    inspect_program,
    resolve,
    spare_parameters,
    takes_trace,
)
from dspex_pipelines.errors import ProgramUnavailable
from dspex_pipelines.model.payload import digest
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec

MOST_INSTANCES = 64
_DSPY = "dspy"
_SETTINGS = "dspex_pipelines.worker.dspy_settings"
_TRIALS = "dspex_pipelines.worker.dspy_trials"
"""Imported by name once a program needs them: DSPy takes seconds to import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedProgram:
    """A program of exactly the version that was asked for, with its metrics."""

    spec: ProgramSpec
    shape: ProgramShape
    metrics: tuple[tuple[MetricSpec, Callable[..., Any]], ...]
    sources: Mapping[str, bytes]
    """File to digest, of every module of the project that was checked."""
    convention: Convention | None = None
    """None for a program that is just called."""


class Convention(Protocol):
    """How a library has its programs called, and what its metrics are given."""

    def build(self, spec: ProgramSpec, shape: ProgramShape, configuration: Configuration) -> Any:
        """Return an instance of a program that the library has a way of its own to build."""
        ...

    def around(self, calls: TrialCalls, instance: Any) -> AbstractContextManager[None]:
        """Hold while one trial's program, which is *instance*, and its metrics run."""
        ...

    def outputs(self, stored: Any) -> Any:
        """Return outputs that were stored as the program had returned them."""
        ...

    def judge(self, metric: Callable[..., Any], example: Example, outputs: Any) -> Any:
        """Return what a metric says of the outputs."""
        ...


class Loader(Protocol):
    """Where an executor gets its programs from."""

    def loaded(
        self, spec: ProgramSpec, metrics: tuple[MetricSpec, ...], inputs: tuple[str, ...], variables: tuple[str, ...]
    ) -> LoadedProgram | None:
        """Return what `load` has returned before and would return again; None where it has to look."""
        ...

    def load(
        self, spec: ProgramSpec, metrics: tuple[MetricSpec, ...], inputs: tuple[str, ...], variables: tuple[str, ...]
    ) -> LoadedProgram:
        """Return the program; raises `ProgramUnavailable` when its source is of another version."""
        ...


class ProgramLoader:
    """Imports programs and checks that what is on disk is the version that was asked for.

    After an edit the project's modules are imported anew; instances of the older version keep theirs.
    """

    def __init__(self) -> None:
        self._loaded: dict[tuple[Any, ...], LoadedProgram] = {}
        self._sources: dict[str, bytes] = {}
        """Module to the digest of the source that it was imported from."""
        self._beyond: dict[str, str] = {}
        """Entry point to what its version said besides that source."""
        self._lock = threading.Lock()

    def load(
        self, spec: ProgramSpec, metrics: tuple[MetricSpec, ...], inputs: tuple[str, ...], variables: tuple[str, ...]
    ) -> LoadedProgram:
        """Return the program; raises `ProgramUnavailable` when its source is of another version."""
        with self._lock:
            loaded = self.loaded(spec, metrics, inputs, variables)
            if loaded is None:
                sources = self._renew(spec, *metrics)
                _check(spec, metrics)
                loaded = _loaded(spec, metrics, inputs, variables, sources)
                # What was imported is what was checked, unless it was edited in between.
                _check(spec, metrics)
                self._loaded[spec.digest, metrics, inputs, variables] = loaded
            return loaded

    def loaded(
        self, spec: ProgramSpec, metrics: tuple[MetricSpec, ...], inputs: tuple[str, ...], variables: tuple[str, ...]
    ) -> LoadedProgram | None:
        """Return a program that has been loaded."""
        return self._loaded.get((spec.digest, metrics, inputs, variables))

    def _renew(self, *wanted: ProgramSpec | MetricSpec) -> Mapping[str, bytes]:
        """Forget the project's modules when any of them was imported from another source than is there now.

        Return file to digest of what is there now.
        """
        importlib.invalidate_caches()
        paths: dict[str, Path] = {}
        for spec in wanted:
            paths.update(project_modules(spec.entry_point))
        sources = {name: digest(path.read_bytes()) for name, path in paths.items()}
        beyond = {spec.entry_point: _beyond_source(spec.version) for spec in wanted}
        edited = [name for name, source in sources.items() if self._sources.get(name, source) != source]
        # Whoever has declared the evaluation in this process may have imported some of it before there was a check.
        other = any(runs_other_code(name) for name in sources if name not in self._sources and not _is_ours(name))
        if edited or other or any(self._beyond.get(name, said) != said for name, said in beyond.items()):
            # All of them: one that stayed would keep the parts of an edited one that it has imported.
            for name in {*self._sources, *sources}:
                if not _is_ours(name):
                    sys.modules.pop(name, None)
            self._sources.clear()
        for name in edited:
            # Of what is installed, Python takes compiled code for that of a source of the same size and second.
            Path(importlib.util.cache_from_source(str(paths[name]))).unlink(missing_ok=True)
        self._sources.update(sources)
        self._beyond.update(beyond)
        return {str(paths[name]): source for name, source in sources.items()}


class VouchedLoader:
    """Imports what a worker has checked, whose files were *sources*: reading them again is all there is to do.

    Working out the version anew would cost an isolated trial more than everything else.
    """

    def __init__(self, sources: Mapping[str, bytes], *, has_convention: bool) -> None:
        self._sources = sources
        self._has_convention = has_convention

    def loaded(
        self, spec: ProgramSpec, metrics: tuple[MetricSpec, ...], inputs: tuple[str, ...], variables: tuple[str, ...]
    ) -> LoadedProgram | None:
        """Return None: an isolated trial's process loads its program once, and ends."""
        del spec, metrics, inputs, variables

    def load(
        self, spec: ProgramSpec, metrics: tuple[MetricSpec, ...], inputs: tuple[str, ...], variables: tuple[str, ...]
    ) -> LoadedProgram:
        """Return the program; raises `ProgramUnavailable` when its source is of another version by now."""
        loaded = _loaded(spec, metrics, inputs, variables, self._sources, has_convention=self._has_convention)
        try:
            edited = any(digest(Path(file).read_bytes()) != source for file, source in self._sources.items())
        except OSError:
            edited = True
        if edited:
            _check(spec, metrics)
        return loaded


def _loaded(
    spec: ProgramSpec,
    metrics: tuple[MetricSpec, ...],
    inputs: tuple[str, ...],
    variables: tuple[str, ...],
    sources: Mapping[str, bytes],
    *,
    has_convention: bool | None = None,
) -> LoadedProgram:
    """Return the program; *has_convention* is known where a worker has found out, by reading all that it imports."""
    before = set(sys.modules)
    if _DSPY in before:
        importlib.import_module(_SETTINGS).CONFIGURED.before()
    shape = inspect_program(spec.entry_point, spec.init, inputs=inputs, variables=variables)
    judges = [resolve(metric.entry_point) for metric in metrics]
    convention = None
    entry_points = [spec.entry_point, *(metric.entry_point for metric in metrics)]
    if has_convention is None:
        has_convention = shape.kind is ProgramKind.DSPY_MODULE or _is_for_dspy(entry_points, judges)
    if has_convention:
        importlib.import_module(_SETTINGS).CONFIGURED.after(set(sys.modules) - before)
        reached = {name for entry_point in entry_points for name in project_modules(entry_point)}
        convention = importlib.import_module(_TRIALS).DspyConvention(shape, modules=reached)
    return LoadedProgram(
        spec=spec,
        shape=shape,
        metrics=tuple(zip(metrics, map(_without_spare, judges), strict=True)),
        sources=sources,
        convention=convention,
    )


def _is_for_dspy(entry_points: Sequence[str], judges: Sequence[Callable[..., Any]]) -> bool:
    """Return whether a program that is no module may call DSPy's models, or is judged as DSPy's programs are."""
    if any(_DSPY in imported_packages(entry_point) for entry_point in entry_points):
        return True
    return any(map(takes_trace, judges)) and importlib.util.find_spec(_DSPY) is not None


def _without_spare(metric: Callable[..., Any]) -> Callable[..., Any]:
    spare = spare_parameters(metric)
    return functools.partial(metric, **dict.fromkeys(spare)) if spare else metric


def _check(spec: ProgramSpec, metrics: tuple[MetricSpec, ...]) -> None:
    if not is_version_here(spec):
        raise ProgramUnavailable(
            entry_point=spec.entry_point,
            reason=(
                f"its source here is not version {spec.version[:12]} that the trial asks for; "
                "it was edited since the run was planned, so run the evaluation again; or this pool was started in "
                "another folder, so start one in the program's, or leave the address out"
            ),
        )
    if names := other_environment(spec):
        raise ProgramUnavailable(
            entry_point=spec.entry_point,
            reason=f"the environment here says otherwise of {', '.join(names)} than the one the run was planned in; "
            "give the pool's workers the same, or evaluate in theirs",
        )
    for metric in metrics:
        if (found := metric_version(metric.entry_point)) != metric.version:
            raise ProgramUnavailable(
                entry_point=metric.entry_point,
                reason=f"the metric's source here is version {found[:12]}, not {metric.version[:12]}; "
                "it was edited since the run was planned, so run the evaluation again",
            )


def _is_ours(module: str) -> bool:
    """Return whether a module is the package's own, which is never imported anew."""
    return module.split(".", maxsplit=1)[0] in ("dspex", "dspex_pipelines")


def _beyond_source(version: str) -> str:
    """Return what a version says of declared files, or that it is the user's word."""
    return version if version.startswith(DECLARED) else version.partition(".")[2]


class Instances:
    """Built once for a (program version, configuration), however many ask; the least used go first."""

    def __init__(self) -> None:
        self._built: OrderedDict[tuple[bytes, bytes], Future[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def there(self, program: LoadedProgram, configuration: Configuration) -> Any:
        """Return the instance where nothing has to be built for that; None elsewhere."""
        if program.shape.kind is ProgramKind.FUNCTION:
            return program.shape.target
        key = _key(program, configuration)
        with self._lock:
            future = self._built.get(key)
            if future is not None:
                self._built.move_to_end(key)
        return future.result() if future is not None and future.done() and future.exception() is None else None

    def get(self, program: LoadedProgram, configuration: Configuration) -> Any:
        """Return the instance; what its building raises, every asker gets, and the next one tries again."""
        if program.shape.kind is ProgramKind.FUNCTION:
            return program.shape.target
        key = _key(program, configuration)
        with self._lock:
            future = self._built.get(key)
            builds = future is None
            if future is None:
                future = self._built[key] = Future()
                while len(self._built) > MOST_INSTANCES:
                    self._built.popitem(last=False)
            else:
                self._built.move_to_end(key)
        if builds:
            try:
                future.set_result(_called(program, _build(program, configuration)))
            except BaseException as error:  # noqa: BLE001 - every asker gets it
                future.set_exception(error)
                with self._lock:
                    if self._built.get(key) is future:
                        del self._built[key]
        return future.result()


def _key(program: LoadedProgram, configuration: Configuration) -> tuple[bytes, bytes]:
    return program.spec.digest, configuration.digest if program.shape.configured else b""


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
            assert program.convention is not None
            return program.convention.build(program.spec, shape, configuration)
        case _:
            return shape.target(**init)


def _called(program: LoadedProgram, instance: Any) -> Any:
    """Return what a trial calls: DSPy runs `aforward` by `acall` alone."""
    is_module = program.shape.kind is ProgramKind.DSPY_MODULE
    later = is_module and hasattr(instance, "aforward") and (program.shape.is_async or not hasattr(instance, "forward"))
    return instance.acall if later else instance
