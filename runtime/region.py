"""A part of a volume, along some of its axes: what `--region` says. Pure.

Coordinates are those of the volume, whatever the blocks; an axis that is not named is meant whole. A region chooses
which blocks run, never what a pixel becomes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unet_deploy.errors import UsageError
from unet_deploy.geometry import Interval

if TYPE_CHECKING:
    from unet_deploy.runtime.plan import Extents

REGION_AXES = "tzyx"
_EXAMPLE = "z=0:10,y=512:1024"


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """An interval along each axis, None for the whole of it."""

    t: Interval | None = None
    z: Interval | None = None
    y: Interval | None = None
    x: Interval | None = None

    def __str__(self) -> str:
        named = [(axis, self.along(axis)) for axis in REGION_AXES]
        return ",".join(f"{axis}={i.start}:{i.stop}" for axis, i in named if i is not None)

    def along(self, axis: str) -> Interval | None:
        """Return the interval along an axis, None for the whole of it."""
        return {"t": self.t, "z": self.z, "y": self.y, "x": self.x}[axis]

    def to_object(self) -> dict[str, list[int]]:
        """Return the axes that are named, as JSON values.

        >>> parse_region("z=5,y=0:64").to_object()
        {'z': [5, 6], 'y': [0, 64]}
        """
        named = [(axis, self.along(axis)) for axis in REGION_AXES]
        return {axis: [i.start, i.stop] for axis, i in named if i is not None}

    def require_inside(self, extents: Extents) -> None:
        """Refuse a region that the volume does not have.

        Raises
        ------
        UsageError
            If it leaves the volume along an axis; the message names each.
        """
        sizes = {"t": extents.t, "z": extents.z, "y": extents.y, "x": extents.x}
        outside = [
            f"{axis} {part.start}:{part.stop} came, the volume has {axis} 0:{sizes[axis]}"
            for axis in REGION_AXES
            if (part := self.along(axis)) is not None and not 0 <= part.start < part.stop <= sizes[axis]
        ]
        if not outside:
            return
        inside = {
            axis: Interval(part.start, min(part.stop, sizes[axis]))
            for axis in REGION_AXES
            if (part := self.along(axis)) is not None and 0 <= part.start < sizes[axis]
        }
        fix = f"--region {Region(**inside)}" if inside else "choose a region inside the volume"
        raise UsageError(f"the region {self} is not inside the volume", *outside, fix=fix)


def parse_region(text: str) -> Region:
    """Return the region that a text means: intervals ``first:last+1`` or single numbers, by axis.

    >>> parse_region("z=0:10, y=512:1024")
    Region(t=None, z=Interval(start=0, stop=10), y=Interval(start=512, stop=1024), x=None)
    >>> parse_region("z=5").z
    Interval(start=5, stop=6)

    Raises
    ------
    UsageError
        If a part of it cannot be meant; the message names each.
    """
    found: dict[str, Interval] = {}
    problems: list[str] = []
    for part in text.split(","):
        axis, _, value = (piece.strip() for piece in part.partition("="))
        numbers = re.fullmatch(r"([0-9]{1,13})(?:\s*:\s*([0-9]{1,13}))?", value)
        if axis == "c":
            problems.append("c is no axis of a region; channels are chosen by --channel")
        elif axis not in tuple(REGION_AXES):
            problems.append(f"{part.strip()!r} does not begin with one of t=, z=, y=, x=")
        elif axis in found:
            problems.append(f"{axis} came twice")
        elif numbers is None:
            problems.append(f"{axis}={value} is not a number, or two such as {axis}=512:1024")
        else:
            start = int(numbers[1])
            stop = start + 1 if numbers[2] is None else int(numbers[2])
            if stop > start:
                found[axis] = Interval(start, stop)
            else:
                problems.append(f"{axis}={value} is empty; its end must be larger than its start")
    if problems:
        raise UsageError(
            f"the region {text!r} came, one such as {_EXAMPLE} was expected", *problems, fix=f"--region {_EXAMPLE}"
        )
    return Region(**found)
