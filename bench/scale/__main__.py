"""The command: `./scripts/bench scale [--quick] [PART ...]`."""

from __future__ import annotations

import argparse
import os
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import machine, session
from bench.run import two_cores
from bench.scale import fleets, keys, report, rings, traffic, watchers

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.servers import Cores


class Part(NamedTuple):
    """Something to measure; minutes as they are on a quiet machine."""

    title: str
    measure: Callable[[Cores, bool], list[dict[str, Any]]]
    minutes: float


PARTS = {
    "keys": Part(
        "many keys on one real node", lambda cores, is_quick: keys.measure(cores, is_quick=is_quick), minutes=9
    ),
    "fleets": Part("real nodes on one core", lambda cores, is_quick: fleets.measure(cores, is_quick=is_quick), 3),
    "traffic": Part(
        "simulated fleets, virtual time", lambda _, is_quick: traffic.measure(is_quick=is_quick), minutes=2
    ),
    "rings": Part("rings, computed", lambda _, is_quick: rings.measure(is_quick=is_quick), minutes=0.5),
    "watchers": Part(
        "a real etcd and many watches", lambda cores, is_quick: watchers.measure(cores, is_quick=is_quick), minutes=0.5
    ),
}


def main() -> None:
    """Parse the command line and run the parts asked for."""
    parser = argparse.ArgumentParser(prog="scripts/bench scale", description="How a limiter node and its fleet grow.")
    session.add_arguments(parser, PARTS)
    options = session.parse(parser, PARTS)
    cores = two_cores()
    facts = machine.describe(seed=1)
    minutes = sum(PARTS[part].minutes for part in options.parts)
    facts["takes"] = "a minute or two" if options.quick else f"about {minutes:g} minutes"
    os.sched_setaffinity(0, {cores.load})  # this process fills nodes; what it measures has the other core
    parts = {name: partial(_measure, name, cores, options.quick) for name in options.parts}
    session.run(facts, parts, report.write, options.report)


def _measure(name: str, cores: Cores, is_quick: bool) -> list[dict[str, Any]]:
    print(f"{name}: {PARTS[name].title}", flush=True)
    return PARTS[name].measure(cores, is_quick)


if __name__ == "__main__":
    main()
