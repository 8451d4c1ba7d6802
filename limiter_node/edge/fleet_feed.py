"""The fleet as one node sees it, for the page and for whoever asks: looks once a second while somebody watches.

A look asks all peers (`Router.look`), waits a moment for their answers, and adds them up with the node's own figures.
The first look brings the last minutes of each node; from then on one second is put to the others with each.

Bounds: WATCHERS_MAX watchers; one that does not read is let go of, and gets everything anew when it comes back.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import structlog

from limiter_node.core.model import SECONDS_MAX
from limiter_node.edge.figures import (
    Figures,
    Second,
    decode,
    sum_of_flows,
    sum_of_histories,
    sum_of_hitters,
    sum_of_seconds,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from limiter_node.core.router import Router

log = structlog.get_logger()

LOOK_EVERY_S = 1.0
ANSWER_S = 0.15
"""How long answers are waited for: a hop takes a millisecond, a busy node ten."""

WATCHERS_MAX = 50
UNREAD_MAX = 5


class Shown(Protocol):
    """A node, as far as it is shown."""

    router: Router

    def figures(self, seconds: int) -> Figures:
        """What the node shows of itself, with so many of its last seconds."""

    def describe(self) -> dict[str, Any]:
        """The document of `GET /v1/status`."""


class TooManyWatchers(Exception):
    """No more can be told."""


class Feed:
    """Looks at the fleet and tells the watchers."""

    def __init__(self, node: Shown) -> None:
        self._node = node
        self._history: deque[Second] = deque(maxlen=SECONDS_MAX)
        self._watchers: set[asyncio.Queue[bytes | None]] = set()
        self._newcomers: set[asyncio.Queue[bytes | None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._one_look = asyncio.Lock()

    async def look(self, seconds: int) -> dict[str, Any]:
        """The fleet now, with the sum of so many of its nodes' last seconds."""
        router = self._node.router
        async with self._one_look:  # a second one would begin before the answers to the first are there
            router.look(seconds)
            if router.links:
                await asyncio.sleep(ANSWER_S)
            told = [decode(data) for data in router.lookout.told.values()]
        return fleet_document(
            self._node.describe(), [self._node.figures(seconds), *(figures for figures in told if figures is not None)]
        )

    async def watch(self) -> AsyncGenerator[bytes, None]:
        """JSON documents: the first with the last minutes in `seconds`, each later one with one second."""
        if len(self._watchers) + len(self._newcomers) >= WATCHERS_MAX:
            raise TooManyWatchers
        queue: asyncio.Queue[bytes | None] = asyncio.Queue(UNREAD_MAX)
        self._newcomers.add(queue)
        if not self.is_looking:
            self._looking = asyncio.create_task(self._keep_looking(), name="dashboard")
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._watchers.discard(queue)
            self._newcomers.discard(queue)

    @property
    def is_looking(self) -> bool:
        """Whether somebody watches, or did a moment ago."""
        return self._looking is not None and not self._looking.done()

    async def stop(self) -> None:
        """End all watching."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    async def _keep_looking(self) -> None:
        loop = asyncio.get_running_loop()
        self._history.clear()
        try:
            while self._watchers or self._newcomers:
                began_s = loop.time()
                await self._tell()
                await asyncio.sleep(max(0.0, began_s + LOOK_EVERY_S - loop.time()))
        except Exception:  # a bug of ours; pages come back by themselves
            log.exception("dashboard failed")
        finally:
            for queue in self._watchers | self._newcomers:
                _put(queue, None)

    async def _tell(self) -> None:
        document = await self.look(SECONDS_MAX if not self._history else 1)
        self._history.extend(document["seconds"])
        newcomers, self._newcomers = self._newcomers, set()
        if newcomers:
            event = msgspec.json.encode({**document, "seconds": list(self._history)})
            for queue in newcomers:
                queue.put_nowait(event)
        document["seconds"] = document["seconds"][-1:]
        event = msgspec.json.encode(document)
        for queue in self._watchers.copy():
            if not _put(queue, event):
                self._watchers.discard(queue)
        self._watchers |= newcomers


def _put(queue: asyncio.Queue[bytes | None], event: bytes | None) -> bool:
    """Tell a watcher; one that has not read for UNREAD_MAX events is told that this is the end."""
    if queue.full():
        while not queue.empty():
            queue.get_nowait()
        event = None
    queue.put_nowait(event)
    return event is not None


def fleet_document(status: dict[str, Any], told: list[Figures]) -> dict[str, Any]:
    """The fleet from the status of the node that is asked and what nodes show, its own first."""
    by_name = {figures.node: figures for figures in told}
    problems: dict[tuple[str, str], list[str]] = {}
    for figures in told:
        for key, error in figures.problems:
            problems.setdefault((key, error), []).append(figures.node)
    leader = next((figures for figures in told if figures.leads), told[0])
    return {
        "node": status["node"],
        "standalone": status["standalone"],
        "leader": status["leader"],
        "ring_revision": status["ring"]["revision"],
        "rules": status["config"]["rules"],
        "nodes": [_node(member, status, by_name.get(member["id"])) for member in _members(status, by_name)],
        "flows": sum_of_flows(flow for figures in told for flow in figures.flows),
        "busiest": sum_of_hitters(hitter for figures in told for hitter in figures.busiest),
        "denied": sum_of_hitters(hitter for figures in told for hitter in figures.denied),
        # The leader hears all signals; each node knows the rest.
        "backends": {**told[0].backends, **leader.backends},
        "problems": [{"key": key, "error": error, "nodes": nodes} for (key, error), nodes in sorted(problems.items())],
        "seconds": sum_of_histories([figures.seconds for figures in told]),
    }


def _members(status: dict[str, Any], by_name: dict[str, Figures]) -> list[dict[str, Any]]:
    """Of the ring, and besides them those that answer: they join or leave."""
    members: list[dict[str, Any]] = sorted(status["ring"]["members"], key=lambda member: str(member["id"]))
    known = {member["id"] for member in members}
    others = sorted(by_name.keys() - known)
    return members + [{"id": name, "peer": "", "zone": None, "share": 0.0} for name in others]


def _node(member: dict[str, Any], status: dict[str, Any], figures: Figures | None) -> dict[str, Any]:
    """One row of the table of nodes; of a node that does not answer, what is known without it."""
    name = member["id"]
    row = {**member, "gone": name in status["gone"], "leads": name == status["leader"]}
    if figures is None:
        return {**row, "state": status["links"].get(name, "starting"), "answers": False}
    last = sum_of_seconds(figures.seconds[-1:])
    return {
        **row,
        "state": figures.state,
        "answers": True,
        "version": figures.version,
        "etcd": figures.etcd,
        "config_revision": figures.config_revision,
        "keys": figures.keys,
        "allowed": last.allowed,
        "denied": last.denied,
        "degraded": last.degraded,
        "forwarded": last.forwarded,
        "durations": figures.durations,
        "replication_lag_ms": figures.replication_lag_ms,
        "stall_ms": figures.stall_ms,
        "waiting_for": figures.waiting_for,
        "cut_off_from": sorted(peer for peer, state in figures.links.items() if state != "up"),
    }
