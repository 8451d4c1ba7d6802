"""Requests that go beyond single checks: `"atomic": true` in a batch, and `POST /v1/refund`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec
from msgspec.structs import replace

from limiter_node.core.forward import Forward
from limiter_node.core.model import Check, Outcome, Refunded, UnknownRule, Verdict
from limiter_node.edge.answers import (
    Problem,
    json_answer,
    problem_answer,
    refund_json,
    unknown_rule,
    verdict_json,
)
from limiter_node.edge.requests import check_or_problem
from limiter_node.edge.tally import FORWARDED, LOCAL

if TYPE_CHECKING:
    from limiter_node.core.atomic import Batch
    from limiter_node.core.router import Router
    from limiter_node.edge.exchange import Slot
    from limiter_node.edge.http import HttpConnection
    from limiter_node.edge.requests import CheckBody
    from limiter_node.edge.tally import Tally


class Judge(Protocol):
    """The check API, as far as these need it."""

    router: Router
    tally: Tally
    allows_unknown: bool  # a rule that does not exist

    def find_obstacle(self, check: Check) -> UnknownRule | Problem | None:
        """Why a check cannot be decided, if that is known."""

    def ask(self, check: Check, now_ns: int) -> Outcome | Forward | Problem:
        """Pass a check to the router, unless it is known that it cannot be decided."""

    def judge(self, check: Check, outcome: Outcome | Problem, began_ns: int, path: str) -> Verdict | Problem:
        """What an outcome means to the caller; counts it."""


class AtomicBatch:
    """Checks of one request that are taken together or not at all (`core.atomic`)."""

    def __init__(self, api: Judge, bodies: list[CheckBody | Problem], request: HttpConnection, slot: Slot) -> None:
        self._api = api
        self._checks = list(map(check_or_problem, bodies))
        self._request = request
        self._connection_header = request.connection_header
        self._slot = slot
        self._began_ns = request.now_ns
        # Why those checks that are not asked cannot be decided, by their index.
        self._obstacles: dict[int, UnknownRule | Problem] = {}

    def ask(self) -> bytes | None:
        """Ask for all that can be decided; returns the answer when no other node is needed for it."""
        api, asked = self._api, list[Check]()
        for index, check in enumerate(self._checks):
            obstacle = check if isinstance(check, Problem) else api.find_obstacle(check)
            if obstacle is not None:
                self._obstacles[index] = obstacle
            elif isinstance(check, Check):
                asked.append(check)
        batch = api.router.batches.check(
            asked,
            self._began_ns,
            is_doomed=not all(map(self._is_passable, self._obstacles.values())),
            allows_unknown=api.allows_unknown,
        )
        if batch.is_done:
            return self._answer(batch, LOCAL)
        batch.reply = lambda done: self._slot.fill(self._answer(done, FORWARDED))
        return None

    def _is_passable(self, obstacle: UnknownRule | Problem) -> bool:
        return isinstance(obstacle, UnknownRule) and self._api.allows_unknown

    def _answer(self, batch: Batch, path: str) -> bytes:
        outcomes = iter(batch.outcomes)
        results = [
            self._result(check, self._obstacles.get(index) or next(outcomes), path, is_allowed=batch.is_allowed)
            for index, check in enumerate(self._checks)
        ]
        allowed = "true" if batch.is_allowed else "false"
        body = f'{{"allowed":{allowed},"results":[{",".join(results)}]}}'.encode()
        return json_answer(body, self._request.date, self._connection_header)

    def _result(self, check: Check | Problem, outcome: Outcome | Problem, path: str, *, is_allowed: bool) -> str:
        verdict = check if isinstance(check, Problem) else self._api.judge(check, outcome, self._began_ns, path)
        if isinstance(check, Problem) or isinstance(verdict, Problem):
            assert isinstance(verdict, Problem)
            return msgspec.json.encode({"error": verdict.document()}).decode()
        if isinstance(outcome, UnknownRule) and verdict.allowed and not is_allowed:
            verdict = replace(verdict, allowed=False, reason="batch")
        return verdict_json(check.rule, verdict)


class RefundRequest:
    """Tokens to be given back."""

    def __init__(self, api: Judge, check: Check, request: HttpConnection, slot: Slot) -> None:
        self._api = api
        self._check = check
        self._request = request
        self._connection_header = request.connection_header
        self._slot = slot

    def ask(self) -> bytes | None:
        """Ask whoever owns the key; returns the answer when that is this node."""
        outcome = self._api.ask(self._check, self._request.now_ns)
        if isinstance(outcome, Forward):
            outcome.reply = lambda late: self._slot.fill(self._answer(late))
            return None
        return self._answer(outcome)

    def _answer(self, outcome: Outcome | Problem) -> bytes:
        rule, date, connection = self._check.rule, self._request.date, self._connection_header
        if isinstance(outcome, Refunded):
            return json_answer(refund_json(rule, outcome), date, connection)
        if isinstance(outcome, UnknownRule):
            outcome = unknown_rule(rule)
        elif not isinstance(outcome, Problem):
            detail = "the owner of the key cannot be reached; it may have given the tokens back or not"
            outcome = Problem(503, detail, headers="Retry-After: 1\r\n")
        self._api.tally.count_problem(outcome.status)
        return problem_answer(outcome, date, connection)
