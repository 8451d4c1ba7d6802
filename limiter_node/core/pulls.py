"""Pulls: asking other nodes what they know of a bucket, and telling them.

A node answers a pull once its own ring is as new as the asker's: from then on it does not decide the bucket, whatever
it thought before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.model import COPIES_PER_FRAME_MAX, Pull, Pulled

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.engine import Engine
    from limiter_node.core.links import Link
    from limiter_node.core.model import Reply
    from limiter_node.core.replication import Bucket
    from limiter_node.core.ring import Ring


class Pulls:
    """The pulls of a node: its own that are under way, and those of others that have to wait."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._next_id = 0
        self._asked: dict[int, tuple[str, int, list[Bucket]]] = {}  # by frame id: whom, at which epoch, for what
        self._early: list[tuple[str, Pull, Callable[[Reply], None]]] = []  # of nodes with a newer ring

    def frames(self, link: Link, revision: int, epoch: int) -> list[Pull]:
        """The pulls to send on a link."""
        frames: list[Pull] = []
        while link.pulls:
            wanted, link.pulls = link.pulls[:COPIES_PER_FRAME_MAX], link.pulls[COPIES_PER_FRAME_MAX:]
            self._next_id += 1
            self._asked[self._next_id] = link.peer.id, epoch, wanted
            frames.append(Pull(self._next_id, revision, wanted))
        return frames

    def take_answered(self, frame_id: int, epoch: int) -> list[Bucket]:
        """What the pull of that id asked for; nothing if it was given up meanwhile, or asked again (see `custody`)."""
        _, asked_at, wanted = self._asked.pop(frame_id, ("", epoch, []))
        return wanted if asked_at == epoch else []

    def on_down(self, name: str) -> None:
        """The way to a peer is broken: its answers will not come."""
        self._asked = {number: asked for number, asked in self._asked.items() if asked[0] != name}

    def answer(self, ring: Ring, name: str, pull: Pull, now_ns: int, respond: Callable[[Reply], None]) -> bool:
        """Tell what is known of buckets that the asker holds; False when by this node's newer ring it does not."""
        if pull.revision > ring.revision:
            self._early.append((name, pull, respond))
            return True
        # Of the same ring, the asker knows what it holds, even if it was not called by its name yet when it asked.
        if pull.revision < ring.revision and any(name not in ring.holders(key) for _, key in pull.wanted):
            return False
        copies = [self._engine.copy(rule, key, now_ns) for rule, key in pull.wanted]
        respond(Pulled(pull.id, [copy for copy in copies if copy is not None]))
        return True

    def take_early(self) -> list[tuple[str, Pull, Callable[[Reply], None]]]:
        """The pulls that waited for a newer ring, to be answered again."""
        early, self._early = self._early, []
        return early
