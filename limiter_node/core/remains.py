"""Remains: entries that mean nothing any more, freed in bounded pieces so that no check waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class Remains:
    """Dicts that were let go; as long as there are entries in them."""

    def __init__(self) -> None:
        self._dicts: list[dict[Any, Any]] = []

    def __len__(self) -> int:
        return sum(map(len, self._dicts))

    def add(self, dicts: Iterable[dict[Any, Any]]) -> None:
        """Take dicts that nobody else refers to any more."""
        self._dicts += dicts

    def free(self, budget: int) -> None:
        """Free so many entries, or as many as there are; an empty dict counts as one."""
        while budget > 0 and self._dicts:
            last = self._dicts[-1]
            if len(last) <= budget:
                budget -= max(1, len(last))
                self._dicts.pop()
            else:
                for _ in range(budget):
                    last.popitem()
                return
