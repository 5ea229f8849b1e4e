"""What the planning step tells the others: a plan for each partition of the run, and what holds for all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dspex_pipelines.model.plan import Plan

_SHARED, _OWN, _REST = "plan", "partitions", "run"


class Manifest:
    """A run's plans, and *rest*; what the plans have in common is kept once."""

    def __init__(self, text: str) -> None:
        document = json.loads(text)
        self.rest: Mapping[str, Any] = document[_REST]
        self._shared: Mapping[str, Any] = document[_SHARED]
        self._own: Sequence[Mapping[str, Any]] = document[_OWN]

    @staticmethod
    def text_of(plans: Sequence[Plan], rest: Mapping[str, Any]) -> str:
        """Return the text of a manifest of *plans*, of which there is at least one, in their order."""
        documents: list[dict[str, Any]] = [json.loads(plan.to_json()) for plan in plans]
        first = documents[0]
        own = [{name: value for name, value in one.items() if value != first[name]} for one in documents]
        return json.dumps({_SHARED: first, _OWN: own, _REST: rest})

    def __len__(self) -> int:
        return len(self._own)

    def plan(self, number: int) -> Plan:
        """Return the plan of that number, from 0."""
        return Plan.from_json(json.dumps({**self._shared, **self._own[number]}))
