"""One run of a command: its parts one after the other, what fails of them, how long it took, and the report."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import machine
from bench.servers import ServerError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Collection, Mapping

REPORT = Path(__file__).with_name("report")


def add_arguments(parser: argparse.ArgumentParser, parts: Collection[str]) -> None:
    """Those that every command has."""
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="that it runs; its figures are worth nothing")
    parser.add_argument("--report", type=Path, metavar="FOLDER", help="where to (default: bench/report, if all is run)")


def parse(parser: argparse.ArgumentParser, parts: Collection[str]) -> argparse.Namespace:
    """The command line; a quick or partial run must not replace a report of everything, unless it is told where."""
    options = parser.parse_args()
    if unknown := set(options.parts) - set(parts):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    if options.report is None and not (options.quick or options.parts or getattr(options, "only", ())):
        options.report = REPORT
    options.parts = options.parts or list(parts)
    return options


def run(
    facts: dict[str, str],
    parts: Mapping[str, Callable[[], Any]],
    write: Callable[[dict[str, Any], Path], None],
    folder: Path | None,
) -> None:
    """Measure every part; one that fails leaves the others their figures, and the exit status is 1."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    machine.show(facts)
    began_s = time.monotonic()
    measured: dict[str, Any] = {}
    failed = []
    for name, measure in parts.items():
        try:
            measured[name] = measure()
        except ServerError as failure:
            failed.append(name)
            print(f"{name} failed: {failure}\n", flush=True)
        except KeyboardInterrupt:
            sys.exit(128 + signal.SIGINT)
    facts["takes"] = f"took {(time.monotonic() - began_s) / 60:.1f} minutes"
    if failed:
        facts["failed"] = ", ".join(failed)
    if folder is not None:
        # As it is read back: lists for tuples.
        write(json.loads(json.dumps({"facts": facts, "parts": measured})), folder)
        print(f"report written to {folder}; {facts['takes']}")
    sys.exit(bool(failed))
