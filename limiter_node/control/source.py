"""The text of a rules file: what it says, and in which line each thing stands.

YAML is composed into nodes, which know their lines, and only then into what it says. JSON has a faster reader of its
own; since it is YAML too, its lines are looked up in the same nodes, when there is something to tell.

Does not know what a rules file should say. It refuses what would be lost in silence: a name that is given twice, of
which readers take the last, and a name that YAML makes something else of: `on` is true, 0012 is 10, 1:30 is 90.
"""

from __future__ import annotations

import gc
import json
import re
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

import yaml

from limiter_node.core.json_text import fault

if TYPE_CHECKING:
    from collections.abc import Iterator

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's is ten times as fast."""

_AS_WRITTEN = {"str", "int", "merge"}
_PLAIN_INT = re.compile("-?(0|[1-9][0-9]*)")
_NAME_END = re.compile(r"[/.:\[]|$")
_INDEX = re.compile(r"[0-9]{1,9}(?=[].:]|$)")
_SEPARATOR = re.compile(r"\A\]?(\.|: ?|/|\[)")


class BadText(Exception):
    """A text that is neither YAML nor JSON; `line` (from 1) where that is known."""

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


class Source:
    """A text that could be read: `content` is what it says, `lost` the problems of what it says in vain."""

    def __init__(self, text: bytes, *, is_json: bool) -> None:
        """Read the text; raises `BadText`."""
        self._text = text
        self._entries: dict[int, dict[str, tuple[yaml.Node, yaml.Node]]] = {}  # of mapping nodes, by their id
        try:
            if is_json:
                self.content, has_twice = _json(text)
                self.lost = [*_lost(self._root)] if has_twice else []
            else:
                with _no_collector():
                    self.content, self.lost = self._yaml()
        except json.JSONDecodeError as error:
            raise BadText(error.msg, error.lineno) from None
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            reason = ", ".join(part for part in (error.context, error.problem) if part)
            raise BadText(reason, mark.line + 1 if mark else None) from None
        except (yaml.YAMLError, RecursionError, ValueError) as error:  # YAML knows dates that Python does not
            raise BadText(" ".join(str(error).split())) from None

    def line_of(self, path: str) -> int | None:
        """The line (from 1) of what a path names, as `rules/api: segments.free.rate`, or of what is nearest around it.

        The path may go on with other text. Names hold dots themselves, so at each step the longest name of the text
        that the path goes on with is taken.
        """
        node, line = self._root, None
        while (step := self._step(node, path)) is not None:
            marked, node, path = step
            line, path = marked.start_mark.line + 1, _SEPARATOR.sub("", path)
        return line

    def _step(self, node: yaml.Node | None, path: str) -> tuple[yaml.Node, yaml.Node, str] | None:
        """(what to take the line of, where to go on, the path from there) one level further down."""
        if isinstance(node, yaml.MappingNode):
            if id(node) not in self._entries:
                # Of a name that is given twice, the later entry counts.
                self._entries[id(node)] = {
                    key.value: (key, value) for key, value in node.value if isinstance(key, yaml.ScalarNode)
                }
            entries = self._entries[id(node)]
            for match in reversed([*_NAME_END.finditer(path)]):
                name = path[: match.start()]
                if name in entries:
                    return *entries[name], path[match.start() :]
        index = _INDEX.match(path)
        if isinstance(node, yaml.SequenceNode) and index and int(index[0]) < len(node.value):
            item = node.value[int(index[0])]
            return item, item, path[index.end() :]
        return None

    @cached_property
    def _root(self) -> yaml.Node | None:
        try:
            return yaml.compose(self._text, Loader=LOADER)
        except (yaml.YAMLError, RecursionError, ValueError):
            return None  # JSON that is no YAML, such as one that is indented with tabs: no lines then

    def _yaml(self) -> tuple[Any, list[str]]:
        loader = LOADER(self._text)
        try:
            self._root = root = loader.get_single_node()
            lost = [*_lost(root)]  # before merged fields are written into the nodes
            return (None if root is None else loader.construct_document(root)), lost
        finally:
            loader.dispose()


@contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python from looking for garbage again and again among nodes that are all in use.

    With 100,000 keys in YAML that took 9 s of 13; no node of a text is left over in a cycle, save by a recursive alias.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _json(text: bytes) -> tuple[Any, bool]:
    """What a JSON text says, and whether an object of it has a name twice."""
    has_twice = False

    def made(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal has_twice
        found = dict(pairs)
        has_twice = has_twice or len(found) < len(pairs)
        return found

    content = json.loads(text, object_pairs_hook=made, parse_constant=_refuse)
    if b"\\u" in text:
        _require_whole_characters(text, content)
    return content, has_twice


def _require_whole_characters(text: bytes, content: Any) -> None:
    """JSON can spell half a character, which no text can hold."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(fault(text) or error) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON number")


def _lost(root: yaml.Node | None) -> Iterator[str]:
    """The problems of names that are given twice, and of those that YAML makes something else of."""
    seen: set[int] = set()  # an alias is the node itself, and may be within itself
    waiting: list[tuple[tuple[str, ...], Any]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        if isinstance(node, yaml.ScalarNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            yield from _lost_names(path, node)
            waiting += [((*path, str(key.value)), value) for key, value in reversed(node.value)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [((*path, str(index)), item) for index, item in enumerate(node.value)]


def _lost_names(path: tuple[str, ...], node: yaml.MappingNode) -> Iterator[str]:
    lines: dict[str, int] = {}
    for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
        name, kind = key.value, key.tag.rpartition(":")[2]
        if name in lines:
            yield f"{_written(*path, name)}: is given twice, first in line {lines[name]}; allowed: once"
        elif kind not in _AS_WRITTEN or (kind == "int" and not _PLAIN_INT.fullmatch(name)):
            yield f"{_written(*path, name)}: is read by YAML as {kind}; allowed: '{name}' in quotes"
        lines[name] = key.start_mark.line + 1


def _written(*names: str) -> str:
    """A path as in all problems: `rules/api: segments.free`."""
    document, place = "/".join(names[:2]), ".".join(names[2:])
    return f"{document}: {place}" if place else document
