"""The demo's second act: a backend is drowned, with and without the limiter in front of it, live.

Two equal backends get the same requests, about 58 a second of three segments, through the same nginx; one of the two
sits behind the limiter. After a while both lose 60 % of their workers. A plot on the screen shows each second what was
asked and what was answered well; a picture is written at the end. The parts are those of `tests/overload`.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from tests.overload.clients import Clients, arrivals
from tests.overload.figures import is_good
from tests.overload.front import SIDES
from tests.overload.record import Run, Sample, watch
from tests.overload.report import drawing
from tests.overload.scenario import SHARES, WAYS, Mode, Plan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import aiohttp

PLAN = Plan(healthy_s=10, overload_s=15, recovery_s=15)
WAY = WAYS["capacity"]

BLOCKS = " ▁▂▃▄▅▆▇█"
ROWS = 3  # of each bar chart
LABEL = 22  # characters
SETTLED_S = PLAN.slo_ms / 1e3
"""After so long nothing that was asked in a second can become good any more."""


def bars(values: Sequence[float], top: float) -> list[str]:
    """Draw values as columns of block characters, ROWS lines high."""
    steps = len(BLOCKS) - 1
    heights = [round(min(value / top, 1.0) * ROWS * steps) for value in values]
    return [
        "".join(BLOCKS[min(max(height - row * steps, 0), steps)] for height in heights) for row in reversed(range(ROWS))
    ]


class Act:
    """Plays it once; `backends` and `admins` are addresses, `front` is nginx's."""

    def __init__(self, http: aiohttp.ClientSession, front: str, backends: Sequence[str], admins: Sequence[str]) -> None:
        self._http = http
        self._backends = backends
        self._admins: Mapping[str, str] = {f"node-{number}": admin for number, admin in enumerate(admins, start=1)}
        self._urls = {side: f"http://{front}{path}" for side, path in SIDES.items()}
        self._samples: list[Sample] = []
        self._drawn = 0  # lines on the screen, to be drawn over

    async def play(self, picture: Path) -> Run:
        """Play to the end, show it, and write the picture."""
        clients = Clients(self._urls, asyncio.get_running_loop().time())
        run = Run(WAY, PLAN, clients.shots, self._samples, denied={}, reporter_said="")
        others = [
            asyncio.create_task(watch(self._admins, clients.now_s, self._samples)),
            asyncio.create_task(self._turn(clients)),
            asyncio.create_task(self._show(clients, run)),
        ]
        try:
            due = arrivals(lambda now_s: WAY.demand_s(PLAN, now_s), PLAN.total_s, PLAN.seed)
            sending = asyncio.create_task(clients.send(due))
            others.append(sending)
            await asyncio.gather(*others[1:])
        finally:
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
        await asyncio.to_thread(picture.write_text, drawing(run))
        return run

    async def _turn(self, clients: Clients) -> None:
        for at_s, mode in ((PLAN.overload_from_s, WAY.mode(PLAN)), (PLAN.overload_until_s, PLAN.normal)):
            await asyncio.sleep(at_s - clients.now_s())
            await self._set(mode)

    async def _set(self, mode: Mode) -> None:
        for backend in self._backends:
            async with self._http.put(f"http://{backend}/control", json=asdict(mode)) as answer:
                answer.raise_for_status()

    async def _show(self, clients: Clients, run: Run) -> None:
        """Draw every second what is settled."""
        columns: dict[str, list[float]] = {"asked": [], **{f"good {side}": [] for side in SIDES}}
        multipliers: list[float] = []
        for second in range(int(PLAN.total_s)):
            await asyncio.sleep(second + 1 + SETTLED_S - clients.now_s())
            due = [shot for shot in clients.shots if second <= shot.due_s < second + 1]
            # Those that wait for an answer still are not among the shots, and asked all the same.
            columns["asked"].append(clients.sent[second])
            for side in SIDES:
                columns[f"good {side}"].append(sum(is_good(shot, run) for shot in due if shot.side == side))
            multipliers.append(min((sample.multiplier for sample in self._samples[-len(self._admins) :]), default=1.0))
            self._draw(second, columns, multipliers)

    def _draw(self, second: int, columns: Mapping[str, Sequence[float]], multipliers: Sequence[float]) -> None:
        is_overload = PLAN.overload_from_s <= second < PLAN.overload_until_s
        mood = f"overload: {WAY.title}" if is_overload else "all is well"
        latest = {name: f"{values[-1]:.0f}/s" for name, values in columns.items()} | {
            "multiplier": f"{multipliers[-1]:.2f}"
        }
        if not sys.stdout.isatty():
            self._say([f"  {second + 1:>3} s  " + "  ".join(f"{name} {value}" for name, value in latest.items())])
            return
        top = max(columns["asked"]) * 1.1
        lines = [f"  {second + 1:>3} s of {PLAN.total_s:.0f}, {mood}"]
        for name, values in [*columns.items(), ("multiplier", multipliers)]:
            drawn = bars(values, 1.0 if name == "multiplier" else top)
            lines += [f"  {'':{LABEL}}{row}" for row in drawn[:-1]]
            lines.append(f"  {f'{name}  {latest[name]}':{LABEL}}{drawn[-1]}")
        if self._drawn:
            sys.stdout.write(f"\x1b[{self._drawn}F\x1b[J")
        self._drawn = len(lines)
        self._say(lines)

    def _say(self, lines: Sequence[str]) -> None:
        sys.stdout.write("\n".join(lines) + "\n")
        sys.stdout.flush()


def summary(run: Run) -> list[str]:
    """Say in a line for each side what became of the requests of the overload."""
    lines = []
    for side in SIDES:
        due = [
            shot
            for shot in run.shots
            if shot.side == side and PLAN.overload_from_s <= shot.due_s < PLAN.overload_until_s
        ]
        parts = []
        for name in SHARES:
            mine = [shot for shot in due if shot.segment == name]
            parts.append(f"{name} {sum(is_good(shot, run) for shot in mine) / max(len(mine), 1):.0%}")
        rate = sum(is_good(shot, run) for shot in due) / PLAN.overload_s
        lines.append(
            f"  {side:<8} {rate:4.0f} of {WAY.possible_s(PLAN):.0f} good answers a second that the backend can give: "
            + ", ".join(parts)
        )
    return lines
