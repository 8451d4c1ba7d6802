"""A report: its files, its tables, and how figures look in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from bench.stats import Spread


def write_report(
    folder: Path, name: str, results: Mapping[str, Any], page: str, pictures: Iterable[tuple[str, str]]
) -> None:
    """Write `name`.json, `name`.md and the pictures, given as file names and contents."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
    for file_name, picture in pictures:
        (folder / file_name).write_text(picture)
    (folder / f"{name}.md").write_text(page)


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
