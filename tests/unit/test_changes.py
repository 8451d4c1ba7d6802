"""What applying files would change, and how each change reads."""

from typing import Any

import msgspec
import pytest

from limiter_node.applying import LINES_MAX, Narrator
from limiter_node.control.changes import Change, Stored, plan

RULE = {"rate": "100/s", "burst": 200, "segments": {"free": {"rate": "1/s"}}}


def changed(before: Any, after: Any) -> list[str]:
    raw = before if isinstance(before, bytes) else msgspec.json.encode(before)
    return [str(change) for change in plan({"rules/api": after}, {"rules/api": Stored(raw, 7)}, prune=False)]


def test_what_is_missing_is_written_at_revision_0_and_what_differs_at_the_one_that_was_read() -> None:
    stored = {"rules/api": Stored(b'{"rate":"1/s"}', 7), "rules/same": Stored(b'{"rate":"1/s"}', 8)}
    wanted = {"keys/new": {"segment": "x"}, "rules/api": {"rate": "2/s"}, "rules/same": {"rate": "1/s"}}
    assert plan(wanted, stored, prune=False) == [
        Change("keys/new", None, b'{"segment":"x"}', 0),
        Change("rules/api", b'{"rate":"1/s"}', b'{"rate":"2/s"}', 7),
    ]


def test_only_with_prune_what_is_in_no_file_goes() -> None:
    stored = {"rules/old": Stored(b"{}", 3), "keys/b": Stored(b"{}", 4), "keys/a": Stored(b"{}", 5)}
    assert plan({}, stored, prune=False) == []
    assert plan({}, stored, prune=True) == [
        Change("keys/a", b"{}", None, 5),
        Change("keys/b", b"{}", None, 4),
        Change("rules/old", b"{}", None, 3),
    ]


@pytest.mark.parametrize(
    "before",
    [
        b'{"rate":"100/s","burst":200,"segments":{"free":{"rate":"1/s"}}}',
        b' { "segments" : {"free": {"rate":"1\\/s"}},\n"burst":200, "rate": "100/s" }\n',
    ],
)
def test_the_same_said_otherwise_is_no_change(before: bytes) -> None:
    assert changed(before, RULE) == []


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (RULE, {**RULE, "rate": "200/s"}, "~ rules/api: rate 100/s -> 200/s"),
        (RULE, {"rate": "100/s", "burst": 200}, "~ rules/api: segments.free.rate 1/s -> unset"),
        (RULE, {**RULE, "segments": {}}, "~ rules/api: segments.free.rate 1/s -> unset, segments unset -> {}"),
        (RULE, {**RULE, "shadow": True, "burst": 7}, "~ rules/api: burst 200 -> 7, shadow unset -> true"),
        ({"shadow": 1}, {"shadow": True}, "~ rules/api: shadow 1 -> true"),
        ({"a": "b c"}, {"a": ""}, '~ rules/api: a "b c" -> ""'),
        ({"x": [{"a": 1}, {"a": 2}]}, {"x": [{"a": 1}, {"a": 3}]}, "~ rules/api: x[1].a 2 -> 3"),
        ({}, {"a": 1}, "~ rules/api: a unset -> 1"),
        (b"{nope", {"a": 1}, "~ rules/api: was no JSON object"),
        ([], {"a": 1}, "~ rules/api: was no JSON object"),
    ],
)
def test_a_changed_value_tells_the_fields_that_differ(before: Any, after: Any, told: str) -> None:
    assert changed(before, after) == [told]


def test_new_and_deleted_keys_are_told_by_name_and_safely() -> None:
    assert str(Change("rules/api", None, b"{}", 0)) == "+ rules/api"
    assert str(Change("keys/é 1", b"{}", None, 5)) == "- keys/é 1"
    assert str(Change("keys/\x1b[2J\udcff", b"{}", None, 5)) == "- keys/\\x1b[2J\\udcff"


def additions(count: int) -> list[Change]:
    return [Change(f"keys/{n}", None, b"{}", 0) for n in range(count)]


def test_a_run_tells_its_changes_and_their_sum() -> None:
    told: list[str] = []
    noted: list[str] = []
    narrator = Narrator(told.append, noted.append, 10, dry_run=False)
    changes = [*additions(1), Change("rules/a", b'{"a":1}', b'{"a":2}', 1), Change("keys/x", b"{}", None, 1)]
    narrator.planned(changes, 1)
    assert told == []
    narrator.written(changes)
    narrator.sum_up()
    assert told == ["+ keys/0", "~ rules/a: a 1 -> 2", "- keys/x", "1 added, 1 changed, 1 deleted, 8 unchanged"]
    assert noted == []


def test_a_dry_run_tells_the_same_and_that_nothing_was_written() -> None:
    told: list[str] = []
    narrator = Narrator(told.append, told.append, 2, dry_run=True)
    narrator.planned(additions(2), 1)
    narrator.sum_up()
    assert told == [
        "+ keys/0",
        "+ keys/1",
        "would be 2 added, 0 changed, 0 deleted, 0 unchanged; nothing was written",
    ]


def test_of_very_many_changes_the_deletions_are_all_told() -> None:
    told: list[str] = []
    noted: list[str] = []
    narrator = Narrator(told.append, noted.append, LINES_MAX + 50, dry_run=True)
    deletions = [Change(f"keys/old{n}", b"{}", None, 5) for n in range(LINES_MAX + 1)]
    narrator.planned([*additions(LINES_MAX + 50), *deletions], 2)
    narrator.sum_up()
    assert sum(line.startswith("+") for line in told) == LINES_MAX
    assert sum(line.startswith("-") for line in told) == LINES_MAX + 1
    assert told[-2] == "... and 50 more additions and changes"
    assert noted == ["251 changes need 2 transactions of at most 128: they come into force one after the other"]
