"""Where a box of a pyramid stands in each of its levels: y and x are halved from level to level. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from unet_deploy.geometry import Interval
from unet_deploy.runtime._box_grid import Box, BoxGrid
from unet_deploy.runtime.layout import OutputSpec

Place = dict[str, slice]
"""By axis name; c is all classes, for arrays that have it."""


def pieces_of(spec: OutputSpec, level: int) -> BoxGrid:
    """Return the pieces in which a pass makes a level."""
    return BoxGrid(extents=spec.level_extents(level), box=spec.region)


def place_above(spec: OutputSpec, level: int, piece: Box) -> Place:
    """Return what a piece of a level is made from, in the level above."""
    above, y, x = spec.level_extents(level - 1), piece.y, piece.x
    rows, columns = slice(2 * y.start, min(2 * y.stop, above.y)), slice(2 * x.start, min(2 * x.stop, above.x))
    return _place(spec, t=piece.t, z=piece.z, rows=rows, columns=columns)


def places_down(
    spec: OutputSpec, *, level: int, count: int, t: int, z: Interval, y: Interval, x: Interval
) -> Iterator[tuple[int, Place]]:
    """Yield where a box of `level` stands in it and in the levels below, `count` in all: each level with the place."""
    for deeper in range(count):
        e = spec.level_extents(level + deeper)
        rows, columns = (
            slice(side.start >> deeper, min(-(-side.stop >> deeper), extent)) for side, extent in ((y, e.y), (x, e.x))
        )
        yield level + deeper, _place(spec, t=t, z=z, rows=rows, columns=columns)


def _place(spec: OutputSpec, *, t: int, z: Interval, rows: slice, columns: slice) -> Place:
    return {"t": slice(t, t + 1), "c": slice(0, len(spec.classes)), "z": z.slice, "y": rows, "x": columns}
