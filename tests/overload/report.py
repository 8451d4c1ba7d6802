"""What runs say: a table on the screen and in Markdown, a picture of each, and every second's figures as CSV."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from tests.overload.figures import BACK, BACK_WINDOW_S, CUT, ONSET_S, figures, is_good, per_second, quantile
from tests.overload.plots import Line, by_second, chart, picture
from tests.overload.scenario import PRIORITIES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.overload.clients import Shot
    from tests.overload.record import Run

COLUMNS = (
    "overload", "limiter", "good/s", "possible/s", "goodput", "after 5 s", "premium", "standard", "free",
    f"all nodes < {CUT:g}", f"back to {BACK:.0%}", "m in health", "p90 premium/standard/free (ms)",
)  # fmt: skip

HOW_TO_READ = f"""\
Both sides get the same requests at the same time, each with a backend of its own. Requests count when they are due.

- possible/s: what the backend can do meanwhile (workers / service time, at most the demand), less what fails anyway
- goodput: 200s within the objective, by what is possible, over the whole overload; then without its first {ONSET_S:g} s
- premium, standard, free: answered within the objective by demand, errors of the backend's own too; in brackets without
  the first {ONSET_S:g} s
- all nodes < {CUT:g}: seconds after the beginning until every node's multiplier was
- back to {BACK:.0%}: seconds after the end until so much of the demand was good for {BACK_WINDOW_S:g} s
- m in health: the lowest multiplier of any node, with the requests turned away in brackets
- p90: of admitted requests in the overload, as clients saw it; nginx gives up after its time-out
"""


def rows(run: Run) -> list[tuple[str, ...]]:
    """Two rows of the table: with and without."""
    found = figures(run)
    cells = []
    for side in found.sides.values():
        guarded = side.side == "with"
        cells.append(
            (
                run.way.name,
                side.side,
                f"{side.overload.goodput_s:.1f}",
                f"{run.way.possible_s(run.plan):.1f}",
                f"{side.overload.ratio:.2f}",
                f"{side.later.ratio:.2f}",
                *(f"{side.overload.served[name]:.2f} ({side.later.served[name]:.2f})" for name in PRIORITIES),
                _seconds(found.cut_s) if guarded else "-",
                _seconds(side.back_s),
                f"{found.healthy_multiplier:g} ({side.healthy_denied})" if guarded else "-",
                " / ".join(f"{side.overload.p90_ms[name]:.0f}" for name in PRIORITIES),
            )
        )
    return cells


def table(runs: Sequence[Run]) -> str:
    """All rows, aligned; it is Markdown too."""
    cells = [COLUMNS, *(row for run in runs for row in rows(run))]
    widths = [max(len(row[column]) for row in cells) for column in range(len(COLUMNS))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def notes(run: Run) -> str:
    """What has no column."""
    found = figures(run)
    denied = ", ".join(
        f"{cause} {' / '.join(str(count) for count in by_segment.values())}" for cause, by_segment in run.denied.items()
    )
    return (
        f"{run.way.name}: {run.way.title}; lowest multiplier {found.lowest_multiplier:.2f}; turned away"
        f" ({' / '.join(PRIORITIES)}) by {denied}; {run.reporter_said};"
        f" clients at most {found.worst_lag_ms:.0f} ms late"
    )


def write(runs: Sequence[Run], folder: Path, facts: str) -> None:
    """Write report.md, a picture and the figures of each run."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# A backend overloaded, with and without the limiter\n", facts + "\n", table(runs) + "\n", HOW_TO_READ]
    parts += [f"- {notes(run)}" for run in runs]
    for run in runs:
        (folder / f"{run.way.name}.svg").write_text(drawing(run))
        _write_csv(run, folder / f"{run.way.name}.csv")
        parts.append(f"\n## {run.way.title}\n\n![{run.way.name}]({run.way.name}.svg)")
    (folder / "report.md").write_text("\n".join(parts) + "\n")


def drawing(run: Run) -> str:
    """Draw requests, good answers by segment, latencies and multipliers over time."""
    plan = run.plan
    shaded = plan.overload_from_s, plan.overload_until_s
    most = max(per_second(run, "with", len)) * 1.05

    def line(side: str, what: Callable[[list[Shot]], float], colour: str, *, dashed: bool = False) -> Line:
        return Line(by_second(per_second(run, side, what)), colour, dashed)

    def draw(title: str, lines: dict[str, Line], top: float) -> str:
        return chart(title, lines, seconds=plan.total_s, shaded=shaded, top=top)

    colours = dict(zip(PRIORITIES, ("#0b6e4f", "#3d5a98", "#c9a227"), strict=True))
    requests = {
        "offered": line("with", len, "#999999"),
        "admitted": line("with", admitted, "#3d5a98", dashed=True),
        "good with": line("with", lambda shots: good(shots, run), "#0b6e4f"),
        "good without": line("without", lambda shots: good(shots, run), "#c8553d"),
    }
    served, latencies = {}, {}
    for side, dashed in (("with", False), ("without", True)):
        for name, colour in colours.items():
            served[f"{name} {side}"] = line(side, _share_good(run, name), colour, dashed=dashed)
            latencies[f"{name} {side}"] = line(side, _p90_ms(name), colour, dashed=dashed)
    multipliers = {
        node: Line([(sample.at_s, sample.multiplier) for sample in run.samples if sample.node == node])
        for node in sorted({sample.node for sample in run.samples})
    }
    return picture(
        [
            draw(f"{run.way.title}: requests per second", requests, most),
            draw("good answers by demand of each segment", served, 1.0),
            draw("90th percentile of admitted requests (ms)", latencies, plan.timeout_s * 1e3 * 1.1),
            draw("multiplier of each node", multipliers, 1.0),
        ]
    )


def admitted(shots: Sequence[Shot]) -> int:
    """How many went through."""
    return sum(shot.admitted for shot in shots)


def good(shots: Sequence[Shot], run: Run) -> int:
    """How many were answered well in time."""
    return sum(is_good(shot, run) for shot in shots)


def _share_good(run: Run, segment: str) -> Callable[[list[Shot]], float]:
    def share(shots: list[Shot]) -> float:
        mine = [shot for shot in shots if shot.segment == segment]
        return good(mine, run) / len(mine) if mine else 1.0

    return share


def _p90_ms(segment: str) -> Callable[[list[Shot]], float]:
    return lambda shots: quantile(
        (shot.latency_s * 1e3 for shot in shots if shot.admitted and shot.segment == segment), 0.9
    )


def _write_csv(run: Run, path: Path) -> None:
    columns: dict[str, list[float]] = {}
    for side in ("with", "without"):
        columns[f"offered {side}"] = per_second(run, side, len)
        columns[f"admitted {side}"] = per_second(run, side, admitted)
        columns[f"good {side}"] = per_second(run, side, lambda shots: good(shots, run))
        for name in PRIORITIES:
            columns[f"p90_ms {name} {side}"] = per_second(run, side, _p90_ms(name))
            columns[f"good share {name} {side}"] = per_second(run, side, _share_good(run, name))
    for node in sorted({sample.node for sample in run.samples}):
        by_s = {int(sample.at_s): sample.multiplier for sample in run.samples if sample.node == node}
        columns[f"multiplier {node}"] = [by_s.get(second, float("nan")) for second in range(int(run.plan.total_s))]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["second", *columns])
        for second in range(int(run.plan.total_s)):
            writer.writerow([second, *(f"{values[second]:.4g}" for values in columns.values())])


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f} s"
