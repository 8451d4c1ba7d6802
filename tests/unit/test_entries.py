"""Entries: which of them match a key, which one wins, and what a change of one does to the others."""

import pytest

from limiter_node.core.entries import FOUND_MAX, Entries
from limiter_node.core.errors import BadRule
from limiter_node.core.patterns import is_pattern
from limiter_node.core.rules import KeyEntry, parse_key_entry


def put(entries: Entries, *names: str) -> None:
    """Say something under each name: the segment is a number that tells the names apart."""
    for number, name in enumerate(names):
        entries.put(name, parse_key_entry(name, {"segment": f"s{number}"}))


def names_of(entries: Entries, key: str) -> list[str]:
    """The names of all entries that match, the winner's first."""
    by_entry = {id(entry): name for name, entry in entries.named.items()}
    matching = list(entries.matching(key))
    assert entries.find(key) is (matching[0] if matching else None)
    return [by_entry[id(entry)] for entry in matching]


NAMES = [
    "10.1.2.3",
    "10.1.0.0/16",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "10.1.2.*",
    "10.1.*",
    "*.3",
    "*",
    "2001:db8::/32",
    "2001:DB8:0::/32",
    "2001:db8:1::/48",
    "::/0",
    "fe80::1/128",
    "user:*",
    "user:?2",
    "user:4?",
    "u*2",
    "user/*/device",
    "[ab]*",
    "192.0.2.0/24",
    "x*y*z",
    "aba*ba",
]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("10.1.2.3", ["10.1.2.3", "10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "10.1.2.*", "10.1.*", "*.3", "*"]),
        ("10.1.2.30", ["10.1.0.0/16", "10.0.0.0/8", "0.0.0.0/0", "10.1.2.*", "10.1.*", "*"]),
        ("10.2.0.3", ["10.0.0.0/8", "0.0.0.0/0", "*.3", "*"]),
        ("11.0.0.0", ["0.0.0.0/0", "*"]),
        # What is no address is in no network, and a network's name is a key like any other.
        ("10.1.2", ["10.1.*", "*"]),
        ("10.1.2.256", ["10.1.2.*", "10.1.*", "*"]),
        ("10.1.2.03", ["10.1.2.*", "10.1.*", "*"]),
        ("10.1.2.3:443", ["10.1.2.*", "10.1.*", "*"]),
        ("10.1.0.0/16", ["10.1.0.0/16", "10.1.*", "*"]),
        # However an address is written; of two spellings of a network the lexically first one wins.
        ("2001:db8:1::7", ["2001:db8:1::/48", "2001:DB8:0::/32", "2001:db8::/32", "::/0", "*"]),
        ("2001:0DB8:0001:0000::7", ["2001:db8:1::/48", "2001:DB8:0::/32", "2001:db8::/32", "::/0", "*"]),
        ("fe80::1", ["fe80::1/128", "::/0", "*"]),
        ("fe80::2", ["::/0", "*"]),
        # An IPv4 address in IPv6 clothes is an IPv6 one.
        ("::ffff:10.1.2.3", ["::/0", "*.3", "*"]),
        ("2001:db8::g", ["*"]),
        # The most literal characters, whatever stands for the rest; then the lexically first.
        ("user:42", ["user:4?", "user:?2", "user:*", "u*2", "*"]),
        ("user:4", ["user:*", "*"]),
        ("user/7/device", ["user/*/device", "*"]),
        ("user//device", ["user/*/device", "*"]),
        ("user/7/devices", ["*"]),
        ("[ab]c", ["[ab]*", "*"]),
        ("ac", ["*"]),
        ("xyz", ["x*y*z", "*"]),
        ("xyyz", ["x*y*z", "*"]),
        ("xzy", ["*"]),
        ("aba", ["*"]),
        ("ababa", ["aba*ba", "*"]),
        ("x" * 512, ["*"]),
        ("é", ["*"]),
    ],
)
def test_the_key_itself_wins_then_the_longest_mask_then_the_most_literal_glob(key: str, expected: list[str]) -> None:
    entries = Entries()
    put(entries, *NAMES)
    assert names_of(entries, key) == expected
    for name in reversed(NAMES[1:]):
        entries.put(name, None)
    assert names_of(entries, key) == [name for name in expected if name == NAMES[0]]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("10.1.*", True),
        ("?", True),
        ("10.1.0.0/16", True),
        ("0.0.0.0/0", True),
        ("10.1.2.3/32", True),
        ("2001:db8::/32", True),
        ("10.1.2.3", False),
        ("2001:db8::1", False),
        ("10.1.0.0/33", False),
        ("10.1.0.0/", False),
        ("10.1.0.0/255.255.0.0", False),
        ("10.1/16", False),
        ("fe80::1%eth0/64", False),
        ("user/16", False),
        ("a/b", False),
        ("1/2", False),
        ("10.1.0.0/¹", False),
        ("[ab]", False),
    ],
)
def test_a_name_is_a_pattern_when_it_has_a_wildcard_or_is_a_network_with_its_mask(name: str, expected: bool) -> None:
    assert is_pattern(name) == expected
    assert parse_key_entry(name, {}) == KeyEntry(None, {}, name if expected else None)


@pytest.mark.parametrize(
    ("name", "allowed"),
    [("10.1.2.3/16", "10.1.0.0/16"), ("2001:db8::1/32", "2001:db8::/32"), ("0.0.0.1/0", "0.0.0.0/0")],
)
def test_a_network_with_bits_beyond_its_mask_is_refused(name: str, allowed: str) -> None:
    with pytest.raises(BadRule) as refused:
        parse_key_entry(name, {})
    assert refused.value.problems == (f"key: {name} has bits set beyond its mask; allowed: {allowed}, or another mask",)


def test_what_was_found_for_a_key_follows_every_change() -> None:
    entries = Entries()
    key, exact, mask, glob = "10.1.2.3", "10.1.2.3", "10.1.0.0/16", "10.*"
    steps: list[tuple[str, dict[str, str] | None, str | None]] = [
        (glob, {"segment": "a"}, "a"),
        (mask, {"segment": "b"}, "b"),
        (mask, {"segment": "c"}, "c"),
        (glob, {"segment": "d"}, "c"),
        (exact, {"segment": "e"}, "e"),
        (mask, {"segment": "f"}, "e"),
        (exact, None, "f"),
        (mask, None, "d"),
        ("never", None, "d"),
        (glob, None, None),
    ]
    for name, document, segment in steps:
        before = entries.named.get(name)
        assert entries.put(name, None if document is None else parse_key_entry(name, document)) is before
        found = entries.find(key)
        assert (found and found.segment) == segment, name
        assert entries.find("other") is None
    assert not entries


def test_more_keys_than_are_remembered_find_what_they_should() -> None:
    entries = Entries()
    put(entries, "10.0.0.0/17", "a*")
    for number in range(FOUND_MAX + 10):
        found = entries.find(f"10.0.{number >> 8 & 255}.{number & 255}")
        assert (found is not None) == (number < 1 << 15)
    assert entries.find("ab") is entries.named["a*"]


def test_a_glob_of_many_wildcards_takes_no_key_long() -> None:
    entries = Entries()
    put(entries, "*a" * 100 + "*b*")
    # Tried with going back this would take longer than the universe has.
    assert entries.find("a" * 512) is None
    assert entries.find("a" * 511 + "b") is not None
