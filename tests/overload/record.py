"""What is seen in a run: by the clients, and what every node says of the backend several times a second."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import aiohttp

from tests.overload.scenario import BACKEND

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tests.overload.clients import Shot
    from tests.overload.scenario import Plan, Way

SAMPLE_S = 0.2
STATUS_S_MAX = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What a node says of the backend at a time."""

    at_s: float
    node: str
    multiplier: float
    state: str
    gate: dict[str, Any]
    rate: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class Run:
    """All that was seen."""

    way: Way
    plan: Plan
    shots: list[Shot]
    samples: list[Sample]
    denied: dict[str, dict[str, int]]  # checks that were turned away, by cause and segment
    reporter_said: str


async def watch(admins: Mapping[str, str], now_s: Callable[[], float], samples: list[Sample]) -> None:
    """Ask the nodes, {name: admin address}, until cancelled."""
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=STATUS_S_MAX)) as http:

        async def ask(node: str, admin: str) -> None:
            try:
                async with http.get(f"http://{admin}/v1/status") as answer:
                    stands = (await answer.json())["backends"][BACKEND]
            except (aiohttp.ClientError, TimeoutError):
                return  # a sample less
            known = {name: stands[name] for name in ("multiplier", "state", "gate", "rate", "reason")}
            samples.append(Sample(now_s(), node, **known))

        turn = 0
        while True:
            await asyncio.sleep(max(turn * SAMPLE_S - now_s(), 0))
            await asyncio.gather(*(ask(node, admin) for node, admin in admins.items()))
            turn += 1
