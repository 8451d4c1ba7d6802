"""The conductor: once a second, on the node that leads, has the fleet asked, the law applied, the outcome published.

A node that is alone leads itself, and goes by its decisions at once. In a fleet they go through etcd, where people can
see and pin them, by the fenced writes of `leadership`; among the workers of a standalone node over their `board`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

import structlog

from limiter_node.control.etcd_link import LinkError
from limiter_node.core.backends import record_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.control.polls import Polls
    from limiter_node.control.rulebook import RuleBook
    from limiter_node.core.adaptive.evidence import Decision
    from limiter_node.core.router import Router

log = structlog.get_logger()

TICK_S = 1.0
ANSWER_S = 0.2
"""For nodes to answer: twice the default peer timeout. What comes later is of the next tick."""

STANDALONE_TERM = 1


class Election(Protocol):
    """A node's part in who leads."""

    leader: str | None  # as far as is known
    term: int  # this node's; 0 while it does not lead
    refused: int  # writes that came too late

    @property
    def is_leader(self) -> bool:
        """Whether this node may act."""

    def changed(self, value: bytes | None, revision: int) -> None:
        """Take who leads since that revision."""

    async def write(self, key: str, value: bytes, mod_revision: int | None) -> bool:
        """Put a key, if this node still leads and nobody has changed it since; raises `LinkError`."""


class Conductor:
    """Runs the controller of a node; `leadership` is None on a node that is alone."""

    def __init__(
        self,
        router: Router,
        book: RuleBook,
        leadership: Election | None,
        polls: Polls,
        monotonic_ns: Callable[[], int],
    ) -> None:
        self.published = 0
        self._router = router
        self._book = book
        self._leadership = leadership
        self._polls = polls
        self._monotonic_ns = monotonic_ns
        self._revisions: dict[str, int] = {}  # of the records in etcd, as this node has seen them last

    def changed(self, name: str, revision: int, *, is_deleted: bool) -> None:
        """Note the revision of a backend's record."""
        self._revisions[name] = 0 if is_deleted else revision

    async def run(self) -> None:
        """Conduct while this node leads, until cancelled."""
        loop = asyncio.get_running_loop()
        due_s = loop.time()
        try:
            while True:
                due_s = max(due_s + TICK_S, loop.time())
                await asyncio.sleep(due_s - loop.time())
                try:
                    await self._tick()
                except Exception:  # a bug of ours: what is published stays, and the laws begin anew from that
                    log.exception("controller failed")
                    self._router.controller.follow()
        finally:
            self._polls.stop()

    async def _tick(self) -> None:
        controller = self._router.controller
        term = self._term()
        if controller.term != term:
            if term:
                controller.lead(term)
            else:
                controller.follow()
                self._polls.stop()
        if not term:
            return
        self._polls.keep()
        self._router.gather(self._monotonic_ns())
        await asyncio.sleep(ANSWER_S if len(self._router.links) else 0)
        for name, decision in controller.decide(self._monotonic_ns()).items():
            await self._publish(name, decision, term)

    def _term(self) -> int:
        if self._leadership is None:
            return STANDALONE_TERM
        return self._leadership.term if self._leadership.is_leader else 0

    async def _publish(self, name: str, decision: Decision, term: int) -> None:
        key = f"multipliers/{name}"
        observed = self._router.engine.backends.entry(name).policy.mode == "observe"
        value = record_json(decision, term, observed=observed)
        if self._leadership is None:
            self._book.changed(key, value, self._monotonic_ns())
            self.published += 1
            return
        if self._term() != term:
            return
        try:
            self.published += await self._leadership.write(key, value, self._revisions.get(name, 0))
        except LinkError as error:
            log.warning("decision not published", backend=name, error=str(error))
