"""Evaluate and optimise language-model programs at scale, inside Dagster.

What a declaration needs is exported here and loaded when first asked for, so importing the package is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dspex_pipelines.engine.calls.calling import call_model, call_model_async, report_usage
    from dspex_pipelines.model.automation import Automation
    from dspex_pipelines.model.budget import Budget
    from dspex_pipelines.model.calls import Price
    from dspex_pipelines.model.checks import Coverage, FailureRate, NoRegression, ScoreFloor
    from dspex_pipelines.model.evaluation import Dataset, Evaluation, Upstream
    from dspex_pipelines.model.hedging import Hedging
    from dspex_pipelines.model.limits import RateLimit
    from dspex_pipelines.model.partitions import Dates, Dynamic
    from dspex_pipelines.model.search import Search
    from dspex_pipelines.model.space import AtMost, Configuration, ConfigurationSpace, Implies, Ordered
    from dspex_pipelines.model.trial import Example
    from dspex_pipelines.model.variables import Boolean, Choice, Float, Integer, Module, Text
    from dspex_pipelines.orchestration.build import build_evaluation
    from dspex_pipelines.orchestration.component.component import EvaluationComponent

__version__ = "0.1.0"

_HOMES = {
    "AtMost": "model.space",
    "Automation": "model.automation",
    "Boolean": "model.variables",
    "Budget": "model.budget",
    "Choice": "model.variables",
    "Configuration": "model.space",
    "ConfigurationSpace": "model.space",
    "Coverage": "model.checks",
    "Dataset": "model.evaluation",
    "Dates": "model.partitions",
    "Dynamic": "model.partitions",
    "Evaluation": "model.evaluation",
    "EvaluationComponent": "orchestration.component.component",
    "Example": "model.trial",
    "FailureRate": "model.checks",
    "Float": "model.variables",
    "Hedging": "model.hedging",
    "Implies": "model.space",
    "Integer": "model.variables",
    "Module": "model.variables",
    "NoRegression": "model.checks",
    "Ordered": "model.space",
    "Price": "model.calls",
    "RateLimit": "model.limits",
    "ScoreFloor": "model.checks",
    "Search": "model.search",
    "Text": "model.variables",
    "Upstream": "model.evaluation",
    "build_evaluation": "orchestration.build",
    "call_model": "engine.calls.calling",
    "call_model_async": "engine.calls.calling",
    "report_usage": "engine.calls.calling",
}

__all__ = [
    "AtMost",
    "Automation",
    "Boolean",
    "Budget",
    "Choice",
    "Configuration",
    "ConfigurationSpace",
    "Coverage",
    "Dataset",
    "Dates",
    "Dynamic",
    "Evaluation",
    "EvaluationComponent",
    "Example",
    "FailureRate",
    "Float",
    "Hedging",
    "Implies",
    "Integer",
    "Module",
    "NoRegression",
    "Ordered",
    "Price",
    "RateLimit",
    "ScoreFloor",
    "Search",
    "Text",
    "Upstream",
    "build_evaluation",
    "call_model",
    "call_model_async",
    "report_usage",
]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    msg = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(msg)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
