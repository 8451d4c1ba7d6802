"""Rules and key entries: what is accepted, what it becomes, and every problem of what is not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limiter_node.core.errors import BadRule
from limiter_node.core.limits import COUNT_MAX, RATE_ALLOWED, Limit, parse_rate, under
from limiter_node.core.rules import (
    NAME_ALLOWED,
    KeyEntry,
    decode_json,
    decode_key_entry,
    is_name,
    key_problem,
    parse_key_entry,
    parse_rule,
)

LONG_NAME = "n" * 64


def problems_of_rule(document: Any, name: str = "api") -> list[str]:
    with pytest.raises(BadRule) as caught:
        parse_rule(name, document)
    assert str(caught.value) == "; ".join(caught.value.problems)
    return list(caught.value.problems)


# Rates and names.


@pytest.mark.parametrize(
    ("text", "count", "period_s"),
    [
        ("100/s", 100, 1),
        ("1/m", 1, 60),
        ("49/h", 49, 3_600),
        ("1000/d", 1_000, 86_400),
        ("10/30s", 10, 30),
        ("5/2d", 5, 172_800),
        ("5/week", 5, 604_800),
        ("10000/month", 10_000, 2_592_000),
        ("007/01m", 7, 60),
        (f"{COUNT_MAX}/366d", COUNT_MAX, 366 * 86_400),
        ("1/31622400s", 1, 31_622_400),
    ],
)
def test_a_rate_is_a_count_per_period(text: str, count: int, period_s: int) -> None:
    assert parse_rate(text) == (count, period_s)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "100",
        "100/",
        "/s",
        "0/s",
        "-1/s",
        "+1/s",
        "1.5/s",
        "1/1.5s",
        "1/0s",
        "1/w",
        "1/2week",
        "1/2month",
        "1/S",
        "1 /s",
        " 1/s",
        "1/s\n",
        "1e3/s",
        "1/ms",
        "1_000/s",
        "\u0661/s",
        "1/\u0661s",
        f"{COUNT_MAX + 1}/s",
        "1/367d",
        "1/31622401s",
        "9" * 5_000 + "/s",
        "1/" + "9" * 5_000 + "s",
    ],
)
def test_what_is_no_rate_is_told_what_one_is(text: str) -> None:
    with pytest.raises(ValueError, match="is no rate; allowed: ") as caught:
        parse_rate(text)
    assert str(caught.value).endswith(RATE_ALLOWED)


@pytest.mark.parametrize("name", ["a", "A-Z.a_z-09", "...", LONG_NAME])
def test_names_are_1_to_64_of_a_few_characters(name: str) -> None:
    assert is_name(name)
    assert parse_rule(name, {"rate": "1/s"}).name == name


@pytest.mark.parametrize("name", ["", LONG_NAME + "n", "a b", "a/b", "é", "a\n", "\u0661"])
def test_other_names_are_refused(name: str) -> None:
    assert not is_name(name)
    assert problems_of_rule({"rate": "1/s"}, name) == [f"rule name: {name!r} is not allowed; allowed: {NAME_ALLOWED}"]


@pytest.mark.parametrize(
    "key", ["k", " ", "a" * 512, "é" * 256, "日本", "a/b?c=d&e", '"quoted"', "\u2028", "\U0001f600"]
)
def test_a_client_key_is_any_text_of_up_to_512_bytes(key: str) -> None:
    assert key_problem(key) is None


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("", "is empty"),
        ("a" * 513, "is 513 bytes long"),
        ("é" * 257, "is 514 bytes long"),
        ("a\nb", "has a control character"),
        ("a\x00", "has a control character"),
        ("\x7f", "has a control character"),
        ("\x85", "has a control character"),
        ("é\x9f", "has a control character"),
        ("\ud800", "is not UTF-8"),
    ],
)
def test_what_is_no_client_key_is_told_why(key: str, problem: str) -> None:
    assert key_problem(key) == f"{problem}; allowed: 1 to 512 bytes of UTF-8 without control characters"


# Rules.


def test_a_rule_of_nothing_but_a_rate_gets_every_default() -> None:
    rule = parse_rule("api", {"rate": "100/s"})
    assert rule.limits == {"default": (Limit("100/s", 100, 1, 100),)}
    assert rule.describe() == {
        "rate": "100/s",
        "burst": 100,
        "algorithm": "token_bucket",
        "segments": {},
        "backend": None,
        "priority": 5,
        "on_unreachable": "local",
        "durability": "async",
        "shadow": False,
        "lease": "auto",
    }


def test_a_rule_with_everything_is_described_with_everything() -> None:
    document = {
        "rate": "100/s",
        "burst": 200,
        "algorithm": "token_bucket",
        "segments": {
            "premium": {"rate": "1000/s", "burst": 2_000, "priority": 2},
            "free": {"rate": "10/30s"},
            "polite": {"priority": 9},
        },
        "backend": "orders",
        "priority": 4,
        "on_unreachable": "deny",
        "durability": "sync",
        "shadow": True,
        "lease": False,
    }
    rule = parse_rule("api", document)
    assert rule.limits["free"] == (Limit("10/30s", 10, 30, 10),)
    assert rule.limits["polite"] == rule.limits["default"] == (Limit("100/s", 100, 1, 200),)
    assert rule.describe() == {
        **document,
        "segments": {
            "premium": {"rate": "1000/s", "burst": 2_000, "algorithm": "token_bucket", "priority": 2},
            "free": {"rate": "10/30s", "burst": 10, "algorithm": "token_bucket", "priority": 4},
            "polite": {"rate": "100/s", "burst": 200, "algorithm": "token_bucket", "priority": 9},
        },
    }
    assert parse_rule("api", rule.describe()) == rule


@pytest.mark.parametrize(
    ("rate", "burst", "window_s"),
    [("100/s", 200, 2), ("100/s", 201, 3), ("100/s", 1, 1), ("10/30s", 10, 30), ("7/m", 7, 60), ("1000/d", 1, 87)],
)
def test_the_window_is_burst_over_rate_rounded_up(rate: str, burst: int, window_s: int) -> None:
    (limit,) = parse_rule("api", {"rate": rate, "burst": burst}).limits["default"]
    assert limit.window_s == window_s


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rate": None}, "rate: is required"),
        ({"rate": 100}, "rate: Expected str | null, got int"),
        ({"rate": "-5/s"}, f"rate: '-5/s' is no rate; allowed: {RATE_ALLOWED}"),
        ({"burst": 0}, "burst: Expected int >= 1"),
        ({"burst": -1}, "burst: Expected int >= 1"),
        ({"burst": 1.5}, "burst: Expected int | null, got float"),
        ({"burst": "200"}, "burst: Expected int | null, got str"),
        ({"burst": True}, "burst: Expected int | null, got bool"),
        ({"burst": COUNT_MAX + 1}, f"burst: Expected int <= {COUNT_MAX}"),
        (
            {"algorithm": "magic"},
            "algorithm: Invalid enum value 'magic'; allowed: token_bucket, leaky_bucket, fixed_w",
        ),
        ({"backend": "a b"}, f"backend: 'a b' is not allowed; allowed: {NAME_ALLOWED}"),
        ({"backend": 5}, "backend: Expected str | null, got int"),
        ({"priority": 10}, "priority: Expected int <= 9"),
        ({"priority": -1}, "priority: Expected int >= 0"),
        ({"on_unreachable": "panic"}, "on_unreachable: Invalid enum value 'panic'; allowed: allow, deny, local"),
        ({"durability": "maybe"}, "durability: Invalid enum value 'maybe'; allowed: async, sync"),
        ({"shadow": "yes"}, "shadow: Expected bool, got str"),
        ({"shadow": 1}, "shadow: Expected bool, got int"),
        (
            {"brust": 5},
            "brust: unknown field; allowed: rate, burst, algorithm, timezone, limits, segments, backend, pr",
        ),
        ({"segments": []}, "segments: Expected object, got array"),
        ({"segments": {"a b": {"rate": "1/s"}}}, f"segments: 'a b' is not allowed; allowed: {NAME_ALLOWED}"),
        ({"segments": {"free": None}}, "segments.free: must be an object"),
        ({"segments": {"free": {"rate": "x"}}}, "segments.free.rate: 'x' is no rate; allowed: "),
        ({"segments": {"free": {"burst": 5}}}, "segments.free.burst: needs a rate in the same entry"),
        ({"segments": {"free": {"rate": "1/s", "burst": 0}}}, "segments.free.burst: Expected int >= 1"),
        (
            {"segments": {"free": {"rat": "1/s"}}},
            "segments.free.rat: unknown field; allowed: rate, burst, algorithm, timezone, limits, p",
        ),
    ],
)
def test_one_problem_is_told_with_its_path_and_what_is_allowed(change: dict[str, Any], problem: str) -> None:
    problems = problems_of_rule({"rate": "100/s", **change})
    assert len(problems) == 1
    if problem.startswith("on_unreachable"):
        field, _, allowed = problems[0].rpartition("; allowed: ")
        assert (field, sorted(allowed.split(", "))) == (problem.rpartition("; ")[0], ["allow", "deny", "local"])
    else:
        assert problems[0].startswith(problem)


@pytest.mark.parametrize(
    ("change", "allowed"),
    [
        ({"burst": 0}, f"an integer of 1 to {COUNT_MAX}"),
        ({"burst": "5"}, f"an integer of 1 to {COUNT_MAX}"),
        ({"priority": 10}, "an integer of 0 to 9"),
        ({"segments": {"free": {"priority": "5"}}}, "an integer of 0 to 9"),
        ({"shadow": 1}, "true, false"),
        ({"lease": "maybe"}, "true, false, auto"),
        ({"lease": 5}, "true, false, auto"),
        ({"on_unreachable": 5}, "local, allow, deny"),
        ({"backend": 5}, NAME_ALLOWED),
        ({"segments": []}, "an object of {name: an object}"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_range_is_told_what_is_allowed(
    change: dict[str, Any], allowed: str
) -> None:
    (problem,) = problems_of_rule({"rate": "1/s", **change})
    assert problem.endswith(f"; allowed: {allowed}")


def test_a_rate_that_is_no_text_is_told_what_is_allowed() -> None:
    assert problems_of_rule({"rate": 5}) == [f"rate: Expected str | null, got int; allowed: {RATE_ALLOWED}"]


@pytest.mark.parametrize(
    ("change", "meant"),
    [
        ({"brust": 5}, "burst"),
        ({"segments": {"free": {"prioritty": 5}}}, "priority"),
        ({"algorithm": "tokenbucket"}, "token_bucket"),
        ({"on_unreachable": "Local"}, "local"),
        ({"rate": "100 per second"}, "100/s"),
        ({"segments": {"free": {"rate": "10 / min"}}}, "10/m"),
    ],
)
def test_what_was_probably_meant_is_asked(change: dict[str, Any], meant: str) -> None:
    (problem,) = problems_of_rule({"rate": "100/s", **change})
    assert problem.endswith(f'; did you mean "{meant}"?')


@pytest.mark.parametrize(
    "change",
    [
        {"comment": "x"},
        {"algorithm": "magic"},
        {"rate": "often"},
        {"rate": "5/year"},
        {"rate": "0/s"},
        {"rate": "1/0s"},
        {"rate": "1 per 367 days"},
    ],
)
def test_nothing_is_guessed_where_nothing_is_near(change: dict[str, Any]) -> None:
    (problem,) = problems_of_rule({"rate": "100/s", **change})
    assert "did you mean" not in problem


def test_every_problem_of_a_rule_is_told_at_once() -> None:
    document = {
        "burst": 0,
        "algorithm": "magic",
        "brust": 5,
        "segments": {"a b": {"rate": "1/w", "priority": 11}, "free": {"burst": 5}, "premium": 7},
        "shadow": None,
    }
    told = [problem.partition(":")[0] for problem in problems_of_rule(document, "a/b")]
    assert told == [
        "rule name",
        "burst",
        "algorithm",
        "brust",
        "segments",
        "segments.a b.rate",
        "segments.a b.priority",
        "segments.free.burst",
        "segments.premium",
        "shadow",
        "rate",
    ]


# Algorithms, and several limits.


def test_limits_that_must_all_allow_stand_in_a_list() -> None:
    limits = [{"rate": "10/s"}, {"rate": "1000/d", "algorithm": "fixed_window", "timezone": "Europe/Berlin"}]
    rule = parse_rule("api", {"limits": limits, "segments": {"free": {"rate": "1/s"}, "plus": {"limits": limits[:1]}}})
    assert rule.limits == {
        "default": (
            Limit("10/s", 10, 1, 10),
            Limit("1000/d", 1000, 86_400, 1000, "fixed_window", "Europe/Berlin"),
        ),
        "free": (Limit("1/s", 1, 1, 1),),
        "plus": (Limit("10/s", 10, 1, 10),),
    }
    assert parse_rule("api", rule.describe()) == rule


@pytest.mark.parametrize(
    ("base", "own", "expected"),
    [
        ({"algorithm": "leaky_bucket"}, {"rate": "5/s", "burst": 9}, Limit("5/s", 5, 1, 9, "leaky_bucket")),
        ({"algorithm": "sliding_window"}, {"rate": "5/s"}, Limit("5/s", 5, 1, 5, "sliding_window")),
        ({"algorithm": "sliding_window"}, {"rate": "5/s", "burst": 9}, Limit("5/s", 5, 1, 9, "token_bucket")),
        (
            {"algorithm": "sliding_window"},
            {"rate": "5/s", "algorithm": "token_bucket"},
            Limit("5/s", 5, 1, 5, "token_bucket"),
        ),
        ({"algorithm": "sliding_log"}, {"rate": "5000/s"}, Limit("5000/s", 5000, 1, 5000, "sliding_window")),
        ({}, {"rate": "5/month"}, Limit("5/month", 5, 2_592_000, 5, "fixed_window")),
        (
            {"rate": "9/d", "algorithm": "fixed_window", "timezone": "Asia/Tokyo"},
            {"rate": "5/week"},
            Limit("5/week", 5, 604_800, 5, "fixed_window", "Asia/Tokyo"),
        ),
        (
            {"rate": "9/d", "algorithm": "fixed_window", "timezone": "Asia/Tokyo"},
            {"rate": "5/s"},
            Limit("5/s", 5, 1, 5, "fixed_window"),
        ),
    ],
)
def test_other_numbers_are_of_the_algorithm_that_they_replace_the_numbers_of(
    base: dict[str, Any], own: dict[str, Any], expected: Limit
) -> None:
    rule = parse_rule("api", {"rate": "100/s", **base, "segments": {"free": own}})
    assert rule.limits["free"] == (expected,)
    entry = parse_key_entry("k", {"rules": {"api": own}})
    assert under(entry.limits["api"], rule.limits["default"]) == (expected,)


@pytest.mark.parametrize(
    ("document", "problem"),
    [
        ({"limits": []}, "limits: 0 limits; allowed: 1 to 8"),
        ({"limits": [{"rate": "1/s"}] * 9}, "limits: 9 limits; allowed: 1 to 8"),
        ({"limits": [{"rate": "1/s"}], "rate": "1/s"}, "rate: cannot stand beside limits; allowed: in each of them"),
        ({"limits": [{"rate": "1/s"}, {}]}, "limits[1].rate: is required"),
        ({"limits": [{"rate": "1/s", "priority": 1}]}, "limits[0].priority: unknown field; allowed: rate, burst, "),
        ({"limits": {"rate": "1/s"}}, "limits: Expected array | null, got object"),
        ({"limits": [5]}, "limits[0]: must be an object"),
        ({"rate": "1/s", "algorithm": "fixed_window", "burst": 2}, "burst: fixed_window has none; allowed: with token"),
        ({"rate": "1/month", "algorithm": "sliding_window"}, "rate: a month has no fixed length; allowed: with fixed_"),
        ({"rate": "1/d", "algorithm": "leaky_bucket", "timezone": "UTC"}, "timezone: leaky_bucket does not go by the"),
        ({"rate": "1/2d", "algorithm": "fixed_window", "timezone": "UTC"}, "timezone: '1/2d' does not go by the cal"),
        ({"rate": "1/d", "timezone": "Mars/Olympus"}, "timezone: 'Mars/Olympus' is no time zone; allowed: an IANA"),
        ({"rate": "1/d", "timezone": "../../etc/passwd"}, "timezone: '../../etc/passwd' is no time zone; allowed: an"),
        ({"rate": "1001/h", "algorithm": "sliding_log"}, "rate: sliding_log keeps every grant; allowed: COUNT 1 to "),
        ({"rate": "1/s", "segments": {"free": {"algorithm": "fixed_window"}}}, "segments.free.algorithm: needs a rate"),
    ],
)
def test_numbers_that_do_not_fit_together_are_told(document: dict[str, Any], problem: str) -> None:
    problems = problems_of_rule(document)
    assert len(problems) == 1
    assert problems[0].startswith(problem)


@pytest.mark.parametrize("document", [None, [], "100/s", 5, True])
def test_what_is_no_object_is_no_rule(document: Any) -> None:
    assert problems_of_rule(document) == ["document: must be an object"]


@pytest.mark.parametrize(
    "document",
    [
        pytest.param({1: "1/s", "rate": "1/s"}, id="of a field"),
        pytest.param({"rate": "1/s", "segments": {1: {"rate": "1/s"}}}, id="of a segment"),
        pytest.param({"rate": "1/s", "segments": {True: {"rate": "1/s"}}}, id="of a segment called on or yes"),
        pytest.param({"rate": "1/s", "segments": {"free": {None: 1}}}, id="of a field of a segment"),
    ],
)
def test_names_that_yaml_reads_as_something_else_are_problems_and_not_crashes(document: Any) -> None:
    assert len(problems_of_rule(document)) == 1


# Entries of single keys.


def test_a_key_may_have_a_segment_numbers_both_or_nothing_of_its_own() -> None:
    assert parse_key_entry("user:42", {}) == KeyEntry(None, {})
    assert parse_key_entry("user:42", {"segment": "premium"}) == KeyEntry("premium", {})
    assert parse_key_entry("é", {"segment": None, "rules": {"api": {"rate": "5/s"}}}) == KeyEntry(
        None, {"api": (Limit("5/s", 5, 1, 5, None),)}
    )
    assert parse_key_entry("k", {"rules": {"api": {"rate": "5/s", "burst": 9, "algorithm": "token_bucket"}}}) == (
        KeyEntry(None, {"api": (Limit("5/s", 5, 1, 9),)})
    )


@pytest.mark.parametrize(
    ("key", "document", "told"),
    [
        ("", {}, ["key: is empty"]),
        ("a\nb", {"segment": "a b"}, ["key: has a control", "segment: 'a b' is not allowed; allowed: 1 to 64"]),
        ("k", None, ["document: must be an object"]),
        ("k", {"segments": "x"}, ["segments: unknown field; allowed: segment, rules"]),
        ("k", {"rules": {"api": {"burst": 5}}}, ["rules.api.rate: is required"]),
        ("k", {"rules": {"a/b": {"rate": "1"}}}, ["rules: 'a/b' is not allowed", "rules.a/b.rate: '1' is no rate"]),
        (
            "k",
            {"rules": {"api": {"rate": "1/s", "priority": 1}}},
            ["rules.api.priority: unknown field; allowed: rate"],
        ),
    ],
)
def test_every_problem_of_a_key_entry_is_told_at_once(key: str, document: Any, told: list[str]) -> None:
    with pytest.raises(BadRule) as caught:
        parse_key_entry(key, document)
    problems = caught.value.problems
    assert len(problems) == len(told)
    for problem, start in zip(problems, told, strict=True):
        assert problem.startswith(start)


# JSON.


@pytest.mark.parametrize(("text", "value"), [(b"{}", {}), (b' {"rate": "1/s"} ', {"rate": "1/s"}), (b"null", None)])
def test_json_is_decoded(text: bytes, value: Any) -> None:
    assert decode_json(text) == value


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"rate: 1/s",
        b"{} {}",
        b'{"rate": NaN}',
        b'"\xff"',
        b'"\\ud800"',
        b"1" + b"0" * 5_000,
        b"1e999",
        pytest.param(b'{"rate": ' + b"[" * 100_000, id="nested 100,000 deep"),
    ],
)
def test_bytes_that_are_no_json_are_a_bad_rule_and_nothing_else(text: bytes) -> None:
    with pytest.raises(BadRule, match=r"^not JSON: "):
        decode_json(text)


def test_an_entry_from_json_is_what_its_document_is_and_equal_texts_are_kept_once() -> None:
    text = b'{"segment": "premium", "rules": {"api": {"rate": "5/s", "burst": 9}}}'
    one, two = decode_key_entry("a", text), decode_key_entry("b", text)
    assert one is two
    assert one == parse_key_entry("a", decode_json(text))
    assert decode_key_entry("a*", text) == KeyEntry("premium", one.limits, "a*")
    assert decode_key_entry("10.0.0.0/8", text).pattern == "10.0.0.0/8"
    assert decode_key_entry("a", b"{}") == KeyEntry(None, {})


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("a", b"{", "not JSON"),
        ("a", b'{"segmnt": "x"}', "segmnt: unknown field"),
        ("a\n", b"{}", "key: has a control character"),
        ("", b"{}", "key: is empty"),
        ("10.1.1.1/8", b"{}", "key: 10.1.1.1/8 has bits set beyond its mask; allowed: 10.0.0.0/8"),
        ("a*\n", b"{}", "key: has a control character"),
    ],
)
def test_an_entry_from_json_is_refused_as_its_document_is(key: str, text: bytes, problem: str) -> None:
    for _ in range(2):
        with pytest.raises(BadRule) as refused:
            decode_key_entry(key, text)
        assert problem in str(refused.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b'{"rate": "1/s", "rate": "2/s"}', "rate: given twice; allowed: once"),
        (b'{"rate":"1/s","burst":1,"burst":1}', "burst: given twice; allowed: once"),
        (b'{"segments":{"free":{"rate":"1/s"},"free":{"rate":"1/s"}}}', "free: given twice; allowed: once"),
        (b'{"rate":"1/s","r\\u0061te":"\\u0022\\u0022"}', "rate: given twice; allowed: once"),
        (b'{"rate": "\\ud800/s"}', "rate: has half of a surrogate pair; allowed: whole characters"),
    ],
)
def test_what_a_json_text_says_twice_or_by_half_is_a_bad_rule(text: bytes, problem: str) -> None:
    with pytest.raises(BadRule) as caught:
        decode_json(text)
    assert caught.value.problems == (problem,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"), max_size=6),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text('ab"\\é', max_size=3), values, max_size=3),
    max_leaves=12,
)


@given(JSON, st.booleans(), st.sampled_from([(",", ":"), (", ", ": ")]))
def test_json_that_says_all_once_is_decoded_however_it_is_written(
    value: Any, is_escaped: bool, separators: tuple[str, str]
) -> None:
    assert decode_json(json.dumps(value, ensure_ascii=is_escaped, separators=separators).encode()) == value
