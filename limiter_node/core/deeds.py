"""Deeds: what the owner of a key does when it is asked, one for each `Op`.

Whether this node may, and who else is to be told, is the keeper's business.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.explain import explain
from limiter_node.core.model import Check, Forgotten, Op, Outcome, Refunded, UnknownRule
from limiter_node.core.reservations import UNKNOWN_RULE

if TYPE_CHECKING:
    from limiter_node.core.engine import Engine

FORGOTTEN = Forgotten()


def do(engine: Engine, node_id: str, check: Check, now_ns: int) -> Outcome:
    """Do what a check asks of this node."""
    outcome: Outcome = FORGOTTEN
    match check.op:
        case Op.CHECK:
            outcome = engine.check(check, now_ns)
        case Op.INSPECT:
            outcome = engine.inspect(check.rule, check.key, now_ns)
        case Op.EXPLAIN:
            outcome = explain(engine, node_id, check, now_ns)
        case Op.FORGET:
            engine.forget(check.rule, check.key, now_ns)
        case Op.REFUND:
            outcome = _refund(engine, check, now_ns)
        case Op.RESERVE:
            outcome = engine.reservations.reserve(check, now_ns)
        case Op.CONFIRM | Op.CANCEL:
            outcome = engine.reservations.end(check, now_ns)
        case Op.COMMIT | Op.RESOLVE:
            outcome = engine.reservations.settle(check)
    return outcome


def _refund(engine: Engine, check: Check, now_ns: int) -> Refunded | UnknownRule:
    rule = engine.rules.get(check.rule)
    if rule is None:
        return UNKNOWN_RULE
    tokens, stands = engine.refund(check.rule, check.key, check.cost, now_ns), engine.peek(rule, check, now_ns)
    return Refunded(tokens, stands.limit, stands.remaining, stands.reset_ns)
