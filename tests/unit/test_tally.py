"""What the check path counts: all checks by rule and segment, and picks that stand for the others."""

import random

import pytest

from limiter_node import clock
from limiter_node.core.engine import Engine
from limiter_node.core.model import Check, Verdict
from limiter_node.core.rules import parse_key_entry, parse_rule
from limiter_node.edge import tally
from limiter_node.edge.tally import FORWARDED, LOCAL, OTHER, Histogram, Lately, Picks, Tally

S = 1_000_000_000
ALLOWED = Verdict(True, 10, 9, 0, 0, 1)
DENIED = Verdict(False, 10, 0, S, S, 1)
SHADOWED = Verdict(True, 10, 0, S, 0, 1, would_allow=False)
DEGRADED = Verdict(True, 10, 9, 0, 0, 1, degraded=True)


@pytest.fixture
def counts() -> Tally:
    engine = Engine(buckets_max=100)
    engine.set_rule("api", parse_rule("api", {"rate": "1/s", "segments": {"premium": {"rate": "9/s"}}}), 0)
    engine.set_entry("alice", parse_key_entry("alice", {"segment": "premium"}), 0)
    return Tally(engine, random.Random(1).random)


def test_a_check_counts_under_the_segment_whose_numbers_it_got(counts: Tally) -> None:
    for check, segment in (
        (Check("api", "bob"), "default"),
        (Check("api", "bob", segment="premium"), "premium"),
        (Check("api", "bob", segment="unlisted"), "default"),
        (Check("api", "alice"), "premium"),
        (Check("api", "alice", segment="unlisted"), "default"),
        (Check("deleted meanwhile", "bob", segment="premium"), "default"),
    ):
        before = counts.of(check.rule, segment).allowed
        counts.count(check, ALLOWED, clock.now_ns(), LOCAL)
        assert counts.of(check.rule, segment).allowed == before + 1, check


def test_every_kind_of_verdict_is_counted_once(counts: Tally) -> None:
    for verdict in (ALLOWED, DENIED, DENIED, SHADOWED, DEGRADED):
        counts.count(Check("api", "bob"), verdict, clock.now_ns(), FORWARDED)
    series = counts.of("api")
    assert (series.allowed, series.denied, series.shadow_denied, series.degraded) == (2, 2, 1, 1)
    assert sum(counts.latencies["api"][FORWARDED].counts) == 5


@pytest.mark.parametrize("seed", range(5))
def test_checks_counted_together_are_counted_as_one_by_one(seed: int) -> None:
    engine = Engine(buckets_max=100)
    engine.set_rule("api", parse_rule("api", {"rate": "1/s"}), 0)
    together, apart = (Tally(engine, random.Random(seed).random) for _ in range(2))
    choice = random.Random(seed)
    for _ in range(200):
        keys = [f"k{choice.randrange(9)}" for _ in range(choice.randrange(30))]
        together.count_usual(together.of("api"), keys, clock.now_ns())
        for key in keys:
            apart.count(Check("api", key), ALLOWED, clock.now_ns(), LOCAL)
    assert together.of("api").allowed == apart.of("api").allowed
    assert together.busiest.now.at_least() == apart.busiest.now.at_least()
    assert together.allowed_picks.left == apart.allowed_picks.left


def test_with_few_checks_the_busiest_and_most_denied_keys_are_exact(counts: Tally) -> None:
    for _ in range(7):
        counts.count(Check("api", "bob"), ALLOWED, clock.now_ns(), LOCAL)
    for _ in range(3):
        counts.count(Check("api", "eve"), DENIED, clock.now_ns(), LOCAL)
    assert counts.busiest.now.at_least() == {("api", "bob"): 7, ("api", "eve"): 3}
    assert counts.most_denied.now.at_least() == {("api", "eve"): 3}


def test_rules_and_segments_past_the_bound_share_a_series(counts: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "SERIES_MAX", 2)
    monkeypatch.setattr(tally, "RULES_TIMED_MAX", 1)
    for rule in "abcd":
        counts.count(Check(rule, "bob"), ALLOWED, clock.now_ns(), LOCAL)
    assert {pair: series.allowed for pair, series in counts.series.items()} == {
        ("a", "default"): 1,
        ("b", "default"): 1,
        (OTHER, ""): 2,
    }
    assert {rule: sum(paths[LOCAL].counts) for rule, paths in counts.latencies.items()} == {"a": 1, OTHER: 3}


def test_picks_stand_for_all_checks_and_are_few_however_many_there_are() -> None:
    picks = Picks(random.Random(2).random)
    made = stood_for = 0
    checks_each_second = 50_000
    for second in range(5):
        made = 0
        for _ in range(checks_each_second):
            picks.left -= 1
            if not picks.left:
                stood_for += picks.take()
                made += 1
        picks.adjust()
        # Nobody knows of a burst before it comes; from the second after on there are as many as are wanted.
        assert made < (tally.PICKS_PER_S * 8 if second == 0 else tally.PICKS_PER_S * 1.3)
    assert made > tally.PICKS_PER_S * 0.7
    assert stood_for == pytest.approx(5 * checks_each_second, rel=0.01)


def test_clients_who_take_turns_are_all_picked() -> None:
    picks = Picks(random.Random(3).random)
    seen: dict[int, int] = {}
    for number in range(200_000):
        picks.left -= 1
        if not picks.left:
            seen[number % 64] = seen.get(number % 64, 0) + picks.take()
        if number % 20_000 == 0:
            picks.adjust()
    assert len(seen) == 64
    assert max(seen.values()) < 2.5 * min(seen.values())


def test_the_busiest_are_those_of_the_last_30_to_60_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "now_ns", lambda: 0)
    lately = Lately()
    lately.now.add(("api", "old"), 600)
    assert lately.top(5, 10 * S) == [(("api", "old"), 60.0)]
    lately.turn(30 * S)
    lately.now.add(("api", "new"), 300)
    assert lately.top(5, 40 * S) == [(("api", "old"), 15.0), (("api", "new"), 7.5)]
    assert lately.top(1, 40 * S) == [(("api", "old"), 15.0)]
    lately.turn(60 * S)
    assert lately.top(5, 60 * S) == [(("api", "new"), 10.0)]


def test_a_time_falls_into_the_first_bound_that_holds_it() -> None:
    histogram = Histogram((0.1, 1.0))
    for took_s in (0.05, 0.1, 0.5, 7.0):
        histogram.observe(took_s, 2)
    assert list(histogram.counts) == [4, 2, 2]
    assert histogram.sum_s == pytest.approx(15.3)
