"""The etcd session against real etcds: killed, frozen, wiped, compacted, secured.

Method: a Recorder takes what the session delivers; it keeps both the state and every single change, so
that a test can say what must not have been delivered. Nothing is timed by sleeping: conditions are polled
up to a deadline, and where time itself must pass it is read off the session's own clock. Streams that
break in ways a real etcd cannot be made to are a small gRPC server's, OddEtcd.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager, closing
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import structlog
import uvloop
from aetcd import rpc

from limiter_node.control.etcd import EtcdSession
from limiter_node.control.etcd_link import EtcdConfig, LinkError, mapped
from tests.etcd_process import EtcdProcess, etcd_cluster
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, MutableMapping
    from pathlib import Path

PREFIX = "/limiter"
# Renewals have a third of it to be answered: with less a busy machine makes outages of its own.
TTL_S = 2.0
LONG_TTL_S = 9.0  # what happens within a second happens before the next renewal
NODE = "nodes/n1"


class Recorder:
    """Takes changes; knows the state, every change and every synced revision."""

    def __init__(self) -> None:
        self.state: dict[str, bytes] = {}
        self.changes: list[tuple[str, bytes | None, int]] = []
        self.synced_revisions: list[int] = []

    def changed(self, key: str, value: bytes | None, revision: int) -> None:
        self.changes.append((key, value, revision))
        if value is None:
            del self.state[key]
        else:
            self.state[key] = value

    def synced(self, revision: int) -> None:
        self.synced_revisions.append(revision)

    @property
    def deleted(self) -> list[str]:
        return [key for key, value, _ in self.changes if value is None]


class Proxy:
    """A TCP relay to etcd that can be cut, so that etcd lives on while the session is disconnected."""

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self._to_port = to_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", self.port)

    async def cut(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        await eventually(lambda: not self._writers)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        pair = {writer, to_writer}
        self._writers |= pair
        await asyncio.gather(_pump(reader, to_writer), _pump(to_reader, writer))
        self._writers -= pair


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with closing(writer):
        try:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass


async def eventually(is_so: Callable[[], object], *, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, "did not come true in time"
        await asyncio.sleep(0.005)


async def in_etcd(etcd: EtcdProcess, key: str) -> str:
    """The value of a key as etcdctl sees it; empty when there is none."""
    printed = await asyncio.to_thread(etcd.etcdctl, "get", "--print-value-only", f"{PREFIX}/{key}")
    return printed.strip()


async def eventually_in_etcd(etcd: EtcdProcess, key: str, value: str, *, within_s: float = 10.0) -> None:
    deadline = time.monotonic() + within_s
    while (found := await in_etcd(etcd, key)) != value:
        assert time.monotonic() < deadline, f"{key} is {found!r}, not {value!r}"


def put(etcd: EtcdProcess, key: str, value: str) -> None:
    etcd.etcdctl("put", f"{PREFIX}/{key}", value)


def put_many(etcd: EtcdProcess, keys: range) -> None:
    for first in range(keys.start, keys.stop, 100):
        puts = (f"put {PREFIX}/keys/{n:06} v{n}" for n in range(first, min(first + 100, keys.stop)))
        etcd.etcdctl("txn", input="\n" + "\n".join(puts) + "\n\n\n")


def last_lease_age_s(session: EtcdSession) -> float:
    assert session.lease_renewed_ns is not None
    return (time.monotonic_ns() - session.lease_renewed_ns) / 1e9


def config(*endpoints: str, ttl_s: float = TTL_S, user: str | None = None, password: str | None = None) -> EtcdConfig:
    return EtcdConfig(endpoints=endpoints, prefix=PREFIX, lease_ttl_s=ttl_s, user=user, password=password)


@asynccontextmanager
async def running(
    settings: EtcdConfig,
    recorder: Recorder,
    *,
    register: bool = True,
    page_keys: int = 5000,
) -> AsyncIterator[EtcdSession]:
    session = EtcdSession(settings, recorder, rng=random.Random(1), page_keys=page_keys)
    if register:
        session.register(NODE, b"here")
    await session.start()
    try:
        yield session
    finally:
        await session.close()


@asynccontextmanager
async def connected(settings: EtcdConfig, recorder: Recorder, *, page_keys: int = 5000) -> AsyncIterator[EtcdSession]:
    """A session that is connected, has registered, and has heard of it."""
    async with running(settings, recorder, page_keys=page_keys) as session:
        await eventually(lambda: session.connected and NODE in recorder.state)
        yield session


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def etcd() -> Iterator[EtcdProcess]:
    with EtcdProcess() as process:
        yield process


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, object]]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


# --- reading and watching ----------------------------------------------------------------------------


async def test_what_is_there_already_is_delivered_before_the_first_sync(etcd: EtcdProcess, recorder: Recorder) -> None:
    put(etcd, "rules/api", "one")
    etcd.etcdctl("put", f"{PREFIX}x/rules/api", "beside the prefix")
    async with running(config(etcd.url), recorder, register=False) as session:
        await asyncio.wait_for(session.first_sync(), 5)
        assert recorder.changes == [("rules/api", b"one", 2)]
        assert recorder.synced_revisions == [3]
        assert session.revision == 3


async def test_puts_and_deletes_arrive_within_a_second_at_their_revisions(
    etcd: EtcdProcess, recorder: Recorder
) -> None:
    async with connected(config(etcd.url), recorder) as session:
        revision = session.revision
        await asyncio.to_thread(put, etcd, "rules/api", "one")
        await eventually(lambda: recorder.changes[-1] == ("rules/api", b"one", revision + 1), within_s=1)
        await asyncio.to_thread(etcd.etcdctl, "del", f"{PREFIX}/rules/api")
        await eventually(lambda: recorder.changes[-1] == ("rules/api", None, revision + 2), within_s=1)
        assert session.revision == recorder.synced_revisions[-1] == revision + 2


async def test_an_empty_value_is_no_deletion(etcd: EtcdProcess, recorder: Recorder) -> None:
    async with connected(config(etcd.url), recorder):
        await asyncio.to_thread(put, etcd, "rules/api", "")
        await eventually(lambda: recorder.state.get("rules/api") == b"")


async def test_a_key_that_is_no_text_does_not_stop_the_others(etcd: EtcdProcess, recorder: Recorder) -> None:
    async with connected(config(etcd.url), recorder):
        await asyncio.to_thread(put, etcd, "rules/\udcff", "bad")  # the byte 0xff
        await asyncio.to_thread(put, etcd, "rules/api", "good")
        await eventually(lambda: "rules/api" in recorder.state)
        assert recorder.state["rules/\udcff"] == b"bad"


async def test_a_prefix_larger_than_a_page_is_read_at_one_revision(etcd: EtcdProcess, recorder: Recorder) -> None:
    put_many(etcd, range(1000))
    async with running(config(etcd.url), recorder, register=False, page_keys=300) as session:
        await asyncio.wait_for(session.first_sync(), 5)
        assert recorder.state == {f"keys/{n:06}": f"v{n}".encode() for n in range(1000)}
        assert len(recorder.changes) == 1000
        assert recorder.synced_revisions == [session.revision]


async def test_changes_made_during_a_long_delivery_arrive_once_and_in_order(
    etcd: EtcdProcess, recorder: Recorder
) -> None:
    put_many(etcd, range(1000))
    async with running(config(etcd.url), recorder, register=False, page_keys=10) as session:
        await eventually(lambda: len(recorder.changes) >= 20)
        assert not recorder.synced_revisions
        put_many(etcd, range(5))
        await asyncio.to_thread(etcd.etcdctl, "del", f"{PREFIX}/keys/000999")
        await eventually(lambda: "keys/000999" in recorder.deleted)
        assert len(recorder.changes) == 1000 + 5 + 1
        assert [revision for _, _, revision in recorder.changes[1000:]] == sorted(
            revision for _, _, revision in recorder.changes[1000:]
        )
        assert session.rereads == 0


async def test_a_compaction_while_disconnected_loses_nothing(etcd: EtcdProcess, recorder: Recorder) -> None:
    for key in ("rules/gone", "rules/changed", "rules/same"):
        put(etcd, key, "one")
    proxy = Proxy(etcd.client_port)
    await proxy.mend()
    async with connected(config(f"http://127.0.0.1:{proxy.port}"), recorder) as session:
        await proxy.cut()
        await eventually(lambda: not session.connected)
        seen = len(recorder.changes)
        etcd.etcdctl("del", f"{PREFIX}/rules/gone")
        put(etcd, "rules/changed", "two")
        put(etcd, "rules/new", "one")
        etcd.etcdctl("compact", str(session.revision + 3), "--physical")
        assert len(recorder.changes) == seen
        await proxy.mend()
        await eventually(lambda: session.connected)
        missed = {key: value for key, value, _ in recorder.changes[seen:] if key.startswith("rules/")}
        assert missed == {"rules/gone": None, "rules/changed": b"two", "rules/new": b"one"}
        assert (session.reconnects, session.rereads) == (1, 1)
    await proxy.cut()


async def test_a_compaction_between_the_read_and_the_watch_is_followed_by_another_read(
    etcd: EtcdProcess,
) -> None:
    class Compacting(Recorder):
        def synced(self, revision: int) -> None:
            if not self.synced_revisions:
                put(etcd, "rules/api", "two")
                etcd.etcdctl("del", f"{PREFIX}/rules/gone")
                etcd.etcdctl("compact", str(revision + 2))
            super().synced(revision)

    put(etcd, "rules/api", "one")
    put(etcd, "rules/gone", "one")
    recorder = Compacting()
    async with running(config(etcd.url), recorder, register=False) as session:
        await eventually(lambda: recorder.state == {"rules/api": b"two"})
        await asyncio.to_thread(put, etcd, "rules/api", "three")
        await eventually(lambda: recorder.state == {"rules/api": b"three"})
        assert (session.reconnects, session.rereads) == (0, 1)


async def test_a_consumer_that_fails_is_logged_and_told_again(
    etcd: EtcdProcess, logs: list[MutableMapping[str, object]]
) -> None:
    class FailsOnce(Recorder):
        failed = False

        def changed(self, key: str, value: bytes | None, revision: int) -> None:
            if key == "rules/api" and not self.failed:
                self.failed = True
                raise ValueError("a bug in the consumer")
            super().changed(key, value, revision)

    recorder = FailsOnce()
    async with connected(config(etcd.url), recorder):
        await asyncio.to_thread(put, etcd, "rules/api", "one")
        await eventually(lambda: recorder.state.get("rules/api") == b"one")
    assert "etcd session failed" in [line["event"] for line in logs]


# --- outages -----------------------------------------------------------------------------------------


async def test_an_etcd_down_for_longer_than_the_lease_deletes_nothing(etcd: EtcdProcess, recorder: Recorder) -> None:
    put(etcd, "rules/api", "one")
    async with connected(config(etcd.url), recorder) as session:
        etcd.kill()
        await eventually(lambda: not session.connected)
        await eventually(lambda: last_lease_age_s(session) > 1.5 * TTL_S)
        await asyncio.to_thread(etcd.start)
        await eventually(lambda: session.connected)
        assert recorder.deleted == []
        assert await in_etcd(etcd, NODE) == "here"
        assert last_lease_age_s(session) < TTL_S
        await asyncio.to_thread(put, etcd, "rules/api", "two")
        await eventually(lambda: recorder.state["rules/api"] == b"two", within_s=1)
        assert session.reconnects == 1


async def test_a_frozen_etcd_is_noticed_and_gets_the_registration_again(etcd: EtcdProcess, recorder: Recorder) -> None:
    async with connected(config(etcd.url), recorder) as session:
        etcd.pause()
        await eventually(lambda: not session.connected, within_s=1.5 * TTL_S)
        await eventually(lambda: last_lease_age_s(session) > 1.5 * TTL_S)
        assert recorder.deleted == []
        etcd.resume()
        await eventually(lambda: session.connected and session.lease_losses == 1)
        await eventually_in_etcd(etcd, NODE, "here")
        await eventually(lambda: recorder.state.get(NODE) == b"here")


async def test_an_etcd_that_is_wiped_is_taken_as_it_is(
    etcd: EtcdProcess, recorder: Recorder, logs: list[MutableMapping[str, object]]
) -> None:
    for key in ("rules/gone", "rules/api"):
        put(etcd, key, "one")
    async with connected(config(etcd.url), recorder) as session:
        etcd.kill()
        await eventually(lambda: not session.connected)
        assert recorder.deleted == []
        etcd.wipe()
        await asyncio.to_thread(etcd.start)
        await eventually(lambda: session.connected and recorder.state == {NODE: b"here"})
        assert session.revision < 4
        await asyncio.to_thread(put, etcd, "rules/api", "new")
        await eventually(lambda: recorder.state == {NODE: b"here", "rules/api": b"new"})
    assert "etcd wiped or restored" in [line["event"] for line in logs]


async def test_another_value_at_the_same_revision_of_a_new_history_is_noticed(
    etcd: EtcdProcess, recorder: Recorder
) -> None:
    put(etcd, "rules/api", "one")  # at revision 2
    proxy = Proxy(etcd.client_port)
    await proxy.mend()
    async with connected(config(f"http://127.0.0.1:{proxy.port}"), recorder) as session:
        await proxy.cut()
        await eventually(lambda: not session.connected)
        etcd.kill()
        etcd.wipe()
        await asyncio.to_thread(etcd.start)
        put(etcd, "rules/api", "other")  # at revision 2 again
        for _ in range(session.revision):
            put(etcd, "rules/later", "one")
        await proxy.mend()
        await eventually(lambda: recorder.state.get("rules/api") == b"other")
    await proxy.cut()


async def test_with_the_first_endpoint_dead_the_next_one_is_used(etcd: EtcdProcess, recorder: Recorder) -> None:
    put(etcd, "rules/api", "one")
    dead = f"http://127.0.0.1:{free_port()}"
    async with running(config(dead, etcd.url), recorder) as session:
        await asyncio.wait_for(session.first_sync(), 2)
        assert recorder.state["rules/api"] == b"one"


async def test_an_etcd_that_is_away_is_logged_once_and_not_at_each_retry(
    recorder: Recorder, logs: list[MutableMapping[str, object]]
) -> None:
    dead = f"http://127.0.0.1:{free_port()}"
    attempts = 0

    def monotonic_ns() -> int:
        nonlocal attempts
        attempts += 1
        return time.monotonic_ns()

    session = EtcdSession(config(dead), recorder, monotonic_ns=monotonic_ns)
    await session.start()
    await eventually(lambda: attempts > 10)
    await session.close()
    (line,) = logs
    assert (line["event"], line["endpoint"]) == ("etcd unreachable", dead)
    assert "refused" in str(line["error"])
    assert session.lease_renewed_ns is None


async def test_when_the_connected_member_of_three_is_killed_another_takes_over(recorder: Recorder) -> None:
    with etcd_cluster(3) as members:
        async with connected(config(*(member.url for member in members)), recorder) as session:
            members[0].kill()
            await eventually(lambda: not session.connected)
            await eventually(lambda: session.connected)
            await asyncio.to_thread(put, members[2], "rules/api", "one")
            await eventually(lambda: recorder.state.get("rules/api") == b"one", within_s=1)
            assert await in_etcd(members[1], NODE) == "here"


async def test_a_member_that_has_lost_its_leader_is_no_connection(recorder: Recorder) -> None:
    with etcd_cluster(3) as members:
        async with connected(config(members[0].url), recorder) as session:
            put(members[0], "rules/api", "one")
            await eventually(lambda: "rules/api" in recorder.state)
            members[1].kill()
            members[2].kill()
            await eventually(lambda: not session.connected)
            members[1].launch()
            await eventually(lambda: session.connected)
            await asyncio.to_thread(put, members[0], "rules/api", "two")
            await eventually(lambda: recorder.state.get("rules/api") == b"two")
            assert "rules/api" not in recorder.deleted


# --- lease and registrations -------------------------------------------------------------------------


async def test_a_registration_is_there_while_the_session_lives_and_can_be_changed(
    etcd: EtcdProcess, recorder: Recorder
) -> None:
    async with connected(config(etcd.url), recorder) as session:
        assert await in_etcd(etcd, NODE) == "here"
        session.register(NODE, b"there")
        session.register("nodes/second", b"too")
        await eventually(lambda: recorder.state == {NODE: b"there", "nodes/second": b"too"}, within_s=1)
        first_renewed_ns = session.lease_renewed_ns
        await eventually(lambda: session.lease_renewed_ns != first_renewed_ns)
        await eventually(lambda: last_lease_age_s(session) < TTL_S / 3)
    await eventually_in_etcd(etcd, NODE, "", within_s=3 * TTL_S + 2)


async def test_a_lease_revoked_behind_our_back_is_replaced_at_once(etcd: EtcdProcess, recorder: Recorder) -> None:
    async with connected(config(etcd.url, ttl_s=LONG_TTL_S), recorder) as session:
        lease_id = (await asyncio.to_thread(etcd.etcdctl, "lease", "list")).split()[-1]
        put_first = session.registered_revision
        await asyncio.to_thread(etcd.etcdctl, "lease", "revoke", lease_id)
        await eventually(lambda: recorder.deleted == [NODE], within_s=1)
        await eventually(lambda: recorder.state.get(NODE) == b"here", within_s=1)
        assert session.lease_losses == 1
        assert session.reconnects == 0
        await eventually(lambda: session.registered_revision)
        assert put_first is not None
        assert put_first < (session.registered_revision or 0) <= session.revision


async def test_a_registration_that_someone_deletes_is_put_again_at_once(etcd: EtcdProcess, recorder: Recorder) -> None:
    async with connected(config(etcd.url, ttl_s=LONG_TTL_S), recorder) as session:
        await asyncio.to_thread(etcd.etcdctl, "del", f"{PREFIX}/{NODE}")
        await eventually(lambda: recorder.deleted == [NODE], within_s=1)
        await eventually(lambda: recorder.state.get(NODE) == b"here", within_s=1)
        assert session.lease_losses == 0


async def test_a_registration_that_was_deleted_while_disconnected_is_put_again(
    etcd: EtcdProcess, recorder: Recorder
) -> None:
    proxy = Proxy(etcd.client_port)
    await proxy.mend()
    async with connected(config(f"http://127.0.0.1:{proxy.port}"), recorder) as session:
        await proxy.cut()
        await eventually(lambda: not session.connected)
        etcd.etcdctl("del", f"{PREFIX}/{NODE}")
        await proxy.mend()
        await eventually(lambda: session.connected)
        await eventually_in_etcd(etcd, NODE, "here")
    await proxy.cut()


async def test_leaving_removes_the_key_at_once_and_goes_on_watching(etcd: EtcdProcess, recorder: Recorder) -> None:
    async with connected(config(etcd.url), recorder) as session:
        await asyncio.wait_for(session.leave(), 1)
        assert await in_etcd(etcd, NODE) == ""
        assert session.lease_renewed_ns is None
        await asyncio.to_thread(put, etcd, "rules/api", "one")
        await eventually(lambda: recorder.state == {"rules/api": b"one"}, within_s=1)
        assert session.connected


async def test_leaving_an_etcd_that_is_away_neither_raises_nor_hangs(etcd: EtcdProcess, recorder: Recorder) -> None:
    async with connected(config(etcd.url), recorder) as session:
        etcd.kill()
        await asyncio.wait_for(session.leave(), 3)
    never_started = EtcdSession(config(etcd.url), recorder)
    await never_started.leave()
    await never_started.close()


async def test_leaving_with_a_lease_that_is_gone_already_is_leaving_all_the_same(
    etcd: EtcdProcess, recorder: Recorder
) -> None:
    async with connected(config(etcd.url, ttl_s=LONG_TTL_S), recorder) as session:
        lease_id = etcd.etcdctl("lease", "list").split()[-1]
        etcd.etcdctl("lease", "revoke", lease_id)  # without a turn of the loop up to leave()
        await asyncio.wait_for(session.leave(), 1)
        assert session.connected
        assert session.reconnects == 0


# --- an etcd that misbehaves -------------------------------------------------------------------------


class OddEtcd:
    """Answers as etcd does, except for the first watch, and the first renewal if that is the oddity."""

    def __init__(self, oddity: str) -> None:
        self._oddity = oddity
        self._watches = self._renewals = 0
        self._server = grpc.aio.server()
        self.url = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        header = rpc.ResponseHeader(cluster_id=1, raft_term=2, revision=7)
        kv = rpc.KeyValue(key=b"/limiter/rules/api", value=b"one", mod_revision=5)
        unary = {
            "KV/Range": (rpc.RangeRequest, rpc.RangeResponse(header=header, kvs=[kv])),
            "Lease/LeaseGrant": (rpc.LeaseGrantRequest, rpc.LeaseGrantResponse(header=header, ID=1, TTL=9)),
        }
        methods = {
            f"/etcdserverpb.{name}": grpc.unary_unary_rpc_method_handler(
                self._answering(response), request.FromString, bytes
            )
            for name, (request, response) in unary.items()
        }
        methods["/etcdserverpb.Watch/Watch"] = grpc.stream_stream_rpc_method_handler(
            self._watch, rpc.WatchRequest.FromString, bytes
        )
        methods["/etcdserverpb.Lease/LeaseKeepAlive"] = grpc.stream_stream_rpc_method_handler(
            self._renew, rpc.LeaseKeepAliveRequest.FromString, bytes
        )
        self._server.add_generic_rpc_handlers((_Methods(methods),))

    async def __aenter__(self) -> OddEtcd:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(None)

    def _answering(self, response: Any) -> Callable[[Any, Any], Awaitable[bytes]]:
        async def answer(_request: Any, _context: Any) -> bytes:
            return bytes(response.SerializeToString())

        return answer

    async def _watch(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[bytes]:
        self._watches += 1
        oddity = self._oddity if self._watches == 1 else "none"
        assert (await anext(requests)).create_request.start_revision == 8
        if oddity == "silent":
            await asyncio.Event().wait()
        yield rpc.WatchResponse(created=True).SerializeToString()
        if oddity in {"ends", "unrenewed"}:
            return
        if oddity == "cancelled":
            yield rpc.WatchResponse(canceled=True, cancel_reason="not allowed").SerializeToString()
        if oddity == "garbled":
            yield b"\xff\xff"
        kv = rpc.KeyValue(key=b"/limiter/rules/api", value=b"two", mod_revision=8)
        yield rpc.WatchResponse(events=[rpc.Event(kv=kv)]).SerializeToString()
        await asyncio.Event().wait()

    async def _renew(self, requests: AsyncIterator[Any], _context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            self._renewals += 1
            if self._oddity == "unrenewed" and self._renewals == 1:
                return
            yield rpc.LeaseKeepAliveResponse(ID=request.ID, TTL=9).SerializeToString()


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, methods: dict[str, Any]) -> None:
        self._methods = methods

    def service(self, call: Any) -> Any:
        return self._methods.get(call.method)


@pytest.mark.parametrize(
    ("oddity", "reason"),
    [
        ("silent", "no answer within the deadline"),
        ("ends", "watch ended"),
        ("garbled", "watch ended"),
        ("cancelled", "watch cancelled: not allowed"),
        ("unrenewed", "renewal ended without an answer"),
    ],
)
async def test_a_stream_that_goes_wrong_is_given_up_and_all_is_read_again(
    oddity: str,
    reason: str,
    recorder: Recorder,
    logs: list[MutableMapping[str, object]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("limiter_node.control.etcd.CALL_DEADLINE_S", 0.3)
    async with (
        OddEtcd(oddity) as odd_etcd,
        running(config(odd_etcd.url, ttl_s=LONG_TTL_S), recorder, register=False) as session,
    ):
        await eventually(lambda: recorder.state == {"rules/api": b"two"})
        assert recorder.changes == [("rules/api", b"one", 5), ("rules/api", b"two", 8)]
        assert set(recorder.synced_revisions) == {7, 8}
        assert session.rereads >= 1
    assert reason in [line.get("error") for line in logs]


@pytest.mark.parametrize("raised", [asyncio.CancelledError, asyncio.InvalidStateError])
async def test_a_call_that_grpc_drops_by_itself_is_an_error_and_no_cancellation(
    raised: type[BaseException],
) -> None:
    with pytest.raises(LinkError), mapped():
        raise raised


async def test_being_cancelled_during_a_call_stays_a_cancellation() -> None:
    async def wait() -> None:
        with mapped():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --- security ----------------------------------------------------------------------------------------


@pytest.fixture
def tls_etcd() -> Iterator[EtcdProcess]:
    with EtcdProcess(tls=True) as process:
        yield process


def tls_config(etcd: EtcdProcess, cert: Path) -> EtcdConfig:
    tls = etcd.certificates
    assert tls
    return EtcdConfig(endpoints=(etcd.url,), prefix=PREFIX, lease_ttl_s=TTL_S, ca=tls.ca, cert=cert, key=tls.key)


async def test_https_with_a_ca_and_a_client_certificate(tls_etcd: EtcdProcess, recorder: Recorder) -> None:
    tls = tls_etcd.certificates
    assert tls
    async with connected(tls_config(tls_etcd, tls.cert), recorder):
        await asyncio.to_thread(put, tls_etcd, "rules/api", "one")
        await eventually(lambda: recorder.state == {"rules/api": b"one", NODE: b"here"}, within_s=1)


async def test_certificates_are_read_anew_when_asked_to_reconnect(
    tls_etcd: EtcdProcess, recorder: Recorder, tmp_path: Path, logs: list[MutableMapping[str, object]]
) -> None:
    tls = tls_etcd.certificates
    assert tls
    cert = tmp_path / "cert.pem"
    async with running(tls_config(tls_etcd, cert), recorder) as session:
        await eventually(lambda: logs)
        assert f"cannot read {cert}" in str(logs[0]["error"])
        cert.write_text("no certificate")
        session.reconnect()
        await eventually(lambda: len(logs) > 1)
        cert.write_bytes(tls.cert.read_bytes())
        session.reconnect()
        await eventually(lambda: session.connected)
        session.reconnect()
        await eventually(lambda: session.connected and session.reconnects == 1)
        assert recorder.deleted == []


async def test_a_wrong_password_is_logged_and_tried_again_until_it_is_right(
    etcd: EtcdProcess, recorder: Recorder, logs: list[MutableMapping[str, object]]
) -> None:
    etcd.enable_auth("root-secret", limiter="another")
    async with running(config(etcd.url, user="limiter", password="secret"), recorder) as session:
        await eventually(lambda: logs)
        assert logs[0]["event"] == "etcd unreachable"
        assert "invalid user ID or password" in str(logs[0]["error"])
        await asyncio.to_thread(etcd.etcdctl, "user", "passwd", "limiter", "--interactive=false", input="secret\n")
        await eventually(lambda: session.connected)
        assert await in_etcd(etcd, NODE) == "here"


async def test_a_token_that_is_not_valid_any_more_is_replaced(etcd: EtcdProcess, recorder: Recorder) -> None:
    etcd.enable_auth("root-secret", limiter="secret")
    async with connected(config(etcd.url, user="limiter", password="secret"), recorder) as session:
        await asyncio.to_thread(etcd.etcdctl, "role", "add", "more")
        await asyncio.to_thread(etcd.etcdctl, "user", "grant-role", "limiter", "more")
        session.register(NODE, b"there")
        await eventually(lambda: recorder.state.get(NODE) == b"there")
        assert recorder.deleted == []


async def test_credentials_do_no_harm_before_authentication_is_enabled(etcd: EtcdProcess, recorder: Recorder) -> None:
    async with connected(config(etcd.url, user="limiter", password="secret"), recorder) as session:
        await asyncio.to_thread(etcd.enable_auth, "root-secret", limiter="secret")
        session.register(NODE, b"there")
        await eventually_in_etcd(etcd, NODE, "there")


# --- loops -------------------------------------------------------------------------------------------


async def _a_whole_life(etcd: EtcdProcess) -> None:
    recorder = Recorder()
    async with connected(config(etcd.url), recorder) as session:
        await asyncio.to_thread(etcd.stop)
        await eventually(lambda: not session.connected)
        await asyncio.to_thread(etcd.start)
        await eventually(lambda: session.connected)
        await asyncio.to_thread(put, etcd, "rules/api", "one")
        await eventually(lambda: recorder.state.get("rules/api") == b"one")
        await session.leave()


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_whole_life_on_either_event_loop(
    etcd: EtcdProcess, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    with asyncio.Runner(loop_factory=new_loop, debug=True) as runner:
        runner.run(_a_whole_life(etcd))
