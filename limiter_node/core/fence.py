"""The fence: whether this node may still decide as owner, and whether a silent peer may be decided for.

Every node pings every member a few times within a peer timeout. Whoever answers `backs` the asker: it promises not to
hold the asker for gone before SILENT_SHARE of a peer timeout has passed. A node has the right to decide while enough
members back it; a replica may decide in a silent owner's place when so many members hear nothing of the owner that too
few are left to back it:

    others = N - 1;   gone: silent to others // 2 + 1 of the others;   right: backed by others - others // 2

Any two such sets among the others have a member in common, so no key ever has two nodes that may decide for it. No
clock is compared with another: a promise runs from the answer on the one side and from the question on the other, and
RIGHT_SHARE is smaller than SILENT_SHARE by more than clocks drift apart.

A peer whose machine refuses connections is dead: it backs nobody and is no longer among the others, so that the last
node alive may decide. Its next life may soon be there and hold this node for gone, so that the proof counts no longer
than backing does (links dial the dead all the time); and what it had backed must have run out before it is left out.

No etcd is asked: a fleet that has lost it goes on. This module knows no frames, links or keys; time is handed in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from limiter_node.core.ring import Ring

SILENT_SHARE = 0.8
"""Of a peer timeout: a peer not heard of for so long is silent. A check sent before that can still be sent again."""

RIGHT_SHARE = 0.75
"""Of a peer timeout: how long a peer's backing counts, from the moment it was asked for."""

PINGS_PER_TIMEOUT = 5
"""Three pings in a row must fail before a healthy peer is silent."""

ALWAYS_NS = 2**63 - 1
_NEVER_NS = -(2**63)


class Standing:
    """What this node knows of one peer."""

    __slots__ = ("backed_ns", "boot", "dead_ns", "dead_since_ns", "heard_ns", "refused_ns", "silent_to")

    def __init__(self, boot: int, now_ns: int) -> None:
        self.boot = boot  # the life that is meant
        self.heard_ns = now_ns  # a peer is heard of until it has been silent for a while
        self.backed_ns = _NEVER_NS  # when the last ping was sent that it answered with its backing
        self.refused_ns = _NEVER_NS  # when this node last told anybody that the peer is silent
        self.dead_ns = _NEVER_NS  # when the last dial began that its machine refused
        self.dead_since_ns = 0  # and the first since it was last heard of
        self.silent_to: dict[str, int] = {}  # by member that the peer says is silent: when it was asked


class Fence:
    """Who is heard of, who backs whom. `peer_timeout_ns` is the fleet's, and must not differ between nodes."""

    def __init__(self, node_id: str, peer_timeout_ns: int) -> None:
        self._node_id = node_id
        self.silent_after_ns = round(peer_timeout_ns * SILENT_SHARE)
        self._right_ns = round(peer_timeout_ns * RIGHT_SHARE)
        self.ping_every_ns = peer_timeout_ns // PINGS_PER_TIMEOUT
        self._members: list[str] = []  # without this node
        self._is_member = False
        self.peers: dict[str, Standing] = {}
        self.right_until_ns = 0

    def set_ring(self, ring: Ring, now_ns: int) -> None:
        """Go over to another ring."""
        for name, member in (ring.members | ring.leavers).items():
            if name not in self.peers or self.peers[name].boot != member.boot:
                self.peers[name] = Standing(member.boot, now_ns)
        self._is_member = self._node_id in ring.members
        self._members = [name for name in ring.members if name != self._node_id]
        self.reckon(now_ns)

    def forget(self, name: str) -> None:
        """A peer has left for good."""
        self.peers.pop(name, None)

    def heard(self, name: str, now_ns: int) -> None:
        """Something came from a peer, whichever side dialled."""
        peer = self.peers.get(name)
        if peer is not None:
            peer.heard_ns = now_ns
            peer.dead_ns = _NEVER_NS

    def pause(self, span_ns: int, now_ns: int) -> None:
        """This node did not run for a while, so that what peers have sent is still to be read.

        After a long while, during which it backed nobody, it does not know either of whom it heard nothing before.
        """
        for peer in self.peers.values():
            peer.heard_ns = now_ns if span_ns >= self._right_ns else peer.heard_ns + span_ns

    def refused(self, name: str, dialled_ns: int, now_ns: int) -> None:
        """The peer's machine has refused a connection: the process that was a member is dead."""
        peer = self.peers.get(name)
        if peer is not None:
            if peer.dead_ns == _NEVER_NS:
                peer.dead_since_ns = now_ns
            peer.dead_ns = max(peer.dead_ns, dialled_ns)
            self.reckon(now_ns)

    def is_silent(self, name: str, now_ns: int) -> bool:
        """Whether nothing has been heard of a peer for so long that it may be gone."""
        peer = self.peers.get(name)
        return peer is None or self._is_dead(peer, now_ns) or now_ns - peer.heard_ns >= self.silent_after_ns

    def _is_dead(self, peer: Standing, now_ns: int) -> bool:
        return now_ns - peer.dead_ns < self._right_ns

    def is_gone(self, name: str, now_ns: int) -> bool:
        """Whether a peer surely decides nothing: silent to so many that too few can back it."""
        if not self.is_silent(name, now_ns):
            return False
        if name not in self._members:
            return True  # a newer ring says so
        others = agreeing = 1  # this node
        for other in self._members:
            if other == name:
                continue
            standing = self.peers[other]
            told_ns = standing.silent_to.get(name, _NEVER_NS)
            if now_ns - told_ns < self._right_ns:
                others += 1
                agreeing += 1
            elif not (self._is_dead(standing, now_ns) and now_ns - standing.dead_since_ns >= self._right_ns):
                others += 1
        return agreeing >= others // 2 + 1

    def reckon(self, now_ns: int) -> None:
        """Work out anew until when this node may decide as owner."""
        if not self._is_member:
            self.right_until_ns = 0
        elif not self._members:
            self.right_until_ns = ALWAYS_NS
        else:
            peers = [self.peers[name] for name in self._members]
            dead = [peer for peer in peers if self._is_dead(peer, now_ns) and self._is_mute(peer, now_ns)]
            alive = [peer.backed_ns for peer in peers if peer not in dead]
            proved_ns = min((peer.dead_ns for peer in dead), default=now_ns)
            since_ns = max(_nth_newest([peer.backed_ns for peer in peers]), min(proved_ns, _nth_newest(alive)))
            self.right_until_ns = since_ns + self._right_ns

    def _is_mute(self, dead: Standing, now_ns: int) -> bool:
        """Whether nobody goes by what a dead peer last said of this node: that it is silent, if it could say that."""
        could_tell = dead.dead_since_ns >= dead.backed_ns + self.silent_after_ns
        return not could_tell or now_ns - dead.dead_since_ns >= self._right_ns

    # Pings.

    def on_ping(self, name: str, now_ns: int) -> tuple[bool, list[str]]:
        """What to answer a peer: whether this node backs it, and who is silent."""
        self.heard(name, now_ns)
        peer = self.peers.get(name)
        backs = peer is not None and now_ns - peer.refused_ns >= self.silent_after_ns
        silent = [other for other in self._members if self.is_silent(other, now_ns)]
        for other in silent:
            self.peers[other].refused_ns = now_ns
        return backs, silent

    def on_pong(self, name: str, asked_ns: int, now_ns: int, *, backs: bool, silent: list[str]) -> None:
        """Take a peer's answer to the ping that was sent at `asked_ns`."""
        self.heard(name, now_ns)
        peer = self.peers.get(name)
        if peer is None:
            return
        if backs:
            peer.backed_ns = max(peer.backed_ns, asked_ns)
        peer.silent_to = dict.fromkeys(silent, asked_ns)
        self.reckon(now_ns)


def _nth_newest(backed_ns: list[int]) -> int:
    """Since when so many have backed this node as its right takes; nobody there: at any time."""
    others = len(backed_ns)
    return sorted(backed_ns, reverse=True)[others - others // 2 - 1] if others else ALWAYS_NS
