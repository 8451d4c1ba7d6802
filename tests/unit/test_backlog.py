"""What waits: the oldest first and none refused, until the queue stands; then the newest first, the late refused."""

from __future__ import annotations

import random

import pytest

from limiter_node.edge.backlog import CALM_NS, CROWD_MIN, DELAY_MAX_NS, STANDING_NS, Backlog

MS = 1_000_000


def standing() -> tuple[Backlog[int], int]:
    """A backlog that has begun to shed, and a crowd that has just come; and the time."""
    backlog: Backlog[int] = Backlog()
    for item in range(CROWD_MIN + 1):
        backlog.put(item, 0)
    for now_ns in (DELAY_MAX_NS + 1, DELAY_MAX_NS + 1 + STANDING_NS):
        backlog.take(now_ns)
    assert backlog.is_shedding
    while len(backlog):
        backlog.take(now_ns)
    for item in range(CROWD_MIN):
        backlog.put(item, now_ns)
    return backlog, now_ns


def test_what_waits_goes_in_the_order_in_which_it_came() -> None:
    backlog: Backlog[str] = Backlog()
    for item in "abc":
        backlog.put(item, 5)
    assert [backlog.take(6) for _ in "abc"] == [("a", False), ("b", False), ("c", False)]
    assert not backlog.is_uneasy


def test_a_burst_is_answered_however_long_it_takes() -> None:
    """All that came at once wait long at the end, but the queue has not stood: no refusal within STANDING_NS."""
    backlog: Backlog[int] = Backlog()
    count = 2_000
    for item in range(count):
        backlog.put(item, 0)
    span_ns = DELAY_MAX_NS + STANDING_NS - MS
    taken = [backlog.take(span_ns * item // count) for item in range(count)]
    assert taken == [(item, False) for item in range(count)]


def test_a_queue_that_stands_is_shed_after_the_interval_and_not_before() -> None:
    backlog: Backlog[int] = Backlog()
    late_ns = DELAY_MAX_NS + 1
    for item in range(CROWD_MIN + 3):
        backlog.put(item, 0)
    assert backlog.take(late_ns) == (0, False)
    assert backlog.take(late_ns + STANDING_NS - 1) == (1, False)
    assert not backlog.is_shedding
    assert backlog.take(late_ns + STANDING_NS) == (2, True)
    assert backlog.is_shedding


def test_one_that_is_taken_in_time_shows_that_the_queue_does_not_stand() -> None:
    backlog: Backlog[int] = Backlog()
    late_ns = DELAY_MAX_NS + 1
    for item in range(CROWD_MIN + 3):
        backlog.put(item, 0 if item != 1 else late_ns)
    backlog.take(late_ns)
    backlog.take(late_ns + 1)
    backlog.take(late_ns + STANDING_NS)
    assert not backlog.is_shedding


def test_few_who_wait_for_each_other_are_no_overload() -> None:
    backlog: Backlog[int] = Backlog()
    for second in range(100):
        for item in range(CROWD_MIN - 1):
            backlog.put(item, second * 1000 * MS)
        for item in range(CROWD_MIN - 1):
            assert backlog.take(second * 1000 * MS + 900 * MS) == (item, False)


def test_a_shedding_node_answers_the_newest_and_refuses_the_late_oldest_first() -> None:
    backlog, now_ns = standing()
    assert backlog.take(now_ns) == (CROWD_MIN - 1, False)
    assert backlog.take_late(now_ns + DELAY_MAX_NS) is None
    assert backlog.take_late(now_ns + DELAY_MAX_NS + 1) == 0
    assert backlog.take(now_ns + DELAY_MAX_NS + 1) == (CROWD_MIN - 2, True)
    backlog.put(777, now_ns + DELAY_MAX_NS)
    assert backlog.take(now_ns + DELAY_MAX_NS + 1) == (777, False)


def test_nothing_is_refused_while_the_queue_does_not_stand() -> None:
    backlog: Backlog[int] = Backlog()
    assert backlog.take_late(0) is None
    backlog.put(1, 0)
    assert backlog.take_late(CALM_NS) is None


def test_shedding_ends_when_nothing_had_to_be_refused_for_a_while() -> None:
    backlog, now_ns = standing()
    assert backlog.take_late(now_ns + DELAY_MAX_NS + 1) == 0
    now_ns += DELAY_MAX_NS + 1
    while len(backlog):
        backlog.take(now_ns)
    backlog.settle(now_ns + CALM_NS)
    assert backlog.is_shedding
    backlog.settle(now_ns + CALM_NS + 1)
    assert not backlog.is_shedding
    assert not backlog.is_uneasy
    for item in (1, 2):
        backlog.put(item, now_ns + CALM_NS)
    assert backlog.take(now_ns + CALM_NS) == (1, False)


@pytest.mark.parametrize("load", [0.5, 1.5, 3.0])
def test_under_any_load_all_come_out_once_and_what_is_decided_was_not_late(load: float) -> None:
    """A server in virtual time: a decision takes 10 us, arrivals are random. Past its power it decides the young."""
    rng = random.Random(7)
    backlog: Backlog[int] = Backlog()
    now_ns, next_ns, put = 0, 0.0, 0
    out: set[int] = set()
    ages: list[tuple[int, int, bool]] = []
    came: dict[int, int] = {}
    while now_ns < 1_000 * MS:
        while next_ns <= now_ns:
            came[put] = round(next_ns)
            backlog.put(put, came[put])
            put += 1
            next_ns += rng.expovariate(load / 10_000)
        if not len(backlog):
            now_ns = int(next_ns) + 1
            continue
        item, is_late = backlog.take(now_ns)
        ages.append((now_ns, now_ns - came[item], is_late))
        out.add(item)
        now_ns += 1_000 if is_late else 10_000
        late = backlog.take_late(now_ns)
        if late is not None:
            out.add(late)
            now_ns += 1_000
    assert len(out) + len(backlog) == put
    steady = [(age_ns, is_late) for at_ns, age_ns, is_late in ages if at_ns > 500 * MS]
    decided = [age_ns for age_ns, is_late in steady if not is_late]
    assert max(decided) <= DELAY_MAX_NS
    assert len(decided) > 0.6 * min(1.0, load) * 50_000, "most of what it can do is done"
    assert backlog.is_shedding is (load > 1)
