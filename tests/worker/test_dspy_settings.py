"""DSPy's settings are one for the process: no trial sees another's, and no program another program's."""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.dsp.utils.settings import main_thread_config
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex_pipelines.model.outcome import TrialError, TrialResult
from dspex_pipelines.worker.dspy_settings import OutOfPlace
from tests.worker.conftest import Bench, program, spec
from tests.worker.dspy_trial import Trials

HERE = "tests.worker.dspy_modules"


def test_configure_in_a_trial_is_refused_and_changes_nothing() -> None:
    trials = Trials("ConfiguresInTrial")
    before = dict(main_thread_config)
    with pytest.raises(OutOfPlace, match=r"dspy\.context"):
        trials.run()
    assert main_thread_config == before


async def test_configure_in_a_constructor_is_for_that_configuration_alone(bench: Bench) -> None:
    of = program(f"{HERE}:ConfiguresItself")
    session = bench.open(of)
    before = dict(main_thread_config)
    numbers = []
    for version, warmth in [(1, 0.1), (2, 0.9)] * 3:
        trial = spec(of, {"question": "Which?"}, {"warmth": warmth})
        numbers.append((warmth, bench.submit(trial, session=session, version=version)))
    for warmth, number in numbers:
        outcome = await bench.outcome(number)
        assert isinstance(outcome, TrialResult), outcome
        assert json.loads(outcome.outputs["said"])["temperature"] == warmth
        assert outcome.outputs["history"] == 1
    assert main_thread_config == before


_PROGRAM = """
import dspy
from tests.worker.dspy_echo import echo
from tests.worker.dspy_modules import UnderSettings
{configure}
class Program(UnderSettings):
    pass
"""


@pytest.mark.parametrize("order", list(itertools.permutations(["warm", "cold", "bare"])))
async def test_configure_at_the_top_of_a_file_is_for_its_program_alone(
    bench: Bench, project: Callable[..., Path], order: tuple[str, ...]
) -> None:
    configured = "dspy.configure(lm=echo({!r}))"
    sources = {"warm": configured.format("local/warm"), "cold": configured.format("local/cold"), "bare": ""}
    project(**{f"its_{name}": _PROGRAM.format(configure=sources[name]) for name in order})
    for name in (*order, *order):
        outcome = await bench.run(program(f"its_{name}:Program"), question="Which?")
        if name == "bare":
            assert isinstance(outcome, TrialError)
            assert "No LM is loaded" in outcome.message
        else:
            assert isinstance(outcome, TrialResult), outcome
            assert json.loads(outcome.outputs["said"])["model"] == f"local/{name}"


async def test_a_shared_file_configures_all_programs_that_import_it(bench: Bench, project: Callable[..., Path]) -> None:
    shared = "import dspy\nfrom tests.worker.dspy_echo import echo\ndspy.configure(lm=echo('local/shared'))\n"
    project(
        common_settings=shared,
        one_of_them=_PROGRAM.format(configure="import common_settings"),
        other_of_them=_PROGRAM.format(configure="import common_settings"),
    )
    for name in ("one_of_them", "other_of_them"):
        outcome = await bench.run(program(f"{name}:Program"), question="Which?")
        assert isinstance(outcome, TrialResult), outcome
        assert json.loads(outcome.outputs["said"])["model"] == "local/shared"


# ---------------------------------------------------------------------------- trials side by side

CONFIGURATIONS = [{"temperature": 0.1}, {"temperature": 0.9, "model": "local/b"}, {"max_tokens": 7}, {}]


@pytest.fixture(scope="module")
def writers() -> dict[str, list[Trials]]:
    """Programs that write to their models, one of each kind for each configuration."""
    made = {}
    for name in ("Writes", "WritesLater"):
        made[name] = [Trials(name, values) for values in CONFIGURATIONS]
    return made


def check(index: int, question: str, prediction: Any, calls: Any) -> None:
    """It found its own configuration, and nothing that another trial has written."""
    told = json.loads(prediction.said)
    wanted = {"model": "local/echo", "temperature": None, "max_tokens": None} | CONFIGURATIONS[index]
    assert {name: told[name] for name in wanted} == wanted
    assert prediction.stop is None
    assert prediction.history == 0
    (call,) = calls.calls
    assert question in call.asked[-1]["content"]
    (step,) = calls.steps
    assert step["inputs"] == {"question": question}


plans = st.lists(st.integers(0, len(CONFIGURATIONS) - 1), min_size=2, max_size=8)


@given(plan=plans)
@settings(max_examples=40, deadline=None)
def test_coroutines_side_by_side_see_only_their_own(writers: dict[str, list[Trials]], plan: list[int]) -> None:
    async def one(number: int, index: int) -> None:
        question = f"question {number}?"
        prediction, calls = await writers["WritesLater"][index].arun(question)
        check(index, question, prediction, calls)

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            for number, index in enumerate(plan):
                group.create_task(one(number, index))

    asyncio.run(run())


@given(plan=plans)
@settings(max_examples=25, deadline=None)
def test_threads_side_by_side_see_only_their_own(writers: dict[str, list[Trials]], plan: list[int]) -> None:
    together = threading.Barrier(len(plan))
    failed: list[BaseException] = []

    def one(number: int, index: int) -> None:
        question = f"question {number}?"
        try:
            together.wait()
            prediction, calls = writers["Writes"][index].run(question)
            check(index, question, prediction, calls)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=one, args=of) for of in enumerate(plan)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed


@given(steps=st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=60, deadline=None)
def test_any_interleaving_keeps_trials_apart(writers: dict[str, list[Trials]], steps: list[tuple[int, bool]]) -> None:
    """Four trials take turns in an order of Hypothesis's: what each reads is what it has written itself."""

    async def trial(index: int, turns: asyncio.Queue[bool], done: asyncio.Semaphore) -> None:
        trials = writers["WritesLater"][index]
        calls, mine = trials.begun(), 0
        with trials.around(calls):
            while True:
                writes = await turns.get()
                model = dspy.settings.lm
                assert model.kwargs.get("stop") == ([str(mine)] if mine else None)
                assert model.kwargs["temperature"] == CONFIGURATIONS[index].get("temperature")
                if writes:
                    mine += 1
                    model.kwargs["stop"] = [str(mine)]
                else:
                    history = len(model.history)
                    await dspy.Predict("question -> answer").acall(question=str(index))
                    assert len(model.history) == history + 1
                    assert all(call.settings.get("temperature") == model.kwargs["temperature"] for call in calls.calls)
                done.release()

    async def run() -> None:
        queues = [asyncio.Queue[bool]() for _ in CONFIGURATIONS]
        done = asyncio.Semaphore(0)
        tasks = [asyncio.create_task(trial(index, queue, done)) for index, queue in enumerate(queues)]
        for index, writes in steps:
            queues[index].put_nowait(writes)
            turn = asyncio.create_task(done.acquire())
            await asyncio.wait([turn, *tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task.done():
                    task.result()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())
