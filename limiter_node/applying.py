"""What `limiter-node apply` says while it works: the changes, how far it is, and the sum at the end."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from limiter_node.control.apply import OPERATIONS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limiter_node.control.changes import Change

LINES_MAX = 100
"""Of additions and changes, which can be read in the files; what is deleted is nowhere else, so all of it is told."""

PROGRESS_S = 2.0


class Narrator:
    """Tells of one run, in lines: `tell` is for what changes, `note` for how it goes."""

    def __init__(
        self, tell: Callable[[str], None], note: Callable[[str], None], documents: int, *, dry_run: bool
    ) -> None:
        self._tell = tell
        self._note = note
        self._documents = documents  # in the files
        self._dry_run = dry_run
        self._planned = 0  # changes, of all plans
        self._counts: Counter[str] = Counter()
        self._lines = 0
        self._noted_s = time.monotonic()

    def planned(self, changes: Sequence[Change], transactions: int) -> None:
        """Take the plan."""
        self._planned = self._counts.total() + len(changes)
        if transactions > 1:
            self._note(
                f"{len(changes):,} changes need {transactions:,} transactions of at most {OPERATIONS_MAX}:"
                " they come into force one after the other"
            )
        if self._dry_run:
            self.written(changes)

    def written(self, changes: Sequence[Change]) -> None:
        """Take what is done."""
        for change in changes:
            self._counts[change.sign] += 1
            if change.sign != "-":
                self._lines += 1
            if change.sign == "-" or self._lines <= LINES_MAX:
                self._tell(str(change))
        if time.monotonic() - self._noted_s > PROGRESS_S:
            self._noted_s = time.monotonic()
            self._note(f"{self._counts.total():,} of {self._planned:,} written")

    def sum_up(self) -> None:
        """Say what it came to, at the end."""
        added, changed, deleted = (self._counts[sign] for sign in "+~-")
        if self._lines > LINES_MAX:
            self._tell(f"... and {self._lines - LINES_MAX:,} more additions and changes")
        unchanged = self._documents - added - changed
        counts = f"{added:,} added, {changed:,} changed, {deleted:,} deleted, {unchanged:,} unchanged"
        self._tell(f"would be {counts}; nothing was written" if self._dry_run else counts)

    def crossed(self) -> None:
        """Say why it begins again."""
        self._note("somebody else has changed one of these keys meanwhile: reading again")
