"""A scenario: a fleet, its rules, its callers, what goes wrong, and what must hold. A file, or made from a seed.

Whatever a seed finds can be written down as a file and be kept (`scripts/simulate --dump SEED`).
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from tests.sim.faults import AnyFault, Freeze, Kill, Leave, Partition, Start, random_faults, random_moves

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Strict data."""


class NodeSpec(Part, frozen=True):
    """A machine. One that is not a founder lives only once a `start` says so."""

    id: str
    offset_ms: int = 0
    drift_ppm: int = 0
    zone: str | None = None
    is_founder: bool = True


class DocumentChange(Part, frozen=True):
    """Somebody writes to etcd. `is_bad` says that every node must refuse the value."""

    at_ms: int
    key: str
    value: Any = None  # None deletes the key
    is_bad: bool = False


class Load(Part, frozen=True):
    """Callers who do not wait for answers: checks at random times on random nodes, until the end of the scenario."""

    checks_per_s: float = 0.0
    keys: tuple[str, ...] = ("k",)
    rules: tuple[str, ...] = ("api",)
    costs: tuple[int, ...] = (1,)
    segments: tuple[str | None, ...] = (None,)
    batch_max: int = 1  # most checks that one caller asks of a node at once
    inspect_share: float = 0.0
    forget_share: float = 0.0
    refund_share: float = 0.0
    atomic_share: float = 0.0  # of what a caller asks at once, batches that are to be taken together or not at all
    atomic_max: int = 4  # most checks in one of these


class Burst(Part, frozen=True):
    """Checks asked one after another at a given time, on a given node or round the fleet.

    With `others`, each is an atomic batch of the key and these.
    """

    at_ms: int
    rule: str
    key: str
    cost: int = 1
    segment: str | None = None
    count: int = 1
    node: str | None = None
    every_us: int = 100
    others: tuple[str, ...] = ()


class Expect(Part, frozen=True):
    """What must hold."""

    settles_within_ms: int = 3_500  # after the last fault: from then on every check is decided by its owner
    degraded_only_at: tuple[str, ...] | None = None  # nodes; None: at any, while something is wrong
    is_all_or_nothing: bool = False  # so little goes wrong that no atomic batch may be spent in part
    delivers_within_ms: int | None = None  # only what was granted so shortly before a death may be unknown to others
    granted: dict[str, int] = {}  # by "rule/key": tokens granted by owners, exactly
    known_bug: str | None = None  # why it fails today; it must fail until that is mended


class Scenario(Part, frozen=True):
    """Everything that a run needs besides a seed."""

    name: str
    about: str
    nodes: tuple[NodeSpec, ...]
    documents: dict[str, Any] = {}
    changes: tuple[DocumentChange, ...] = ()
    load: Load = Load()
    bursts: tuple[Burst, ...] = ()
    faults: tuple[AnyFault, ...] = ()
    expect: Expect = Expect()

    @property
    def trouble_ms(self) -> int:
        """Until when something goes wrong or is changed."""
        ends = [fault.ends_ms for fault in self.faults] + [change.at_ms for change in self.changes]
        return max(ends, default=0)

    @property
    def calm_ms(self) -> int:
        """From when on everything must be as if nothing had ever been wrong."""
        return self.trouble_ms + self.expect.settles_within_ms

    @property
    def until_ms(self) -> int:
        """When it ends: half a second of calm at least."""
        bursts = [burst.at_ms + burst.count * burst.every_us // 1000 + 500 for burst in self.bursts]
        return max([self.calm_ms + 500, *bursts])


def load(path: Path) -> Scenario:
    """Read a scenario file."""
    return msgspec.yaml.decode(path.read_bytes(), type=Scenario)


def dump(scenario: Scenario) -> str:
    """A scenario as a file."""
    return msgspec.yaml.encode(scenario).decode()


ALGORITHMS = ("token_bucket", "token_bucket", "leaky_bucket", "fixed_window", "sliding_window", "sliding_log")

FAULTS_UNTIL_MS = 2_500
PERIODS = ("s", "s", "2s", "10s", "m", "h", "d")
SEGMENTS = ("premium", "free")
BAD_VALUES: tuple[Any, ...] = (
    {"rate": "-1/s"},
    {"rate": "5/s", "brust": 3},
    {"rate": "5/s", "burst": 0},
    {"burst": 5},
    "not an object",
    {"rate": "1/fortnight"},
)


def generate(seed: int, nodes_low: int = 2, nodes_high: int = 6) -> Scenario:
    """A steady fleet under a random load, random rules changed live, random trouble with messages."""
    rng = random.Random(f"scenario {seed}")
    nodes = tuple(
        NodeSpec(
            id=f"n{number}",
            offset_ms=rng.randrange(10**9),
            drift_ppm=rng.choice((0, rng.randint(-200, 200))),
        )
        for number in range(1, rng.randint(nodes_low, nodes_high) + 1)
    )
    keys = tuple(f"user:{number}" for number in range(rng.choice((1, 4, 12, 40))))
    documents = {"rules/api": _rule(rng, "orders"), "rules/other": _rule(rng, None)}
    algorithm = random.Random(f"algorithm {seed}").choice(ALGORITHMS)
    changes = sorted(_changes(rng, keys), key=lambda change: change.at_ms)
    return Scenario(
        name=f"seed {seed}",
        about="random rules, load and trouble with messages; members stay",
        nodes=nodes,
        documents={key: _by(algorithm, key, document) for key, document in documents.items()},
        changes=tuple(
            change if change.is_bad else replace(change, value=_by(algorithm, change.key, change.value))
            for change in changes
        ),
        load=Load(
            checks_per_s=rng.choice((50.0, 150.0, 400.0)),
            keys=keys,
            rules=("api", "api", "api", "other", "unheard-of")[: rng.choice((1, 4, 5))],
            costs=rng.choice(((1,), (0, 1, 1, 2, 5), (1, 3, 1000))),
            segments=rng.choice(((None,), (None, "premium"), (None, "premium", "free", "unlisted"))),
            batch_max=rng.choice((1, 1, 4)),
            inspect_share=rng.choice((0.0, 0.05)),
            forget_share=rng.choice((0.0, 0.0, 0.01)),
            refund_share=random.Random(f"refund share {seed}").choice((0.0, 0.0, 0.02)),
            atomic_share=random.Random(f"atomic share {seed}").choice((0.0, 0.0, 0.3)),
        ),
        faults=random_faults(rng, [node.id for node in nodes], FAULTS_UNTIL_MS),
    )


MOVES_UNTIL_MS = 16_000
"""Long enough for a lease to run out in between."""


def generate_moving(seed: int, nodes_low: int = 2, nodes_high: int = 6) -> Scenario:
    """The same with members that come and go."""
    rng = random.Random(f"moves {seed}")
    steady = generate(seed, nodes_low, nodes_high)
    nodes = tuple(replace(node, is_founder=index < 2 or rng.random() < 0.7) for index, node in enumerate(steady.nodes))
    moves = random_moves(
        rng,
        [node.id for node in nodes if node.is_founder],
        [node.id for node in nodes if not node.is_founder],
        MOVES_UNTIL_MS,
    )
    return replace(
        steady,
        nodes=nodes,
        name=f"moving seed {seed}",
        about="random rules, load, trouble with messages, and members that come and go",
        load=replace(steady.load, checks_per_s=60.0),
        faults=steady.faults + moves,
        expect=Expect(settles_within_ms=9_000),
    )


def generate_atomic(seed: int, nodes_low: int = 3, nodes_high: int = 4) -> Scenario:
    """Atomic batches over keys of all nodes, one of which dies, freezes, is cut off or leaves in the middle of many."""
    rng = random.Random(f"atomic {seed}")
    steady = generate(seed, max(3, nodes_low), max(3, nodes_high))
    victim = (rng.choice(steady.nodes).id,)
    at_ms = rng.randint(600, 900)
    back_ms = at_ms + rng.choice((100, 1_000, 4_000))
    keys = tuple(f"user:{number}" for number in range(rng.choice((6, 12, 40))))
    fault: AnyFault
    match rng.randrange(8):
        case 0:
            fault = Kill(at_ms=at_ms, nodes=victim, is_silent=True)
        case 1:
            fault = Freeze(at_ms=at_ms, until_ms=back_ms, nodes=victim)
        case 2:
            fault = Partition(at_ms=at_ms, until_ms=back_ms, links=(f"{victim[0]}|*",))
        case 3:
            fault = Leave(at_ms=at_ms, nodes=victim)
        case _:
            fault = Kill(at_ms=at_ms, nodes=victim)
    backs = isinstance(fault, Kill) and rng.random() < 0.3
    return replace(
        steady,
        name=f"atomic seed {seed}",
        about="atomic batches, and one node that dies, freezes, is cut off or leaves in the middle of many",
        documents={
            "rules/api": {"rate": "100/s", "burst": rng.choice((5, 100))},
            "rules/other": {"rate": "1/m", "burst": 200, "algorithm": rng.choice(ALGORITHMS[1:3])},
        },
        changes=(),
        load=Load(
            checks_per_s=60.0,
            keys=keys,
            rules=("api", "other"),
            costs=rng.choice(((1,), (0, 1, 2, 5))),
            atomic_share=rng.choice((0.5, 1.0)),
        ),
        bursts=tuple(_batches(rng, keys, at_ms) for _ in range(10)),
        faults=(fault, *((Start(at_ms=back_ms, nodes=victim),) if backs else ())),
        expect=Expect(settles_within_ms=7_000, is_all_or_nothing=True),
    )


def generate_hot(seed: int, nodes_low: int = 2, nodes_high: int = 4) -> Scenario:
    """One or two keys, asked for so often that tokens of them are lent; random trouble, and a node that fails."""
    rng = random.Random(f"hot {seed}")
    steady = generate(seed, max(2, nodes_low), nodes_high)
    nodes = [node.id for node in steady.nodes]
    victim = (rng.choice(nodes),)
    at_ms = rng.randint(600, 900)
    moves: tuple[AnyFault, ...] = rng.choice(
        (
            (),
            (Kill(at_ms=at_ms, nodes=victim),),
            (Kill(at_ms=at_ms, nodes=victim, is_silent=True),),
            (Freeze(at_ms=at_ms, until_ms=at_ms + rng.choice((60, 300)), nodes=victim),),
            (Partition(at_ms=at_ms, until_ms=at_ms + rng.choice((60, 300)), links=(f"{victim[0]}|*",)),),
            (Leave(at_ms=at_ms, nodes=victim),),
        )
    )

    def rule() -> dict[str, Any]:
        rate, burst = rng.choice(("100/s", "1000/s", "1/d")), rng.choice((100, 500, 2_000))
        return {"rate": rate, "burst": burst, "lease": rng.choice((True, "auto"))}

    change = DocumentChange(at_ms=rng.randint(400, 1_200), key="rules/api", value=rule())
    return replace(
        steady,
        name=f"hot seed {seed}",
        about="tokens of hot keys are lent; random trouble with messages, and a node that fails",
        documents={"rules/api": rule()},
        changes=rng.choice(((), (), (change,))),
        load=Load(
            checks_per_s=rng.choice((600.0, 1_800.0)),
            keys=("user:1", "user:2")[: rng.choice((1, 2))],
            costs=rng.choice(((1,), (1, 1, 1, 5))),
            batch_max=rng.choice((1, 3)),
            refund_share=rng.choice((0.0, 0.001)),
            forget_share=rng.choice((0.0, 0.0005)),
        ),
        faults=rng.choice(((), steady.faults)) + moves,
        expect=Expect(settles_within_ms=7_000 if moves else 3_500),
    )


def _batches(rng: random.Random, keys: Sequence[str], at_ms: int) -> Burst:
    """Some atomic batches of the same three to five keys, around a time."""
    key, *others = rng.sample(keys, rng.randint(3, 5))
    rule = rng.choice(("api", "other"))
    every_us = rng.randint(500, 1_500)
    return Burst(at_ms=at_ms - 4, rule=rule, key=key, others=tuple(others), count=6, every_us=every_us)


def _changes(rng: random.Random, keys: tuple[str, ...]) -> list[DocumentChange]:
    changes = []
    for _ in range(rng.choice((0, 2, 6, 12))):
        at_ms = rng.randrange(FAULTS_UNTIL_MS)
        match rng.randrange(8):
            case 0 | 1 | 2:
                changes.append(DocumentChange(at_ms=at_ms, key="rules/api", value=_rule(rng, "orders")))
            case 3:
                # A deletion comes with a later return, so that the end of the run has something to judge.
                changes.append(DocumentChange(at_ms=at_ms, key="rules/other"))
                value = _rule(rng, None)
                changes.append(DocumentChange(at_ms=at_ms + rng.randint(1, 300), key="rules/other", value=value))
            case 4:
                multiplier: dict[str, Any] = {"multiplier": rng.choice((0.001, 0.3, 0.5, 0.77777, 1)), "pinned": True}
                pinned = None if rng.random() < 0.25 else multiplier
                changes.append(DocumentChange(at_ms=at_ms, key="multipliers/orders", value=pinned))
            case 5:
                value = rng.choice(BAD_VALUES)
                key = rng.choice(("rules/api", "rules/new"))
                changes.append(DocumentChange(at_ms=at_ms, key=key, value=value, is_bad=True))
            case _:
                changes.append(DocumentChange(at_ms=at_ms, key=f"keys/{rng.choice(keys)}", value=_entry(rng)))
    return changes


def _limit(rng: random.Random) -> dict[str, Any]:
    limit: dict[str, Any] = {"rate": f"{rng.choice((1, 3, 10, 100, 777))}/{rng.choice(PERIODS)}"}
    if rng.random() < 0.7:
        limit["burst"] = rng.choice((1, 2, 7, 20, 100, 1000))
    return limit


def _rule(rng: random.Random, backend: str | None) -> dict[str, Any]:
    rule = _limit(rng)
    rule["segments"] = {name: rng.choice((_limit(rng), {"priority": 1})) for name in SEGMENTS if rng.random() < 0.5}
    rule["on_unreachable"] = rng.choice(("local", "local", "allow", "deny"))
    if rng.random() < 0.15:
        rule["shadow"] = True
    if backend is not None and rng.random() < 0.7:
        rule["backend"] = backend
    return rule


def _by(algorithm: str, key: str, document: Any) -> Any:
    """A rule or a key entry with the algorithm in the place of the default one.

    Windows get a period that no run sees the end of, so that what they grant in it can be counted.
    """
    if algorithm == "token_bucket" or not isinstance(document, dict):
        return document
    written = {**document, "algorithm": algorithm} if key.startswith("rules/") else document
    return written if algorithm == "leaky_bucket" else _in_long_windows(written)


def _in_long_windows(document: Mapping[str, Any]) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for field, value in document.items():
        if field == "rate":
            count, _, period = value.partition("/")
            written[field] = f"{count}/{'d' if period in ('s', '2s', 'd') else 'h'}"
        elif field != "burst":
            written[field] = _in_long_windows(value) if isinstance(value, dict) else value
    return written


def _entry(rng: random.Random) -> Mapping[str, Any] | None:
    match rng.randrange(4):
        case 0:
            return None
        case 1:
            return {"segment": rng.choice((*SEGMENTS, "unlisted"))}
        case 2:
            return {"rules": {"api": _limit(rng)}}
        case _:
            return {"segment": rng.choice(SEGMENTS), "rules": {rng.choice(("api", "other")): _limit(rng)}}
