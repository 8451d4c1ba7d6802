"""scale.md, its pictures and scale.json: how it grows, all of it from one run's results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench import plots
from bench.markdown import met_text, table, write_report
from bench.scale import projection
from bench.scale.keys import HAND_OVER_S, waits_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

BYTES_PER_KEY_MAX, LINEAR_FROM = 140, 1_000_000
WAIT_MS_MAX, WAIT_KEYS = 20.0, 1_000_000
PROJECTED = {"keys", "fleets", "traffic", "rings", "watchers"}


def write(results: dict[str, Any], folder: Path) -> None:
    """Write the whole report of these results, as they are in scale.json."""
    write_report(folder, "scale", results, page(results), pictures(results["parts"]))


def page(results: Mapping[str, Any]) -> str:
    """The text."""
    parts = results["parts"]
    found = ["# What one node, a rack and 1,000 nodes carry\n"]
    if parts.keys() >= PROJECTED:
        found += list(_projected(parts))
    found += ["## Targets\n", table(("figure", "target", "measured", ""), targets(parts))] if "keys" in parts else []
    sections = {"keys": _keys, "fleets": _fleets, "traffic": _traffic, "rings": _rings, "watchers": _watchers}
    for name, section in sections.items():
        if name in parts:
            found += list(section(parts[name]))
    found += ["## Measured on\n", *(f"- {name}: {value}" for name, value in results["facts"].items()), ""]
    return "\n".join(found)


def targets(parts: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each figure that has a target."""
    for of_keys in parts["keys"]:
        if of_keys["keys"] > LINEAR_FROM:
            found = [value for size, value in of_keys["bytes_per_key"] if size >= LINEAR_FROM]
            yield (
                f"bytes a key, {LINEAR_FROM:,} to {of_keys['keys']:,} keys",
                f"at most {BYTES_PER_KEY_MAX}",
                f"{min(found):.0f} to {max(found):.0f}",
                met_text(met=max(found) <= BYTES_PER_KEY_MAX),
            )
        if of_keys["keys"] == WAIT_KEYS:
            longest, idle = (
                max(of_keys[f"{phase}_{whose}_ms"] for phase in ("fill", "hand_over", "expiry"))
                for whose in ("wait", "idle")
            )
            label = f"longest wait at {WAIT_KEYS:,} keys, coming, moving and expiring (of an idle node beside it)"
            found_text = f"{longest:.1f} ms ({idle:.1f} ms)"
            yield label, f"at most {WAIT_MS_MAX:g} ms", found_text, met_text(met=longest <= WAIT_MS_MAX)


def pictures(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and contents of the pictures."""
    if "keys" in parts:
        series = {f"a node filled with {of['keys']:,}": of["bytes_per_key"] for of in parts["keys"]}
        yield "scale-keys.svg", plots.curves("Bytes a key of 13 bytes, by keys held", "keys", series)
    if "fleets" in parts:
        series = {
            "at rest, ms of a core a second and node": [
                (of["nodes"], of["rest_us_per_s"] / of["nodes"] / 1e3) for of in parts["fleets"]
            ],
            "a check, us of all nodes' cores": [(of["nodes"], of["check_us"]) for of in parts["fleets"]],
        }
        yield "scale-fleets.svg", plots.curves("Processor time by size of the fleet", "nodes", series)


def _projected(parts: Mapping[str, Any]) -> Iterator[str]:
    costs = projection.fit(parts["fleets"])
    yield (
        "Measured where a machine of two cores can, simulated or computed beyond; each node has one core to itself,"
        " keys are asked for evenly, and no network is in it. The formulas are those of `bench/scale/projection.py`:"
        f" here a node costs {costs.rest_us:,.0f} us of a core a second and {costs.peer_us:,.0f} for each peer, a check"
        f" {costs.local_us:.1f} us and {costs.forwarded_us:.1f} more if its key is another node's.\n"
    )
    rows = (
        (
            each["name"],
            f"{each['nodes']:,}",
            f"{each['checks_per_s']:,.0f}",
            f"{each['checks_per_node_s']:,.0f}",
            f"{each['at_rest']:.1%} at --peer-timeout {each['timeout_ms']:g}",
            f"{each['sent_per_node_s'] / 1e6:.1f} MB/s",
            f"{each['gb_per_10m_keys']:.1f} GB",
            f"{each['keepalives_per_s']:,.0f}",
        )
        for each in projection.carried(parts)
    )
    head = (
        "",
        "nodes",
        "checks/s",
        "of each",
        "of a core, at rest",
        "sent by each",
        "10 million keys",
        "keep-alives/s",
    )
    yield table(head, rows)
    yield "Sent are frames to owners and back, and copies; 10 million keys are those of a node, and as many copies.\n"
    yield "## What gives out first\n"
    for number, limit in enumerate(projection.limits(parts), 1):
        yield f"{number}. At {limit.nodes:,} nodes: {limit.what}; {limit.then}."
    yield ""


def _keys(found: list[dict[str, Any]]) -> Iterator[str]:
    def rows() -> Iterator[tuple[str, ...]]:
        for of in found:
            values = [value for size, value in of["bytes_per_key"] if size >= of["keys"] / 4]
            lasted = of["hand_over_s"]
            yield (
                f"{of['keys']:,}",
                f"{values[-1]:.0f} ({min(values):.0f} to {max(values):.0f} on the way)",
                f"{waits_text(of, 'fill')} at {of['fill_per_s']:,.0f} keys/s",
                waits_text(of, "hand_over"),
                f"{lasted:.1f} s"
                if lasted is not None
                else f"more than {HAND_OVER_S:.0f} s, when {of['handed_over']:,} were there",
                f"{waits_text(of, 'expiry')}, {of['held_at_once']:,} keys full after {of['refill_s']} s",
            )

    yield "## Keys on one node (real)\n"
    yield (
        "The wait is the longest of a client that asks 200 times a second; beside it, in the same seconds, of one that"
        " asks an idle node on the same core. Bytes go up and down by a sixth: the dicts"
        " of a table double in size together.\n"
    )
    head = ("keys", "bytes a key", "longest wait, coming", "moving to a new node", "which is ready after", "expiring")
    yield table(head, rows())
    yield "![bytes a key](scale-keys.svg)\n"


def _fleets(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Fleets (real nodes on one core)\n"
    rows = (
        (
            f"{of['nodes']}",
            f"{of['rest_us_per_s'] / of['nodes']:,.0f}",
            f"{of['check_us']:.1f}",
            f"{of['checks_per_s']:,.0f}",
        )
        for of in found
    )
    yield table(("nodes", "us a second and node at rest", "us a check besides, all nodes", "checks/s"), rows)
    yield "![processor time](scale-fleets.svg)\n"


def _traffic(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Between nodes (simulated, the product's own frames)\n"
    rows = (
        (
            f"{of['nodes']}",
            f"{of['frames_per_check']['checks']:.2f} frames, {of['bytes_per_check']['checks']:.0f} bytes",
            f"{of['frames_per_check']['copies']:.2f} frames, {of['bytes_per_check']['copies']:.0f} bytes",
            f"{of['pings_per_node_s']:,.0f} frames, {of['ping_bytes_per_node_s'] / 1e3:,.1f} kB",
        )
        for of in found
    )
    yield table(("nodes", "a check to its owner and back", "to its replica", "pings, a second and node"), rows)
    yield "Checks come one by one here: under load those of one pass of the loop share frames, and so do copies.\n"


def _rings(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Rings (computed, the product's own ring)\n"
    rows = (
        (
            f"{of['nodes']:,}",
            f"{of['largest']:.2f}, {of['smallest']:.2f}",
            f"{of['moved']:.4f} ({1 / (of['nodes'] + 1):.4f})",
            f"{of['build_ms']:,.0f} ms",
            f"{of['bytes'] / 1e6:.1f} MB",
        )
        for of in found
    )
    head = ("nodes", "largest and smallest share, to the fair one", "moved by a join (fair)", "made in", "memory")
    yield table(head, rows)


def _watchers(found: list[dict[str, Any]]) -> Iterator[str]:
    yield "## Changes (a real etcd, all watches in one client)\n"
    rows = (
        (
            f"{of['watches']:,}",
            f"{of['spread_ms']:.1f} ms ({of['spread_max_ms']:.1f} at worst)",
            f"{of['etcd_ms']:.1f} ms",
        )
        for of in found
    )
    yield table(("watches", "a change has reached all after", "etcd's processor time for it"), rows)
