"""The plans of a rule under every change there is, in random order: a key's bucket is in one of them at most.

What keys have spent is in tests/property/test_entries.py and tests/unit/test_joint_plan.py.
"""

from random import Random
from typing import Any

import pytest

from limiter_node.core.backends import parse_record
from limiter_node.core.engine import Engine
from limiter_node.core.explain import explain
from limiter_node.core.model import Check, Verdict
from limiter_node.core.plan import tables
from limiter_node.core.rules import parse_key_entry, parse_rule

S = 1_000_000_000
ALGORITHMS = ("token_bucket", "leaky_bucket", "fixed_window", "sliding_window", "sliding_log")
KEYS = ("10.1.1.1", "10.1.1.2", "ab", "b")
NAMES = (*KEYS, "10.1.0.0/16", "10.*", "*b", "*")
SEEDS = range(20)
STEPS = 100


class Story:
    """Two engines that tell each other copies and hear of most changes both."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now_ns = 10**15
        self.engines = [Engine(buckets_max=self.random.choice([3, 1_000])) for _ in range(2)]
        self.told = self.engines

    def limit(self) -> dict[str, Any]:
        rate = f"{self.random.choice([5, 10, 50])}/{self.random.choice(['m', 'd', '10s'])}"
        return {"rate": rate, "algorithm": self.random.choice(ALGORITHMS)}

    def numbers(self) -> dict[str, Any]:
        number = self.random.randint(0, 3)
        return {"limits": [self.limit() for _ in range(number)]} if number else self.limit()

    def key(self) -> str:
        return self.random.choice(KEYS)

    def check(self) -> None:
        check = Check("api", self.key(), self.random.randint(0, 4), self.random.choice([None, "premium"]))
        verdict = self.engines[0].check(check, self.now_ns)
        if isinstance(verdict, Verdict) and verdict.limits:
            assert verdict.allowed == all(limit.retry_ns == 0 for limit in verdict.limits)
            assert (verdict.limit, verdict.retry_ns) in [(limit.limit, limit.retry_ns) for limit in verdict.limits]

    def check_alone(self) -> None:
        self.engines[0].check_alone(Check("api", self.key(), 2), self.random.randint(1, 4), self.now_ns)

    def entry(self) -> None:
        name = self.random.choice(NAMES)
        document = self.random.choice([None, {}, {"segment": "premium"}, {"rules": {"api": self.numbers()}}])
        for engine in self.told:
            engine.set_entry(name, None if document is None else parse_key_entry(name, document), self.now_ns)

    def rule(self) -> None:
        segments = self.random.choice([{}, {"premium": self.numbers()}])
        rule = parse_rule("api", {**self.numbers(), "backend": "orders", "segments": segments})
        for engine in self.told:
            engine.set_rule("api", rule if self.random.random() < 0.95 else None, self.now_ns)

    def multiplier(self) -> None:
        record = parse_record("orders", {"multiplier": self.random.choice([0.1, 0.5, 1.0])})
        for engine in self.told:
            engine.backends.set_record("orders", record, self.now_ns)
            engine.rescale("orders", self.now_ns)

    def copy(self) -> None:
        copy = self.engines[0].copy("api", self.key(), self.now_ns)
        if copy is not None:
            self.engines[1].merge(copy, self.now_ns, follows=self.random.random() < 0.5)

    def look(self) -> None:
        explain(self.engines[0], "a", Check("api", self.key()), self.now_ns)
        self.engines[0].inspect("api", self.key(), self.now_ns)

    def give_back(self) -> None:
        self.engines[0].refund("api", self.key(), 2, self.now_ns)

    def forget(self) -> None:
        self.engines[0].forget("api", self.key(), self.now_ns)
        self.engines[1].drop("api", self.key())

    def take_turns(self) -> None:
        self.engines.reverse()

    def step(self) -> None:
        self.now_ns += self.random.choice([0, 0, 1, S, 30 * S, 3_600 * S])
        self.told = self.engines if self.random.random() < 0.8 else [self.random.choice(self.engines)]
        rare = [self.check_alone, self.multiplier, self.look, self.give_back, self.forget, self.take_turns]
        self.random.choice([*[self.check] * 12, *[self.entry, self.rule, self.copy] * 3, *rare])()
        for engine in self.engines:
            if self.random.random() < 0.5:
                engine.tick(self.now_ns)


def assert_whole(engine: Engine) -> None:
    rule = engine.rules.get("api")
    plans = list(rule.all_plans()) if rule else []
    assert engine.buckets == sum(len(table) for plan in plans for table in tables(plan)) <= engine.buckets_max
    for key in KEYS:
        holding = [plan for plan in plans if plan.has(key)]
        assert len(holding) <= 1
        assert rule is None or rule.holding(key) is (holding[0] if holding else None)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_key_is_in_one_plan_at_most_and_is_found_there_and_counted(seed: int) -> None:
    story = Story(seed)
    for _ in range(STEPS):
        story.step()
        for engine in story.engines:
            assert_whole(engine)
