"""The check API (contract, section 2): requests to checks, outcomes to answers.

It knows HTTP's meaning of a check and nothing of buckets: every decision is the router's, made at once for a key of
this node, later for another's. Nothing is spent before the whole request has been found good.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import msgspec

from limiter_node.core.engine import UNKNOWN_RULE
from limiter_node.core.links import Forward
from limiter_node.core.model import NEVER, Check, Outcome, Verdict
from limiter_node.core.rules import is_name
from limiter_node.edge.answers import Problem, json_answer, problem_answer, verdict_answer, verdict_json
from limiter_node.edge.requests import (
    bad_field,
    decode_batch,
    decode_check,
    decoded,
    match_plain_get,
    parse_query,
    require_json,
    to_check,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.router import Router
    from limiter_node.edge.exchange import Slot
    from limiter_node.edge.http import HttpConnection
    from limiter_node.edge.metrics import Counters


class CheckApi:
    """An `http.Application` over a router. `on_unknown_rule` is error, allow or deny.

    `is_answering` is set once rules and ring are known: a node that still takes over its keys finds out what it must.
    """

    def __init__(self, router: Router, counters: Counters, *, on_unknown_rule: str) -> None:
        self.is_answering = False
        self._router = router
        self._engine = router.engine
        self._counters = counters
        self._on_unknown_rule = on_unknown_rule
        self._routes: dict[bytes, dict[bytes, Callable[[HttpConnection, bytes, Slot], bytes | None]]] = {
            b"/v1/check": {b"GET": self._get_check, b"POST": self._post_check},
            b"/v1/check/batch": {b"POST": self._post_batch},
        }

    def handle(self, request: HttpConnection, slot: Slot) -> bytes | None:
        """Answer a request, or promise to."""
        path, _, query = request.target.partition(b"?")
        methods = self._routes.get(path)
        if methods is None:
            known = ", ".join(path.decode() for path in self._routes)
            raise Problem(404, f"nothing here; the check API has {known}", title="unknown path")
        method = methods.get(request.method)
        if method is None:
            allowed = b", ".join(methods).decode()
            raise Problem(405, f"allowed: {allowed}", headers=f"Allow: {allowed}\r\n")
        if not self.is_answering:
            raise Problem(503, "the node is starting", headers="Retry-After: 1\r\n")
        return method(request, query, slot)

    def handle_plain_get(self, line: bytes, request: HttpConnection, slot: Slot) -> bytes | bool | None:
        """Answer the usual GET without looking at anything twice; False for any other."""
        match = match_plain_get(line)
        if match is None or not self.is_answering:
            return False
        rule, key, cost, segment = match.groups()
        check = Check(
            rule.decode(),
            key.decode(),
            1 if cost is None else int(cost),
            None if segment is None else segment.decode(),
        )
        return self._check(check, 429, request, slot)

    def ask(self, check: Check, now_ns: int) -> Outcome | Forward | Problem:
        """Pass a check to the router, unless it is known that it cannot be decided."""
        rule = self._engine.rules.get(check.rule)
        if rule is None:
            return UNKNOWN_RULE if is_name(check.rule) else bad_field("rule", f"{check.rule!r} is not allowed")
        segment = check.segment
        if segment is not None and segment not in rule.plans and not is_name(segment):
            return bad_field("segment", f"{segment!r} is not allowed")
        return self._router.check(check, now_ns)

    def judge(self, rule: str, outcome: Outcome | Problem) -> Verdict | Problem:
        """What an outcome means to the caller; counts it."""
        if not isinstance(outcome, Verdict):
            if isinstance(outcome, Problem):
                return outcome
            self._counters.unknown_rule += 1
            if self._on_unknown_rule == "error":
                return Problem(404, f"rule: {rule!r} does not exist", title="unknown rule")
            allowed = self._on_unknown_rule == "allow"
            return Verdict(allowed, 0, 0, 0, 0 if allowed else NEVER, 0)
        self._counters.count(rule, outcome)
        return outcome

    def _get_check(self, request: HttpConnection, query: bytes, slot: Slot) -> bytes | None:
        check, deny_status = parse_query(query)
        return self._check(check, deny_status, request, slot)

    def _post_check(self, request: HttpConnection, query: bytes, slot: Slot) -> bytes | None:
        require_json(request.content_type, query)
        return self._check(to_check(decoded(request.body, decode_check)), 429, request, slot)

    def _check(self, check: Check, deny_status: int, request: HttpConnection, slot: Slot) -> bytes | None:
        outcome = self.ask(check, request.now_ns)
        if type(outcome) is Verdict:  # as nearly always
            self._counters.count(check.rule, outcome)
            return verdict_answer(check.rule, outcome, deny_status, request.date, request.connection_header)
        if isinstance(outcome, Forward):
            answer = partial(self._answer, check.rule, deny_status, request, request.connection_header)
            outcome.reply = lambda late: slot.fill(answer(late))
            return None
        return self._answer(check.rule, deny_status, request, request.connection_header, outcome)

    def _answer(
        self,
        rule: str,
        deny_status: int,
        request: HttpConnection,
        connection: str,
        outcome: Outcome | Problem,
    ) -> bytes:
        verdict = self.judge(rule, outcome)
        if isinstance(verdict, Problem):
            return problem_answer(verdict, request.date, connection)
        return verdict_answer(rule, verdict, deny_status, request.date, connection)

    def _post_batch(self, request: HttpConnection, query: bytes, slot: Slot) -> bytes | None:
        require_json(request.content_type, query)
        return _Batch(self, decode_batch(request.body), request, slot).ask()


class _Batch:
    """Checks of one request: each decided where its key lives, answered together once all are.

    All checks for one node leave in one frame, so a batch costs one round trip however many owners it has.
    """

    def __init__(self, api: CheckApi, checks: list[Check | Problem], request: HttpConnection, slot: Slot) -> None:
        self._api = api
        self._checks = checks
        self._request = request
        self._connection_header = request.connection_header
        self._slot = slot
        self._results = [""] * len(checks)
        self._missing = 0

    def ask(self) -> bytes | None:
        """Ask for all; returns the answer when no other node is needed for it."""
        ask, now_ns = self._api.ask, self._request.now_ns
        for index, check in enumerate(self._checks):
            outcome = check if isinstance(check, Problem) else ask(check, now_ns)
            if isinstance(outcome, Forward):
                self._missing += 1
                outcome.reply = partial(self._late, index)
            else:
                self._put(index, outcome)
        return None if self._missing else self._answer()

    def _late(self, index: int, outcome: Outcome) -> None:
        self._put(index, outcome)
        self._missing -= 1
        if not self._missing:
            self._slot.fill(self._answer())

    def _put(self, index: int, outcome: Outcome | Problem) -> None:
        check = self._checks[index]
        rule = "" if isinstance(check, Problem) else check.rule
        verdict = self._api.judge(rule, outcome)
        if isinstance(verdict, Problem):
            self._results[index] = msgspec.json.encode({"error": verdict.document()}).decode()
        else:
            self._results[index] = verdict_json(rule, verdict)

    def _answer(self) -> bytes:
        body = f'{{"results":[{",".join(self._results)}]}}'.encode()
        return json_answer(body, self._request.date, self._connection_header)
