"""Leadership: which node is the controller, by one key in etcd under the leader's lease.

Whoever finds the key missing tries to create it; a transaction lets one succeed. The revision of its creation is the
leader's term: every write of a decision is a transaction that asks whether the key still has that revision, so that a
leader that was frozen or cut off, and wakes up, writes nothing any more. The lease takes the key away when the leader
dies, and the others watch it.

Does not know what is decided.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
from aetcd import rpc

from limiter_node.control.etcd_link import LinkError

if TYPE_CHECKING:
    import random

    from limiter_node.control.etcd import EtcdSession

log = structlog.get_logger()

KEY = "leader"
RETRY_S = 0.5
"""Between two tries for a key that is missing; drawn between half of it and all, so that not all nodes try at once."""

LOST_S = 2.0
"""How often a leader looks whether it still has the lease that it won with."""


class Leadership:
    """One node's part in the election."""

    def __init__(self, session: EtcdSession, node_id: str, rng: random.Random) -> None:
        self.leader: str | None = None  # who leads, as far as is known
        self.term = 0  # this node's; 0 while it does not lead
        self.refused = 0  # writes that came too late
        self._session = session
        self._node_id = node_id
        self._rng = rng
        self._missing = asyncio.Event()
        self._missing.set()
        self._lease_id = 0  # under which it leads

    @property
    def is_leader(self) -> bool:
        """Whether this node may act: it has won, and its lease is the one it won with."""
        return self.term > 0 and self._session.lease_id == self._lease_id

    def changed(self, value: bytes | None, revision: int) -> None:
        """Take what the watch says of the key."""
        if value is None:
            self._missing.set()
            self.leader = None
            if self.term and revision > self.term:
                self._step_down("its key is gone")
            return
        self.leader = value.decode(errors="backslashreplace")
        if self.leader == self._node_id and not self.is_leader:
            self._missing.set()  # it may have won without hearing of it: the answer was lost
            return
        self._missing.clear()
        if self.term and self.leader != self._node_id and revision > self.term:
            self._step_down(f"{self.leader} leads")

    async def campaign(self) -> None:
        """Try to lead whenever nobody does, until cancelled."""
        await self._session.first_sync()
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOST_S):
                    await self._missing.wait()
            # A lease that is lost took the key with it, even where etcd was wiped before the watch had told of the key.
            may_lead = self.term > 0 or self._missing.is_set()
            if may_lead and not self.is_leader and self._session.lease_id:
                with suppress(LinkError):
                    await self._try()
            await asyncio.sleep(RETRY_S * self._rng.uniform(0.5, 1))

    async def _try(self) -> None:
        lease_id, key = self._session.lease_id, self._session.raw_key(KEY)
        put = rpc.PutRequest(key=key, value=self._node_id.encode(), lease=lease_id)
        answer = await self._session.transact(
            rpc.TxnRequest(
                compare=[_compare(key, rpc.Compare.CREATE, create_revision=0)],
                success=[rpc.RequestOp(request_put=put)],
                failure=[rpc.RequestOp(request_range=rpc.RangeRequest(key=key))],
            )
        )
        if answer.succeeded:
            self._lead(answer.header.revision, lease_id)
            return
        for found in answer.responses[0].response_range.kvs:
            # An earlier try of this node has succeeded, and only its answer was lost.
            if (found.value, found.lease) == (self._node_id.encode(), lease_id):
                self._lead(found.create_revision, lease_id)

    def _lead(self, term: int, lease_id: int) -> None:
        self.term, self._lease_id = term, lease_id
        self.leader = self._node_id
        self._missing.clear()
        log.info("leading: this node is the controller", term=self.term)

    async def write(self, key: str, value: bytes, mod_revision: int | None) -> bool:
        """Put a key, if this node still leads and nobody has changed the key since that revision (0: it is missing).

        Raises `LinkError` when etcd does not answer.
        """
        if not self.term:
            self.refused += 1
            return False  # to ask for a term of 0 would be to ask that nobody leads
        raw = self._session.raw_key(key)
        compare = [_compare(self._session.raw_key(KEY), rpc.Compare.CREATE, create_revision=self.term)]
        if mod_revision is not None:
            compare.append(_compare(raw, rpc.Compare.MOD, mod_revision=mod_revision))
        answer = await self._session.transact(
            rpc.TxnRequest(compare=compare, success=[rpc.RequestOp(request_put=rpc.PutRequest(key=raw, value=value))])
        )
        self.refused += not answer.succeeded
        return bool(answer.succeeded)

    def _step_down(self, why: str) -> None:
        log.warning("leading no more", term=self.term, why=why)
        self.term = 0


def _compare(key: bytes, target: int, **value: int) -> rpc.Compare:
    return rpc.Compare(result=rpc.Compare.EQUAL, target=target, key=key, **value)
