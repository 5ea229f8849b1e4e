"""The retrieving program, asked directly, with a stand-in for its model."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace

import dspy
import pytest

from dspex_pipelines.declarations import EVALUATIONS, QA_RAG
from dspex_pipelines.engine.calls.provider_faults import provider_fault
from dspex_pipelines.loopback.process import Server, serving
from dspex_pipelines.qa_rag.dataset import DEMOS, EXAMPLES, demonstrated, examples
from dspex_pipelines.qa_rag.metrics import answered, found
from dspex_pipelines.qa_rag.program import API_BASE, MODEL, QaRag, language_model
from dspex_pipelines.stdlib_search.corpus import documents

ROWS = list(examples())
KEY = "the-secret-key"


@pytest.fixture(scope="module")
def server():
    with serving(answers="qa_rag", api_key=KEY) as server:
        yield server


@pytest.fixture
def build(server: Server, monkeypatch):
    """`build(strategy, k=, temperature=, demos=)` is the program as an engine would set it up."""
    monkeypatch.setenv("DSPEX_QA_API_BASE", server.base_url)
    monkeypatch.setenv("DSPEX_QA_API_KEY", KEY)

    def make(
        strategy: type[dspy.Module] = dspy.Predict, *, k: int = 3, temperature: float = 0.0, demos: int = 0
    ) -> QaRag:
        program = QaRag()
        model = program.get_lm().copy(temperature=temperature)
        program.retrieve.k = k
        program.answer = strategy(program.answer.signature)
        program.set_lm(model)
        for predictor in program.predictors():
            predictor.demos = program.demo_pool[:demos]
        return program

    return make


def score(program: QaRag) -> tuple[int, int]:
    """How many are answered, how many could have been."""
    rows = [dspy.Example(**row).with_inputs("question") for row in ROWS]
    predictions = [program(question=row.question) for row in rows]
    right = sum(answered(row, prediction) for row, prediction in zip(rows, predictions, strict=True))
    return right, sum(found(row, prediction) for row, prediction in zip(rows, predictions, strict=True))


def test_the_examples_are_as_declared():
    assert len(ROWS) == EXAMPLES
    assert len({row["example_id"] for row in ROWS}) == EXAMPLES
    assert {row["answer"] for row in ROWS} <= {document.name for document in documents()}
    assert len({row["module"] for row in ROWS}) > 20
    columns = {QA_RAG.dataset.example_id, *QA_RAG.dataset.inputs, *QA_RAG.dataset.labels, QA_RAG.dataset.group}
    assert columns == set(ROWS[0])
    assert list(examples()) == ROWS


def test_no_question_holds_its_answer_and_no_demonstration_is_an_example():
    assert [row for row in ROWS if row["answer"] in row["question"]] == []
    assert len(demonstrated()) == DEMOS
    assert {document.name for document in demonstrated()}.isdisjoint(row["answer"] for row in ROWS)


def test_declaring_it_and_reading_its_examples_needs_no_dspy():
    code = (
        "import sys; sys.modules['dspy'] = None\n"
        "from dspex_pipelines.declarations import EVALUATIONS\n"
        "print(len(list(EVALUATIONS['qa_rag'].dataset.source())))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(EXAMPLES)]


def test_what_it_names_is_there():
    assert EVALUATIONS["qa_rag"] is QA_RAG
    assert QA_RAG.environment == (API_BASE, MODEL)
    for entry_point in (QA_RAG.program, *QA_RAG.metrics):
        module, _, attribute = entry_point.partition(":")
        assert importlib.util.find_spec(module) is not None
        assert hasattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        pytest.param({}, "DSPEX_QA_API_BASE and DSPEX_QA_API_KEY", id="neither"),
        pytest.param({"DSPEX_QA_API_BASE": "http://127.0.0.1:1/v1"}, "DSPEX_QA_API_KEY", id="no-key"),
        pytest.param({"DSPEX_QA_API_KEY": KEY, "DSPEX_QA_API_BASE": ""}, "DSPEX_QA_API_BASE", id="empty-base"),
    ],
)
def test_without_an_endpoint_it_says_what_to_export(monkeypatch, given, missing):
    for name in ("DSPEX_QA_API_BASE", "DSPEX_QA_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    what = "python -m dspex_pipelines.loopback --answers qa_rag"
    with pytest.raises(dspy.LMNotConfiguredError, match=what) as refusal:
        QaRag()
    fault = provider_fault(refusal.value)
    assert fault is not None
    assert fault.ends_run, "no other trial can succeed either"
    assert str(refusal.value).startswith(f"{missing} not set")
    assert KEY not in str(refusal.value)


def test_the_model_is_the_one_that_the_environment_names():
    given = {"DSPEX_QA_API_BASE": "http://127.0.0.1:1/v1", "DSPEX_QA_API_KEY": KEY}
    assert language_model(given).model == "openai/gpt-4o-mini"
    assert language_model({**given, "DSPEX_QA_MODEL": "openai/other"}).model == "openai/other"


def test_the_key_is_in_nothing_that_is_shown_or_stored(build):
    program = build()
    prediction = program(question=ROWS[0]["question"])
    shown = [repr(program), repr(program.get_lm()), json.dumps(program.dump_state(), default=str), repr(prediction)]
    assert [text for text in shown if KEY in text] == []
    assert KEY not in json.dumps(program.get_lm().history, default=str)


@pytest.mark.parametrize("strategy", [dspy.Predict, dspy.ChainOfThought])
async def test_it_answers_with_a_name_out_of_its_passages(build, strategy):
    program = build(strategy, k=5, demos=2)
    for row in ROWS[:10]:
        now = program(question=row["question"])
        later = await program.acall(question=row["question"])
        assert now.toDict() == later.toDict()
        assert now.answer in now.retrieved
        assert 1 <= len(now.retrieved) <= 5
        assert bool(now.get("reasoning")) == (strategy is dspy.ChainOfThought)


def test_demonstrations_reach_the_prompt_with_their_reasoning(build):
    program = build(dspy.ChainOfThought, demos=4)
    program(question=ROWS[0]["question"])
    messages = program.get_lm().history[-1]["messages"]
    shown = [message["content"] for message in messages if message["role"] == "assistant"]
    assert len(shown) == 4
    assert all(
        demo.answer in text and demo.reasoning in text for demo, text in zip(program.demo_pool, shown, strict=True)
    )


def test_more_passages_find_more(build):
    counts = [score(build(k=k))[1] for k in (1, 3, 10)]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        pytest.param({"temperature": 1.0}, {"temperature": 0.0}, id="heat"),
        pytest.param({"strategy": dspy.Predict}, {"strategy": dspy.ChainOfThought}, id="reasoning"),
        pytest.param({"demos": 0}, {"demos": 4}, id="demonstrations"),
    ],
)
def test_what_should_help_helps(build, worse, better):
    assert score(build(**{"k": 10, **worse}))[0] < score(build(**{"k": 10, **better}))[0]


def test_metrics_look_at_the_name_and_at_the_passages():
    example = SimpleNamespace(answer="json.loads")
    right = SimpleNamespace(answer=" json.loads\n", retrieved=["json.loads"])
    wrong = SimpleNamespace(answer="json.load", retrieved=["json.load", "json.loads"])
    astray = SimpleNamespace(answer="json.load", retrieved=["json.load"])
    assert [(answered(example, it), found(example, it)) for it in (right, wrong, astray)] == [
        (True, True),
        (False, True),
        (False, False),
    ]
