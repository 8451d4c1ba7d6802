"""Runs seeds, or a scenario file, outside pytest: `scripts/simulate`."""

from __future__ import annotations

import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tests.sim import scenario as scenarios
from tests.sim.fleet import Failed, Report, run

if TYPE_CHECKING:
    from tests.sim.scenario import Scenario


class Range(click.ParamType[tuple[int, int]]):
    """LOW-HIGH, or one number for both."""

    name = "low-high"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        low, _, high = value.partition("-")
        try:
            bounds = int(low), int(high or low)
        except ValueError:
            self.fail(f"{value!r} is no range such as 3-9", param, ctx)
        if not 1 <= bounds[0] <= bounds[1] <= 60:
            self.fail(f"{value!r} is out of range; allowed: 1 to 60, low first", param, ctx)
        return bounds


GENERATORS = {
    "steady": scenarios.generate,
    "moving": scenarios.generate_moving,
    "atomic": scenarios.generate_atomic,
    "hot": scenarios.generate_hot,
}


def scenario_of(seed: int, *, file: Path | None, nodes: tuple[int, int], kind: str) -> Scenario:
    """What is to be run for a seed."""
    return scenarios.load(file) if file is not None else GENERATORS[kind](seed, *nodes)


def attempt(seed: int, *, file: Path | None, nodes: tuple[int, int], kind: str) -> tuple[int, Report | str]:
    """Run one seed; a failure comes back as its text."""
    try:
        return seed, run(scenario_of(seed, file=file, nodes=nodes, kind=kind), seed)
    except Failed as failed:
        return seed, str(failed)


@click.command()
@click.option("--seeds", default=200, show_default=True, help="How many seeds to run.")
@click.option("--start", default=0, show_default=True, help="The first of them.")
@click.option("--nodes", type=Range(), default="2-6", show_default=True, help="Least and most nodes in a fleet.")
@click.option("--scenario", "file", type=click.Path(exists=True, path_type=Path), help="Run this file instead.")
@click.option("--moving", "kind", flag_value="moving", help="Members come and go, too.")
@click.option("--atomic", "kind", flag_value="atomic", help="Atomic batches, and one node that fails in the middle.")
@click.option("--hot", "kind", flag_value="hot", help="Hot keys, tokens of which are lent.")
@click.option("--jobs", default=1, show_default=True, help="Processes that run at the same time.")
@click.option("--keep-going", is_flag=True, help="Do not stop at the first failure.")
@click.option("--dump", is_flag=True, help="Print the scenario of the first seed as a file, and run nothing.")
@click.option("--fingerprints", is_flag=True, help="Print a hash of each run's steps and nothing else.")
def main(
    seeds: int,
    start: int,
    nodes: tuple[int, int],
    file: Path | None,
    jobs: int,
    kind: str | None,
    *,
    keep_going: bool,
    dump: bool,
    fingerprints: bool,
) -> None:
    """Run simulated fleets in virtual time, one for each seed; a failure prints its seed and its last steps."""
    kind = kind or "steady"
    if dump:
        click.echo(scenarios.dump(scenario_of(start, file=file, nodes=nodes, kind=kind)), nl=False)
        return
    began_s = time.perf_counter()
    done, steps, failures, outcomes, partly_ms = 0, 0, [], Counter[str](), 0.0
    with ProcessPoolExecutor(jobs) as pool:
        work = partial(attempt, file=file, nodes=nodes, kind=kind)
        numbers = range(start, start + seeds)
        for seed, result in pool.map(work, numbers) if jobs > 1 else map(work, numbers):
            done += 1
            if isinstance(result, str):
                failures.append(seed)
                click.echo(result)
                if not keep_going:
                    pool.shutdown(cancel_futures=True)
                    break
            elif fingerprints:
                click.echo(f"{seed} {result.fingerprint}")
            else:
                steps += result.steps
                outcomes += result.outcomes
                partly_ms = max(partly_ms, result.partly_ms)
            if not fingerprints and (done % 50 == 0 or done == seeds):
                rate = done / (time.perf_counter() - began_s)
                click.echo(f"{done}/{seeds} seeds, {len(failures)} failed, {rate:.1f} seeds/s", err=True)
    if not fingerprints:
        told = ", ".join(f"{count:,} {name}" for name, count in outcomes.most_common())
        click.echo(f"{done} seeds from {start}: {len(failures)} failed, {steps:,} steps; outcomes: {told}")
        if kind == "atomic":
            click.echo(f"longest that a batch was spent at some of its keys only: {partly_ms:.1f} ms")
    if failures:
        what = (
            f"--scenario {file}" if file else f"--nodes {nodes[0]}-{nodes[1]}{'' if kind == 'steady' else f' --{kind}'}"
        )
        click.echo(f"again: ./scripts/simulate --start {failures[0]} --seeds 1 {what}")
        sys.exit(1)


if __name__ == "__main__":
    main()
