"""Gathering: what it makes anew is as it was, when it begins, and that memory comes back for it."""

import re
import subprocess
import sys
from collections.abc import Iterable
from operator import is_
from pathlib import Path
from typing import Any

import pytest

from limiter_node.app import Node
from limiter_node.core.model import Check, Verdict
from limiter_node.core.rules import parse_rule
from limiter_node.edge.tally import LOCAL
from limiter_node.gathering import FORGOTTEN_MIN, Gathering
from limiter_node.settings import parse
from tests.unit.test_settings import OPTIONS

S = 1_000_000_000
RULE = parse_rule("api", {"rate": "1/s", "burst": 10})


@pytest.fixture
def node() -> Node:
    return new_node()


def new_node() -> Node:
    made = Node(parse(OPTIONS))
    made.engine.has_copies = False  # or it would remember what to tell other nodes
    made.engine.set_rule("api", RULE, 0)
    return made


def ask(node: Node, keys: range, now_ns: int = 0) -> None:
    for number in keys:
        check = Check("api", f"user:{number:08}")
        verdict = node.engine.check(check, now_ns)
        assert isinstance(verdict, Verdict)
        node.tally.count(check, verdict, now_ns, LOCAL)


def pass_time(node: Node, until_s: int, gathering: Gathering) -> None:
    """By steps of a second, from the beginning."""
    for second in range(until_s):
        node.engine.tick(second * S)
        node.engine.tick(second * S)  # the first may only have begun to look at the tables
        gathering.tick()


def shards(node: Node) -> list[dict[str, Any]]:
    return [shard for table in node.engine.all_tables() for shard in table.young]


def share_any(some: Iterable[object], others: Iterable[object]) -> bool:
    """Whether any object is among both."""
    return bool(set(map(id, some)) & set(map(id, others)))


def test_what_is_made_anew_is_as_it_was(node: Node) -> None:
    gathering = Gathering(node)
    ask(node, range(FORGOTTEN_MIN))
    node.recorder.tick(S)
    gathering.tick()
    busiest, seconds = node.tally.busiest.top(300, S), node.recorder.figures(300).seconds
    before, keys = shards(node), [key for key, _ in busiest]
    pass_time(node, 40, gathering)
    assert node.engine.buckets == 0
    assert node.tally.busiest.top(300, S) == busiest
    assert node.recorder.figures(300).seconds == seconds
    again = [key for key, _ in node.tally.busiest.top(300, S)]
    assert not share_any([text for key in keys for text in key], [text for key in again for text in key])
    assert not share_any(before, shards(node))


def test_keys_that_stay_are_kept(node: Node) -> None:
    gathering = Gathering(node)
    ask(node, range(FORGOTTEN_MIN + 5))
    gathering.tick()
    for number in range(5, FORGOTTEN_MIN + 5):
        node.engine.forget("api", f"user:{number:08}", 0)
    before = shards(node)
    for _ in range(40):
        gathering.tick()
    assert [one is other for one, other in zip(before, shards(node), strict=True)].count(True) <= 5
    assert node.engine.buckets == 5
    for number in range(5):
        verdict = node.engine.check(Check("api", f"user:{number:08}"), 0)
        assert isinstance(verdict, Verdict)
        assert verdict.remaining == 8


def test_nothing_is_done_while_keys_come_as_fast_as_they_go(node: Node) -> None:
    gathering = Gathering(node)
    ask(node, range(FORGOTTEN_MIN + 5_000))
    known = shards(node)
    for number in range(FORGOTTEN_MIN + 5_000):
        node.engine.forget("api", f"user:{number:08}", 0)
        ask(node, range(100_000 + number, 100_001 + number))
        if number % 1_000 == 0:
            gathering.tick()
    assert all(map(is_, shards(node), known))


FORGETFUL = """
import gc, re
from pathlib import Path
from limiter_node.gathering import Gathering
from tests.unit.test_gathering import S, ask, new_node, pass_time

def told():
    (found,) = re.findall(r"Private_Dirty: *([0-9]+)", Path("/proc/self/smaps_rollup").read_text())
    print(found, flush=True)

node = new_node()
gathering = Gathering(node)
ask(node, range(1_000))
pass_time(node, 40, gathering)
gc.freeze()
told()
for first in range(0, 400_000, 10_000):
    ask(node, range(first, first + 10_000))
    node.recorder.tick((first + 1) * S)
    gathering.tick()
told()
pass_time(node, 200, gathering)
assert node.engine.buckets == 0
told()
"""


def test_most_of_the_memory_of_forgotten_keys_is_given_back() -> None:
    if sys.platform != "linux":
        pytest.skip("reads /proc")
    done = subprocess.run(
        [sys.executable, "-c", FORGETFUL], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
    )
    before, full, after = map(int, re.findall(r"\d+", done.stdout))
    assert (full - after) / (full - before) > 0.6, f"KB before, with and after keys: {before}, {full}, {after}"
