"""What one evaluation run is going to do: a descriptor from which every trial can be worked out again.

A plan of a million trials is a few kilobytes: the data set by its digest, the rows, the configurations, the
repeats and the seed. Trials have an order (configurations outermost, then rows, then repeats), so a batch
is a range of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.payload import digest_of
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, Isolation, MetricSpec, ProgramSpec, TrialSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run does in one partition."""

    evaluation: str
    partition: str
    dataset_digest: str
    """Hex digest of the data set file that is read; the file is found by it."""
    rows: int
    """How many examples, from the first: the limit, or the size of the partition."""
    program: ProgramSpec
    metrics: tuple[MetricSpec, ...]
    space_json: str
    configurations: tuple[Configuration, ...]
    limit: int = 0
    """The example limit that was asked for; 0: the whole partition."""
    repeats: int = 1
    seed: int = 0
    generation: str = ""
    """Empty where outcomes of earlier runs are reused; else the root run's id."""
    failures_since: float = 0.0
    """Permanent failures from before are run again (seconds since the epoch); 0: none are."""
    digest: str = field(init=False, repr=False, compare=False)
    """Hex digest of what is planned: equal plans hold the same trials and may be compared."""
    metrics_digest: bytes = field(init=False, repr=False, compare=False)
    """Digest of the metrics and their versions: scores of other metrics are not reused."""

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("repeats", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InvalidValue(field=f"plan.{name}", value=value, fix=f"give an integer of {least} or more")
        if not self.configurations:
            raise InvalidValue(field="plan.configurations", value=(), fix="plan at least one configuration")
        identity = [
            self.evaluation,
            self.partition,
            self.rows,
            [configuration.digest for configuration in self.configurations],
            self.repeats,
            self.seed,
        ]
        object.__setattr__(self, "digest", digest_of(identity).hex())
        metrics = [[metric.name, metric.entry_point, metric.version] for metric in self.metrics]
        object.__setattr__(self, "metrics_digest", digest_of(metrics))

    @property
    def likeness(self) -> str:
        """Hex digest of what makes two plans comparable, whatever their partition and data.

        A smoke run of twenty examples differs in it from the real one.
        """
        return digest_of(
            [
                self.evaluation,
                self.limit,
                [configuration.digest for configuration in self.configurations],
                self.repeats,
                self.seed,
                self.program.digest,
                [[metric.name, metric.entry_point, metric.version] for metric in self.metrics],
            ]
        ).hex()

    @property
    def question(self) -> str:
        """Hex digest of what was asked, whatever program answers it and whichever metrics judge the answer.

        Results of one question and partition say which of two versions of a program is worse.
        """
        return digest_of(
            [
                self.evaluation,
                self.limit,
                [configuration.digest for configuration in self.configurations],
                self.repeats,
                self.seed,
            ]
        ).hex()

    @property
    def total(self) -> int:
        """How many trials."""
        return len(self.configurations) * self.rows * self.repeats

    def batches(self, size: int) -> Iterator[Batch]:
        """Yield the ranges of at most *size* trials that cover the plan."""
        for start in range(0, self.total, size):
            yield Batch(start=start, stop=min(start + size, self.total))

    def trials(self, batch: Batch, examples: Sequence[Example]) -> Iterator[TrialSpec]:
        """Yield the trials of *batch* in order, of *examples* = the first `rows` of the data set."""
        program, configurations, seed = self.program, self.configurations, self.seed
        rows, repeats = self.rows, self.repeats
        of_configuration = rows * repeats
        for index in range(batch.start, batch.stop):
            repeat = index % repeats
            example = examples[index // repeats % rows]
            yield TrialSpec(program, example, configurations[index // of_configuration], repeat, seed + repeat)

    def scoring_of(self, example: Example) -> bytes:
        """Return the 16-byte digest of what trials of *example* are judged by: its labels and the metrics."""
        return example.judged_by(self.metrics_digest)

    def to_json(self) -> str:
        """Return the plan as JSON text that `from_json` reads back to an equal plan."""
        document = {
            "evaluation": self.evaluation,
            "partition": self.partition,
            "dataset_digest": self.dataset_digest,
            "rows": self.rows,
            "program": {
                "entry_point": self.program.entry_point,
                "init": dict(self.program.init),
                "version": self.program.version,
                "isolation": self.program.isolation,
            },
            "metrics": [
                {"entry_point": metric.entry_point, "version": metric.version, "name": metric.name}
                for metric in self.metrics
            ],
            "space": self.space_json,
            "configurations": [dict(configuration.values) for configuration in self.configurations],
            "limit": self.limit,
            "repeats": self.repeats,
            "seed": self.seed,
            "generation": self.generation,
            "failures_since": self.failures_since,
        }
        return json.dumps(document, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Return the plan that `to_json` wrote."""
        document = cast("dict[str, Any]", json.loads(text))
        program = cast("Mapping[str, Any]", document["program"])
        return cls(
            evaluation=document["evaluation"],
            partition=document["partition"],
            dataset_digest=document["dataset_digest"],
            rows=document["rows"],
            program=ProgramSpec(
                entry_point=program["entry_point"],
                init=program["init"],
                version=program["version"],
                isolation=cast("Isolation", program["isolation"]),
            ),
            metrics=tuple(MetricSpec(**metric) for metric in document["metrics"]),
            space_json=document["space"],
            configurations=tuple(Configuration(values) for values in document["configurations"]),
            limit=document["limit"],
            repeats=document["repeats"],
            seed=document["seed"],
            generation=document["generation"],
            failures_since=document.get("failures_since", 0.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """The trials of a plan with index in ``[start, stop)``."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise InvalidValue(
                field="batch", value=(self.start, self.stop), fix="give a start of 0 or more below the stop"
            )
