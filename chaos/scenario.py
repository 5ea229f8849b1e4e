"""What a campaign runs: three plans that follow from a seed, what each trial does, and what must come of it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from chaos import programs
from dspex_pipelines.analysis.results import data_version
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import encode
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.trial import Example, Isolation, MetricSpec, ProgramSpec, TrialSpec
from dspex_pipelines.model.variables import Integer

ROOT = Path(__file__).resolve().parent.parent
METRIC = "chaos.programs:share"
CONFIGURATIONS = 5
SPACE = ConfigurationSpace(
    variables=(Integer(name="k", low=1, high=CONFIGURATIONS, points=tuple(range(1, CONFIGURATIONS + 1))),)
)
FAILS: Mapping[str, ErrorType] = {
    **dict.fromkeys(("raises", "quits", "never recovers", "wanders"), ErrorType.PROGRAM_EXCEPTION),
    **dict.fromkeys(("metric raises", "infinite"), ErrorType.METRIC_EXCEPTION),
    **dict.fromkeys(("huge", "unserialisable"), ErrorType.SERIALIZATION),
    **dict.fromkeys(("sleeps", "spins", "holds computing", "holds waiting"), ErrorType.TIMEOUT_RUN),
    **dict.fromkeys(("kills", "segfaults", "exits", "closes descriptors"), ErrorType.POISON),
}
"""What becomes of a trial by what it does; whoever is not here succeeds."""
ATTEMPTS: Mapping[str, int] = {"never recovers": 3, "wanders": 5}
"""Attempts after which one that might have recovered is given up."""


@dataclass(frozen=True, slots=True)
class Part:
    """One plan of a scenario: its program, its share of the trials, and what they may do, by weight.

    Without a share it has so many trials as have something to do, and a configuration. Those that hang are in parts of
    their own, with a short time limit: on a busy machine a healthy trial, which may have to wait for a fresh worker to
    import its program, would not hold it.
    """

    name: str
    program: str
    isolation: Isolation
    share: float
    max_concurrency: int
    timeout_s: float
    acts: Mapping[str, float]
    after: float = 0.0
    """It waits until this share of all outcomes is recorded: those that hang run again in each run, and hold it up."""


PATIENT_S = 120.0
LATER = 0.5
FIRST_OF_FEW = 100_000
"""Parts of one program have different examples."""
# To find a trial that kills its worker takes a dozen workers, so there are few.
_ACTS = {
    **dict.fromkeys(("raises", "quits", "never recovers", "recovers", "metric raises", "infinite"), 8.0),
    **dict.fromkeys(("unserialisable", "moves"), 6.0),
    **dict.fromkeys(("huge", "large", "shouts", "wanders"), 2.0),
    **dict.fromkeys(("kills", "segfaults", "exits", "closes descriptors"), 0.8),
}
_HANGS = {"sleeps": 3.0, "spins": 0.2}
PARTS = (
    Part("awaited", "awaited", "shared", 0.55, 24, PATIENT_S, _ACTS),
    Part("threaded", "threaded", "shared", 0.45, 20, PATIENT_S, _ACTS),
    Part("alone", "alone", "process", 0.0, 2, PATIENT_S, {"exits": 0.2, "moves": 0.2, "raises": 0.2}),
    Part("awaited, hanging", "awaited", "shared", 0.0, 3, 2.0, {**_HANGS, "holds computing": 0.2}, LATER),
    Part("threaded, hanging", "threaded", "shared", 0.0, 3, 2.0, {**_HANGS, "holds waiting": 0.2}, LATER),
    Part("alone, hanging", "alone", "process", 0.0, 2, 5.0, {"holds computing": 0.2, "sleeps": 0.2}, LATER),
)
KINDS = sum(len(part.acts) for part in PARTS[1:])
"""Acts that are enough for each kind to be there once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """*trials* trials in all, *acts* of which are no ordinary ones; which ones follows from *seed*."""

    seed: int
    trials: int
    acts: int
    parts: tuple[str, ...] = tuple(part.name for part in PARTS)
    in_flight: int = 0
    """Most trials in flight of each part; 0: as the part says."""

    def to_json(self) -> str:
        """Return it as JSON text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Scenario:
        """Return the scenario that `to_json` wrote."""
        document: dict[str, Any] = json.loads(text)
        return cls(**{**document, "parts": tuple(document["parts"])})

    def planned(self) -> tuple[Planned, ...]:
        """Return the plans with their examples."""
        rng = random.Random(f"acts-{self.seed}")
        parts = [part for part in PARTS if part.name in self.parts]
        sharing = sum(part.share for part in parts)
        chosen = _chosen(parts, self.acts, rng)
        made: list[Planned] = []
        for part in parts:
            acts = chosen[part.name]
            rows = round(self.trials * part.share / sharing / CONFIGURATIONS) if part.share else len(acts)
            if rows:
                made.append(Planned(part, _plan(part, rows, self.seed), _examples(part, rows, acts, rng)))
        return tuple(made)


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, its examples, and how it is run."""

    part: Part
    plan: Plan
    examples: tuple[Example, ...]

    def specs(self) -> Iterator[TrialSpec]:
        """Yield every trial, in order."""
        return self.plan.trials(Batch(start=0, stop=self.plan.total), self.examples)

    def expected(self) -> Iterator[tuple[TrialSpec, TrialOutcome]]:
        """Yield every trial with the outcome that it must have; of that, what comes from the program."""
        for spec in self.specs():
            yield spec, expected(spec)

    def data_version(self) -> str:
        """Return the data version of the outcomes that must be."""
        return data_version(self.plan, self.expected())


def act_of(spec: TrialSpec) -> str:
    """Return what the trial does; empty for nothing special."""
    inputs = spec.example.inputs
    return str(inputs["act"]) if spec.configuration.values["k"] == inputs["at"] else ""


def expected(spec: TrialSpec) -> TrialOutcome:
    """Return the outcome that the trial must have, worked out from what its program does."""
    act = act_of(spec)
    kind = FAILS.get(act)
    k = spec.configuration.values["k"]
    assert isinstance(k, int)
    outputs = programs.answer(spec.example.inputs["x"], k)
    if act in programs.RETURNS and kind is not ErrorType.SERIALIZATION:
        outputs = programs.RETURNS[act](outputs)
    if kind is not None:
        kept = encode(outputs) if kind is ErrorType.METRIC_EXCEPTION else b""
        return TrialError(
            trial_id=spec.trial_id, configuration_digest=b"", type=kind, message=act, outputs_payload=kept
        )
    scores = {f"share.{name}": value for name, value in programs.share(spec.example, outputs).items()}
    return TrialResult(
        trial_id=spec.trial_id,
        configuration_digest=spec.configuration.digest,
        outputs_payload=encode(outputs),
        scores_payload=encode(scores),
    )


def _plan(part: Part, rows: int, seed: int) -> Plan:
    entry_point = f"chaos.programs:{part.program}"
    return Plan(
        evaluation="chaos",
        partition=part.name,
        dataset_digest=f"chaos-{seed}",
        rows=rows,
        program=ProgramSpec(
            entry_point=entry_point, version=program_version(entry_point, {}), isolation=part.isolation
        ),
        metrics=(MetricSpec(entry_point=METRIC, version=metric_version(METRIC)),),
        space_json=SPACE.to_json(),
        configurations=tuple(SPACE.grid())[: CONFIGURATIONS if part.share else 1],
    )


def _chosen(parts: list[Part], count: int, rng: random.Random) -> dict[str, list[str]]:
    """Return the acts of each part, *count* in all: each kind once as far as they reach, the others by weight."""
    pairs = [(part.name, act) for part in parts for act in part.acts]
    weights = {(part.name, act): (part.share or 1.0) * weight for part in parts for act, weight in part.acts.items()}
    chosen: dict[str, list[str]] = {part.name: [] for part in parts}
    rng.shuffle(pairs)
    seen: set[tuple[str, str]] = set()
    for name, act in pairs:
        # What kills a process of its own is another kind than what kills one of all.
        kind = (name.partition(" ")[0] if name.startswith("alone") else "", act)
        if kind not in seen and len(seen) < count:
            seen.add(kind)
            chosen[name].append(act)
    for name, act in rng.choices(pairs, [weights[pair] for pair in pairs], k=count - len(seen)):
        chosen[name].append(act)
    return chosen


def _examples(part: Part, rows: int, acts: list[str], rng: random.Random) -> tuple[Example, ...]:
    placed = dict(zip(rng.sample(range(rows), len(acts)), acts, strict=True))
    first = 0 if part.share else FIRST_OF_FEW * (1 + PARTS.index(part))
    return tuple(
        Example(
            example_id=f"e{first + x}",
            inputs={
                "x": first + x,
                "act": placed.get(x, ""),
                "at": rng.randint(1, CONFIGURATIONS) if part.share else 1,
            },
            labels={"y": first + x},
        )
        for x in range(rows)
    )
