"""Shows the whole thing running: a real etcd, three nodes, nginx in front, rules for free and premium users.

    ./scripts/demo [--once]

Parts, in reading order: `demo_fleet` (what runs), `demo_traffic` (the first act: users who ask for more than their rule
grants), `demo_overload` (the second: a backend is drowned), and story(), which is told on the screen.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shlex
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from demo_fleet import API_RULE, DemoError, Fleet, fleet_in_a_folder, say
from demo_overload import PLAN, WAY, Act, summary
from demo_traffic import TRAFFIC_S, Traffic, with_free_rate

from tests.overload.scenario import BACKEND

if TYPE_CHECKING:
    from collections.abc import Coroutine


def show_curls(fleet: Fleet) -> None:
    """Print what to type in another terminal."""
    check = f"http://{fleet.front}/v1/check"
    change = shlex.join([*fleet.etcdctl_put("rules/api"), json.dumps(with_free_rate("1/m"))])
    back = shlex.join([*fleet.etcdctl_put("rules/api"), json.dumps(API_RULE)])
    pin = shlex.join([*fleet.etcdctl_put(f"multipliers/{BACKEND}"), '{"multiplier": 0.3, "pinned": true}'])
    unpin = shlex.join([*fleet.etcdctl_put(f"multipliers/{BACKEND}")[:-2], "del", f"/limiter/multipliers/{BACKEND}"])
    report = json.dumps({"backend": BACKEND, "outcomes": [{"latency_ms": 12.5, "status": 200, "count": 3}]})
    say(f"""
Try, in another terminal (alice is premium: 50/s, burst 100; bob is free: 5/s, burst 10):

  # 200, with what is left; X-Answered-By is the node that nginx chose
  curl -i '{check}?rule=api&key=alice'

  # the same as JSON, and three tokens at once
  curl -i {check} -d '{{"rule": "api", "key": "alice", "cost": 3}}' -H 'Content-Type: application/json'

  # ten times 200, then 429: bob's burst is spent, whichever node answers
  for i in $(seq 15); do curl -s -o /dev/null -w '%{{http_code}} ' '{check}?rule=api&key=bob'; done; echo

  # a live change: free users get one a minute; run the line above again
  ETCDCTL_API=3 {change}
  # and back
  ETCDCTL_API=3 {back}

  # the backend that the limiter protects, through nginx: 200, or 429 while it is overloaded
  curl -i http://{fleet.front}/guarded/ -H 'X-User: eve' -H 'X-Segment: free'

  # tell how the backend answers (nginx's log does, here): 202 from any node
  curl -i http://{fleet.front}/v1/report -d '{report}' -H 'Content-Type: application/json'

  # pin the backend's multiplier: alice's limit is 30 now; and give it back to the controller
  ETCDCTL_API=3 {pin}
  ETCDCTL_API=3 {unpin}

  # what a node knows: the fleet, the rules, who owns a key, a bucket
  curl -s http://{fleet.admins[0]}/v1/status
  curl -s http://{fleet.admins[0]}/v1/rules
  curl -s 'http://{fleet.admins[0]}/v1/owner?key=alice'
  curl -s http://{fleet.admins[0]}/v1/keys/api/alice
""")


async def story(*, once: bool, picture: Path) -> bool:
    """Run the demo; say whether all was as promised."""
    timeout = aiohttp.ClientTimeout(total=5)
    async with fleet_in_a_folder() as fleet, aiohttp.ClientSession(timeout=timeout) as http:
        await fleet.start(http)
        say(f"\nTraffic through nginx for {TRAFFIC_S} s, everybody asking for more than is granted:\n")
        kept = await unless_something_dies(fleet, Traffic(fleet, http).run())
        if not once:
            await unless_something_dies(fleet, second_act(fleet, http, picture))
        # After the traffic: whoever tries them meanwhile would change the rule under it.
        show_curls(fleet)
        if not once:
            say("Everything stays up until Ctrl-C.")
            await watch_over(fleet)
        return kept


async def second_act(fleet: Fleet, http: aiohttp.ClientSession, picture: Path) -> bool:
    """Drown the backend with and without the limiter; the picture stays when the demo is gone."""
    say(f"\nA backend is drowned for {PLAN.overload_s:g} s ({WAY.title}), with and without the limiter before it:\n")
    run = await Act(http, fleet.front, fleet.backends, fleet.admins).play(picture)
    say("\n".join(["", *summary(run), f"  drawn in {picture}"]))
    return True


async def unless_something_dies(fleet: Fleet, work: Coroutine[Any, Any, bool]) -> bool:
    """Await the work, but raise DemoError as soon as a piece of the fleet ends."""
    working, death = asyncio.ensure_future(work), asyncio.ensure_future(fleet.first_death())
    try:
        await asyncio.wait([working, death], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise DemoError((await death).obituary())
        return await working
    finally:
        working.cancel()
        death.cancel()


async def watch_over(fleet: Fleet) -> None:
    """Stay until cancelled, telling of every piece that ends."""
    while any(piece.lives for piece in fleet.pieces):
        say("\n" + (await fleet.first_death()).obituary())
    raise DemoError("nothing is left running")


async def until_told(*, once: bool, picture: Path) -> int:
    """Run the story until it ends or a signal says so; return the exit code."""
    told: list[signal.Signals] = []
    task = asyncio.ensure_future(story(once=once, picture=picture))

    def stop(sent: signal.Signals) -> None:
        # Only the first counts: a second Ctrl-C must not interrupt the cleaning up.
        if not told:
            told.append(sent)
            say("\nstopping")
            task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    try:
        return 0 if await task else 1
    except asyncio.CancelledError:
        return 0 if told == [signal.SIGINT] else 128 + told[0]
    except (DemoError, aiohttp.ClientError) as failure:
        print(f"\n{failure}", file=sys.stderr)
        return 1


def main() -> None:
    """Parse the command line and run the demo."""
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="A real etcd, three nodes and nginx in front, with sample rules and some traffic.",
    )
    parser.add_argument("--once", action="store_true", help="end after the traffic instead of staying up")
    parser.add_argument(
        "--picture",
        type=Path,
        default=Path(tempfile.gettempdir()) / "limiter-demo-overload.svg",
        help="where the drowned backend is drawn; not with --once  [default: %(default)s]",
    )
    options = parser.parse_args()
    sys.exit(asyncio.run(until_told(once=options.once, picture=options.picture)))


if __name__ == "__main__":
    main()
