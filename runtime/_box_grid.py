"""A volume cut into boxes along a grid, each known by its number. Pure integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from unet_deploy.geometry import Interval
from unet_deploy.runtime.plan import Extents
from unet_deploy.runtime.region import Region


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One box of a grid, clipped to the volume."""

    index: int
    t: int
    z: Interval
    y: Interval
    x: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class BoxGrid:
    """Boxes that cover a volume, numbered in the order t, z, y, x, as the blocks of a plan are."""

    extents: Extents
    box: tuple[int, int, int]
    """(z, y, x) of a box that does not touch the volume's far border."""

    @property
    def counts(self) -> tuple[int, int, int, int]:
        """Boxes along (t, z, y, x)."""
        e = self.extents
        z, y, x = (-(-n // size) for n, size in zip((e.z, e.y, e.x), self.box, strict=True))
        return e.t, z, y, x

    @property
    def n_boxes(self) -> int:
        """Number of boxes."""
        t, z, y, x = self.counts
        return t * z * y * x

    def at(self, index: int) -> Box:
        """Return box number `index`."""
        t, *places = self.place(index)
        extents = (self.extents.z, self.extents.y, self.extents.x)
        z, y, x = (
            Interval(i * size, min((i + 1) * size, extent))
            for i, size, extent in zip(places, self.box, extents, strict=True)
        )
        return Box(index=index, t=t, z=z, y=y, x=x)

    def place(self, index: int) -> tuple[int, int, int, int]:
        """Return where box number `index` stands among the boxes: (t, z, y, x)."""
        assert 0 <= index < self.n_boxes, index
        _, nz, ny, nx = self.counts
        rest, x = divmod(index, nx)
        rest, y = divmod(rest, ny)
        t, z = divmod(rest, nz)
        return t, z, y, x

    def touching(self, part: Region | None) -> tuple[range, range, range, range]:
        """Return the boxes that touch a part of the volume (all by default), as ranges of places along (t, z, y, x)."""
        ranges = []
        for axis, size, count in zip("tzyx", (1, *self.box), self.counts, strict=True):
            along = None if part is None else part.along(axis)
            ranges.append(range(count) if along is None else range(along.start // size, -(-along.stop // size)))
        t, z, y, x = ranges
        return t, z, y, x

    def number(self, place: Sequence[int]) -> int:
        """Return the number of the box at a place, the inverse of `place`."""
        index = 0
        for i, n in zip(place, self.counts, strict=True):
            index = index * n + i
        return index

    def neighbour(self, index: int, step: Sequence[int]) -> int | None:
        """Return the number of the box that lies a (z, y, x) step away, None outside the volume."""
        t, *place = self.place(index)
        there = [a + b for a, b in zip(place, step, strict=True)]
        _, *counts = self.counts
        if not all(0 <= i < n for i, n in zip(there, counts, strict=True)):
            return None
        return self.number((t, *there))
