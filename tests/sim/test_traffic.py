"""What the bench of scale counts in simulated fleets."""

import pytest

from bench.scale import traffic


def test_the_simulation_counts_frames_of_checks_copies_and_pings() -> None:
    found = traffic.simulate(3)
    # Two of three checks are asked of a node that does not own the key: a question and an answer each.
    assert found["frames_per_check"]["checks"] == pytest.approx(4 / 3, rel=0.2)
    assert found["bytes_per_check"]["copies"] > 10
    # Five pings in a timeout of 100 ms to each of two peers, and as many answers to theirs.
    assert found["pings_per_node_s"] == pytest.approx(200, rel=0.1)
