"""A few routers in one thread, joined by links that lose what a test wants lost; time passes when a test says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limiter_node.core.engine import Engine
from limiter_node.core.forward import Forward
from limiter_node.core.links import Link, LinkState
from limiter_node.core.model import Ask, Check, Member, Op, Outcome
from limiter_node.core.ring import Ring
from limiter_node.core.router import Router
from limiter_node.core.rules import parse_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from limiter_node.core.atomic import Batch
    from limiter_node.core.model import Reply, Request

TIMEOUT_NS = 100_000_000
TICK_NS = TIMEOUT_NS // 10
NOW_NS = 5_000_000_000


class Wire:
    """Carries one link's frames when its fleet talks."""

    def __init__(self) -> None:
        self.is_awake = False

    def wake(self) -> None:
        self.is_awake = True

    def hasten(self) -> None:
        pass

    def redial(self) -> None:
        pass

    def close(self) -> None:
        pass


class Routers:
    """Routers of these names. `loses` says of a request on its way, from and to whom, whether it is lost."""

    def __init__(self, *names: str, **rules: dict[str, Any]) -> None:
        self.now_ns = NOW_NS
        self.dead: set[str] = set()
        self.loses: Callable[[str, str, Request], bool] = lambda *_: False
        self.asked: list[tuple[str, str, Ask]] = []  # asks that arrived: from, to, what
        self.ring = Ring(7, {name: Member(name, f"{name}:8082") for name in names})
        self.nodes = {name: self._router(name, rules) for name in names}
        for node in self.nodes.values():
            node.set_ring(self.ring, self.now_ns)
            for link in node.links.values():
                node.on_up(link, self.now_ns)
        self.let_pass(2 * TIMEOUT_NS)

    def _router(self, name: str, rules: dict[str, dict[str, Any]]) -> Router:
        engine = Engine(buckets_max=100_000)
        for rule, document in rules.items():
            engine.set_rule(rule, parse_rule(rule, document), self.now_ns)
        return Router(
            name, engine, peer_timeout_ns=TIMEOUT_NS, replication_ns=2 * TICK_NS, open_link=lambda _: Wire(), boot=1
        )

    def __getitem__(self, name: str) -> Router:
        return self.nodes[name]

    @property
    def alive(self) -> list[Router]:
        return [node for name, node in self.nodes.items() if name not in self.dead]

    def keys(self, *owners: str) -> list[str]:
        """A key of each of these owners, all different."""
        found: list[str] = []
        for owner in owners:
            names = (f"k{number}" for number in range(10_000))
            found.append(next(key for key in names if self.ring.owner(key) == owner and key not in found))
        return found

    # What happens.

    def kill(self, name: str) -> None:
        """Its machine refuses connections from now on."""
        self.dead.add(name)
        for node in self.alive:
            node.on_down(node.links[name], self.now_ns, refused_ns=self.now_ns)

    def talk(self) -> None:
        """Let frames travel, and the answers to them, until there are no more."""
        while links := [(node, link) for node in self.alive for link in node.links.values() if self._has_news(link)]:
            for node, link in links:
                link.carrier.is_awake = False  # type: ignore[attr-defined]
                for request in node.flush(link, self.now_ns):
                    self._carry(node, link, request)

    def _has_news(self, link: Link) -> bool:
        assert isinstance(link.carrier, Wire)
        return link.state is LinkState.UP and link.carrier.is_awake

    def _carry(self, node: Router, link: Link, request: Request) -> None:
        name = link.peer.id
        if name in self.dead or node.node_id in self.dead or self.loses(node.node_id, name, request):
            return
        if isinstance(request, Ask):
            self.asked.append((node.node_id, name, request))

        def respond(reply: Reply) -> None:
            if node.node_id not in self.dead and name not in self.dead:
                node.on_reply(link, reply, self.now_ns)

        self.nodes[name].on_request(node.node_id, request, self.now_ns, respond)

    def let_pass(self, span_ns: int) -> None:
        """Let time pass, in ticks."""
        until_ns = self.now_ns + span_ns
        self.talk()
        while self.now_ns < until_ns:
            self.now_ns += TICK_NS
            for node in self.alive:
                for name in self.dead:
                    node.on_down(node.links[name], self.now_ns, refused_ns=self.now_ns)  # dialled again and again
                node.tick(self.now_ns)
                node.engine.tick(self.now_ns)
            self.talk()

    # What is asked.

    def begin(self, name: str, checks: Sequence[Check], **how: bool) -> Batch:
        """Ask a node for a batch; nothing has travelled yet."""
        return self.nodes[name].batches.check(checks, self.now_ns, **how)

    def batch(self, name: str, checks: Sequence[Check], **how: bool) -> Batch:
        """Ask a node for a batch, and wait until it is done."""
        batch = self.begin(name, checks, **how)
        for _ in range(100):
            self.talk()
            if batch.is_done:
                return batch
            self.let_pass(TICK_NS)
        raise AssertionError("the batch is not done")

    def ask(self, name: str, check: Check) -> Outcome:
        """Ask a node, and wait for the outcome."""
        outcome = self.nodes[name].check(check, self.now_ns)
        if not isinstance(outcome, Forward):
            return outcome
        late: list[Outcome] = []
        outcome.reply = late.append
        for _ in range(100):
            self.talk()
            if late:
                return late[0]
            self.let_pass(TICK_NS)
        raise AssertionError("no outcome")

    def shortcut(self, name: str, key: str) -> None:
        """Ask a node the short way, as a plain GET does; nothing has travelled yet, and nobody waits."""
        node = self.nodes[name]
        outcome = node.shortcut.check("api", key, self.now_ns) or node.check(Check("api", key), self.now_ns)
        if isinstance(outcome, Forward):
            outcome.reply = lambda _: None

    def begun(self, name: str, check: Check) -> list[Outcome]:
        """Ask a node, and wait for nothing but the frames; the outcome will be in the list."""
        outcomes: list[Outcome] = []
        outcome = self.nodes[name].check(check, self.now_ns)
        if isinstance(outcome, Forward):
            outcome.reply = outcomes.append
        else:
            outcomes.append(outcome)
        self.talk()
        return outcomes

    def remaining(self, key: str, rule: str = "api") -> int:
        """What a peek sees, from any node."""
        outcome = self.ask(self.alive[0].node_id, Check(rule, key, 0))
        return outcome.remaining  # type: ignore[union-attr]

    @property
    def held(self) -> dict[str, dict[tuple[str, str], int]]:
        """What is set aside, by node."""
        return {node.node_id: dict(node.engine.holds.tokens) for node in self.alive if node.engine.holds.tokens}

    def asks(self, op: Op) -> list[Ask]:
        """The asks that had such a question."""
        return [ask for _, _, ask in self.asked if any(check.op is op for check in ask.checks)]
