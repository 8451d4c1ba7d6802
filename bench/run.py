"""The whole bench: measures the parts asked for, prints each figure beside its target, and writes the report.

python -m bench.run [--quick] [--only NAME] [--report FOLDER] [PART ...]
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import footprint, hot, latency, machine, memory, report, session, speed, workers
from bench.comparison import Plan
from bench.servers import Cores

if TYPE_CHECKING:
    from collections.abc import Callable


class Part(NamedTuple):
    """Something to measure."""

    measure: Callable[[Plan], dict[str, Any]]
    seconds: Callable[[Plan], float]  # about how long it takes


def measure_memory(plan: Plan) -> dict[str, Any]:
    """Bytes per key of a node, and that they are given back."""
    return memory.measure(quick=plan.is_quick, seed=plan.seed, cpu=plan.cores.server)


PARTS = {
    "local": Part(speed.compare_local, lambda plan: 15 + plan.closed_loop_s(len(speed.SYSTEMS) + 4)),
    "forwarded": Part(speed.compare_forwarded, lambda plan: 10 + plan.closed_loop_s(6)),
    "denied": Part(hot.compare_denied, lambda plan: 10 + plan.closed_loop_s(3)),
    "leases": Part(hot.compare_leases, lambda plan: 25 + plan.closed_loop_s(6)),
    "workers": Part(workers.compare, lambda plan: 16 + plan.closed_loop_s(10)),
    "latency": Part(
        latency.measure,
        lambda plan: 40 + latency.RUNS_ABOUT * (plan.seconds + 0.6) * min(plan.rounds, latency.ROUNDS_MAX),
    ),
    "memory": Part(measure_memory, lambda plan: 30 if plan.is_quick else 90),
    "footprint": Part(footprint.measure, lambda plan: 20 if plan.is_quick else 90),
}


def main() -> None:
    """Parse the command line and run the parts asked for."""
    options = _parse()
    plan = Plan(
        rounds=1 if options.quick else options.rounds,
        seconds=1 if options.quick else options.seconds,
        seed=options.seed,
        cores=two_cores(),
        is_quick=options.quick,
        only=tuple(options.only),
    )
    facts = machine.describe(options.seed)
    cores = f"what is measured on core {plan.cores.server}, load, etcd and Redis on core {plan.cores.load}"
    facts["runs"] = f"{plan.rounds} rounds of {plan.seconds} s, interleaved; {cores}"
    facts["takes"] = f"about {sum(PARTS[part].seconds(plan) for part in options.parts) / 60:.0f} minutes"
    session.run(
        facts, {part: partial(PARTS[part].measure, plan) for part in options.parts}, report.write, options.report
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="A limiter node beside what one would use instead: ratios, latencies, bytes."
    )
    session.add_arguments(parser, PARTS)
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="systems whose name has this in it")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (default 5)")
    parser.add_argument("--seconds", type=int, default=2, help="length of one run (default 2)")
    parser.add_argument("--seed", type=int, default=1, help="order of the keys (default 1)")
    return session.parse(parser, PARTS)


def two_cores() -> Cores:
    """The first two cores that this process may use; ends it where there are not two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        sys.exit("two cores are needed: one for the server, one for the load generator")
    return Cores(*cores[:2])


if __name__ == "__main__":
    main()
