"""The router: a check on the fleet. It has the check decided here, by its owner, or by whoever stands in for that.

It knows the ring, what was sent to whom and by when it must be answered; it does not know sockets or encodings, and
leaves to the `keeper` whether this node may decide. Frames go out as values (`flush`) and come in as values
(`on_request`, `on_reply`); whoever carries them, the real links or the simulated network, calls `tick` so that
deadlines pass.

What becomes of a check that cannot be brought to its owner is of `failover`.

Invariant: every check gets exactly one outcome, within a few peer timeouts, whatever links do.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from limiter_node.core.adaptive.controller import Controller
from limiter_node.core.atomic import Batches
from limiter_node.core.failover import Failover
from limiter_node.core.forward import WAYS_MAX, Forward, one_way
from limiter_node.core.keeper import Keeper
from limiter_node.core.leases import Leases
from limiter_node.core.links import NEVER_NS, Carrier, Link, LinkState
from limiter_node.core.lookout import Lookout
from limiter_node.core.model import (
    Answer,
    Ask,
    Check,
    Gather,
    Gathered,
    Look,
    Looked,
    NotOwner,
    Outcome,
    Reply,
    Request,
    Result,
    Unreachable,
    Verdict,
)
from limiter_node.core.ring import Ring
from limiter_node.core.service import Service
from limiter_node.core.shortcut import Shortcut

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.engine import Engine

OUTBOX_MAX = 20_000
"""Checks that may wait for one link; more than it can carry in a peer timeout would only expire."""


class Router:
    """Answers checks on any key of the fleet.

    `node_id` is this node's; `peer_timeout_ns` the deadline of one hop; `replication_ns` the longest time that a change
    waits; `open_link` begins to carry a link's frames; `tell` is the lookout's, `on_traced` the service's.
    """

    def __init__(
        self,
        node_id: str,
        engine: Engine,
        *,
        boot: int = 0,
        peer_timeout_ns: int,
        open_link: Callable[[Link], Carrier],
        replication_ns: int = 0,
        on_ring: Callable[[Ring], None] = lambda _: None,
        tell: Callable[[int], bytes] = lambda _: b"",
        on_traced: Callable[[Check, str, Result], None] = lambda *_: None,
    ) -> None:
        self.node_id = node_id
        self.boot = boot  # names this life of the node
        self.engine = engine
        self.ring = Ring(0, {})
        self.links: dict[str, Link] = {}
        self.keeper = Keeper(
            node_id,
            engine,
            self.links,
            boot=boot,
            peer_timeout_ns=peer_timeout_ns,
            replication_ns=replication_ns,
            set_ring=on_ring,
        )
        self.controller = Controller(node_id, engine.backends)
        self.batches = Batches(self)
        self.leases = Leases(self)
        self.lookout = Lookout(tell)
        self.failover = Failover(self, peer_timeout_ns)
        self.forwarded = 0
        engine.holds.set_pace(peer_timeout_ns)
        self._peer_timeout_ns = peer_timeout_ns
        self._open_link = open_link
        self.shortcut = Shortcut(self)
        self._service = Service(self, peer_timeout_ns, on_traced)
        self._next_id = 0

    # Checks of this node's own callers.

    def check(self, check: Check, now_ns: int) -> Outcome | Forward:
        """Decide at once, or return the `Forward` that will bring the outcome."""
        owner = self.ring.owner(check.key)
        if owner == self.node_id:
            if self.keeper.is_free_to(check, now_ns):
                return self.engine.check(check, now_ns)
            outcome = self.keeper.decide(check, now_ns)
            return self.failover.answer_alone(check, now_ns) if outcome is None else outcome
        return self.pass_on(owner, check, now_ns)

    def pass_on(self, owner: str | None, check: Check, now_ns: int) -> Outcome | Forward:
        """Have a check of this node's own callers decided by another node, the owner of its key, if it has not been."""
        denials = self.engine.denials
        if denials.known and (verdict := denials.find(check, now_ns)) is not None:
            return verdict
        if self.leases.known and (verdict := self.leases.grant(check, now_ns)) is not None:
            return verdict
        timeout_ns = self._peer_timeout_ns
        forward = Forward(check, now_ns + timeout_ns, now_ns + WAYS_MAX * timeout_ns)
        link = None if owner is None else self.links.get(owner)
        if link is not None and now_ns < link.usable_until_ns and 0 < len(link.outbox) < OUTBOX_MAX:
            # As nearly always, when others have gone before in this pass of the loop: three calls less, 0.2 us.
            self.forwarded += 1
            link.outbox.append(forward)
            outcome = None
        else:
            outcome = self.forward(owner, forward, now_ns)
        self.leases.note(check, now_ns)
        return outcome or forward

    def forward(self, owner: str | None, forward: Forward, now_ns: int) -> Outcome | None:
        """Send a check to its owner, or to somebody else if that cannot be asked; or say what is to be said at once."""
        link = None if owner is None else self.links.get(owner)
        if link is not None and link.is_usable(now_ns) and len(link.outbox) < OUTBOX_MAX:
            self.forwarded += 1
            self.put(link, forward)
            return None
        return self.failover.seek(forward, now_ns)

    def ask_peer(self, link: Link, check: Check, now_ns: int) -> Forward:
        """Ask a peer, and nobody else; who wants the answer sets `reply`."""
        forward = one_way(check, now_ns + self._peer_timeout_ns, for_peer=True)
        forward.reply = _nobody_waits
        self.put(link, forward)
        return forward

    def put(self, link: Link, forward: Forward) -> None:
        """Have a check leave on a link, with all that this pass of the loop puts there."""
        if not link.outbox:
            link.carrier.wake()
        link.outbox.append(forward)

    # Frames.

    def flush(self, link: Link, now_ns: int) -> list[Request]:
        """The frames to send on a link that is up: all its outbox, as few frames as that takes."""
        revision = max(self.ring.revision, link.revision)
        link.revision = 0
        asks = link.take_asks(self._next_id + 1, revision)
        self._next_id += len(asks)
        requests = asks + self.keeper.flush(link, now_ns)
        return requests + self.controller.frames(link.peer.id) + self.lookout.frames(link.peer.id)

    def on_request(self, name: str, request: Request, now_ns: int, respond: Callable[[Reply], None]) -> None:
        """Answer a frame of a peer."""
        if isinstance(request, Ask):
            self.keeper.fence.heard(name, now_ns)
            self._service.on_ask(name, request, now_ns, respond)
        elif isinstance(request, Gather):
            respond(self.controller.answer(request, now_ns))
        elif isinstance(request, Look):
            respond(self.lookout.answer(request))
        else:
            self.keeper.on_request(name, request, now_ns, respond)

    def on_reply(self, link: Link, reply: Reply, now_ns: int) -> None:
        """Take a peer's answer."""
        link.heard_ns = now_ns
        link.usable_until_ns = now_ns + self.keeper.fence.silent_after_ns
        self.keeper.fence.heard(link.peer.id, now_ns)
        if isinstance(reply, Answer):
            self._on_answer(link, reply, now_ns)
        elif isinstance(reply, Gathered):
            self.controller.hear(link.peer.id, reply, now_ns)
        elif isinstance(reply, Looked):
            self.lookout.hear(link.peer.id, reply)
        else:
            self.keeper.on_reply(link, reply, now_ns)
        self._settle(now_ns)

    def _on_answer(self, link: Link, answer: Answer, now_ns: int) -> None:
        """Give the outcomes of an earlier frame to those who wait; an answer that comes too late has nobody waiting."""
        forwards = link.pending.pop(answer.id, [])
        if answer.promises and answer.revision == self.ring.revision:
            self.engine.denials.learn(forwards, answer, WAYS_MAX * self._peer_timeout_ns, now_ns)
        if answer.spent and len(answer.spent) == len(forwards):
            self.keeper.replication.keep(link, forwards, answer, now_ns)
        for forward, result in zip(forwards, answer.results, strict=False):
            if type(result) is Verdict:  # as nearly always
                forward.reply(result)
            elif isinstance(result, NotOwner):
                forward.is_sent = False
                self.failover.reroute(forward, result.owner, answer.revision, now_ns)
            elif isinstance(result, Unreachable):
                self.failover.send_on(forward, now_ns)
            else:
                forward.reply(result)
        # A peer that answers less than it was asked is broken; nobody may hang for it.
        for forward in forwards[len(answer.results) :]:
            self.failover.send_on(forward, now_ns)

    def gather(self, now_ns: int) -> None:
        """As the leader: ask all nodes that can be reached what they know of the backends."""
        self._ask_all(lambda peers: self.controller.ask(peers, now_ns))

    def look(self, seconds: int) -> None:
        """Ask all nodes that can be reached what they show of themselves, and of so many of their last seconds."""
        self._ask_all(lambda peers: self.lookout.ask(peers, seconds))

    def _ask_all(self, ask: Callable[[set[str]], None]) -> None:
        links = [link for link in self.links.values() if link.state is LinkState.UP]
        ask({link.peer.id for link in links})
        for link in links:
            link.carrier.wake()

    # What happens to the fleet.

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        """Go over to a newer ring; an older one is refused."""
        if ring.revision < self.ring.revision:
            return
        self.ring = ring
        self.engine.denials.clear()
        self.engine.backends.set_default_share(1 / max(1, len(ring.members)), now_ns)
        self.engine.has_copies = ring.members.keys() != {self.node_id}
        for peer in (*ring.members.values(), *ring.leavers.values()):
            link = self.links.get(peer.id)
            if link is None and peer.id != self.node_id:
                link = self.links[peer.id] = Link(peer)
                link.heard_ns = now_ns
                link.carrier = self._open_link(link)
            elif link is not None and link.peer != peer:
                has_moved = (link.peer.peer, link.peer.boot) != (peer.peer, peer.boot)
                link.peer = peer
                if has_moved:
                    link.heard_ns = now_ns
                    link.state = LinkState.CONNECTING
                    link.carrier.redial()
        self.keeper.set_ring(ring, now_ns)
        for link in self.links.values():
            if link.peer.id not in ring.members:
                unsent, link.outbox = link.outbox, deque()
                for forward in unsent:
                    self.failover.follow_ring(forward, now_ns)
        self.failover.resume(now_ns)
        self._service.serve_parked(now_ns)
        self._settle(now_ns)

    def _close_leavers(self) -> None:
        """Let go of peers that left the ring, once they have answered and told all."""
        for name, link in list(self.links.items()):
            is_here = name in self.ring.members or name in self.ring.leavers
            if not is_here and not link.pending and not link.outbox and not self.keeper.needs(link):
                del self.links[name]
                self.keeper.part(name)
                link.carrier.close()

    def _settle(self, now_ns: int) -> None:
        """Find another place for checks that this node was to decide and cannot; go on with batches and leases."""
        self.leases.go_on(now_ns)
        self.failover.place(*self.keeper.take_homeless(now_ns), now_ns)
        self.batches.go_on(now_ns)

    def on_up(self, link: Link, now_ns: int) -> None:
        """The link carries frames."""
        link.state = LinkState.UP
        link.heard_ns = now_ns
        link.usable_until_ns = now_ns + self.keeper.fence.silent_after_ns
        self.keeper.fence.heard(link.peer.id, now_ns)
        self.keeper.ask(link)

    def on_down(self, link: Link, now_ns: int, *, refused_ns: int | None = None) -> None:
        """The link broke, or (at a dial begun at `refused_ns`) was refused: whatever waits for it goes another way.

        What the peer may have decided already may be spent twice so; it is never granted twice.
        """
        if link.state is LinkState.UP:
            self.engine.denials.clear()  # whoever promised them, or lent something, may be dead
        link.state = LinkState.DOWN
        link.usable_until_ns = NEVER_NS
        self.keeper.on_down(link, now_ns, refused_ns=refused_ns)
        has_left = link.peer.id not in self.ring.members
        for forward in link.take_all():
            if has_left and not forward.asks_help:
                self.failover.follow_ring(forward, now_ns)
            else:
                self.failover.send_on(forward, now_ns)
        self._settle(now_ns)

    def tick(self, now_ns: int) -> None:
        """Let deadlines pass; to be called several times within a peer timeout."""
        self.keeper.tick(now_ns)
        self.controller.tick(now_ns)
        self.engine.denials.tick(now_ns)
        self.leases.tick(now_ns)
        for link in list(self.links.values()):
            self._expire(link, now_ns)
        self._close_leavers()
        self.failover.tick(now_ns)
        self._service.serve_parked(now_ns)
        self._settle(now_ns)

    def _expire(self, link: Link, now_ns: int) -> None:
        """Find another way for what a link has not brought in time; give up a connection that has gone silent."""
        is_silent = link.state is LinkState.UP and now_ns >= link.usable_until_ns
        late = link.take_all() if is_silent else link.take_late(now_ns)
        if is_silent and now_ns - max(link.heard_ns, link.asked_ns) >= self._peer_timeout_ns:
            # Whatever else is put on this connection would wait behind what is lost, and be decided too late.
            link.asked_ns = now_ns
            link.carrier.redial()
        for forward in late:
            self.failover.send_on(forward, now_ns)


def _nobody_waits(outcome: Outcome) -> None:
    """Of what has no answer that matters."""
