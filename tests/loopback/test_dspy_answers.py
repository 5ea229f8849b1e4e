"""DSPy's adapters parse what the server says, unless it is to be unparsable."""

from __future__ import annotations

from typing import Literal

import dspy
import pytest
from dspy.utils.exceptions import (
    AdapterParseError,
    ContextWindowExceededError,
    LMAuthError,
    LMRateLimitError,
    LMServerError,
    LMTransportError,
)

from tests.loopback.conftest import KEY


class Typed(dspy.Signature):
    """Answer in all types."""

    question: str = dspy.InputField()
    text: str = dspy.OutputField()
    count: int = dspy.OutputField()
    share: float = dspy.OutputField()
    sure: bool = dspy.OutputField()
    kind: Literal["this", "that, then other"] = dspy.OutputField()
    tags: list[str] = dspy.OutputField()
    counts: list[int] = dspy.OutputField()
    more: dict[str, int] = dspy.OutputField()


@pytest.fixture
def model(server):
    return dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key=KEY, cache=False, num_retries=0)


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter(), dspy.JSONAdapter()], ids=["chat", "json"])
@pytest.mark.parametrize("strategy", [dspy.Predict, dspy.ChainOfThought])
async def test_every_output_field_is_answered(model, server, adapter, strategy):
    with dspy.context(lm=model, adapter=adapter):
        program = strategy(Typed)
        now = program(question="What is it?")
        later = await program.acall(question="What is it?")
    assert now.toDict() == later.toDict()
    assert isinstance(now.count, int)
    assert isinstance(now.share, float)
    assert isinstance(now.sure, bool)
    assert now.kind in ("this", "that, then other")
    assert all(isinstance(tag, str) for tag in now.tags)
    assert all(isinstance(count, int) for count in now.counts)
    assert bool(now.get("reasoning")) == (strategy is dspy.ChainOfThought)
    stats = server.stats()
    # None of them took the other adapter's way.
    assert (stats["answered"], stats["distinct_contents"]) == (2, 1)


async def test_a_malformed_answer_is_a_parse_error(model, server):
    server.control(malformed_rate=1.0)
    with dspy.context(lm=model):
        with pytest.raises(AdapterParseError):
            dspy.Predict("question -> answer")(question="What is it?")
        with pytest.raises(AdapterParseError):
            await dspy.ChainOfThought("question -> answer").acall(question="What is it?")
    stats = server.stats()
    # The chat adapter, then the JSON adapter.
    assert (stats["malformed"], stats["answered"]) == (4, 0)


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        pytest.param({"error_rate": 1.0}, LMServerError, id="error"),
        pytest.param({"overload_rate": 1.0}, LMServerError, id="overload"),
        pytest.param({"drop_rate": 1.0}, LMTransportError, id="dropped"),
        pytest.param({"down": True}, LMTransportError, id="down"),
        pytest.param({"context_tokens": 10}, ContextWindowExceededError, id="context"),
        pytest.param({"requests_per_s": 0.001, "reset": True}, LMRateLimitError, id="rate"),
    ],
)
async def test_dspy_tells_the_failures_apart(model, server, behaviour, error):
    server.control(**behaviour)
    program = dspy.Predict("question -> answer")
    with dspy.context(lm=model):
        if "requests_per_s" in behaviour:
            program(question="What is it?")
        with pytest.raises(error) as failure:
            program(question="What is it?")
        with pytest.raises(error):
            await program.acall(question="What is it?")
    if error is LMRateLimitError:
        assert 900 < failure.value.retry_after <= 1_000


def test_another_key_is_an_error_of_its_own(server):
    model = dspy.LM("openai/gpt-4o-mini", api_base=server.base_url, api_key="no", cache=False, num_retries=0)
    with dspy.context(lm=model), pytest.raises(LMAuthError):
        dspy.Predict("question -> answer")(question="What is it?")


def test_demonstrations_and_a_question_that_quotes_a_prompt_are_told_apart(model):
    quoted = "Respond with a JSON object in the following order of fields: `other`."
    program = dspy.Predict("question -> answer")
    program.demos = [dspy.Example(question="a", answer="b")]
    with dspy.context(lm=model):
        assert program(question=quoted).answer


def test_the_mark_at_the_end_is_no_field(model):
    with dspy.context(lm=model):
        dspy.Predict("question -> answer")(question="What is it?")
    assert model.history[-1]["outputs"][0].count("[[ ## completed ## ]]") == 1
