"""What is referred to stays and the rest goes, in SQLite and PostgreSQL alike, at whatever size."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import pytest
import sqlalchemy as sa

from dspex_pipelines.engine.journal import retention as journal_retention
from dspex_pipelines.engine.journal.journal import Entry, Journal
from dspex_pipelines.engine.journal.retention import ANY_SCORING, Count, Group, Retention, groups, size
from dspex_pipelines.engine.journal.schema import executions, scores
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.outcome import ErrorType
from tests.engine.test_journal import OTHER, RESULT, _entries, _error, _found, _id


def kept(*numbers: int, scoring: bytes = ANY_SCORING) -> Iterable[tuple[bytes, bytes]]:
    return ((_id(number), scoring) for number in numbers)


def rescored(number: int, scoring: bytes = OTHER) -> list[Entry]:
    return [Entry(scoring, RESULT._replace(trial_id=_id(number)), rescored=True)]


def test_executions_are_counted_by_generation_and_outcome(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        journal.record("", [*_entries(1, 2), *_entries(3, outcome=_error(ErrorType.TIMEOUT_RUN))])
        journal.record("run-a", _entries(1))
        assert groups(journal) == [
            Group(generation="", status="ok", executions=2),
            Group(generation="", status="timeout_run", executions=1),
            Group(generation="run-a", status="ok", executions=1),
        ]


def test_the_write_ahead_log_counts(tmp_path: Path) -> None:
    with Journal(str(tmp_path / "journal.sqlite")) as journal:
        journal.record("", _entries(*range(2_000)))
        taken = size(journal)
        assert taken.log > taken.data > 0
        assert taken.total == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_bytes_grow_with_what_is_recorded(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        before = size(journal).total
        journal.record("", _entries(*range(2_000)))
        assert size(journal).total > before + 100_000


def test_what_nothing_refers_to_goes_and_the_rest_stays(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        journal.record("", _entries(*range(100)))
        journal.record("run-a", _entries(*range(50)))
        with Retention(journal, recorded_before=time.time()) as retention:
            retention.keep("", kept(*range(30)))
            retention.keep("", kept(*range(20, 40)))
            retention.keep("run-a", kept(7))
            retention.keep("run-of-nobody", kept(1))
            assert retention.unreferenced() == Count(executions=60 + 49, scores=0)
            assert retention.delete() == Count(executions=60 + 49, scores=0)
            assert retention.unreferenced() == Count(executions=0, scores=0)
            retention.reclaim()
        assert sorted(_found(journal, *range(100))) == [_id(number) for number in range(40)]
        assert list(_found(journal, *range(100), generation="run-a")) == [_id(7)]
        journal.record("run-a", _entries(8))
        assert len(_found(journal, *range(100), generation="run-a")) == 2


def test_scores_go_with_their_execution_or_when_only_others_count(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        journal.record("", _entries(1, 2, 3))
        for number in (1, 2, 3):
            journal.record("", [*rescored(number), *rescored(number, b"n" * 16)])
        with Retention(journal, recorded_before=time.time()) as retention:
            assert retention.has_scores()
            retention.keep("", kept(1, scoring=OTHER))
            retention.keep("", kept(2))
            assert retention.delete() == Count(executions=1, scores=1 + 2)
        assert _found(journal, 1, scoring=OTHER)[_id(1)].scored
        assert not _found(journal, 1, scoring=b"n" * 16)[_id(1)].scored
        assert _found(journal, 2, scoring=OTHER)[_id(2)].scored
        assert _found(journal, 2, scoring=b"n" * 16)[_id(2)].scored
        assert _found(journal, 3) == {}


def test_what_was_recorded_since_stays_and_so_do_the_outputs_of_new_scores(journal_url: str) -> None:
    with Journal(journal_url) as journal:
        journal.record("", _entries(1, 2))
        _age(journal, 100)
        journal.record("", [*rescored(1), *_entries(3)])
        with Retention(journal, recorded_before=time.time() - 50) as retention:
            assert retention.unreferenced() == Count(executions=1, scores=0)
            assert retention.unreferenced(recorded_before=time.time() - 200) == Count(executions=0, scores=0)
            retention.delete()
        assert set(_found(journal, 1, 2, 3)) == {_id(1), _id(3)}
        assert _found(journal, 1, scoring=OTHER)[_id(1)].scored


def _age(journal: Journal, by_s: float) -> None:
    with journal.database.writing() as connection:
        for table in (executions, scores):
            connection.execute(sa.update(table).values(recorded_at=table.c.recorded_at - by_s))


def test_it_is_done_in_chunks_between_which_others_write(journal_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_retention, "CHUNK", 100)
    told: list[tuple[int, int]] = []
    with Journal(journal_url) as journal, Journal(journal_url) as other:
        journal.record("", _entries(*range(1_000)))

        def on_progress(done: int, total: int) -> None:
            other.record("", _entries(10_000 + len(told)))
            told.append((done, total))

        with Retention(journal, recorded_before=time.time()) as retention:
            retention.keep("", kept(*range(0, 1_000, 2)))
            assert retention.delete(on_progress).executions == 500
        assert told == [(done, 1_000) for done in range(100, 1_100, 100)]
        assert journal.count() == 500 + 10


def test_what_stops_it_leaves_whole_chunks(journal_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_retention, "CHUNK", 100)

    def stop(done: int, total: int) -> None:
        if done == 300:
            raise DspexError("a run has begun")

    with Journal(journal_url) as journal:
        journal.record("", _entries(*range(1_000)))
        with pytest.raises(DspexError, match="begun"), Retention(journal, recorded_before=time.time()) as retention:
            retention.delete(stop)
        assert journal.count() == 700
        with Retention(journal, recorded_before=time.time()) as retention:
            retention.delete()
        assert journal.count() == 0


def test_room_is_given_back_to_the_file_system(tmp_path: Path) -> None:
    file = tmp_path / "journal.sqlite"
    with Journal(str(file)) as journal:
        journal.record("", _entries(*range(20_000)))
        with Retention(journal, recorded_before=time.time()) as retention:
            retention.keep("", kept(*range(10)))
            before = size(journal).total
            retention.delete()
            retention.reclaim()
        assert size(journal).total < before / 10
        assert len(_found(journal, *range(20_000))) == 10
