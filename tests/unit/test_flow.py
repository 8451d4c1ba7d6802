"""What comes back of a backend, and the rate that a guard makes of it."""

from __future__ import annotations

import pytest

from limiter_node.core.adaptive.flow import Flow, History
from limiter_node.core.adaptive.steering import CORRECT_S, tight_rate

STEP_S = 0.05


def flowing(seconds: float, *, sent: float, answers: float, lost: float = 0.0, pause_s: float = 0.0) -> Flow:
    """So many a second, evenly."""
    flow = Flow()
    for _ in range(round(seconds / STEP_S)):
        flow.step(round(sent * STEP_S), answers * STEP_S, lost * STEP_S, STEP_S, pause_s)
    return flow


def test_answers_and_losses_are_followed_within_a_second() -> None:
    flow = flowing(2, sent=400, answers=100, lost=50)
    assert flow.answers_s == pytest.approx(100, rel=0.01)
    assert flow.lost_s == pytest.approx(50, rel=0.01)
    assert not flow.is_whole
    assert flowing(2, sent=400, answers=100, lost=5).is_whole


def test_what_is_sent_and_not_answered_is_a_surplus() -> None:
    assert flowing(2, sent=400, answers=400).surplus == pytest.approx(0)
    assert flowing(0.2, sent=400, answers=100).surplus == pytest.approx(0.2 * 300, rel=0.2)


def test_callers_that_report_once_a_second_look_as_steady_as_others() -> None:
    flow, seen = Flow(), []
    for step in range(400):
        flow.step(5, 100.0 if step % 20 == 0 else 0.0, 0.0, STEP_S, 1.0)
        seen.append(flow.answers_s)
    assert 70 < min(seen[200:]) < max(seen[200:]) < 130


def remembered(flow: Flow, seen_s: float, seconds: float, *, is_jammed: bool) -> float:
    for _ in range(round(seconds / STEP_S)):
        flow.remember(seen_s, STEP_S, is_jammed=is_jammed)
    return flow.memory_s


def test_the_memory_falls_quickly_rises_slowly_and_only_fades_in_a_jam_that_loses_answers() -> None:
    flow = flowing(2, sent=400, answers=400)
    assert remembered(flow, 400, 30, is_jammed=False) == pytest.approx(400, rel=0.01)
    assert remembered(flow, 100, 2, is_jammed=False) < 110
    assert remembered(flow, 400, 1, is_jammed=False) < 200
    jam = flowing(2, sent=10, answers=0, lost=10)
    jam.memory_s = 100
    assert 70 < remembered(jam, 0, 2, is_jammed=True) < 100
    assert remembered(jam, 0, 60, is_jammed=True) < 1


def test_a_count_is_known_at_any_time_between_two_steps() -> None:
    history = History()
    for second in range(1, 200):
        history.add(second * 1_000, second)
    assert history.count_at(150_500) == 150.5
    assert history.count_at(10**9) == 199
    assert history.count_at(0) == history.count_at(1)  # long forgotten


def rate(*, out: float = 20, lateness: float = 1.0, is_jammed: bool = False, good_run: int = 0) -> float:
    flow = flowing(2, sent=100, answers=100)
    flow.memory_s, flow.surplus = 100.0, 0.0
    return tight_rate(flow, 100, out=out, target_s=0.2, lateness=lateness, good_run=good_run, is_jammed=is_jammed)


def test_at_its_target_as_much_is_let_in_as_comes_back() -> None:
    assert rate() == pytest.approx(100)
    assert rate(out=10) == pytest.approx(100 + 10 / CORRECT_S)


def test_too_much_is_taken_back_at_once_and_room_is_used() -> None:
    assert rate(out=30) == pytest.approx(50)
    assert rate(out=100) == 25
    assert rate(out=10, lateness=0.2) > 1.5 * 100


def test_in_a_jam_a_tenth_looks_for_its_end() -> None:
    assert rate(out=100, lateness=3, is_jammed=True) == pytest.approx(10)


def test_answers_in_time_in_a_row_are_reason_enough_to_let_in_more() -> None:
    assert rate(out=1_000, lateness=0.5, good_run=300) == 296
    assert rate(out=1_000, lateness=1.5, good_run=300) == 25
