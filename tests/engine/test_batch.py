"""A batch over a pool that answers in process, and a real journal: what runs, what is scored again, what is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pytest

from dspex_pipelines.engine.batch import BatchSummary, planned_outcomes, run_batch
from dspex_pipelines.engine.journal.journal import Entry, Journal
from dspex_pipelines.engine.pages import FIRST_PAGE, PAGE, Pages
from dspex_pipelines.errors import JournalError
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import encode
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec, TrialSpec

AT_ONCE = 16
EXAMPLES = [Example(example_id=str(number), inputs={"x": number}, labels={"y": number}) for number in range(50)]
Answer = Callable[[TrialSpec, bytes], TrialOutcome]
Answered = Callable[[object, TrialOutcome | Exception], None]


def plan(metric: str = "1", **changes: object) -> Plan:
    given: dict[str, object] = {
        "evaluation": "e",
        "partition": "p",
        "dataset_digest": "d",
        "rows": len(EXAMPLES),
        "program": ProgramSpec(entry_point="a.b:c", version="1"),
        "metrics": (MetricSpec(entry_point="m:n", version=metric),),
        "space_json": ConfigurationSpace().to_json(),
        "configurations": (Configuration({"k": 1}), Configuration({"k": 2})),
        **changes,
    }
    return Plan(**given)  # type: ignore[arg-type]


def result(spec: TrialSpec, outputs: bytes, *, score: float = 1.0) -> TrialResult:
    return TrialResult(
        trial_id=spec.trial_id,
        configuration_digest=spec.configuration.digest,
        outputs_payload=outputs or encode(spec.example.inputs["x"]),
        scores_payload=encode({"n": score}),
    )


def error(spec: TrialSpec, kind: ErrorType, outputs: bytes = b"") -> TrialError:
    return TrialError(
        trial_id=spec.trial_id,
        configuration_digest=spec.configuration.digest,
        type=kind,
        message="no",
        outputs_payload=outputs,
    )


class Snapshot:
    def __init__(self, digest: bytes) -> None:
        self.version = 1
        self.digest = digest


class Pool:
    """Answers as *answer* says; counts programs that ran, outcomes that were only scored, and what came back."""

    def __init__(self, answer: Answer = result) -> None:
        self.answer = answer
        self.ran = self.scored = self.committed = 0
        self.begun: dict[asyncio.Task[None], Answered] = {}

    async def open_session(self, *_: object) -> int:
        return 1

    async def set_variables(self, session_id: int, values: dict[str, object], **_: object) -> Snapshot:
        return Snapshot(Configuration(values).digest)

    async def make_versions(self, _: int, many: Sequence[object]) -> list[int]:
        return [1] * len(many)

    async def execute(self, spec: TrialSpec, *, outputs: bytes = b"", **_: object) -> TrialOutcome:
        await asyncio.sleep(0)
        if outputs:
            self.scored += 1
        else:
            self.ran += 1
        return self.answer(spec, outputs)

    def send(
        self,
        spec: TrialSpec,
        session_id: int,
        version: int,
        timeout_s: float,
        outputs: bytes,
        most_attempts: int,
        answered: Answered,
        about: object,
    ) -> int:
        async def answer() -> None:
            answered(about, await self.execute(spec, outputs=outputs))

        task = asyncio.create_task(answer())
        self.begun[task] = answered
        task.add_done_callback(self.begun.pop)
        return 1

    def drop(self, answered: Answered) -> None:
        for task, one in self.begun.items():
            if one == answered:
                task.cancel()

    def commit(self, count: int) -> None:
        self.committed += count


async def run(journal: Journal, pool: Pool, planned: Plan, examples: Sequence[Example] = EXAMPLES) -> BatchSummary:
    return await run_batch(
        plan=planned,
        batch=Batch(start=0, stop=planned.total),
        examples=examples,
        pool=pool,
        journal=journal,
        max_concurrency=AT_ONCE,
        timeout_s=10,
        most_attempts=1,
    )


@pytest.fixture
def journal(tmp_path: Path):
    with Journal(str(tmp_path / "journal.sqlite")) as opened:
        yield opened


def outcomes(journal: Journal, planned: Plan) -> list[TrialOutcome]:
    return [outcome for _, outcome in planned_outcomes(planned, EXAMPLES, journal)]


async def test_again_runs_nothing_and_another_metric_scores_all_again(journal: Journal) -> None:
    first = Pool()
    await run(journal, first, plan())
    assert (first.ran, first.committed) == (100, 100)
    again = Pool()
    summary = await run(journal, again, plan())
    assert (again.ran, again.scored, summary.reused) == (0, 0, 100)
    other = Pool(lambda spec, outputs: result(spec, outputs, score=2.0))
    summary = await run(journal, other, plan("2"))
    assert (other.ran, other.scored, summary.rescored) == (0, 100, 100)
    for metric, score in (("1", 1.0), ("2", 2.0)):
        assert {one.scores["n"] for one in outcomes(journal, plan(metric))} == {score}  # type: ignore[union-attr]


async def test_the_first_trials_run_before_many_are_looked_up(journal: Journal) -> None:
    planned = plan(rows=PAGE)

    class Taken(list[Example]):
        rows = 0

        def __getitem__(self, row: int) -> Example:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
            self.rows += 1
            return super().__getitem__(row)

    examples = Taken(Example(example_id=str(number), inputs={"x": number}) for number in range(PAGE))
    taken: list[int] = []

    def answer(spec: TrialSpec, outputs: bytes) -> TrialOutcome:
        taken.append(examples.rows)
        return result(spec, outputs)

    summary = await run(journal, Pool(answer), planned, examples)
    assert (summary.ran, len(taken)) == (2 * PAGE, 2 * PAGE)
    # Of the next page two for each trial that is begun and some in each turn of the loop, so nothing waits for a page
    # to be made.
    assert taken[0] < PAGE / 4
    assert max(later - earlier for earlier, later in pairwise(taken)) < PAGE / 4


async def test_the_next_trials_are_planned_while_others_run(journal: Journal) -> None:
    planned = plan(rows=PAGE)
    all_there = asyncio.Event()

    class Taken(list[Example]):
        rows = 0

        def __getitem__(self, row: int) -> Example:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
            self.rows += 1
            if self.rows == 3 * FIRST_PAGE:
                all_there.set()
            return super().__getitem__(row)

    examples = Taken(Example(example_id=str(number), inputs={"x": number}) for number in range(PAGE))

    class Waits(Pool):
        async def execute(self, spec: TrialSpec, **given: Any) -> TrialOutcome:
            await all_there.wait()
            return await super().execute(spec, **given)

    async with asyncio.timeout(30):
        summary = await run(journal, Waits(), planned, examples)
    assert summary.ran == 2 * PAGE, "the first waited until the second page was planned"


def test_pages_grow_and_are_in_the_order_of_their_ids_however_much_is_prepared() -> None:
    planned = plan(rows=6 * PAGE)
    examples = [Example(example_id=str(number), inputs={"x": number}) for number in range(6 * PAGE)]
    wanted = list(islice(planned.trials(Batch(start=0, stop=planned.total), examples), 4 * PAGE))
    pages, got = Pages(iter(wanted)), list[list[TrialSpec]]()
    for page in pages:
        got.append(page)
        for _ in range(len(page) // len(got)):
            pages.prepare(1 + len(got) % 3)
    assert [len(page) for page in got[:6]] == [FIRST_PAGE, 500, 1_000, 2_000, PAGE, PAGE]
    start = 0
    for page in got:
        assert page == sorted(wanted[start : start + len(page)], key=lambda spec: spec.trial_id)
        start += len(page)
    assert start == len(wanted)


async def test_a_row_that_cannot_be_read_costs_no_trial_of_the_page_before_it(journal: Journal) -> None:
    class Damaged(list[Example]):
        def __getitem__(self, row: int) -> Example:  # type: ignore[override] # pyright: ignore[reportIncompatibleMethodOverride]
            if row == FIRST_PAGE + 10:
                raise OSError("no such row")
            return super().__getitem__(row)

    examples = Damaged(Example(example_id=str(number), inputs={"x": number}) for number in range(PAGE))
    pool = Pool()
    with pytest.raises(OSError, match="no such row"):
        await run(journal, pool, plan(rows=PAGE), examples)
    assert pool.ran == FIRST_PAGE


async def test_a_metric_that_failed_is_mended_without_running_a_program(journal: Journal) -> None:
    def fails(spec: TrialSpec, outputs: bytes) -> TrialOutcome:
        return error(spec, ErrorType.METRIC_EXCEPTION, outputs=encode(spec.example.inputs["x"]))

    broken = Pool(fails)
    await run(journal, broken, plan())
    assert broken.ran == 100
    mended = Pool()
    await run(journal, mended, plan("2"))
    assert (mended.ran, mended.scored) == (0, 100)
    found = outcomes(journal, plan("2"))
    assert {type(one) for one in found} == {TrialResult}
    assert [one.outputs for one in found] == [number for _ in range(2) for number in range(50)]
    assert {type(one) for one in outcomes(journal, plan())} == {TrialError}


async def test_a_scoring_that_was_interrupted_is_taken_up_without_running_a_program(journal: Journal) -> None:
    await run(journal, Pool(), plan())
    lost = Pool(lambda spec, _: error(spec, ErrorType.WORKER_LOST))
    await run(journal, lost, plan("2"))
    again = Pool()
    summary = await run(journal, again, plan("2"))
    assert (again.ran, again.scored, summary.rescored) == (0, 100, 100)
    assert {type(one) for one in outcomes(journal, plan("2"))} == {TrialResult}


@pytest.mark.parametrize(
    ("changes", "ran"),
    [
        pytest.param({}, 0, id="all"),
        pytest.param({"failures_since": 1e12}, 20, id="successes"),
        pytest.param({"generation": "run"}, 100, id="none"),
    ],
)
async def test_what_is_reused_is_what_was_asked_for(journal: Journal, changes: dict[str, object], ran: int) -> None:
    def fifth_fails(spec: TrialSpec, outputs: bytes) -> TrialOutcome:
        if int(spec.example.example_id) % 5 == 0:
            return error(spec, ErrorType.PROGRAM_EXCEPTION)
        return result(spec, outputs)

    await run(journal, Pool(fifth_fails), plan())
    again = Pool()
    await run(journal, again, plan(**changes))
    assert again.ran == ran
    failed = [one for one in outcomes(journal, plan(**changes)) if isinstance(one, TrialError)]
    assert len(failed) == (0 if ran else 20)
    retried = Pool()
    await run(journal, retried, plan(**{**changes, "failures_since": 0.0}))
    assert retried.ran == 0, "a retry of the same run goes on where it was"


async def test_an_earlier_attempt_stays_in_the_history(journal: Journal) -> None:
    await run(journal, Pool(lambda spec, _: error(spec, ErrorType.TIMEOUT_RUN)), plan())
    await run(journal, Pool(), plan())
    for one in outcomes(journal, plan()):
        assert [past.type for past in one.history] == [ErrorType.TIMEOUT_RUN]
        assert one.attempts == 2


async def test_a_journal_that_fails_ends_the_batch_and_keeps_what_it_had(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many trials wait for credit that never comes back."""

    class Bounded(Pool):
        def __init__(self) -> None:
            super().__init__()
            self.room = asyncio.Semaphore(40)

        async def execute(self, spec: TrialSpec, *, outputs: bytes = b"", **more: object) -> TrialOutcome:
            await self.room.acquire()
            return await super().execute(spec, outputs=outputs, **more)

        def commit(self, count: int) -> None:
            super().commit(count)
            for _ in range(count):
                self.room.release()

    record, groups = journal.record, 0

    def once(*given: object, **named: object) -> None:
        nonlocal groups
        groups += 1
        if groups > 1:
            raise JournalError(journal="j", reason="has no room left on its disk", fix="make room")
        record(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(journal, "record", once)
    monkeypatch.setattr(journal, "record_now", lambda *_, **__: False)
    pool = Bounded()
    with pytest.raises(JournalError, match="no room"):
        await asyncio.wait_for(run(journal, pool, plan()), 30)
    assert 0 < pool.committed == journal.count() < 100
    monkeypatch.setattr(journal, "record", record)
    rest = Pool()
    summary = await run(journal, rest, plan())
    assert (rest.ran, summary.reused) == (100 - pool.committed, pool.committed)


async def test_what_is_done_when_it_is_cancelled_is_kept(journal: Journal) -> None:
    done = asyncio.Event()

    class Stuck(Pool):
        started = 0

        async def execute(self, spec: TrialSpec, *, outputs: bytes = b"", **more: object) -> TrialOutcome:
            self.started += 1
            if self.started > 30:
                await asyncio.Event().wait()
            outcome = await super().execute(spec, outputs=outputs, **more)
            if self.ran == 30:
                done.set()
            return outcome

    stuck = Stuck()
    running = asyncio.create_task(run(journal, stuck, plan()))
    await asyncio.wait_for(done.wait(), 10)
    for _ in range(10):
        await asyncio.sleep(0)  # the last of them reaches the consumer
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert journal.count() == 30
    await asyncio.sleep(0)
    assert not stuck.begun


async def test_the_trials_of_two_processes_are_one_execution_each(tmp_path: Path) -> None:
    """Both run all; the first final outcome of each is what both collect."""
    url = str(tmp_path / "journal.sqlite")

    def answering(worker: str) -> Answer:
        return lambda spec, outputs: result(spec, outputs)._replace(worker=worker)

    with Journal(url) as one, Journal(url) as other:
        await asyncio.gather(run(one, Pool(answering("one")), plan()), run(other, Pool(answering("other")), plan()))
        assert one.count() == 100
        assert outcomes(one, plan()) == outcomes(other, plan())


async def test_no_more_is_lost_to_a_kill_than_is_in_flight(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has run and is not recorded when the process is killed runs again."""
    pool, unrecorded = Pool(), []

    def counted(record: Callable[..., Any]) -> Callable[..., Any]:
        def recorded(generation: str, entries: list[Entry], **given: float) -> Any:
            unrecorded.append(pool.ran - journal.count())
            return record(generation, entries, **given)

        return recorded

    for name in ("record", "record_now"):
        monkeypatch.setattr(journal, name, counted(getattr(journal, name)))
    await run(journal, pool, plan())
    assert journal.count() == plan().total
    assert 0 < max(unrecorded) <= 16
