"""Forwards: checks that another node decides, or this one later, and who waits for their outcomes.

A forward knows by when it is to have an outcome and what has been tried for it; who is asked is the router's business,
and how the check gets there a link's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import msgspec

from limiter_node.core.model import Check, Outcome, Unreachable

if TYPE_CHECKING:
    from limiter_node.core.model import Result

PARKED_SHARE = 0.7
"""Of a peer timeout: a check that waits here for a peer is given up while the peer still waits for the answer."""

WAYS_MAX = 3
"""Peer timeouts after which a check is decided alone, whatever could still be tried."""

UNREACHABLE = Unreachable()


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
