"""The five algorithms side by side on the same arrivals: what they grant, what a key costs, how long a decision takes.

No node and no network: each algorithm decides, one by one, the checks of four traces against a limit of 100 a minute.
Two figures a trace: all that was granted, in per cent of what the exact log grants; and the most that was granted
within any minute whatever, as a multiple of the limit. Bytes are those of the state of a key that is at its limit, in
the steps of 16 in which CPython allots them, without the key and its place in a dict. Nanoseconds are the median over
interleaved rounds of the processor time in which all traces are decided.

    python -m bench.algorithms [--quick] [--seed N]
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from dataclasses import dataclass
from math import pi, sin
from statistics import median
from typing import TYPE_CHECKING

from bench import machine
from limiter_node.core.algorithms import build
from limiter_node.core.algorithms.face import Wall
from limiter_node.core.algorithms.token_bucket import PPM
from limiter_node.core.limits import BUCKETS, WINDOWS, Limit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from limiter_node.core.algorithms.face import Algorithm, State

COUNT = 100
PERIOD_S = 60
PERIOD_NS = PERIOD_S * 1_000_000_000
# Windows of the wall begin with whole minutes; clocks of nodes do not.
START_NS = 1_000 * PERIOD_NS

ALGORITHMS = (*BUCKETS, *WINDOWS)
EXACT = "sliding_log"
MINUTES = 24 * 60
MINUTES_QUICK = 60
ROUNDS = 5


def steady(minutes: int, chance: random.Random) -> Iterator[int]:
    """A fifth more than the limit, each check where its turn is, within its part of the minute."""
    part_ns = PERIOD_NS * 5 // (COUNT * 6)
    for index in range(minutes * COUNT * 6 // 5):
        yield index * part_ns + chance.randrange(part_ns)


def bursty(minutes: int, chance: random.Random) -> Iterator[int]:
    """Bursts of up to twice the limit within a second, one a minute and a half on average: three quarters of it."""
    now_ns = 0
    while (now_ns := now_ns + int(chance.expovariate(2 / 3) * PERIOD_NS)) < minutes * PERIOD_NS:
        yield from (now_ns + chance.randrange(10**9) for _ in range(chance.randint(1, 2 * COUNT)))


def edge_attack(minutes: int, chance: random.Random) -> Iterator[int]:
    """At the edge of every other minute, twice the limit in the second before and twice in the second after."""
    for minute in range(1, minutes, 2):
        yield from (minute * PERIOD_NS + chance.randrange(-(10**9), 10**9) for _ in range(4 * COUNT))


def diurnal(minutes: int, chance: random.Random) -> Iterator[int]:
    """By chance, at a rate that swings between a tenth of the limit and nearly two limits once in the trace."""
    now_ns = 0.0
    while now_ns < minutes * PERIOD_NS:
        rate = COUNT * (1 - 0.9 * sin(2 * pi * now_ns / (minutes * PERIOD_NS))) / PERIOD_NS
        now_ns += chance.expovariate(rate)
        yield int(now_ns)


TRACES = {"steady": steady, "bursty": bursty, "edge attack": edge_attack, "diurnal": diurnal}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one algorithm did with one trace."""

    granted: int
    most: int  # in any period
    ns: int  # in all


Outcomes = dict[tuple[str, str], list[Outcome]]
"""By algorithm and trace, one a round."""


def algorithm_of(name: str) -> Algorithm:
    """A limit of COUNT a minute, on a node whose clock shows what the wall does."""
    return build(Limit(f"{COUNT}/m", COUNT, PERIOD_S, COUNT, name), PPM, 1, START_NS, Wall())


def decide(name: str, arrivals: list[int]) -> Outcome:
    """Decide all checks of a trace."""
    algorithm = algorithm_of(name)
    state: State | None = None
    allowed = []
    since_ns = time.thread_time_ns()
    for now_ns in arrivals:
        decision = algorithm.decide(state, 1, now_ns)
        state = decision.state
        allowed.append(decision.allowed)
    took_ns = time.thread_time_ns() - since_ns
    grants = [now_ns for now_ns, was_allowed in zip(arrivals, allowed, strict=True) if was_allowed]
    return Outcome(len(grants), most_in_a_period(grants), took_ns)


def most_in_a_period(grants: list[int]) -> int:
    """The most grants in any stretch of a period, its end not included."""
    most = first = 0
    for last, now_ns in enumerate(grants):
        while now_ns - grants[first] >= PERIOD_NS:
            first += 1
        most = max(most, last - first + 1)
    return most


def bytes_per_key(name: str) -> int:
    """What the state of a key takes that has spent its limit, token by token, within half a period."""
    algorithm = algorithm_of(name)
    state: State | None = None
    for index in range(COUNT):
        state = algorithm.decide(state, 1, START_NS + index * PERIOD_NS // (2 * COUNT)).state
    return -(-sys.getsizeof(state) // 16) * 16


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="The five algorithms on the same arrivals.")
    parser.add_argument("--quick", action="store_true", help="an hour instead of a day, one round")
    parser.add_argument("--seed", type=int, default=1, help="of the arrivals (default 1)")
    options = parser.parse_args()
    machine.show(machine.describe(options.seed))
    minutes, rounds = (MINUTES_QUICK, 1) if options.quick else (MINUTES, ROUNDS)
    traces = {
        title: sorted(START_NS + arrival_ns for arrival_ns in arrivals(minutes, random.Random(options.seed)))
        for title, arrivals in TRACES.items()
    }
    outcomes: Outcomes = {(name, title): [] for name in ALGORITHMS for title in traces}
    for _ in range(rounds):
        for (name, title), taken in outcomes.items():
            taken.append(decide(name, traces[title]))
    checks = sum(map(len, traces.values()))
    show(outcomes, checks, minutes)


def show(outcomes: Outcomes, checks: int, minutes: int) -> None:
    """Print what came out, a row for each algorithm."""
    print(f"{COUNT} tokens a minute, burst {COUNT}; {checks:,} checks in {minutes} minutes of four traces")
    print("grants in per cent of the exact log's, and the most in any minute as a multiple of the limit\n")
    heads = (f"{title:>18}" for title in TRACES)
    print(f"{'':<16}{''.join(heads)}{'bytes a key':>14}{'ns a decision':>16}")
    for name in ALGORITHMS:
        cells = []
        for title in TRACES:
            outcome, exact = outcomes[name, title][0], outcomes[EXACT, title][0]
            cells.append(f"{100 * outcome.granted / exact.granted:>9.1f} %{outcome.most / COUNT:>5.2f} x")
        rounds = zip(*(outcomes[name, title] for title in TRACES), strict=True)
        ns = median(sum(outcome.ns for outcome in outcomes_) for outcomes_ in rounds) / checks
        print(f"{name:<16}{''.join(cells)}{bytes_per_key(name):>14}{ns:>16.0f}", flush=True)
    print(
        "\ndoes not show: the table that keys are kept in, the way there, and a token bucket that is a rule's only"
        "\nlimit, which takes a shorter path; what is over the log's grants in a bucket is its burst, which refills"
    )


if __name__ == "__main__":
    main()
