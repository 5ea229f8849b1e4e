"""Files that join a program's version: what they hold while trials run is what the version says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from dspex_pipelines.errors import ProgramUnavailable
from dspex_pipelines.model.payload import digest_of


def digest_of_files(files: Iterable[Path], *, entry_point: str) -> str:
    """Return the digest of their names and contents; raises `ProgramUnavailable` for one that cannot be read."""
    contents: list[list[object]] = []
    for file in files:
        try:
            # An absolute path tells more of the machine than of the program.
            contents.append([file.name if file.is_absolute() else str(file), file.read_bytes()])
        except OSError as error:
            raise ProgramUnavailable(entry_point=entry_point, reason=f"declared file: {error}") from error
    return digest_of(contents).hex()


class UnchangedFiles:
    """The files of a program, which are to hold what they did when its version, with their *digest*, was worked out."""

    def __init__(self, files: Sequence[Path], digest: str, *, entry_point: str) -> None:
        self._files, self._digest, self._entry_point = files, digest, entry_point
        self._seen: list[tuple[int, ...]] = []

    def check(self) -> None:
        """Raise `ProgramUnavailable` once one of them holds something else.

        To be called before outcomes are kept: those that come after a change may be of either.
        """
        seen = [_state(file) for file in self._files]
        if seen == self._seen:
            return
        if digest_of_files(self._files, entry_point=self._entry_point) != self._digest:
            names = ", ".join(map(str, self._files))
            reason = (
                f"a declared file ({names}) was edited since the run was planned: outcomes since then are not kept; "
                "run the evaluation again"
            )
            raise ProgramUnavailable(entry_point=self._entry_point, reason=reason)
        self._seen = seen


def _state(file: Path) -> tuple[int, ...]:
    """Return what differs once a file has been written or replaced, whatever is done to its time; nothing for none."""
    try:
        found = os.stat(file)  # noqa: PTH116 - before every transaction
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
