"""DSPy's settings, which are one for the whole process: what a program sets for itself, kept to itself.

Programs call `dspy.configure` at the top of their files, and in constructors. Both hold for that program alone, however
many others the worker runs, and in whatever thread it was loaded; inside a trial it is refused.

This imports dspy, so it is itself imported only once a program needs it.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import dspy
from dspy.dsp.utils.settings import DEFAULT_CONFIG, Settings, main_thread_config, thread_local_overrides

TRIAL = "dspex_trial"
"""Setting that has what the trial that runs keeps; it reaches the threads that DSPy starts."""
BUILDING = "dspex_building"
"""Setting that has what a module configures while it is built."""
_CALLED_FIRST = "_ensure_configure_allowed"


class OutOfPlace(RuntimeError):
    """`dspy.configure` was called while a trial ran."""


class Configured:
    """What each program has configured by being imported, told apart by the modules that were imported with it."""

    def __init__(self) -> None:
        self._around: dict[str, Any] = {}
        """Set by nobody's import: it holds for all."""
        self._seen: dict[str, Any] = dict(DEFAULT_CONFIG)
        self._loads: list[tuple[frozenset[str], dict[str, Any]]] = []

    def before(self) -> None:
        """A program is going to be loaded."""
        self._around.update(self._news())

    def after(self, imported: Collection[str]) -> None:
        """It has been, and these modules for the first time, or anew."""
        again = frozenset(imported)
        self._loads = [(modules, set_) for modules, set_ in self._loads if not modules & again]
        if news := self._news():
            self._loads.append((again, news))

    def of(self, modules: Collection[str]) -> dict[str, Any]:
        """Return all settings of a program that reaches these modules."""
        settings = {**DEFAULT_CONFIG, **self._around}
        for imported, news in self._loads:
            if not imported.isdisjoint(modules):
                settings.update(news)
        return settings

    def _news(self) -> dict[str, Any]:
        now: Mapping[str, Any] = main_thread_config
        news = {
            name: value for name, value in now.items() if name not in self._seen or _differs(value, self._seen[name])
        }
        self._seen = dict(now)
        return news


CONFIGURED = Configured()


def _differs(value: Any, before: Any) -> bool:
    """Return whether it is another; DSPy's defaults are copies of one another."""
    if value is before:
        return False
    return not (isinstance(value, list | bool | int) and type(value) is type(before) and value == before)


@contextmanager
def building(settings: Mapping[str, Any]) -> Generator[dict[str, Any]]:
    """Hold while a module is built under *settings*; what it configures is in what this yields, and nowhere else."""
    configured: dict[str, Any] = {}
    with dspy.context(**{**settings, BUILDING: configured}):
        yield configured


def guard_configure() -> None:
    """Have `dspy.configure` keep to the program that calls it; once is enough."""
    # Every name that `configure` is known by calls this method first.
    setattr(Settings, _CALLED_FIRST, _ensure_configure_allowed)


def _ensure_configure_allowed(settings: Any) -> None:
    if settings.get(TRIAL) is not None:
        raise OutOfPlace(
            "dspy.configure was called inside a trial, where it would change the settings of other trials: call it at "
            "the top of the program's file or in the module's constructor, or use `with dspy.context(…):` here"
        )
    configured = settings.get(BUILDING)
    if configured is not None:
        # The caller's arguments, before it gets to write them where all programs would see them.
        frame = inspect.currentframe()
        assert frame is not None
        assert frame.f_back is not None
        arguments: dict[str, Any] = frame.f_back.f_locals.get("kwargs", {})
        configured.update(arguments)
        thread_local_overrides.get().update(arguments)
        arguments.clear()
