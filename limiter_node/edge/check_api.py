"""The check API (contract, section 2): requests to checks, outcomes to answers.

It knows HTTP's meaning of a check and nothing of buckets: every decision is the router's, made at once for a key of
this node, later for another's. Nothing is spent before the whole request has been found good.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from msgspec.structs import replace

from limiter_node.core.forward import Forward
from limiter_node.core.model import NEVER, Check, Outcome, UnknownRule, Verdict
from limiter_node.core.reservations import UNKNOWN_RULE
from limiter_node.core.rules import is_name
from limiter_node.edge.answers import (
    Problem,
    UsualAnswers,
    json_answer,
    problem_answer,
    unknown_rule,
    usual_grant,
    verdict_answer,
)
from limiter_node.edge.atomic_batch import AtomicBatch, RefundRequest
from limiter_node.edge.batch import Batch
from limiter_node.edge.explaining import ExplainedCheck
from limiter_node.edge.requests import (
    ASKED_FIELDS,
    PLAIN_GET,
    bad_field,
    decode_batch,
    decode_check,
    decode_plain_batch,
    decode_refund,
    decode_report,
    decoded,
    find_unplain,
    match_plain_get,
    named_in_report,
    parse_query,
    require_json,
    to_check,
)
from limiter_node.edge.tally import FORWARDED, LOCAL

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.router import Router
    from limiter_node.edge.exchange import Slot
    from limiter_node.edge.http import HttpConnection
    from limiter_node.edge.tally import Tally

    About = tuple[Check, int, HttpConnection, str, int]
    """A request that waits: check, status of a denial, connection, header line of the answer, when it was read (ns)."""


class CheckApi:
    """An `http.Application` over a router. `on_unknown_rule` is error, allow or deny.

    `is_answering` is set once rules and ring are known: a node that still takes over its keys finds out what it must.
    """

    def __init__(self, router: Router, tally: Tally, *, on_unknown_rule: str) -> None:
        self.is_answering = False
        self.router = router
        self._engine = router.engine
        self.tally = tally
        self._on_unknown_rule = on_unknown_rule
        self.allows_unknown = on_unknown_rule == "allow"
        self._shortcut = router.shortcut
        self.usual: dict[str, UsualAnswers] = {}  # by rule; filled by `_learn`
        self._by_start: dict[str, UsualAnswers] = {}  # the same, by how the request line of a plain GET begins
        self._routes: dict[bytes, dict[bytes, Callable[[HttpConnection, bytes, Slot], bytes | None]]] = {
            b"/v1/check": {b"GET": self._get_check, b"POST": self._post_check},
            b"/v1/check/batch": {b"POST": self._post_batch},
            b"/v1/refund": {b"POST": self._post_refund},
            b"/v1/explain": {b"GET": self._get_explain},
            b"/v1/report": {b"POST": self._post_report},
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
        if not self.is_answering:
            return False
        try:
            text = line.decode()
        except UnicodeDecodeError:
            return False
        start, _, key = text.rpartition("&key=")
        usual = self._by_start.get(start)
        if usual is None or find_unplain(key) or not 0 < len(key) <= 512:
            return self._other_plain_get(text, request, slot)
        outcome = self._shortcut.check(usual.rule, key, request.now_ns)
        if isinstance(outcome, tuple):
            usual.series.allowed += 1
            picks = self.tally.allowed_picks
            picks.left -= 1
            if not picks.left:
                self.tally.look(picks, usual.rule, key, request.now_ns)
            return usual.answer(outcome, request.date)
        if type(outcome) is Forward:
            about = outcome.check, 429, request, "", request.now_ns
            outcome.reply = partial(self._tell_plain_late, slot, usual, about)
            return None
        check = Check(usual.rule, key)
        return self._tell(check, 429, request, slot, outcome or self.ask(check, request.now_ns))

    def _other_plain_get(self, text: str, request: HttpConnection, slot: Slot) -> bytes | bool | None:
        match = match_plain_get(text)
        if match is None:
            return False
        rule, key, cost, segment = match.groups()
        return self._check(Check(rule, key, 1 if cost is None else int(cost), segment), 429, request, slot)

    def _learn(self, rule: str) -> None:
        """From now on the usual checks of this rule, which exists, are answered the short way."""
        if len(self.usual) >= len(self._engine.rules):
            self.usual.clear()  # some rules are gone
            self._by_start.clear()
        self.usual[rule] = self._by_start[PLAIN_GET + rule] = UsualAnswers(rule, self.tally.of(rule))

    def ask(self, check: Check, now_ns: int) -> Outcome | Forward | Problem:
        """Pass a check to the router, unless it is known that it cannot be decided."""
        return self.find_obstacle(check) or self.router.check(check, now_ns)

    def find_obstacle(self, check: Check) -> UnknownRule | Problem | None:
        """Why a check cannot be decided, if that is known."""
        rule = self._engine.rules.get(check.rule)
        if rule is None:
            return UNKNOWN_RULE if is_name(check.rule) else bad_field("rule", f"{check.rule!r} is not allowed")
        if check.rule not in self.usual:
            self._learn(check.rule)
        segment = check.segment
        if segment is not None and segment not in rule.plans and not is_name(segment):
            return bad_field("segment", f"{segment!r} is not allowed")
        return None

    def judge(self, check: Check, outcome: Outcome | Problem, began_ns: int, path: str) -> Verdict | Problem:
        """What an outcome means to the caller; counts it."""
        if not isinstance(outcome, Verdict):
            if isinstance(outcome, Problem):
                return outcome
            self.tally.unknown_rule += 1
            if self._on_unknown_rule == "error":
                return unknown_rule(check.rule)
            allowed = self._on_unknown_rule == "allow"
            return Verdict(allowed, 0, 0, 0, 0 if allowed else NEVER, 0)
        self.tally.count(check, outcome, began_ns, path)
        return outcome

    def _get_check(self, request: HttpConnection, query: bytes, slot: Slot) -> bytes | None:
        check, deny_status, explains = parse_query(query)
        if explains:
            return ExplainedCheck(self, check, deny_status, request, slot).ask()
        return self._check(check, deny_status, request, slot)

    def _get_explain(self, request: HttpConnection, query: bytes, slot: Slot) -> bytes | None:
        check, _, _ = parse_query(query)
        return ExplainedCheck(self, replace(check, cost=0), 200, request, slot).ask()

    def _post_check(self, request: HttpConnection, query: bytes, slot: Slot) -> bytes | None:
        require_json(request.content_type, query)
        body = decoded(request.body, decode_check, ASKED_FIELDS)
        if body.explain:
            return ExplainedCheck(self, to_check(body), 429, request, slot).ask()
        usual = self.usual.get(body.rule)
        if usual is not None and not request.connection_header and body.is_usual():
            outcome = self._shortcut.check(body.rule, body.key, request.now_ns)
            if isinstance(outcome, tuple):
                usual.series.allowed += 1
                picks = self.tally.allowed_picks
                picks.left -= 1
                if not picks.left:
                    self.tally.look(picks, body.rule, body.key, request.now_ns)
                return usual.answer(outcome, request.date)
            if outcome is not None:
                return self._tell(to_check(body), 429, request, slot, outcome)
        return self._check(to_check(body), 429, request, slot)

    def _check(self, check: Check, deny_status: int, request: HttpConnection, slot: Slot) -> bytes | None:
        return self._tell(check, deny_status, request, slot, self.ask(check, request.now_ns))

    def _tell(
        self, check: Check, deny_status: int, request: HttpConnection, slot: Slot, outcome: Outcome | Forward | Problem
    ) -> bytes | None:
        """Answer with the outcome, now or when it comes."""
        about = check, deny_status, request, request.connection_header, request.now_ns
        if isinstance(outcome, Forward):
            outcome.reply = partial(self._tell_late, slot, about)
            return None
        return self._answer(about, LOCAL, outcome)

    def _tell_plain_late(self, slot: Slot, usual: UsualAnswers, about: About, outcome: Outcome) -> None:
        """As `_tell_late`, of a plain GET; a grant, which most get, is counted and told the short way: 0.3 us less."""
        grant = usual_grant(outcome) if type(outcome) is Verdict and not self._engine.entries.named else None
        if grant is None:
            self._tell_late(slot, about, outcome)
            return
        usual.series.allowed += 1
        picks = self.tally.allowed_picks
        picks.left -= 1
        if not picks.left:
            self.tally.look(picks, usual.rule, about[0].key, about[4], FORWARDED)
        slot.fill(usual.answer(grant, about[2].date))

    def _tell_late(self, slot: Slot, about: About, outcome: Outcome) -> None:
        slot.fill(self._answer(about, FORWARDED, outcome))

    def _answer(self, about: About, path: str, outcome: Outcome | Problem) -> bytes:
        check, deny_status, request, connection, began_ns = about
        verdict = self.judge(check, outcome, began_ns, path)
        if isinstance(verdict, Problem):
            self.tally.count_problem(verdict.status)
            return problem_answer(verdict, request.date, connection)
        if not connection:
            grant = usual_grant(verdict)
            usual = self.usual.get(check.rule)
            if grant is not None and usual is not None:
                return usual.answer(grant, request.date)
        return verdict_answer(check.rule, verdict, deny_status, request.date, connection)

    def _post_batch(self, request: HttpConnection, query: bytes, slot: Slot) -> bytes | None:
        require_json(request.content_type, query)
        plain = decode_plain_batch(request.body)
        if plain is not None:
            return Batch(self, len(plain), request, slot).ask_plain(plain)
        bodies, is_atomic = decode_batch(request.body)
        if is_atomic:
            return AtomicBatch(self, bodies, request, slot).ask()
        return Batch(self, len(bodies), request, slot).ask(bodies)

    def _post_refund(self, request: HttpConnection, query: bytes, slot: Slot) -> bytes | None:
        require_json(request.content_type, query)
        return RefundRequest(self, decode_refund(request.body), request, slot).ask()

    def _post_report(self, request: HttpConnection, query: bytes, slot: Slot) -> bytes | None:
        require_json(request.content_type, query)
        backends = self._engine.backends
        try:
            name, outcomes = decode_report(request.body)
        except Problem as problem:
            backends.reject(named_in_report(request.body), "report", problem.detail)
            raise
        if not backends.is_known(name):
            unknown = Problem(404, f"backend: {name!r} does not exist", title="unknown backend")
            backends.reject(name, "report", unknown.detail)
            raise unknown
        gate = backends.gate(name)
        for latency_ms, kind, count in outcomes:
            gate.report(latency_ms, kind, count, request.now_ns)
        return json_answer(b'{"accepted":%d}' % len(outcomes), request.date, request.connection_header, 202)
