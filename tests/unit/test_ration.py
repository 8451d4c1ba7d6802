"""A node's ration: who draws first, and what may be drawn ahead."""

from __future__ import annotations

from random import Random

from limiter_node.core.adaptive.ration import Ration

NS = 1_000_000_000
DEMAND = {0: 9, 5: 14, 9: 22}  # checks per second by priority
BUCKET = 3.0


def drawn(overdraft: float, seed: int, seconds: int = 100) -> tuple[dict[int, float], int]:
    """The fraction of each priority that is let in at a rate that jumps between 0 and 40/s, and of how many checks."""
    chance = Random(seed)
    ration = Ration(BUCKET)
    asked, got = dict.fromkeys(DEMAND, 0), dict.fromkeys(DEMAND, 0)
    for tick in range(seconds * 100):
        now_ns = tick * NS // 100
        if tick % 30 == 0:
            ration.set_rate(40.0 if tick % 60 else 0.0, now_ns, overdraft)
        for priority, demand in DEMAND.items():
            if chance.random() < demand / 100:
                asked[priority] += 1
                got[priority] += ration.draw(priority, now_ns)
    return {priority: got[priority] / asked[priority] for priority in DEMAND}, sum(got.values())


def test_an_overdraft_carries_the_highest_priority_over_a_rate_that_dances() -> None:
    seed = 5
    without, _ = drawn(0.0, seed)
    with_it, total = drawn(8.0, seed)
    assert without[0] < 0.9, seed
    assert with_it[0] > 0.98, seed
    assert with_it[0] > with_it[5] > with_it[9] > 0, seed
    assert without[9] > with_it[9], "the lowest priority pays for it"
    assert total <= 20 * 100 + 10 + 8, seed


def test_priorities_draw_ahead_by_rank() -> None:
    ration = Ration(BUCKET)
    ration.set_rate(1.0, 0, overdraft=9.0)
    assert sum(ration.draw(9, 0) for _ in range(20)) == 0  # half a bucket is less than what it leaves
    assert sum(ration.draw(5, 0) for _ in range(20)) == 4
    assert sum(ration.draw(0, 0) for _ in range(20)) == 6
    ration.set_rate(1.0, 0, overdraft=0.0)  # what is owed beyond it is let off
    assert not ration.draw(0, NS // 2)
    assert ration.draw(0, NS)
