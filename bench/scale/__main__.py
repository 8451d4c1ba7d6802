"""The command: `./scripts/bench scale [--quick] [PART ...]`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bench import machine
from bench.run import REPORT, two_cores
from bench.scale import fleets, keys, report, rings, traffic, watchers
from bench.servers import Cores, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable


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
    """Parse the command line, run the parts asked for and write the report."""
    parser = argparse.ArgumentParser(prog="scripts/bench scale", description="How a limiter node and its fleet grow.")
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="small sizes: that it runs, no figures")
    parser.add_argument("--report", type=Path, default=REPORT, metavar="FOLDER", help="where to (default bench/report)")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    cores = two_cores()
    facts = machine.describe(seed=1)
    parts = options.parts or list(PARTS)
    facts["takes"] = "a minute or two" if options.quick else f"about {sum(PARTS[each].minutes for each in parts):g} min"
    machine.show(facts)
    os.sched_setaffinity(0, {cores.load})  # this process fills nodes; what it measures has the other core
    began_s = time.monotonic()
    results: dict[str, Any] = {"facts": facts, "parts": {}}
    try:
        for name in parts:
            print(f"{name}: {PARTS[name].title}")
            results["parts"][name] = PARTS[name].measure(cores, options.quick)
    except ServerError as failure:
        sys.exit(f"\n{failure}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    facts["takes"] = f"took {(time.monotonic() - began_s) / 60:.1f} minutes"
    report.write(json.loads(json.dumps(results)), options.report)
    print(f"written: {options.report}/scale.md, its pictures and scale.json; {facts['takes']}")


if __name__ == "__main__":
    main()
