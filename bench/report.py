"""speed.md, its pictures and speed.json: what one run of the bench measured, all of it from its results."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench import plots
from bench.hot import AT_OWNER, ELSEWHERE, KEPT, KEPT_AT_OWNER, LENT
from bench.markdown import met_text, spread_text, table, write_report
from bench.speed import ALONE, FORWARDED, NODE, OWNER
from bench.stats import Spread
from bench.workers import FOUR, ONE, TWO

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

OURS = NODE, FORWARDED, OWNER, ALONE, ELSEWHERE, AT_OWNER, LENT, KEPT, KEPT_AT_OWNER, ONE, TWO, FOUR

COMPARISONS = {
    "local": "Checks a second on one core",
    "forwarded": "Two nodes on one core: checks a second",
    "denied": "One key that has nothing left: denials a second",
    "leases": "One hot key within its limit: checks a second",
    "workers": "Workers beside their load: checks a second",
}
"""The parts that are comparisons, and what their pictures are of."""

HOW_TO_READ = """\
Every system has one core, the load generator the other; Redis and etcd are on that other core, too, where neither is
ever short of it. Only one system is asked at a time, in turn, and a ratio is of medians, with the least and greatest
ratio within a round. "CPU us" is processor time per check of all processes that work on it, Redis and the second node
included; a ratio of it is hardly moved by neighbours on the same machine. Rates are from a closed loop (wrk), whose
latencies are those of a server that is always busy; latencies are from an open loop, which asks at fixed rates whatever
the answers do.
"""


def write(results: dict[str, Any], folder: Path) -> None:
    """Write the whole report of these results, as they are in speed.json."""
    write_report(folder, "speed", results, page(results), pictures(results["parts"]))


def page(results: dict[str, Any]) -> str:
    """The text."""
    parts = results["parts"]
    found = ["# Speed of one core\n", *(f"- {name}: {value}" for name, value in results["facts"].items()), ""]
    found += [HOW_TO_READ, "## Targets\n", table(("figure", "target", "measured", ""), targets(parts))]
    for name in COMPARISONS:
        if name in parts:
            found += [f"## {name.capitalize()}\n", _comparison(parts[name]), f"![{name}](speed-{name}.svg)\n"]
    if "local" in parts:
        found.append("![processor time](speed-cpu.svg)\n")
    if "latency" in parts:
        found += ["## Latency\n", _latency(parts["latency"]), "![p99 by rate](speed-latency.svg)\n"]
    if "memory" in parts or "footprint" in parts:
        found += ["## Bytes per key\n", *_memory(parts)]
    return "\n".join(found)


def targets(parts: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each figure that has a target."""
    for name in COMPARISONS:
        for figure in parts.get(name, {}).get("figures", ()):
            if figure["target"] is not None:
                label = f"{figure['of']} / {figure['against']}"
                asked = f"at least {figure['target']:g}"
                yield label, asked, spread_text(Spread(*figure["rate"]), 2), met_text(met=figure["met"])
    if fleet := parts.get("leases", {}).get("fleet"):
        times = Spread(*fleet["ratio"])
        label = f"one hot key within its limit, {fleet['nodes']} nodes with a core each, leases / none"
        met = met_text(met=times.median >= fleet["target"])
        yield label, f"at least {fleet['target']:g}", spread_text(times, 2), met
    latency = parts.get("latency", {})
    if latency.get("added_p99"):
        added, most = Spread(*latency["added_p99"]), latency["added_p99_max"]
        label = "p99 that forwarding adds at half load, in p99s of a local check"
        yield label, f"at most {most:g}", spread_text(added, 2), met_text(met=added.median <= most)
    memory = parts.get("memory")
    if memory:
        bytes_per_key = [size["bytes_per_key"] for size in memory["sizes"]]
        most = memory["bytes_per_key_max"]
        measured = f"{min(bytes_per_key):.0f} to {max(bytes_per_key):.0f}"
        label = f"bytes a key, {memory['sizes'][0]['keys']:,} to {memory['sizes'][-1]['keys']:,} keys"
        yield label, f"at most {most}", measured, met_text(met=max(bytes_per_key) <= most)


def pictures(parts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names and contents of the pictures."""
    for name, title in COMPARISONS.items():
        if name in parts:
            yield f"speed-{name}.svg", _bars(title, parts[name], "checks_per_s")
    if "local" in parts:
        yield "speed-cpu.svg", _bars("Processor time of a check, us, all processes", parts["local"], "cpu_us", digits=1)
    if "latency" in parts:
        yield "speed-latency.svg", _p99_by_rate(parts["latency"])
    if "footprint" in parts:
        found = {name: Spread(value, value, value) for name, value in parts["footprint"]["bytes_per_key"].items()}
        yield "speed-bytes.svg", plots.bars("Bytes a key of 13 bytes", found, ours=(NODE,))


def _bars(title: str, comparison: Mapping[str, Any], of: str, digits: int = 0) -> str:
    spreads = {name: Spread.of(run[of] for run in runs) for name, runs in comparison["runs"].items()}
    return plots.bars(title, spreads, ours=[name for name in spreads if name.startswith(OURS)], digits=digits)


def _comparison(comparison: Mapping[str, Any]) -> str:
    def row(name: str, runs: list[dict[str, float]]) -> tuple[str, ...]:
        rate, cpu, p50, p99 = (
            Spread.of(run[of] for run in runs) for of in ("checks_per_s", "cpu_us", "p50_ms", "p99_ms")
        )
        return name, spread_text(rate), spread_text(cpu, 1), f"{p50.median:.2f}", f"{p99.median:.2f}"

    head = ("", "checks/s: median (least to most)", "CPU us a check", "p50 ms", "p99 ms")
    ratios = (
        (
            f"{figure['of']} / {figure['against']}",
            spread_text(Spread(*figure["rate"]), 2),
            spread_text(Spread(*figure["cpu"]), 2),
        )
        for figure in comparison["figures"]
    )
    said, busy = " ".join(comparison["does_not_show"].split()), comparison.get("owner_busy")
    return "\n".join(
        [
            f"{comparison['title']}; the hypervisor took {comparison['stolen']:.1%} of the time.\n",
            table(head, (row(name, runs) for name, runs in comparison["runs"].items())),
            table(("ratio", "of rates (within a round)", "of checks in the same CPU time"), ratios),
            f"Does not show: {said}.\n",
            *([f"The owner's share of a core meanwhile: {busy:.1%}.\n"] if busy is not None else []),
            *([_fleet(fleet)] if (fleet := comparison.get("fleet")) else []),
        ]
    )


def _fleet(fleet: Mapping[str, Any]) -> str:
    busiest = (f"{spread_text(Spread.of(us), 1)} us, {name}" for name, us in fleet["busiest_us"].items())
    return (
        f"The key asked for at all of {fleet['nodes']} nodes at once, which share a core here; CPU time of the busiest"
        f" node, per check of all, which bounds a fleet whose nodes have a core each: {'; '.join(busiest)}.\n"
    )


def _latency(latency: Mapping[str, Any]) -> str:
    def rows() -> Iterator[tuple[str, ...]]:
        for name, by_rate in latency["runs"].items():
            for rate, runs in by_rate.items():
                of = {of: Spread.of(run[of] for run in runs) for of in runs[0]}
                asked = f"{runs[0]['rate_per_s']:,.0f}/s" if rate == "half load" else rate
                yield (
                    name,
                    f"{asked} (half load)" if rate == "half load" else asked,
                    *(f"{of[figure].median:.2f}" for figure in ("p50_ms", "p90_ms")),
                    spread_text(of["p99_ms"], 2),
                    f"{of['p999_ms'].median:.2f}",
                    f"{of['cpu_us'].median:.1f}",
                    f"{of['client_late_p99_ms'].median:.2f}",
                )

    head = ("", "rate", "p50 ms", "p90 ms", "p99 ms", "p99.9 ms", "CPU us", "client late, p99 ms")
    said = f"the hypervisor took {latency['stolen']:.1%} of the time"
    return f"From when each check was due; medians of rounds; {said}.\n\n{table(head, rows())}"


def _p99_by_rate(latency: Mapping[str, Any]) -> str:
    series = {
        name: sorted(
            (runs[0]["rate_per_s"], Spread.of(run["p99_ms"] for run in runs).median) for runs in by_rate.values()
        )
        for name, by_rate in latency["runs"].items()
    }
    return plots.curves("p99 of a check, ms, open loop", "checks a second", series)


def _memory(parts: Mapping[str, Any]) -> Iterator[str]:
    if "memory" in parts:
        rows = ((f"{size['keys']:,}", f"{size['bytes_per_key']:.0f}") for size in parts["memory"]["sizes"])
        yield table(("keys in a node", "bytes a key"), rows)
        back = parts["memory"]["given_back"]
        yield f"{back['share']:.0%} given back to the system once buckets are full again.\n"
    if "footprint" in parts:
        footprint = parts["footprint"]
        yield f"Beside others, {footprint['keys']:,} keys, private memory of all processes:\n"
        yield table(("", "bytes a key"), ((name, f"{value:.0f}") for name, value in footprint["bytes_per_key"].items()))
        yield "![bytes a key](speed-bytes.svg)\n"
