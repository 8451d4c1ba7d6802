"""The shortened run that the issue asks for, and what keeps the experiment honest: capacity, outcomes, figures."""

from __future__ import annotations

import heapq
from itertools import count
from typing import TYPE_CHECKING

import pytest

from tests.fleet import say
from tests.overload.backend import Pool
from tests.overload.clients import Shot, arrivals
from tests.overload.figures import CUT, Figures, figures
from tests.overload.plots import Line, chart, picture
from tests.overload.record import Run, Sample
from tests.overload.report import notes, table
from tests.overload.reporter import outcomes_of
from tests.overload.scenario import SHARES, WAYS, Mode, Plan
from tests.overload.stage import perform

if TYPE_CHECKING:
    from collections.abc import Callable

SHORT = Plan(healthy_s=10.0, overload_s=20.0, recovery_s=10.0)


LATE_MS_MAX = 300.0


def on_a_machine_with_time() -> tuple[Run, Figures]:
    """Once more where the clients themselves were late: such a run shows the machine and not the limiter."""
    run = perform(WAYS["slow"], SHORT)
    found = figures(run)
    if found.worst_lag_ms > LATE_MS_MAX:
        say(f"again: the clients were {found.worst_lag_ms:.0f} ms late")
        run = perform(WAYS["slow"], SHORT)
    return run, figures(run)


@pytest.mark.timeout(240)
def test_a_backend_that_is_slow_and_fails_keeps_most_of_what_it_can_do_and_its_premium_users() -> None:
    run, found = on_a_machine_with_time()
    say(f"{table([run])}\n{notes(run)}")
    with_limiter, without = found.sides["with"], found.sides["without"]
    assert found.healthy_multiplier == 1
    assert with_limiter.healthy_denied <= 5  # of some 600
    assert with_limiter.healthy_good > 0.97  # as much as without, but for a hiccup of the machine
    assert found.cut_s is not None, f"a node's multiplier stayed above {CUT}"
    assert found.cut_s < 5
    # Within 5 s the limiter must have acted, so that is where it is held to what the backend can do. The aim is 0.85,
    # and 0.9 for premium; seven runs gave 0.91 to 1.02 and 0.96 to 0.99. These bounds are for busy machines.
    assert with_limiter.later.ratio >= 0.7
    served = with_limiter.later.served
    assert served["premium"] >= 0.8
    assert served["premium"] > served["free"]
    assert with_limiter.back_s is not None
    assert with_limiter.back_s < 20
    # Else it was no overload, and all of the above shows nothing.
    assert without.later.ratio < 0.2


# The backend


class Timeline:
    """Calls back in virtual time."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()

    def at(self, when_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when_s, next(self._number), call))

    def run(self, until_s: float) -> None:
        while self._due and self._due[0][0] <= until_s:
            self.now_s, _, call = heapq.heappop(self._due)
            call()


@pytest.mark.parametrize(
    ("mode", "per_s"), [(Mode(5), 100.0), (Mode(2), 40.0), (Mode(5, slowness=2.5), 40.0), (Mode(5, failing=0.3), 100.0)]
)
def test_a_pool_that_is_asked_for_too_much_does_what_its_workers_can(mode: Mode, per_s: float) -> None:
    time, went_well = Timeline(), list[bool]()
    pool = Pool(mode, service_ms=50.0, spread=0.4, seed=1, at=time.at)
    for _ in range(20_000):
        pool.take(0.0, went_well.append)
    time.run(100.0)
    assert len(went_well) / 100 == pytest.approx(per_s, rel=0.03)
    assert 1 - sum(went_well) / len(went_well) == pytest.approx(mode.failing, abs=0.02)
    assert pool.busy == mode.workers


def test_a_pool_serves_first_who_came_first() -> None:
    time, order = Timeline(), list[int]()
    pool = Pool(Mode(1), service_ms=50.0, spread=0.4, seed=1, at=time.at)
    for number in range(10):
        pool.take(0.0, lambda _, number=number: order.append(number))  # type: ignore[misc]
    time.run(10.0)
    assert order == list(range(10))


def test_a_pool_that_shrinks_finishes_what_it_has_begun() -> None:
    time, done = Timeline(), list[bool]()
    pool = Pool(Mode(3), service_ms=50.0, spread=0.0, seed=1, at=time.at)
    for _ in range(4):
        pool.take(0.0, done.append)
    pool.mode = Mode(1)
    time.run(0.06)
    assert (len(done), pool.busy) == (3, 1)


# The reporter


@pytest.mark.parametrize(
    ("line", "outcomes"),
    [
        (
            '<190>Nov 24 22:50:28 nginx: {"backend": "shop", "seconds": "0.061", "status": "200"}',
            [{"latency_ms": 61.0, "status": 200}],
        ),
        ('{"backend": "shop", "seconds": "2.001", "status": "504"}', [{"latency_ms": 2001.0, "status": "timeout"}]),
        (
            '{"backend": "shop", "seconds": "0.000, 0.050", "status": "502, 500"}',
            [{"latency_ms": 0.0, "status": "error"}, {"latency_ms": 50.0, "status": 500}],
        ),
    ],
)
def test_a_line_of_nginx_is_an_outcome_for_each_server_tried(line: str, outcomes: list[object]) -> None:
    assert outcomes_of(line) == ("shop", outcomes)


@pytest.mark.parametrize(
    "line", ["", "GET /", '{"backend": "shop"}', '{"backend": "shop", "seconds": "", "status": ""}']
)
def test_a_line_that_tells_no_outcome_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="no outcome"):
        outcomes_of(line)


# The clients and the figures


def test_arrivals_follow_the_rate_and_the_shares_and_are_the_same_for_the_same_seed() -> None:
    due = arrivals(lambda now_s: 50.0 if now_s < 100 else 100.0, 200.0, seed=3)
    assert due == arrivals(lambda now_s: 50.0 if now_s < 100 else 100.0, 200.0, seed=3)
    assert sum(arrival.due_s < 100 for arrival in due) == pytest.approx(5_000, rel=0.05)
    assert len(due) == pytest.approx(15_000, rel=0.05)
    for name, share in SHARES.items():
        assert sum(arrival.segment == name for arrival in due) / len(due) == pytest.approx(share, abs=0.02)


def made_up(latency_s: float, status: int, multiplier: float) -> Run:
    """A run of ten requests a second and segment; in the overload all go so, else well."""
    plan, shots, samples = Plan(healthy_s=10, overload_s=10, recovery_s=10), list[Shot](), list[Sample]()
    for tenth in range(300):
        due_s = tenth / 10
        is_overload = 10 <= due_s < 20
        outcome = (latency_s, status) if is_overload else (0.05, 200)
        shots += [Shot(side, name, due_s, due_s, *outcome) for side in ("with", "without") for name in SHARES]
        told = multiplier if 11 <= due_s < 20 else 1.0
        samples += [Sample(due_s, node, told, "", {}, None, "") for node in ("n1", "n2")]
    return Run(WAYS["capacity"], plan, shots, samples, {}, "")


def test_answers_after_the_objective_are_not_good_and_all_is_well_again_at_the_end() -> None:
    found = figures(made_up(0.6, 200, 0.6))
    assert found.sides["with"].overload.goodput_s == 0
    assert found.sides["with"].back_s == 0
    assert (found.cut_s, found.healthy_multiplier, found.lowest_multiplier) == (1.0, 1.0, 0.6)


def test_errors_of_the_backend_are_served_and_not_good() -> None:
    side = figures(made_up(0.1, 500, 0.8)).sides["with"]
    assert side.overload.ratio == 0
    assert side.overload.served == {"premium": 1, "standard": 1, "free": 1}


def test_a_multiplier_above_the_mark_is_no_cut_and_requests_turned_away_are_not_admitted() -> None:
    found = figures(made_up(0.01, 429, 0.8))
    assert found.cut_s is None
    assert found.sides["with"].overload.admitted == {"premium": 0, "standard": 0, "free": 0}
    assert found.sides["with"].overload.p90_ms["premium"] == 0


def test_a_picture_holds_every_line_and_escapes_its_words() -> None:
    drawn = picture([chart("a < b", {"one": Line([(0, 1), (1, 9)])}, seconds=2, shaded=(0, 1), top=2.0)] * 2)
    assert drawn.count("<polyline") == 2
    assert "a &lt; b" in drawn
