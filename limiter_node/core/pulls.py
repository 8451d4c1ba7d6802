"""Pulls: asking other nodes what they know of a bucket, and telling them.

A node answers a pull once its own ring is as new as the asker's: from then on it does not decide the bucket, whatever
it thought before. And once nobody whom the asker does not ask, having never heard of it, is still to tell it something.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limiter_node.core.model import COPIES_PER_FRAME_MAX, VALUES_PER_FRAME, Copy, Pull, Pulled

if TYPE_CHECKING:
    from collections.abc import Callable

    from limiter_node.core.custody import Custody
    from limiter_node.core.engine import Engine
    from limiter_node.core.links import Link
    from limiter_node.core.model import Reply
    from limiter_node.core.outlet import Bucket


PART_ID = 0
"""Of an answer that is not whole yet: no pull has it, so that what is told is taken in, and nothing counts as asked."""


class Pulls:
    """The pulls of a node: its own that are under way, and those of others that have to wait."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._next_id = 0
        self._asked: dict[int, tuple[str, int, list[Bucket]]] = {}  # by frame id: whom, at which epoch, for what
        self._early: list[tuple[Pull, Callable[[Reply], None]]] = []

    def frames(self, link: Link, revision: int, custody: Custody) -> list[Pull]:
        """The pulls to send on a link."""
        frames: list[Pull] = []
        while link.pulls:
            wanted, link.pulls = link.pulls[:COPIES_PER_FRAME_MAX], link.pulls[COPIES_PER_FRAME_MAX:]
            self._next_id += 1
            self._asked[self._next_id] = link.peer.id, custody.epoch, wanted
            frames.append(Pull(self._next_id, revision, wanted, sorted(custody.pending)))
        return frames

    def take_answered(self, frame_id: int, epoch: int) -> list[Bucket]:
        """What the pull of that id asked for; nothing if it was given up meanwhile, or asked again (see `custody`)."""
        _, asked_at, wanted = self._asked.pop(frame_id, ("", epoch, []))
        return wanted if asked_at == epoch else []

    def on_down(self, name: str) -> None:
        """The way to a peer is broken: its answers will not come."""
        self._asked = {number: asked for number, asked in self._asked.items() if asked[0] != name}

    def answer(self, pull: Pull, now_ns: int, respond: Callable[[Reply], None], *, is_early: bool) -> None:
        """Tell what is known of buckets that the asker holds, or later if it is too early for that."""
        if is_early:
            self._early.append((pull, respond))
            return
        copies: list[Copy] = []
        values = 0
        for rule, key in pull.wanted:
            copy = self._engine.copy(rule, key, now_ns)
            if copy is None:
                continue
            if values >= VALUES_PER_FRAME:
                respond(Pulled(PART_ID, copies))
                copies, values = [], 0
            copies.append(copy)
            values += copy.values
        respond(Pulled(pull.id, copies))

    def take_early(self) -> list[tuple[Pull, Callable[[Reply], None]]]:
        """The pulls that came too early, to be answered again."""
        early, self._early = self._early, []
        return early
