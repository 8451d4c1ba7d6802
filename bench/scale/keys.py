"""Many keys on one node: what they cost, and how long a check has to wait while they come, move or expire.

Two fresh nodes for each number of keys. One fills up, its memory read on the way, and then another node joins it: the
start of a hand-over. One fills with buckets that are full again soon after, so that generations turn and die. A client
that asks 200 times a second all the while tells the longest wait of a check: a stall of the node's loop, and whatever
else stands between them. What else, a control tells: another such client, of an idle node on the same core in the same
seconds. Keys come in batches of 1,000, which hold the loop for some 3 ms each.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self

from bench.load import keys_of_13_bytes
from bench.memory import fill, private_bytes
from bench.progress import tell
from bench.scale.probe import Probe
from bench.servers import RULE, Numbers, Stage, put, read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bench.servers import Cores, System

SIZES = (100_000, 1_000_000, 10_000_000)
SIZES_QUICK = (20_000, 100_000)
STEPS = 20  # memory is read at so many sizes on the way
BURST = 100
# Seconds in which an emptied bucket is full again: longer than filling takes, so that all keys are there at once.
REFILL_S_MIN, REFILL_S_PER_KEY = 5, 12e-6
HAND_OVER_S = 20.0  # of one that takes longer only the start is watched


def measure(cores: Cores, *, is_quick: bool) -> list[dict[str, Any]]:
    """Take the figures of each number of keys."""
    found = []
    for count in SIZES_QUICK if is_quick else SIZES:
        keys = keys_of_13_bytes(count, seed=1)
        of_keys = {"keys": count, **_hold(keys, cores), **_expire(keys, cores)}
        found.append(of_keys)
        tell("")
        bytes_per_key = [value for size, value in of_keys["bytes_per_key"] if size >= count / 4]
        print(
            f"  {count:>10,} keys: {bytes_per_key[-1]:.0f} bytes a key, {min(bytes_per_key):.0f} to"
            f" {max(bytes_per_key):.0f} on the way; longest wait (an idle node's beside it)"
            f" {waits_text(of_keys, 'fill')} while they come, {waits_text(of_keys, 'hand_over')} while they move,"
            f" {waits_text(of_keys, 'expiry')} in expiry",
            flush=True,
        )
    return found


def waits_text(of_keys: Mapping[str, Any], phase: str) -> str:
    """The longest wait in a phase, and the control's."""
    return f"{of_keys[f'{phase}_wait_ms']:.1f} ms ({of_keys[f'{phase}_idle_ms']:.1f})"


class Probes:
    """A probe of a node, and one of an idle node on the same core."""

    def __init__(self, stage: Stage, node: System, cores: Cores) -> None:
        idle = stage.standalone({RULE: Numbers(BURST, 86_400, BURST).rule}, cpu=cores.server, name="idle")
        self._node, self._idle = Probe(node, cpu=cores.load), Probe(idle, cpu=cores.load)

    def longest_waits(self, phase: str) -> dict[str, float]:
        """Since they were last asked, by phase, in ms."""
        return {f"{phase}_wait_ms": self._node.longest_wait_ms(), f"{phase}_idle_ms": self._idle.longest_wait_ms()}

    def __enter__(self) -> Self:
        self._node.__enter__()
        self._idle.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._idle.__exit__()
        self._node.__exit__()


def _hold(keys: Sequence[str], cores: Cores) -> dict[str, Any]:
    with Stage() as stage:
        etcd = stage.etcd(cpu=cores.load)
        put(etcd, f"/limiter/rules/{RULE}", Numbers(BURST, 86_400, BURST).rule)
        node = stage.node("first", ["--etcd", etcd], cpu=cores.server)
        fill(node, RULE, ["warm"] * 100_000, cost=0)
        bytes_per_key: list[tuple[int, float]] = []
        with Probes(stage, node, cores) as probes:
            before = private_bytes(node.server.pid)
            began_s = time.monotonic()
            _fill(
                node,
                keys,
                cost=1,
                after=lambda held: bytes_per_key.append((held, (private_bytes(node.server.pid) - before) / held)),
            )
            return {
                "bytes_per_key": bytes_per_key,
                "fill_per_s": len(keys) / (time.monotonic() - began_s),
                **probes.longest_waits("fill"),
                **_hand_over(stage, probes, ["--etcd", etcd], cores),
            }


def _hand_over(stage: Stage, probes: Probes, options: Sequence[str], cores: Cores) -> dict[str, Any]:
    # The one that joins has the other core: what is asked is how the first one fares.
    joining = stage.joining_node("second", options, cpu=cores.load)
    began_s = time.monotonic()
    while not (is_ready := joining.is_ready()) and time.monotonic() - began_s < HAND_OVER_S:
        tell(f"another node joins: {time.monotonic() - began_s:.0f} s")
        time.sleep(0.5)
    lasted_s = time.monotonic() - began_s
    return {
        **probes.longest_waits("hand_over"),
        "hand_over_s": lasted_s if is_ready else None,
        "handed_over": read_json(f"http://{joining.admin}/v1/status")["keys"],
    }


def _expire(keys: Sequence[str], cores: Cores) -> dict[str, Any]:
    refill_s = max(REFILL_S_MIN, round(REFILL_S_PER_KEY * len(keys)))
    with Stage() as stage:
        node = stage.standalone({RULE: Numbers(BURST, refill_s, BURST).rule}, cpu=cores.server)
        with Probes(stage, node, cores) as probes:
            _fill(node, keys, cost=BURST)
            held = _held(node)
            probes.longest_waits("fill")
            began_s = time.monotonic()
            while left := _held(node):
                tell(f"{left:,} keys are not full yet")
                time.sleep(1)
            return {
                "refill_s": refill_s,
                "held_at_once": held,
                "expired_s": time.monotonic() - began_s,
                **probes.longest_waits("expiry"),
            }


def _fill(node: System, keys: Sequence[str], *, cost: int, after: Callable[[int], None] = lambda _: None) -> None:
    step = len(keys) // STEPS
    for first in range(0, len(keys), step):
        fill(node, RULE, keys[first : first + step], cost=cost)
        after(first + step)
        tell(f"{first + step:,} of {len(keys):,} keys")


def _held(node: System) -> int:
    return int(read_json(f"http://{node.admin}/v1/status")["keys"])
