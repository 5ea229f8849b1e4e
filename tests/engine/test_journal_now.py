"""Recording on the spot: the same as recording, or nothing and a no."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import event

from dspex_pipelines.engine.journal import database as journal_database
from dspex_pipelines.engine.journal.journal import Entry, Journal
from dspex_pipelines.engine.journal.rows import entry_of
from dspex_pipelines.errors import JournalError
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialResult
from tests.engine.test_journal import HISTORY, OTHER, RESULT, SCORING, _entries, _error, _found, _id


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_it_is_the_same_as_recording(file: Path) -> None:
    failed = _error(ErrorType.PROGRAM_EXCEPTION)
    with Journal(str(file)) as journal:
        assert journal.record_now("", _entries(1, outcome=_error(ErrorType.TIMEOUT_RUN)))
        assert journal.record_now("", [*_entries(1), *_entries(2, outcome=failed)])
        assert journal.record_now("", _entries(1, 2, outcome=RESULT._replace(worker="late")))
        found = _found(journal, 1, 2)
        assert found[_id(1)].outcome == RESULT._replace(trial_id=_id(1))
        assert isinstance(found[_id(2)].outcome, TrialError)
        assert journal.record_now("", _entries(2), failures_since=found[_id(2)].recorded_at + 1)
        assert isinstance(_found(journal, 2)[_id(2)].outcome, TrialResult)
        again = RESULT._replace(trial_id=_id(1), scores_payload=b"other")
        assert journal.record_now("", [Entry(OTHER, again, rescored=True)])
        assert _found(journal, 1, scoring=OTHER)[_id(1)].outcome == again
        assert journal.count() == 2
    with Journal(str(file)) as journal:
        assert len(_found(journal, 1, 2)) == 2


PLAIN = RESULT._replace(trace_payload=b"", usage_payload=b"")


@pytest.mark.parametrize("count", [1, 77, 600])
def test_every_field_comes_back(file: Path, count: int) -> None:
    kinds = [PLAIN, RESULT, PLAIN._replace(history=HISTORY), *(_error(kind) for kind in ErrorType), PLAIN]
    outcomes = [
        kinds[number % len(kinds)]._replace(trial_id=_id(number), session_version=number) for number in range(count)
    ]
    with Journal(str(file)) as journal:
        journal.record("", _entries(10_000))
        assert journal.record_now("", [entry_of(SCORING, outcome) for outcome in outcomes])
        found = _found(journal, *range(count))
    assert [found[_id(number)].outcome for number in range(count)] == outcomes


def test_plain_ones_come_back_in_groups_of_every_size(file: Path) -> None:
    with Journal(str(file)) as journal:
        journal.record("", _entries(10_000))
        for count in range(1, 1_100, 37):
            outcomes = [PLAIN._replace(trial_id=_id(count << 20 | number)) for number in range(count)]
            assert journal.record_now("", [entry_of(SCORING, outcome) for outcome in outcomes])
            found = journal.find("", {outcome.trial_id: SCORING for outcome in outcomes})
            assert [one.outcome for _, one in sorted(found.items())] == outcomes


def test_what_is_recorded_is_found_whoever_writes_meanwhile(file: Path) -> None:
    """Another one writes between the look how many lie between two ids and the look which."""
    with Journal(str(file)) as journal, Journal(str(file)) as other:
        journal.record("", _entries(*range(395, 400)))
        counted: list[str] = []

        def write(*arguments: object) -> None:
            if "count(*)" in str(arguments[2]):
                counted.append(str(arguments[2]))
                other.record("", _entries(*range(100, 250)))

        event.listen(journal.engine, "after_cursor_execute", write)
        found = _found(journal, *range(400))
        assert len(counted) == 1
    assert {_id(number) for number in range(395, 400)} <= set(found)


@pytest.mark.parametrize(
    ("recorded", "wanted", "looks", "searches"),
    [
        ({8: 100}, {7: 100, 9: 100}, 2, 0),
        ({}, dict.fromkeys(range(100), 20), 1, 0),
        ({6: 200}, {5: 20, 7: 100, 8: 20, 9: 20}, 2, 1),
    ],
    ids=["beside others of the configuration", "in small neighbourhoods", "in small and large ones"],
)
def test_of_what_was_never_run_few_trials_are_looked_up_by_themselves(
    file: Path, recorded: dict[int, int], wanted: dict[int, int], looks: int, searches: int
) -> None:
    """All of one configuration: how many by their neighbourhoods."""

    def ids(counts: dict[int, int]) -> list[bytes]:
        return [bytes([1, 2, one]) + number.to_bytes(13, "big") for one in counts for number in range(counts[one])]

    with Journal(str(file)) as journal:
        journal.record("", [entry_of(SCORING, PLAIN._replace(trial_id=one)) for one in ids(recorded)])
        asked: list[str] = []
        event.listen(journal.engine, "before_cursor_execute", lambda *given: asked.append(str(given[2])))
        assert journal.look_up("", dict.fromkeys(ids(wanted), SCORING)) == (set(), {})
        assert sum("count(*)" in statement for statement in asked) == looks
        # What may be there is asked for twice: what needs nothing, and of the rest all that is known.
        assert sum(" IN (" in statement for statement in asked) == 2 * searches


@pytest.mark.parametrize("first", [PLAIN, RESULT])
def test_the_first_final_outcome_stays_whichever_way_it_came(file: Path, first: TrialResult) -> None:
    late = PLAIN._replace(worker="late")
    with Journal(str(file)) as journal:
        journal.record("", _entries(1, outcome=_error(ErrorType.TIMEOUT_RUN)))
        assert journal.record_now("", _entries(1, outcome=first))
        assert journal.record_now("", _entries(1, outcome=late))
        journal.record("", _entries(1, outcome=late))
        assert _found(journal, 1)[_id(1)].outcome == first._replace(trial_id=_id(1))


def test_a_generation_is_made_by_recording_first(file: Path) -> None:
    with Journal(str(file)) as journal:
        assert not journal.record_now("run", _entries(1))
        journal.record("run", _entries(2))
        assert journal.record_now("run", _entries(1))
        assert len(_found(journal, 1, 2, generation="run")) == 2


def test_a_server_is_always_waited_for(postgresql_url: str) -> None:
    with Journal(postgresql_url) as journal:
        assert not journal.record_now("", _entries(1))
        assert journal.count() == 0


def test_another_writer_is_not_waited_for(file: Path) -> None:
    with Journal(str(file)) as journal, Journal(str(file)) as other:
        journal.record("", _entries(0))
        assert journal.record_now("", _entries(1))
        with other.database.writing():
            assert not journal.record_now("", _entries(2))
        assert journal.record_now("", _entries(3))
        assert set(_found(journal, *range(5))) == {_id(0), _id(1), _id(3)}


def test_a_group_that_fails_leaves_nothing_of_itself(file: Path) -> None:
    unwritable = Entry(SCORING, RESULT._replace(trial_id=_id(3), worker=object()))  # type: ignore[arg-type]
    with Journal(str(file)) as journal:
        journal.record("", _entries(0))
        with pytest.raises(JournalError, match=r"journal\.sqlite could not be written"):
            journal.record_now("", [*_entries(1, 2), unwritable])
        assert journal.count() == 1
        journal.record("", _entries(1))
        assert journal.record_now("", _entries(2))
        assert journal.count() == 3


def test_the_log_is_moved_into_the_file_by_who_may_wait(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long nobody else writes, it does not grow for ever."""
    monkeypatch.setattr(journal_database, "CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(journal_database, "CHECKPOINT_BYTES", 50 * 4_096)
    log = file.with_name("journal.sqlite-wal")
    waited = 0
    with Journal(str(file)) as journal:
        journal.record("", _entries(0))
        for start in range(1, 20_000, 100):
            group = _entries(*range(start, start + 100))
            if not journal.record_now("", group):
                waited += 1
                journal.record("", group)
            assert log.stat().st_size < 100 * 4_096
        assert journal.count() == 20_001
    assert 5 < waited < 100
    with sqlite3.connect(file) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_closing_lets_go_of_the_log(file: Path) -> None:
    with Journal(str(file)) as journal:
        journal.record("", _entries(0))
        journal.record_now("", _entries(1))
    assert [path.name for path in file.parent.iterdir()] == ["journal.sqlite"]
