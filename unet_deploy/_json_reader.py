"""Strict reading of JSON that others may have written: every problem is noted, none is guessed around.

1. `load_strict` parses text and refuses what JSON readers disagree on: repeated keys, numbers that are none.
2. `Reader` takes values out of one object by name; what is missing, of another kind, or left over is noted.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from typing import Any

JsonObject = dict[str, Any]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def load_strict(text: str) -> Any:
    """Parse JSON text.

    Raises
    ------
    ValueError, RecursionError
        If it is no JSON, repeats a key, holds a number that is not finite, or nests without end.
    """
    return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite, object_pairs_hook=_without_repeats)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number a card may hold")


def _finite(text: str) -> float:
    return value if math.isfinite(value := float(text)) else _refuse_constant(text)


def _without_repeats(pairs: list[tuple[str, Any]]) -> JsonObject:
    # Python keeps the last of two equal keys, other readers the first: a card must mean one thing.
    data: JsonObject = {}
    for key, value in pairs:
        if key in data:
            raise ValueError(f"the key {key!r} comes twice")
        data[key] = value
    return data


class Reader:
    """Takes values out of one JSON object, noting each problem instead of stopping at the first."""

    def __init__(self, data: Any, path: str, problems: list[str] | None = None) -> None:
        self.problems: list[str] = [] if problems is None else problems
        self.path = path
        self.data: JsonObject = data if isinstance(data, dict) else {}
        self.left = set(self.data)
        if not isinstance(data, dict):
            self.note("", f"an object was expected, {_show(data)} came")

    def note(self, key: str, what: str) -> None:
        """Note a problem of a key."""
        self.problems.append(f"{self.path}{key}: {what}")

    def take(self, key: str, claim: str, is_good: Callable[[Any], bool]) -> Any:
        """Take a value that `is_good`; note what came instead, and return None."""
        if key not in self.left:
            self.note(key, "missing")
            return None
        self.left.discard(key)
        value = self.data[key]
        if not is_good(value):
            self.note(key, f"{claim} was expected, {_show(value)} came")
            return None
        return value

    def take_object(self, key: str) -> Reader:
        """Take an object, as a reader that notes its problems in the same list."""
        return Reader(
            self.take(key, "an object", lambda v: isinstance(v, dict)) or {}, f"{self.path}{key}.", self.problems
        )

    def take_text(self, key: str) -> Any:
        """Take a text."""
        return self.take(key, "text", lambda v: isinstance(v, str))

    def take_int(self, key: str, low: int, high: int) -> Any:
        """Take an integer in low..high."""
        return self.take(key, f"an integer in {low}..{high}", lambda v: type(v) is int and low <= v <= high)

    def take_choice(self, key: str, choices: tuple[str, ...]) -> Any:
        """Take one of a few texts."""
        return self.take(key, f"one of {', '.join(choices)}", lambda v: v in choices)

    def take_numbers(
        self, key: str, *, positive: bool = False, optional: bool = False, length: int | None = None
    ) -> Any:
        """Take a list of numbers, as a tuple."""

        def is_good(value: Any) -> bool:
            if value is None:
                return optional
            if not isinstance(value, list) or (length is not None and len(value) != length):
                return False
            return all(is_number(v) and (v > 0 or not positive) for v in value)

        claim = f"{'a list' if length is None else length} of {'positive ' if positive else ''}numbers"
        value = self.take(key, claim, is_good)
        return None if value is None else tuple(value)

    def take_hash(self, key: str) -> Any:
        """Take a sha256 in hexadecimal, or null."""
        return self.take(
            key, "a sha256 or null", lambda v: v is None or (isinstance(v, str) and bool(_SHA256.fullmatch(v)))
        )

    def finish(self) -> None:
        """Note the keys that nobody took."""
        for key in sorted(self.left):
            self.note(key, "unknown key")


def is_number(value: Any) -> bool:
    """Tell whether a JSON value is a number that a float can hold."""
    # Floats are finite already; an integer may still be beyond every float.
    return type(value) is float or (type(value) is int and abs(value) <= sys.float_info.max)


def is_names(value: Any, length: int | None) -> bool:
    """Tell whether a JSON value is a list of texts, of a given length if not None."""
    return isinstance(value, list) and all(isinstance(v, str) for v in value) and length in (None, len(value))


def is_mapping(value: Any, is_good: Callable[[Any], bool]) -> bool:
    """Tell whether a JSON value is an object whose values are all good."""
    return isinstance(value, dict) and all(is_good(v) for v in value.values())


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
