"""Faults as data: what goes wrong, where, from when to when.

A fault is a frozen value that a scenario file spells out or a seed generates; `injector.py` brings it about. Links are
named `a>b` (one way) or `a|b` (both), with `*` for every node and `etcd` for the store: `*>n1`, `n2|etcd`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator, Sequence


class Fault(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag=str.lower):
    """Something that goes wrong at a true time."""

    at_ms: int

    @property
    def ends_ms(self) -> int:
        """When the world is as before, but for what the fault has done."""
        return int(getattr(self, "until_ms", self.at_ms))


class Cut(Fault, frozen=True):
    """Every connection on these links breaks, once. What was under way is gone."""

    links: tuple[str, ...]


class Flaky(Fault, frozen=True):
    """Connections on these links break again and again, at random."""

    until_ms: int
    links: tuple[str, ...]
    breaks_per_s: float


class Loss(Fault, frozen=True):
    """A share of segments is lost; TCP sends them again later, and what is behind them waits."""

    until_ms: int
    links: tuple[str, ...]
    share: float


class Delay(Fault, frozen=True):
    """Segments take longer, each by its own random time: a slow peer, or a slow network."""

    until_ms: int
    links: tuple[str, ...]
    least_ms: float
    most_ms: float


class Partition(Fault, frozen=True):
    """Nothing passes on these links, and nobody is told; connections stay, and go on when it ends."""

    until_ms: int
    links: tuple[str, ...]


class Freeze(Fault, frozen=True):
    """Nodes stop running, as by SIGSTOP or on a machine that is suspended; their clocks go on."""

    until_ms: int
    nodes: tuple[str, ...]


class Jump(Fault, frozen=True):
    """Clocks gain some time at once."""

    nodes: tuple[str, ...]
    by_ms: int


class Kill(Fault, frozen=True):
    """Nodes die; `is_silent`: with their machines, so that nobody closes their connections."""

    nodes: tuple[str, ...]
    is_silent: bool = False


class Start(Fault, frozen=True):
    """Nodes begin to live, for the first time or anew; `moves`: at another address than before."""

    nodes: tuple[str, ...]
    moves: bool = False


class Leave(Fault, frozen=True):
    """Nodes leave as on SIGTERM."""

    nodes: tuple[str, ...]


class EtcdDown(Fault, frozen=True, tag="etcd_down"):
    """etcd does not answer; `drops_leases`: it was frozen and finds all leases expired, else it was restarted."""

    until_ms: int
    drops_leases: bool = False


class WatchLag(Fault, frozen=True, tag="watch_lag"):
    """Nodes hear of changes late."""

    until_ms: int
    nodes: tuple[str, ...]
    lag_ms: int


AnyFault = Cut | Flaky | Loss | Delay | Partition | Freeze | Jump | Kill | Start | Leave | EtcdDown | WatchLag


def links_of(selectors: Sequence[str], nodes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The directed links that selectors name, each once."""
    found: dict[tuple[str, str], None] = {}
    for selector in selectors:
        both = "|" in selector
        left, _, right = selector.partition("|" if both else ">")
        for source in nodes if left == "*" else (left,):
            for target in nodes if right == "*" else (right,):
                if source != target:
                    found[source, target] = None
                    if both:
                        found[target, source] = None
    return iter(found)


def random_faults(rng: random.Random, nodes: Sequence[str], until_ms: int) -> tuple[AnyFault, ...]:
    """What messages suffer in a fleet whose members stay: breaks, loss, delay, stalls, one-way and both ways."""
    return tuple(_random_fault(rng, nodes, until_ms) for _ in range(rng.randint(1, 6)))


def random_moves(
    rng: random.Random, nodes: Sequence[str], joiners: Sequence[str], until_ms: int
) -> tuple[AnyFault, ...]:
    """What becomes of members: each but the first may die, freeze or leave, and come back before the end; some join."""
    faults: list[AnyFault] = [Start(at_ms=rng.randrange(until_ms), nodes=(node,)) for node in joiners]
    for node in nodes[1:]:
        at_ms = rng.randrange(until_ms // 2)
        back_ms = at_ms + rng.randint(1, until_ms // 2)
        nodes_hit = (node,)
        match rng.randrange(6):
            case 0:
                faults += [Kill(at_ms=at_ms, nodes=nodes_hit), Start(at_ms=back_ms, nodes=nodes_hit)]
            case 1:
                start = Start(at_ms=back_ms, nodes=nodes_hit, moves=rng.random() < 0.5)
                faults += [Kill(at_ms=at_ms, nodes=nodes_hit, is_silent=True), start]
            case 2:
                start = Start(at_ms=max(back_ms, at_ms + 1_500), nodes=nodes_hit, moves=rng.random() < 0.5)
                faults += [Leave(at_ms=at_ms, nodes=nodes_hit), start]
            case 3:
                faults.append(Freeze(at_ms=at_ms, until_ms=back_ms, nodes=nodes_hit))
            case _:
                pass
    if rng.random() < 0.2:
        victim = (rng.choice(nodes),)
        faults.append(Jump(at_ms=rng.randrange(until_ms), nodes=victim, by_ms=rng.choice((5, 70, 3_000))))
    if rng.random() < 0.3:
        at_ms = rng.randrange(until_ms // 2)
        end_ms = at_ms + rng.randrange(until_ms // 2)
        faults.append(EtcdDown(at_ms=at_ms, until_ms=end_ms, drops_leases=rng.random() < 0.5))
    return tuple(faults)


def _random_fault(rng: random.Random, nodes: Sequence[str], until_ms: int) -> AnyFault:
    at_ms = rng.randrange(until_ms * 3 // 4)
    end_ms = min(until_ms, at_ms + rng.choice((30, 120, 500, 1500)))
    links = _random_links(rng, nodes)
    match rng.randrange(7):
        case 0:
            return Cut(at_ms=at_ms, links=links)
        case 1:
            return Flaky(at_ms=at_ms, until_ms=end_ms, links=links, breaks_per_s=rng.choice((2.0, 10.0, 40.0)))
        case 2:
            return Loss(at_ms=at_ms, until_ms=end_ms, links=links, share=rng.choice((0.01, 0.1, 0.4)))
        case 3:
            most_ms = rng.choice((2.0, 30.0, 90.0, 300.0))
            return Delay(at_ms=at_ms, until_ms=end_ms, links=links, least_ms=0.0, most_ms=most_ms)
        case 4:
            victims = tuple(rng.sample(list(nodes), rng.randint(1, max(1, len(nodes) // 2))))
            return WatchLag(at_ms=at_ms, until_ms=end_ms, nodes=victims, lag_ms=rng.choice((5, 50, 400)))
        case _:
            return Partition(at_ms=at_ms, until_ms=end_ms, links=links)


def _random_links(rng: random.Random, nodes: Sequence[str]) -> tuple[str, ...]:
    one, other = rng.sample([*nodes, "*"], 2) if len(nodes) > 1 else (nodes[0], "*")
    return (f"{one}{rng.choice('>|')}{other}",)
