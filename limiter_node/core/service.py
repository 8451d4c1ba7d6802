"""The service: what a node does for the checks that other nodes send it.

It decides those of its own keys, refuses others, and helps where it was asked to: passes them on to the owner, or
decides as the replica of an owner that is gone. How is the router's and the keeper's; this only keeps frames together.

Invariant: every frame gets one answer with a result for each of its checks, in their order, before its sender gives up.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol, cast

from limiter_node.core.forward import UNREACHABLE, Forward, LateResults, one_way, parked_ns
from limiter_node.core.model import Answer, Ask, Check, NotOwner, Op, Outcome, Reply, Result, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.engine import Engine
    from limiter_node.core.keeper import Keeper
    from limiter_node.core.leases import Leases
    from limiter_node.core.ring import Ring
    from limiter_node.core.shortcut import Granter, Shortcut

PARKED_MAX = 1_000
"""Frames from nodes with a newer ring that may wait for ours to catch up."""


class Ways(Protocol):
    """The router, as far as the service needs it."""

    node_id: str
    ring: Ring
    engine: Engine
    keeper: Keeper
    leases: Leases
    shortcut: Shortcut

    def forward(self, owner: str | None, forward: Forward, now_ns: int) -> Outcome | None:
        """Have a check decided elsewhere; returns an outcome that is there at once."""


class Service:
    """Answers the asks of peers. `on_traced` gets what came of each check that has a request id, with that."""

    def __init__(
        self,
        router: Ways,
        peer_timeout_ns: int,
        on_traced: Callable[[Check, str, Result], None] = lambda *_: None,
    ) -> None:
        self._router = router
        self._on_traced = on_traced
        self._peer_timeout_ns = peer_timeout_ns
        self._parked: deque[tuple[int, str, Ask, Callable[[Reply], None]]] = deque()

    def on_ask(self, name: str, ask: Ask, now_ns: int, respond: Callable[[Reply], None]) -> None:
        """Answer a peer's checks; when its ring is newer and gives us keys that ours does not, wait for ours."""
        router = self._router
        if ask.kept:
            router.keeper.replication.on_kept(name, ask.kept, now_ns)
        if (
            ask.revision > router.ring.revision
            and len(self._parked) < PARKED_MAX
            and not all(router.ring.owner(check.key) == router.node_id for check in ask.checks)
        ):
            self._parked.append((now_ns + self._peer_timeout_ns // 2, name, ask, respond))
        else:
            self._respond(name, ask, now_ns, respond)

    def serve_parked(self, now_ns: int) -> None:
        """Answer what waited for a ring that has come, or for long enough."""
        for _ in range(len(self._parked)):
            deadline_ns, name, ask, respond = self._parked.popleft()
            if deadline_ns <= now_ns or self._router.ring.revision >= ask.revision:
                self._respond(name, ask, now_ns, respond)
            else:
                self._parked.append((deadline_ns, name, ask, respond))

    def _respond(self, name: str, ask: Ask, now_ns: int, respond: Callable[[Reply], None]) -> None:
        results, spent, are_granted = self._serve_all(name, ask, now_ns)
        if any(spent):
            self._router.keeper.replication.carry(name, ask, spent, now_ns)
        else:
            spent = []
        if are_granted and not ask.traces:  # as nearly always
            respond(Answer(ask.id, self._router.ring.revision, cast("list[Result]", results), {}, spent))
            return

        def done(results: list[Result]) -> None:
            for index, trace in ask.traces.items():
                if 0 <= index < len(results):
                    self._on_traced(ask.checks[index], trace, results[index])
            respond(Answer(ask.id, self._router.ring.revision, results, promises, spent))

        promises = {} if ask.helps else self._promise(ask.checks, results, now_ns)
        for index, trace in ask.traces.items():
            result = results[index] if 0 <= index < len(results) else None
            if isinstance(result, Forward):
                result.trace = trace  # it may have to go on to another node
        if Forward in map(type, results):
            LateResults(results, done)
        else:
            done(cast("list[Result]", results))

    def _promise(self, checks: list[Check], results: list[Result | Forward], now_ns: int) -> dict[int, int]:
        """For how long denials stay true, by index, for those of which that is known."""
        keeper = self._router.keeper
        return {
            index: lasts_ns
            for index, verdict in enumerate(results)
            if type(verdict) is Verdict and not verdict.allowed
            if (lasts_ns := keeper.commitments.promise(checks[index], verdict, keeper.fence.right_until_ns, now_ns))
        }

    def _serve_all(self, name: str, ask: Ask, now_ns: int) -> tuple[list[Result | Forward], list[int], bool]:
        """What comes of a peer's checks; of the usual ones, of cost 1 and allowed, the short way: 0.5 us less.

        With what the keys have spent of which the answer is the copy, see `carried`; and whether all were usual ones.
        """
        results: list[Result | Forward] = []
        copied: list[int] = []
        are_usual = True
        holders, node_id = self._router.ring.holders, self._router.node_id
        grants: dict[str, Granter | None] = {}  # by rule
        for check in ask.checks:
            if check.cost == 1 and check.segment is None and check.op is Op.CHECK:
                owner, replica = holders(check.key)
                if check.rule not in grants:
                    grants[check.rule] = self._router.shortcut.granter(check.rule, now_ns)
                grant = grants[check.rule]
                if owner == node_id and grant is not None and (granted := grant(check.key, replica == name)):
                    ((limit, window_s), remaining, reset_ns), spent = granted
                    results.append(Verdict(True, limit, remaining, reset_ns, 0, window_s))
                    copied.append(spent)
                    continue
            are_usual = False
            results.append(self._serve(check, now_ns, helps=ask.helps))
            copied.append(0)
        return results, copied, are_usual

    def _serve(self, check: Check, now_ns: int, *, helps: bool) -> Result | Forward:
        """Decide for a peer, or find out for it."""
        router = self._router
        owner = router.ring.owner(check.key)
        if owner == router.node_id:
            if router.keeper.is_free_to(check, now_ns):
                return router.engine.check(check, now_ns)
            return router.keeper.decide(check, now_ns, for_peer=True) or UNREACHABLE
        if check.op is Op.RECALL:
            return router.leases.recall(check, now_ns)
        if not helps or owner is None:
            return NotOwner(owner or router.node_id)
        forward = one_way(check, now_ns + parked_ns(self._peer_timeout_ns), for_peer=True)
        return router.forward(owner, forward, now_ns) or forward
