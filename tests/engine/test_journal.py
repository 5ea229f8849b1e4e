"""The journal: what is recorded comes back, the first final outcome wins, a kill loses nothing told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from dspex_pipelines.engine.journal.journal import Entry, Found, Journal
from dspex_pipelines.engine.journal.rows import entry_of
from dspex_pipelines.engine.journal.schema import HEAD, metadata
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.outcome import Attempt, ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import encode

RESULT = TrialResult(
    trial_id=b"t" * 16,
    configuration_digest=b"c" * 16,
    session_version=3,
    attempts=2,
    worker="w",
    queue_s=0.5,
    run_s=1.5,
    outputs_payload=b"o",
    scores_payload=b"s",
    trace_payload=b"r",
    usage_payload=b"u",
)


HISTORY = (
    Attempt(number=1, worker="v", type=ErrorType.WORKER_LOST, message="gone"),
    Attempt(number=2, worker="w", type=ErrorType.RATE_LIMITED, message="429", fingerprint="f", queue_s=1.0, run_s=2.0),
)


def _error(kind: ErrorType) -> TrialError:
    return TrialError(
        trial_id=b"t" * 16,
        configuration_digest=b"c" * 16,
        type=kind,
        message="why",
        traceback="where",
        retryable=True,
        fingerprint="f",
        retry_after_s=2.5,
        outputs_payload=b"o",
    )


SCORING = b"s" * 16
OTHER = b"o" * 16


def _id(number: int) -> bytes:
    return number.to_bytes(16, "big")


def _entries(*numbers: int, outcome: TrialOutcome = RESULT) -> list[Entry]:
    return [entry_of(SCORING, outcome._replace(trial_id=_id(number))) for number in numbers]


def _found(journal: Journal, *numbers: int, generation: str = "", scoring: bytes = SCORING) -> dict[bytes, Found]:
    return journal.find(generation, {_id(number): scoring for number in numbers})


@pytest.mark.parametrize("outcome", [RESULT, *(_error(kind) for kind in ErrorType)])
def test_every_field_comes_back(journal_url: str, outcome: TrialOutcome) -> None:
    outcome = outcome._replace(trial_id=_id(1), history=HISTORY)
    with Journal(journal_url) as journal:
        journal.record("", [Entry(SCORING, outcome)])
    with Journal(journal_url) as journal:
        found = _found(journal, 1, 2)
        assert list(found) == [_id(1)]
        assert (found[_id(1)].outcome, found[_id(1)].scored) == (outcome, True)


def test_the_first_final_outcome_wins(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        journal.record("", _entries(1, outcome=_error(ErrorType.TIMEOUT_RUN)))
        journal.record("", _entries(1))
        journal.record("", _entries(1, outcome=_error(ErrorType.PROGRAM_EXCEPTION)))
        journal.record("", _entries(1, outcome=RESULT._replace(worker="another")))
        assert _found(journal, 1)[_id(1)].outcome == RESULT._replace(trial_id=_id(1))
        assert journal.count() == 1


def test_a_failure_gives_way_to_a_run_that_does_not_want_it(journal_url: str) -> None:
    failed = _error(ErrorType.PROGRAM_EXCEPTION)
    with Journal(journal_url) as journal:
        journal.record("", _entries(1, outcome=failed))
        before = _found(journal, 1)[_id(1)].recorded_at
        journal.record("", _entries(1), failures_since=before)
        assert isinstance(_found(journal, 1)[_id(1)].outcome, TrialError)
        journal.record("", _entries(1), failures_since=before + 1)
        journal.record("", _entries(1, outcome=failed), failures_since=before + 1e6)
        assert isinstance(_found(journal, 1)[_id(1)].outcome, TrialResult), "a success stays"


def test_what_needs_nothing_is_told_from_what_is_run_or_scored_again(journal_url: str) -> None:
    failed, passing = _error(ErrorType.PROGRAM_EXCEPTION), _error(ErrorType.TIMEOUT_RUN)
    wanted = {_id(number): SCORING for number in range(1, 6)}
    with Journal(journal_url) as journal:
        assert journal.look_up("run", wanted) == (set(), {})
        journal.record("", _entries(1))
        journal.record("", _entries(2, outcome=failed))
        journal.record("", _entries(3, outcome=passing))
        journal.record("", [Entry(OTHER, RESULT._replace(trial_id=_id(4)))])
        found = journal.find("", {_id(number): SCORING for number in (2, 3, 4)}, traces=False)
        settled, rest = journal.look_up("", wanted)
        assert settled == {_id(1), _id(2)}
        assert rest == {trial_id: one for trial_id, one in found.items() if trial_id != _id(2)}
        since = found[_id(2)].recorded_at + 1
        assert journal.look_up("", wanted, failures_since=since) == ({_id(1)}, found)
        assert journal.look_up("", {_id(5): SCORING}) == (set(), {})


def test_traces_are_read_where_they_are_wanted(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        journal.record("", _entries(1))
        (found,) = journal.find("", {_id(1): SCORING}, traces=False).values()
        assert found.outcome == RESULT._replace(trial_id=_id(1), trace_payload=b"")


def test_generations_are_executions_of_their_own(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        journal.record("", _entries(1, 2))
        journal.record("run-a", _entries(1, outcome=RESULT._replace(worker="a")))
        journal.record("run-b", _entries(1, outcome=RESULT._replace(worker="b")))
    with Journal(journal_url) as journal:
        workers = {name: _found(journal, 1, generation=name)[_id(1)].outcome.worker for name in ("", "run-a", "run-b")}
        assert workers == {"": "w", "run-a": "a", "run-b": "b"}
        assert _found(journal, 2, generation="run-a") == {}


def test_scores_of_other_labels_are_kept_beside(journal_url: str) -> None:
    again = RESULT._replace(trial_id=_id(1), scores_payload=b"other")
    broken = _error(ErrorType.METRIC_EXCEPTION)._replace(trial_id=_id(2))
    with Journal(journal_url) as journal:
        journal.record("", _entries(1, 2))
        assert not _found(journal, 1, scoring=OTHER)[_id(1)].scored
        journal.record("", [Entry(OTHER, again, rescored=True), Entry(OTHER, broken, rescored=True)])
        journal.record("", [Entry(OTHER, again._replace(scores_payload=b"late"), rescored=True)])
        found = _found(journal, 1, 2, scoring=OTHER)
        assert all(one.scored for one in found.values())
        assert found[_id(1)].outcome == again
        failed = found[_id(2)].outcome
        assert isinstance(failed, TrialError)
        assert (failed.type, failed.message, failed.outputs_payload) == (ErrorType.METRIC_EXCEPTION, "why", b"o")
        assert (failed.worker, failed.attempts) == ("w", 2)
        assert _found(journal, 1)[_id(1)].outcome == RESULT._replace(trial_id=_id(1)), "the first ones stay"


def test_a_failed_metric_may_succeed_when_it_is_another(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        journal.record("", _entries(1, outcome=_error(ErrorType.METRIC_EXCEPTION)))
        journal.record("", [Entry(OTHER, RESULT._replace(trial_id=_id(1)), rescored=True)])
        outcome = _found(journal, 1, scoring=OTHER)[_id(1)].outcome
        assert isinstance(outcome, TrialResult)
        assert (outcome.scores_payload, outcome.outputs_payload) == (b"s", b"o")


def test_scores_that_are_to_be_made_again_give_way(journal_url: str) -> None:
    """A worker that was lost amid the scoring must not be what is known of it for ever."""
    lost = _error(ErrorType.WORKER_LOST)._replace(trial_id=_id(1))
    broken = _error(ErrorType.METRIC_EXCEPTION)._replace(trial_id=_id(1))
    scored = RESULT._replace(trial_id=_id(1), scores_payload=b"other")
    with Journal(journal_url) as journal:
        journal.record("", _entries(1))

        def after(outcome: TrialOutcome, failures_since: float = 0.0) -> Found:
            journal.record("", [Entry(OTHER, outcome, rescored=True)], failures_since=failures_since)
            found = _found(journal, 1, scoring=OTHER)[_id(1)]
            assert (found.scored, found.rescorable) == (True, True)
            return found

        assert after(lost).outcome.outputs_payload == b"o"
        failed = after(broken)
        assert isinstance(failed.outcome, TrialError)
        assert failed.outcome.type is ErrorType.METRIC_EXCEPTION
        assert after(scored).outcome == failed.outcome, "a metric that fails is final"
        assert after(scored, failed.recorded_at + 1).outcome == scored
        assert after(broken, failed.recorded_at + 1e6).outcome == scored, "a success stays"


def test_a_trial_twice_in_a_group_is_one_execution(journal_url: str) -> None:
    twice = [
        *_entries(1, outcome=_error(ErrorType.TIMEOUT_RUN)),
        *_entries(2, 1, 3),
        *_entries(1, 3, outcome=RESULT._replace(worker="late")),
    ]
    with Journal(journal_url) as journal:
        journal.record("", twice)
        assert journal.count() == 3
        assert {found.outcome.worker for found in _found(journal, 1, 2, 3).values()} == {"w"}
        assert all(isinstance(found.outcome, TrialResult) for found in _found(journal, 1, 2, 3).values())


def test_groups_of_any_size_are_recorded_and_found(journal_url: str) -> None:
    sizes = [1, 2, 7, 8, 9, 63, 65, 511, 512, 513, 1_237]
    with Journal(journal_url) as journal:
        start = 0
        for size in sizes:
            numbers = range(start, start + size)
            journal.record(
                "", [Entry(SCORING, RESULT._replace(trial_id=_id(number), attempts=number)) for number in numbers]
            )
            found = _found(journal, *numbers)
            assert [found[_id(number)].outcome.attempts for number in numbers] == list(numbers)
            start += size
        assert journal.count() == sum(sizes)


def test_what_never_had_outputs_needs_no_other_scores(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        journal.record("", _entries(1, outcome=_error(ErrorType.PROGRAM_EXCEPTION)))
        assert _found(journal, 1, scoring=OTHER)[_id(1)].scored


def test_many_trials_are_found_by_pages(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        journal.record("", _entries(*range(0, 5_000, 2)))
        assert set(_found(journal, *range(5_000))) == {_id(number) for number in range(0, 5_000, 2)}


WRITER = """
import sys
from dspex_pipelines.engine.journal.journal import Journal
from tests.engine.test_journal import _entries
first, last = int(sys.argv[2]), int(sys.argv[3])
with Journal(sys.argv[1]) as journal:
    for start in range(first, last, 50):
        journal.record("", _entries(*range(start, start + 50)))
        print(start + 50, flush=True)
"""
ROOT = Path(__file__).parents[2]


def _write(url: str, first: int, last: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, url, str(first), str(last)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_processes_that_open_and_write_at_once_lose_and_double_nothing(journal_url: str) -> None:
    writers = [_write(journal_url, start, start + 2_000) for start in (0, 1_000, 2_000)]
    assert [writer.wait(60) for writer in writers if writer.communicate()] == [0, 0, 0]
    with Journal(journal_url) as journal:
        assert journal.count() == 4_000


def test_a_killed_writer_loses_nothing_that_it_reported(journal_url: str) -> None:
    writer = _write(journal_url, 0, 1_000_000)
    assert writer.stdout is not None
    told = 0
    for _ in range(20):
        told = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    with Journal(journal_url) as journal:
        assert len(_found(journal, *range(told))) == told


# ---------------------------------------------------------------------- layouts


def test_the_tables_are_what_the_migrations_make(journal_url: str) -> None:
    with Journal(journal_url) as journal, journal.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == HEAD


def test_the_layout_before_is_brought_up_to_date(journal_url: str) -> None:
    with closing_engine(journal_url) as engine, engine.begin() as connection:
        _first_layout(connection)
        table = sa.Table("executions", sa.MetaData(), autoload_with=connection)
        row = {
            **dict.fromkeys(("session_version", "attempts", "queue_s", "run_s", "recorded_at"), 0),
            **dict.fromkeys(("configuration_digest", "scores", "trace", "usage", "failure"), b""),
            "outputs": b"o",
            "worker": "w",
        }
        timeout = _timed_out_row()
        connection.execute(
            sa.insert(table),
            [
                {**row, "key": _id(11), "trial_id": _id(1), **timeout},
                {**row, "key": _id(12), "trial_id": _id(1), "status": 0, "final": True, "worker": "second"},
                {**row, "key": _id(13), "trial_id": _id(1), "status": 0, "final": True, "recorded_at": 9.0},
                {**row, "key": _id(14), "trial_id": _id(2), **timeout},
            ],
        )
    with Journal(journal_url) as journal:
        found = _found(journal, 1, 2)
        assert (found[_id(1)].outcome.worker, found[_id(1)].scored) == ("second", False)
        assert isinstance(found[_id(2)].outcome, TrialError)
        journal.record("", _entries(2))
        assert isinstance(_found(journal, 2)[_id(2)].outcome, TrialResult)


MANY = 100_000
NUMBERS = {
    "sqlite": "WITH RECURSIVE numbers(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i < {last})",
    "postgresql": "WITH numbers(i) AS (SELECT generate_series(0, {last}))",
}
KEY = {"sqlite": "CAST(printf('%016d', {i}) AS BLOB)", "postgresql": "convert_to(lpad(({i})::text, 16, '0'), 'UTF8')"}
BYTES = {"sqlite": "X'6F'", "postgresql": "'o'::bytea"}


def test_a_large_journal_of_the_first_layout_is_brought_up_to_date(journal_url: str) -> None:
    """Each trial under two scorings, as the first layout had them; the first of the two stays."""
    with closing_engine(journal_url) as engine, engine.begin() as connection:
        _first_layout(connection)
        dialect = connection.dialect.name
        numbers, key, text = NUMBERS[dialect].format(last=MANY - 1), KEY[dialect], BYTES[dialect]
        for recorded_at in (2, 1):
            values = f"0, 1 = 1, {text}, 1, 1, 'w{recorded_at}', 0, 0, {recorded_at}, {', '.join([text] * 5)}"
            keys = f"{key.format(i=f'i + {recorded_at * MANY}')}, {key.format(i='i')}"
            connection.exec_driver_sql(f"INSERT INTO executions {numbers} SELECT {keys}, {values} FROM numbers")
    with Journal(journal_url) as journal:
        assert journal.count() == MANY
        wanted = {b"%016d" % number: SCORING for number in range(0, MANY, 997)}
        found = journal.find("", wanted)
        assert len(found) == len(wanted)
        assert {(one.outcome.worker, one.rescorable) for one in found.values()} == {("w1", True)}


def _first_layout(connection: sa.Connection) -> None:
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", "dspex_pipelines.engine.journal:migrations")
    command.upgrade(config, "0001")
    connection.exec_driver_sql("DROP TABLE alembic_version")


def _timed_out_row() -> dict[str, object]:
    status = list(ErrorType).index(ErrorType.TIMEOUT_RUN) + 1
    return {"status": status, "final": False, "failure": encode(["late", "", True, "", 0.0])}


@contextmanager
def closing_engine(url: str) -> Iterator[sa.Engine]:
    Path(sa.make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


def test_a_later_layout_is_refused_by_name(journal_url: str) -> None:
    with Journal(journal_url) as journal, journal.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DspexError, match="layout 9999"), Journal(journal_url):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DspexError, match="cannot be opened"), Journal(str(tmp_path / "file" / "j.sqlite")):
        pass


def test_a_password_is_never_told() -> None:
    url = "postgresql+psycopg://me:s3cret@localhost:1/none?connect_timeout=1"
    with pytest.raises(DspexError, match="cannot be opened") as caught, Journal(url):
        pass
    assert "s3cret" not in str(caught.value)
    assert "s3cret" not in repr(Journal(url).url)


@pytest.mark.parametrize("name", ["h?mode=memory", "h%41", "h#1", "h;x"])
def test_a_path_is_a_path_whatever_it_would_be_in_a_url(tmp_path: Path, name: str) -> None:
    path = tmp_path / name / "journal.sqlite"
    with Journal(str(path)) as journal:
        assert journal.count() == 0
    assert path.stat().st_size > 0
    assert [one.name for one in tmp_path.iterdir()] == [name]
