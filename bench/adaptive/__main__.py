"""The laboratory's command: python -m bench.adaptive, or scripts/lab."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path

import click

from bench.adaptive import plots, report
from bench.adaptive.controllers import GUARD_ONLY, OURS, names
from bench.adaptive.fitting import FITTING
from bench.adaptive.judged import JUDGED
from bench.adaptive.runs import run_all, run_one
from bench.adaptive.tuning import tune

FOLDER = Path(__file__).parent / "report"
SETS = {"fitting": FITTING, "judged": JUDGED}
FIRST_SEED = {"fitting": 0, "judged": 500}
LAW = "limiter_node/core/adaptive"
PEER_SEEDS_PART = 5
"""Peers run a fifth of the seeds of ours, and the best one as many: what differs by more than that needs no more."""

CHAMPIONS = ("Breakwater, tuned", "AIMD, tuned", "Breakwater, at nodes")
"""The best on the fitting set: as many seeds as ours."""

QUICK_CONTROLLERS = (OURS, GUARD_ONLY, *CHAMPIONS, "Gradient2", "BBR")


def say(words: str) -> None:
    """Progress."""
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)


def seeds_by_controller(chosen: tuple[str, ...], first: int, seeds: int) -> dict[str, range]:
    """Which seeds each controller runs."""
    fewer = max(2, seeds // PEER_SEEDS_PART)
    return {name: range(first, first + (seeds if name in (OURS, *CHAMPIONS) else min(seeds, fewer))) for name in chosen}


@click.command()
@click.option("--set", "which", type=click.Choice(["fitting", "judged", "all"]), default="all", show_default=True)
@click.option("--seeds", default=20, show_default=True, help="Paired seeds of ours and the best peers; others a fifth.")
@click.option("--jobs", default=1, show_default=True, help="Processes that run at the same time.")
@click.option("--quick", is_flag=True, help="Two seeds and seven controllers.")
@click.option("--scenario", help="Run this one, with --controller, and draw it.")
@click.option("--controller", default=OURS, show_default=True, help="One of --list.")
@click.option("--seed", default=0, show_default=True, help="Of the one run.")
@click.option("--list", "list_all", is_flag=True, help="Name scenarios and controllers.")
@click.option("--tune", "tune_peers", is_flag=True, help="Pick the peers' parameters on the fitting set.")
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, help="Where the report goes.")
def main(
    which: str,
    seeds: int,
    jobs: int,
    scenario: str | None,
    controller: str,
    seed: int,
    out: Path,
    *,
    quick: bool,
    list_all: bool,
    tune_peers: bool,
) -> None:
    """Run scenarios under every controller in virtual time, and write a report: tables and pictures."""
    if list_all:
        for title, scenarios in SETS.items():
            click.echo(f"{title}: " + "; ".join(one.name for one in scenarios))
        click.echo("controllers: " + "; ".join(names()))
    elif tune_peers:
        click.echo(tune(jobs, say))
    elif scenario is not None:
        draw(scenario, controller, seed, out)
    else:
        chosen = QUICK_CONTROLLERS if quick else tuple(names())
        count = 2 if quick else seeds
        for title in SETS if which == "all" else (which,):
            run_set(title, chosen, count, jobs, out)


def run_set(title: str, chosen: tuple[str, ...], seeds: int, jobs: int, out: Path) -> None:
    """Run one set and write its part."""
    by_controller = seeds_by_controller(chosen, FIRST_SEED[title], seeds)
    results = run_all(SETS[title], by_controller, jobs, say)
    report.write(results, chosen, out, facts(title, seeds), title)


def facts(title: str, seeds: int) -> dict[str, str]:
    """What a part of the report says of itself."""
    command = shlex.join(["python", "-m", "bench.adaptive", *sys.argv[1:]])
    fewer, most = max(2, seeds // PEER_SEEDS_PART), f"ours and {' and '.join(CHAMPIONS)}"
    return {
        "command": f"`{command}`",
        "seeds": f"{seeds} for {most}, from {FIRST_SEED[title]} on; the first {fewer} of them "
        "for the other peers, the controls and the variants of ours",
        "the law": f"{revisions()} commits to `{LAW}`, the last {last_commit()}",
        "peers": "at published defaults, and tuned on nine scenarios of the fitting set (`--tune`), each in its place",
    }


def draw(scenario: str, controller: str, seed: int, out: Path) -> None:
    """One run: a picture and its figures."""
    found = next((one for one in (*FITTING, *JUDGED) if one.name == scenario), None)
    if found is None or controller not in names():
        raise click.UsageError("no such scenario or controller; --list names them")
    figure = run_one(found, controller, seed)
    series = {"offered": figure.offered_s, "admitted": figure.admitted_s, "good": figure.good_s}
    picture = plots.lines(f"{scenario}: {controller}, seed {seed}", series, shaded=(found.onset_s, found.end_s))
    out.mkdir(parents=True, exist_ok=True)
    (out / "run.svg").write_text(picture)
    click.echo(f"goodput {figure.goodput:.1f}/s, premium {figure.premium:.3f}, p99 {figure.p99_s * 1e3:.0f} ms")
    click.echo(f"good by second: {' '.join(map(str, figure.good_s))}")
    click.echo(f"drawn in {out / 'run.svg'}")


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()


def revisions() -> int:
    """How often the law was changed."""
    return len(_git("log", "--no-merges", "--format=%h", "--", LAW).splitlines())


def last_commit() -> str:
    """The last change of it."""
    return _git("log", "-1", "--no-merges", "--format=%h", "--", LAW) or "unknown"


if __name__ == "__main__":
    main()
