"""What bringing rules files into etcd would change: a plan, and each change in words.

Pure: documents and what etcd holds in, changes out. A value counts as changed where it says something else; spaces and
the order of fields are nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from limiter_node.core.errors import UNDECODABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

UNSET = "unset"


class Stored(NamedTuple):
    """What etcd holds under a key."""

    value: bytes
    revision: int  # of its last change


class Change(NamedTuple):
    """One key that is to be written, or deleted where `after` is None."""

    key: str  # below the prefix
    before: bytes | None
    after: bytes | None
    revision: int  # of the last change of what was before; 0: there was nothing

    @property
    def sign(self) -> str:
        """`+` for a new key, `-` for one that goes, `~` for another value."""
        return "+" if self.before is None else "-" if self.after is None else "~"

    def __str__(self) -> str:
        # Anyone may have written anything into etcd, and this goes to a terminal.
        text = f"{self.sign} {self.key if self.key.isprintable() else ascii(self.key)[1:-1]}"
        if self.before is None or self.after is None:
            return text
        return f"{text}: {', '.join(_differences(self.before, self.after))}"


def plan(wanted: Mapping[str, Any], stored: Mapping[str, Stored], *, prune: bool) -> list[Change]:
    """What is to be changed for etcd to hold all that is wanted and, with `prune`, nothing else of what is stored."""
    changes = []
    for key, document in wanted.items():
        after, found = msgspec.json.encode(document), stored.get(key)
        if found is None:
            changes.append(Change(key, None, after, 0))
        elif found.value != after and _plain(found.value) != _plain(after):
            changes.append(Change(key, found.value, after, found.revision))
    if prune:
        gone = sorted(stored.keys() - wanted.keys())
        changes += [Change(key, stored[key].value, None, stored[key].revision) for key in gone]
    return changes


def _decoded(value: bytes) -> Any:
    try:
        return msgspec.json.decode(value)
    except UNDECODABLE:
        return None


def _plain(value: bytes) -> bytes:
    """A value in the one way to write it; as bytes, for to Python true is 1 and 1 is 1.0."""
    return msgspec.json.encode(_decoded(value), order="sorted")


def _differences(before: bytes, after: bytes) -> Iterator[str]:
    """`rate 100/s -> 200/s` for each field that is not the same."""
    document = _decoded(before)
    if not isinstance(document, dict):
        yield "was no JSON object"
        return
    old, new = dict(_leaves("", document)), dict(_leaves("", _decoded(after)))
    for path in dict.fromkeys([*old, *new]):
        if old.get(path, UNSET) != new.get(path, UNSET):
            yield f"{path} {old.get(path, UNSET)} -> {new.get(path, UNSET)}"


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Each value that is no object or list, in words, with its path; an empty one counts as a value."""
    if isinstance(value, dict) and (value or not path):
        for name, part in value.items():
            yield from _leaves(f"{path}.{name}" if path else name, part)
    elif isinstance(value, list) and value:
        for index, part in enumerate(value):
            yield from _leaves(f"{path}[{index}]", part)
    else:
        is_word = isinstance(value, str) and value.isprintable() and value and " " not in value
        yield path, value if is_word else msgspec.json.encode(value).decode()
