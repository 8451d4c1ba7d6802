"""What a node has before it does anything."""

import time

from limiter_node import clock
from limiter_node.app import Node
from limiter_node.settings import parse
from tests.unit.test_settings import OPTIONS


def test_a_node_looks_at_the_wall_before_it_decides_anything() -> None:
    # Or what is granted, and told, before the first tick would be of a window in 1970.
    node = Node(parse(OPTIONS))
    shown_ns = clock.now_ns() + node.engine.wall.offset_ns
    assert abs(shown_ns - time.time_ns()) < 60_000_000_000
