"""The report: report.md and its pictures, the same for the same command."""

from __future__ import annotations

from statistics import fmean
from typing import TYPE_CHECKING

from bench.adaptive import plots
from bench.adaptive.controllers import CONTROLS, GUARD_ONLY, ONE_NODE, OURS, REFERENCE
from bench.adaptive.summary import Overall, overall, row, targets

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from bench.adaptive.metrics import Figures
    from bench.adaptive.runs import Results

HOW_TO_READ = """\
Goodput is answers well within the objective per second of the cause, by that of the reference: the best of a sweep of
fixed limits for the scenario, with priorities. It knows what no law knows, but is no bound: ratios may exceed 1.
Peers stand at one gate that sees everything and hear of outcomes at once; ours are nodes (8 unless the scenario says
otherwise) and outcomes come back to any of them, 20 to 40 ms later. In scenarios of the family "nodes" peers stand on
each node, and those "at nodes", which were tuned for it, always: each gate sees what its node admits, and hears of
that as late as ours do. Losses of signals and of leaders, and late publishes, touch ours alone. No key is at its own
limit: the multiplier itself is not felt, the rate, the fractions and the guards are. Where a scenario has no cause
the figures are of its middle third. A target is met where every scenario meets it, as the mean over its seeds, or the
bound that the yardstick names for the worst; means over scenarios are said beside. What throttling in health costs is
what is answered well with all admitted, less what is answered well, of what is offered: near the capacity it may be
less than 0.
"""


def write(results: Results, controllers: Sequence[str], folder: Path, facts: dict[str, str], title: str) -> None:
    """Write a part of the report: a set's tables and pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [one for name in (*controllers, REFERENCE) if (one := overall(results, name))]
    parts = [f"# Adaptive throttling, {title} set\n", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    parts += [HOW_TO_READ, "## Targets (ours)\n", _targets(results, found)]
    parts += ["## Over all overloads\n", _overall(found)]
    pictures = _pictures(results, found, folder, title)
    parts += [f"![mean goodput]({title}-goodput.svg)\n"]
    parts += ["## By scenario: goodput to the reference\n", _matrix(results, controllers)]
    parts += ["## Ours by scenario\n", _details(results, OURS)]
    parts += ["## Ours without a leader (guards only)\n", _details(results, GUARD_ONLY)]
    parts += ["## Over time\n", *(f"![{name}]({name})\n" for name in pictures)]
    (folder / f"{title}.md").write_text("\n".join(part for part in parts if part is not None))


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows), ""])


def _targets(results: Results, found: Sequence[Overall]) -> str:
    others = (OURS, ONE_NODE, GUARD_ONLY, REFERENCE, *CONTROLS)
    peers = [one for one in found if one.controller not in others]
    marks = {True: "yes", False: "**no**", None: "-"}
    return _table(
        ("metric", "target", "found", "met"),
        ([one.metric, one.asked, one.found, marks[one.is_met]] for one in targets(results, peers)),
    )


def _overall(found: Sequence[Overall]) -> str:
    ordered = sorted(found, key=lambda one: -one.mean)
    return _table(
        (
            "controller", "seeds", "goodput", "95 %", "worst", "in", "premium to reference", "protect, median",
            "back, median", "throttled in health",
        ),
        (
            [
                one.controller,
                str(one.seeds),
                f"{one.mean:.3f}",
                f"{one.interval[0]:.3f}-{one.interval[1]:.3f}",
                f"{one.worst:.3f}",
                one.worst_in,
                f"{one.premium_ratio:.2f}",
                f"{one.protect_s:.1f} s",
                f"{one.back_s:.1f} s",
                f"{100 * one.throttled:.2f} %",
            ]
            for one in ordered
        ),
    )  # fmt: skip


def _matrix(results: Results, controllers: Sequence[str]) -> str:
    rows = []
    for scenario in results.scenarios:
        cells = [scenario.name, scenario.family, f"{results.limits[scenario.name]:g}"]
        for name in controllers:
            one = row(results, scenario, name)
            cells.append("" if one is None else f"{one.goodput:.2f}")
        rows.append(cells)
    return _table(("scenario", "family", "reference: in flight a server", *controllers), rows)


def _details(results: Results, controller: str) -> str:
    rows = []
    for scenario in results.scenarios:
        one = row(results, scenario, controller)
        if one is None:
            continue
        low, high = one.goodput_interval
        cells = [f"{one.goodput:.3f} ({low:.3f}-{high:.3f})", f"{one.premium:.2f}", f"{one.premium_ratio:.2f}"]
        cells += [f"{one.protect_s:.1f}", f"{one.back_s:.1f}", f"{one.overshoot:.2f}"]
        cells += [f"{one.variation:.3f} / {one.floor:.3f}", f"{one.fairness:.3f}", f"{100 * one.throttled:.2f} %"]
        cells.append("" if one.costs is None else f"{100 * one.costs:.2f} %")
        rows.append([scenario.name, *cells, f"{one.p99_s * 1e3:.0f}"])
    head = ("scenario", "goodput (95 %)", "premium", "to reference", "protect s", "back s", "overshoot")
    return _table((*head, "variation / Poisson", "Jain", "throttled in health", "which cost", "p99 ms"), rows)


def _pictures(results: Results, found: Sequence[Overall], folder: Path, title: str) -> list[str]:
    ordered = sorted(found, key=lambda one: -one.mean)
    values = {one.controller: (one.mean, *one.interval) for one in ordered}
    (folder / f"{title}-goodput.svg").write_text(
        plots.bars(f"Goodput to the reference, mean over overloads, {title} set", values)
    )
    peers = [
        one.controller for one in ordered if one.controller not in (OURS, ONE_NODE, GUARD_ONLY, REFERENCE, *CONTROLS)
    ][:2]
    names, seen = [], set[str]()
    for scenario in results.scenarios:
        runs = results.of(scenario.name, OURS)
        if scenario.family in seen or not runs:
            continue
        seen.add(scenario.family)
        name = f"{title}-{scenario.family.replace(' ', '-')}.svg"
        series = {"offered": _mean(runs, "offered_s"), "admitted, ours": _mean(runs, "admitted_s")}
        series |= {f"good, {of}": _mean(results.of(scenario.name, of), "good_s") for of in (OURS, *peers)}
        top = 2.2 * scenario.capacity_at(0) if scenario.family in ("surge", "retries") else None
        shaded = scenario.onset_s, scenario.end_s
        (folder / name).write_text(plots.lines(f"{scenario.family}: {scenario.name}", series, shaded=shaded, y_max=top))
        names.append(name)
    return names


def _mean(runs: dict[int, Figures], column: str) -> list[float]:
    """By second, over seeds; the last second is not whole."""
    return [fmean(values) for values in zip(*(getattr(run, column) for run in runs.values()), strict=True)][:-2]
