"""Overloads a real backend and prints what came of it: `scripts/overload`."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tests.overload.report import HOW_TO_READ, notes, table, write
from tests.overload.scenario import WAYS, Plan
from tests.overload.stage import perform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.overload.record import Run


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(WAYS)),
    help="This way to overload; may be given several times.  [default: all three]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/tmp/limiter-overload"),
    show_default=True,
    help="Folder for report.md, and a picture and every second's figures of each overload.",
)
@click.option("--healthy", default=Plan().healthy_s, show_default=True, type=click.FloatRange(8, 300), help="Seconds.")
@click.option(
    "--overload", default=Plan().overload_s, show_default=True, type=click.FloatRange(6, 300), help="Seconds."
)
@click.option(
    "--recovery", default=Plan().recovery_s, show_default=True, type=click.FloatRange(4, 300), help="Seconds."
)
@click.option("--seed", default=Plan().seed, show_default=True, help="Of the arrivals and the service times.")
@click.option("--logs", type=click.Path(dir_okay=False, path_type=Path), help="Write the nodes' logs to this file.")
def main(
    only: Sequence[str], out: Path, healthy: float, overload: float, recovery: float, seed: int, logs: Path | None
) -> None:
    """Overload a real backend three ways, with and without the limiter, and show what came of it.

    Each way gets an etcd, three nodes, an nginx and two equal backends of its own, on free loopback ports. Both
    backends get the same open-loop requests of three segments; before one of them nginx asks the limiter, and the
    outcomes are reported to it. After a time of health the backends lose 60 % of their workers (capacity), or get 2.5
    times the demand (surge), or become 2.5 times slower and fail 30 % of the requests (slow); then all is well again.
    Nothing is left behind, after Ctrl-C neither. All three take under four minutes.

    \b
        ./scripts/overload                                 all three
        ./scripts/overload --only surge --overload 40      one, longer
        ./scripts/overload --seed 2 --out /tmp/second      other arrivals

    The machine must have time to spare (about half a core): a run says how late its clients were at worst.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell's background jobs ignore the latter
        signal.signal(number, signal.default_int_handler)
    plan = replace(Plan(), healthy_s=healthy, overload_s=overload, recovery_s=recovery, seed=seed)
    runs: list[Run] = []
    code = 0
    with contextlib.ExitStack() as stack:
        # The harness echoes every node's log to standard error, which would drown the progress.
        sink = stack.enter_context((logs or Path("/dev/null")).open("w"))
        try:
            for name in only or WAYS:
                way = WAYS[name]
                click.echo(
                    f"{name}: {way.title}, at {plan.demand_s * way.demand:.0f} requests per second"
                    f" where {plan.capacity_s(way.mode(plan)):.0f} can be done; {plan.total_s:.0f} s"
                )
                with contextlib.redirect_stderr(sink):
                    runs.append(perform(way, plan))
                click.echo(notes(runs[-1]))
        except KeyboardInterrupt:
            code = 130
    if runs:
        click.echo(f"\n{table(runs)}\n\n{HOW_TO_READ}")
        write(runs, out, facts(plan))
        click.echo(f"written to {out}: report.md, and .svg and .csv of each")
    sys.exit(code)


def facts(plan: Plan) -> str:
    """What was run where."""
    return (
        f"{time.strftime('%d %B %Y', time.gmtime())}, Python {platform.python_version()}, {os.cpu_count()} cores, load"
        f" {os.getloadavg()[0]:.1f}. Backend: {plan.workers} workers x {plan.service_ms:g} ms (log-normal, sigma"
        f" {plan.spread:g}) = {plan.capacity_s(plan.normal):.0f}/s; demand {plan.demand_s:.0f}/s; objective"
        f" {plan.slo_ms:g} ms; nginx gives up after {plan.timeout_s:g} s; {plan.healthy_s:g} s of health,"
        f" {plan.overload_s:g} s of overload, {plan.recovery_s:g} s of recovery; seed {plan.seed}."
    )


if __name__ == "__main__":
    main()
