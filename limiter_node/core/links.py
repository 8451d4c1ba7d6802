"""Links: this node's ways to its peers, and the checks that wait on them.

A link knows what was sent and what waits to be sent; who is asked what is the router's business, sockets are the
carrier's.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Protocol, cast

import msgspec

from limiter_node.core.model import CHECKS_PER_FRAME_MAX, Ask, Check, Outcome, Unreachable

if TYPE_CHECKING:
    from limiter_node.core.model import Member, Request, Result

PARKED_SHARE = 0.7
"""Of a peer timeout: a check that waits here for a peer is given up while the peer still waits for the answer."""

WAYS_MAX = 3
"""Peer timeouts after which a check is decided alone, whatever could still be tried."""

NEVER_NS = -(2**63)

UNREACHABLE = Unreachable()


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


class Forward(msgspec.Struct, eq=False):
    """A check whose outcome comes later. Who gets it sets `reply` at once; it is never called before that.

    A struct, since each forwarded check makes one: 0.13 us, where a class that sets its own slots takes 0.4.
    """

    check: Check
    deadline_ns: int  # of the present way
    expires_ns: int  # of the last way
    for_peer: bool = False  # a peer asked for help: it, not this node, answers when nobody can decide
    rerouted: bool = False
    is_sent: bool = False  # to somebody who may have decided it
    asks_help: bool = False  # whoever it is sent to need not be the owner
    helpers: int = 0  # nodes asked for help so far
    trace: str | None = None  # a request id, if the check is to be told in the log
    reply: Callable[[Outcome], None] = cast("Callable[[Outcome], None]", None)

    def wait(self, span_ns: int, now_ns: int) -> None:
        """Give it so much time from now on, unless it has had all that it may have."""
        self.deadline_ns = min(now_ns + span_ns, self.expires_ns)

    def settle(self, outcome: Outcome | Forward | None) -> None:
        """Give an outcome to whoever waits, now or once it is there; None: somebody else will bring it."""
        if isinstance(outcome, Forward):
            outcome.reply = self.reply
        elif outcome is not None:
            self.reply(outcome)


def parked_ns(peer_timeout_ns: int) -> int:
    """For how long a check waits here for a peer, see `PARKED_SHARE`."""
    return round(peer_timeout_ns * PARKED_SHARE)


def one_way(check: Check, deadline_ns: int, *, for_peer: bool = False) -> Forward:
    """A check that is given up at its deadline."""
    return Forward(check, deadline_ns, deadline_ns, for_peer)


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


class LateResults:
    """The results of a peer's checks, some of which are still to come; `done` gets them once all are there."""

    def __init__(self, results: list[Result | Forward], done: Callable[[list[Result]], None]) -> None:
        self._results = results
        self._done = done
        self._missing = 0
        for index, result in enumerate(results):
            if isinstance(result, Forward):
                self._missing += 1
                result.reply = partial(self._fill, index)

    def _fill(self, index: int, result: Result) -> None:
        self._results[index] = result
        self._missing -= 1
        if not self._missing:
            self._done(cast("list[Result]", self._results))
