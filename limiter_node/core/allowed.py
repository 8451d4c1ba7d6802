"""What values a field may have, in words: the end of an error message. Made of the type that reads the field."""

from __future__ import annotations

from functools import cache
from typing import Any, get_args

from msgspec import inspect


@cache
def in_words(type_: Any) -> str:
    """`an integer of 1 to 9`, `true, false, auto`; without null, which says nothing that is not said by leaving out."""
    words = "text"
    match inspect.type_info(type_):
        case inspect.LiteralType():
            words = ", ".join(map(str, get_args(type_)))  # in their order; msgspec sorts them
        case inspect.BoolType():
            words = "true, false"
        case inspect.IntType() as integer:
            words = f"an integer{_range(integer)}"
        case inspect.FloatType() as number:
            words = f"a number{_range(number)}"
        case inspect.ListType():
            words = "an array of objects"
        case inspect.DictType():
            words = f"an object of {{name: {in_words(get_args(type_)[1])}}}"
        case inspect.StructType():
            words = "an object"
        case inspect.UnionType():
            words = ", ".join(in_words(part) for part in get_args(type_) if part is not type(None))
    return words


def _range(number: inspect.IntType | inspect.FloatType) -> str:
    """` of 1 to 9`, ` above 0, up to 1`, ` of 0 or more`; nothing where any is allowed."""
    if number.gt is not None:
        return f" above {number.gt:.15g}" + ("" if number.le is None else f", up to {number.le:.15g}")
    if number.ge is not None:
        return f" of {number.ge:.15g}" + (" or more" if number.le is None else f" to {number.le:.15g}")
    return ""
