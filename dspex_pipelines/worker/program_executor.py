"""Runs trials in this process: coroutines on the program loop, everything else in threads.

All methods are called on the program loop; programs run there or in threads, never on the wire's thread.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeAlias, TypeVar

from dspex.v1 import types_pb2
from dspex_pipelines.engine.calls.trial_calls import Caller, Permits, TrialCalls
from dspex_pipelines.engine.spans import SessionSpans
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.tracing import SpanSink
from dspex_pipelines.redaction import learn_environment
from dspex_pipelines.wire.codec import example_from_wire, failure_to_wire
from dspex_pipelines.wire.marks import Marks
from dspex_pipelines.worker.answers import answer_failed, answer_unavailable
from dspex_pipelines.worker.forked import end_if_forked
from dspex_pipelines.worker.instances import Instances, LoadedProgram, Loader, ProgramLoader
from dspex_pipelines.worker.permits import PermitsHere
from dspex_pipelines.worker.running import Ready, answer_in_loop, answer_in_thread
from dspex_pipelines.worker.session_context import KnownSession, SessionContext
from dspex_pipelines.worker.threads import CannotStart, Threads

MOST_READY = 64
LOOK_S = 0.05
"""The environment is looked through at most so often, which takes 0.1 ms, unless a variable has come or gone."""
T = TypeVar("T")
_Key: TypeAlias = tuple[int, int, tuple[str, ...]]
"""Session, version, and the names of the inputs."""


class Isolated(Protocol):
    """A trial in a process of its own."""

    def run(self) -> types_pb2.Outcome | None:
        """Return its outcome; None when it was stopped first. Raises `CannotStart`."""
        ...

    def stop(self) -> None:
        """End its process; from any thread, at any time."""
        ...


class TrialPermits(Permits, Protocol):
    """Leave to call models, for trials that may be cancelled."""

    def stop(self, trial: int) -> None:
        """Have whatever waits for that trial wait no more, and its next calls fail."""
        ...

    def forget(self, trial: int) -> None:
        """A trial that was stopped has ended."""
        ...


def _raise(error: BaseException) -> None:
    raise error


class ProgramExecutor:
    """Trials in, answers out through *deliver*; slots that come free late through *release*.

    A trial for which there is no thread or process goes to *give_back*, with the reason; without it, it fails as
    `WORKER_LOST`. *isolate* gives a trial a process of its own; without it, this process is the trial's own. *permits*
    give leave to call models; without them, a throttle of this process alone does. *spans* takes what is told of trials
    whose session is traced. *restore*
    is called after each trial in a thread, and *broken* with what nobody expected: an outcome is missing from then on.
    All callbacks are thread-safe. Nothing that a program does comes out as an exception here.
    """

    def __init__(
        self,
        *,
        slots: int,
        deliver: Callable[[types_pb2.Outcome], None],
        release: Callable[[int], None],
        marks: Marks | None = None,
        loader: Loader | None = None,
        give_back: Callable[[int, str], None] | None = None,
        isolate: Callable[[LoadedProgram, Configuration, types_pb2.Trial, Caller], Isolated] | None = None,
        permits: TrialPermits | None = None,
        spans: SpanSink | None = None,
        restore: Callable[[], None] = lambda: None,
        broken: Callable[[BaseException], None] = _raise,
    ) -> None:
        self._deliver = deliver
        self._release = release
        self._give_back = give_back or self._fail
        self._isolate = isolate
        self._permits = permits or PermitsHere()
        self._spans = spans
        self._restore = restore
        self._broken = broken
        self._context = SessionContext()
        self._loader = loader or ProgramLoader()
        self._instances = Instances()
        self._ready: OrderedDict[_Key, Ready | asyncio.Future[Ready]] = OrderedDict()
        """What was made ready, or is being made so; what could not be stays until it is asked for again."""
        # A cancelled thread cannot be killed, so its replacement needs a thread of its own.
        self._threads = Threads(most=2 * slots, broken=broken)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._in_threads: dict[int, Callable[[], None]] = {}
        """Trial to what stops it, if it can be stopped."""
        self._cancelled: set[int] = set()
        self._ending = threading.Lock()
        """Held while it is decided whether a thread's trial was cancelled or has ended."""
        self._loop = asyncio.get_running_loop()
        self._process = os.getpid()
        self._environment_size = 0
        """When it was last looked through."""
        self._look_at = 0.0
        self._marks = marks or Marks()

    @property
    def running(self) -> int:
        """Trials that have not ended, those that were cancelled included."""
        return len(self._tasks) + len(self._in_threads)

    @property
    def wanted(self) -> int:
        """Trials that have not ended and were not cancelled."""
        return sum(number not in self._cancelled for number in (*list(self._tasks), *list(self._in_threads)))

    @property
    def context(self) -> SessionContext:
        """The sessions and snapshots that the bridge has sent."""
        return self._context

    def submit(self, trial: types_pb2.Trial) -> None:
        """Run *trial* under exactly the snapshot it names."""
        number, session_id, version = trial.id, trial.session_id, trial.version
        try:
            found = self._context.find(session_id, version)
        except DspexError as error:
            self._deliver(answer_unavailable(trial, None, error))
            return
        if found is None:
            message = f"this worker was never sent version {version} of its session"
            failure = failure_to_wire(ErrorType.STALE_STATE, message, retryable=True)
            self._deliver(types_pb2.Outcome(id=number, failure=failure))
            return
        session, configuration = found
        try:
            example = example_from_wire(trial.example)
        except DspexError as error:
            # A client of another make may send anything.
            message = f"the example cannot be read: {error}"
            self._deliver(types_pb2.Outcome(id=number, failure=failure_to_wire(ErrorType.SERIALIZATION, message)))
            return
        key = (session_id, version, tuple(example.inputs))
        ready = self._ready.get(key)
        if isinstance(ready, Ready):
            self._ready.move_to_end(key)
        elif ready is None or ready.done():
            try:
                ready = self._prepared(key, session, configuration) or self._prepare(key, session, configuration)
            except CannotStart as error:
                self._give_back(number, str(error))
                return
            self._keep(key, ready)
        if isinstance(ready, Ready):
            if ready.in_loop:
                # Not by the loop, which makes a name for each: a fifth of its time.
                running = self._run_coroutine(trial, number, ready, example)
                self._tasks[number] = asyncio.Task(running, loop=self._loop, name="trial")
            else:
                self._start_thread(trial, number, ready, example)
            return
        starting = self._start_when_ready(trial, number, ready, configuration, example)
        self._tasks[number] = self._loop.create_task(starting)

    def cancel(self, attempt_id: int) -> None:
        """Stop a trial if that can be done; its slot is released when it really ends."""
        task = self._tasks.get(attempt_id)
        if task is not None:
            self._cancelled.add(attempt_id)
            # Only here: a task cancelled before its first step never gets to its own end.
            task.add_done_callback(lambda _: self._ended(attempt_id))
            task.cancel()
            # Threads that it has started may wait too.
            self._permits.stop(attempt_id)
            return
        with self._ending:
            stop = self._in_threads.get(attempt_id)
            if stop is not None:
                self._cancelled.add(attempt_id)
        if stop is not None:
            self._permits.stop(attempt_id)
            stop()
        else:
            self._release(attempt_id)

    def _fail(self, trial_id: int, reason: str) -> None:
        failure = failure_to_wire(ErrorType.WORKER_LOST, reason, retryable=True)
        self._deliver(types_pb2.Outcome(id=trial_id, failure=failure))

    # ------------------------------------------------------------------ getting ready

    def _keep(self, key: _Key, ready: Ready | asyncio.Future[Ready]) -> None:
        self._ready[key] = ready
        while len(self._ready) > MOST_READY:
            self._ready.popitem(last=False)

    def _prepared(self, key: _Key, session: KnownSession, configuration: Configuration) -> Ready | None:
        """Return what is ready here and now, because nothing has to be imported or built; None elsewhere."""
        program = self._loader.loaded(session.program, session.metrics, key[2], tuple(configuration.values))
        if program is None:
            return None
        instance = None
        if not self._is_isolated(session):
            instance = self._instances.there(program, configuration)
            if instance is None:
                return None
        self._look_for_keys()
        return self._made(program, session, configuration, instance)

    def _made(
        self, program: LoadedProgram, session: KnownSession, configuration: Configuration, instance: Any
    ) -> Ready:
        variables = {} if program.shape.configured else configuration.values
        spans = SessionSpans(session.trace, self._spans) if session.trace and self._spans else None
        return Ready(program, configuration, instance, variables, Caller(self._permits, session.calls, spans))

    def _look_for_keys(self) -> None:
        """Look through the environment, into which trials may have read keys from a file."""
        now, size = self._loop.time(), len(os.environ)
        if size != self._environment_size or now >= self._look_at:
            self._environment_size, self._look_at = size, now + LOOK_S
            learn_environment()

    def _is_isolated(self, session: KnownSession) -> bool:
        return session.program.isolation == "process" and self._isolate is not None

    def _prepare(self, key: _Key, session: KnownSession, configuration: Configuration) -> asyncio.Future[Ready]:
        """Import and build off the loop: it may take seconds, and the neighbours go on."""
        future: asyncio.Future[Ready] = self._loop.create_future()

        def settle(ready: Ready | None, error: BaseException | None) -> None:
            if error is not None:
                future.set_exception(error)
                future.exception()  # seen: every waiting trial tells it
            elif ready is not None:
                future.set_result(ready)
                if self._ready.get(key) is future:
                    self._ready[key] = ready

        def work() -> None:
            try:
                try:
                    program = self._loader.load(session.program, session.metrics, key[2], tuple(configuration.values))
                    instance = None if self._is_isolated(session) else self._instances.get(program, configuration)
                finally:
                    end_if_forked(self._process)
                ready = self._made(program, session, configuration, instance)
            except BaseException as error:  # noqa: BLE001 - a constructor may raise anything
                learn_environment()
                self._loop.call_soon_threadsafe(settle, None, _storable(error))
            else:
                # A program may have read keys from a file into it.
                learn_environment()
                self._loop.call_soon_threadsafe(settle, ready, None)
            self._restore()

        self._threads.run(work)
        return future

    async def _start_when_ready(
        self,
        trial: types_pb2.Trial,
        number: int,
        ready: asyncio.Future[Ready],
        configuration: Configuration,
        example: Any,
    ) -> None:
        try:
            state = await asyncio.shield(ready)
            if state.in_loop:
                await self._run_coroutine(trial, number, state, example)
            else:
                self._start_thread(trial, number, state, example)
        except DspexError as error:
            self._deliver(answer_unavailable(trial, configuration, error))
        except Exception as error:  # noqa: BLE001 - the program's constructor
            self._deliver(answer_failed(trial, configuration, error, calls=TrialCalls(None)))
        finally:
            self._tasks.pop(number, None)

    # ------------------------------------------------------------------ running

    def _ended(self, attempt_id: int) -> None:
        """A cancelled task is over: its slot is free, unless a thread of the trial still runs."""
        self._tasks.pop(attempt_id, None)
        if attempt_id in self._cancelled and attempt_id not in self._in_threads:
            self._cancelled.discard(attempt_id)
            self._permits.forget(attempt_id)
            self._release(attempt_id)

    async def _run_coroutine(self, trial: types_pb2.Trial, number: int, ready: Ready, example: Any) -> None:
        try:
            outcome = await self._marks.marked(answer_in_loop(trial, ready, example), number)
            if number not in self._cancelled:
                self._deliver(outcome)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - told
            self._broken(error)
        finally:
            self._tasks.pop(number, None)

    def _start_thread(self, trial: types_pb2.Trial, number: int, ready: Ready, example: Any) -> None:
        isolated: Isolated | None = None
        if ready.instance is None:
            assert self._isolate is not None
            isolated = self._isolate(ready.program, ready.configuration, trial, ready.caller)
        stop = _cannot_be_stopped if isolated is None else isolated.stop

        def work() -> None:
            outcome, reason = None, ""
            try:
                if isolated is not None:
                    outcome = isolated.run()
                else:
                    self._marks.mark(number)
                    outcome = answer_in_thread(trial, ready, example, on_loop=self._on_loop)
                    self._marks.mark(0)
                    self._restore()
            except CannotStart as error:
                reason = str(error)
            with self._ending:
                del self._in_threads[number]
                cancelled = number in self._cancelled
                self._cancelled.discard(number)
            if cancelled:
                self._permits.forget(number)
                self._release(number)
            elif outcome is not None:
                self._deliver(outcome)
            else:
                self._give_back(number, reason)

        self._in_threads[number] = stop
        try:
            self._threads.run(work)
        except CannotStart as error:
            del self._in_threads[number]
            self._give_back(number, str(error))

    def _on_loop(self, coroutine: Coroutine[Any, Any, T], trial_id: int) -> T:
        """Return what *coroutine*, which raises nothing, returns on the program loop."""

        async def run() -> T:
            return await self._marks.marked(coroutine, trial_id)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()


def _cannot_be_stopped() -> None:
    """Do what can be done about a thread."""


def _storable(error: BaseException) -> BaseException:
    """Return an exception that a future can hold; StopIteration cannot be one."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
