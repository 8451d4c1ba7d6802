"""Checks that are answered with what led to the verdict: `"explain": true`, and `GET /v1/explain`.

Two questions for whoever decides, sent together, so that the second is about what the first has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from msgspec.structs import replace

from limiter_node.core.explain import explain
from limiter_node.core.forward import Forward
from limiter_node.core.model import Explanation, Op, Outcome, Verdict
from limiter_node.edge.answers import Problem, explanation_json, problem_answer, verdict_answer
from limiter_node.edge.tally import FORWARDED, LOCAL

if TYPE_CHECKING:
    from limiter_node.core.model import Check
    from limiter_node.core.router import Router
    from limiter_node.edge.exchange import Slot
    from limiter_node.edge.http import HttpConnection


class Judge(Protocol):
    """The check API, as far as this needs it."""

    router: Router

    def ask(self, check: Check, now_ns: int) -> Outcome | Forward | Problem:
        """Pass a check to the router, unless it is known that it cannot be decided."""

    def judge(self, check: Check, outcome: Outcome | Problem, began_ns: int, path: str) -> Verdict | Problem:
        """What an outcome means to the caller; counts it."""


class ExplainedCheck:
    """One such check; `deny_status` is the status of a denial."""

    def __init__(self, api: Judge, check: Check, deny_status: int, request: HttpConnection, slot: Slot) -> None:
        self._api = api
        self._check = check
        self._deny_status = deny_status
        self._request = request
        self._connection_header = request.connection_header
        self._slot = slot
        self._began_ns = request.now_ns
        self._path = LOCAL
        self._outcomes: dict[Op, Outcome | Problem] = {}

    def ask(self) -> bytes | None:
        """Ask both questions; returns the answer when no other node is needed for it."""
        for op, check in ((Op.CHECK, self._check), (Op.EXPLAIN, replace(self._check, op=Op.EXPLAIN))):
            outcome = self._api.ask(check, self._began_ns)
            if isinstance(outcome, Forward):
                outcome.reply = lambda late, op=op: self._late(op, late)  # type: ignore[misc]
            else:
                self._outcomes[op] = outcome
        return self._answer() if len(self._outcomes) == 2 else None

    def _late(self, op: Op, outcome: Outcome) -> None:
        self._outcomes[op] = outcome
        self._path = FORWARDED
        if len(self._outcomes) == 2:
            self._slot.fill(self._answer())

    def _answer(self) -> bytes:
        check, date, connection = self._check, self._request.date, self._connection_header
        verdict = self._api.judge(check, self._outcomes[Op.CHECK], self._began_ns, self._path)
        if isinstance(verdict, Problem):
            return problem_answer(verdict, date, connection)
        return verdict_answer(check.rule, verdict, self._deny_status, date, connection, explanation=self._explanation())

    def _explanation(self) -> str:
        """As whoever decided tells it, or as this node sees it where nobody else could be asked."""
        router, check = self._api.router, self._check
        told: Outcome | Problem = self._outcomes[Op.EXPLAIN]
        if not isinstance(told, Explanation):
            told = explain(
                router.engine, router.node_id, check, self._began_ns, alone_of=max(1, len(router.ring.members))
            )
        if not isinstance(told, Explanation):
            return "null"  # a rule that nobody knows
        return explanation_json(told, check, router.ring.owner(check.key), router.ring.replica(check.key))
