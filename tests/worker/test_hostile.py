"""A program may do anything: it has one outcome, of the right type, and no neighbour notices."""

from __future__ import annotations

import asyncio
import math
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, TrialSpec
from tests.worker.conftest import program

ROOT = Path(__file__).parents[2]
PROGRAMS = "tests.worker.hostile_programs"
SHAPES = {"in_thread": "shared", "on_loop": "shared", "in_process": "process"}
NEIGHBOURS = 8
RAISED = ErrorType.PROGRAM_EXCEPTION
UNREADABLE = ErrorType.SERIALIZATION
DEADLY = ErrorType.POISON


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    with local_pool.lease(workers=2, slots=24, idle_s=1, cwd=ROOT, runtime_root=folder) as lease:
        yield lease.address
    local_pool.stop(runtime_root=folder)
    shutil.rmtree(folder)


def spec(shape: str, x: int, **inputs: object) -> TrialSpec:
    of = program(f"{PROGRAMS}:{shape}", isolation=SHAPES.get(shape, "shared"))
    example = Example(example_id=f"{shape}-{x}-{inputs}", inputs={"x": x, **inputs})
    return TrialSpec(program=of, example=example, configuration=Configuration({}))


async def run(address: str, trials: list[TrialSpec], *, timeout_s: float = 30) -> list[TrialOutcome]:
    async with PoolClient(address, connect_timeout_s=30) as client:
        runner = TrialRunner(client, metrics=[], space_json="", timeout_s=timeout_s)
        outcomes = await asyncio.wait_for(asyncio.gather(*(runner.run(trial) for trial in trials)), 60)
        client.commit(len(outcomes))
    return list(outcomes)


@pytest.mark.parametrize(
    ("deed", "expected", "says"),
    [
        ("changes_directory", TrialResult, "/"),
        ("loses_directory", TrialResult, "gone"),
        ("closes_descriptors", DEADLY, ""),
        ("closes_standard_descriptors", TrialResult, "closed"),
        ("closes_standard_streams", TrialResult, "closed"),
        ("exhausts_threads", TrialResult, "can't start new thread"),
        ("exhausts_descriptors", TrialResult, "OSError"),
        ("prints_a_lot", TrialResult, "printed"),
        ("changes_environment", TrialResult, "changed"),
        ("deletes_its_module", TrialResult, "deleted"),
        ("deletes_what_the_worker_uses", TrialResult, "deleted"),
        ("sets_signal_handlers", TrialResult, "set"),
        ("waits_for_any_process", TrialResult, "set"),
        ("calls_exit", RAISED, "SystemExit: 5"),
        ("aborts", DEADLY, ""),
        ("forks_and_comes_back", TrialResult, "parent"),
        ("raises_interrupt", RAISED, "KeyboardInterrupt: by itself"),
        ("raises_generator_exit", RAISED, "GeneratorExit: by itself"),
        ("raises_cancelled", RAISED, "CancelledError: by itself"),
        ("raises_stop_iteration", RAISED, "StopIteration"),
        ("raises_huge", RAISED, "ValueError: 0x1 0x1"),
        ("raises_endless_causes", RAISED, "Endless: the first"),
        ("raises_itself", RAISED, "ValueError: its own cause"),
        ("raises_long_chain", RAISED, "ValueError: link 99999"),
        ("raises_unlookable", RAISED, "cannot be looked at"),
        ("raises_wrong_facts", RAISED, "ValueError: of another world"),
        ("raises_deep", RAISED, "RecursionError"),
        ("raises_group", RAISED, "ExceptionGroup: many"),
        ("returns_17_mib", UNREADABLE, "bytes are more than"),
        ("returns_15_mib", TrialResult, 15 << 20),
        ("returns_an_object", UNREADABLE, "outputs['deep'][0]"),
        ("returns_a_generator", UNREADABLE, "builtins.generator"),
        ("returns_not_a_number", TrialResult, pytest.approx([math.nan, math.inf, -math.inf], nan_ok=True)),
        ("returns_a_lone_surrogate", UNREADABLE, "surrogates not allowed"),
        ("returns_a_surrogate_key", UNREADABLE, "outputs"),
        ("returns_a_tuple_key", UNREADABLE, "keys"),
        ("returns_nested_a_little", TrialResult, None),
        ("returns_nested_more", TrialResult, None),
        ("returns_nested_deeply", UNREADABLE, "levels"),
        ("returns_itself", UNREADABLE, "levels"),
        ("returns_the_unshowable", UNREADABLE, "Unshowable cannot be sent"),
        ("returns_the_unshowable_as_key", UNREADABLE, "it cannot be shown"),
        ("returns_what_interrupts", UNREADABLE, "KeyboardInterrupt: while it was read"),
        ("returns_a_false_list", UNREADABLE, "SystemExit: while it was read"),
        ("returns_an_integer_too_large", UNREADABLE, "does not fit 64 bits"),
    ],
)
async def test_a_program_may_do_anything(address: str, deed: str, expected: Any, says: Any) -> None:
    trials = [spec(list(SHAPES)[x % 3], x, deed="") for x in range(NEIGHBOURS)]
    # Finding the deadly takes a few workers' lives; for them all threads are alike.
    shapes = ["in_thread", "in_process"] if expected is DEADLY else list(SHAPES)
    bad = slice(4, 4 + len(shapes))
    trials[4:4] = [spec(shape, 0, deed=deed) for shape in shapes]
    outcomes = await run(address, trials)
    for shape, outcome in zip(shapes, outcomes[bad], strict=True):
        if expected is TrialResult:
            assert isinstance(outcome, TrialResult), (shape, outcome)
            assert outcome.outputs == says or says is None, shape
        else:
            assert isinstance(outcome, TrialError), (shape, outcome)
            assert outcome.type is expected, (shape, outcome)
            assert says in outcome.message, shape
            assert len(outcome.message) <= 4_000
    del outcomes[bad]
    assert not [outcome for outcome in outcomes if isinstance(outcome, TrialError)]
    assert [outcome.outputs for outcome in outcomes] == list(range(NEIGHBOURS))
    later = await run(address, [spec("looks_around", x) for x in range(16)])
    assert not [outcome for outcome in later if isinstance(outcome, TrialError)]
    found = {"folder": str(ROOT), "file": True, "told of children": True}
    assert [outcome.outputs for outcome in later] == [{"x": x, **found} for x in range(16)]


async def test_a_program_that_handles_sigchld_harms_no_later_one() -> None:
    """The loop's own handler of it is gone, without a way to have it back: it hears of no process any more."""
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    with local_pool.lease(workers=1, slots=4, idle_s=1, cwd=ROOT, runtime_root=folder) as lease:
        bad = [spec(shape, 0) for shape in ("starts_a_process", "handles_children")]
        beside, handler = await run(lease.address, bad, timeout_s=5)
        later = await run(lease.address, [spec("starts_a_process", x) for x in range(1, 9)], timeout_s=5)
    local_pool.stop(runtime_root=folder)
    shutil.rmtree(folder)
    assert isinstance(handler, TrialResult)
    assert isinstance(beside, TrialError)
    assert beside.type is ErrorType.TIMEOUT_RUN
    assert not [outcome for outcome in later if isinstance(outcome, TrialError)]
    assert [outcome.outputs for outcome in later] == [0] * 8
