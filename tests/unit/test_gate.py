"""The gate: who is let through to a backend, and what is counted of it."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import pytest

from limiter_node.core.adaptive.evidence import PRIORITIES, Decision, Policy
from limiter_node.core.adaptive.gate import Gate

if TYPE_CHECKING:
    from limiter_node.core.adaptive.guard import Kind

NS = 1_000_000_000
MS = 1_000_000


def gate(mode: str = "on", **policy: float) -> Gate:
    return Gate(Policy(mode=mode, **policy), lambda: 0.5)


def served(gate: Gate, rate: float, seconds: float, *, latency_ms: float = 100, now_ns: int = 0) -> int:
    """Have checks come evenly and each be reported `latency_ms` after it was admitted; returns when it ended."""
    pending: list[int] = []
    end_ns = now_ns + round(seconds * NS)
    every_ns = round(NS / rate)
    while now_ns < end_ns:
        while pending and pending[0] + latency_ms * MS <= now_ns:
            gate.report(latency_ms, "ok", 1, int(pending.pop(0) + latency_ms * MS))
        if not gate.admit(5, now_ns):
            pending.append(now_ns)
        now_ns += every_ns
    for admitted_ns in pending:
        gate.report(latency_ms, "ok", 1, max(now_ns, int(admitted_ns + latency_ms * MS)))
    return now_ns


def admitted(gate: Gate, priority: int, times: int, now_ns: int = 0, every_ns: int = 0) -> int:
    return sum(not gate.admit(priority, now_ns + number * every_ns) for number in range(times))


# What is published.


def test_with_nothing_published_everything_is_admitted() -> None:
    assert admitted(gate(), 9, 1_000) == 1_000


def test_a_multiplier_alone_is_the_plans_business() -> None:
    one = gate()
    one.apply(Decision(0.1, "pinned", ""), 0)
    assert admitted(one, 5, 100) == 100


def test_a_fraction_is_admitted_evenly() -> None:
    one = gate()
    one.apply(Decision(0.5, "overload", "", priorities={"5": 0.25}), 0)
    answers = [not one.admit(5, 0) for _ in range(400)]
    assert sum(answers) == 100
    assert all(sum(answers[start : start + 4]) == 1 for start in range(0, 400, 4))


def test_a_priority_that_is_not_named_gets_no_more_than_any_above_it() -> None:
    one = gate()
    one.apply(Decision(0.5, "overload", "", priorities={"3": 0.5, "5": 0.8}), 0)
    assert [admitted(one, priority, 100) for priority in (0, 3, 4, 5, 9)] == [100, 50, 50, 80, 50]


def test_a_name_that_is_no_priority_changes_nothing() -> None:
    one = gate()
    one.apply(Decision(0.5, "overload", "", priorities={"premium": 0.1}), 0)
    assert admitted(one, 0, 100) == 100


def test_a_rate_bounds_this_nodes_share() -> None:
    one = gate()
    one.set_share(0.25, 0)
    one.apply(Decision(0.5, "overload", "", rate=400), 0)
    assert abs(admitted(one, 0, 10_000, 0, NS // 1_000) - 1_000) <= 30
    one.set_share(0.5, 10 * NS)
    assert abs(admitted(one, 0, 10_000, 10 * NS, NS // 1_000) - 2_000) <= 60


def test_a_share_of_nothing_ends() -> None:
    one = gate()
    one.apply(Decision(0.5, "overload", "", rate=400), 0)
    one.set_share(0, 0)
    admitted(one, 0, 1_000)
    assert admitted(one, 0, 100, NS) == 0
    one.set_share(1, NS)
    assert admitted(one, 0, 100, 2 * NS) > 50


def test_the_lowest_priority_is_shed_first_and_starves_at_none() -> None:
    one = gate()
    one.apply(Decision(0.5, "overload", "", rate=100), 0)
    got = dict.fromkeys((0, 5, 9), 0)
    for tick in range(10_000):
        for priority, every in ((0, 20), (5, 20), (9, 10)):  # 50, 50 and 100 a second
            if tick % every == priority:
                got[priority] += not one.admit(priority, tick * MS)
    assert got[0] > 485
    assert got[5] > 350
    assert 40 <= got[9] <= 110
    assert sum(got.values()) <= 1_000 + 30


def test_what_the_higher_ones_leave_the_lowest_gets() -> None:
    one = gate()
    one.apply(Decision(0.5, "overload", "", rate=100), 0)
    assert abs(admitted(one, 9, 10_000, 0, MS) - 1_000) <= 30


def test_a_pulse_ends_by_itself_and_is_not_prolonged_by_the_same_again() -> None:
    one = gate()
    pulse = Decision(0.1, "drain", "", rate=10, hold_rate=100, expires_ms=1_000)
    one.apply(pulse, 0)
    assert admitted(one, 0, 1_000, 0, MS) <= 14
    one.apply(pulse, NS)
    assert 95 <= admitted(one, 0, 1_000, NS, MS) <= 105
    one.apply(None, 2 * NS)
    assert admitted(one, 0, 100, 2 * NS) == 100


def test_those_turned_away_are_told_to_come_back_later_the_more_of_them_there_are() -> None:
    chances = iter([0.0, 0.999, 0.5, 0.5])
    one = Gate(Policy(), lambda: next(chances, 0.5))
    one.apply(Decision(0.5, "overload", "", priorities={"5": 0.0}), 0)
    assert 0.5 * NS <= one.admit(5, 0) <= 1.5 * NS
    one.take_load(NS)
    for _ in range(100):
        one.admit(5, NS)
    one.take_load(2 * NS)
    assert one.admit(5, 2 * NS) >= 4 * NS


def test_in_observe_mode_nobody_is_turned_away_and_it_is_counted_who_would_be() -> None:
    one = gate("observe")
    one.apply(Decision(0.5, "overload", "", priorities={"5": 0.25}), 0)
    assert admitted(one, 5, 100) == 100
    assert one.would_deny == sum(one.denied_by_priority) == 75
    assert sum(one.take_load(NS).admitted) == 25


def test_in_off_mode_it_only_counts() -> None:
    one = gate("off")
    one.apply(Decision(0.05, "overload", "", rate=1, priorities={"5": 0.25}), 0)
    assert admitted(one, 5, 100) == 100
    assert (one.would_deny, one.state) == (0, "off")
    one.set_policy(Policy())
    assert admitted(one, 5, 100) < 25
    assert one.state == "rationed"


# What is counted.


def test_a_load_is_what_was_counted_since_the_last_one() -> None:
    one = gate()
    one.apply(Decision(0.5, "overload", "", priorities={"9": 0.5}), 0)
    for priority in (0, 9, 9):
        one.offer(priority)
    for priority in (0, 9):
        one.admit(priority, 0)
        one.admit(priority, 0)
    one.report(20, "ok", 3, NS)
    one.report(None, "refused", 2, NS)
    one.report(5, "failed", 1, NS)
    one.report(1_000, "timeout", 1, NS)
    one.take_load(NS)
    one.offer(3)
    one.admit(3, NS)
    one.report(20, "ok", 3, 2 * NS)
    one.report(None, "refused", 2, 2 * NS)
    load = one.take_load(3 * NS)
    assert (load.span_ns, load.nodes) == (2 * NS, 1)
    assert load.offered == load.wanted == load.admitted == [0, 0, 0, 1] + [0] * 6
    assert (load.completed, load.refused, load.failed, load.timeouts) == (5, 2, 0, 0)
    assert load.latency.count == 3


# The guard.


def test_the_guard_is_quiet_while_all_is_well() -> None:
    one = gate(slo_ms=500)
    now_ns = served(one, 400, 60)
    now_ns = served(one, 40, 30, now_ns=now_ns)
    now_ns = served(one, 4, 60, now_ns=now_ns)
    assert sum(one.denied_by_guard) == 0
    assert one.guard.is_on
    assert one.state == "open"


def dying(gate: Gate, rate: float, seconds: float, now_ns: int, timeout_ms: int = 1_000) -> int:
    """Have checks come evenly to a backend that is dead, and their callers give up; returns how many were admitted."""
    pending: list[int] = []
    count = 0
    for _ in range(round(rate * seconds)):
        while pending and pending[0] + timeout_ms * MS <= now_ns:
            gate.report(None, "timeout", 1, pending.pop(0) + timeout_ms * MS)
        if not gate.admit(5, now_ns):
            pending.append(now_ns)
            count += 1
        now_ns += round(NS / rate)
    return count


def test_a_backend_that_is_dead_is_cut_within_a_round_trip_and_tried_again() -> None:
    one = gate(slo_ms=500)
    now_ns = served(one, 400, 20)
    assert dying(one, 400, 1, now_ns) < 300
    assert dying(one, 400, 20, now_ns + 2 * NS) < 800  # of 8,000
    assert one.state == "guarded"
    assert dying(one, 400, 10, now_ns + 23 * NS) > 0


def test_the_guard_lets_go_within_seconds_when_the_backend_is_back() -> None:
    one = gate(slo_ms=500)
    now_ns = served(one, 200, 20)
    dying(one, 200, 20, now_ns)
    now_ns = served(one, 200, 10, now_ns=now_ns + 20 * NS)
    before = sum(one.denied_by_guard)
    served(one, 200, 10, now_ns=now_ns + 100 * MS)  # the last report came so much later
    assert sum(one.denied_by_guard) == before
    assert one.state == "open"


def test_when_all_reports_are_lost_traffic_goes_on_as_before_and_less_and_less() -> None:
    one = gate(slo_ms=500)
    now_ns = served(one, 400, 20)
    lost = [admitted(one, 5, 4_000, now_ns + part * 10 * NS, NS // 400) for part in range(12)]
    assert lost[0] > 3_500
    assert lost[1:] == sorted(lost[1:], reverse=True)
    assert 0 < lost[-1] < 400


def test_high_priorities_may_fill_more_of_the_guards_limit() -> None:
    one = gate(slo_ms=500)
    now_ns = served(one, 400, 20)
    lowest = admitted(one, 9, 1_000, now_ns)
    middle = admitted(one, 5, 1_000, now_ns)
    highest = admitted(one, 0, 1_000, now_ns)
    assert lowest > 0
    assert middle > 0
    assert highest > 0
    assert admitted(one, 0, 100, now_ns) == 0


def test_callers_that_report_half_are_not_throttled_and_those_that_report_little_have_no_guard() -> None:
    half, little = gate(slo_ms=500), gate(slo_ms=500)
    now_ns = 0
    for number in range(20_000):
        now_ns = number * 10 * MS
        half.admit(5, now_ns)
        little.admit(5, now_ns)
        if number % 2 == 0:
            half.report(50, "ok", 1, now_ns)
        if number % 10 == 0:
            little.report(50, "ok", 1, now_ns)
    assert abs(half.guard.normal.ratio - 0.5) < 0.02
    assert sum(half.denied_by_guard) == sum(little.denied_by_guard) == 0
    assert half.in_flight < 20
    assert admitted(little, 5, 10_000, now_ns) == 10_000
    assert little.in_flight == 0


def test_checks_from_before_the_first_report_are_not_held_against_the_reports() -> None:
    one = gate(slo_ms=500)
    assert admitted(one, 5, 5_000) == 5_000
    one.take_load(NS)
    now_ns = served(one, 50, 15, now_ns=2 * NS)
    assert one.guard.normal.ratio == pytest.approx(1, abs=0.1)
    assert dying(one, 50, 3, now_ns) < 100


def test_callers_that_never_report_have_no_guard() -> None:
    assert admitted(gate(slo_ms=500), 5, 10_000, 0, MS) == 10_000


def test_in_observe_mode_the_guard_goes_by_what_the_backend_really_gets() -> None:
    one = gate("observe", slo_ms=500)
    now_ns = served(one, 400, 20)
    assert admitted(one, 5, 1_000, now_ns) == 1_000
    assert one.would_deny > 0
    assert one.in_flight > 900


def test_an_objective_that_nobody_gave_is_learned() -> None:
    one = gate()
    served(one, 100, 20, latency_ms=40)
    assert abs(one.guard.target_ms - 1.1 * 2 * 40) < 2  # its 90th percentile is 40 ms as well


def test_a_healthy_check_counts_itself() -> None:
    one = gate()
    for priority in range(PRIORITIES):
        one.offer(priority)
        one.admit(priority, 0)
    assert one.offered == one.wanted == one.admitted == [1] * PRIORITIES


def answered(one: Gate, seconds: int, kind: Kind, latency_ms: float | None, now_ns: int) -> tuple[int, int]:
    """Have 50 checks a second come, those admitted reported after their latency; how many were, and when it ended."""
    pending: deque[int] = deque()
    let_in, end_ns, delay_ns = 0, now_ns + seconds * NS, round((latency_ms or 1) * MS)
    while now_ns < end_ns:
        while pending and pending[0] + delay_ns <= now_ns:
            one.report(latency_ms, kind, 1, pending.popleft() + delay_ns)
        if not one.admit(5, now_ns):
            let_in += 1
            pending.append(now_ns)
        now_ns += NS // 50
    return let_in, now_ns


@pytest.mark.parametrize("slo_ms", [None, 250])
@pytest.mark.parametrize("failure", [("refused", None), ("timeout", 1_000)])
def test_a_backend_that_was_down_from_the_first_report_on_is_served_once_it_is_up(
    slo_ms: float | None, failure: tuple[Kind, float | None]
) -> None:
    one = Gate(Policy(slo_ms=slo_ms), lambda: 0.5)
    _, now_ns = answered(one, 30, *failure, 0)
    _, now_ns = answered(one, 30, "ok", 20, now_ns)
    assert answered(one, 10, "ok", 20, now_ns)[0] == 500


@pytest.mark.parametrize("slo_ms", [None, 250])
def test_a_backend_that_was_hung_for_long_is_tried_every_ten_seconds_and_found_to_be_back(
    slo_ms: float | None,
) -> None:
    one = Gate(Policy(slo_ms=slo_ms), lambda: 0.5)
    _, now_ns = answered(one, 60, "ok", 20, 0)
    _, now_ns = answered(one, 60, "timeout", 1_000, now_ns)
    tried, now_ns = answered(one, 120, "timeout", 1_000, now_ns)
    assert 10 <= tried <= 40
    _, now_ns = answered(one, 60, "ok", 20, now_ns)
    assert answered(one, 10, "ok", 20, now_ns)[0] == 500


def test_what_was_hung_for_minutes_and_answered_at_last_keeps_nobody_out_for_long() -> None:
    one = gate(slo_ms=250)
    now_ns = served(one, 50, 60, latency_ms=20)
    hung = [now_ns + number * 20 * MS for number in range(180 * 50)]
    waiting = [at_ns for at_ns in hung if not one.admit(5, at_ns)]
    now_ns = hung[-1]
    for at_ns in waiting:
        one.report((now_ns - at_ns) / MS, "ok", 1, now_ns)
    now_ns = served(one, 50, 15, latency_ms=20, now_ns=now_ns)
    before = sum(one.admitted)
    served(one, 50, 10, latency_ms=20, now_ns=now_ns)
    assert sum(one.admitted) == before + 500


@pytest.mark.parametrize("slo_ms", [None, 600])
def test_a_backend_that_becomes_ten_times_slower_for_good_is_not_starved(slo_ms: float | None) -> None:
    one = Gate(Policy(slo_ms=slo_ms), lambda: 0.5)
    _, now_ns = answered(one, 60, "ok", 20, 0)
    _, now_ns = answered(one, 30, "ok", 200 if slo_ms is None else 400, now_ns)
    assert answered(one, 10, "ok", 200 if slo_ms is None else 400, now_ns)[0] > 490


def test_a_queue_is_not_taken_for_a_new_normal() -> None:
    """Of 50 checks a second it does 20 now, one after the other, each in the 50 ms that it has always taken."""
    one = gate()
    _, now_ns = answered(one, 60, "ok", 50, 0)
    normal_ms, free_ns, let_in = one.guard.normal.mean_ms, now_ns, 0
    pending: deque[tuple[int, int]] = deque()
    for number in range(60 * 50):
        while pending and pending[0][1] <= now_ns:
            came_ns, done_ns = pending.popleft()
            one.report((done_ns - came_ns) / MS, "ok", 1, done_ns)
        if not one.admit(5, now_ns):
            free_ns = max(free_ns, now_ns) + NS // 20
            pending.append((now_ns, free_ns))
            let_in += number >= 30 * 50
        now_ns += NS // 50
    assert one.guard.normal.mean_ms == pytest.approx(normal_ms, rel=0.05)
    assert 0.7 * 20 * 30 <= let_in <= 1.05 * 20 * 30
