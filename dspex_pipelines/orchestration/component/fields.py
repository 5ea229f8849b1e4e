"""What may stand in the `defs.yaml` of an evaluation: the fields of its declaration, each with its description."""

from typing import Annotated, Any, Literal, TypeAlias

import dagster as dg
from pydantic import ConfigDict, Discriminator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, Tag

from dspex_pipelines.model.limits import MOST_WEIGHT

Scalar: TypeAlias = StrictBool | StrictInt | StrictFloat | StrictStr
Number: TypeAlias = StrictInt | StrictFloat
Names: TypeAlias = list[StrictStr]


class Fields(dg.Model):
    """Fields of which no others may be given; what stands under one describes it."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Dates(Fields):
    """A partition for each day, week or month."""

    every: Literal["day", "week", "month"] = "day"
    """day, week or month."""
    start: StrictStr
    """First day, such as 2026-01-31."""


def _division(given: Any) -> str:
    if isinstance(given, list):
        return "names"
    return "word" if isinstance(given, str) else "dates"


Partitions: TypeAlias = Annotated[
    Annotated[Names, Tag("names")] | Annotated[Literal["dynamic"], Tag("word")] | Annotated[Dates, Tag("dates")],
    Discriminator(_division),
]


class Dataset(Fields):
    """Where examples come from, and what their columns mean. One of source, callable and asset is given."""

    source: StrictStr = ""
    """CSV, JSONL or Parquet file, folder of them or pattern (data/*.csv), relative to the folder of defs.yaml."""
    callable: StrictStr = ""
    """Function that yields rows, as module:function."""
    asset: StrictStr = ""
    """Key of an asset whose value has the rows, with slashes between its parts."""
    inputs: Names
    """Columns that the program gets."""
    labels: Names = Field(default_factory=list)
    """Columns that metrics compare with."""
    example_id: StrictStr = ""
    """Column of unique ids; left out: the row number, of a folder's files with the file's name before it."""
    group: StrictStr = ""
    """Column of the cluster that an example belongs to, for error bars; one group may be in several partitions."""
    partition_by: StrictStr = ""
    """Column whose values are the partitions."""
    partitions: Partitions = Field(default_factory=lambda: ["all"])
    """Names of partitions; or dynamic, for those that the data has; or {every: day, start: 2026-01-31}."""
    max_bad_rows: StrictFloat = Field(default=0.2, ge=0)
    """Most rows of a partition that may be bad: a fraction below 1, or a number from 1 on."""
    description: StrictStr = ""
    """Shown at the data set's asset."""


class Float(Fields):
    """A real number."""

    type: Literal["float"]
    low: Number
    """Least value."""
    high: Number
    """Greatest value."""
    default: Number | None = None
    """Value where none is given."""
    log: StrictBool = False
    """Whether its logarithm is drawn evenly."""
    points: list[Number] = Field(default_factory=list)
    """Its grid; left out: low, the middle and high."""
    description: StrictStr = ""
    """What it does."""


class Integer(Fields):
    """A whole number."""

    type: Literal["integer"]
    low: StrictInt
    """Least value."""
    high: StrictInt
    """Greatest value."""
    default: StrictInt | None = None
    """Value where none is given."""
    points: list[StrictInt] = Field(default_factory=list)
    """Its grid; left out: low, the middle and high."""
    description: StrictStr = ""
    """What it does."""


class Boolean(Fields):
    """True or false."""

    type: Literal["boolean"]
    default: StrictBool | None = None
    """Value where none is given."""
    description: StrictStr = ""
    """What it does."""


class Choice(Fields):
    """One of several options."""

    type: Literal["choice"]
    options: list[Scalar]
    """Strings, numbers or booleans."""
    default: Scalar | None = None
    """Value where none is given."""
    description: StrictStr = ""
    """What it does."""


class Text(Fields):
    """A text, such as an instruction."""

    type: Literal["text"]
    candidates: Names = Field(default_factory=list)
    """Its grid; left out: the default."""
    default: StrictStr | None = None
    """Text where none is given."""
    max_length: StrictInt = Field(default=10_000, ge=1)
    """Most characters."""
    description: StrictStr = ""
    """What it does."""


class Module(Fields):
    """An import path out of an allowed set: a strategy to be plugged in."""

    type: Literal["module"]
    allowed: Names
    """Import paths, as module:attribute."""
    default: StrictStr | None = None
    """Path where none is given."""
    description: StrictStr = ""
    """What it does."""


Variable: TypeAlias = Annotated[Float | Integer | Boolean | Choice | Text | Module, Discriminator("type")]


class Ordered(Fields):
    """One number variable is at most another."""

    type: Literal["ordered"]
    lower: StrictStr
    """Name of the variable that is less."""
    upper: StrictStr
    """Name of the variable that is greater."""
    strict: StrictBool = False
    """Whether they may not be equal."""


class Implies(Fields):
    """When every variable of when has one of its listed values, every one of then must too."""

    type: Literal["implies"]
    when: dict[str, list[Scalar]]
    """Variables, each with a list of values."""
    then: dict[str, list[Scalar]]
    """Variables, each with a list of values."""


class AtMost(Fields):
    """A weighted sum of number variables stays at or under a bound."""

    type: Literal["at_most"]
    weights: dict[str, Number]
    """Variables, each with its weight."""
    bound: Number
    """Greatest sum."""


Constraint: TypeAlias = Annotated[Ordered | Implies | AtMost, Discriminator("type")]


class Search(Fields):
    """Configurations that are drawn at random."""

    samples: StrictInt = Field(ge=0)
    """So many, 1,000,000 at most; 0: the whole grid."""
    seed: StrictInt = Field(default=0, ge=0)
    """Of the draw, and of the trials."""


def _search(given: Any) -> str:
    return "word" if isinstance(given, str) else "drawn"


SearchOrGrid: TypeAlias = Annotated[
    Annotated[Literal["grid"], Tag("word")] | Annotated[Search, Tag("drawn")], Discriminator(_search)
]


class Budget(Fields):
    """Bounds on one run; 0 is no bound."""

    max_errors: StrictFloat = Field(default=0, ge=0)
    """From 1 on: so many failed trials. Below 1: such a fraction of the trials that have an outcome."""
    min_trials: StrictInt = Field(default=100, ge=1)
    """A fraction of errors counts only once so many trials have an outcome."""
    max_time_s: StrictFloat = Field(default=0, ge=0)
    """Seconds from the first trial on."""
    max_tokens: StrictInt = Field(default=0, ge=0)
    """Tokens, of those trials that report their usage."""
    max_cost_usd: StrictFloat = Field(default=0, ge=0)
    """US dollars, of those trials that report their usage."""


class Hedging(Fields):
    """When a trial that takes long is run a second time beside."""

    quantile: StrictFloat = Field(default=0.95, gt=0, lt=1)
    """A trial that has run for longer than this share of the last ones took gets a second copy."""
    fraction: StrictFloat = Field(default=0.1, gt=0, le=1)
    """Most second copies, for each trial that has a final outcome."""
    after: StrictInt = Field(default=100, ge=1)
    """So many trials of a step have a final outcome before the first second copy."""


class RateLimit(Fields):
    """What calls to a model's provider may use together; 0 is not declared."""

    model: StrictStr
    """Name of a model or a pattern: openai/gpt-4o-mini, or openai/* for one budget that all share."""
    requests_per_minute: StrictFloat = Field(default=0, ge=0)
    """Calls in a minute."""
    tokens_per_minute: StrictFloat = Field(default=0, ge=0)
    """Tokens in a minute."""
    max_concurrency: StrictInt = Field(default=0, ge=0)
    """Calls at a time."""


class Price(Fields):
    """What a model's tokens cost, in US dollars per million."""

    model: StrictStr
    """Name of a model or a pattern."""
    input_usd: StrictFloat = Field(ge=0)
    """Of tokens that go in."""
    output_usd: StrictFloat = Field(ge=0)
    """Of tokens that come out."""
    cached_input_usd: StrictFloat | None = Field(default=None, ge=0)
    """Of tokens that go in and that the provider has cached; left out: the same as other input."""


class _Check(Fields):
    """What every check has besides its bound."""

    severity: Literal["warn", "error"] = "error"
    """Whether a failure is a warning or an error."""
    blocking: StrictBool = False
    """Whether an error keeps the leaderboard from being made in the same run."""
    name: StrictStr = ""
    """Its name in the UI; left out: type and metric."""


class ScoreFloor(_Check):
    """The best configuration's mean of a metric is at least so much."""

    type: Literal["score_floor"]
    metric: StrictStr
    """Name of a metric."""
    at_least: Number
    """Least mean."""


class FailureRate(_Check):
    """At most such a fraction of the trials failed."""

    type: Literal["failure_rate"]
    at_most: StrictFloat = Field(ge=0, lt=1)
    """Largest fraction."""


class Coverage(_Check):
    """At least such a fraction of the planned trials was run."""

    type: Literal["coverage"]
    at_least: StrictFloat = Field(default=1.0, gt=0, le=1)
    """Least fraction."""


class NoRegression(_Check):
    """Example by example, a metric is not shown to be worse than in earlier results."""

    type: Literal["no_regression"]
    metric: StrictStr
    """Name of a metric."""
    margin: StrictFloat = Field(default=0.0, ge=0)
    """How much worse is tolerated."""


Check: TypeAlias = Annotated[ScoreFloor | FailureRate | Coverage | NoRegression, Discriminator("type")]


class Automation(Fields):
    """When the evaluation is to run by itself. All of it is off until it is turned on in the UI."""

    schedule: StrictStr = ""
    """Cron expression of five fields, such as 0 3 * * *."""
    timezone: StrictStr = "UTC"
    """Of the schedule."""
    latest: StrictInt = Field(default=0, ge=0)
    """Only the newest so many partitions are scheduled; 0: all of them."""
    look_every_s: StrictInt = Field(default=30, ge=1)
    """Seconds between two looks at the files, and at what they made stale."""
    stale_after_h: StrictFloat = Field(default=0, ge=0)
    """Hours after which results count as stale in the UI; 0: never."""
    triggers: StrictStr = ""
    """Folder, relative to that of defs.yaml: each JSON file that is put there starts a run."""


class EvaluationFields(Fields):
    """A program, the variables it has, the data it is judged on and the metrics that judge it."""

    name: StrictStr = ""
    """Letters, digits and underscores; left out: the name of the folder."""
    description: StrictStr = ""
    """The question that it answers; shown at its assets."""
    dataset: Dataset
    """Where examples come from, and what their columns mean."""
    program: StrictStr
    """Function, class or DSPy module to evaluate, as module:attribute."""
    init: dict[str, Any] = Field(default_factory=dict)
    """Parameters that a class is built with."""
    files: Names = Field(default_factory=list)
    """Files the program reads, relative to the folder of defs.yaml; they join its version."""
    environment: Names = Field(default_factory=list)
    """Environment variables that decide what the program answers; not those that hold keys."""
    isolation: Literal["shared", "process"] = "shared"
    """shared, or process: a process for each trial."""
    version: StrictStr = ""
    """Version of the program; left out: a digest of its source."""
    metrics: Names
    """Functions of (example, outputs) that judge, as module:attribute; the first one ranks."""
    score_range: list[Number] = Field(default_factory=lambda: [0.0, 1.0], min_length=2, max_length=2)
    """Worst and best score that a trial can have."""
    variables: dict[str, Variable] = Field(default_factory=dict)
    """Parameters that are varied, by name."""
    constraints: list[Constraint] = Field(default_factory=list)
    """What has to hold between variables."""
    search: SearchOrGrid = "grid"
    """grid, or {samples: 50, seed: 1}; the config of a run may ask for others."""
    timeout_s: StrictFloat = Field(default=60.0, gt=0)
    """Seconds a trial may run."""
    max_concurrency: StrictInt = Field(default=64, ge=1)
    """Most trials at a time."""
    weight: StrictInt = Field(default=1, ge=1, le=MOST_WEIGHT)
    """Its share of a pool that others want at the same time: turns for each one of an evaluation of weight 1."""
    hedging: Hedging | None = None
    """When a trial that takes long is run a second time beside, the first answer of both counting; left out: never."""
    budget: Budget = Field(default_factory=Budget)
    """What a run may spend before it stops, keeps what it has, and says why."""
    limits: list[RateLimit] = Field(default_factory=list)
    """How often models may be called."""
    prices: list[Price] = Field(default_factory=list)
    """What their tokens cost."""
    trace_bytes: StrictInt = Field(default=65_536, ge=0, le=1 << 20)
    """Most bytes, compressed, that are kept of a trial's calls to models; 0: nothing is."""
    partitions_per_run: StrictInt = Field(default=1, ge=0)
    """How many partitions one run of a backfill takes; 0: all of them."""
    checks: list[Check] = Field(default_factory=list)
    """What the results of each partition have to keep."""
    automation: Automation = Field(default_factory=Automation)
    """When it is to run by itself."""
    owners: Names = Field(default_factory=list)
    """Who answers for it: email addresses, or teams such as team:search."""
    tags: dict[str, StrictStr] = Field(default_factory=dict)
    """Of its runs."""
