"""The law and the gate under whatever evidence there may be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.adaptive.evidence import PRIORITIES, Decision, Load, Policy
from limiter_node.core.adaptive.gate import Gate
from limiter_node.core.adaptive.law import Law
from limiter_node.core.adaptive.ration import BUCKET_MIN, BUCKET_S
from limiter_node.core.adaptive.sketch import Sketch

NS = 1_000_000_000


@st.composite
def loads(draw: st.DrawFn) -> Load:
    """A load that is consistent in itself, and otherwise anything."""
    wanted = draw(st.lists(st.integers(0, 1_000), min_size=PRIORITIES, max_size=PRIORITIES))
    admitted = [draw(st.integers(0, count)) for count in wanted]
    answers = draw(st.integers(0, 5_000))
    timeouts = draw(st.integers(0, 1_000))
    sketch = Sketch({}, 0.0)
    if answers:
        for latency_ms in draw(st.lists(st.floats(0, 1e5), min_size=1, max_size=5)):
            sketch.add(latency_ms, answers)
    return Load(
        span_ns=draw(st.integers(NS // 2, 3 * NS)),
        nodes=1,
        offered=wanted,
        wanted=wanted,
        admitted=admitted,
        completed=answers + timeouts,
        refused=draw(st.integers(0, answers)),
        failed=0,
        timeouts=timeouts,
        latency=sketch,
        in_flight=draw(st.floats(0, 1e5)),
    )


POLICIES = st.builds(
    Policy,
    mode=st.sampled_from(["on", "observe"]),
    slo_ms=st.none() | st.floats(1, 1e4),
    error_rate_max=st.floats(0, 1),
    min=st.floats(0.01, 1),
    fallback=st.none() | st.floats(0.01, 1),
)
TICKS = st.lists(st.none() | loads(), max_size=25)


@given(POLICIES, TICKS)
def test_a_decision_is_always_within_its_bounds(policy: Policy, ticks: list[Load | None]) -> None:
    law = Law(policy)
    for second, load in enumerate(ticks):
        decision = law.decide(load, None, second * NS)
        assert policy.min <= decision.multiplier <= 1
        assert decision.rate is None or decision.rate > 0
        assert all(0 < fraction <= 1 for fraction in decision.priorities.values())
        if decision.state == "normal":
            assert (decision.multiplier, decision.rate, decision.priorities) == (1.0, None, {})
        assert (decision.hold_rate is None) == (decision.expires_ms is None)


@given(POLICIES, TICKS, st.integers(1, 40))
def test_the_multiplier_never_rises_without_evidence(policy: Policy, ticks: list[Load | None], silent: int) -> None:
    law = Law(policy)
    second = 0
    decision = Decision(1.0, "normal", "")
    for load in ticks:
        decision = law.decide(load, None, second * NS)
        second += 1
    held = decision.multiplier
    for _ in range(silent):
        decision = law.decide(None, None, second * NS)
        second += 1
        assert decision.multiplier <= held + 0.1 / 60 + 1e-9
        held = max(decision.multiplier, held if decision.state != "fallback" else 0)


@given(POLICIES, TICKS)
def test_the_same_evidence_gives_the_same_decisions(policy: Policy, ticks: list[Load | None]) -> None:
    first, second = Law(policy), Law(policy)
    for number, load in enumerate(ticks):
        assert first.decide(load, None, number * NS) == second.decide(load, None, number * NS)


CHECKS = st.lists(st.tuples(st.integers(0, PRIORITIES - 1), st.integers(0, 50_000_000)), max_size=300)


@given(CHECKS, st.floats(0.1, 1_000), st.floats(0.01, 1))
def test_a_rate_never_admits_more_than_its_share_and_the_bucket(
    checks: list[tuple[int, int]], rate: float, share: float
) -> None:
    gate = Gate(Policy(), lambda: 0.5)
    gate.set_share(share, 0)
    gate.apply(Decision(0.5, "overload", "", rate=rate), 0)
    now_ns = 0
    for number, (priority, wait_ns) in enumerate(checks, 1):
        now_ns += wait_ns
        gate.offer(priority)
        denied = gate.admit(priority, now_ns)
        assert denied >= 0
        assert sum(gate.admitted) <= rate * share * now_ns / NS + max(BUCKET_S * rate * share, BUCKET_MIN) + 1e-6
        assert sum(gate.offered) >= sum(gate.wanted) >= sum(gate.admitted)
        causes = (gate.denied_by_rate, gate.denied_by_priority, gate.denied_by_guard)
        assert sum(gate.admitted) + sum(map(sum, causes)) == sum(gate.wanted) == number


@given(CHECKS, st.lists(st.tuples(st.floats(0, 1e4), st.sampled_from(["ok", "refused", "failed", "timeout"]))))
def test_whatever_is_reported_some_check_gets_through_in_time(
    checks: list[tuple[int, int]], outcomes: list[tuple[float, str]]
) -> None:
    gate = Gate(Policy(slo_ms=100.0), lambda: 0.99)
    now_ns = 0
    reports = iter(outcomes * 10)
    for priority, wait_ns in checks:
        now_ns += wait_ns
        gate.admit(priority, now_ns)
        latency_ms, kind = next(reports, (1.0, "ok"))
        gate.report(latency_ms, kind, 1, now_ns)  # type: ignore[arg-type]  # drawn from the four kinds
    found = [gate.admit(9, now_ns + second * NS) for second in range(1, 60)]
    assert 0 in found
