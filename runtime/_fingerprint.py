"""What decides a byte of a run's result, compared with that of the run which is to be gone on with."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from unet_deploy.errors import JournalError

_SHOWN = 8


def plain(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return what JSON makes of it: tuples are lists then, as in what is read back."""
    plain: dict[str, Any] = json.loads(json.dumps(fingerprint, allow_nan=False))
    return plain


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], output: Path) -> None:
    """Refuse to go on with a run that was begun in another way.

    Raises
    ------
    JournalError
        If the fingerprints differ; the message names every difference.
    """
    differences = [
        f"{name}: begun with {_short(was)}, now {_short(value)}" for name, was, value in _differences(before, now)
    ]
    if differences:
        more = len(differences) - _SHOWN
        raise JournalError(
            f"{output} was begun by a run with other inputs or parameters, so it cannot be continued",
            *differences[:_SHOWN],
            *([f"and {more} more"] if more > 0 else []),
            fix="repeat the command that began it, choose another --output, or start anew with --overwrite",
        )


def _differences(before: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted(before.keys() | now.keys()):
            yield from _differences(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        yield name, before, now


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
