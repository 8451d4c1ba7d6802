"""The check API with some of its checks told in the log: for who asks for that with `--log-checks`.

A check that is told has a request id: the client's `X-Request-Id`, or one made here. It travels with the check, and the
node that decides it tells it too, under the same id. Every request goes the long way, so that its headers are known;
without `--log-checks` none of this is there, and a check costs nothing more.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import structlog

from limiter_node import clock
from limiter_node.core.forward import Forward
from limiter_node.core.model import NotOwner, Op, Verdict
from limiter_node.edge.answers import Problem
from limiter_node.edge.check_api import CheckApi

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.model import Check, Outcome, Result
    from limiter_node.core.router import Router
    from limiter_node.edge.exchange import Slot
    from limiter_node.edge.http import HttpConnection
    from limiter_node.edge.tally import Tally

log = structlog.get_logger()

_GOOD_ID = re.compile(rb"[!-~]{1,64}")


class LoggedCheckApi(CheckApi):
    """Tells `fraction` of the checks, picked by `random`, uniform in [0, 1)."""

    def __init__(
        self,
        router: Router,
        tally: Tally,
        *,
        on_unknown_rule: str,
        fraction: float,
        random: Callable[[], float],
    ) -> None:
        super().__init__(router, tally, on_unknown_rule=on_unknown_rule)
        self._fraction = fraction
        self._random = random
        self._given_id: bytes | None = None  # of the request that is being handled
        # Request ids by the identity of the check, which lives until its outcome is there.
        self._told: dict[int, str] = {}

    def handle(self, request: HttpConnection, slot: Slot) -> bytes | None:
        """As of any check API; all its checks are asked before this returns."""
        self._given_id = request.request_id
        return super().handle(request, slot)

    def handle_plain_get(self, line: bytes, request: HttpConnection, slot: Slot) -> bytes | bool | None:
        """None is plain: the short way knows no headers."""
        return False

    def _learn(self, rule: str) -> None:
        """Nothing is usual: the short way tells nobody what it answered."""

    def ask(self, check: Check, now_ns: int) -> Outcome | Forward | Problem:
        """As of any check API, and decide whether the check is told."""
        outcome = super().ask(check, now_ns)
        if check.op is Op.CHECK and self._random() < self._fraction:
            trace = self._told[id(check)] = self._request_id()
            if isinstance(outcome, Forward):
                outcome.trace = trace
        return outcome

    def _request_id(self) -> str:
        given = self._given_id
        if given is not None and _GOOD_ID.fullmatch(given):
            return given.decode()
        return f"{int(self._random() * 2**64):016x}"

    def judge(self, check: Check, outcome: Outcome | Problem, began_ns: int, path: str) -> Verdict | Problem:
        """As of any check API, and tell the check if it was picked."""
        verdict = super().judge(check, outcome, began_ns, path)
        trace = self._told.pop(id(check), None)
        if trace is not None:
            took_ms = round((clock.now_ns() - began_ns) / 1e6, 3)
            owner = self.router.ring.owner(check.key)
            log.info("check", request_id=trace, **_asked(check), **_said(verdict), path=path, owner=owner, ms=took_ms)
        return verdict


def log_decision(check: Check, trace: str, result: Result) -> None:
    """Tell a check that this node decided for a peer."""
    log.info("check for a peer", request_id=trace, **_asked(check), **_said(result))


def _asked(check: Check) -> dict[str, Any]:
    return {"rule": check.rule, "key": check.key, "cost": check.cost, "segment": check.segment}


def _said(result: Result | Problem) -> dict[str, Any]:
    if isinstance(result, Problem):
        return {"problem": result.detail}
    if isinstance(result, NotOwner):
        return {"outcome": "not the owner", "owner": result.owner}
    if not isinstance(result, Verdict):
        return {"outcome": type(result).__name__}
    said: dict[str, Any] = {"allowed": result.allowed, "remaining": result.remaining, "limit": result.limit}
    if not result.allowed:
        said["retry_after_s"] = None if result.retry_ns < 0 else round(result.retry_ns / 1e9, 3)
    if result.would_allow is not None:
        said["would_allow"] = result.would_allow
    if result.degraded:
        said["degraded"] = True
    if result.reason is not None:
        said["reason"] = result.reason
    return said
