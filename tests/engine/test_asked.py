"""What the trace keeps of calls that programs make without DSPy."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from dspex_pipelines import call_model, call_model_async
from dspex_pipelines.engine.calls.asked import answered_of, asked_of
from dspex_pipelines.engine.calls.trial_calls import TrialCalls, begin_trial
from dspex_pipelines.engine.trace import pack_trace, unpack_trace

MESSAGES = [{"role": "user", "content": "Why?"}]
ANSWER = {"choices": [{"message": {"content": "Because."}}, {"message": {"content": "So."}}], "usage": {}}


def traced(calls: TrialCalls, most: int = 65_536) -> list[dict[str, Any]]:
    return unpack_trace(pack_trace(calls, most))["calls"]


def begin() -> TrialCalls:
    calls = TrialCalls(None)
    begin_trial(calls)
    return calls


async def test_prompts_and_answers_are_kept_of_both_kinds_of_call() -> None:
    calls = begin()
    request = {"model": "m", "messages": list(MESSAGES), "temperature": 0.5, "api_key": "sk-1"}

    async def later() -> dict[str, Any]:
        return ANSWER

    assert call_model("m", lambda: ANSWER, request=request) is ANSWER
    assert await call_model_async("m", later, request=request) is ANSWER
    # The conversation goes on in the same list.
    request["messages"].append({"role": "assistant", "content": "Because."})
    for call in traced(calls):
        assert call["asked"] == MESSAGES
        assert call["answered"] == ["Because.", "So."]
        assert call["settings"] == {"temperature": 0.5}
    assert "sk-1" not in str(traced(calls))


def test_without_a_request_the_answer_is_kept_and_with_trouble_the_request() -> None:
    calls = begin()
    call_model("m", lambda: "an answer")
    with pytest.raises(ValueError, match="too bad"):
        call_model("m", bad, request="Why?")
    answered, failed = traced(calls)
    assert (answered["asked"], answered["answered"]) == (None, "an answer")
    assert (failed["asked"], failed["answered"], failed["error"]) == ("Why?", None, "ValueError")


def bad() -> str:
    raise ValueError("too bad")


@pytest.mark.parametrize(
    ("request_", "asked", "settings"),
    [
        pytest.param("Why?", "Why?", None, id="prompt"),
        pytest.param(MESSAGES, MESSAGES, None, id="messages"),
        pytest.param({"input": "Why?", "model": "m"}, "Why?", {}, id="responses"),
        pytest.param({"prompt": "Why?", "base_url": "http://me:word@here"}, "Why?", {}, id="address"),
        pytest.param(
            {"messages": MESSAGES, "max_tokens": 5, "extra": {"headers": {"x": 1}, "a": [{"auth_token": 1, "b": 2}]}},
            MESSAGES,
            {"max_tokens": 5, "extra": {"a": [{"b": 2}]}},
            id="secrets-however-deep",
        ),
        pytest.param({"query": "Why?", "api_key": "sk-1"}, {"query": "Why?"}, None, id="of-another-form"),
    ],
)
def test_a_request_is_told_apart_from_its_settings(request_: Any, asked: Any, settings: Any) -> None:
    assert asked_of(request_) == (asked, settings)


@pytest.mark.parametrize(
    ("answer", "answered"),
    [
        pytest.param(ANSWER, ["Because.", "So."], id="map"),
        pytest.param(
            SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content="So."))]), ["So."], id="object"
        ),
        pytest.param({"choices": []}, {"choices": []}, id="no-choice"),
        pytest.param("So.", "So.", id="words"),
        pytest.param(None, None, id="nothing"),
    ],
)
def test_of_an_answer_in_openais_form_the_words_are_kept(answer: Any, answered: Any) -> None:
    assert answered_of(answer) == answered


def test_an_answer_that_calls_tools_is_kept_whole() -> None:
    answer = {"choices": [{"message": {"content": None, "tool_calls": [{"function": {"name": "f"}}]}}]}
    assert answered_of(answer) is answer


def test_long_answers_of_numbers_are_cut_and_soon() -> None:
    calls = begin()
    numbers = random.Random(7)
    for _ in range(50):
        call_model("m", lambda: {"data": [{"embedding": [numbers.random() for _ in range(3_000)]}]}, request="Why?")
    began = time.perf_counter()
    kept = traced(calls, 20_000)
    assert time.perf_counter() - began < 5
    assert len(kept) == 50
    embedding = kept[0]["answered"]["data"][0]["embedding"]
    assert 8 <= len(embedding) < 1_000
    assert [one for one in embedding if isinstance(one, str)] == [f"… {3_000 - len(embedding) + 1:,} items left out …"]


# ---------------------------------------------------------------------------- what means no good


class Untouchable:
    """Raises whatever is done with it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)

    def __repr__(self) -> str:
        raise SystemExit(3)


class Lying:
    @property
    def __class__(self) -> Any:
        raise ValueError("a class that is none")


class Words(str):
    __slots__ = ()

    def __contains__(self, key: object) -> bool:
        raise ValueError("not to be searched")


class Fields(dict[str, Any]):
    def items(self) -> Any:
        raise ValueError("not to be read")


class Key:
    def __str__(self) -> str:
        raise SystemExit(4)


def into_itself(ways: int) -> list[Any]:
    found: list[Any] = []
    found.extend([found] * ways)
    return found


def doubled(times: int) -> list[Any]:
    found: list[Any] = [1]
    for _ in range(times):
        found = [found, found]
    return found


def nested(levels: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


HOSTILE = [
    pytest.param(Untouchable, id="attributes-that-raise"),
    pytest.param(lambda: [Untouchable()], id="a-repr-that-exits"),
    pytest.param(Lying, id="a-class-that-raises"),
    pytest.param(lambda: Words("a"), id="a-text-that-raises"),
    pytest.param(lambda: Fields(a=1), id="a-map-that-raises"),
    pytest.param(lambda: {Key(): 1}, id="a-key-without-a-name"),
    pytest.param(lambda: {"\ud800": "\ud800"}, id="lone-surrogates"),
    pytest.param(lambda: into_itself(1_000), id="a-list-into-itself"),
    pytest.param(lambda: {str(number): into_itself(50) for number in range(50)}, id="maps-of-such"),
    pytest.param(lambda: doubled(60), id="twice-as-many-at-each-level"),
    pytest.param(lambda: nested(100_000), id="deep"),
    pytest.param(lambda: dict.fromkeys(range(200_000), "a"), id="a-map-of-many"),
]


@pytest.mark.parametrize("make", HOSTILE)
def test_what_cannot_be_looked_at_is_called_with_and_answered_all_the_same(make: Callable[[], Any]) -> None:
    calls, strange = begin(), make()
    answers = [
        call_model("m", lambda: strange, request=strange),
        call_model("m", lambda: strange, request={"messages": strange, "extra": strange}),
        call_model("m", lambda: ANSWER, request="Why?"),
    ]
    assert answers[0] is answers[1] is strange
    calls.steps = [{"outputs": strange}]
    *_, last = traced(calls)
    assert (last["asked"], last["answered"]) == ("Why?", ["Because.", "So."])


def test_the_name_of_a_model_is_what_can_be_sent_and_shown() -> None:
    calls = begin()
    for name in ("a/\ud800", "a/\x1b[31m", "b" * 1_000_000):
        call_model(name, lambda: ANSWER)
    assert [call["model"] for call in traced(calls)] == ["a/?", "a/?[31m", "b" * 500]
