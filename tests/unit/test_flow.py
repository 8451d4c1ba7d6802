"""What comes back of a backend, and the rate that a guard makes of it."""

from __future__ import annotations

import pytest

from limiter_node.core.adaptive.flow import Flow, History
from limiter_node.core.adaptive.normal import Normal
from limiter_node.core.adaptive.steering import CORRECT_S, CORRECT_UP_S, tight_rate, tight_windows
from limiter_node.core.adaptive.target import calm_target_ms, tight_target_ms

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
    assert remembered(flow, 400, 0.5, is_jammed=False) < 200
    jam = flowing(2, sent=10, answers=0, lost=10)
    jam.memory_s = 100
    assert 50 < remembered(jam, 0, 2, is_jammed=True) < 100
    assert remembered(jam, 0, 60, is_jammed=True) < 1


def test_a_count_is_known_at_any_time_between_two_steps() -> None:
    history = History()
    for second in range(1, 200):
        history.add(second * 1_000, second)
    assert history.count_at(150_500) == 150.5
    assert history.count_at(10**9) == 199
    assert history.count_at(0) == history.count_at(1)  # long forgotten


def rate(*, held: float = 20, late_s: float = 0.0, is_jammed: bool = False, good_run: int = 0) -> float:
    flow = flowing(2, sent=100, answers=100)
    flow.memory_s, flow.held = 100.0, held
    return tight_rate(flow, target_s=0.2, late_s=late_s, good_run=good_run, is_jammed=is_jammed)


def test_at_its_target_as_much_is_let_in_as_comes_back() -> None:
    assert rate() == pytest.approx(100, rel=0.01)
    assert rate(held=10) == pytest.approx(100 + 10 / CORRECT_UP_S, rel=0.01)


def test_what_is_too_much_is_taken_back_and_a_little_goes_on() -> None:
    assert rate(held=25) == pytest.approx(100 - 5 / CORRECT_S, rel=0.02)
    assert rate(held=100) == pytest.approx(10, rel=0.01)


def test_quick_refusals_come_back_as_well_but_not_what_is_given_up() -> None:
    flow = flowing(2, sent=100, answers=40, lost=60)
    flow.memory_s, flow.held = 40.0, 8.0
    in_time, late = (
        tight_rate(flow, target_s=0.2, late_s=late_s, good_run=0, is_jammed=False) for late_s in (0.0, 0.001)
    )
    assert in_time == pytest.approx(100, rel=0.01)
    assert late == pytest.approx(40, rel=0.01)


def test_a_latency_that_does_not_give_way_is_pressed_harder() -> None:
    assert rate(late_s=1) < rate(late_s=0.1) < rate()
    assert rate(held=15, late_s=60) == rate(held=15, late_s=600) == pytest.approx(100 - 5 / CORRECT_S, rel=0.01)


def test_in_a_jam_a_tenth_looks_for_its_end() -> None:
    assert rate(held=100, late_s=0.1, is_jammed=True) == pytest.approx(10, rel=0.01)


def test_answers_in_time_in_a_row_are_reason_enough_to_let_in_more() -> None:
    assert rate(held=1_000, good_run=300) == 296
    assert rate(held=1_000, late_s=0.1, good_run=300) == pytest.approx(10, rel=0.01)


def test_windows_hold_what_belongs_to_the_target_and_leave_room_for_the_highest_priorities() -> None:
    flow = Flow()
    flow.memory_s = 100.0
    windows = tight_windows(flow, target_s=0.2, good_run=0, share=0.0)
    assert windows == sorted(windows, reverse=True)
    assert windows[9] == pytest.approx(0.7 * 20 + 1.3)
    assert windows[0] - windows[9] == pytest.approx(0.5 * 20 + 0.5)
    # What was in time lately is a measure, too, when the memory has faded.
    flow.memory_s = 0.0
    assert tight_windows(flow, target_s=0.2, good_run=4, share=0.0)[9] == 1.3
    assert tight_windows(flow, target_s=0.2, good_run=104, share=0.0) == windows


def test_a_node_alone_lets_in_what_several_would_that_do_not_know_of_each_other_yet() -> None:
    flow = Flow()
    flow.memory_s = 100.0
    half, most, alone = (tight_windows(flow, target_s=0.2, good_run=0, share=share) for share in (0.5, 0.75, 1.0))
    assert tight_windows(flow, target_s=0.2, good_run=0, share=0.125) == half
    assert [window - before for window, before in zip(most, half, strict=True)] == pytest.approx([0.02 * 100] * 10)
    assert [window - before for window, before in zip(alone, half, strict=True)] == pytest.approx([0.04 * 100] * 10)


def holding(
    flow: Flow, seconds: float, *, sent: float, back: float, out: float, every_s: float = STEP_S
) -> list[float]:
    """What is held, after each step; outcomes come back once every so often."""
    seen = []
    for step in range(1, round(seconds / STEP_S) + 1):
        is_told = step % round(every_s / STEP_S) == 0
        flow.hold(round(sent * STEP_S), back * every_s if is_told else 0.0, out, STEP_S, every_s)
        seen.append(flow.held)
    return seen


def test_what_is_held_follows_counts_at_once_and_latencies_in_the_end() -> None:
    flow = flowing(2, sent=400, answers=400)
    assert holding(flow, 5, sent=400, back=400, out=40)[-1] == pytest.approx(40, rel=0.1)
    assert holding(flow, 0.2, sent=400, back=100, out=40)[-1] == pytest.approx(40 + 0.2 * 300, rel=0.25)
    # Where outcomes are lost for good, what latencies say is right.
    assert holding(flow, 60, sent=400, back=380, out=40)[-1] == pytest.approx(40 + 20, rel=0.1)


def test_callers_that_report_once_a_second_do_not_make_what_is_held_swing() -> None:
    flow = Flow()
    swing = holding(flow, 20, sent=400, back=400, out=100, every_s=1.0)[-40:]
    assert max(swing) - min(swing) < 0.5 * 400


def normal_of(mean_ms: float) -> Normal:
    normal = Normal()
    normal.mean_ms, normal.p90_ms = mean_ms, 2 * mean_ms
    return normal


def test_in_tight_times_little_waits_where_the_objective_is_near_the_normal_latency() -> None:
    assert calm_target_ms(500, normal_of(50)) == tight_target_ms(500, normal_of(50)) == 0.44 * 500
    assert calm_target_ms(500, normal_of(300)) == 450
    assert tight_target_ms(500, normal_of(300)) == 320
    # What nobody can reach is no reason to let nobody in, and what nobody has asked for none to be strict.
    assert tight_target_ms(100, normal_of(300)) == 300
    assert calm_target_ms(None, normal_of(50)) == tight_target_ms(None, normal_of(50)) == pytest.approx(220)
