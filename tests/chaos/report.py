"""What a case says: its figures, the bound on extra grants, and every promise that was broken.

A report is filled in while the case runs, so that one that is ended half-way still says what was seen until then.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tests.chaos.load import Load

COLUMNS = ("fault", "checks sent", "failed", "degraded", "longest gap (ms)", "extra grants", "bound", "verdict")


@dataclass(frozen=True, slots=True)
class Options:
    """How hard a case is run."""

    rate_per_s: float = 100.0  # checks of each load
    hold_s: float = 4.0  # how long a fault lasts, or is watched, where the promise names no length
    keys: int = 200_000  # spent before a node joins
    kills: int = 20  # in the middle of atomic batches


@dataclass(slots=True)
class Report:
    """One row of the table, and the lines below it."""

    fault: str
    progress: Callable[[str], object] = print
    sent: int = 0
    failed: int = 0
    degraded: int = 0
    gap_ms: float | None = None
    extra: int | None = None  # of the key that is furthest beyond its bound
    bound: int | None = None  # on the same key
    notes: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    skipped: str | None = None  # why

    def say(self, text: str) -> None:
        """Tell what is going on."""
        self.progress(f"  {text}")

    def note(self, text: str) -> None:
        """Keep a measured figure that has no column."""
        self.notes.append(text)
        self.say(text)

    def require(self, holds: bool, promise: str) -> None:
        """Note a promise that does not hold."""
        if not holds:
            self.broken.append(promise)
            self.say(f"BROKEN: {promise}")

    def count(self, load: Load, who: str, *, failed_max: int = 0, degraded_max: int | None = 0) -> None:
        """Add a finished load's figures; None: any number of its answers may be degraded."""
        self.sent += len(load.checks)
        self.failed += len(load.failed)
        self.degraded += len(load.degraded)
        self.gap_ms = max(self.gap_ms or 0.0, load.gap.length_s * 1e3)
        self.require(
            len(load.failed) <= failed_max, f"{who}: {len(load.failed)} failed checks: {_examples(load.failed)}"
        )
        if degraded_max is not None:
            degraded = len(load.degraded)
            self.require(degraded <= degraded_max, f"{who}: {degraded} degraded: {_examples(load.degraded)}")

    def grants(self, extra: Mapping[str, int], bounds: Mapping[str, int] | int = 0) -> None:
        """Hold the extra grants of each key to its bound; the worst key is shown."""
        bound_of = {key: bounds if isinstance(bounds, int) else bounds[key] for key in extra}
        worst = max(extra, key=lambda key: (extra[key] - bound_of[key], extra[key]))
        self.extra, self.bound = extra[worst], bound_of[worst]
        beyond = {key: extra[key] for key in extra if extra[key] > bound_of[key]}
        self.require(not beyond, f"extra grants beyond the bound at {len(beyond)} of {len(extra)} keys: {beyond}")

    @property
    def verdict(self) -> str:
        """ok, BROKEN, or why the case did not run."""
        if self.skipped:
            return f"skipped: {self.skipped}"
        return "BROKEN" if self.broken else "ok"

    def row(self) -> tuple[str, ...]:
        """The cells of its row."""
        figures = [self.sent, self.failed, self.degraded, self.gap_ms, self.extra, self.bound]
        if self.skipped:
            figures = [None] * len(figures)
        cells = ["-" if figure is None else f"{figure:,.0f}" for figure in figures]
        return (self.fault, *cells, self.verdict)


def table(reports: Sequence[Report]) -> str:
    """Lay the reports out under their column names, each report's notes and broken promises below them."""
    rows = [COLUMNS, *(report.row() for report in reports)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    last = len(COLUMNS) - 1
    lines = [
        "  ".join(
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    lines.insert(1, "  ".join("-" * width for width in widths))
    for report in reports:
        lines += [f"{report.fault}: {text}" for text in report.notes]
        lines += [f"{report.fault}: BROKEN: {text}" for text in report.broken]
    return "\n".join(lines)


def _examples(checks: Sequence[object]) -> str:
    more = f" and {len(checks) - 3} more" if len(checks) > 3 else ""
    return ", ".join(str(check) for check in checks[:3]) + more
