"""The evaluations that ship with the package, so that an installed one can always show itself."""

from __future__ import annotations

from pathlib import Path

import yaml

from dspex_pipelines.engine.documents import evaluation_from_document
from dspex_pipelines.model.evaluation import Dataset, Evaluation
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.variables import Float, Integer, Module
from dspex_pipelines.qa_rag.dataset import examples as questions


def shipped(name: str) -> Evaluation:
    """Return the evaluation that ``defs/<name>/defs.yaml`` declares, read without Dagster."""
    file = Path(__file__).parent / "defs" / name / "defs.yaml"
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    return evaluation_from_document(document["attributes"], folder=file.parent)


STDLIB_SEARCH = shipped("stdlib_search")
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
    # The variable that it reads: `dspex doctor` looks whether it is set.
    init={"api_key": "DSPEX_QA_API_KEY"},
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
