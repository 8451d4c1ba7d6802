"""Explanations: which rule, segment, plan and multiplier decide a check, and what its bucket has left.

For people who wonder about a verdict. It looks, and changes nothing but where a key is kept that has moved to another
plan, as the next check would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.algorithms.token_bucket import PPM
from limiter_node.core.model import Explanation, LimitVerdict, UnknownRule
from limiter_node.core.plan import share_of
from limiter_node.core.reservations import UNKNOWN_RULE
from limiter_node.core.rules import DEFAULT_SEGMENT

if TYPE_CHECKING:
    from limiter_node.core.engine import Engine
    from limiter_node.core.model import Check
    from limiter_node.core.plan import Plan


def explain(
    engine: Engine, node: str, check: Check, now_ns: int, *, alone_of: int | None = None
) -> Explanation | UnknownRule:
    """Why this node decides a check as it does: as the owner, in its place, or as one of `alone_of` on its own."""
    rule = engine.rules.get(check.rule)
    if rule is None:
        return UNKNOWN_RULE
    plan = engine.plan_for(rule, check.key, check.segment, now_ns)
    entry = engine.entries.find(check.key)
    entry_name = f"keys/{(entry and entry.pattern) or check.key}"
    segment, segment_from = DEFAULT_SEGMENT, "default"
    if check.segment is not None:
        segment, segment_from = check.segment, "request"
    elif entry is not None and entry.segment is not None:
        segment, segment_from = entry.segment, entry_name
    limits_from = f"rules/{check.rule}"
    if entry is not None and check.rule in entry.limits:
        limits_from = entry_name
    elif plan.segment != DEFAULT_SEGMENT and plan.limits != rule.default.limits:
        limits_from += f" segments.{plan.segment}"
    if alone_of is not None and rule.rule.on_unreachable == "local":
        plan = share_of(plan, alone_of, now_ns)
    return Explanation(
        node=node,
        segment=segment,
        segment_from=segment_from,
        limits_from=limits_from,
        limits=_peek(plan, check.key, now_ns),
        used=plan.bucket(check.key, now_ns).used,
        multiplier=rule.multiplier_ppm / PPM,
        backend=rule.rule.backend,
        priority=engine.priority_of(rule, plan, check),
    )


def _peek(plan: Plan, key: str, now_ns: int) -> list[LimitVerdict]:
    """What cost 1 would get of each limit."""
    verdict = plan.spend(key, 0, now_ns)
    if verdict.limits is not None:
        return verdict.limits
    (limit,) = plan.limits
    algorithm = limit.algorithm or ""
    return [LimitVerdict(limit.rate, algorithm, verdict.limit, verdict.remaining, verdict.reset_ns, verdict.retry_ns)]
