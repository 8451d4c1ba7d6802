"""The keeper: decides the keys that this node owns, when it may, and sees to it that nothing granted is forgotten.

It joins what gives the right to decide (`fence`), what must be learnt first (`custody`) and what others must learn
(`replication`), and speaks with the keepers of other nodes: pings, pulls and copies. Which node a check goes to is the
`router`'s; sockets are the links' carriers'.

Invariant: a check is decided here only while `fence` gives the right to, and only when no other node knows of a grant
that this one does not; what it was granted is on its way to the key's replica from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.commitments import Commitments
from limiter_node.core.custody import Custody
from limiter_node.core.deeds import Deeds
from limiter_node.core.fence import ALWAYS_NS, Fence
from limiter_node.core.forward import WAYS_MAX, Forward, one_way, parked_ns
from limiter_node.core.links import NEVER_NS, LinkState
from limiter_node.core.model import (
    Ack,
    Check,
    Copies,
    Copy,
    News,
    Op,
    Outcome,
    Ping,
    Pong,
    Pull,
    Pulled,
    Request,
)
from limiter_node.core.pulls import Pulls
from limiter_node.core.replication import Replication
from limiter_node.core.ring import Ring

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.engine import Engine
    from limiter_node.core.links import Link
    from limiter_node.core.model import Reply
    from limiter_node.core.outlet import Bucket


class Keeper:
    """Decides as owner, or in the place of one that is gone. `set_ring` is called with rings that peers tell."""

    def __init__(
        self,
        node_id: str,
        engine: Engine,
        links: dict[str, Link],
        *,
        boot: int = 0,
        peer_timeout_ns: int,
        replication_ns: int,
        set_ring: Callable[[Ring], None],
    ) -> None:
        self.ring = Ring(0, {})
        self.fence = Fence(node_id, peer_timeout_ns)
        self.custody = Custody(node_id)
        self.replication = Replication(node_id, engine, wake=self._wake)
        self.commitments = Commitments(engine, peer_timeout_ns, boot)
        self.free_until_ns = 0  # until then every check of this node's own keys is decided without another thought
        self.acted = 0  # checks decided in an owner's place
        self.lapses = 0
        self._fenced_ns = 0  # in lapses that are over
        self._node_id = node_id
        self._engine = engine
        self._links = links
        self._peer_timeout_ns = peer_timeout_ns
        self._replication_ns = replication_ns
        self._set_ring = set_ring
        self._next_id = 0
        self._deeds = Deeds(self, node_id, engine, links, peer_timeout_ns=peer_timeout_ns)
        self._pulls = Pulls(engine)
        self._homeless: list[Forward] = []  # parked checks that are to be decided elsewhere now
        self._lapsed_ns: int | None = 0  # since when this node has no right to decide; None while it has
        self._ticked_ns: int | None = None
        self._replicated_ns = 0
        self._ping_every_ns = float(self.fence.ping_every_ns)

    @property
    def is_whole(self) -> bool:
        """Whether this node may decide whatever it owns, and nothing else is to be sent or looked at."""
        return self._lapsed_ns is None and not self.custody.pending

    @property
    def is_fenced(self) -> bool:
        """Whether this node, a member, may not decide."""
        return self._lapsed_ns is not None and self._node_id in self.ring.members

    def fenced_ns_until(self, now_ns: int) -> int:
        """Time without the right to decide, up to now."""
        return self._fenced_ns + (now_ns - self._lapsed_ns if self._lapsed_ns is not None else 0)

    def has_handed_over(self, now_ns: int) -> bool:
        """Whether this node, which leaves, has told all that it knows, and nobody would miss anything without it."""
        gone = self._gone(now_ns)
        replication, ring = self.replication, self.ring
        return replication.has_told(ring, gone) and not replication.is_last_to_know(ring, gone, now_ns)

    def _gone(self, now_ns: int) -> set[str]:
        return {name for name in self.ring.members if self.fence.is_gone(name, now_ns)}

    def is_isolated(self, now_ns: int) -> bool:
        """Whether waiting for the right to decide has no sense: it has been gone for long, and too few answer.

        Where enough do, as after a cut that is over, they back this node as soon as they have let go of its keys.
        """
        if self._lapsed_ns is None or now_ns - self._lapsed_ns <= self._peer_timeout_ns * WAYS_MAX / 2:
            return False
        others = self.ring.members.keys() - {self._node_id}
        answering = [name for name in others & self._links.keys() if now_ns < self._links[name].usable_until_ns]
        return len(answering) < len(others) - len(others) // 2

    # Deciding.

    def is_free_to(self, check: Check, now_ns: int) -> bool:
        """Whether the engine may decide a check of a key that this node owns, and nothing else is to be thought of."""
        return (
            now_ns < self.free_until_ns
            and check.op is Op.CHECK
            and not self._engine.sync_rules
            and not self.commitments.bind(check)
        )

    def decide(
        self,
        check: Check,
        now_ns: int,
        *,
        for_peer: bool = False,
        expires_ns: int = ALWAYS_NS,
        has_waited: bool = False,
    ) -> Outcome | Forward | None:
        """Decide a check of a key that this node owns, now or by `expires_ns`; None when it cannot be.

        One that has waited for the end of promises does not wait for that again.
        """
        if now_ns >= self.free_until_ns:
            self._notice_lapse(now_ns)
            bucket = check.rule, check.key
            if self._lapsed_ns is not None or not self.custody.is_sure(bucket):
                # A peer asks elsewhere in time; this node's own callers wait as long as the right may take to return.
                timeout_ns = self._peer_timeout_ns
                wait_ns = parked_ns(timeout_ns) if for_peer else round(timeout_ns * WAYS_MAX / 2)
                forward = one_way(check, min(now_ns + wait_ns, expires_ns), for_peer=for_peer)
                return None if self.is_isolated(now_ns) else self._wait(forward, bucket)
        if not has_waited and (due_ns := self.commitments.due_ns(check, now_ns)):
            return self.commitments.park(one_way(check, expires_ns, for_peer=for_peer), due_ns, now_ns)
        outcome = self._deeds.do(check, now_ns)
        if not has_waited and (due_ns := self.commitments.due_ns(check, now_ns, outcome)):
            return self.commitments.park(one_way(check, expires_ns, for_peer=for_peer), due_ns, now_ns)
        return self._deeds.when_copied(check, outcome, now_ns)

    def can_stand_in(self, owner: str, now_ns: int) -> bool:
        """Whether this node, the replica, may decide in the place of an owner.

        A bucket is known to two nodes: when one goes, the other still has told, but not when two go.
        """
        return self.fence.is_gone(owner, now_ns) and len(self.custody.untold) < 2

    def act(self, forward: Forward, now_ns: int) -> Outcome | None:
        """Decide as the replica of an owner that is gone, or (None) once this node has the copy."""
        check = forward.check
        bucket = check.rule, check.key
        if not self.custody.is_sure(bucket, as_replica=True):
            forward.wait(parked_ns(self._peer_timeout_ns), now_ns)
            forward.asks_help = True
            self._wait(forward, bucket)
            return None
        self.acted += 1
        return self._deeds.do_as_replica(check, now_ns)

    def _wait(self, forward: Forward, bucket: Bucket) -> Forward:
        for name in self.custody.park(bucket, forward):
            self._pull(name, bucket)
        return forward

    def _pull(self, name: str, bucket: Bucket) -> None:
        link = self._links.get(name)
        if link is not None:
            link.pulls.append(bucket)
            self._wake(name)

    def resume(self, now_ns: int) -> None:
        """Answer the pulls and decide the parked checks that can be."""
        for pull, respond in self._pulls.take_early():
            self._on_pull(pull, now_ns, respond)
        for forward in self.commitments.take_due(now_ns):
            self._go_on_with(forward, now_ns, has_waited=True)
        if self.custody.parked:
            for forward in self.custody.take_ready(as_replica_only=self._lapsed_ns is not None):
                self._go_on_with(forward, now_ns)

    def _go_on_with(self, forward: Forward, now_ns: int, *, has_waited: bool = False) -> None:
        check, outcome = forward.check, None
        if not forward.asks_help and self.ring.owner(check.key) == self._node_id:
            expires_ns = forward.expires_ns
            outcome = self.decide(
                check, now_ns, for_peer=forward.for_peer, expires_ns=expires_ns, has_waited=has_waited
            )
        if outcome is None:
            self._homeless.append(forward)
        else:
            forward.settle(outcome)

    # The right to decide.

    def _notice_lapse(self, now_ns: int) -> None:
        """What others decide while the right is gone is not known: all must tell, before anything is decided again.

        Again when it is back: who has told before, or was given up for gone, may have acted in this node's place since.
        """
        has_right = now_ns < self.fence.right_until_ns
        if has_right is (self._lapsed_ns is not None):
            self._fenced_ns = self.fenced_ns_until(now_ns)
            self._lapsed_ns = None if has_right else now_ns
            self.lapses += not has_right
            self._engine.settlements.drop_drafts()
            others = (self.ring.members.keys() | self.ring.leavers.keys()) - {self._node_id}
            self.custody.begin(self.ring, others, missed=True)
            for link in self._links.values():
                self.ask(link)
        is_free = self._lapsed_ns is None and not self.custody.pending
        self.free_until_ns = self.fence.right_until_ns if is_free else 0
        if not is_free and (self.custody.pending or len(self.ring.members) > 1):
            self.commitments.promises.note_others(now_ns)

    def take_homeless(self, now_ns: int) -> tuple[list[Forward], list[Forward]]:
        """Parked checks that this node does not own any more, and those whose deadline has passed."""
        homeless, self._homeless = self._homeless, []
        return homeless, self.custody.take_late(now_ns)

    # The fleet.

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        """Go over to another ring: the router's links are those of the new one already."""
        self._notice_lapse(now_ns)  # before the new ring, or a refusal, may give the right back
        before, self.ring = self.ring, ring
        for name in before.members.keys() & ring.members.keys():
            if before.members[name].boot != ring.members[name].boot:
                self.replication.drop(name)  # whatever that process was still to get died with it
        self.commitments.set_ring(ring, self._node_id, now_ns)
        self.replication.collect(before, now_ns)
        self.fence.set_ring(ring, now_ns)
        if before.members != ring.members or ring.leavers.keys() - before.leavers.keys():
            is_new = self._node_id not in before.members
            if is_new:
                self._lapsed_ns = now_ns
            others = (before.members.keys() | ring.members.keys() | ring.leavers.keys()) - {self._node_id}
            self.custody.begin(ring, others, missed=is_new)
            self.replication.begin_survey(ring)
            for bucket, parked in list(self.custody.parked.items()):
                if ring.owner(bucket[1]) != self._node_id:
                    self._homeless += parked.forwards
                    del self.custody.parked[bucket]
        for link in self._links.values():
            self.ask(link)
        self._notice_lapse(now_ns)
        self.resume(now_ns)

    def needs(self, link: Link) -> bool:
        """Whether a peer that has left the ring is still to tell or to be told something."""
        return link.peer.id in self.custody.pending

    def part(self, name: str) -> None:
        """A peer that had left the ring is not linked any more."""
        self.replication.drop(name)
        self.fence.forget(name)

    def ask(self, link: Link) -> None:
        """Ask a peer at once for what this node has missed."""
        link.pinged_ns = NEVER_NS
        link.pulls = [bucket for bucket, parked in self.custody.parked.items() if link.peer.id in parked.missing]
        link.carrier.wake()

    def on_down(self, link: Link, now_ns: int, *, refused_ns: int | None) -> None:
        """A link broke or, at a dial begun at `refused_ns`, was refused."""
        if refused_ns is not None:
            self._notice_lapse(now_ns)
            self.fence.refused(link.peer.id, refused_ns, now_ns)
        link.pings.clear()
        self._pulls.on_down(link.peer.id)
        self.replication.on_down(link.peer.id)

    def flush(self, link: Link, now_ns: int) -> list[Request]:
        """The keeper's frames to send on a link that is up."""
        requests: list[Request] = []
        if 0 < link.news_revision < self.ring.revision:
            link.news_revision = 0
            requests.append(self.ring.news())
        if self._is_ping_due(link, now_ns):
            link.pinged_ns = now_ns
            self._next_id += 1
            link.pings[self._next_id] = now_ns, self.custody.epoch
            requests.append(Ping(self._next_id, self.ring.revision, self.custody.epoch, self._engine.backends.pulses()))
        requests += self._pulls.frames(link, self.ring.revision, self.custody)
        requests += self.replication.frames(link.peer.id, now_ns)
        return requests

    def _is_ping_due(self, link: Link, now_ns: int) -> bool:
        # A peer that is to release this node is asked more often: checks wait for that.
        share = 4 if link.peer.id in self.custody.pending else 1
        return now_ns - link.pinged_ns >= self._ping_every_ns // share

    def on_request(self, name: str, request: Request, now_ns: int, respond: Callable[[Reply], None]) -> None:
        """Answer a peer's keeper."""
        self.fence.heard(name, now_ns)
        match request:
            case Ping():
                self._on_ping(name, request, now_ns, respond)
            case Copies(id=number, copies=copies):
                for copy in copies:
                    self._merge(name, copy, now_ns)
                respond(Ack(number, self.ring.revision))
            case Pull():
                self._on_pull(request, now_ns, respond)
            case News():
                self._on_news(request)

    def on_reply(self, link: Link, reply: Reply, now_ns: int) -> None:
        """Take what a peer's keeper answers."""
        match reply:
            case Pong():
                self._on_pong(link, reply, now_ns)
            case Ack(id=number):
                self.replication.on_ack(link.peer.id, number, now_ns)
            case Pulled(id=number, copies=copies):
                for copy in copies:
                    self._merge(link.peer.id, copy, now_ns)
                for bucket in self._pulls.take_answered(number, self.custody.epoch):
                    self.custody.on_pulled(link.peer.id, bucket)
                self.resume(now_ns)
            case News():
                self._on_news(reply)

    def _on_news(self, news: News) -> None:
        if news.revision > self.ring.revision:
            self._set_ring(Ring.told_by(news))

    def _on_ping(self, name: str, ping: Ping, now_ns: int, respond: Callable[[Reply], None]) -> None:
        revision = self.ring.revision
        self._engine.backends.hear(name, ping.pulses, now_ns)
        if ping.revision < revision:
            respond(self.ring.news())
        backs, silent = self.fence.on_ping(name, now_ns)
        is_member = name in self.ring.members
        released = is_member and ping.revision <= revision and self._has_told(name, ping.epoch, now_ns)
        respond(Pong(ping.id, revision, backs and is_member and ping.revision >= revision, released, silent))

    def _has_told(self, name: str, epoch: int, now_ns: int) -> bool:
        """Whether a member has all that this node knows of its keys, and all that this node knows others to know."""
        if self.replication.is_surveying:
            return False
        if self._node_id not in self.ring.members:
            return self.replication.has_told(self.ring, self._gone(now_ns))  # all: some never heard of this node
        if self.custody.has_strangers(self.ring):
            return False
        self.replication.collect(self.ring, now_ns)
        return self.replication.has_all(name, epoch)

    def _on_pong(self, link: Link, pong: Pong, now_ns: int) -> None:
        ping = link.pings.pop(pong.id, None)
        if ping is None:
            return
        asked_ns, epoch = ping
        self._notice_lapse(now_ns)
        self.fence.on_pong(link.peer.id, asked_ns, now_ns, backs=pong.backs, silent=pong.silent)
        if pong.revision < self.ring.revision:
            link.news_revision = pong.revision
            link.pinged_ns = NEVER_NS
            link.carrier.wake()
        elif pong.released and epoch == self.custody.epoch:
            self.custody.release(link.peer.id)
        self._notice_lapse(now_ns)
        self.resume(now_ns)

    def _on_pull(self, pull: Pull, now_ns: int, respond: Callable[[Reply], None]) -> None:
        is_early = pull.revision > self.ring.revision or self.custody.has_strangers(self.ring, pull.asked)
        if pull.revision < self.ring.revision and not is_early:
            respond(self.ring.news())  # the asker may begin anew then, and the answer counts for nothing
        self._pulls.answer(pull, now_ns, respond, is_early=is_early)

    def _merge(self, name: str, copy: Copy, now_ns: int) -> None:
        self._engine.merge(copy, now_ns, follows=self.ring.owner(copy.key) == name)

    def tick(self, now_ns: int) -> None:
        """What is to be done a few times within a peer timeout."""
        self.note_stall(now_ns)
        self._ticked_ns = now_ns
        self._ping_every_ns = min(self.fence.ping_every_ns, self._engine.backends.pulse_every_ns(len(self._links)))
        self.fence.reckon(now_ns)
        self._notice_lapse(now_ns)
        for name in [name for name in self.custody.pending if self.fence.is_gone(name, now_ns)]:
            self.custody.release(name, is_gone=True)
        self._notice_lapse(now_ns)
        self.commitments.tick(now_ns)
        self.resume(now_ns)
        is_due = now_ns - self._replicated_ns >= self._replication_ns
        if is_due:
            self._replicated_ns = now_ns
            self.replication.turn()
            self.replication.collect(self.ring, now_ns)
        for name, outlet in self.replication.outlets.items():
            if outlet.bulk or (is_due and outlet.due):
                self._wake(name)
        self.replication.survey(now_ns)
        self.replication.expire(now_ns)
        self.custody.tick()
        for link in self._links.values():
            if self._is_ping_due(link, now_ns):
                link.carrier.wake()

    def note_stall(self, now_ns: int) -> bool:
        """Whether this node did not run for a while: then it is not known yet what peers have sent meanwhile."""
        stalled_ns = 0 if self._ticked_ns is None else now_ns - self._ticked_ns
        if stalled_ns <= 2 * self.fence.ping_every_ns:
            return False
        self._ticked_ns = now_ns
        self.fence.pause(stalled_ns, now_ns)
        for link in self._links.values():
            link.heard_ns += stalled_ns
            link.usable_until_ns += stalled_ns
        return True

    def _wake(self, name: str) -> None:
        if (link := self._links.get(name)) is not None and link.state is LinkState.UP:
            link.carrier.wake()
