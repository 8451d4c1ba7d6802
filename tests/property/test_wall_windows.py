"""Windows of the wall clock against plain datetime arithmetic, and counts that other clocks numbered."""

from datetime import UTC, datetime, timedelta, timezone
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.algorithms.face import Wall
from limiter_node.core.algorithms.fixed_window import FixedWindow
from limiter_node.core.algorithms.token_bucket import PPM
from limiter_node.core.algorithms.wall_windows import CalendarWindows, EvenWindows
from limiter_node.core.limits import Limit, parse_rate
from limiter_node.core.model import NEVER
from tests.property.algorithm_twins import SECOND_NS, calendar_window

UNITS = ("day", "week", "month")
# With summer time on both halves of the world, with midnights that are skipped and that come twice, and with none.
ZONES = (
    None,
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "America/Havana",
    "Asia/Beirut",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "Pacific/Apia",
)
HOUR_NS = 3_600 * SECOND_NS
moments = st.integers(946_684_800 * SECOND_NS, 2_145_916_800 * SECOND_NS)  # 2000 to 2037


def wall_ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * SECOND_NS


def limit_of(rate: str, zone: str | None = None) -> Limit:
    count, period_s = parse_rate(rate)
    return Limit(rate, count, period_s, count, "fixed_window", zone)


@given(st.sampled_from(UNITS), st.sampled_from(ZONES), moments, st.floats(0, 1))
def test_a_calendar_window_is_one_local_day_week_or_month(
    unit: str, zone: str | None, now_ns: int, part: float
) -> None:
    windows, name_of = CalendarWindows(unit, zone), calendar_window(unit, zone)
    number = windows.number_at(now_ns)
    begin_ns, end_ns = windows.begin_ns(number), windows.begin_ns(number + 1)
    assert begin_ns <= now_ns < end_ns <= begin_ns + windows.longest_ns
    assert name_of(begin_ns - 1) != name_of(begin_ns) == name_of(now_ns)
    inside_ns = begin_ns + int((end_ns - begin_ns - 1) * part)
    assert name_of(inside_ns) == name_of(now_ns) == name_of(end_ns - 1)
    assert windows.number_at(inside_ns) == windows.number_at(end_ns - 1) == number
    assert windows.number_at(end_ns) > number  # a day that a zone leaves out is no window


@given(st.integers(1, 366 * 86_400), moments)
def test_an_even_window_is_a_period_counted_from_1970(period_s: int, now_ns: int) -> None:
    windows = EvenWindows(period_s)
    number = windows.number_at(now_ns)
    assert windows.begin_ns(number) == number * period_s * SECOND_NS <= now_ns < windows.begin_ns(number + 1)


@pytest.mark.parametrize(
    ("unit", "zone", "moment", "begins", "hours"),
    [
        ("day", "Europe/Berlin", "2026-03-29T12:00:00+02:00", "2026-03-29T00:00:00+01:00", 23),
        ("day", "Europe/Berlin", "2026-10-25T12:00:00+01:00", "2026-10-25T00:00:00+02:00", 25),
        ("day", None, "2026-03-29T23:59:59+00:00", "2026-03-29T00:00:00+00:00", 24),
        # 29 November 2026 is a Sunday.
        ("week", None, "2026-11-29T23:59:59+00:00", "2026-11-23T00:00:00+00:00", 7 * 24),
        ("week", "America/New_York", "2026-11-01T12:00:00-05:00", "2026-10-26T00:00:00-04:00", 7 * 24 + 1),
        ("month", None, "2026-02-28T23:59:59+00:00", "2026-02-01T00:00:00+00:00", 28 * 24),
        ("month", None, "2028-02-29T23:59:59+00:00", "2028-02-01T00:00:00+00:00", 29 * 24),
        ("month", None, "2026-12-31T23:59:59+00:00", "2026-12-01T00:00:00+00:00", 31 * 24),
        ("month", "Europe/Berlin", "2026-03-31T23:59:59+02:00", "2026-03-01T00:00:00+01:00", 31 * 24 - 1),
        # Midnight is skipped: the day begins at one. It comes twice: the day begins with the first.
        ("day", "America/Sao_Paulo", "2018-11-04T12:00:00-02:00", "2018-11-04T01:00:00-02:00", 23),
        ("day", "America/Havana", "2026-11-01T12:00:00-05:00", "2026-11-01T00:00:00-04:00", 25),
        # Put back from a minute past midnight to a minute past eleven: the new day does not end by that.
        ("day", "America/St_Johns", "2010-11-06T23:30:00-03:30", "2010-11-07T00:00:00-02:30", 25),
        # 30 December 2011 did not happen.
        ("day", "Pacific/Apia", "2011-12-29T12:00:00-10:00", "2011-12-29T00:00:00-10:00", 24),
        ("day", "Pacific/Apia", "2011-12-31T12:00:00+14:00", "2011-12-31T00:00:00+14:00", 24),
    ],
)
def test_days_weeks_and_months_are_as_long_as_the_zone_has_them(
    unit: str, zone: str | None, moment: str, begins: str, hours: int
) -> None:
    windows = CalendarWindows(unit, zone)
    number = windows.number_at(wall_ns(moment))
    assert windows.begin_ns(number) == wall_ns(begins)
    assert windows.begin_ns(number + 1) - windows.begin_ns(number) == hours * HOUR_NS


@given(st.sampled_from(ZONES[1:]), moments)
def test_a_quota_is_there_again_at_local_midnight_of_the_first(zone: str, now_ns: int) -> None:
    quota = FixedWindow(limit_of("1/month", zone), PPM, 1, 0, Wall(now_ns))
    state = quota.decide(None, 1, 0).state
    denial = quota.decide(state, 1, 0)
    assert not denial.allowed
    assert denial.retry_ns == denial.reset_ns
    local = datetime.fromtimestamp(now_ns // SECOND_NS, ZoneInfo(zone))
    again = datetime.fromtimestamp((now_ns + denial.reset_ns) // SECOND_NS, ZoneInfo(zone))
    assert (again.year, again.month) == (local.year + local.month // 12, local.month % 12 + 1)
    assert (again.day, again.minute) == (1, 0)
    assert again.hour <= 1  # one, where midnight is skipped
    assert quota.decide(state, 1, denial.reset_ns).allowed


# Clocks that differ. The nodes' monotonic clocks show 0, and their walls a minute's 59.9 s and what is told.

MINUTE = limit_of("10/m")
EDGE_NS = wall_ns("2026-11-26T12:00:00+00:00")


def node_at(after_edge_ns: int, limit: Limit = MINUTE) -> FixedWindow:
    return FixedWindow(limit, PPM, 1, 0, Wall(EDGE_NS + after_edge_ns))


def told(sender: FixedWindow, receiver: FixedWindow, count: int) -> tuple[int, int]:
    """What a receiver counts of what a sender granted, and for how long."""
    packed = sender.pack(sender.decide(None, count, 0).state or 0, 0)
    assert packed is not None
    state = receiver.unpack(packed, sender.period_s, 0)
    return receiver.spent(state, 0), receiver.decide(state, 0, 0).reset_ns


def test_what_was_granted_in_a_window_that_is_over_here_counts_nothing() -> None:
    assert told(node_at(-SECOND_NS), node_at(0), 4) == (0, 0)


def test_a_key_whose_last_owner_was_ahead_goes_on_in_the_next_window() -> None:
    assert told(node_at(0), node_at(-SECOND_NS), 4) == (4, 61 * SECOND_NS)
    node = node_at(-SECOND_NS)
    assert not node.is_past(node.horizon(0), 61 * SECOND_NS - 1)


@pytest.mark.parametrize("off_ns", [-86_400 * SECOND_NS, -61 * SECOND_NS, 120 * SECOND_NS, 86_400 * SECOND_NS])
def test_a_count_by_a_clock_that_was_wrong_counts_in_the_present_window(off_ns: int) -> None:
    assert told(node_at(off_ns), node_at(0), 4) == (4, 60 * SECOND_NS)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (limit_of("10/m"), limit_of("10/d")),
        (limit_of("10/d"), limit_of("10/m")),
        (limit_of("10/d"), limit_of("10/24h")),
        (limit_of("10/7d"), limit_of("10/week")),
        (limit_of("10/30d"), limit_of("10/month")),
        (limit_of("10/d", "Pacific/Apia"), limit_of("10/d", "Pacific/Honolulu")),
        (limit_of("10/d", "Pacific/Honolulu"), limit_of("10/d", "Pacific/Apia")),
    ],
)
def test_a_count_in_windows_of_another_kind_counts_in_the_present_one(before: Limit, after: Limit) -> None:
    sender, receiver = node_at(0, before), node_at(0, after)
    count, reset_ns = told(sender, receiver, 4)
    assert (count, reset_ns) == (4, told(receiver, receiver, 4)[1])


@given(st.integers(-3, 3), st.integers(-3, 3), st.integers(1, 10), st.integers(1, 10))
def test_a_merge_by_clocks_that_differ_has_the_later_window_and_the_larger_count(
    one: int, other: int, one_count: int, other_count: int
) -> None:
    here = node_at(0)
    packs = [
        node.pack(node.decide(None, count, 0).state or 0, 0) or []
        for node, count in ((node_at(one * 60 * SECOND_NS), one_count), (node_at(other * 60 * SECOND_NS), other_count))
    ]
    states = [state for packed in packs if (state := here.unpack(packed, 60, 0)) is not None]
    if len(states) == 2:
        merged = here.merge(states[0], states[1], 0)
        assert merged == here.merge(states[1], states[0], 0)
        for later_ns in (0, 60 * SECOND_NS, 120 * SECOND_NS):
            assert here.spent(merged, later_ns) >= max(here.spent(state, later_ns) for state in states)
        assert here.spent(merged, 0) == max(one_count, other_count)


def test_a_wall_clock_that_is_set_moves_the_windows_and_loses_no_count_of_the_present_one() -> None:
    wall = Wall(EDGE_NS)
    window = FixedWindow(MINUTE, PPM, 1, 0, wall)
    state = window.decide(None, 4, 0).state
    wall.offset_ns += 30 * SECOND_NS
    assert (window.spent(state, 0), window.decide(state, 0, 0).reset_ns) == (4, 30 * SECOND_NS)
    wall.offset_ns -= 31 * SECOND_NS  # a second before the window: the key is ahead
    assert (window.spent(state, 0), window.decide(state, 0, 0).reset_ns) == (4, 61 * SECOND_NS)
    wall.offset_ns -= 3_600 * SECOND_NS  # the clock was wrong before, or is now
    assert (window.spent(state, 0), window.decide(state, 0, 0).reset_ns) == (4, SECOND_NS)
    wall.offset_ns += 2 * 3_600 * SECOND_NS
    assert (window.spent(state, 0), window.decide(state, 0, 0).reset_ns) == (0, 0)


def test_a_wall_before_1970_has_windows_too() -> None:
    window = FixedWindow(MINUTE, PPM, 1, 0, Wall(int(datetime(1969, 12, 31, tzinfo=UTC).timestamp()) * SECOND_NS))
    decision = window.decide(None, 10, 0)
    assert (decision.remaining, decision.reset_ns) == (0, 60 * SECOND_NS)
    assert window.decide(decision.state, 11, 0).retry_ns == NEVER


def test_a_zone_of_a_fixed_offset_is_the_same_wherever_it_is_said() -> None:
    # Etc/GMT-5 is five hours ahead of UTC, as zones are named there.
    windows = CalendarWindows("day", "Etc/GMT-5")
    begin_ns = windows.begin_ns(windows.number_at(EDGE_NS))
    assert datetime.fromtimestamp(begin_ns // SECOND_NS, timezone(timedelta(hours=5))).hour == 0
