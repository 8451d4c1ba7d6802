"""A backend's gate on one node: counts the checks for it, and turns some away when it can take no more.

Three things can turn away a check that its own limit has allowed, in this order: the fraction of its priority and the
rate (`ration`), which are decided for the whole fleet and published, and this node's own guard (`guard`), which needs
nobody. A published cut that is deeper than it is meant to stay carries its own end: without news it expires by this
node's own countdown.

Who is turned away is told when to come back: after a second times how many times too many there are, spread by half to
either side, so that those turned away together do not return together.

Invariants: offered >= wanted >= admitted, by priority. A healthy check costs a few additions (0.3 us).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.adaptive.evidence import PRIORITIES, Decision, Load, Policy
from limiter_node.core.adaptive.guard import RATIO_MIN, Guard
from limiter_node.core.adaptive.pulse import Fellows, Pulse
from limiter_node.core.adaptive.ration import Ration
from limiter_node.core.adaptive.sketch import LATENCY_MAX_MS, Sketch

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.adaptive.guard import Kind

NS = 1_000_000_000
RETRY_NS = NS
"""When to try again at the least pressure: the law decides about once a second."""

PRESSURE_MAX = 8.0
"""Longest wait, in RETRY_NS: past that people would rather have their error now."""

IN_FLIGHT_MIN = 0.01
"""Told where a guard acts and nothing is out: 0 says that there is no guard."""


class Gate:
    """One backend on one node. `jitter` is uniform in [0, 1)."""

    def __init__(self, policy: Policy, jitter: Callable[[], float]) -> None:
        # By priority, ever since; a metric each.
        self.offered = [0] * PRIORITIES
        self.wanted = [0] * PRIORITIES
        self.admitted = [0] * PRIORITIES  # in `observe`, those that would have been
        self.denied_by_priority = [0] * PRIORITIES  # by the fraction of it
        self.denied_by_rate = [0] * PRIORITIES
        self.denied_by_guard = [0] * PRIORITIES
        self.would_deny = 0  # in `observe` and for rules in shadow mode, for whatever cause
        self.reported_ns: int | None = None  # when an outcome was last reported here
        self.guard = Guard()
        self.ration = Ration()
        self.share = 1.0
        self.decision: Decision | None = None
        self._rate: float | None = None  # admitted for the whole backend, per second
        self._overruled = 0  # checks that were denied, and sent all the same
        self._jitter = jitter
        self._ends_ns: int | None = None  # when the pulse that is in force does
        self._is_free = True  # whether the guard alone is to be asked
        self._pressure = [1.0] * PRIORITIES  # wanted by admitted, over the last window
        self._window_ns: int | None = None  # when the present window began
        self._last = [[0] * PRIORITIES, [0] * PRIORITIES, [0] * PRIORITIES]  # counts when it did
        self._reported = dict.fromkeys(("ok", "refused", "failed", "timeout"), 0)  # outcomes, ever since
        self._last_reported = self._reported.copy()  # when the window began
        self._latency = Sketch({}, 0.0)
        self._fellows = Fellows()
        self._latencies_ms = 0.0  # the sum over all answers,
        self._squares_ms2 = 0.0  # and of their squares
        self.is_idle = True  # nothing came in the last window: there is no need to tell others
        self.set_policy(policy)

    def set_policy(self, policy: Policy) -> None:
        """Go over to another policy."""
        self._policy = policy
        self._is_on = policy.mode == "on"
        self.guard.objective_ms = policy.slo_ms
        self._refresh()

    def offer(self, priority: int) -> None:
        """Count a check, whether or not its own limit allows it; peeks excluded."""
        self.offered[priority] += 1

    def admit(self, priority: int, now_ns: int, *, is_shadow: bool = False) -> int:
        """Decide a check that its own limit has allowed: 0, or after how many nanoseconds to try again.

        One of a rule in shadow mode goes to the backend whatever is decided.
        """
        self.wanted[priority] += 1
        guard = self.guard
        if self._is_free and guard.out < guard.open_below:
            guard.out += 1
            self.admitted[priority] += 1
            return 0
        return self._weigh(priority, now_ns, is_binding=self._is_on and not is_shadow)

    def overrule(self) -> None:
        """A check that was denied goes to the backend all the same."""
        self._overruled += 1
        self.guard.out += 1

    @property
    def _sent(self) -> int:
        """Checks that the backend has really got."""
        return sum(self.admitted) + self._overruled

    def _weigh(self, priority: int, now_ns: int, *, is_binding: bool) -> int:
        guard, ration = self.guard, self.ration
        guard.step(self._sent, now_ns)
        if self._ends_ns is not None and now_ns >= self._ends_ns:
            self._ends_ns = None
            self._rate = self.decision.hold_rate if self.decision else None
            self._set_rate(now_ns)
        if self._policy.mode == "off":
            denied = None
        elif not ration.passes(priority):
            denied = self.denied_by_priority
        elif guard.refuses(priority, self._jitter(), now_ns):
            denied = self.denied_by_guard
        elif not ration.draw(priority, now_ns):
            denied = self.denied_by_rate
        else:
            denied = None
        if denied is None:
            self.admitted[priority] += 1
            guard.out += 1
            return 0
        denied[priority] += 1
        # In tight times whoever denies: there is more than gets in.
        if guard.is_tight or denied is self.denied_by_guard:
            guard.turned_away(now_ns)
        if not is_binding:
            self.would_deny += 1
            self.overrule()
        return round(RETRY_NS * self._pressure[priority] * (0.5 + self._jitter())) if self._is_on else 0

    def report(self, latency_ms: float | None, kind: Kind, count: int, now_ns: int) -> None:
        """Take outcomes reported at this node; a refusal without an answer ("error") has no latency.

        Latencies of more than a day count as a day: sums of them stay numbers.
        """
        if latency_ms is not None:
            latency_ms = min(latency_ms, LATENCY_MAX_MS)
        self._reported[kind] += count
        if latency_ms is not None and kind != "timeout":
            self._latency.add(latency_ms, count)
            if kind != "refused":
                self._latencies_ms += latency_ms * count
                self._squares_ms2 += latency_ms * latency_ms * count
        self.reported_ns = now_ns
        self.guard.report(latency_ms, kind, count, now_ns)
        self.guard.step(self._sent, now_ns)

    def pulse(self) -> Pulse:
        """What this node has to tell the others."""
        reported = self._reported
        return Pulse(
            sum(self.wanted),
            self._sent,
            reported["ok"] + reported["failed"],
            reported["refused"],
            reported["timeout"],
            self._latencies_ms,
            self._squares_ms2,
        )

    def hear(self, name: str, pulse: Pulse, now_ns: int) -> None:
        """Take what another node tells."""
        news = self._fellows.hear(name, pulse)
        if news is not None:
            self.guard.hear(news, now_ns)
            self.guard.step(self._sent, now_ns)

    def apply(self, decision: Decision | None, now_ns: int) -> None:
        """Go by what is published. The same again does not prolong a pulse."""
        if decision == self.decision:
            return
        self.decision = decision
        self._rate = decision.rate if decision else None
        self._ends_ns = None
        fractions = decision.priorities if decision else {}
        if decision and decision.expires_ms is not None and decision.hold_rate is not None:
            self._ends_ns = now_ns + decision.expires_ms * 1_000_000
        self.ration.set_fractions({int(name): fraction for name, fraction in fractions.items() if name.isdecimal()})
        self._set_rate(now_ns)

    def set_share(self, share: float, now_ns: int) -> None:
        """This node's share of the backend's admitted rate, 0 to 1."""
        self.share = share
        self._set_rate(now_ns)

    def _set_rate(self, now_ns: int) -> None:
        self.ration.set_rate(None if self._rate is None else self._rate * self.share, now_ns)
        self._refresh()

    def _refresh(self) -> None:
        self._is_free = self._policy.mode == "off" or (self.ration.is_open and self._ends_ns is None)

    def take_load(self, now_ns: int) -> Load:
        """What was counted since the last call; called about once a second, whether or not anybody wants to know."""
        self.guard.step(self._sent, now_ns)
        now = [self.offered.copy(), self.wanted.copy(), self.admitted.copy()]
        offered, wanted, admitted = (
            [count - before for count, before in zip(counts, last, strict=True)]
            for counts, last in zip(now, self._last, strict=True)
        )
        self._last = now
        self._pressure = [
            min(max(want / max(got, 1), 1.0), PRESSURE_MAX) for want, got in zip(wanted, admitted, strict=True)
        ]
        outcomes = {kind: count - self._last_reported[kind] for kind, count in self._reported.items()}
        self._last_reported = self._reported.copy()
        latency, self._latency = self._latency, Sketch({}, 0.0)
        span_ns = max(now_ns - self._window_ns, 1) if self._window_ns is not None else NS
        self._window_ns = now_ns
        self.guard.share = self._fellows.end_window(sum(wanted), span_ns / NS)
        self.is_idle = not (any(wanted) or any(outcomes.values()))
        return Load(
            span_ns=span_ns,
            nodes=1,
            offered=offered,
            wanted=wanted,
            admitted=admitted,
            completed=sum(outcomes.values()),
            refused=outcomes["refused"],
            failed=outcomes["failed"],
            timeouts=outcomes["timeout"],
            latency=latency,
            in_flight=self.in_flight,
        )

    # For metrics.

    @property
    def rate(self) -> float | None:
        """Checks per second admitted for the whole backend; None: no bound."""
        return self._rate

    @property
    def in_flight(self) -> float:
        """Of this node, checks admitted and not yet answered, as estimated; 0 where no guard acts."""
        guard = self.guard
        return max(guard.out * guard.share, IN_FLIGHT_MIN) if guard.is_on and guard.normal.ratio >= RATIO_MIN else 0.0

    @property
    def state(self) -> str:
        """In a word: off, open, rationed or guarded."""
        if self._policy.mode == "off":
            return "off"
        if self.guard.is_tight:
            return "guarded"
        return "open" if self.ration.is_open else "rationed"
