"""Each peer's law on an example worked out by hand."""

from __future__ import annotations

from math import log10, sqrt
from typing import TYPE_CHECKING

import pytest

from bench.adaptive.clients import Stream
from bench.adaptive.controllers import PEERS, PeerGates, build
from bench.adaptive.peers_rates import (
    Aperture,
    Bbr,
    Dagor,
    EnvoyAdmission,
    History,
    Sre,
    TopFull,
    admission_rejects,
    by_class,
    sre_rejects,
)
from bench.adaptive.peers_windows import Aimd, Breakwater, EnvoyGradient, Gradient2, Vegas, Windowed
from bench.adaptive.plant import Event, Plant
from bench.adaptive.scenario import Scenario
from bench.adaptive.tuned import GRIDS, TUNED, TUNED_AT_NODES
from bench.adaptive.world import World

if TYPE_CHECKING:
    from bench.adaptive.world import Outcome


def plant() -> Plant:
    events: list[Event] = []
    return Plant(1, None, events, [0.0] * 100, [1.0] * 100)


def test_gradient2_moves_a_fifth_of_the_way() -> None:
    law = Gradient2(initial=100)
    law.sample(0.1, 100, dropped=False)  # long = short: gradient 1, so 100 + 0.2 * 4
    assert law.limit == pytest.approx(100.8)
    for _ in range(9):
        law.sample(0.1, 200, dropped=False)
    before = law.limit
    law.sample(0.4, 200, dropped=False)
    long_s = 0.1 + 0.3 * 2 / 601
    assert law.limit == pytest.approx(0.8 * before + 0.2 * (before * max(0.5, 1.5 * long_s / 0.4) + 4))


def test_gradient2_holds_while_less_than_half_is_used() -> None:
    law = Gradient2(initial=100)
    law.sample(0.1, 49, dropped=False)
    assert law.limit == 100


def test_vegas_keeps_its_queue_between_alpha_and_beta() -> None:
    law = Vegas(initial=100)
    law.sample(0.1, 100, dropped=False)  # the least latency
    law.sample(0.104, 100, dropped=False)  # queue 4: hold would need 6 to 12, so + log10
    assert law.limit == pytest.approx(100 + log10(100))
    before = law.limit
    law.sample(0.2, 100, dropped=False)  # queue 51
    assert law.limit == pytest.approx(before - log10(before))
    before = law.limit
    law.sample(0.11, 100, dropped=False)  # queue 10: between
    assert law.limit == before
    law.sample(0.2, 100, dropped=True)
    assert law.limit < before


def test_aimd_adds_one_and_takes_a_tenth() -> None:
    law = Aimd(initial=50)
    law.sample(0.1, 25, dropped=False)
    assert law.limit == 51
    law.sample(0.1, 24, dropped=False)
    assert law.limit == 51
    law.sample(0.1, 51, dropped=True)
    assert law.limit == pytest.approx(45.9)


def test_breakwater_cuts_by_how_late_it_is() -> None:
    law = Breakwater(target_s=0.1, cut=0.5)
    law.sample(0.15, 20, dropped=False)
    assert law.limit == pytest.approx(20 * 0.75)
    law.sample(9.9, 20, dropped=False)
    assert law.limit == pytest.approx(7.5)
    law.sample(0.05, 20, dropped=False)
    assert law.limit == pytest.approx(8.5)


def test_a_window_passes_on_its_mean_and_none_with_few_samples() -> None:
    law = Windowed(Gradient2(initial=100), window_s=1, samples_min=3)
    law.take(1.0, 0.1, 100, dropped=False)
    assert law.limit == 100
    for now_s in (1.5, 1.6, 2.1):
        law.take(now_s, 0.1, 100, dropped=False)
    assert law.limit == pytest.approx(100.8)


def test_envoys_gradient_follows_its_formula_and_its_probe() -> None:
    law = EnvoyGradient()
    for number in range(50):
        assert law.limit == 3
        law.take(number * 0.01, 0.1, 3, dropped=False)
    law.limit = 100.0
    law.update(0.25)
    assert law.limit == pytest.approx(50 + sqrt(50))
    law.update(0.01)
    assert law.limit == pytest.approx((50 + sqrt(50)) * 2 + sqrt((50 + sqrt(50)) * 2))


def test_sre_rejects_beyond_k_times_what_is_accepted() -> None:
    assert sre_rejects(99, 50, 2.0) == 0
    assert sre_rejects(99, 25, 2.0) == pytest.approx(0.49)
    assert [by_class(0.6, priority) for priority in (9, 5, 0)] == pytest.approx([1.0, 1 / 3, 0.0])
    law = Sre(lambda: 0.0, k=1.1)
    assert law.admits(0, 0, 0.0)
    for _ in range(100):
        law.admits(9, 0, 0.5)
    assert not law.admits(9, 0, 0.5)


def test_envoys_admission_control_follows_its_formula() -> None:
    assert admission_rejects(100, 95, 0.95, 1) == 0
    assert admission_rejects(99, 47.5, 0.95, 1) == pytest.approx(0.49)
    assert admission_rejects(99, 47.5, 0.95, 2) == pytest.approx(0.7)
    assert admission_rejects(1000, 0, 0.95, 1) == 0.8
    law = EnvoyAdmission(lambda: 0.5)
    for _ in range(10):
        law.report(0.1, "refused", 1.0)
    assert not law.admits(0, 0, 1.0)


def test_a_history_forgets_what_is_too_old() -> None:
    history = History(10)
    history.add(0.5, 1, 2)
    history.add(5.0, 1, 0)
    history.add(11.0, 1, 0)
    assert (history.first, history.second) == (2, 0)


def test_bbr_bounds_what_is_out_by_passes_and_the_least_latency() -> None:
    backend = plant()
    law = Bbr(backend, threshold=0.0)
    for number in range(40):  # 4 a bucket of 0.1 s, 0.2 s each: 40/s * 0.2 s = 8
        now_s = number * 0.025
        law.admits(5, 0, now_s)
        law.report(0.2, "ok", now_s)
    admitted = sum(law.admits(5, 0, 1.0) for _ in range(20))
    assert admitted == 9  # drops when more than 8 are out


def test_dagor_cuts_the_lowest_level_first() -> None:
    backend = plant()
    law = Dagor(backend, cut=0.5)
    for user in range(99):
        assert law.admits((0, 5, 9)[user % 3], user, 0.5)
    backend.started, backend.waited_s = 10, 1.0  # 100 ms each
    assert law.admits(0, 0, 1.5)
    assert law.admits(0, 7, 1.6)
    assert not any(law.admits(9, user, 1.6) for user in range(60))


def test_aperture_scales_load_by_how_slow_it_is() -> None:
    law = Aperture(tick_s=10, window_s=30)
    for second in range(100):
        law.admits(0, 0, second + 0.5)
        law.report(0.1, "ok", second + 0.5)
    assert law._multiplier == 2.0
    for second in range(100, 111):
        law.admits(0, 0, second + 0.5)
        law.report(0.9, "ok", second + 0.5)
    assert law._multiplier < 1.0


def test_topfull_takes_five_percent_and_gives_one() -> None:
    law = TopFull(slow_s=0.5, floor=1)
    for _ in range(100):
        assert law.admits(0, 0, 0.5)
        law.report(0.9, "ok", 0.5)
    law.admits(0, 0, 1.0)
    assert law._bucket.rate == pytest.approx(110 * 0.95)
    law.report(0.1, "ok", 1.5)
    law.admits(0, 0, 2.0)
    assert law._bucket.rate < 110 * 0.95 * 1.01 + 1e-9


def test_every_peer_has_a_grid_and_what_was_picked_is_on_it() -> None:
    assert set(PEERS) == set(GRIDS) == set(TUNED)
    for kind, tuned in (("tuned", TUNED), ("at nodes", TUNED_AT_NODES)):
        for name, picked in tuned.items():
            assert set(picked) <= set(GRIDS[name])
            assert all(value in GRIDS[name][parameter] for parameter, value in picked.items())
            build(f"{name}, {kind}")


def test_at_nodes_a_peer_stands_on_each_and_hears_as_late_as_ours_do() -> None:
    one = Scenario(name="one", family="capacity", duration_s=2, onset_s=0, end_s=2, demand=200, report_delay_s=0.5)
    heard_s: list[tuple[int, float]] = []

    class Listener:
        def __init__(self, number: int) -> None:
            self._number = number

        def admits(self, priority: int, user: int, now_s: float) -> bool:
            return True

        def report(self, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
            heard_s.append((self._number, now_s))

    numbers = iter(range(one.nodes))
    World(Stream(one, 1), PeerGates(lambda *_: Listener(next(numbers)), at_nodes=True)).run()
    assert {number for number, _ in heard_s} == set(range(one.nodes))
    assert min(at_s for _, at_s in heard_s) > 0.5
