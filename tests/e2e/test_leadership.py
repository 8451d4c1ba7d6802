"""Leadership in a real etcd: one leads, another when it is gone, and nobody writes who leads no more.

Method: sessions and elections as nodes have them, all in this process; each takes what its session's watch says, and
notes the revisions of the records as the conductor does. A process that is frozen or cut off is a session whose relay
is cut. Nothing sleeps: conditions are polled up to a deadline.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from limiter_node.control.etcd import EtcdSession
from limiter_node.control.etcd_link import EtcdConfig, LinkError
from limiter_node.control.leadership import KEY, Leadership
from tests.e2e.test_etcd_session import Proxy, eventually, in_etcd, put
from tests.etcd_process import EtcdProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

PREFIX = "/limiter"
TTL_S = 2.0
LOST_S = 10.0  # a lease that is not renewed has run out, and another leads
RECORD = "multipliers/orders"


class Candidate:
    """A node, as far as it takes part in the election."""

    def __init__(self, name: str, url: str, ttl_s: float = TTL_S) -> None:
        self.name = name
        config = EtcdConfig(endpoints=(url,), prefix=PREFIX, lease_ttl_s=ttl_s)
        self.session = EtcdSession(config, self, rng=random.Random(name))
        self.leadership = Leadership(self.session, name, random.Random(name))
        self.revisions: dict[str, int] = {}
        self.terms: list[int] = []  # that it has seen itself lead in
        self._task: asyncio.Task[None] | None = None

    def changed(self, key: str, value: bytes | None, revision: int) -> None:
        if key == KEY:
            self.leadership.changed(value, revision)
        else:
            self.revisions[key] = 0 if value is None else revision

    def synced(self, revision: int) -> None:
        pass

    @property
    def leads(self) -> bool:
        return self.leadership.is_leader

    async def start(self) -> None:
        await self.session.start()
        self.campaign()

    def campaign(self) -> None:
        self._task = asyncio.create_task(self.leadership.campaign())

    async def stop(self, *, leaving: bool = False) -> None:
        """End as a process does that is killed, or (`leaving`) one that takes its leave."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))
            self._task = None
        if leaving:
            await self.session.leave()
        await self.session.close()

    async def write(self, value: bytes) -> bool:
        return await self.leadership.write(RECORD, value, self.revisions.get(RECORD, 0))


@asynccontextmanager
async def candidates(*urls: str, ttl_s: float = TTL_S) -> AsyncIterator[list[Candidate]]:
    """Candidates a, b, c, ..., each with its way to etcd, once one of them leads."""
    async with AsyncExitStack() as stack:
        fleet = [Candidate(name, url, ttl_s) for name, url in zip("abcdef", urls, strict=False)]
        for candidate in fleet:
            stack.push_async_callback(candidate.stop)
        await asyncio.gather(*(candidate.start() for candidate in fleet))
        await eventually(lambda: leaders(fleet) and agree(fleet))
        yield fleet


def leaders(fleet: list[Candidate]) -> list[Candidate]:
    return [candidate for candidate in fleet if candidate.leads]


def agree(fleet: list[Candidate]) -> bool:
    return len({candidate.leadership.leader for candidate in fleet}) == 1


async def the_leader(fleet: list[Candidate], *, within_s: float = LOST_S) -> Candidate:
    await eventually(lambda: len(leaders(fleet)) == 1 and agree(fleet), within_s=within_s)
    return leaders(fleet)[0]


@pytest.fixture
def etcd() -> Iterator[EtcdProcess]:
    with EtcdProcess() as process:
        yield process


async def test_exactly_one_of_three_leads_and_all_know_who(etcd: EtcdProcess) -> None:
    async with candidates(*[etcd.url] * 3) as fleet:
        leader = await the_leader(fleet)
        assert [candidate.leadership.leader for candidate in fleet] == [leader.name] * 3
        assert await in_etcd(etcd, KEY) == leader.name
        assert [candidate.leadership.term > 0 for candidate in fleet] == [candidate.leads for candidate in fleet]


async def test_a_leader_that_takes_its_leave_is_succeeded_at_once(etcd: EtcdProcess) -> None:
    # Long before the lease would have run out.
    async with candidates(*[etcd.url] * 3, ttl_s=60) as fleet:
        first = await the_leader(fleet)
        before = first.leadership.term
        await first.stop(leaving=True)
        others = [candidate for candidate in fleet if candidate is not first]
        second = await the_leader(others, within_s=3)
        assert second.leadership.term > before
        assert not first.leads


async def test_when_the_lease_of_a_leader_runs_out_another_leads(etcd: EtcdProcess) -> None:
    async with candidates(*[etcd.url] * 3) as fleet:
        first = await the_leader(fleet)
        await first.stop()
        others = [candidate for candidate in fleet if candidate is not first]
        assert (await the_leader(others)).leadership.term > first.leadership.term


async def test_a_leader_whose_lease_is_revoked_leads_no_more_and_may_lead_again(etcd: EtcdProcess) -> None:
    async with candidates(etcd.url) as fleet:
        (only,) = fleet
        before = only.leadership.term
        await asyncio.to_thread(etcd.etcdctl, "lease", "revoke", f"{only.session.lease_id:x}")
        await eventually(lambda: only.leads and only.leadership.term > before)


async def test_a_leader_that_is_cut_off_is_succeeded_and_writes_nothing_any_more(etcd: EtcdProcess) -> None:
    relays = [Proxy(etcd.client_port) for _ in range(3)]
    await asyncio.gather(*(relay.mend() for relay in relays))
    async with candidates(*(f"http://127.0.0.1:{relay.port}" for relay in relays)) as fleet:
        old = await the_leader(fleet)
        relay = relays[fleet.index(old)]
        others = [candidate for candidate in fleet if candidate is not old]
        assert await old.write(b"of the old term")
        await relay.cut()
        await eventually(lambda: not old.leads)
        with pytest.raises(LinkError):
            await old.write(b"while cut off")
        new = await the_leader(others)
        await eventually(lambda: new.revisions.get(RECORD, 0) > 0)
        assert await new.write(b"of the new term")
        await relay.mend()
        await eventually(lambda: old.session.connected and old.leadership.leader == new.name)
        assert not old.leads
        assert await in_etcd(etcd, RECORD) == "of the new term"
    await asyncio.gather(*(relay.cut() for relay in relays))


async def test_a_write_in_an_old_term_is_refused_and_changes_nothing(etcd: EtcdProcess) -> None:
    async with candidates(*[etcd.url] * 2) as fleet:
        old = await the_leader(fleet)
        new = next(candidate for candidate in fleet if candidate is not old)
        assert await old.write(b"one")
        # As a process that was frozen: it has not heard of anything yet, and writes by what it last knew.
        term, revisions = old.leadership.term, dict(old.revisions)
        await asyncio.to_thread(etcd.etcdctl, "del", f"{PREFIX}/{KEY}")
        await eventually(lambda: len(leaders(fleet)) == 1 and leaders(fleet)[0].leadership.term > term)
        await eventually(lambda: all(candidate.revisions.get(RECORD) for candidate in fleet))
        frozen = Leadership(old.session, old.name, random.Random(1))
        frozen.term = term
        for mod_revision in (revisions.get(RECORD, 0), new.revisions[RECORD], None):
            assert not await frozen.write(RECORD, b"late", mod_revision)
        assert frozen.refused == 3
        assert await in_etcd(etcd, RECORD) == "one"
        assert await leaders(fleet)[0].write(b"two")
        assert await in_etcd(etcd, RECORD) == "two"


async def test_a_write_does_not_overwrite_what_a_person_has_changed_meanwhile(etcd: EtcdProcess) -> None:
    async with candidates(etcd.url) as fleet:
        (leader,) = fleet
        assert await leader.write(b"first")
        await eventually(lambda: leader.revisions.get(RECORD, 0) > 0)
        seen = leader.revisions[RECORD]
        await asyncio.to_thread(put, etcd, RECORD, "by a person")
        assert not await leader.leadership.write(RECORD, b"second", seen)
        assert await in_etcd(etcd, RECORD) == "by a person"
        assert leader.leadership.refused == 1
        assert leader.leads
        await eventually(lambda: leader.revisions[RECORD] > seen)
        assert await leader.write(b"in the knowledge of it")
        await eventually(lambda: leader.revisions[RECORD] > seen + 1)
        seen = leader.revisions[RECORD]
        await asyncio.to_thread(etcd.etcdctl, "del", f"{PREFIX}/{RECORD}")
        assert not await leader.leadership.write(RECORD, b"third", seen)
        await eventually(lambda: leader.revisions[RECORD] == 0)
        assert await leader.write(b"anew")
        assert not await leader.leadership.write(RECORD, b"anew again", 0)


async def test_who_does_not_lead_writes_nothing_even_while_nobody_does(etcd: EtcdProcess) -> None:
    candidate = Candidate("a", etcd.url)
    await candidate.session.start()
    try:
        await eventually(lambda: candidate.session.lease_id)
        assert not await candidate.write(b"too early")
        assert await in_etcd(etcd, RECORD) == ""
    finally:
        await candidate.stop()


async def test_a_write_that_asks_for_no_revision_only_asks_who_leads(etcd: EtcdProcess) -> None:
    async with candidates(etcd.url) as fleet:
        put(etcd, RECORD, "whatever")
        assert await fleet[0].leadership.write(RECORD, b"over it", None)


async def test_who_has_won_without_hearing_of_it_finds_out_and_leads(etcd: EtcdProcess) -> None:
    """The answer to the transaction may be lost, and the key then stands under a lease that is kept."""
    candidate = Candidate("a", etcd.url)
    await candidate.session.start()
    try:
        await eventually(lambda: candidate.session.lease_id)
        lease = f"{candidate.session.lease_id:x}"
        await asyncio.to_thread(etcd.etcdctl, "put", f"--lease={lease}", f"{PREFIX}/{KEY}", "a")
        await eventually(lambda: candidate.leadership.leader == "a")
        assert not candidate.leads
        candidate.campaign()
        await eventually(lambda: candidate.leads)
        assert await candidate.write(b"as the leader")
    finally:
        await candidate.stop()


async def test_a_node_that_comes_back_under_its_name_waits_for_its_old_lease_to_run_out(etcd: EtcdProcess) -> None:
    async with candidates(etcd.url) as fleet:
        term = fleet[0].leadership.term
        await fleet[0].stop()
        again = Candidate("a", etcd.url)
        try:
            await again.start()
            await eventually(lambda: again.leadership.leader == "a")
            await eventually(lambda: again.leads)
            assert again.leadership.term > term
        finally:
            await again.stop()


async def test_after_etcd_was_wiped_somebody_leads_again(etcd: EtcdProcess) -> None:
    """Revisions begin anew, so that the new term may be below the old one."""
    for number in range(20):
        put(etcd, f"rules/{number}", "{}")
    async with candidates(etcd.url) as fleet:
        (only,) = fleet
        before = only.leadership.term
        assert before > 20
        await asyncio.to_thread(etcd.kill)
        await asyncio.to_thread(etcd.wipe)
        await asyncio.to_thread(etcd.start)
        await eventually(lambda: only.leads and only.leadership.term != before, within_s=20)
        assert await only.write(b"in the new history")


@pytest.mark.parametrize("value", ["", "somebody else", "\\xff"])
async def test_a_key_that_a_person_has_written_is_a_leader_like_any_other(etcd: EtcdProcess, value: str) -> None:
    put(etcd, KEY, value)
    candidate = Candidate("a", etcd.url)
    try:
        await candidate.start()
        await eventually(lambda: candidate.leadership.leader == value)
        assert not candidate.leads
        await asyncio.to_thread(etcd.etcdctl, "del", f"{PREFIX}/{KEY}")
        await eventually(lambda: candidate.leads)
        await asyncio.to_thread(put, etcd, KEY, "b")
        await eventually(lambda: not candidate.leads and candidate.leadership.leader == "b")
    finally:
        await candidate.stop()
