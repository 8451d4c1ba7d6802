"""The fleet of compose/ on a real Docker engine, from a clean clone to nothing left: `scripts/compose-test`.

Builds the image, brings everything up, kills a node and an etcd member, scales to five nodes and rolls all of them,
with checks sent through nginx all the while, and takes everything down. Stops at the first promise that is broken.
Published ports must be those of this machine; the project has a name of its own, so that a fleet that a person runs is
never touched, only in the way.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.chaos.load import Load
from tests.fleet import daily, say
from tests.harness import ROOT, check, eventually, get_json, request

if TYPE_CHECKING:
    from collections.abc import Iterator

CHECKS, ADMIN, APPLICATION, PROMETHEUS = (f"127.0.0.1:{port}" for port in (8080, 8081, 8090, 9090))
PROJECT = "limiter-test"
KEYS = [f"client:{number}" for number in range(20)]
RATE_PER_S = 100.0
UP_S_MAX = 120.0
PEER_TIMEOUT_MS = 1000  # not the default of 100: this machine may be busy, which must not pass for a dead peer
LOST_S = 0.050
"""What a killed node granted last may be granted again: the contract's bound."""

KILLED_BURST = 60
ROLLED_BURST = 100


class Stack:
    """compose.yaml of a clone, and what people do to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = os.environ | {
            "COMPOSE_PROJECT_NAME": PROJECT,
            "NODE_IMAGE": f"{PROJECT}/limiter-node",
            "PEER_TIMEOUT": str(PEER_TIMEOUT_MS),
        }

    def run(self, *command: str) -> str:
        """Run a command where compose.yaml is, and return what it printed."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}"
        return done.stdout

    def compose(self, *arguments: str) -> str:
        """Run `docker compose`."""
        return self.run("docker", "compose", *arguments)

    def put(self, key: str, document: Any) -> None:
        """Write a document with etcdctl, and wait until whoever is asked knows it."""
        self.compose("exec", "-T", "etcd-1", "/usr/local/bin/etcdctl", "put", f"/limiter/{key}", json.dumps(document))
        rule = key.removeprefix("rules/")

        def is_known() -> bool:
            return all(check(CHECKS, rule, "nobody", cost=0).status == 200 for _ in range(20))

        eventually(is_known, what=f"rule {rule} on every node")


def members() -> list[str]:
    """The nodes in the ring, by the word of one of them."""
    return sorted(member["id"] for member in get_json(ADMIN, "/v1/status")["ring"]["members"])


def wait_members(count: int) -> list[str]:
    """Wait until the ring has so many nodes."""
    eventually(lambda: len(members()) == count, UP_S_MAX, f"a ring of {count}")
    return members()


@contextmanager
def load(stack: Stack, rule: str, burst: int) -> Iterator[Load]:
    """Ask for tokens of all keys through nginx; on leaving, for more of each than it holds, and no check failed."""
    stack.put(f"rules/{rule}", daily(burst))
    with Load([CHECKS], rule, KEYS, RATE_PER_S) as running:
        yield running
        eventually(lambda: len(running.checks) > 1.5 * burst * len(KEYS), UP_S_MAX, "every key asked for enough")
    say(f"  {len(running.checks)} checks, {len(running.failed)} failed, {len(running.degraded)} degraded")
    assert not running.failed, f"failed: {[str(each) for each in running.failed[:10]]}"


# The parts


def comes_up(stack: Stack) -> None:
    began = time.monotonic()
    stack.compose("build", "--no-cache")
    say(f"image built from a clean clone: {time.monotonic() - began:.1f} s")
    size = stack.run("docker", "image", "inspect", "--format", "{{.Size}}", f"{PROJECT}/limiter-node")
    user = stack.run("docker", "image", "inspect", "--format", "{{.Config.User}}", f"{PROJECT}/limiter-node").strip()
    say(f"image: {int(size) / 1e6:.0f} MB with its base, user {user}")
    assert user not in ("", "0", "root")
    began = time.monotonic()
    stack.compose("up", "--detach")
    eventually(lambda: request(CHECKS, "GET", "/v1/check?rule=api&key=first").status == 200, UP_S_MAX, "a first 200")
    say(f"docker compose up to the first 200 through nginx: {time.monotonic() - began:.1f} s")
    wait_members(3)
    zones = sorted(member["zone"] for member in get_json(ADMIN, "/v1/status")["ring"]["members"])
    assert zones == ["a", "a", "b"], zones


def protects_an_application(stack: Stack) -> None:
    stack.put("rules/api", daily(5))
    answers = [request(APPLICATION, "POST", "/orders", body="one") for _ in range(8)]
    assert [answer.status for answer in answers] == [200] * 5 + [429] * 3, answers
    assert answers[-1].headers["retry-after"], answers[-1]
    say("an application behind nginx's auth_request: 5 of 8 requests pass, 3 get 429")


def survives_deaths(stack: Stack) -> None:
    say("a node and an etcd member are killed:")
    with load(stack, "killed", KILLED_BURST) as running:
        eventually(lambda: len(running.checks) > KILLED_BURST * len(KEYS) / 3, what="a third of the tokens granted")
        killed_s = running.now_s
        stack.compose("kill", "zone-b")
        dead_s = running.now_s
        wait_members(2)
        stack.compose("kill", "etcd-2")
        eventually(lambda: running.now_s > dead_s + 10, 20, "ten seconds without them")
        stack.compose("up", "--detach", "--wait")
        wait_members(3)
    granted = running.granted()
    extra = sum(max(0, count - KILLED_BURST) for count in granted.values())
    bound = sum(running.granted(killed_s - LOST_S, dead_s).values())
    say(f"  longest gap {running.gap.length_s * 1e3:.0f} ms, {extra} extra grants of at most {bound}")
    assert extra <= bound, granted


def scales_and_rolls(stack: Stack) -> None:
    say("scaled to five, then all five replaced one by one:")
    with load(stack, "rolled", ROLLED_BURST) as running:
        five = ("--scale", "zone-a=3", "--scale", "zone-b=2")
        began = time.monotonic()
        stack.compose("up", "--detach", "--no-recreate", "--wait", *five)
        before = wait_members(5)
        say(f"  five nodes after {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        stack.run("./roll")
        after = wait_members(5)
        say(f"  rolled in {time.monotonic() - began:.1f} s")
        assert not set(before) & set(after), (before, after)
        stack.compose("up", "--detach", "--wait", *five)
        assert members() == after, "an `up` after a roll must find nothing to replace"
    say(f"  longest gap {running.gap.length_s * 1e3:.0f} ms, p99 {running.latency_s(0.99) * 1e3:.0f} ms")
    assert running.granted() == dict.fromkeys(KEYS, ROLLED_BURST), running.granted()
    say(f"  every key was granted its {ROLLED_BURST} tokens, no more and no less")


def is_scraped(_: Stack) -> None:
    def targets() -> list[str]:
        active = get_json(PROMETHEUS, "/api/v1/targets?state=active")["data"]["activeTargets"]
        return sorted(f"{target['labels']['job']} {target['health']}" for target in active)

    expected = ["etcd up"] * 3 + ["limiter up"] * 5
    eventually(lambda: targets() == expected, 30, f"Prometheus' targets to be {expected}")
    say("Prometheus has five nodes and three etcd members up")


def goes_down(stack: Stack) -> None:
    stack.compose("down", "--volumes")
    label = f"label=com.docker.compose.project={PROJECT}"
    for listing in (["ps", "--all"], ["volume", "ls"], ["network", "ls"]):
        assert not stack.run("docker", *listing, "--quiet", "--filter", label), listing
    say("taken down: no container, volume or network left")


def main() -> None:
    """Run all parts on a clone of what is committed."""
    with tempfile.TemporaryDirectory(prefix="limiter-compose-") as directory:
        subprocess.run(["git", "clone", "--quiet", ROOT, directory], check=True)
        stack = Stack(Path(directory) / "compose")
        stack.compose("--profile", "grafana", "config", "--quiet")
        try:
            for part in (comes_up, protects_an_application, survives_deaths, scales_and_rolls, is_scraped):
                part(stack)
        except BaseException:
            sys.stderr.write(stack.compose("logs", "--no-color", "zone-a", "zone-b"))
            raise
        finally:
            goes_down(stack)


if __name__ == "__main__":
    main()
