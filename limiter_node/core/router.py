"""The router: a check on the fleet. It answers what this node owns and passes the rest on to the owners.

It knows the ring, what was sent to whom and by when it must be answered; it does not know sockets or encodings.
Frames go out as values (`flush`) and come in as values (`on_ask`, `on_answer`); whoever carries them, the
real links or the simulated network, calls `tick` so that deadlines pass.

Invariants: every check gets exactly one outcome, within the peer timeout (twice it after a re-route), whatever
links do; a check is re-routed at most once, so none can go in circles; a node decides as owner only for keys
that its own ring gives to it.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from limiter_node.core.model import (
    CHECKS_PER_FRAME_MAX,
    Answer,
    Ask,
    Check,
    Forgotten,
    NotOwner,
    Op,
    Outcome,
    Result,
    Unreachable,
)
from limiter_node.core.ring import Member, Ring

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.engine import Engine

OUTBOX_MAX = 20_000
"""Checks that may wait for one link; more than it can carry in a peer timeout would only expire."""

PARKED_MAX = 1_000
"""Frames from nodes with a newer ring that may wait for ours to catch up."""

UNREACHABLE = Unreachable()
FORGOTTEN = Forgotten()


class LinkState(Enum):
    """What is known about the way to a peer."""

    CONNECTING = "connecting"  # not yet known: checks wait for it, up to their deadline
    UP = "up"
    DOWN = "down"  # refused or broken: checks do not wait


class Carrier(Protocol):
    """What carries a link's frames to the peer."""

    def wake(self) -> None:
        """Flush the link soon, once for all checks that this pass of the loop puts into its outbox."""

    def redial(self) -> None:
        """Give the connection up and dial anew: the peer is silent, or has another address."""

    def close(self) -> None:
        """End for good: the peer has left and owes no answer."""


class Forward:
    """A check on its way to another node. Who gets it sets `reply` at once; it is never called before that."""

    __slots__ = ("check", "deadline_ns", "reply", "rerouted")
    reply: Callable[[Outcome], None]

    def __init__(self, check: Check, deadline_ns: int) -> None:
        self.check = check
        self.deadline_ns = deadline_ns
        self.rerouted = False


class Link:
    """This node's way to one peer: checks waiting to leave, frames waiting for their answer."""

    __slots__ = ("carrier", "heard_ns", "outbox", "peer", "pending", "revision", "state")
    carrier: Carrier

    def __init__(self, peer: Member) -> None:
        self.peer = peer
        self.state = LinkState.CONNECTING
        self.heard_ns = 0  # when the peer last answered
        self.revision = 0  # of the newest ring that a check in the outbox was refused by
        self.outbox: deque[Forward] = deque()
        self.pending: dict[int, list[Forward]] = {}  # by frame id, in order of sending

    def take_all(self) -> list[Forward]:
        """Empty the link of everything that waits for it."""
        forwards = [forward for frame in self.pending.values() for forward in frame]
        forwards += self.outbox
        self.pending.clear()
        self.outbox.clear()
        return forwards


class Router:
    """Answers checks on any key of the fleet.

    `node_id` is this node's; `peer_timeout_ns` the deadline of one hop; `open_link` begins to carry a link's frames.
    """

    def __init__(
        self,
        node_id: str,
        engine: Engine,
        *,
        peer_timeout_ns: int,
        open_link: Callable[[Link], Carrier],
    ) -> None:
        self.node_id = node_id
        self.engine = engine
        self.ring = Ring(0, {})
        self.links: dict[str, Link] = {}
        self.leavers: list[Link] = []  # to nodes no longer in the ring, until they have answered what they were asked
        self.forwarded = 0
        self.rerouted = 0
        self.unanswered = 0  # forwards that ended in `on_unreachable`
        self._peer_timeout_ns = peer_timeout_ns
        self._open_link = open_link
        self._next_id = 0
        self._waiting: list[tuple[int, Forward]] = []  # refused by a ring of that revision, which is not ours yet
        self._parked: deque[tuple[int, Ask, Callable[[Answer], None]]] = deque()

    # Checks of this node's own callers.

    def check(self, check: Check, now_ns: int) -> Outcome | Forward:
        """Decide at once, or send the check to its owner and return the `Forward` that will bring the outcome."""
        owner = self.ring.owner(check.key)
        if owner == self.node_id:
            return self.engine.check(check, now_ns) if check.op is Op.CHECK else self.decide(check, now_ns)
        forward = Forward(check, now_ns + self._peer_timeout_ns)
        return self._forward(owner, forward, now_ns) or forward

    def decide(self, check: Check, now_ns: int) -> Outcome:
        """Do what is asked to a bucket of this node."""
        if check.op is Op.CHECK:
            return self.engine.check(check, now_ns)
        if check.op is Op.INSPECT:
            return self.engine.inspect(check.rule, check.key, now_ns)
        self.engine.forget(check.rule, check.key, now_ns)
        return FORGOTTEN

    def _forward(self, owner: str | None, forward: Forward, now_ns: int) -> Outcome | None:
        link = None if owner is None else self.links.get(owner)
        if link is None or link.state is LinkState.DOWN or len(link.outbox) >= OUTBOX_MAX:
            return self._alone(forward.check, now_ns)
        self.forwarded += 1
        if not link.outbox:
            link.carrier.wake()
        link.outbox.append(forward)
        return None

    def _alone(self, check: Check, now_ns: int) -> Outcome:
        """What is said when the owner cannot be asked."""
        self.unanswered += 1
        if check.op is not Op.CHECK:
            return UNREACHABLE
        return self.engine.check_alone(check, max(1, len(self.ring.members)), now_ns)

    # Frames.

    def flush(self, link: Link, now_ns: int) -> list[Ask]:
        """The frames to send on a link that is up: all its outbox, as few frames as that takes."""
        asks: list[Ask] = []
        while link.outbox:
            count = min(len(link.outbox), CHECKS_PER_FRAME_MAX)
            forwards = [link.outbox.popleft() for _ in range(count)]
            self._next_id += 1
            link.pending[self._next_id] = forwards
            revision = max(self.ring.revision, link.revision)
            asks.append(Ask(self._next_id, revision, [forward.check for forward in forwards]))
        link.revision = 0
        return asks

    def on_ask(self, ask: Ask, now_ns: int, respond: Callable[[Answer], None]) -> None:
        """Answer a peer's frame; when the peer's ring is newer and gives us keys that ours does not, wait for ours."""
        if ask.revision > self.ring.revision and not self._owns_all(ask) and len(self._parked) < PARKED_MAX:
            self._parked.append((now_ns + self._peer_timeout_ns // 2, ask, respond))
            return
        self._respond(ask, now_ns, respond)

    def on_answer(self, link: Link, answer: Answer, now_ns: int) -> None:
        """Give the outcomes of an earlier frame to those who wait; an answer that comes too late has nobody waiting."""
        link.heard_ns = now_ns
        forwards = link.pending.pop(answer.id, ())
        for forward, result in zip(forwards, answer.results, strict=False):
            if isinstance(result, NotOwner):
                self._reroute(forward, result.owner, answer.revision, now_ns)
            else:
                forward.reply(result)
        # A peer that answers less than it was asked is broken; nobody may hang for it.
        for forward in list(forwards)[len(answer.results) :]:
            forward.reply(self._alone(forward.check, now_ns))

    def _owns_all(self, ask: Ask) -> bool:
        return all(self.ring.owner(check.key) == self.node_id for check in ask.checks)

    def _respond(self, ask: Ask, now_ns: int, respond: Callable[[Answer], None]) -> None:
        results: list[Result] = []
        for check in ask.checks:
            owner = self.ring.owner(check.key)
            results.append(self.decide(check, now_ns) if owner == self.node_id else NotOwner(owner or self.node_id))
        respond(Answer(ask.id, self.ring.revision, results))

    def _reroute(self, forward: Forward, owner: str | None, revision: int, now_ns: int) -> None:
        """Ask another node, once: the owner in a ring of that revision, as whoever refused the check says.

        While this node's own ring is older and does not know that owner, or gives the key to somebody else than this
        node, the check waits for the newer one, up to its deadline.
        """
        if forward.rerouted:
            forward.reply(self._alone(forward.check, now_ns))
            return
        forward.rerouted = True
        forward.deadline_ns = now_ns + self._peer_timeout_ns
        self.rerouted += 1
        link = None if owner is None else self.links.get(owner)
        if link is not None and revision >= self.ring.revision:
            link.revision = max(link.revision, revision)
            outcome = self._forward(owner, forward, now_ns)
            if outcome is not None:
                forward.reply(outcome)
        elif revision > self.ring.revision:
            self._waiting.append((revision, forward))
        elif revision < self.ring.revision or owner == self.ring.owner(forward.check.key):
            self._resume(forward, now_ns)
        else:
            forward.reply(self._alone(forward.check, now_ns))

    def _resume(self, forward: Forward, now_ns: int) -> None:
        """Go by this node's ring."""
        owner = self.ring.owner(forward.check.key)
        if owner == self.node_id:
            forward.reply(self.decide(forward.check, now_ns))
            return
        outcome = self._forward(owner, forward, now_ns)
        if outcome is not None:
            forward.reply(outcome)
        elif owner is not None:
            # It is older than whatever waits there, and the first of an outbox or frame tells its deadline.
            self.links[owner].outbox.rotate()

    def _resume_waiting(self, now_ns: int) -> None:
        waiting, self._waiting = self._waiting, []
        for revision, forward in reversed(waiting):
            if revision <= self.ring.revision:
                self._resume(forward, now_ns)
            elif forward.deadline_ns <= now_ns:
                forward.reply(self._alone(forward.check, now_ns))
            else:
                self._waiting.append((revision, forward))
        self._waiting.reverse()

    # What happens to the fleet.

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        """Go over to a newer ring; an older one is refused."""
        if ring.revision < self.ring.revision:
            return
        self.ring = ring
        gone = [self.links.pop(peer_id) for peer_id in sorted(self.links.keys() - ring.members.keys())]
        for peer in ring.members.values():
            link = self.links.get(peer.id)
            if link is None and peer.id != self.node_id:
                link = self.links[peer.id] = Link(peer)
                link.carrier = self._open_link(link)
            elif link is not None and link.peer != peer:
                has_moved = link.peer.peer != peer.peer
                link.peer = peer
                if has_moved:
                    link.carrier.redial()
        for link in gone:
            self._part(link, now_ns)
        self._resume_waiting(now_ns)
        self._serve_parked(now_ns)

    def _part(self, link: Link, now_ns: int) -> None:
        """Let a peer answer what it was asked before it left the ring; what it was not asked yet goes elsewhere."""
        self.leavers.append(link)
        unsent, link.outbox = link.outbox, deque()
        for forward in unsent:
            self._reroute(forward, self.ring.owner(forward.check.key), self.ring.revision, now_ns)
        self._close_leavers()

    def _close_leavers(self) -> None:
        for link in [link for link in self.leavers if not link.pending]:
            self.leavers.remove(link)
            link.carrier.close()

    def on_up(self, link: Link, now_ns: int) -> None:
        """The link carries frames."""
        link.state = LinkState.UP
        link.heard_ns = now_ns
        if link.outbox:
            link.carrier.wake()

    def on_down(self, link: Link, now_ns: int) -> None:
        """The link broke or was refused: whatever waits for it is answered without it.

        What a leaver has not answered goes to the new owner; it may be spent twice so, never granted twice.
        """
        link.state = LinkState.DOWN
        has_left = link in self.leavers
        for forward in link.take_all():
            if has_left:
                self._reroute(forward, self.ring.owner(forward.check.key), self.ring.revision, now_ns)
            else:
                forward.reply(self._alone(forward.check, now_ns))

    def tick(self, now_ns: int) -> None:
        """Let deadlines pass; to be called several times within a peer timeout."""
        for link in (*self.links.values(), *self.leavers):
            late: list[Forward] = []
            while link.outbox and link.outbox[0].deadline_ns <= now_ns:
                late.append(link.outbox.popleft())
            for frame_id, forwards in list(link.pending.items()):
                if forwards[0].deadline_ns > now_ns:
                    continue
                late += link.pending.pop(frame_id)
                # Not a word since the frame was sent: the peer or the way to it is stuck. Whatever else is put on
                # this connection would wait behind it, and be decided when nobody wants the verdict any more.
                if link.heard_ns <= forwards[0].deadline_ns - self._peer_timeout_ns:
                    link.carrier.redial()
            for forward in late:
                forward.reply(self._alone(forward.check, now_ns))
        self._close_leavers()
        self._resume_waiting(now_ns)
        self._serve_parked(now_ns)

    def _serve_parked(self, now_ns: int) -> None:
        for _ in range(len(self._parked)):
            deadline_ns, ask, respond = self._parked.popleft()
            if deadline_ns <= now_ns or self.ring.revision >= ask.revision:
                self._respond(ask, now_ns, respond)
            else:
                self._parked.append((deadline_ns, ask, respond))
