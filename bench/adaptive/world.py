"""The event loop that joins clients, a controller and a backend, in virtual time.

Events are tuples of numbers in one heap, so that equal times are ordered without chance. Clients that give up are found
by a look at the oldest waiting request every 10 ms: as all wait equally long, no event of their own is needed.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from random import Random
from typing import TYPE_CHECKING, Literal, Protocol

from bench.adaptive.plant import DONE, REFUSED, Event, Plant
from bench.adaptive.scenario import PRIORITIES, Scenario, Steps
from bench.adaptive.trace import SEGMENTS, Trace

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.adaptive.clients import Stream

CALL = 2
RETRY = 3
SWEEP_S = 0.01

Outcome = Literal["ok", "refused", "failed", "timeout"]


class Controller(Protocol):
    """What decides who gets through. Times are the world's."""

    def start(self, world: World) -> None:
        """Before anything happens; `world.every` and `world.at` arrange for more."""

    def admit(self, node: int, priority: int, user: int, now_s: float) -> bool:
        """Whether a request gets through."""

    def report(self, node: int, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """How an admitted request ended; no latency where the client gave up."""


class World:
    """One run: `World(stream, controller).run()`."""

    def __init__(self, stream: Stream, controller: Controller) -> None:
        self.scenario: Scenario = stream.scenario
        self.seed = stream.seed
        self.trace = Trace.of(self.scenario)
        self._events: list[Event] = []
        # Copies: retries are appended.
        self._sent_s = stream.times.copy()
        self._segments = stream.segments.copy()
        self._users = stream.users.copy()
        self._nodes = stream.nodes.copy()
        self._luck = stream.luck.copy()
        self._work_s = stream.work_s.copy()
        self._attempts = [0] * len(stream.times)
        self._is_over = bytearray(len(stream.times))
        self._arrivals = len(stream.times)
        scenario = self.scenario
        self.plant = Plant(scenario.servers, scenario.queue_max, self._events, self._sent_s, self._work_s)
        self._waiting: deque[int] = deque()
        self._calls: list[Callable[[float], None]] = []
        self._errors = 0.0
        self._chance = Random(f"retries {stream.seed}")
        self._controller = controller
        self._follow(scenario.capacity, self._resize)
        self._follow(scenario.speed, self._slow)
        self._follow(scenario.errors, self._fail)
        self.every(SWEEP_S, self._give_up)
        controller.start(self)

    def at(self, at_s: float, call: Callable[[float], None]) -> None:
        """Call once."""
        self._calls.append(call)
        heappush(self._events, (at_s, CALL, len(self._calls) - 1))

    def every(self, period_s: float, call: Callable[[float], None], *, first_s: float = 0.0) -> None:
        """Call again and again."""
        number = len(self._calls)

        def again(now_s: float) -> None:
            call(now_s)
            heappush(self._events, (now_s + period_s, CALL, number))

        self.at(first_s, again)

    def run(self) -> Trace:
        """Go through all that happens; returns what was written down."""
        events, sent_s, pop = self._events, self._sent_s, heappop
        arrive, finish, calls = self._arrive, self._finish, self._calls
        end_s, count, number = self.scenario.duration_s, self._arrivals, 0
        arrival_s = sent_s[0]
        while True:
            if arrival_s <= events[0][0]:
                arrive(number, arrival_s)
                number += 1
                arrival_s = sent_s[number] if number < count else end_s + 1
                continue
            now_s, what, which = pop(events)
            if now_s > end_s:
                return self.trace
            if what == DONE:
                finish(which, now_s)
            elif what == CALL:
                calls[which](now_s)
            elif what == REFUSED:
                self._settle(which, now_s - sent_s[which], "refused", now_s)
            else:
                arrive(which, now_s)

    def _arrive(self, number: int, now_s: float) -> None:
        segment, user, trace = self._segments[number], self._users[number], self.trace
        place = int(now_s) * SEGMENTS + segment
        trace.offered[place] += 1
        if not self._attempts[number]:
            trace.asked[place] += 1
        scenario = self.scenario
        if scenario.onset_s <= now_s < scenario.end_s:
            trace.user_offered[user] += 1
        if self._controller.admit(self._nodes[number], PRIORITIES[segment], user, now_s):
            trace.admitted[place] += 1
            self._waiting.append(number)
            self.plant.take(number, now_s)
        elif scenario.retries:
            self._retry(number, now_s)

    def _finish(self, number: int, now_s: float) -> None:
        self.plant.finish(now_s)
        if self._is_over[number]:
            return
        latency_s = now_s - self._sent_s[number]
        if latency_s > self.scenario.timeout_s:
            self._settle(number, None, "timeout", now_s)
        elif self._luck[number] < self._errors:
            self._settle(number, latency_s, self.scenario.errors_are, now_s)
        else:
            self._settle(number, latency_s, "ok", now_s)

    def _settle(self, number: int, latency_s: float | None, outcome: Outcome, now_s: float) -> None:
        """Tell the controller and write down how an admitted request ended for its client."""
        self._is_over[number] = 1
        scenario, trace, sent_s = self.scenario, self.trace, self._sent_s[number]
        self._controller.report(self._nodes[number], latency_s, outcome, now_s)
        is_cause = scenario.onset_s <= sent_s < scenario.end_s
        if is_cause:
            trace.latencies_s.append(scenario.timeout_s if latency_s is None else latency_s)
        if outcome == "ok":
            if latency_s is not None and latency_s <= scenario.slo_s:
                trace.good[int(sent_s) * SEGMENTS + self._segments[number]] += 1
                trace.user_good[self._users[number]] += is_cause
        elif scenario.retries:
            self._retry(number, now_s)

    def _retry(self, number: int, now_s: float) -> None:
        """Clients come back after failures and denials alike, and heed no Retry-After: the worst that they do."""
        attempt = self._attempts[number] + 1
        if attempt > self.scenario.retries:
            return
        wait_s = self.scenario.backoff_s * 2 ** (attempt - 1) * (0.5 + self._chance.random())
        self._sent_s.append(now_s + wait_s)
        for column in (self._segments, self._users, self._nodes):
            column.append(column[number])
        self._luck.append(self._chance.random())
        self._work_s.append(self._work_s[number])
        self._attempts.append(attempt)
        self._is_over.append(0)
        heappush(self._events, (now_s + wait_s, RETRY, len(self._sent_s) - 1))

    def _give_up(self, now_s: float) -> None:
        waiting, is_over, before_s = self._waiting, self._is_over, now_s - self.scenario.timeout_s
        while waiting and self._sent_s[waiting[0]] <= before_s:
            number = waiting.popleft()
            if not is_over[number]:
                self._settle(number, None, "timeout", now_s)

    def _follow(self, steps: Steps, change: Callable[[float, float], None]) -> None:
        for since_s, value in steps:
            self.at(since_s, lambda now_s, value=value: change(value, now_s))  # type: ignore[misc]  # bound early

    def _resize(self, factor: float, now_s: float) -> None:
        self.plant.resize(max(1, round(self.scenario.servers * factor)), now_s)

    def _slow(self, factor: float, now_s: float) -> None:
        self.plant.slowness = factor

    def _fail(self, fraction: float, now_s: float) -> None:
        self._errors = fraction
