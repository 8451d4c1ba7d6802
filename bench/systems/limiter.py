"""This node: alone, or one of a fleet that has to ask another for the keys it does not own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.servers import CHECKOUT, RULE, put

if TYPE_CHECKING:
    from bench.servers import Cores, Numbers, Stage, System


@dataclass(frozen=True, slots=True)
class Pair:
    """Two nodes, on one core unless it is said otherwise, and their etcd on the other."""

    asked: System
    owner: System
    asked_id: str
    owner_id: str


def standalone(stage: Stage, cores: Cores, numbers: Numbers) -> System:
    """Start a node without etcd."""
    return stage.standalone({RULE: numbers.rule}, cpu=cores.server)


def interpreted(stage: Stage, cores: Cores, numbers: Numbers) -> System:
    """The same from the sources, whatever the others are."""
    return stage.standalone({RULE: numbers.rule}, cpu=cores.server, name="interpreted", package=CHECKOUT)


def with_workers(stage: Stage, cores: int | str, numbers: Numbers, count: int) -> System:
    """Start a node without etcd that has so many workers on these cores.

    They are patient: one that waits for its turn on a core that the load is on too must not pass for dead.
    """
    options = ("--workers", str(count), "--peer-timeout", "1000")
    name = f"workers-{count}-{numbers.burst}"
    return stage.standalone({RULE: numbers.rule}, cpu=cores, name=name, options=options)


def pair(stage: Stage, cores: Cores, numbers: Numbers, *, name: str = "bench", is_apart: bool = False) -> Pair:
    """Start a fleet of two; each is also the other's replica, and both work on every forwarded check.

    Where they are apart, the owner is on the core of the load.
    """
    etcd = stage.etcd(cpu=cores.load, name=f"{name}-etcd")
    put(etcd, f"/limiter/rules/{RULE}", numbers.rule)
    names = f"{name}-asked", f"{name}-owner"
    cpus = cores.server, cores.load if is_apart else cores.server
    asked, owner = (stage.node(node, ["--etcd", etcd], cpu=cpu) for node, cpu in zip(names, cpus, strict=True))
    return Pair(asked.with_help_of(owner), owner.with_help_of(asked), *names)
