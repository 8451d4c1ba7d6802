"""Nodes with several workers on two cores, and one with one on one; each has its load on the same cores as itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.comparison import Comparison, Figure, Plan, Subject
from bench.hot import SPENT
from bench.load import CHECKS_PER_BATCH, CONNECTIONS, CONNECTIONS_MANY, keys_of_13_bytes
from bench.servers import COPIED, RULE, Stage, read_json
from bench.speed import KEYS, NGINX, write_keys
from bench.systems import limiter, nginx

if TYPE_CHECKING:
    from bench.servers import System

ONE, TWO, FOUR = "1 worker on 1 core", "2 workers on 2 cores", "4 workers on 2 cores"
NGINX_ONE, NGINX_FOUR = f"{NGINX}, {ONE}", f"{NGINX}, {FOUR}"
BATCH, DENIED = f", batch of {CHECKS_PER_BATCH}", ", one denied key"


def compare(plan: Plan) -> dict[str, Any]:
    """Keys that are allowed, one by one and in batches, and one that has nothing left."""
    with Stage() as stage:
        server, both = plan.cores.server, plan.cores.both
        one = limiter.with_workers(stage, server, COPIED, 1)
        two, four = (limiter.with_workers(stage, both, COPIED, count) for count in (2, 4))
        spent_one, spent_four = (
            limiter.with_workers(stage, cores, SPENT, count) for cores, count in ((server, 1), (both, 4))
        )
        denied = write_keys(stage, ["hot"], "denied")
        for node in (spent_one, spent_four):
            assert read_json(f"http://{node.http}/v1/check?rule={RULE}&key=hot")["allowed"]

        bare_one, bare_four = nginx.with_workers(stage, server, 1), nginx.with_workers(stage, both, 4)

        def asked(name: str, node: System, **how: Any) -> Subject:
            return Subject(name, node, load_cpus=str(server) if ONE in name else both, **how)

        nodes = {ONE: one, TWO: two, FOUR: four}
        comparison = Comparison(
            f"workers: {KEYS:,} keys in shuffled order, {CONNECTIONS_MANY} connections, of batches {CONNECTIONS}",
            [
                *(asked(name, node, connections=CONNECTIONS_MANY) for name, node in nodes.items()),
                # On more connections a node with one worker refuses some: they would wait too long.
                *(asked(name + BATCH, node, mode="batch") for name, node in nodes.items()),
                *(
                    asked(name + DENIED, node, connections=CONNECTIONS_MANY, keyfile=denied, expected="denied")
                    for name, node in ((ONE, spent_one), (FOUR, spent_four))
                ),
                *(
                    asked(name, system, connections=CONNECTIONS_MANY)
                    for name, system in ((NGINX_ONE, bare_one), (NGINX_FOUR, bare_four))
                ),
            ],
            [
                Figure(FOUR, ONE, 1.5),
                Figure(TWO, ONE),
                *(Figure(name + BATCH, ONE + BATCH) for name in (FOUR, TWO)),
                Figure(FOUR + DENIED, ONE + DENIED),
                Figure(NGINX_FOUR, NGINX_ONE),  # whose workers have nothing to tell each other
            ],
            does_not_show=(
                "cores without their load on them; each of n workers owns one key in n, so all but\n"
                "  1 / n of the checks are decided by another one"
            ),
        )
        return comparison.run(plan, write_keys(stage, keys_of_13_bytes(KEYS, seed=plan.seed)))
