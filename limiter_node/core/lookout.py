"""The lookout: what nodes tell each other of themselves while somebody looks at the fleet through one of them.

It carries figures and reads none: they are bytes that the composition root makes and the page's server understands.
Nobody is asked while nobody looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.model import Look, Looked

if TYPE_CHECKING:
    from collections.abc import Callable


class Lookout:
    """One on each node. `tell` says what this node knows of itself and of so many of its last seconds."""

    def __init__(self, tell: Callable[[int], bytes]) -> None:
        self.told: dict[str, bytes] = {}  # by peer: its answer to the last question
        self._tell = tell
        self._to_ask: set[str] = set()
        self._seconds = 0
        self._id = 0

    def ask(self, peers: set[str], seconds: int) -> None:
        """Begin anew: these peers are to be asked for so many of their last seconds."""
        self.told = {}
        self._to_ask = peers
        self._seconds = seconds
        self._id += 1

    def frames(self, name: str) -> list[Look]:
        """What to ask a peer now."""
        if name not in self._to_ask:
            return []
        self._to_ask.discard(name)
        return [Look(self._id, self._seconds)]

    def answer(self, look: Look) -> Looked:
        """Tell a peer."""
        return Looked(look.id, self._tell(look.seconds))

    def hear(self, name: str, looked: Looked) -> None:
        """Take a peer's answer; one to an earlier question is too old to be shown."""
        if looked.id == self._id:
            self.told[name] = looked.figures
