"""What nodes show of themselves: how it travels, adds up, and is told of nodes that do not answer."""

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from limiter_node.core.lookout import Lookout
from limiter_node.core.model import FIGURES_BYTES_MAX, SECONDS_MAX, Looked
from limiter_node.edge import fleet_feed
from limiter_node.edge.figures import (
    BACKENDS_TOLD_MAX,
    FLOWS_MAX,
    HITTERS_MAX,
    PROBLEMS_MAX,
    BackendFigures,
    BackendSecond,
    Figures,
    Flow,
    Hitter,
    Second,
    decode,
    encode,
    sum_of_flows,
    sum_of_histories,
    sum_of_hitters,
    sum_of_seconds,
)
from limiter_node.edge.fleet_feed import Feed, TooManyWatchers, fleet_document
from limiter_node.edge.tally import LATENCY_S
from limiter_node.report_figures import quantile_s


def figures(node: str, **more: Any) -> Figures:
    plain = Figures(
        node=node,
        version="1",
        state="ready",
        leads=False,
        etcd="connected",
        config_revision=7,
        problems=[],
        keys=1,
        replication_lag_ms=0.0,
        stall_ms=0.0,
        waiting_for=[],
        links={},
        gone=[],
        durations={},
        flows=[],
        busiest=[],
        denied=[],
        backends={},
        seconds=[],
    )
    return msgspec.structs.replace(plain, **more)


def status(*members: str, gone: Sequence[str] = (), leader: str | None = None) -> dict[str, Any]:
    return {
        "node": members[0],
        "standalone": False,
        "leader": leader,
        "ring": {"revision": 9, "members": [{"id": name, "peer": "", "zone": None, "share": 0.5} for name in members]},
        "links": dict.fromkeys(members[1:], "down"),
        "gone": list(gone),
        "config": {"rules": 2},
    }


def test_figures_travel_and_those_of_another_version_are_left_out() -> None:
    told = figures("a", seconds=[Second(1, 2, 3, 4, {"orders": BackendSecond(0.5, 1, 2, 3.5)})])
    assert decode(encode(told)) == told
    newer = msgspec.msgpack.encode({**msgspec.to_builtins(told), "new": 1})
    assert decode(newer) == told
    for garbage in (b"", b"\xc1", b"\x80", b"\x91" * 9999, encode(told)[:-1]):
        assert decode(garbage) is None


def test_the_most_that_a_node_can_show_fits_a_frame() -> None:
    name, key = "n" * 64, "\U0001f600" * 128
    backends = [f"{number:064}" for number in range(BACKENDS_TOLD_MAX)]
    second = Second(9e9, 9e9, 9e9, 9e9, {each: BackendSecond(0.5, 9e9, 9e9, 9e9, 0.5, 9e9) for each in backends})
    most = figures(
        name,
        problems=[(key, "e" * 300)] * PROBLEMS_MAX,
        flows=[Flow(name, name, 9e9, 9e9, 9e9, 9e9)] * FLOWS_MAX,
        busiest=[Hitter(name, key, 9e9)] * HITTERS_MAX,
        denied=[Hitter(name, key, 9e9)] * HITTERS_MAX,
        backends={each: BackendFigures(0.5, "s", "r" * 300, 9e9, 0.5, {"report": 9e9}, "f" * 300) for each in backends},
        seconds=[second] * SECONDS_MAX,
    )
    assert len(encode(most)) <= FIGURES_BYTES_MAX


def test_seconds_of_several_nodes_add_up() -> None:
    total = sum_of_seconds(
        [
            Second(1, 2, 3, 4, {"orders": BackendSecond(0.5, 10, 1)}),
            Second(10, 20, 30, 40, {"orders": BackendSecond(0.4, 20, 2, 55.0, 0.1, 30.0)}),
            Second(),
        ]
    )
    assert total == Second(11, 22, 33, 44, {"orders": BackendSecond(0.4, 30, 3, 55.0, 0.1, 30.0)})


def test_histories_of_different_lengths_end_together() -> None:
    old, young = [Second(allowed=n) for n in (1, 2, 3)], [Second(allowed=10)]
    assert [second.allowed for second in sum_of_histories([old, young, []])] == [1, 2, 13]
    assert sum_of_histories([]) == []


def test_flows_and_heavy_keys_are_added_by_name_and_the_heaviest_come_first() -> None:
    flows = [Flow("api", "free", 1, 0, 0, 0), Flow("web", "free", 9, 0, 0, 0), Flow("api", "free", 1, 9, 1, 1)]
    assert sum_of_flows(flows) == [Flow("api", "free", 2, 9, 1, 1), Flow("web", "free", 9, 0, 0, 0)]
    hitters = [Hitter("api", "bob", 1), Hitter("api", "eve", 2), Hitter("api", "bob", 2)]
    assert sum_of_hitters(hitters) == [Hitter("api", "bob", 3), Hitter("api", "eve", 2)]


def test_a_quantile_lies_between_the_bounds_of_its_bucket() -> None:
    counts = [0] * (len(LATENCY_S) + 1)
    counts[2] = 100  # within 100 to 250 us
    assert quantile_s(counts, 0.5) == pytest.approx(175e-6)
    counts[-1] = 900  # above all bounds
    assert quantile_s(counts, 0.99) == LATENCY_S[-1]


def test_a_node_that_does_not_answer_is_shown_with_what_is_known_without_it() -> None:
    told = [figures("a", leads=True, keys=5, seconds=[Second(allowed=3)]), figures("joining")]
    document = fleet_document(status("a", "b", gone=["b"], leader="a"), told)
    rows = {row["id"]: row for row in document["nodes"]}
    assert list(rows) == ["a", "b", "joining"]
    assert (rows["a"]["answers"], rows["a"]["allowed"], rows["a"]["keys"], rows["a"]["leads"]) == (True, 3, 5, True)
    assert (rows["b"]["answers"], rows["b"]["state"], rows["b"]["gone"]) == (False, "down", True)
    assert rows["joining"]["share"] == 0.0


def test_a_problem_is_told_once_with_the_nodes_that_have_it() -> None:
    bad = ("rules/api", "no rate")
    told = [figures("a", problems=[bad]), figures("b", problems=[bad, ("keys/x", "bad")])]
    assert fleet_document(status("a", "b"), told)["problems"] == [
        {"key": "keys/x", "error": "bad", "nodes": ["b"]},
        {"key": "rules/api", "error": "no rate", "nodes": ["a", "b"]},
    ]


def test_of_backends_the_leader_knows_most() -> None:
    here = BackendFigures(1.0, "normal", "", None, None, {}, None)
    leaders = BackendFigures(1.0, "normal", "", None, None, {"report": 0.1}, None)
    told = [
        figures("a", backends={"orders": here, "new": here}),
        figures("b", leads=True, backends={"orders": leaders}),
    ]
    assert fleet_document(status("a", "b", leader="b"), told)["backends"] == {"orders": leaders, "new": here}


def test_the_lookout_asks_each_peer_once_and_takes_no_late_answer() -> None:
    lookout = Lookout(lambda seconds: b"%d" % seconds)
    lookout.ask({"b"}, 5)
    (look,) = lookout.frames("b")
    assert lookout.frames("b") == lookout.frames("c") == []
    assert lookout.answer(look) == Looked(look.id, b"5")
    lookout.hear("b", Looked(look.id, b"first"))
    assert lookout.told == {"b": b"first"}
    lookout.ask({"b"}, 1)
    lookout.hear("b", Looked(look.id, b"late"))
    assert lookout.told == {}


class LoneRouter:
    def __init__(self) -> None:
        self.links: dict[str, Any] = {}
        self.lookout = Lookout(lambda _: b"")

    def look(self, seconds: int) -> None:
        self.lookout.ask(set(), seconds)


class LoneNode:
    """A node without peers whose seconds are numbered."""

    def __init__(self) -> None:
        self.router: Any = LoneRouter()
        self.looks: list[int] = []

    def figures(self, seconds: int) -> Figures:
        self.looks.append(seconds)
        return figures("a", seconds=[Second(allowed=number) for number in range(len(self.looks) + 2)][-seconds:])

    def describe(self) -> dict[str, Any]:
        return status("a")


def allowed_in(event: bytes) -> list[float]:
    return [second[0] for second in msgspec.json.decode(event)["seconds"]]


async def test_a_watcher_gets_the_last_minutes_then_second_by_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_feed, "LOOK_EVERY_S", 0.01)
    node = LoneNode()
    feed = Feed(node)
    first = feed.watch()
    assert allowed_in(await anext(first)) == [0, 1, 2]
    assert allowed_in(await anext(first)) == [3]
    second = feed.watch()
    assert allowed_in(await anext(second))[:4] == [0, 1, 2, 3]
    assert node.looks[0] == SECONDS_MAX
    assert set(node.looks[1:]) == {1}
    await feed.stop()
    assert [event async for event in second] == []


async def test_nobody_is_asked_once_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_feed, "LOOK_EVERY_S", 0.01)
    node = LoneNode()
    feed = Feed(node)
    events = feed.watch()
    await anext(events)
    await events.aclose()
    async with asyncio.timeout(5):
        while feed.is_looking:
            await asyncio.sleep(0.01)
    looks = len(node.looks)
    await asyncio.sleep(0.05)
    assert len(node.looks) == looks


async def test_one_that_does_not_read_is_let_go_of_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_feed, "LOOK_EVERY_S", 0.001)
    feed = Feed(LoneNode())
    idle, reader = feed.watch(), feed.watch()
    await anext(idle)
    for _ in range(3 * fleet_feed.UNREAD_MAX):
        await anext(reader)
    assert len([event async for event in idle]) < fleet_feed.UNREAD_MAX
    await feed.stop()


async def test_watchers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_feed, "WATCHERS_MAX", 1)
    feed = Feed(LoneNode())
    events = feed.watch()
    await anext(events)
    with pytest.raises(TooManyWatchers):
        await anext(feed.watch())
    await feed.stop()
