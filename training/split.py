"""Which images train, which are validated on, which are left out; stems in, stems out.

1. Given validation images are taken as they are. Else the last tenth of unrelated images, at least one, is held out.
2. In a stack neighbours look alike. It is cut into as many equal parts as images are held out, a tenth and at least
   two, and the middle of each part is held out: both halves have one.
3. In a stack, `gap` neighbours on either side of each are left out altogether, else the score would flatter.

A stem that ends in a number stands at that number, so a slice whose file is missing counts as a neighbour; stems
that differ before the number are of different stacks. Without numbers everywhere, the place in the order counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

_ENDS_IN_NUMBER = re.compile(r"(.*?)(\d+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Stems to validate on and to leave out; all others train. `gap` are those left out as neighbours alone."""

    validation: tuple[str, ...]
    excluded: tuple[str, ...]
    gap: tuple[str, ...] = ()


def split_stems(
    stems: Sequence[str],
    *,
    validation: Sequence[str] | None,
    exclude: Sequence[str],
    is_stack: bool,
    gap: int,
) -> Split:
    """Split stems; see the module for the rule. Unknown stems in `validation` and `exclude` are passed on as they are.

    >>> split_stems([f"{i:02}" for i in range(12)], validation=None, exclude=(), is_stack=True, gap=1)
    Split(validation=('03', '09'), excluded=('02', '04', '08', '10'), gap=('02', '04', '08', '10'))
    """
    places = _places(stems)
    order = sorted(places, key=lambda stem: (places[stem], stem))
    left = [stem for stem in order if stem not in exclude]
    if validation is not None:
        held_out = tuple(dict.fromkeys(validation))
    else:
        held_out = middles(left) if is_stack else last_tenth(left)
    neighbours: list[str] = []
    if is_stack:
        for stem in left:
            series, number = places[stem]
            near = [places[other] for other in held_out if other in places]
            if stem not in held_out and any(s == series and abs(n - number) <= gap for s, n in near):
                neighbours.append(stem)
    return Split(validation=held_out, excluded=tuple(dict.fromkeys([*exclude, *neighbours])), gap=tuple(neighbours))


def last_tenth(stems: Sequence[str]) -> tuple[str, ...]:
    """Return the last tenth of `stems`, rounded, at least one.

    >>> last_tenth([f"{i:02}" for i in range(24)])
    ('22', '23')
    """
    return tuple(stems[-max(1, round(len(stems) / 10)) :])


def middles(stems: Sequence[str]) -> tuple[str, ...]:
    """Return the middle of each of as many equal parts of `stems` as a tenth of them, at least two.

    >>> middles([f"{i:02}" for i in range(30)])
    ('05', '15', '25')
    """
    count = min(max(2, round(len(stems) / 10)), len(stems))
    return tuple(stems[(2 * part + 1) * len(stems) // (2 * count)] for part in range(count))


def _places(stems: Sequence[str]) -> dict[str, tuple[str, int]]:
    matches = {stem: _ENDS_IN_NUMBER.fullmatch(stem) for stem in stems}
    numbered = {stem: (match[1], int(match[2])) for stem, match in matches.items() if match}
    if len(numbered) == len(matches):
        return numbered
    return {stem: ("", index) for index, stem in enumerate(sorted(matches))}
