"""Values of a recipe: what a setting's type admits, in words, and how a value is written in TOML.

A setting's type is its annotation in the dataclass, so that no list of types can disagree with it. Text from the
command line is a TOML value; what is none is taken as it stands, so that names need no quotes.
"""

from __future__ import annotations

import json
import sys
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

NONE = "none"
"""What stands for no value where a setting may have none, such as ``percentiles = "none"`` against a preset."""
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
_MAX_SHOWN = 80


def admits(hint: Any, value: Any) -> bool:
    """Tell whether a setting of type `hint` admits `value`: whole numbers are numbers, true and false are not."""
    inner, may_be_none = _without_none(hint)
    if may_be_none and _is_none(value, inner):
        return True
    arguments, origin = get_args(inner), get_origin(inner)
    if origin is typing.Literal:
        return isinstance(value, str) and value in arguments
    if origin is tuple:
        expected = len(value) if isinstance(value, list | tuple) and Ellipsis in arguments else len(arguments)
        return (
            isinstance(value, list | tuple) and len(value) == expected and all(admits(arguments[0], v) for v in value)
        )
    if origin is not None:  # a mapping of texts
        return isinstance(value, Mapping) and all(admits(arguments[1], v) for v in value.values())
    if inner in (int, float) and isinstance(value, bool):
        return False
    if inner is float:
        return isinstance(value, int | float) and abs(value) <= sys.float_info.max  # neither infinite nor NaN
    if inner is Path:
        return isinstance(value, str | Path) and str(value) != ""
    return isinstance(value, inner)


def convert(hint: Any, value: Any) -> Any:
    """Return an admitted value as the type `hint`: lists as tuples, numbers as floats, texts as paths."""
    inner, may_be_none = _without_none(hint)
    if may_be_none and _is_none(value, inner):
        return None
    arguments, origin = get_args(inner), get_origin(inner)
    if origin is typing.Literal or inner in (bool, int, str):
        return value
    if origin is tuple:
        return tuple(convert(arguments[0], item) for item in value)
    return dict(value) if origin is not None else inner(value)


def describe(hint: Any) -> str:
    """Return in words what a type admits.

    >>> describe(tuple[float, float] | None)
    "a list of 2 numbers, or 'none'"
    """
    inner, may_be_none = _without_none(hint)
    arguments, origin = get_args(inner), get_origin(inner)
    if origin is typing.Literal:
        words = f"one of {', '.join(arguments)}"
    elif origin is tuple:
        count = "" if Ellipsis in arguments else f"{len(arguments)} "
        words = f"a list of {count}{describe(arguments[0]).removeprefix('a ')}s"
    elif origin is not None:
        words = f"a table of names and {describe(arguments[1]).removeprefix('a ')}s"
    else:
        words = _WORDS[inner]
    return words + (f", or {NONE!r}" if may_be_none else "")


def show(value: Any) -> str:
    """Return a value as people read it, with its kind: what came.

    >>> show(5), show("five"), show([1, 2])
    ('5 (whole number)', '"five" (text)', '[1, 2] (list)')
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    names = {bool: "true or false", int: "whole number", float: "number", str: "text", list: "list", dict: "table"}
    kind = names.get(type(value), type(value).__name__)
    return f"{text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + '...'} ({kind})"


def parse_text(hint: Any, text: str) -> Any:
    """Return the value of a text from the command line; a text setting takes it as it stands unless it is quoted.

    >>> parse_text(float, "1e-3"), parse_text(str, "sgd"), parse_text(str, "2"), parse_text(int | None, "none")
    (0.001, 'sgd', '2', None)
    """
    inner, may_be_none = _without_none(hint)
    if may_be_none and text == NONE:
        return None
    try:
        table = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    value = table["value"] if len(table) == 1 else text
    return text if inner in (str, Path) and not isinstance(value, str) else value


def to_toml(value: Any) -> str:
    """Return a value as TOML.

    >>> to_toml({"cell interior": 255, "membrane": 0})
    '{ "cell interior" = 255, "membrane" = 0 }'
    """
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case Path():
            return to_toml(value.as_posix())
        case str():
            return json.dumps(value, ensure_ascii=False).replace(
                "\x7f", "\\u007f"
            )  # JSON's escapes are TOML's, but one
        case Mapping():
            return "{ " + ", ".join(f"{to_toml(k)} = {to_toml(v)}" for k, v in value.items()) + " }"
        case _:
            return "[" + ", ".join(map(to_toml, value)) + "]"


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Return the type without ``| None``, and whether that was there."""
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    (inner,) = (argument for argument in get_args(hint) if argument is not types.NoneType)
    return inner, True


def _is_none(value: Any, inner: Any) -> bool:
    return value is None or (value == NONE and inner is not str)
