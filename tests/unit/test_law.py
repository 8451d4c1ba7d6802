"""The law: evidence in, a decision out, tick by tick."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from limiter_node.core.adaptive.baseline import sure_fraction, sure_p90_ms
from limiter_node.core.adaptive.capacity import Capacity
from limiter_node.core.adaptive.diagnosis import DrainTest, ErrorTest
from limiter_node.core.adaptive.evidence import PRIORITIES, Decision, Load, Policy, Signal
from limiter_node.core.adaptive.law import Law
from limiter_node.core.adaptive.shares import fractions
from limiter_node.core.adaptive.sketch import Sketch
from limiter_node.core.adaptive.view import signal_of
from limiter_node.core.backends import parse_health, signal

NS = 1_000_000_000
MIX = {0: 0.2, 5: 0.3, 9: 0.5}


def load(
    wanted: float,
    *,
    admitted: float | None = None,
    latency_ms: float = 50,
    answered: float | None = None,
    refused: float = 0,
    timeouts: float = 0,
    in_flight: float | None = None,
) -> Load:
    """A second's load; latencies from half to twice the given."""
    admitted = wanted if admitted is None else admitted
    answered = admitted if answered is None else answered
    sketch = Sketch({}, 0.0)
    for factor in (0.5, 0.75, 1.0, 1.25, 2.0):
        if answered >= 5:
            sketch.add(latency_ms * factor, int(answered / 5))
    counts = [0] * PRIORITIES
    let = [0] * PRIORITIES
    for priority, part in MIX.items():
        counts[priority], let[priority] = round(wanted * part), round(admitted * part)
    return Load(
        span_ns=NS,
        nodes=1,
        offered=counts,
        wanted=counts,
        admitted=let,
        completed=round(answered + timeouts),
        refused=round(refused),
        failed=0,
        timeouts=round(timeouts),
        latency=sketch,
        in_flight=answered * latency_ms * 1.1 / 1e3 if in_flight is None else in_flight,
    )


class Run:
    """A law and the ticks that it is given."""

    def __init__(self, **policy: Any) -> None:
        self.law = Law(Policy(**{"slo_ms": 250.0, **policy}))
        self.now_ns = 0
        self.last = Decision(1.0, "normal", "")

    def tick(self, load: Load | None = None, signal: Signal | None = None, *, times: int = 1) -> Decision:
        for _ in range(times):
            self.now_ns += NS
            self.last = self.law.decide(load, signal, self.now_ns)
        return self.last

    def healthy(self, wanted: float = 400, *, times: int = 20) -> Run:
        self.tick(load(wanted), times=times)
        return self


def test_a_healthy_backend_is_left_alone() -> None:
    last = Run().healthy(times=100).last
    assert (last.multiplier, last.rate, last.state, last.priorities) == (1.0, None, "normal", {})


def test_latency_and_errors_on_a_real_backend_bring_the_multiplier_below_0_7_within_five_seconds() -> None:
    run = Run().healthy()
    found = [run.tick(load(400, latency_ms=2_000, refused=120)).multiplier for _ in range(5)]
    assert min(found) < 0.7
    assert "p90" in run.last.reason


def test_one_request_that_timed_out_cuts_nobody() -> None:
    run = Run()
    assert run.tick(load(2, answered=1, timeouts=1)).multiplier == 1.0
    assert run.tick(load(0), times=10).multiplier == 1.0


def test_a_monitor_that_tells_no_throughput_is_believed() -> None:
    def told(latency_ms: float) -> Signal:
        document = {"latency_ms": {"p50": latency_ms, "p99": 3 * latency_ms}}
        return parse_health("orders", document, "health")

    run = Run()
    run.tick(load(400, answered=0, in_flight=0), told(40), times=20)
    assert run.last.multiplier == 1.0
    run.tick(load(400, answered=0, in_flight=0), told(2_000), times=5)
    assert run.last.multiplier < 0.7


def test_a_single_reading_that_is_slightly_too_high_changes_nothing() -> None:
    run = Run().healthy()
    assert run.tick(load(400, latency_ms=80)).state == "normal"
    assert run.tick(load(400)).state == "normal"


@pytest.mark.parametrize("late_s", [0.3, 0.6])
def test_reports_that_come_late_once_cut_nobody(late_s: float) -> None:
    run = Run().healthy()
    held_back = late_s * 400
    late = load(400, answered=400 - held_back, in_flight=400 * 0.055 + held_back)
    assert run.tick(late).multiplier == 1.0
    assert run.tick(load(400, answered=400 + held_back)).multiplier == 1.0
    assert run.tick(late, times=2).state == "overload"  # but what goes on waiting is a queue


def test_a_throughput_that_is_told_late_is_no_queue() -> None:
    told = signal("poll", 40, 80, 120, throughput=200, error_rate=0.0)
    run = Run()
    run.tick(load(200, answered=0, in_flight=0), told, times=20)
    # A minute's mean still says 200/s when twice as much is wanted, and answered as quickly.
    assert run.tick(load(400, answered=0, in_flight=0), told, times=20).multiplier == 1.0


def test_the_rate_follows_the_answers_and_never_compounds_its_own_cut() -> None:
    run = Run().healthy()
    last = run.tick(load(400, admitted=250, answered=200, latency_ms=200, in_flight=120), times=4)
    assert last.rate is not None
    assert last.multiplier == pytest.approx(0.5, abs=0.08)  # of 250 admitted, 200 were answered
    assert last.rate <= 2 * 230  # guards have the rest
    alone = Run().healthy().tick(load(400, admitted=250, answered=200, latency_ms=200, in_flight=0), times=3)
    assert alone.rate is not None
    assert 150 <= alone.rate <= 230


def test_the_multiplier_is_the_rate_by_the_demand_before_the_cut() -> None:
    run = Run().healthy()
    run.tick(load(400, admitted=400, answered=200, latency_ms=300, in_flight=100), times=5)
    # The cut itself halves the demand; the multiplier must not rise for that.
    last = run.tick(load(200, admitted=200, answered=200, latency_ms=300, in_flight=60), times=5)
    # Nor must a pulse that drains a queue lower it: it ends by itself.
    assert last.rate is not None
    assert abs(last.multiplier - (last.hold_rate or last.rate) / 400) < 0.02


def test_it_comes_back_within_seconds_and_ends() -> None:
    run = Run().healthy()
    run.tick(load(400, answered=40, latency_ms=2_000, timeouts=200, in_flight=400), times=20)
    assert run.last.multiplier < 0.25
    seconds = 0
    while run.last.state != "normal":
        rate = run.last.rate or 400
        run.tick(load(400, admitted=min(rate, 400)))
        seconds += 1
        assert seconds < 30
    assert run.last.multiplier == 1.0


def test_the_multiplier_stays_above_the_least_that_people_allow() -> None:
    run = Run(min=0.3).healthy()
    run.tick(load(400, answered=4, latency_ms=5_000, timeouts=390, in_flight=800), times=30)
    assert run.last.multiplier == 0.3
    assert run.last.rate == 0.3 * 400


def test_the_lowest_priority_is_shed_first_and_nobody_to_nothing() -> None:
    run = Run().healthy()
    last = run.tick(load(400, answered=100, latency_ms=300, in_flight=200), times=10)
    assert last.priorities["0"] > last.priorities["5"] >= last.priorities["9"] > 0


def test_errors_that_do_not_depend_on_the_load_are_not_throttled_for() -> None:
    run = Run().healthy()
    for _ in range(10):
        rate = run.last.rate or 400
        sent = min(rate, 400)
        run.tick(load(400, admitted=sent, refused=0.3 * sent))
    assert run.last.state == "normal"
    run.tick(load(400, refused=120), times=50)
    assert run.last.state == "normal"


def test_errors_above_a_capacity_are_throttled_for() -> None:
    run = Run().healthy()
    for _ in range(30):
        sent = min(run.last.rate or 400, 400)
        run.tick(load(400, admitted=sent, refused=max(0, sent - 200)))
    assert run.last.rate is not None
    assert 170 <= run.last.rate <= 260


def test_with_errors_that_do_not_depend_on_the_load_it_is_the_latency_that_decides() -> None:
    run = Run(slo_ms=500.0).healthy()
    rates = []
    for _ in range(30):
        sent = min(run.last.rate or 400, 400)
        done = min(sent, 200)
        latency_ms = 900 if sent > 200 else 100
        run.tick(load(400, admitted=sent, answered=done, latency_ms=latency_ms, refused=0.3 * done, in_flight=0))
        rates.append(sent)
    assert 0.8 * 200 <= sum(rates[6:]) / 24 <= 1.3 * 200


@pytest.mark.parametrize("seed", range(5))
def test_while_guards_turn_checks_away_errors_that_depend_on_nothing_neither_end_the_cut_nor_deepen_it(
    seed: int,
) -> None:
    """A pool of 33/s, asked for 58/s, of whose answers 30 % are errors, by chance more and less each second."""
    chance = random.Random(seed)
    run = Run(slo_ms=500.0).healthy(58)
    multipliers = []
    for second in range(40):
        let = min(run.last.rate or 58, 33 if second else 58)
        errors = sum(chance.random() < 0.3 for _ in range(33))
        run.tick(load(58, admitted=let, answered=33, latency_ms=150, refused=errors))
        multipliers.append(run.last.multiplier)
    assert max(multipliers[4:]) < 0.7
    assert sum(multiplier < 0.45 for multiplier in multipliers[10:]) <= 2


def test_what_guards_turn_away_is_an_overload_however_well_they_keep_the_latency() -> None:
    run = Run(slo_ms=500.0).healthy(58)
    run.tick(load(58, admitted=33, latency_ms=50), times=2)
    assert run.last.state == "overload"
    assert run.last.multiplier < 0.7
    assert run.last.reason == "guards turn 43% away"


def test_a_few_denials_of_guards_in_health_are_no_overload() -> None:
    run = Run(slo_ms=500.0).healthy(58)
    run.tick(load(58, admitted=52, latency_ms=50), times=10)
    assert run.last == Decision(1.0, "normal", "")


def test_where_guards_have_cut_at_once_the_number_tells_it_from_the_second_on() -> None:
    """The first second is still a healthy one's answers, and all of it late; the guards let 33/s through after that."""
    run = Run(slo_ms=500.0).healthy(58)
    run.tick(load(58, admitted=58, answered=58, latency_ms=600))
    run.tick(load(58, admitted=20, answered=33, latency_ms=150))
    multipliers = [run.tick(load(58, admitted=33, latency_ms=150)).multiplier for _ in range(10)]
    assert max(multipliers) < 0.7


def test_one_jam_that_few_answers_show_for_long_is_counted_once() -> None:
    """At 12/s a jam stays in the view for seconds: guards that hold the latency after it are to have their way."""
    run = Run(slo_ms=500.0).healthy(12, times=40)
    run.tick(load(12, admitted=6, answered=0, timeouts=8, in_flight=4), times=2)
    rates = [run.tick(load(12, admitted=5, answered=5, latency_ms=200)).rate or 12.0 for _ in range(8)]
    assert min(rates) > 4.5


def test_a_new_normal_latency_is_learned() -> None:
    run = Run(slo_ms=1_000).healthy()
    for _ in range(60):
        sent = min(run.last.rate or 400, 400)
        run.tick(load(400, admitted=sent, latency_ms=250))
    assert run.last.state == "normal"


# Nothing is known.


def test_without_signals_what_was_decided_is_held() -> None:
    run = Run().healthy()
    before = run.tick(load(400, answered=200, latency_ms=300, in_flight=100), times=10)
    after = run.tick(None, times=100)
    assert after.state == "hold"
    assert after.multiplier <= max(before.multiplier, (before.hold_rate or 0) / 400)
    assert run.tick(load(800, answered=0), times=10).multiplier <= after.multiplier


def test_after_a_while_it_goes_to_the_fallback_down_at_once_and_up_slowly() -> None:
    run = Run(fallback=0.5, stale_after_s=10).healthy()
    assert run.tick(None, times=9).multiplier == 1.0
    down = run.tick(None, times=2)
    assert (down.multiplier, down.state) == (0.5, "fallback")
    run.law.set_policy(Policy(fallback=0.8))
    assert abs(run.tick(None, times=60).multiplier - 0.6) < 0.01
    assert run.tick(None, times=300).multiplier == 0.8


def test_out_of_a_fallback_it_grows_by_evidence() -> None:
    run = Run(fallback=0.1, stale_after_s=10).healthy()
    run.tick(None, times=20)
    assert run.tick(load(400, admitted=40)).multiplier < 0.2
    for _ in range(30):
        run.tick(load(400, admitted=min(run.last.rate or 400, 400)))
    assert run.last.state == "normal"


def test_a_drain_that_nobody_confirms_is_not_held() -> None:
    run = Run().healthy()
    deep = run.tick(load(400, answered=200, latency_ms=2_000, in_flight=0))
    assert deep.hold_rate is not None
    assert deep.rate is not None
    assert deep.hold_rate > deep.rate
    assert deep.expires_ms is not None


# Leaders.


def test_a_new_leader_goes_on_from_what_is_published() -> None:
    run = Run()
    run.law.adopt(Decision(0.5, "overload", "", rate=200.0))
    first = run.tick(load(400, admitted=200))
    assert abs(first.multiplier - 0.5) <= 0.05
    for _ in range(20):
        run.tick(load(400, admitted=min(run.last.rate or 400, 400)))
    assert run.last.state == "normal"


def test_a_new_leader_that_finds_only_a_multiplier_starts_at_what_is_admitted_under_it() -> None:
    run = Run()
    run.law.adopt(Decision(0.5, "pinned", ""))
    first = run.tick(load(200))
    assert first.rate is not None
    assert abs(first.rate - 200) < 21
    assert abs(first.multiplier - 0.5) <= 0.05


def test_a_new_leader_without_news_changes_nothing() -> None:
    run = Run()
    run.law.adopt(Decision(0.5, "overload", "", rate=200.0))
    assert run.tick(None, times=50).multiplier == 0.5


# Modes and sources.


def test_switched_off_it_decides_nothing() -> None:
    run = Run(mode="off").healthy()
    last = run.tick(load(400, answered=40, latency_ms=2_000), times=10)
    assert (last.multiplier, last.state) == (1.0, "normal")


def test_observing_it_decides_although_nothing_follows() -> None:
    run = Run(mode="observe").healthy()
    run.tick(load(400, answered=200, latency_ms=200, in_flight=60), times=30)
    assert 0.3 < run.last.multiplier < 0.7
    run.tick(load(400, refused=0), times=60)
    assert run.last.state == "normal"


def test_a_poll_is_enough() -> None:
    well = Signal("poll", 40, 80, 150, 50, 400, 0.0, 0.0, 0.0, 400)
    ill = msgspec.structs.replace(well, p50_ms=400, p90_ms=800, p99_ms=900, mean_ms=450, throughput=200)
    run = Run()
    quiet = load(400, answered=0, in_flight=0)
    run.tick(quiet, well, times=20)
    assert run.last.state == "normal"
    run.tick(quiet, ill, times=3)
    assert run.last.multiplier < 0.7


def test_a_few_samples_are_put_together() -> None:
    run = Run().healthy(12, times=40)
    assert run.last.state == "normal"
    run.tick(load(12, answered=5, latency_ms=900, timeouts=6), times=6)
    assert run.last.multiplier < 0.7
    few = Signal("poll", 400, 800, 900, 450, 5, 0.0, 0.0, 0.0, 5)
    run = Run()
    run.tick(
        load(12, answered=0, in_flight=0), msgspec.structs.replace(few, p50_ms=40, p90_ms=80, mean_ms=50), times=20
    )
    run.tick(load(12, answered=0, in_flight=0), few, times=10)
    assert run.last.multiplier < 1


def test_the_objective_is_learned_where_none_is_given() -> None:
    run = Run(slo_ms=None).healthy()
    run.tick(load(400, answered=200, latency_ms=600, in_flight=200), times=5)
    assert run.last.multiplier < 0.7


# The parts.


def test_no_outcomes_are_no_signal() -> None:
    assert signal_of(load(10, answered=0)) is None


def test_a_signal_tells_what_was_reported() -> None:
    signal = signal_of(load(100, latency_ms=100, refused=10, timeouts=25))
    assert signal is not None
    assert (signal.source, signal.samples, signal.throughput) == ("report", 125, 125.0)
    assert (signal.refused_rate, signal.timeout_rate) == (0.08, 0.2)
    assert abs(signal.p50_ms - 100) <= 1
    assert abs(signal.p90_ms - 200) <= 2


def test_fewer_samples_are_less_sure() -> None:
    signal = Signal("report", 50, 100, 150, 60, 100, 0, 0, 0, 20)
    few, many = sure_p90_ms(signal), sure_p90_ms(msgspec.structs.replace(signal, samples=10_000))
    assert 50 < few < many < 100
    assert sure_fraction(0.1, 10) < sure_fraction(0.1, 1_000) < 0.1
    assert sure_fraction(0.5, 0) == 0


def test_fractions_go_down_with_rank_and_use_the_rate_up() -> None:
    wanted = [100.0, 0, 0, 0, 0, 150.0, 0, 0, 0, 250.0]
    shares = fractions(200, wanted)
    assert list(shares) == ["0", "5", "9"]
    assert shares["0"] == 1.0
    assert abs(sum(shares[name] * wanted[int(name)] for name in shares) - 200) < 0.1
    assert fractions(1_000, wanted) == {"0": 1.0, "5": 1.0, "9": 1.0}
    assert fractions(10, [0.0] * 10) == {}


def test_errors_that_stay_a_fixed_fraction_do_not_depend_on_the_load() -> None:
    test = ErrorTest(0.5, 200)
    verdicts = [test.step(210, 105, 1.0) for _ in range(3)]
    assert False in verdicts
    assert True not in verdicts


def test_errors_that_end_with_the_cut_depend_on_the_load() -> None:
    assert ErrorTest(0.5, 200).step(210, 10, 1.0) is True
    assert ErrorTest(0.5, 200).step(1, 0, 1.0) is None
    assert ErrorTest(0.5, 200).step(0, 0, 1.0) is None


def test_a_latency_that_falls_when_less_is_admitted_is_a_queue() -> None:
    test = DrainTest()
    assert [test.wants(300, 50, 1.0, is_jammed=True) for _ in range(4)] == [False, False, False, True]
    assert test.step(290) is None
    assert test.step(100) is True
    assert not any(test.wants(300, 50, 1.0, is_jammed=True) for _ in range(39))
    assert test.wants(300, 50, 1.0, is_jammed=True)


def test_a_latency_that_stays_when_less_is_admitted_is_no_queue() -> None:
    test = DrainTest()
    assert not any(test.wants(60, 50, 1.0, is_jammed=True) for _ in range(9))
    assert any(test.wants(300, 50, 1.0, is_jammed=True) for _ in range(4))
    assert [test.step(290) for _ in range(3)] == [None, None, False]
    assert not test.is_running


def test_capacity_is_tried_gently_where_it_was_seen_and_boldly_below_and_beyond() -> None:
    capacity = Capacity()
    capacity.begin(400)
    capacity.measure(100)
    for _ in range(20):
        capacity.measure(100)
    capacity.grow(100, is_guarded=False)
    assert 100 < capacity.value < 105
    capacity.doubt()
    assert capacity.value < 75
    capacity.begin(40)
    values = []
    for _ in range(12):
        capacity.grow(capacity.value, is_guarded=False)
        values.append(capacity.value)
    assert values == sorted(values)
    assert values[-1] > 10 * values[0]


def test_a_wholly_blind_queue_is_drained_deep_and_its_capacity_doubted_at_last() -> None:
    run = Run(min=0.001).healthy()
    blind = load(400, answered=100, latency_ms=900, timeouts=300, in_flight=0)
    rates = [run.tick(blind).rate or 400 for _ in range(12)]
    assert rates == sorted(rates, reverse=True)
    assert rates[2] <= 0.2 * 400
    assert rates[-1] < rates[2]


def test_a_queue_that_a_drain_confirms_is_told_from_a_slow_dependency() -> None:
    run = Run(slo_ms=500.0).healthy()
    states = []
    for _ in range(40):
        sent = min(run.last.rate or 400, 400)
        latency_ms = 200 if sent > 150 else 60
        run.tick(load(400, admitted=sent, answered=min(sent, 200), latency_ms=latency_ms, in_flight=0))
        states.append(run.last.state)
    assert "normal" not in states
    assert run.last.multiplier < 0.8


@pytest.mark.parametrize("multiplier", [5e-324, 1e-12, 1.0])
@pytest.mark.parametrize("rate", [None, 0.0, 1e-300, 1e12])
@pytest.mark.parametrize("throughput", [0.0, 1e12])
def test_whatever_people_have_published_a_decision_follows(
    multiplier: float, rate: float | None, throughput: float
) -> None:
    run = Run()
    run.law.adopt(Decision(multiplier, "by hand", "", rate=rate))
    told = signal("poll", 1e3, 1e4, 1e5, throughput=throughput, error_rate=0.3)
    for found in [run.tick(load(100), told, times=5), run.tick(None, told, times=5), run.tick(times=5)]:
        assert 0.05 <= found.multiplier <= 1 or found.state == "hold"
