"""The journal: what is recorded comes back, the first final outcome wins, a kill loses nothing told."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dspex_pipelines.engine.journal import Journal, execution_key
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult

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


def _key(number: int) -> bytes:
    return execution_key(number.to_bytes(16, "big"), "", b"")


@pytest.mark.parametrize("outcome", [RESULT, *(_error(kind) for kind in ErrorType)])
def test_every_field_comes_back(tmp_path: Path, outcome: TrialOutcome) -> None:
    with Journal(str(tmp_path / "deep" / "j.sqlite")) as journal:
        journal.record([(_key(1), outcome)])
    with Journal(str(tmp_path / "deep" / "j.sqlite")) as journal:
        assert journal.find([_key(1), _key(2)]) == {_key(1): outcome}


def test_the_first_final_outcome_wins(tmp_path: Path) -> None:
    with Journal(str(tmp_path / "j.sqlite")) as journal:
        journal.record([(_key(1), _error(ErrorType.TIMEOUT_RUN))])
        assert journal.reusable([_key(1)]) == set()
        journal.record([(_key(1), RESULT)])
        journal.record([(_key(1), _error(ErrorType.PROGRAM_EXCEPTION))])
        assert journal.find([_key(1)]) == {_key(1): RESULT}
        assert journal.reusable([_key(1)]) == {_key(1)}
        assert journal.count() == 1


def test_many_keys_are_found_by_pages(tmp_path: Path) -> None:
    keys = [_key(number) for number in range(5_000)]
    with Journal(str(tmp_path / "j.sqlite")) as journal:
        journal.record([(key, RESULT) for key in keys[::2]])
        assert set(journal.find(keys)) == journal.reusable(keys) == set(keys[::2])


WRITER = """
import sys
from dspex_pipelines.engine.journal import Journal
from tests.engine.test_journal import RESULT, _key
first, last = int(sys.argv[2]), int(sys.argv[3])
with Journal(sys.argv[1]) as journal:
    for start in range(first, last, 50):
        journal.record([(_key(n), RESULT) for n in range(start, start + 50)])
        print(start + 50, flush=True)
"""
ROOT = Path(__file__).parents[2]


def _write(path: Path, first: int, last: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(first), str(last)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_processes_that_write_at_once_lose_and_double_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    writers = [_write(path, start, start + 2_000) for start in (0, 1_000, 2_000)]
    assert [writer.wait(60) for writer in writers if writer.communicate()] == [0, 0, 0]
    with Journal(str(path)) as journal:
        assert journal.count() == 4_000


def test_a_killed_writer_loses_nothing_that_it_reported(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    writer = _write(path, 0, 1_000_000)
    assert writer.stdout is not None
    told = 0
    for _ in range(20):
        told = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    with Journal(str(path)) as journal:
        assert len(journal.reusable([_key(number) for number in range(told)])) == told


def test_another_schema_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    with Journal(str(path)) as journal:
        journal.record([(_key(1), RESULT)])
    import sqlite3

    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(DspexError, match="schema 99"), Journal(str(path)):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DspexError, match="cannot be opened"), Journal(str(tmp_path / "file" / "j.sqlite")):
        pass
