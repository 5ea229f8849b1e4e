"""What is written durably is whole, or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from dspex_pipelines.wire.durable import durably


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "plan.json"
    synced: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        "os.fsync", lambda file: synced.append((str(Path(f"/proc/self/fd/{file}").readlink()), path.exists()))
    )
    with durably(path) as file:
        file.write(b"{}")
    (unfinished, before), (folder, after) = synced
    assert (Path(unfinished).parent, before) == (tmp_path, False)
    assert (folder, after) == (str(tmp_path), True)
    assert path.read_bytes() == b"{}"


def test_what_was_there_stays_until_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), durably(path) as file:
        file.write(b"ne")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path], "what was not finished is gone"


def test_two_that_write_at_once_do_not_meet_though_they_have_the_same_number(tmp_path: Path) -> None:
    """As the first processes of two containers do."""
    path = tmp_path / "plan.json"
    with durably(path) as one:
        one.write(b"one")
        with durably(path) as other:
            other.write(b"other")
        assert path.read_bytes() == b"other"
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
