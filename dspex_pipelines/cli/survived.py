"""A command that outlives what it runs: the rest of it goes on in a child, and how that ended is told."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import select
import signal
import sys
from collections.abc import Generator

from dspex_pipelines.cli import exits
from dspex_pipelines.cli.output import console
from dspex_pipelines.wire.processes import die_with_parent, ending

_BY_ITSELF = b"."
_LAST_WORDS_S = 2.0
"""How long what the child has printed may take to be written; its scribe takes no longer."""


@contextlib.contextmanager
def survived() -> Generator[None]:
    """Run what is within in a child on the same terminal; this process waits, and ends as the child does.

    Where it does not end by itself, that is told and is exit code 1; a crash of native code is told with the lines that
    called it. To be entered before there are threads.
    """
    reading, writing = os.pipe()
    # Ctrl-C reaches both, and is the child's to answer.
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = os.fork()
    if child:
        os.close(writing)
        sys.exit(_awaited(child, reading))
    die_with_parent()
    signal.signal(signal.SIGINT, interrupt)
    os.close(reading)
    # Standard error may be one that has no descriptor, as under a test.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        faulthandler.enable(all_threads=False)
    try:
        yield
    finally:
        os.write(writing, _BY_ITSELF)


def _awaited(child: int, reading: int) -> int:
    """Return the exit code of a child that says when it ends by itself."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    # Whatever writes the child's last words has the other end too, and closes it after them.
    said = os.read(reading, 1) if select.select([reading], [], [], _LAST_WORDS_S)[0] else b""
    if said == _BY_ITSELF and code >= 0:
        return code
    console.print(f"worker_lost: the program's process {ending(code)}", style="red", soft_wrap=True)
    return exits.PROBLEM
