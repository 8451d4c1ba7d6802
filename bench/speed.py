"""What one core carries: this node beside what users would pick instead, and beside itself asked in other ways."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench.comparison import Comparison, Figure, Plan, Subject
from bench.load import CHECKS_PER_BATCH, CONNECTIONS, CONNECTIONS_MANY, keys_of_13_bytes
from bench.servers import COPIED, Numbers, Stage, owners
from bench.systems import applications, envoy, limiter, nginx

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bench.servers import Cores, System

KEYS = 100_000
# Asked for in the forwarded figure, all owned by one node: as many again are looked up and left out.
KEYS_OWNED = 20_000
KEYS_OWNED_QUICK = 4_000
# No key is asked often enough to be denied: what is measured is checks that are allowed.
NUMBERS = Numbers(count=1_000, period_s=1, burst=2_000)

NODE = "node"
NGINX = "nginx return 200"
LIMITS_MEMORY = "aiohttp + limits in memory"
GCRA_REDIS = "aiohttp + GCRA Lua on Redis"
SYSTEMS: dict[str, Callable[[Stage, Cores, Numbers], System]] = {
    NODE: limiter.standalone,
    NGINX: nginx.returning,
    "nginx limit_req": nginx.limiting,
    "Envoy local rate limit": envoy.local_rate_limit,
    "aiohttp + dict": applications.with_dict,
    LIMITS_MEMORY: applications.with_limits,
    "aiohttp + limits on Redis": applications.with_limits_on_redis,
    GCRA_REDIS: applications.with_gcra_on_redis,
}
NODE_INTERPRETED = f"{NODE}, interpreted"
NODE_POST, NODE_BATCH, NGINX_POST = f"{NODE}, POST", f"{NODE}, batch of {CHECKS_PER_BATCH}", f"{NGINX}, POST"
FORWARDED, OWNER, ALONE = "forwarded", "asking the owner", "standalone"
AT_ONCE = f", {CONNECTIONS_MANY} connections"
APART = ", a core each"


def compare_local(plan: Plan) -> dict[str, Any]:
    """Single checks beside other systems', and batches against single checks."""
    with Stage() as stage:
        found = {name: start(stage, plan.cores, NUMBERS) for name, start in SYSTEMS.items() if plan.wants(name)}
        subjects = [Subject(name, system) for name, system in found.items()]
        if NODE in found:
            subjects += [Subject(NODE_POST, found[NODE], "post"), Subject(NODE_BATCH, found[NODE], "batch")]
            subjects.append(Subject(NODE_INTERPRETED, limiter.interpreted(stage, plan.cores, NUMBERS)))
        if NGINX in found:
            subjects.append(Subject(NGINX_POST, found[NGINX], "post"))
        targets = {NGINX: 0.80, LIMITS_MEMORY: 10, GCRA_REDIS: 12}
        comparison = Comparison(
            f"local: GET unless it says otherwise, {KEYS:,} keys in shuffled order, {CONNECTIONS} connections",
            subjects,
            [
                *(Figure(NODE, name, targets.get(name)) for name in SYSTEMS if name != NODE),
                Figure(NODE, NODE_INTERPRETED),
                Figure(NODE_POST, NODE),
                Figure(NODE_POST, NGINX_POST),
                Figure(NODE_BATCH, NODE, 5),
            ],
            does_not_show=(
                "a network, TLS, denials, several rules; latencies are those of a core kept busy by\n"
                "  32 clients; nginx and Envoy send no verdict, and nothing but the node is more than one machine"
            ),
        )
        return comparison.run(plan, write_keys(stage, keys_of_13_bytes(KEYS, seed=plan.seed)))


def compare_forwarded(plan: Plan) -> dict[str, Any]:
    """Checks that the asked node passes on to their owner: both on one core, and each on its own."""
    with Stage() as stage:
        pair = limiter.pair(stage, plan.cores, COPIED)
        apart = limiter.pair(stage, plan.cores, COPIED, name="apart", is_apart=True)
        alone = limiter.standalone(stage, plan.cores, COPIED)
        count = KEYS_OWNED_QUICK if plan.is_quick else KEYS_OWNED
        keys = owned_keys(pair, count, seed=plan.seed)
        of_owner = keys_by_owner(apart, count, seed=plan.seed)
        others, own = (write_keys(stage, of_owner[node], node) for node in (apart.owner_id, apart.asked_id))
        comparison = Comparison(
            f"forwarded: two nodes on one core and a real etcd, {len(keys):,} keys of the node not asked,"
            f" {CONNECTIONS} connections unless it says otherwise",
            [
                Subject(FORWARDED, pair.asked),
                Subject(OWNER, pair.owner),
                Subject(ALONE, alone),
                Subject(FORWARDED + AT_ONCE, pair.asked, connections=CONNECTIONS_MANY),
                Subject(OWNER + AT_ONCE, pair.owner, connections=CONNECTIONS_MANY),
                Subject(FORWARDED + APART, apart.asked, keyfile=others),
                Subject(OWNER + APART, apart.asked, keyfile=own),
                Subject(f"{FORWARDED}, POST", pair.asked, "post"),
                Subject(f"{OWNER}, POST", pair.owner, "post"),
                Subject(f"{FORWARDED}, batch of {CHECKS_PER_BATCH}", pair.asked, "batch"),
            ],
            [
                Figure(FORWARDED, OWNER, 0.70),
                Figure(FORWARDED + AT_ONCE, OWNER + AT_ONCE, 0.70),
                Figure(FORWARDED + APART, OWNER + APART),
                Figure(FORWARDED, ALONE),
                Figure(f"{FORWARDED}, POST", f"{OWNER}, POST"),
                Figure(f"{FORWARDED}, batch of {CHECKS_PER_BATCH}", FORWARDED),
            ],
            does_not_show=(
                "the round trip of a network; but for those with a core each the asked node and the owner take\n"
                "  turns on one, and the replica's copy is made on it, too; the other core has the load as well"
            ),
        )
        return comparison.run(plan, write_keys(stage, keys))


def owned_keys(pair: limiter.Pair, count: int, *, seed: int) -> list[str]:
    """About that many keys of the node that is not asked."""
    return keys_by_owner(pair, count, seed=seed)[pair.owner_id]


def keys_by_owner(pair: limiter.Pair, count: int, *, seed: int) -> dict[str, list[str]]:
    """About that many keys of either of the two."""
    keys = keys_of_13_bytes(2 * count, seed=seed)
    found: dict[str, list[str]] = {pair.asked_id: [], pair.owner_id: []}
    for key, name in zip(keys, owners(pair.asked.admin, keys), strict=True):
        found[name].append(key)
    return found


def write_keys(stage: Stage, keys: list[str], name: str = "keys") -> Path:
    """A file with a key a line."""
    path = stage.folder / name
    path.write_text("".join(f"{key}\n" for key in keys))
    return path
