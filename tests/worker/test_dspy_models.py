"""A trial's calls to language models: all of them have leave, are counted and kept, and none is another trial's."""

from __future__ import annotations

import asyncio
import contextvars
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.clients import base_lm

from dspex_pipelines.engine.calls.trial_calls import TrialCalls
from dspex_pipelines.engine.throttling.throttle import Verdict
from dspex_pipelines.engine.trace import pack_trace, unpack_trace
from dspex_pipelines.model.outcome import TrialResult
from dspex_pipelines.model.payload import encode
from dspex_pipelines.worker.dspy_models import MOST_HISTORY, TrialModels, rollout_of, shown_settings
from tests.worker import dspy_echo, dspy_modules
from tests.worker.conftest import Bench, program
from tests.worker.dspy_echo import Echo
from tests.worker.dspy_trial import Trials


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache of DSPy's, in memory."""
    fresh = dspy.clients.Cache(enable_disk_cache=False, enable_memory_cache=True, disk_cache_dir=None)
    monkeypatch.setattr(dspy, "cache", fresh)


@pytest.mark.parametrize(
    ("name", "init", "lane", "calls", "tokens"),
    [
        pytest.param("QA", {}, "local/echo", 1, 15, id="own-model"),
        pytest.param("ConfiguresItself", {}, "local/echo", 1, 15, id="model-of-settings"),
        pytest.param("OfModel", {"kind": "managed"}, "local/echo", 1, 15, id="passed-in-a-call"),
        pytest.param("OfModel", {"kind": "old"}, "local/old", 1, 9, id="custom-forward"),
        pytest.param("OfModel", {"kind": "older"}, "local/older", 1, 0, id="custom-call"),
        pytest.param("CallsItself", {}, "local/echo", 1, 15, id="without-a-predictor"),
        pytest.param("TwoStep", {}, "local/echo", 2, 30, id="two"),
        pytest.param("Parallel", {}, "local/echo", 4, 60, id="dspys-threads"),
        pytest.param("function_program", {}, "local/echo", 1, 15, id="no-module"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_call_has_leave_and_is_counted(
    name: str, init: dict[str, Any], lane: str, calls: int, tokens: int
) -> None:
    trials = Trials(name, **init)
    _, made = trials.run()
    assert [model for model, _, _ in trials.leave.asked] == [lane] * calls
    assert trials.leave.ended == [(Verdict.OK, tokens // calls)] * calls
    assert made.used["calls"] == calls
    assert made.used["tokens"] == tokens


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_coroutines_have_leave_too() -> None:
    trials = Trials("TwoStepLater")
    _, made = await trials.arun()
    assert len(trials.leave.asked) == 2
    assert made.used["tokens"] == 30


def test_the_estimate_is_of_what_is_asked() -> None:
    trials = Trials("CallsItself")
    trials.run("x" * 400)
    assert trials.leave.asked == [("local/echo", 100, False)]


@pytest.mark.parametrize("name", ["QA", "TwoStepLater"])
async def test_a_refused_call_is_told_and_made_again(name: str) -> None:
    trials = Trials(name)
    Echo.refusals = 2
    made = (await trials.arun())[1] if name.endswith("Later") else trials.run()[1]
    assert [again for _, _, again in trials.leave.asked][:3] == [False, True, True]
    assert [verdict for verdict, _ in trials.leave.ended][:3] == [Verdict.REFUSED, Verdict.REFUSED, Verdict.OK]
    assert made.calls[0].tries == 3
    assert made.failed[0].model == "local/echo"


def test_what_was_asked_and_answered_is_kept() -> None:
    trials = Trials("QA", {"temperature": 0.5})
    prediction, made = trials.run("Where?")
    (call,) = made.calls
    assert "Where?" in call.asked[-1]["content"]
    assert "local/echo" in str(call.answered)
    assert call.settings["temperature"] == 0.5
    trace = unpack_trace(pack_trace(made, 65_536))
    (step,) = trace["steps"]
    assert step["predictor"] == "answer"
    assert step["inputs"] == {"question": "Where?"}
    assert step["outputs"]["answer"] == prediction.said


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_settings_that_lead_back_to_themselves_are_asked_with_all_the_same() -> None:
    trials = Trials("OfModel", kind="old")
    settings = trials.instance.model.kwargs
    settings["extra_body"] = {"settings": settings}
    _, made = trials.run()
    assert trials.leave.ended == [(Verdict.OK, 9)]
    assert pack_trace(made, 65_536)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("said", [2**70, pytest.param(10**400, id="huge"), "5", math.nan, None, [1], {"a": 1}])
def test_tokens_that_are_no_count_leave_the_answer_as_it_is(said: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    completion = dspy_echo._completion
    usage = {"prompt_tokens": said, "prompt_tokens_details": {"cached_tokens": said}}
    trials = Trials("OfModel", kind="old")
    monkeypatch.setattr(dspy_echo, "_completion", lambda *of: dspy_echo.Record(completion(*of), usage=usage))
    _, made = trials.run()
    assert trials.leave.ended == [(Verdict.OK, 0)]
    assert made.used["untold_calls"] == 1
    assert encode(made.used)
    assert pack_trace(made, 65_536)


def test_a_predictor_without_a_name_is_told_by_its_signature() -> None:
    trials = Trials("function_program")
    _, made = trials.run()
    assert [step["predictor"] for step in made.steps] == ["question -> answer"]


def test_steps_are_known_of_a_program_that_raised() -> None:
    trials = Trials("QA")
    calls = trials.begun()
    with pytest.raises(ZeroDivisionError), trials.around(calls):
        trials.instance(question="Why?")
        raise ZeroDivisionError
    assert len(calls.steps) == 1


def test_a_programs_own_account_of_usage_still_works() -> None:
    prediction, made = Trials("Tracking").run()
    assert prediction.used["local/echo"]["total_tokens"] == 15
    assert made.used["tokens"] == 15


def test_usage_and_cost_are_known_when_the_program_wants_no_history() -> None:
    trials = Trials("QA")
    calls = trials.begun()
    with trials.around(calls), dspy.context(disable_history=True):
        trials.instance(question="Which?")
    assert calls.used["tokens"] == 15
    assert calls.calls[0].answered


# ---------------------------------------------------------------------------- lanes and secrets


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_lane_is_a_model_and_its_endpoint_without_secrets() -> None:
    trials = Trials("QA")
    calls = trials.begun()
    with trials.around(calls):
        model = dspy_echo.OldModel("local/old", api_base="https://me:pw@host:8000/v1?key=1", api_key="sk-1")
        model("hello")
    assert trials.leave.asked[0][0] == "local/old@https://host:8000/v1"
    assert "pw" not in str(calls.calls[0].settings)
    assert "sk-1" not in str(calls.calls[0].settings)


def test_no_secret_is_kept_however_deep() -> None:
    shown = shown_settings(
        {
            "temperature": 0.5,
            "max_tokens": 7,
            "max_completion_tokens": 8,
            "top_p": None,
            "api_key": "s",
            "extra_headers": {"x": "s"},
            "Authorization": "s",
            "azure_ad_token": "s",
            "client_secret": "s",
            "extra_body": {"api_key": "s", "top_k": 3},
            "tools": [{"type": "mcp", "headers": {"X-Mine": "s"}}, ({"server_token": "s", "base_url": "//me:s@host"},)],
        }
    )
    assert shown == {
        "temperature": 0.5,
        "max_tokens": 7,
        "max_completion_tokens": 8,
        "extra_body": {"top_k": 3},
        "tools": [{"type": "mcp"}, [{"base_url": "host"}]],
    }


def test_settings_that_lead_back_to_themselves_are_shown_for_a_while() -> None:
    around: list[object] = [1]
    around.append({"around": around})
    assert "'…'" in str(shown_settings({"around": around}))


def test_how_many_tokens_there_may_be_is_no_secret() -> None:
    counts = {"max_output_tokens": 9, "min_tokens": 1, "thinking": {"type": "enabled", "budget_tokens": 1_024}}
    assert shown_settings(counts) == counts


# ---------------------------------------------------------------------------- a trial's own models


def test_a_copy_is_as_its_original_but_for_retries() -> None:
    model = dspy.LM("openai/gpt-4o-mini", temperature=0.5, num_retries=7)
    models = TrialModels(TrialCalls(None, timeout_s=9.0))
    mine = models.of(model)
    assert models.of(model) is mine is models.of(mine)
    assert type(mine).__qualname__ == "LM"
    assert mine.dump_state() | {"num_retries": 7, "timeout": None} == model.dump_state() | {"timeout": None}
    assert (mine.num_retries, model.num_retries) == (0, 7)
    assert (mine.kwargs["timeout"], model.kwargs.get("timeout")) == (9.0, None)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: dspy.LM("openai/gpt-4o-mini", timeout=3), id="has-its-own"),
        pytest.param(dspy_echo.echo, id="owns-its-connection"),
        pytest.param(lambda: dspy_echo.OldModel("local/old"), id="custom"),
    ],
)
def test_a_timeout_is_given_only_where_it_is_ours_to_give(model: Any) -> None:
    model = model()
    mine = TrialModels(TrialCalls(None, timeout_s=9.0)).of(model)
    assert mine.kwargs.get("timeout") == model.kwargs.get("timeout")


def test_our_timeout_is_no_part_of_what_answers_are_cached_under() -> None:
    from dspy.clients.execution import prepare

    Trials("QA")
    model = dspy.LM("openai/gpt-4o-mini")
    mine = TrialModels(TrialCalls(None, timeout_s=9.0)).of(model)
    messages = [{"role": "user", "content": "hi"}]
    keys = [prepare(one, None, messages, {}).key(one, asynchronous=False) for one in (model, mine)]
    assert keys[0] == keys[1]


def test_a_dspy_whose_own_parts_are_elsewhere_is_noticed() -> None:
    """What is replaced in DSPy is checked here, so that another version cannot quietly lose it."""
    from dspy.clients import execution
    from dspy.dsp.utils.settings import Settings

    assert callable(dspy.Predict._forward_preprocess)
    assert callable(execution.PreparedCall.key)
    assert callable(Settings._ensure_configure_allowed)
    Trials("QA")
    assert base_lm.MAX_HISTORY_SIZE == MOST_HISTORY


async def test_a_thread_that_has_run_a_trial_runs_for_none_afterwards(bench: Bench) -> None:
    outcome = await bench.run(program("tests.worker.dspy_modules:QA"), question="Which?")
    assert isinstance(outcome, TrialResult)
    outcome = await bench.run(program("tests.worker.dspy_modules:AsksWhenBuilt"), question="Which?")
    assert isinstance(outcome, TrialResult), outcome
    assert outcome.outputs == {"trial": False}


def test_outside_a_trial_models_are_as_ever() -> None:
    Trials("QA")
    module = dspy_modules.QA()
    before = len(module.answer.lm.history)
    prediction = contextvars.Context().run(module, question="Which?")
    assert json.loads(prediction.said)["model"] == "local/echo"
    assert len(module.answer.lm.history) == before + 1


def test_histories_are_short_and_shared_by_no_trial() -> None:
    trials = Trials("TwoStep")
    known = list(base_lm.GLOBAL_HISTORY)
    for _ in range(2 * MOST_HISTORY):
        trials.run()
    assert known == base_lm.GLOBAL_HISTORY
    assert trials.instance.think.lm.history == []
    assert len(trials.instance.history) == MOST_HISTORY


# ---------------------------------------------------------------------------- the cache


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_an_answer_out_of_the_cache_is_told_and_costs_nothing(temperature: float) -> None:
    trials = Trials("Cached", temperature=temperature)
    asked = Echo.asked
    first, second = trials.run()[1], trials.run()[1]
    assert Echo.asked == asked + 1
    assert not first.calls[0].used.cached
    assert second.calls[0].used.cached
    assert second.used == {"calls": 1, "local/echo.calls": 1, "cached_calls": 1}
    assert trials.leave.ended[-1] == (Verdict.OK, 0)


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_repeats_and_attempts_are_asked_anew_and_then_remembered(temperature: float) -> None:
    trials = Trials("Cached", temperature=temperature)
    asked = Echo.asked
    of = [{"seed": 0}, {"seed": 1}, {"seed": 2}, {"seed": 0, "attempt": 2}, {"seed": 1, "attempt": 2}]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one in of * 2:
            trials.run(**one)
    assert Echo.asked == asked + len(of)


@pytest.mark.usefixtures("cache")
def test_the_first_attempt_shares_the_users_cache() -> None:
    trials = Trials("Cached")
    contextvars.Context().run(trials.instance, question="Shared?")
    _, made = trials.run("Shared?")
    assert made.calls[0].used.cached


def test_a_rollout_is_told_apart_by_seed_attempt_and_the_programs_own() -> None:
    assert rollout_of(0, 1, None) is None
    assert rollout_of(0, 1, 5) == 5
    of = {rollout_of(seed, attempt, theirs) for seed in range(5) for attempt in range(1, 5) for theirs in (None, 0, 1)}
    assert len(of) == 5 * 4 * 3
    assert rollout_of(2**64 - 1, 3, None) < 2**63


def test_a_cached_answer_reaches_coroutines(cache: None) -> None:
    async def run() -> list[Any]:
        module, trials = dspy.Predict("question -> answer"), Trials("Cached")
        made = []
        for _ in range(2):
            calls = trials.begun()
            with trials.around(calls):
                await module.acall(question="Later?", lm=trials.instance.answer.lm)
            made.append(calls.calls[0].used.cached)
        return made

    assert asyncio.run(run()) == [False, True]


# ---------------------------------------------------------------------------- the network

_NO_NETWORK = """
import os, sys
os.environ.pop("LITELLM_LOCAL_MODEL_COST_MAP", None)
connected = []
sys.addaudithook(lambda event, of: connected.append(of[1:]) if event in ("socket.connect", "socket.getaddrinfo") else 0)
import dspex_pipelines.worker.__main__ as worker
worker.set_environment()
from tests.worker.dspy_trial import Trials
Trials("QA", {"temperature": 0.5}).run()
import litellm
print("connected:", connected)
"""


def test_nothing_is_fetched_when_a_module_is_loaded_and_run() -> None:
    done = subprocess.run([sys.executable, "-c", _NO_NETWORK], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["connected: []"], done.stderr


_AT_ONCE = """
import os, sys, threading
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import dspy
from dspex_pipelines.engine.calls.trial_calls import TrialCalls
from dspex_pipelines.worker.dspy_models import TrialModels
native, model = (dspy.LM("openai/gpt-4o-mini", api_key="none") for _ in range(2))
TrialModels(TrialCalls(None)).of(native)
print("litellm" in sys.modules)
os.environ["OPENAI_API_BASE"] = "http://127.0.0.1:9/v1"
whole = []
def copies():
    TrialModels(TrialCalls(None)).of(model)
    whole.append(sys.modules["litellm"]._dspy_logging_configured)
threads = [threading.Thread(target=copies) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(*whole)
"""


def test_litellm_is_imported_where_it_is_used_and_whole_before_a_call() -> None:
    done = subprocess.run([sys.executable, "-c", _AT_ONCE], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", *["True"] * 4], done.stderr
