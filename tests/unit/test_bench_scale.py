"""The arithmetic of scale: what is fitted, what is projected from it, and what the page says of both."""

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from bench.scale import projection, report, rings

# A node costs 10 ms a second and 4 ms for each peer; a check 12 us, and 60 more if it is forwarded.
COSTS = projection.Costs(10_000, 4_000, 12, 60)


def fleet(nodes: int) -> dict[str, float]:
    """As it would be measured."""
    rest_us_per_s = nodes * COSTS.at_rest_us(nodes)
    return {
        "nodes": nodes,
        "rest_us_per_s": rest_us_per_s,
        "check_us": COSTS.check_us(nodes),
        "checks_per_s": 1e6 / COSTS.check_us(nodes),
    }


def parts() -> dict[str, Any]:
    """What one run measures, as read back from scale.json."""
    waits = {"fill_wait_ms": 5.0, "hand_over_wait_ms": 25.0, "expiry_wait_ms": 10.0}
    controls = {"fill_idle_ms": 1.0, "hand_over_idle_ms": 2.0, "expiry_idle_ms": 7.5}
    of_keys = {
        "keys": 1_000_000,
        "bytes_per_key": [[500_000, 120.0], [1_000_000, 130.0]],
        "fill_per_s": 200_000.0,
        "hand_over_s": None,
        "handed_over": 1_000,
        "refill_s": 20,
        "held_at_once": 1_000_000,
        "expired_s": 30.0,
        **waits,
        **controls,
    }
    more_keys = {**of_keys, "keys": 2_000_000, "bytes_per_key": [[1_000_000, 130.0], [2_000_000, 141.0]]}
    per_check = {"checks": 60.0, "copies": 20.0}
    return {
        "keys": [of_keys, more_keys],
        "fleets": [fleet(nodes) for nodes in (1, 3, 12)],
        "traffic": [
            {
                "nodes": 60,
                "frames_per_check": {"checks": 2.0, "copies": 1.0},
                "bytes_per_check": per_check,
                "pings_per_node_s": 5_900.0,
                "ping_bytes_per_node_s": 70_000.0,
            }
        ],
        "rings": [
            {"nodes": 1_000, "largest": 1.1, "smallest": 0.9, "moved": 0.001, "build_ms": 400.0, "bytes": 8_000_000}
        ],
        "watchers": [{"watches": 1_000, "spread_ms": 100.0, "spread_max_ms": 200.0, "etcd_ms": 50.0}],
    }


def test_costs_are_found_again_in_what_fleets_of_them_would_measure() -> None:
    found = projection.fit([fleet(nodes) for nodes in (1, 3, 6, 9, 12)])
    assert found.rest_us == pytest.approx(COSTS.rest_us)
    assert found.peer_us == pytest.approx(COSTS.peer_us)
    assert found.local_us == pytest.approx(COSTS.local_us)
    assert found.forwarded_us == pytest.approx(COSTS.forwarded_us)


def test_one_node_and_the_largest_fleet_are_projected_as_measured() -> None:
    # In small fleets checks share frames: a forwarded one costs less than in the largest.
    found = projection.fit([fleet(1), {**fleet(3), "check_us": 20}, fleet(12)])
    assert found.check_us(1) == pytest.approx(COSTS.check_us(1))
    assert found.check_us(12) == pytest.approx(COSTS.check_us(12))


def test_a_fleet_carries_what_its_cores_have_left() -> None:
    assert COSTS.checks_per_s(1) == pytest.approx((1e6 - 10_000) / 12)
    assert COSTS.checks_per_s(2) == pytest.approx((1e6 - 14_000) / 42)
    assert COSTS.checks_per_s(1_000) == 0  # pings alone would take four cores
    assert COSTS.checks_per_s(1_000, timeout_ms=1_000) == pytest.approx((1e6 - 10_000 - 399_600) / 71.94)


def test_pings_take_half_a_core_of_each_node_at_some_size_and_less_at_a_longer_timeout() -> None:
    nodes = COSTS.nodes_at_half_a_core()
    assert COSTS.at_rest_us(nodes) <= 5e5 < COSTS.at_rest_us(nodes + 1)
    assert COSTS.nodes_at_half_a_core(timeout_ms=1_000) == 1_226


def test_what_gives_out_is_told_by_the_size_at_which_it_does() -> None:
    assert [limit.nodes for limit in projection.limits(parts())] == [123, 250, 10_000]


def test_the_page_tells_targets_that_are_met_and_missed() -> None:
    assert list(report.targets(parts())) == [
        (
            "longest wait at 1,000,000 keys, coming, moving and expiring (of an idle node beside it)",
            "at most 20 ms",
            "25.0 ms (7.5 ms)",
            "**missed**",
        ),
        ("bytes a key, 1,000,000 to 2,000,000 keys", "at most 140", "130 to 141", "**missed**"),
    ]


def test_the_page_shows_every_part_and_its_pictures() -> None:
    page = report.page({"facts": {"machine": "a small one"}, "parts": parts()})
    assert "| 1,000 nodes | 1,000 |" in page
    drawn = dict(report.pictures(parts()))
    assert set(re.findall(r"\((scale-\w+\.svg)\)", page)) == drawn.keys()
    for picture in drawn.values():
        ElementTree.fromstring(picture)


def test_a_page_of_some_parts_projects_nothing() -> None:
    page = report.page({"facts": {}, "parts": {"rings": parts()["rings"]}})
    assert "## Rings" in page
    assert "gives out" not in page


def test_a_ring_that_grows_moves_a_fair_share() -> None:
    found = rings.balance(10)
    assert found["moved"] == pytest.approx(1 / 11, rel=0.2)
    assert 0.75 < found["smallest"] < 1 < found["largest"] < 1.25
