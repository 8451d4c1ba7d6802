"""Runs cases one after the other and prints what came of them: `scripts/chaos`."""

from __future__ import annotations

import contextlib
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tests.chaos.catalogue import CASES, NEED_ROOT, run
from tests.chaos.report import Options, Report, table

if TYPE_CHECKING:
    from collections.abc import Sequence


def _show(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        width = max(map(len, CASES))
        for name, case in CASES.items():
            needs = "  [root]" if name in NEED_ROOT else ""
            click.echo(f"{name.ljust(width)}  {(case.__doc__ or '').strip()}{needs}")
        context.exit()


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_show, help="List the cases.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(list(CASES)),
    metavar="NAME",
    help="Run this case; may be given several times.  [default: all]",
)
@click.option(
    "--seconds",
    default=Options().hold_s,
    show_default=True,
    type=click.FloatRange(2, 60),
    help="How long a fault lasts, or is watched, where the promise names no length.",
)
@click.option(
    "--rate",
    default=Options().rate_per_s,
    show_default=True,
    type=click.FloatRange(20, 2000),
    help="Checks per second of each load; most cases run two.",
)
@click.option(
    "--keys",
    default=Options().keys,
    show_default=True,
    type=click.IntRange(1_000, 1_000_000),
    help="Keys that have been spent when a node joins.",
)
@click.option(
    "--kills",
    default=Options().kills,
    show_default=True,
    type=click.IntRange(1, 1_000),
    help="Nodes killed in the middle of atomic batches.",
)
@click.option("--logs", type=click.Path(dir_okay=False, path_type=Path), help="Write the nodes' logs to this file.")
def main(only: Sequence[str], seconds: float, rate: float, keys: int, kills: int, logs: Path | None) -> None:
    """Hurt real fleets on this machine, under load, and hold them to what is promised.

    Each case starts an etcd and nodes of its own on free loopback ports, sends checks at a steady rate whether or not
    they are answered, does the harm, and counts. Cases with cut or slow links make network namespaces of their own;
    they need root, and are skipped without. Nothing is left behind, after Ctrl-C neither. All cases take four to
    five minutes.

    \b
        ./scripts/chaos                                  every case
        ./scripts/chaos --only killed --only rolled      these two
        ./scripts/chaos --only joined --keys 1000000     a larger move

    The table's columns: checks sent by the loads; failed (no answer within 5 s, an error, or denied since nobody could
    be asked); degraded (not decided by the key's owner or its replica); the longest time that any key went without a
    good answer, or a check waited; tokens granted beyond the limit at the key where that is worst, and how many are
    allowed there. Exit status 1 when a promise was broken.
    """
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell's background jobs ignore the latter
        signal.signal(number, signal.default_int_handler)
    options = Options(rate_per_s=rate, hold_s=seconds, keys=keys, kills=kills)
    reports: list[Report] = []
    code = 0
    with contextlib.ExitStack() as stack:
        # The harness echoes every node's log to standard error, which would drown the progress.
        sink = stack.enter_context((logs or Path("/dev/null")).open("w"))
        try:
            for name in only or CASES:
                began_s = time.monotonic()
                click.echo(f"{name}: {(CASES[name].__doc__ or '').strip()}")
                reports.append(Report(name, progress=click.echo))
                with contextlib.redirect_stderr(sink):
                    run(name, options, reports[-1])
                click.echo(f"{name}: {reports[-1].verdict}, {time.monotonic() - began_s:.0f} s")
        except KeyboardInterrupt:
            reports[-1].skipped = "interrupted"
            code = 130
    click.echo("\n" + table(reports))
    sys.exit(code or int(any(report.broken for report in reports)))


if __name__ == "__main__":
    main()
