"""The rulebook and the rules file: good documents come into force, bad ones change nothing and are told of."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from limiter_node.control.rulebook import RuleBook
from limiter_node.control.rules_file import Reading, RulesFile, check_file
from limiter_node.core.engine import Engine
from limiter_node.core.errors import BadRule, ConfigError
from limiter_node.core.model import Check, Verdict


@pytest.fixture
def engine() -> Engine:
    return Engine(buckets_max=1_000)


@pytest.fixture
def book(engine: Engine) -> RuleBook:
    return RuleBook(engine)


def put(book: RuleBook, key: str, document: Any) -> None:
    book.changed(key, json.dumps(document).encode(), 0)


def limit_of(engine: Engine, rule: str, key: str = "k", segment: str | None = None) -> int | None:
    verdict = engine.check(Check(rule, key, 0, segment), 0)
    return verdict.limit if isinstance(verdict, Verdict) else None


# The rulebook.


def test_rules_keys_and_multipliers_come_into_force_and_go(book: RuleBook, engine: Engine) -> None:
    put(book, "rules/api", {"rate": "1/d", "burst": 100, "backend": "orders"})
    put(book, "keys/vip", {"rules": {"api": {"rate": "1/d", "burst": 1_000}}})
    put(book, "multipliers/orders", {"multiplier": 0.5, "pinned": True})
    assert (limit_of(engine, "api"), limit_of(engine, "api", "vip")) == (50, 500)
    book.changed("multipliers/orders", None, 0)
    book.changed("keys/vip", None, 0)
    assert (limit_of(engine, "api"), limit_of(engine, "api", "vip")) == (100, 100)
    book.changed("rules/api", None, 0)
    assert limit_of(engine, "api") is None
    assert (book.problems, book.rejected) == ({}, 0)


def test_a_monitors_word_that_was_found_and_not_heard_tells_nothing_until_it_is_written_again(
    book: RuleBook, engine: Engine
) -> None:
    word = json.dumps({"latency_ms": {"p50": 900}}).encode()
    book.changed("health/orders", word, 7, is_live=False)
    assert engine.backends.health == {}
    book.changed("health/orders", word, 8)
    assert engine.backends.health["orders"][1] == 8
    # Found to be another after a while without a watch: of any age as well.
    book.changed("health/orders", word, 9, is_live=False)
    assert engine.backends.health == {}


def test_documents_may_come_in_any_order(book: RuleBook, engine: Engine) -> None:
    put(book, "multipliers/orders", {"multiplier": 0.5})
    put(book, "keys/a/b", {"segment": "premium"})
    put(book, "rules/api", {"rate": "1/d", "segments": {"premium": {"rate": "10/d"}}, "backend": "orders"})
    assert limit_of(engine, "api", "a/b") == 5


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (b"", "not JSON: "),
        (b"{rate: 1/s}", "not JSON: "),
        (b'"\xff"', "not JSON: "),
        (b"[]", "document: must be an object"),
        (b'{"rate": "-5/s"}', "rate: '-5/s' is no rate; allowed: "),
        (b'{"rate": "5/s", "brust": 1}', "brust: unknown field; allowed: "),
        (b'{"rate": "5/s", "shadow": 1, "burst": 0}', "shadow: Expected bool, got int; allowed: true, false; burst: "),
        pytest.param(b'{"rate": ' + b"[" * 100_000, "", id="nested 100,000 deep"),
    ],
)
def test_a_bad_rule_leaves_the_last_good_one_and_is_a_problem_until_mended(
    book: RuleBook, engine: Engine, value: bytes, problem: str
) -> None:
    put(book, "rules/api", {"rate": "1/d", "burst": 100})
    engine.check(Check("api", "k", 30), 0)
    book.changed("rules/api", value, 0)
    book.changed("rules/api", value, 0)
    assert book.problems.keys() == {"rules/api"}
    assert book.problems["rules/api"].startswith(problem)
    assert book.rejected == 2
    verdict = engine.check(Check("api", "k", 0), 0)
    assert isinstance(verdict, Verdict)
    assert (verdict.limit, verdict.remaining) == (100, 70)
    put(book, "rules/api", {"rate": "1/d", "burst": 200})
    assert book.problems == {}
    assert limit_of(engine, "api") == 200


@pytest.mark.parametrize(
    ("key", "bad"),
    [
        ("rules/api", {"rate": "no"}),
        ("rules/not a name", {"rate": "1/s"}),
        ("rules/a/b", {"rate": "1/s"}),
        ("rules/", {"rate": "1/s"}),
        ("keys/user:42", {"segment": 5}),
        ("keys/a\nb", {}),
        ("keys/\udcff", {"segment": "premium"}),  # the byte 0xff
        ("keys/", {}),
        ("multipliers/orders", {"multiplier": 0}),
        ("multipliers/not a name", {"multiplier": 0.5}),
        ("multipliers/", {"multiplier": 0.5}),
    ],
)
def test_a_problem_goes_with_its_key(book: RuleBook, engine: Engine, key: str, bad: Any) -> None:
    put(book, key, bad)
    assert book.problems.keys() == {key.replace("\udcff", r"\xff")}
    book.changed(key, None, 0)
    assert book.problems == {}
    assert not engine.rules
    assert not engine.backends.records


def test_a_huge_value_makes_no_huge_problem(book: RuleBook) -> None:
    put(book, "rules/api", {"rate": "9" * 1_000_000})
    problem = book.problems["rules/api"]
    assert len(problem) < 5_000
    assert problem.startswith("rate: '9999")
    assert problem.endswith("week and month")


def test_a_bad_value_of_one_key_is_no_problem_of_another(book: RuleBook, engine: Engine) -> None:
    put(book, "rules/bad", {"rate": 5})
    put(book, "rules/good", {"rate": "7/s"})
    put(book, "multipliers/orders", {"multiplier": 2})
    assert book.problems.keys() == {"rules/bad", "multipliers/orders"}
    assert limit_of(engine, "good") == 7


@pytest.mark.parametrize("key", ["nodes/a", "leader", "", "ruless/api"])
def test_keys_of_other_kinds_are_not_the_rulebooks(book: RuleBook, key: str) -> None:
    book.changed(key, b"anything", 0)
    book.changed(key, None, 0)
    assert (book.problems, book.rejected) == ({}, 0)


def test_put_raises_what_changed_records(book: RuleBook, engine: Engine) -> None:
    with pytest.raises(BadRule):
        book.put("rules/api", {"rate": 5}, 0)
    assert book.problems == {}
    assert not engine.rules


# Rules files.

RULES_YAML = """
rules:
  api: {rate: 1/d, burst: 100, segments: {premium: {rate: 1/d, burst: 1000}}}
  other: {rate: 5/s}
keys:
  vip: {segment: premium}
  12345: {segment: premium}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rules.yaml"


def rules_file(path: Path, book: RuleBook) -> RulesFile:
    return RulesFile(path, book, lambda: 0)


def test_a_file_is_documents_by_key_in_yaml_or_json(tmp_path: Path) -> None:
    documents = {"rules/api": {"rate": "1/s"}, "keys/a/b": {"segment": "free"}}
    text = json.dumps({"rules": {"api": {"rate": "1/s"}}, "keys": {"a/b": {"segment": "free"}}})
    for name in ("rules.json", "rules.yaml", "rules.yml", "rules"):
        file = tmp_path / name
        file.write_text(text)
        assert Reading(file).documents == check_file(file) == documents


def test_what_takes_a_rules_file_s_place_and_is_no_file_is_not_read(path: Path, book: RuleBook, engine: Engine) -> None:
    path.write_text(RULES_YAML)
    file = rules_file(path, book)
    file.load()
    path.unlink()
    os.mkfifo(path)
    file.reload()  # to open it would wait for a writer
    assert "no regular file" in book.problems[str(path)]
    assert (limit_of(engine, "api"), file.revision) == (100, 1)
    path.unlink()
    path.write_text(RULES_YAML)
    file.reload()
    assert (book.problems, file.revision) == ({}, 2)


def test_a_rules_file_comes_into_force(path: Path, book: RuleBook, engine: Engine) -> None:
    path.write_text(RULES_YAML)
    file = rules_file(path, book)
    file.load()
    assert (limit_of(engine, "api"), limit_of(engine, "api", "vip"), limit_of(engine, "api", "12345")) == (
        100,
        1000,
        1000,
    )
    assert (limit_of(engine, "other"), file.revision) == (5, 1)


def test_a_changed_file_adds_changes_and_deletes(path: Path, book: RuleBook, engine: Engine) -> None:
    path.write_text(RULES_YAML)
    file = rules_file(path, book)
    file.load()
    engine.check(Check("api", "k", 30), 0)
    path.write_text("rules: {api: {rate: 1/d, burst: 50}, new: {rate: 9/s}}")
    file.reload()
    verdict = engine.check(Check("api", "k", 0), 0)
    assert isinstance(verdict, Verdict)
    assert (verdict.limit, verdict.remaining) == (50, 20)
    assert (limit_of(engine, "new"), limit_of(engine, "other"), file.revision) == (9, None, 2)
    assert not engine.entries


BAD_FILES = {
    "not yaml": "rules: {",
    "empty": "",
    "a list": "[]",
    "a text": "hello",
    "an unknown section": "ruels: {}",
    "a section that is no object": "rules: []",
    "control characters": "\x00",
    "an unhashable key": "{[1]: 2}",
    "a tag that would run code": "!!python/object/apply:os.getcwd []",
    "an impossible date": "rules: {api: {rate: 2001-99-99}}",
    "a number of 5,000 digits": f"rules: {{api: {{rate: 1/s, burst: {'9' * 5_000}}}}}",
}


@pytest.mark.parametrize("text", BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_that_cannot_be_read_is_a_problem_that_changes_nothing(
    path: Path, book: RuleBook, engine: Engine, text: str
) -> None:
    path.write_text(RULES_YAML)
    file = rules_file(path, book)
    file.load()
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        check_file(path)
    assert all(problem.startswith(f"{path}:") for problem in caught.value.problems)
    file.reload()
    assert book.problems.keys() == {str(path)}
    assert (limit_of(engine, "api"), file.revision) == (100, 1)
    path.write_text(RULES_YAML)
    file.reload()
    assert (book.problems, file.revision) == ({}, 2)


def test_a_missing_file_is_a_problem_as_well(path: Path, book: RuleBook) -> None:
    file = rules_file(path, book)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        file.load()
    file.reload()
    assert book.problems.keys() == {str(path)}
    path.write_text(RULES_YAML)
    file.reload()
    assert book.problems == {}


def test_at_start_every_problem_of_a_file_is_told_at_once(path: Path) -> None:
    path.write_text("rules: {api: {rate: 5, brust: 1}, a b: {rate: 1/s}, ok: {rate: 1/s}}\nkeys: {vip: {segment: 7}}")
    with pytest.raises(ConfigError) as caught:
        check_file(path)
    told = [problem.split(": ")[:3] for problem in caught.value.problems]
    assert told == [
        [f"{path}:1", "rules/api", "rate"],
        [f"{path}:1", "rules/api", "brust"],
        [f"{path}:1", "rules/a b", "rule name"],
        [f"{path}:2", "keys/vip", "segment"],
    ]


def test_every_unknown_section_is_told_at_once(path: Path) -> None:
    path.write_text("ruels: {}\nkeys: 5\nnodes: {}\nbackends: {orders: {slo: 1}}")
    with pytest.raises(ConfigError) as caught:
        check_file(path)
    assert caught.value.problems[:3] == (
        f'{path}:1: ruels: unknown field; allowed: rules, keys, backends; did you mean "rules"?',
        f"{path}:2: keys: must be an object of {{name: document}}",
        f"{path}:3: nodes: unknown field; allowed: rules, keys, backends",
    )
    assert caught.value.problems[3].startswith(f"{path}:4: backends/orders: slo: unknown field; allowed: ")


def test_a_bad_document_in_a_changed_file_leaves_the_last_good_one(path: Path, book: RuleBook, engine: Engine) -> None:
    path.write_text(RULES_YAML)
    file = rules_file(path, book)
    file.load()
    path.write_text("rules: {api: {rate: nonsense}, other: {rate: 6/s}}")
    file.reload()
    assert book.problems.keys() == {"rules/api"}
    assert (limit_of(engine, "api"), limit_of(engine, "other")) == (100, 6)
    path.write_text("rules: {other: {rate: 6/s}}")
    file.reload()
    assert book.problems == {}
    assert limit_of(engine, "api") is None


def test_names_in_yaml_that_are_no_text_are_problems_and_not_crashes(path: Path) -> None:
    path.write_text("rules: {api: {rate: 1/s, segments: {1: {rate: 2/s}, on: {rate: 3/s}}}}")
    with pytest.raises(ConfigError):
        check_file(path)


class EndOfTest(Exception):
    """Stops a loop that only cancellation would end."""


def test_a_change_of_the_file_is_noticed(
    path: Path, book: RuleBook, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_text(RULES_YAML)
    file = rules_file(path, book)
    file.load()
    seen: list[int | None] = []

    def between_two_looks() -> None:
        seen.append(limit_of(engine, "other"))
        match len(seen):
            case 1:
                replacement = path.with_suffix(".new")
                replacement.write_text("rules: {other: {rate: 6/s}}")
                replacement.replace(path)
            case 2:
                path.unlink()
            case 3:
                assert book.problems.keys() == {str(path)}
                path.write_text("rules: {other: {rate: 7/s}}")
            case 5:
                raise EndOfTest

    async def no_sleep(delay_s: float) -> None:
        between_two_looks()

    monkeypatch.setattr("limiter_node.control.rules_file.asyncio.sleep", no_sleep)
    with pytest.raises(EndOfTest):
        asyncio.run(file.watch())
    assert seen == [5, 6, 6, 7, 7]
    assert (book.problems, file.revision) == ({}, 3)
