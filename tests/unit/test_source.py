"""The text of a rules file: which line a problem is in, and what would be lost in silence."""

import json

import pytest

from limiter_node.control.source import BadText, Source

YAML = b"""\
# a comment
rules:
  api:
    rate: 1/s
    segments:
      gold.eu: {rate: 2/s,
                burst: 3}
    limits:
    - rate: 1/s
    - {rate: 2/s}
keys:
  /a.b: c:
    segment: x
  user:42: {segment: y}
"""


def yaml(text: str) -> Source:
    return Source(text.encode(), is_json=False)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("rules: must be an object", 2),
        ("rules/api: rate: 'x' is no rate", 4),
        ("rules/api: segments.gold.eu.burst: Expected int", 7),
        ("rules/api: segments.gold.eu.brust: unknown field", 6),
        ("rules/api: limits[1].rate: 'x' is no rate", 10),
        ("rules/api: limits.0.rate: 'x' is no rate", 9),
        ("rules/api: limits: 1 limits; allowed: 2", 8),
        ("rules/api: limits[2].rate: is required", 8),
        ("rules/api: burst: is required", 3),
        ("keys//a.b: c: segment: Expected str", 13),
        ("keys/user:42: segment: Expected str", 14),
        ("keys/user: segment: Expected str", 11),
        ("nothing: of the kind", None),
    ],
)
def test_a_path_leads_to_its_line_or_to_what_is_around_it(path: str, line: int | None) -> None:
    assert yaml(YAML.decode().replace("/a.b: c:", "'/a.b: c':")).line_of(path) == line


def test_json_has_lines_too() -> None:
    source = Source(json.dumps({"rules": {"api": {"rate": "1/s", "burst": 0}}}, indent=1).encode(), is_json=True)
    assert source.line_of("rules/api: burst: Expected int >= 1") == 5


def test_json_that_is_no_yaml_is_read_all_the_same() -> None:
    source = Source(b'{\n\t"rules": {"api":\n\t{"rate": "1/s"}\n\t}\n}', is_json=True)
    assert source.content == {"rules": {"api": {"rate": "1/s"}}}
    assert source.line_of("rules/api: rate") in (None, 3)


@pytest.mark.parametrize(
    ("text", "is_json", "line"),
    [
        (b"rules:\n  api: {rate: 1/s\nkeys: {}\n", False, 3),
        (b"a: 1\n---\nb: 2\n", False, 2),
        (b"a: 1\nb: !!python/name:os.system x\n", False, 2),
        (b"\x00", False, None),
        (b"a: 2001-99-99", False, None),
        (b'{"rules":\n{,}}', True, 2),
        (b'{"a": NaN}', True, None),
        (b'{"a": "\\ud800"}', True, None),
        (b"[" * 100_000, True, None),
        (b"\xff\xff{}", True, None),
    ],
)
def test_what_is_neither_yaml_nor_json_says_where(text: bytes, is_json: bool, line: int | None) -> None:
    with pytest.raises(BadText) as caught:
        Source(text, is_json=is_json)
    assert caught.value.line == line
    assert str(caught.value)
    assert "\n" not in str(caught.value)


def test_half_a_character_is_told_with_the_field_that_has_it() -> None:
    with pytest.raises(BadText, match=r"^rate: has half of a surrogate pair; allowed: whole characters$"):
        Source(b'{"rules": {"api": {"rate": "\\ud800"}}}', is_json=True)
    with pytest.raises(BadText, match="surrogates not allowed"):
        Source(b'{"rules": {"api": {"limits": ["\\ud800"]}}}', is_json=True)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("rules:\n  a: {}\n  b: {}\n  a: {}", ["rules/a: is given twice, first in line 2; allowed: once"]),
        ("keys: {}\nkeys: {}", ["keys: is given twice, first in line 1; allowed: once"]),
        ("rules: {a: {segments: {x: 1,\n'x': 2}}}", ["rules/a: segments.x: is given twice, first in line 1"]),
        ("rules: {a: {limits: [{rate: 1,\n rate: 2}]}}", ["rules/a: limits.0.rate: is given twice, first in line 1"]),
        ("keys: {12: 0, '12': 0}", ["keys/12: is given twice, first in line 1; allowed: once"]),
        ("keys: {0012: 0}", ["keys/0012: is read by YAML as int; allowed: '0012' in quotes"]),
        ("keys: {12:30: 0}", ["keys/12:30: is read by YAML as int; allowed: '12:30' in quotes"]),
        ("keys: {on: 0, 10.1: 0}", ["keys/on: is read by YAML as bool", "keys/10.1: is read by YAML as float"]),
        ("keys: {12: 0, '0012': 0, 'on': 0, -5: 0}", []),
        ("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}", []),
        ("x: &x [*x]", []),
        ("", []),
    ],
)
def test_names_that_would_be_lost_in_silence_are_told(text: str, lost: list[str]) -> None:
    told = yaml(text).lost
    assert len(told) == len(lost)
    assert all(problem.startswith(start) for problem, start in zip(told, lost, strict=True))


def test_a_name_given_twice_in_json_is_told_and_in_the_line_of_the_later_one() -> None:
    source = Source(b'{"rules": {\n"a": {},\n"a": {}}}', is_json=True)
    assert source.lost == ["rules/a: is given twice, first in line 2; allowed: once"]
    assert source.line_of(source.lost[0]) == 3
