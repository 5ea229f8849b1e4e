"""Which trial is named when native code holds a worker's interpreter: a real process, looked at from outside."""

from __future__ import annotations

import subprocess
import sys

from dspex_pipelines.bridge import inspection
from dspex_pipelines.wire.marks import MarksOfAnother
from tests.bridge.conftest import ROOT

THREADS = 48
HOLDER = 17
HELD = f"""
import ctypes, sys, threading
from dspex_pipelines.wire.marks import Marks

sys.setswitchinterval(1e-3)  # who waits for the lock wakes five times as often as usual: a glance may find it awake
marks, go, ready = Marks(), threading.Event(), threading.Barrier({THREADS} + 1)
library = ctypes.PyDLL(None)


def run(attempt):
    marks.mark(attempt)
    ready.wait()
    if attempt == {HOLDER}:
        print(marks.fd, flush=True)
        library.sleep(3600)
    while True:
        pass


for attempt in range(1, {THREADS} + 1):
    threading.Thread(target=run, args=(attempt,), daemon=True).start()
ready.wait()
threading.Event().wait()
"""


def test_of_many_threads_only_the_one_that_holds_the_interpreter_is_suspected() -> None:
    with subprocess.Popen([sys.executable, "-c", HELD], stdout=subprocess.PIPE, cwd=ROOT) as held:
        try:
            assert held.stdout is not None
            marks = MarksOfAnother.open(held.pid, int(held.stdout.readline()))
            assert marks is not None
            # What was said was written with the lock; it is kept from the next call on.
            while "nanosleep" not in " ".join(inspection._waits_in(held.pid, thread) for thread in marks.running()):
                assert held.poll() is None
            assert [inspection.suspects(held.pid, marks) for _ in range(10)] == [[HOLDER]] * 10
        finally:
            held.kill()
