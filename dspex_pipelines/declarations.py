"""The evaluations that ship with the package, so that an installed one can always show itself."""

from __future__ import annotations

from dspex_pipelines.model.checks import Coverage, FailureRate, NoRegression, ScoreFloor
from dspex_pipelines.model.evaluation import Dataset, Evaluation
from dspex_pipelines.model.space import ConfigurationSpace, Implies
from dspex_pipelines.model.variables import Boolean, Choice, Float, Integer, Module
from dspex_pipelines.qa_rag.dataset import examples as questions
from dspex_pipelines.stdlib_search.dataset import examples

STDLIB_SEARCH = Evaluation(
    name="stdlib_search",
    description="Which search configuration finds a standard library function from its description?",
    dataset=Dataset(
        source=examples,
        example_id="example_id",
        inputs=("summary",),
        labels=("name",),
        group="module",
        partition_by="topic",
        partitions=("text", "numbers", "data", "files", "network", "runtime"),
        description="Documented functions, classes and methods of the installed standard library.",
    ),
    program="dspex_pipelines.stdlib_search.program:StdlibSearch",
    metrics=(
        "dspex_pipelines.stdlib_search.metrics:reciprocal_rank",
        "dspex_pipelines.stdlib_search.metrics:hit_at_1",
        "dspex_pipelines.stdlib_search.metrics:hit_at_10",
    ),
    space=ConfigurationSpace(
        variables=(
            Float(name="k1", low=0.0, high=3.0, default=1.5, points=(0.9, 1.5)),
            Float(name="b", low=0.0, high=1.0, default=0.75, points=(0.4, 0.75)),
            Boolean(name="stem", default=True),
            Choice(
                name="fields",
                options=("body", "body+signature", "body+signature+name"),
                default="body+signature+name",
            ),
            Integer(name="name_boost", low=1, high=5, default=1, points=(1, 3)),
        ),
        # How often name parts count means something only where they are searched at all.
        constraints=(
            Implies(
                when={"fields": ("body", "body+signature")},
                then={"name_boost": (1,)},
            ),
        ),
    ),
    timeout_s=10.0,
    max_concurrency=64,
    checks=(
        # Each partition's best configuration reaches 0.45 and more, and 0.34 on the first twenty examples.
        ScoreFloor(metric="reciprocal_rank", at_least=0.3),
        FailureRate(at_most=0.01),
        Coverage(at_least=1.0),
        NoRegression(metric="reciprocal_rank", margin=0.01),
    ),
)
QA_RAG = Evaluation(
    name="qa_rag",
    description="Which settings of a retrieving program name the function that a question asks for?",
    dataset=Dataset(
        source=questions,
        example_id="example_id",
        inputs=("question",),
        labels=("answer",),
        group="module",
        description="Questions made of summary lines of the installed standard library.",
    ),
    program="dspex_pipelines.qa_rag.program:QaRag",
    metrics=(
        "dspex_pipelines.qa_rag.metrics:answered",
        "dspex_pipelines.qa_rag.metrics:found",
    ),
    # Not imported from the program, which needs DSPy.
    environment=("DSPEX_QA_API_BASE", "DSPEX_QA_MODEL"),
    # Its model is named there alone, so nothing declared here tells that it costs money.
    tags={"dspex/cost": "paid"},
    space=ConfigurationSpace(
        variables=(
            Module(
                name="answer",
                allowed=("dspy:Predict", "dspy:ChainOfThought"),
                default="dspy:Predict",
                description="strategy of the module's predictor of that name",
            ),
            Integer(name="retrieve.k", low=1, high=10, default=3, points=(1, 3, 10), description="passages"),
            Float(name="temperature", low=0.0, high=2.0, default=0.0, points=(0.0, 1.0)),
            Integer(name="max_demos", low=0, high=4, default=0, points=(0, 4), description="of the module's demo_pool"),
        ),
    ),
    timeout_s=60.0,
    max_concurrency=64,
)
EVALUATIONS = {evaluation.name: evaluation for evaluation in (STDLIB_SEARCH, QA_RAG)}
