"""Failover: other ways for a check that failed on one, be it that its owner cannot be reached or that it has moved.

A check whose owner cannot be reached goes to the key's replica, which passes it on or, once the owner is gone, decides
it; if it is the replica that cannot reach the owner, any other node may pass it on. Only a check that nobody can bring
to the owner or the replica is answered alone, by the rule's `on_unreachable`.

Invariant: a check is re-routed at most once and helpers are asked at most twice, none of whom asks another in turn but
the replica: none goes in circles.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from limiter_node.core.forward import UNREACHABLE, parked_ns
from limiter_node.core.model import NotOwner, Op

if TYPE_CHECKING:
    from collections.abc import Sequence

    from limiter_node.core.engine import Engine
    from limiter_node.core.forward import Forward
    from limiter_node.core.keeper import Keeper
    from limiter_node.core.links import Link
    from limiter_node.core.model import Check, Outcome
    from limiter_node.core.ring import Ring

HELPERS_MAX = 2
"""Nodes asked in an owner's place: the replica, or else one that may reach either."""

FOR_ONE = (Op.LEND, Op.RECALL, Op.RETURN)
"""What means nothing to anybody but whom it is asked of."""


class Ways(Protocol):
    """The router, as far as this needs it."""

    node_id: str
    ring: Ring
    links: dict[str, Link]
    engine: Engine
    keeper: Keeper

    def forward(self, owner: str | None, forward: Forward, now_ns: int) -> Outcome | None:
        """Send a check to its owner, or have another way sought."""

    def put(self, link: Link, forward: Forward) -> None:
        """Have a check leave on a link."""


class Failover:
    """Seeks ways for a router's checks, and keeps those that wait; `peer_timeout_ns` is the deadline of a hop."""

    def __init__(self, router: Ways, peer_timeout_ns: int) -> None:
        self.rerouted = 0
        self.helped = 0  # checks that went to another node than the owner
        self.unanswered = 0  # checks that ended in `on_unreachable`: of other nodes' keys
        self.fenced = 0  # and of this node's own, while it may not decide
        self._router = router
        self._peer_timeout_ns = peer_timeout_ns
        self._waiting: list[tuple[int, Forward]] = []  # refused by a ring of that revision, which is not ours yet
        self._hoping: list[Forward] = []  # until this node, the replica, knows that the owner is gone

    def seek(self, forward: Forward, now_ns: int) -> Outcome | None:
        """Have a check decided whose owner this node cannot reach: none, when that will come later."""
        router = self._router
        if router.keeper.note_stall(now_ns):
            return router.forward(router.ring.owner(forward.check.key), forward, now_ns)
        owner, replica = router.ring.holders(forward.check.key)
        link: Link | None = None
        if replica == router.node_id and owner is not None and now_ns < forward.expires_ns:
            if router.keeper.can_stand_in(owner, now_ns):
                return router.keeper.act(forward, now_ns)
            link = None if forward.helpers else self._any_link((owner,), now_ns)
            if link is None:
                return self._hope(owner, forward, now_ns)
        elif not forward.for_peer and forward.helpers < HELPERS_MAX and now_ns < forward.expires_ns:
            link = router.links.get(replica) if replica and not forward.helpers else None
            if link is None or not link.is_usable(now_ns):
                link = self._any_link((owner, replica), now_ns)
        if link is None:
            return self._give_up(forward, now_ns)
        forward.helpers += 1
        forward.asks_help = True
        forward.wait(self._peer_timeout_ns, now_ns)
        self.helped += 1
        router.put(link, forward)
        return None

    def send_on(self, forward: Forward, now_ns: int) -> None:
        """Find another way for a check that has failed on one."""
        if _must_not_repeat(forward):
            forward.reply(UNREACHABLE)
        elif self._router.ring.owner(forward.check.key) == self._router.node_id:
            self._resume(forward, now_ns)
        else:
            forward.settle(self.seek(forward, now_ns))

    def reroute(self, forward: Forward, owner: str | None, revision: int, now_ns: int) -> None:
        """Ask another node, once: the owner in a ring of that revision, as whoever refused the check says.

        While this node's own ring is older and does not know that owner, or gives the key to somebody else than this
        node, the check waits for the newer one, up to its deadline.
        """
        if forward.rerouted or _must_not_repeat(forward):
            self.send_on(forward, now_ns)
            return
        forward.rerouted = True
        forward.asks_help = False
        forward.wait(self._peer_timeout_ns, now_ns)
        self.rerouted += 1
        router = self._router
        ring = router.ring
        link = None if owner is None else router.links.get(owner)
        if link is not None and revision >= ring.revision:
            link.revision = max(link.revision, revision)
            forward.settle(router.forward(owner, forward, now_ns))
        elif revision > ring.revision:
            self._waiting.append((revision, forward))
        elif revision < ring.revision or owner == ring.owner(forward.check.key):
            self._resume(forward, now_ns)
        else:
            self.send_on(forward, now_ns)

    def follow_ring(self, forward: Forward, now_ns: int) -> None:
        """Ask the owner in this node's own ring, once, in place of a peer that has left it."""
        ring = self._router.ring
        self.reroute(forward, ring.owner(forward.check.key), ring.revision, now_ns)

    def place(self, homeless: Sequence[Forward], late: Sequence[Forward], now_ns: int) -> None:
        """Bring to others what this node was to decide and does not own any more; give up what is too late."""
        for forward in homeless:
            owner = self._router.ring.owner(forward.check.key)
            if forward.asks_help:
                self.send_on(forward, now_ns)
            elif forward.for_peer and owner != self._router.node_id:
                forward.reply(NotOwner(owner or self._router.node_id))  # type: ignore[arg-type]
            else:
                forward.wait(self._peer_timeout_ns, now_ns)
                self._resume(forward, now_ns)
        for forward in late:
            forward.reply(self._give_up(forward, now_ns))

    def resume(self, now_ns: int) -> None:
        """Send on the checks that waited for a ring which has come; give up those whose deadline has."""
        waiting, self._waiting = self._waiting, []
        for revision, forward in waiting:
            if revision <= self._router.ring.revision:
                self._resume(forward, now_ns)
            elif forward.deadline_ns <= now_ns:
                forward.reply(self._give_up(forward, now_ns))
            else:
                self._waiting.append((revision, forward))

    def tick(self, now_ns: int) -> None:
        """Look again at all checks that wait; to be called several times within a peer timeout."""
        hoping, self._hoping = self._hoping, []
        for forward in hoping:
            self._hope_on(forward, now_ns)
        self.resume(now_ns)

    def answer_alone(self, check: Check, now_ns: int) -> Outcome:
        """What is said when neither the owner nor the replica can be asked."""
        router = self._router
        if router.ring.owner(check.key) == router.node_id:
            self.fenced += 1
        else:
            self.unanswered += 1
        if check.op not in (Op.CHECK, Op.RESERVE):
            return UNREACHABLE
        return router.engine.check_alone(check, max(1, len(router.ring.members)), now_ns)

    def _give_up(self, forward: Forward, now_ns: int) -> Outcome:
        return UNREACHABLE if forward.for_peer else self.answer_alone(forward.check, now_ns)

    def _any_link(self, others_than: tuple[str | None, ...], now_ns: int) -> Link | None:
        router = self._router
        for link in router.links.values():
            is_member = link.peer.id in router.ring.members
            if link.peer.id not in others_than and now_ns < link.usable_until_ns and is_member:
                return link
        return None

    def _hope(self, owner: str, forward: Forward, now_ns: int) -> Outcome | None:
        """Wait until the owner is known to be gone or can be reached, unless neither has come about for long."""
        links = self._router.links
        heard_ns = links[owner].heard_ns if owner in links else 0
        if now_ns - heard_ns > 3 * self._peer_timeout_ns:
            return self._give_up(forward, now_ns)
        forward.wait(parked_ns(self._peer_timeout_ns), now_ns)
        self._hoping.append(forward)
        return None

    def _hope_on(self, forward: Forward, now_ns: int) -> None:
        router = self._router
        owner, replica = router.ring.holders(forward.check.key)
        link = None if owner is None else router.links.get(owner)
        if owner == router.node_id or (link is not None and now_ns < link.usable_until_ns):
            forward.asks_help = False
            forward.wait(self._peer_timeout_ns, now_ns)
            self._resume(forward, now_ns)
        elif owner is not None and replica == router.node_id and router.keeper.can_stand_in(owner, now_ns):
            forward.settle(router.keeper.act(forward, now_ns))
        elif forward.deadline_ns <= now_ns:
            forward.reply(self._give_up(forward, now_ns))
        else:
            self._hoping.append(forward)

    def _resume(self, forward: Forward, now_ns: int) -> None:
        """Go by this node's ring."""
        router = self._router
        owner = router.ring.owner(forward.check.key)
        if owner != router.node_id:
            forward.settle(router.forward(owner, forward, now_ns))
            return
        check, expires_ns = forward.check, forward.expires_ns
        outcome = router.keeper.decide(check, now_ns, for_peer=forward.for_peer, expires_ns=expires_ns)
        forward.settle(self._give_up(forward, now_ns) if outcome is None else outcome)


def _must_not_repeat(forward: Forward) -> bool:
    """Whether somebody may have done already what done twice would give too much, or it is for one peer alone."""
    return forward.check.op in FOR_ONE or (forward.is_sent and forward.check.op is Op.REFUND)
