"""Sessions: versioned, atomic, checked; in the store and over the wire."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from dspex.v1 import session_pb2, session_pb2_grpc
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.server import Bridge
from dspex_pipelines.bridge.sessions import SessionLimits, SessionStore, Snapshot
from dspex_pipelines.errors import InvalidValue, ProgramUnavailable, UnknownSession, VersionConflict
from dspex_pipelines.model.payload import decode, encode
from dspex_pipelines.model.space import Configuration, ConfigurationSpace, Ordered
from dspex_pipelines.model.trial import MetricSpec, ProgramSpec
from dspex_pipelines.model.variables import Integer, Text

SPACE = ConfigurationSpace(
    variables=(Integer(name="low", low=0, high=2), Integer(name="high", low=0, high=2)),
    constraints=(Ordered(lower="low", upper="high"),),
)
TTL_S = 60.0
PROGRAM = ProgramSpec(entry_point="somewhere.else:program", init={"depth": 2}, version="1" * 32)
METRIC = MetricSpec(entry_point="somewhere.else:metric", version="2" * 32)

whole = st.sampled_from([{"low": low, "high": high} for high in range(3) for low in range(high + 1)])
part = st.dictionaries(st.sampled_from(["low", "high"]), st.integers(0, 2))
refused = st.sampled_from([{"low": 1, "high": 3}, {"low": 2, "high": 1}, {"low": 1, "high": 1.5}, {"low": 1, "up": 1}])


class Sessions(RuleBasedStateMachine):
    """One session against what was ever set in it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, Snapshot] = {}
        self.recent: list[int] = []
        """Every version, the one set last at the end."""
        self.pins: dict[int, int] = {}
        self.open = True

    @initialize(kept=st.sampled_from([0, 1, 3]))
    def open_session(self, kept: int) -> None:
        self.store = SessionStore(SessionLimits(unreferenced=kept, ttl_s=TTL_S))
        self.kept = max(kept, 1)  # the newest stays in any case
        self.now = self.used_at = 0.0
        self.touched = True
        self.id = self.store.open(b"", SPACE).session_id

    def alive(self, version: int) -> bool:
        try:
            return self.store.snapshot(self.id, version).version == version
        except UnknownSession:
            return False

    def was_set(self, snapshot: Snapshot, values: Mapping[str, object]) -> None:
        assert snapshot.configuration.values == values
        assert decode(snapshot.values) == values
        assert snapshot.digest == Configuration(values).digest  # type: ignore[arg-type]
        if snapshot.version in self.made:
            self.recent.remove(snapshot.version)
        else:
            assert snapshot.version == len(self.made) + 1
            self.made[snapshot.version] = snapshot
        self.recent.append(snapshot.version)

    @property
    def newest(self) -> int:
        return self.recent[-1] if self.recent else 0

    @precondition(lambda self: self.open)
    @rule(values=whole)
    def replace(self, values: dict[str, int]) -> None:
        self.touched = True
        alike = [version for version, snapshot in self.made.items() if snapshot.configuration.values == values]
        expected = alike[-1] if alike and self.alive(alike[-1]) else len(self.made) + 1
        snapshot = self.store.set_variables(self.id, values)
        assert snapshot.version == expected
        self.was_set(snapshot, values)

    @precondition(lambda self: self.open and self.recent)
    @rule(values=part)
    def merge(self, values: dict[str, int]) -> None:
        self.touched = True
        merged = {**self.made[self.newest].configuration.values, **values}
        assume(merged["low"] <= merged["high"])  # type: ignore[operator]
        self.was_set(self.store.set_variables(self.id, values, replace=False), merged)

    @precondition(lambda self: self.open)
    @rule(values=whole, behind=st.integers(-2, 2))
    def compare_and_set(self, values: dict[str, int], behind: int) -> None:
        self.touched = True
        expected = self.newest - behind
        if behind:
            with pytest.raises(VersionConflict) as conflict:
                self.store.set_variables(self.id, values, expected_version=expected)
            assert (conflict.value.expected, conflict.value.actual) == (expected, self.newest)
        else:
            made = len(self.made)
            self.was_set(self.store.set_variables(self.id, values, expected_version=expected), values)
            assert len(self.made) == made + 1

    @precondition(lambda self: self.open)
    @rule(values=refused, replace=st.booleans())
    def one_bad_value_changes_nothing(self, values: dict[str, Any], replace: bool) -> None:
        self.touched = True
        changed = self.store.session(self.id).changed
        with pytest.raises(InvalidValue):
            self.store.set_variables(self.id, values, replace=replace)
        assert not changed.is_set()

    @precondition(lambda self: self.open and self.recent)
    @rule(data=st.data(), trials=st.integers(1, 3))
    def pin(self, data: st.DataObject, trials: int) -> None:
        self.touched = True
        version = data.draw(st.sampled_from(sorted(self.made)))
        if self.alive(version):
            self.store.pin(self.id, version, trials)
            self.pins[version] = self.pins.get(version, 0) + trials
        else:
            with pytest.raises(UnknownSession):
                self.store.pin(self.id, version, trials)

    @precondition(lambda self: self.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        self.touched = True
        version = data.draw(st.sampled_from(sorted(self.pins)))
        trials = data.draw(st.integers(1, self.pins[version]))
        last = self.store.unpin(self.id, version, trials)
        self.pins[version] -= trials
        if not self.pins[version]:
            del self.pins[version]
        assert last == (not self.open and not self.pins)

    @precondition(lambda self: self.open and len(self.made) > 3)
    @rule()
    def close(self) -> None:
        assert self.store.close(self.id) == (not self.pins)
        self.open = False

    @rule(seconds=st.sampled_from([0.0, 1.0, TTL_S / 2, TTL_S, 2 * TTL_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.touched or self.pins:
            # Used at some moment until now: now at the latest.
            self.touched, self.used_at = False, self.now
        expired = self.open and self.now - self.used_at >= TTL_S
        assert self.store.expire(self.now) == [self.id] * expired
        if expired:
            self.open = False

    @precondition(lambda self: not self.open and not self.pins)
    @rule()
    def unpin_what_is_gone(self) -> None:
        assert not self.store.unpin(self.id, self.newest)

    @invariant()
    def what_is_alive_is_as_it_was_made(self) -> None:
        assert len(self.store) == self.open
        if not self.open:
            return
        used = self.store._sessions[self.id].used
        self.look()
        # Looking counts as using it, but not of this test.
        self.store._sessions[self.id].used = used

    def look(self) -> None:
        alive = {version for version in self.made if self.alive(version)}
        for version in alive:
            assert self.store.snapshot(self.id, version) is self.made[version]
        assert alive >= set(self.recent[-self.kept :])
        assert len(alive - set(self.pins)) <= self.kept
        if self.recent:
            assert self.store.snapshot(self.id).version == self.newest

    @invariant()
    def what_is_pinned_is_alive_even_when_closed(self) -> None:
        for version in self.pins:
            session, snapshot = self.store.pinned(self.id, version)
            assert session.session_id == self.id
            assert snapshot is self.made[version]

    @invariant()
    def a_closed_session_is_nobodys_and_goes_with_its_last_pin(self) -> None:
        if self.open:
            return
        for attempt in (
            lambda: self.store.session(self.id),
            lambda: self.store.snapshot(self.id),
            lambda: self.store.set_variables(self.id, {"low": 0, "high": 0}),
            lambda: self.store.pin(self.id, self.newest),
            lambda: self.store.close(self.id),
        ):
            with pytest.raises(UnknownSession):
                attempt()
        assert (self.id in self.store._sessions) == bool(self.pins)


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_without_a_space_only_plain_values_by_name_are_taken() -> None:
    store = SessionStore()
    session = store.open(b"", None).session_id
    first = store.set_variables(session, {"k": 1, "name": "x", "on": True})
    for values in ({"k": 2, "name": None}, {"k": 2, "name": [1]}, {"k": 2, 3: 4}):
        with pytest.raises(InvalidValue):
            store.set_variables(session, values, replace=False)  # type: ignore[arg-type]
    assert store.snapshot(session) is first


# ---------------------------------------------------------------------- over the wire


@pytest.fixture
def address() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    yield f"unix:{folder}/s"
    shutil.rmtree(folder)


@pytest.fixture
async def bridge(address: str) -> AsyncIterator[Bridge]:
    async with Bridge(address, allow=("somewhere.*",)) as opened:
        yield opened


@pytest.fixture
async def client(bridge: Bridge) -> AsyncIterator[PoolClient]:
    async with PoolClient(bridge.address) as opened:
        yield opened


@pytest.fixture
async def stub(bridge: Bridge) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(bridge.address) as channel:
        yield session_pb2_grpc.SessionServiceStub(channel)


async def open_session(client: PoolClient) -> int:
    return await client.open_session(PROGRAM, [METRIC], SPACE.to_json())


async def test_a_session_says_what_it_is_about_and_what_it_holds(client: PoolClient, stub: Any) -> None:
    session = await open_session(client)
    empty = await stub.GetSession(session_pb2.GetSessionRequest(session_id=session))
    assert (empty.session.session_id, empty.HasField("snapshot")) == (session, False)
    program, (metric,) = empty.session.program, empty.session.metrics
    assert (program.entry_point, decode(program.init), program.version) == (PROGRAM.entry_point, {"depth": 2}, "1" * 32)
    assert (metric.entry_point, metric.version, metric.name) == (METRIC.entry_point, METRIC.version, "metric")
    first = await client.set_variables(session, {"low": 0, "high": 1})
    second = await client.set_variables(session, {"high": 2}, replace=False)
    assert await client.get_session(session, first.version) == (first, {"low": 0, "high": 1})
    assert await client.get_session(session) == (second, {"low": 0, "high": 2})
    with pytest.raises(UnknownSession) as unknown:
        await client.get_session(session, 9)
    assert (unknown.value.session_id, unknown.value.version) == (str(session), 9)


async def test_what_was_set_last_is_what_is_read_and_added_to(client: PoolClient) -> None:
    session = await open_session(client)
    first = await client.set_variables(session, {"low": 0, "high": 0})
    await client.set_variables(session, {"low": 1, "high": 1})
    assert await client.set_variables(session, {"low": 0, "high": 0}) == first
    assert (await client.get_session(session))[1] == {"low": 0, "high": 0}
    third = await client.set_variables(session, {"high": 2}, replace=False, expected_version=first.version)
    assert await client.get_session(session) == (third, {"low": 0, "high": 2})


async def test_one_of_many_writers_wins_a_compare_and_set(client: PoolClient) -> None:
    session = await open_session(client)
    wanted = [{"low": low, "high": 2} for low in (0, 1, 2)]
    answers = await asyncio.gather(
        *(client.set_variables(session, values, expected_version=0) for values in wanted), return_exceptions=True
    )
    conflicts = [answer for answer in answers if isinstance(answer, VersionConflict)]
    assert [(error.session_id, error.expected, error.actual) for error in conflicts] == [(str(session), 0, 1)] * 2
    (won,) = [values for values, answer in zip(wanted, answers, strict=True) if answer not in conflicts]
    assert (await client.get_session(session))[1] == won


async def test_no_update_of_many_concurrent_ones_is_lost(client: PoolClient) -> None:
    space = ConfigurationSpace(variables=tuple(Integer(name=f"v{i}", low=0, high=50) for i in range(20)))
    session = await client.open_session(PROGRAM, [], space.to_json())
    await client.set_variables(session, {f"v{i}": 0 for i in range(20)})

    async def count_up(name: str) -> None:
        for value in range(1, 11):
            await client.set_variables(session, {name: value}, replace=False)

    await asyncio.gather(*(count_up(f"v{i}") for i in range(20)))
    assert (await client.get_session(session))[1] == {f"v{i}": 10 for i in range(20)}


@pytest.mark.parametrize("values", [[1, 2], {"low": 1, "high": 3}, {"low": 2, "high": 1}, {"low": 1}, {1: 2}])
async def test_a_refused_batch_leaves_no_trace(client: PoolClient, stub: Any, values: object) -> None:
    session = await open_session(client)
    before = await client.set_variables(session, {"low": 0, "high": 0})
    request = session_pb2.SetVariablesRequest(session_id=session, values=encode(values), replace=True)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stub.SetVariables(request)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (await client.get_session(session))[0] == before
    assert (await client.set_variables(session, {"low": 0, "high": 1})).version == before.version + 1


async def test_versions_of_many_configurations_are_made_in_one_call(client: PoolClient, stub: Any) -> None:
    session = await open_session(client)
    known = await client.set_variables(session, {"low": 0, "high": 1})
    wanted = [{"low": 0, "high": 0}, {"low": 0, "high": 1}, {"low": 0, "high": 2}, {"low": 0, "high": 0}]
    versions = await client.make_versions(session, wanted)
    assert versions == [2, known.version, 3, 2]
    for version, values in zip(versions, wanted, strict=True):
        snapshot, found = await client.get_session(session, version)
        assert (found, snapshot.digest) == (values, Configuration(values).digest)
    assert await client.make_versions(session, []) == []
    with pytest.raises(UnknownSession):
        await client.make_versions(session + 1, wanted)
    too_many = session_pb2.MakeVersionsRequest(session_id=session, values=[encode(wanted[0])] * 1_025)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await stub.MakeVersions(too_many)
    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_configuration_that_is_refused_costs_the_others_no_version(client: PoolClient, stub: Any) -> None:
    session = await open_session(client)
    good = encode({"low": 0, "high": 1})
    bad = [b"\xc1", encode([1, 2]), encode({1: 2}), encode({"low": 2, "high": 1}), encode({"low": 0})]
    request = session_pb2.MakeVersionsRequest(session_id=session, values=[*bad, good, b"x" * ((1 << 20) + 1)])
    assert (await stub.MakeVersions(request)).versions == [0, 0, 0, 0, 0, 1, 0]
    assert (await client.get_session(session))[1] == {"low": 0, "high": 1}


async def test_versions_that_were_let_go_in_the_same_call_are_not_named(address: str) -> None:
    async with Bridge(address, session_limits=SessionLimits(unreferenced=2)), PoolClient(address) as client:
        session = await client.open_session(PROGRAM, [], "")
        assert await client.make_versions(session, [{"k": k} for k in range(5)]) == [0, 0, 0, 4, 5]


async def test_many_large_configurations_take_as_many_calls_as_they_need(client: PoolClient) -> None:
    session = await client.open_session(PROGRAM, [], "")
    many = [{"prompt": f"{number} " + "x" * 900_000} for number in range(20)]
    assert await client.make_versions(session, many) == list(range(1, 21))


def test_what_it_costs_to_let_versions_go_does_not_grow_with_their_number() -> None:
    class Pins(dict[int, int]):
        asked = 0

        def __contains__(self, version: object) -> bool:
            self.asked += 1
            return super().__contains__(version)

    def asked(unreferenced: int) -> int:
        store = SessionStore(SessionLimits(unreferenced=unreferenced))
        session = store.open(b"", None)
        pins = session.pins = Pins()
        for k in range(unreferenced + 100):
            store.set_variables(session.session_id, {"k": k})
        assert len(session.snapshots) == unreferenced
        return pins.asked

    assert asked(2_000) == asked(20) == 100


async def test_only_what_the_pool_allows_is_opened(client: PoolClient) -> None:
    theirs = ProgramSpec(entry_point="os:system", version="1" * 32)
    with pytest.raises(ProgramUnavailable, match="somewhere"):
        await client.open_session(theirs, [], "")
    with pytest.raises(ProgramUnavailable, match="os:system"):
        await client.open_session(PROGRAM, [MetricSpec(entry_point="os:system", version="1" * 32)], "")


async def test_a_watcher_sees_each_change_and_the_end(client: PoolClient, stub: Any) -> None:
    session = await open_session(client)
    first = await client.set_variables(session, {"low": 0, "high": 0})
    watch = stub.WatchSession(session_pb2.WatchSessionRequest(session_id=session))
    stream = aiter(watch)
    seen = [(await anext(stream)).snapshot]
    for high in (1, 2, 0):
        await client.set_variables(session, {"low": 0, "high": high})
        # A batch that is refused, and values that are there already, are no change.
        with pytest.raises(InvalidValue):
            await client.set_variables(session, {"low": 0, "high": 9})
        await client.set_variables(session, {"low": 0, "high": high})
        seen.append((await anext(stream)).snapshot)
    assert [decode(snapshot.values)["high"] for snapshot in seen] == [0, 1, 2, 0]
    assert [snapshot.version for snapshot in seen] == [1, 2, 3, 1]
    assert {snapshot.session_id for snapshot in seen} == {session}
    assert seen[0].digest == seen[3].digest == first.digest
    await client.close_session(session)
    assert [answer async for answer in stream] == []
    assert await watch.code() is grpc.StatusCode.OK


async def test_watching_ends_with_a_session_that_never_held_anything(client: PoolClient, stub: Any) -> None:
    session = await open_session(client)
    watch = stub.WatchSession(session_pb2.WatchSessionRequest(session_id=session))
    await watch.initial_metadata()
    await client.close_session(session)
    assert [answer async for answer in watch] == []


async def test_a_session_that_never_was_cannot_be_watched(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await anext(aiter(stub.WatchSession(session_pb2.WatchSessionRequest(session_id=5))))
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_closed_session_is_unknown(client: PoolClient) -> None:
    session, other = await open_session(client), await open_session(client)
    await client.set_variables(session, {"low": 0, "high": 0})
    await client.close_session(session)
    for call in (
        client.get_session(session),
        client.get_session(session, 1),
        client.set_variables(session, {"low": 0, "high": 0}),
        client.close_session(session),
    ):
        with pytest.raises(UnknownSession):
            await call
    assert (await client.status()).sessions == 1
    await client.set_variables(other, {"low": 0, "high": 0})


async def test_a_value_that_a_worker_would_import_is_admitted_as_programs_are(client: PoolClient) -> None:
    space = ConfigurationSpace(variables=(Text(name="strategy", candidates=("somewhere.else:Retriever",)),))
    session = await client.open_session(PROGRAM, [METRIC], space.to_json())
    assert await client.set_variables(session, {"strategy": "somewhere.else:Retriever"})
    assert await client.set_variables(session, {"strategy": "note: this is text"})
    with pytest.raises(ProgramUnavailable, match="another --allow") as refusal:
        await client.set_variables(session, {"strategy": "os:system"})
    assert await client.make_versions(session, [{"strategy": "os:system"}, {"strategy": "somewhere.else:X"}]) == [0, 3]
    assert refusal.value.entry_point == "os:system"
