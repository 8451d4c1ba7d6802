"""The window-edge attack: all that is let through within a moment around the edge of a window, or within a period."""

from bisect import bisect_left

import pytest

from limiter_node.core.algorithms import build
from limiter_node.core.algorithms.face import Wall
from limiter_node.core.algorithms.token_bucket import PPM
from limiter_node.core.limits import Limit

LIMIT = 600
MINUTE_NS = 60_000_000_000
MOMENT_NS = 1_000_000
BEGIN_NS = 17 * MINUTE_NS
"""A window of the wall begins here, and with the attacker's first check the key's own windows do."""


def granted_at(algorithm: str, asked: list[tuple[int, int]]) -> list[int]:
    """The times of the tokens granted, of so many asked for one by one at each (time, number)."""
    limit = Limit(f"{LIMIT}/m", LIMIT, 60, LIMIT, algorithm)
    law, state, times = build(limit, PPM, 1, 0, Wall()), None, []
    for now_ns, number in asked:
        for _ in range(number):
            decision = law.decide(state, 1, now_ns)
            if not decision.allowed:
                break  # and so would all others be at that time
            state = decision.state
            times.append(now_ns)
    return times


def most_within(times: list[int], span_ns: int) -> int:
    return max(bisect_left(times, from_ns + span_ns) - index for index, from_ns in enumerate(times))


# One check when a window begins; then two bursts, just before the next and just after.
EDGE_ATTACK = [
    (BEGIN_NS, 1),
    (BEGIN_NS + MINUTE_NS - MOMENT_NS, 2 * LIMIT),
    (BEGIN_NS + MINUTE_NS, 2 * LIMIT),
    (BEGIN_NS + MINUTE_NS + MOMENT_NS, 2 * LIMIT),
]


@pytest.mark.parametrize(
    ("algorithm", "most"),
    [
        # The first check was of the first window: 599 of it at its end, and 600 of the second.
        ("fixed_window", 2 * LIMIT - 1),
        ("sliding_window", LIMIT - 1),  # which still counts it after the edge
        ("sliding_log", LIMIT),
        ("token_bucket", LIMIT),
        ("leaky_bucket", LIMIT),
    ],
)
def test_only_the_fixed_window_lets_two_limits_through_around_an_edge(algorithm: str, most: int) -> None:
    assert most_within(granted_at(algorithm, EDGE_ATTACK), 10 * MOMENT_NS) == most


def test_the_sliding_window_is_a_few_per_cent_over_where_the_attack_is_repeated_at_every_edge() -> None:
    asked = [(BEGIN_NS, 1)]
    for edge in range(1, 20):
        asked += [(BEGIN_NS + edge * MINUTE_NS + moment * MOMENT_NS, LIMIT) for moment in range(-20, 20)]
    times = granted_at("sliding_window", asked)
    assert LIMIT <= most_within(times, MINUTE_NS) <= 1.05 * LIMIT
    assert most_within(granted_at("sliding_log", asked), MINUTE_NS) == LIMIT
    assert most_within(granted_at("fixed_window", asked), MINUTE_NS) == 2 * LIMIT - 1


def test_the_sliding_window_lets_nearly_two_limits_through_to_one_who_takes_every_token_as_it_comes() -> None:
    # Its worst case, as its docstring says: a burst at the very end of a window, then a trickle through the next.
    asked = [(BEGIN_NS, 1), (BEGIN_NS + MINUTE_NS - 1, LIMIT)]
    asked += [(BEGIN_NS + MINUTE_NS + step * MINUTE_NS // LIMIT, 1) for step in range(LIMIT)]
    most = most_within(granted_at("sliding_window", asked), MINUTE_NS)
    assert 1.95 * LIMIT < most < 2 * LIMIT
    assert most_within(granted_at("sliding_log", asked), MINUTE_NS) == LIMIT
