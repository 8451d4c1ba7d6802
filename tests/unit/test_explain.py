"""What an explanation says on a node that decides alone; the rest is in tests/e2e/test_rules_over_http.py."""

import pytest

from limiter_node.core.engine import Engine
from limiter_node.core.explain import explain
from limiter_node.core.model import Check, Explanation, Verdict
from limiter_node.core.rules import parse_rule

CHECK = Check("api", "k", 2)


@pytest.mark.parametrize(("on_unreachable", "left"), [("local", 1), ("allow", 9), ("deny", 9)])
def test_a_node_that_decides_alone_explains_its_share_where_it_goes_by_that(on_unreachable: str, left: int) -> None:
    engine = Engine(buckets_max=10)
    engine.set_rule("api", parse_rule("api", {"rate": "9/h", "on_unreachable": on_unreachable}), 0)
    verdict = engine.check_alone(CHECK, 3, 0)
    assert isinstance(verdict, Verdict)
    explained = explain(engine, "a", CHECK, 0, alone_of=3)
    assert isinstance(explained, Explanation)
    assert (explained.limits[0].limit, explained.limits[0].remaining) == (verdict.limit, left)
    assert explained.used == verdict.limit - left
