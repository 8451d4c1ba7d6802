"""The JSON schema of a rules file: it takes what `validate` takes, refuses what editors can know to be wrong."""

from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from limiter_node.control.rules_file import check_file
from limiter_node.core.errors import ConfigError
from limiter_node.core.limits import COUNT_MAX
from limiter_node.core.schema import _EXTRAS, _NEEDS, DESCRIPTIONS, rules_file_schema

SCHEMA = rules_file_schema()
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
TYPES = {"FileDoc": SCHEMA, **SCHEMA["definitions"]}
FIELDS = {(name, field) for name, shape in TYPES.items() for field in shape["properties"]}


def rule(**fields: Any) -> dict[str, Any]:
    return {"rules": {"api": {"rate": "100/s", **fields}}}


def limits(*each: Any, **fields: Any) -> dict[str, Any]:
    return {"rules": {"api": {"limits": list(each), **fields}}}


def backend(**fields: Any) -> dict[str, Any]:
    return {"backends": {"orders": fields}}


GOOD = [
    {},
    rule(),
    rule(burst=1, algorithm="token_bucket", backend="orders", priority=0, on_unreachable="deny", durability="sync"),
    rule(
        rate="10/30s", burst=None, shadow=True, segments={"free": {"rate": "1/d", "burst": 5}, "vip": {"priority": 1}}
    ),
    rule(rate=f"{COUNT_MAX}/366d", backend=None),
    rule(rate="10000/month", algorithm="fixed_window", timezone="Europe/Berlin"),
    *(rule(algorithm=algorithm) for algorithm in ("leaky_bucket", "fixed_window", "sliding_window", "sliding_log")),
    limits({"rate": "10/s"}, {"rate": "1000/d", "algorithm": "fixed_window", "timezone": None}),
    rule(segments={"free": {"limits": [{"rate": "1/s"}]}, "vip": {"rate": "1/s", "algorithm": "fixed_window"}}),
    {"keys": {"k": {"rules": {"api": {"limits": [{"rate": "1/s", "burst": 5}]}}}}},
    {"keys": {"user:42": {"segment": "x"}, "10.1.2.3": {"rules": {"api": {"rate": "5/s"}}}, "k" * 512: {}}},
    backend(),
    backend(adaptive="observe", slo_ms=0.5, error_rate_max=0, min=0.1, max=1, fallback=0.5, stale_after_s=1),
    backend(fallback="hold", poll={"url": "http://a:1", "every_s": 0.1}),
    backend(poll={"url": "https://a/b?c", "format": "prometheus", "latency": "x", "error_label": "code=~5.."}),
]

BAD: list[Any] = [
    [],
    {"ruels": {}},
    {"rules": []},
    {"rules": {"a b": {"rate": "1/s"}}},
    {"rules": {"api": None}},
    {"rules": {"api": {}}},
    *(rule(rate=rate) for rate in (5, "5", "0/s", "1/y", "1 /s", "-1/s", "", None)),
    *(rule(burst=burst) for burst in (0, -1, 1.5, "5", COUNT_MAX + 1)),
    rule(brust=5),
    rule(algorithm="magic"),
    rule(priority=10),
    rule(on_unreachable="panic"),
    rule(durability="maybe"),
    rule(shadow="yes"),
    rule(backend="a b"),
    rule(segments={"a/b": {}}),
    rule(segments={"free": {"burst": 5}}),
    rule(segments={"free": {"rate": "x"}}),
    rule(segments={"free": {"algorithm": "fixed_window"}}),
    rule(algorithm="sliding_log", burst=5),
    rule(timezone=5),
    rule(limits=[{"rate": "1/s"}]),
    limits(),
    limits({}),
    limits("10/s"),
    limits({"rate": "x"}),
    limits({"rate": "1/s", "algorithm": "fixed_window", "burst": 1}),
    limits({"rate": "1/s"}, burst=5),
    limits(*[{"rate": "1/s"}] * 9),
    {"keys": {"": {}}},
    {"keys": {"k" * 513: {}}},
    {"keys": {"k": {"segmnt": "x"}}},
    {"keys": {"k": {"rules": {"api": {}}}}},
    backend(slo_ms=0),
    backend(min=0),
    backend(max=1.1),
    backend(fallback="keep"),
    backend(fallback=0),
    backend(stale_after_s=0.5),
    backend(poll={}),
    backend(poll={"url": "orders:9100"}),
    backend(poll={"url": "http://a", "format": "prometheus"}),
    backend(poll={"url": "http://a", "error_label": "5.."}),
]


def is_valid(document: Any, path: Path) -> bool:
    """What `validate` says."""
    path.write_bytes(msgspec.json.encode(document))
    try:
        check_file(path)
    except ConfigError:
        return False
    return True


def test_it_is_a_schema_of_the_draft_that_it_names() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == jsonschema.Draft7Validator.META_SCHEMA["$schema"]


@pytest.mark.parametrize("document", GOOD)
def test_what_is_good_is_good_for_both(document: Any, tmp_path: Path) -> None:
    assert [error.message for error in VALIDATOR.iter_errors(document)] == []
    assert is_valid(document, tmp_path / "rules.json")


@pytest.mark.parametrize("document", BAD)
def test_what_is_bad_is_bad_for_both(document: Any, tmp_path: Path) -> None:
    assert not VALIDATOR.is_valid(document)
    assert not is_valid(document, tmp_path / "rules.json")


def test_every_field_says_what_it_means() -> None:
    assert [(name, field) for name, field in FIELDS if "description" not in TYPES[name]["properties"][field]] == []


def test_everything_that_is_added_is_of_a_field_that_exists() -> None:
    known = {field for _, field in FIELDS} | {f"{name}.{field}" for name, field in FIELDS}
    assert (DESCRIPTIONS.keys() | _EXTRAS.keys()) - known == set()
    assert _NEEDS.keys() <= TYPES.keys()


def test_editors_know_every_pattern() -> None:
    text = msgspec.json.encode(SCHEMA).decode()
    assert r"\\A" not in text
    assert r"\\Z" not in text
