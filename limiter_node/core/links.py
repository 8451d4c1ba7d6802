"""Links: this node's ways to its peers, and what waits on them.

A link knows what was sent and what waits to be sent; who is asked what is the router's business, sockets are the
carrier's.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from limiter_node.core.model import CHECKS_PER_FRAME_MAX, Ask

if TYPE_CHECKING:
    from limiter_node.core.forward import Forward
    from limiter_node.core.model import Member, Request

NEVER_NS = -(2**63)


class LinkState(Enum):
    """What is known about the way to a peer."""

    CONNECTING = "connecting"  # not yet known: checks wait for it, up to their deadline
    UP = "up"
    DOWN = "down"  # refused or broken: checks do not wait


class Carrier(Protocol):
    """What carries a link's frames to the peer."""

    def wake(self) -> None:
        """Flush the link soon, once for all that this pass of the loop puts into it."""

    def redial(self) -> None:
        """Give the connection up and dial anew: the peer is silent, or has another address."""

    def hasten(self) -> None:
        """Dial now if that is to be done later, or has been waited for: the peer has just dialled this node."""

    def close(self) -> None:
        """End for good: the peer has left and owes no answer."""


class Link:
    """This node's way to one peer: checks waiting to leave, frames waiting for their answer."""

    __slots__ = (
        "asked_ns",
        "carrier",
        "heard_ns",
        "kept",
        "news_revision",
        "outbox",
        "peer",
        "pending",
        "pinged_ns",
        "pings",
        "pulls",
        "revision",
        "state",
        "usable_until_ns",
    )
    carrier: Carrier

    def __init__(self, peer: Member) -> None:
        self.peer = peer
        self.state = LinkState.CONNECTING
        self.heard_ns = 0  # when the peer last answered
        self.asked_ns = 0  # when a connection was last given up for silence
        self.usable_until_ns = NEVER_NS  # the peer has answered lately: checks may be sent
        self.revision = 0  # of the newest ring that a check in the outbox was refused by
        self.news_revision = 0  # of the newest ring that the peer was told
        self.outbox: deque[Forward] = deque()
        self.pending: dict[int, list[Forward]] = {}  # by frame id, in order of sending
        self.kept: list[int] = []  # ids of answers with copies that the peer is still to be told are kept
        self.pinged_ns = NEVER_NS
        self.pings: dict[int, tuple[int, int]] = {}  # by frame id: when it was sent, at which epoch
        self.pulls: list[tuple[str, str]] = []  # (rule, key) to be asked for

    def is_usable(self, now_ns: int) -> bool:
        """Whether a check sent now can be expected to be answered; one that is being dialled may be."""
        return now_ns < self.usable_until_ns or self.state is LinkState.CONNECTING

    def take_asks(self, first_id: int, revision: int) -> list[Request]:
        """Empty the outbox into as few frames as that takes, numbered from `first_id` on."""
        asks: list[Request] = []
        while self.outbox:
            if len(self.outbox) <= CHECKS_PER_FRAME_MAX:
                forwards = list(self.outbox)
                self.outbox.clear()
            else:
                forwards = [self.outbox.popleft() for _ in range(CHECKS_PER_FRAME_MAX)]
            help_wanted = [forward for forward in forwards if forward.asks_help]
            if help_wanted:
                forwards = [forward for forward in forwards if not forward.asks_help]
            for batch in filter(None, (forwards, help_wanted)):
                asks.append(self._ask(first_id + len(asks), revision, batch))
        return asks

    def _ask(self, frame_id: int, revision: int, forwards: list[Forward]) -> Ask:
        self.pending[frame_id] = forwards
        traces = {}
        for index, forward in enumerate(forwards):
            forward.is_sent = True
            if forward.trace:
                traces[index] = forward.trace
        helps = forwards[0].asks_help
        kept, self.kept = self.kept[:CHECKS_PER_FRAME_MAX], []
        return Ask(frame_id, revision, [forward.check for forward in forwards], helps, traces, kept)

    def take_late(self, now_ns: int) -> list[Forward]:
        """Take out the checks whose deadline has passed."""
        late: list[Forward] = []
        for frame_id, forwards in list(self.pending.items()):
            if forwards[0].deadline_ns <= now_ns:
                late += self.pending.pop(frame_id)
        if self.outbox:
            late += [forward for forward in self.outbox if forward.deadline_ns <= now_ns]
            self.outbox = deque(forward for forward in self.outbox if forward.deadline_ns > now_ns)
        return late

    def take_all(self) -> list[Forward]:
        """Empty the link of all checks that wait for it."""
        forwards = [forward for frame in self.pending.values() for forward in frame]
        forwards += self.outbox
        self.pending.clear()
        self.outbox.clear()
        return forwards
