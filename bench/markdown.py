"""Tables of a report, and how figures look in them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.stats import Spread


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, and an empty line after it."""
    lines = [f"| {' | '.join(head)} |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(cells)} |" for cells in rows), ""])


def spread_text(spread: Spread, digits: int = 0) -> str:
    """Median, and what the runs lay between."""
    return f"{spread.median:,.{digits}f} ({spread.low:,.{digits}f} to {spread.high:,.{digits}f})"


def met_text(*, met: bool) -> str:
    """Whether a target was met; a miss is to be seen."""
    return "met" if met else "**missed**"
