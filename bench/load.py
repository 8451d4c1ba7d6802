"""Drives one server with wrk for a few seconds and reads what came of it.

One thread, 32 connections for each process, keep-alive, as fast as the answers come (a closed loop): the rate is the
server's, and the latencies are those of a server that is always busy.
"""

from __future__ import annotations

import json
import random
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bench.servers import ServerError

if TYPE_CHECKING:
    from collections.abc import Sequence

CONNECTIONS = 32
CONNECTIONS_MANY = 128
CHECKS_PER_BATCH = 100
SCRIPT = Path(__file__).with_name("check.lua")

Mode = Literal["get", "post", "batch"]
Expected = Literal["allowed", "denied"]  # what every answer has to say


@dataclass(frozen=True, slots=True)
class Run:
    """One run of wrk against one server."""

    checks_per_s: float
    # CPU time of all servers that took part, per check: a neighbour on the same core hardly moves it.
    cpu_us: float
    p50_ms: float
    p99_ms: float


class RunError(ServerError):
    """Some answers were not what the figure is about; their rate means nothing."""


def keys_of_13_bytes(count: int, *, seed: int) -> list[str]:
    """Return that many different keys in an order that is the seed's alone."""
    keys = [f"user:{number:08d}" for number in range(count)]
    random.Random(seed).shuffle(keys)
    return keys


def command(
    address: str,
    mode: Mode,
    keyfile: Path,
    *,
    rule: str,
    seconds: int,
    cpu: int | str,
    connections: int = CONNECTIONS,
) -> list[str]:
    """Return the command line of one run."""
    wrk = ["taskset", "-c", str(cpu), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency"]
    arguments = [mode, str(keyfile), rule, str(CHECKS_PER_BATCH)]
    return [*wrk, "-s", str(SCRIPT), f"http://{address}", "--", *arguments]


def cpu_ns(pids: Sequence[int]) -> int:
    """Return the CPU time that these processes have had, over all their threads."""
    return sum(
        int(path.read_text().split()[0]) for pid in pids for path in Path(f"/proc/{pid}/task").glob("*/schedstat")
    )


def drive(argv: list[str], pids: Sequence[int], *, expected: Expected = "allowed") -> Run:
    """Run wrk once against those servers; raise RunError when an answer was another one or a connection broke."""
    cpu_ns_before = cpu_ns(pids)
    result = _result(argv, _started(argv), expected)
    cpu_ns_used = cpu_ns(pids) - cpu_ns_before
    checks = result["requests"] * (CHECKS_PER_BATCH if "batch" in argv else 1)
    return Run(
        checks_per_s=checks / (result["duration_us"] / 1e6),
        cpu_us=cpu_ns_used / 1e3 / checks,
        p50_ms=result["p50_us"] / 1e3,
        p99_ms=result["p99_us"] / 1e3,
    )


def drive_together(argvs: Sequence[list[str]], pids: Sequence[int]) -> dict[int, float]:
    """Run wrk so many times at once, one check a request; {process: its CPU time in us, per check of all runs}."""
    cpu_ns_before = {pid: cpu_ns([pid]) for pid in pids}
    running = [(argv, _started(argv)) for argv in argvs]
    checks = sum(_result(argv, process, "allowed")["requests"] for argv, process in running)
    return {pid: (cpu_ns([pid]) - before) / 1e3 / checks for pid, before in cpu_ns_before.items()}


def _started(argv: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _result(argv: list[str], process: subprocess.Popen[str], expected: Expected) -> dict[str, Any]:
    seconds = next(int(word[2:-1]) for word in argv if word.startswith("-d"))
    try:
        output, errors = process.communicate(timeout=seconds + 30)
    finally:
        process.kill()
    lines = [line for line in output.splitlines() if line.startswith("RESULT ")]
    if process.returncode or not lines:
        raise RunError(f"{shlex.join(argv)} failed:\n{output}{errors}")
    result: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    refused = result["requests"] if expected == "denied" else 0
    if result["refused"] != refused or result["broken"] or not result["requests"]:
        raise RunError(f"{shlex.join(argv)}: not every check was {expected}:\n{output}")
    return result
