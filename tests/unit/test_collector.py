"""The collector: what stays is looked at once, and what is in a cycle is found."""

import gc
import weakref
from collections.abc import Iterator

import pytest

from limiter_node.collector import EVERY_NS, FULL_NS, Collector


class Knot:
    """Refers to itself."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector(0)
    made.take_over()
    yield made
    gc.enable()
    gc.unfreeze()


def test_garbage_is_found_within_a_tenth_of_a_second(collector: Collector) -> None:
    trace = weakref.ref(Knot())
    collector.tick(EVERY_NS - 1)
    assert trace() is not None
    collector.tick(EVERY_NS)
    assert trace() is None


def test_what_has_outlived_a_pass_is_looked_at_once_an_hour(collector: Collector) -> None:
    knot = Knot()
    trace = weakref.ref(knot)
    collector.tick(EVERY_NS)
    del knot
    for count in range(2, 100):
        collector.tick(count * EVERY_NS)
    assert trace() is not None
    collector.tick(FULL_NS)
    assert trace() is None


def test_what_comes_in_the_places_of_others_is_not_left_to_be_looked_at_at_once(collector: Collector) -> None:
    states = [(number, number) for number in range(50_000)]
    for count in range(1, 4):
        states[:] = [(number, count) for number in range(50_000)]
        collector.tick(count * EVERY_NS)
        assert len(gc.get_objects(0)) + len(gc.get_objects(1)) < 1_000
