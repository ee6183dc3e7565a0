"""Cells for the procedural sample volume: packed on a torus, moving along z, dividing bent space among them.

1. `pack_cells` throws ellipses on a torus, large ones first, and keeps those that overlap no other much;
2. each pixel belongs to the cell of the least q = weight * (stretched distance from its centre - its radius), a
   weighted Voronoi diagram: cells are round where they are small, and straight-sided where they are alike;
3. the distance to the membrane is (q of a neighbour - q of the owner) over the gradient of that difference, taken
   through the bent space, so that membranes keep their width wherever space is stretched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float64]

WORLD = 1024
"""Period of the cells in pixels."""
TILE = 32
"""Pixels a side that share one list of nearby cells."""
REACH = 24.0
"""Difference in q (about pixels) beyond which a neighbour does not show."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cells:
    """One row a cell: where it is at z = 0, how it moves, what is in it."""

    centre: Field  # (n, 2)
    radius: Field
    metric: Field  # (n, 2, 2), symmetric, determinant 1: stretches space so that the ellipse is a circle
    drift: Field  # (n, 2) pixels
    phase: Field  # (n, 3) of the movement of y, x and radius
    pace: Field  # (n, 3) radians a plane
    brightness: Field  # grey values, as grain and vesicles
    grain: Field
    vesicles: Field
    mitochondrion: Field  # (n, 5): y and x from the cell's centre, half axes (0 where there is none), angle


def pack_cells(rng: np.random.Generator) -> Cells:
    """Return cells that fill a square of side WORLD."""
    centres, radii = np.empty((0, 2)), np.empty(0)
    for smallest, largest, darts in ((60, 85, 40), (32, 55, 160), (18, 32, 600), (10, 17, 1800)):
        for y, x, size in rng.random((darts, 3)):
            point, radius = np.array([y, x]) * WORLD, smallest + (largest - smallest) * size
            gap = np.hypot(*_wrap(centres - point).T)
            if not (gap < 0.95 * (radii + radius)).any():
                centres, radii = np.vstack([centres, point]), np.append(radii, radius)
    count = len(radii)
    aspect = 1 + 2.2 * rng.random(count) ** 2 * (radii > 17)
    angle = np.pi * rng.random(count)
    has_mitochondrion = rng.random(count) < np.where(radii > 22, 0.5, 0)
    place = (rng.random((count, 2)) - 0.5) * radii[:, None] * 0.8
    half_axes = np.minimum(radii[:, None] * (0.4 + 0.35 * rng.random((count, 2))), 42) * has_mitochondrion[:, None]
    return Cells(
        centre=centres,
        radius=radii,
        metric=_stretch(angle, aspect),
        drift=(3 + 0.25 * radii)[:, None] * (rng.random((count, 2)) + 0.3),
        phase=2 * np.pi * rng.random((count, 3)),
        pace=0.35 + 0.4 * rng.random((count, 3)),
        brightness=20 * (rng.random(count) + rng.random(count) - 1),
        grain=9 + 14 * rng.random(count),
        vesicles=62 * rng.random(count) ** 1.5,
        mitochondrion=np.column_stack([place, half_axes, np.pi * rng.random(count)]),
    )


def _stretch(angle: Field, aspect: Field) -> Field:
    cos, sin, long = np.cos(angle), np.sin(angle), np.sqrt(aspect)
    rotation = np.moveaxis(np.array([[cos, -sin], [sin, cos]]), -1, 0)
    scale = np.stack([1 / long, long], axis=-1)
    return np.asarray(np.einsum("nij,nj,nkj->nik", rotation, scale, rotation))


def _wrap(offset: Field) -> Field:
    """Return offsets on the torus to the nearest image."""
    return (offset + WORLD / 2) % WORLD - WORLD / 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ownership:
    """Which cell owns each pixel, where in it the pixel lies (bent space), and how far the membrane is."""

    cell: npt.NDArray[np.intp]
    y: Field
    x: Field
    distance: Field


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Seeds:
    """The cells of one plane: q = weight * (stretched distance from the centre - radius)."""

    centre: Field  # (n, 2)
    radius: Field
    weight: Field  # q grows faster from small cells, which rounds them
    metric: Field  # (n, 2, 2)


def divide(cells: Cells, z: int, bent: Field, slope: Field) -> Ownership:
    """Divide a block among the cells of plane z, a tile at a time.

    Parameters
    ----------
    cells
        What `pack_cells` returns.
    z
        The plane.
    bent
        (2, y, x): where the pixels lie in bent space.
    slope
        (2, 2, y, x): the derivatives of `bent`, of which coordinate, along which axis.
    """
    move = np.sin(cells.phase + z * cells.pace)
    radius = cells.radius * (1 + 0.12 * move[:, 2])
    seeds = _Seeds(
        centre=cells.centre + cells.drift * move[:, :2],
        radius=radius,
        weight=(radius / 25) ** -0.4,
        metric=cells.metric,
    )
    shape = bent.shape[1:]
    own = Ownership(cell=np.empty(shape, np.intp), y=np.empty(shape), x=np.empty(shape), distance=np.empty(shape))
    for top in range(0, shape[0], TILE):
        for left in range(0, shape[1], TILE):
            at = np.s_[top : top + TILE, left : left + TILE]
            tile = _divide_tile(seeds, bent[:, *at], slope[:, :, *at])
            own.cell[at], own.y[at], own.x[at], own.distance[at] = tile.cell, tile.y, tile.x, tile.distance
    return own


def _divide_tile(seeds: _Seeds, bent: Field, slope: Field) -> Ownership:
    """Steps 2 and 3 of the module for one tile; arrays of shape (cell, y, x) are over the cells near it."""
    near, offset = _cells_near(seeds, bent)
    dy, dx = bent[:, None] - offset.T[..., None, None]
    (a, b), (_, c) = np.moveaxis(seeds.metric[near], 0, -1)[..., None, None]
    radius, weight = seeds.radius[near, None, None], seeds.weight[near, None, None]
    stretched_y, stretched_x = a * dy + b * dx, b * dy + c * dx
    norm = np.maximum(np.hypot(stretched_y, stretched_x), 1e-9)
    q = weight * (norm - radius)
    owner = q.argmin(axis=0)[None]

    def of_owner(values: Field) -> Field:
        return np.take_along_axis(values, owner, 0)

    gradient_y = weight * (a * stretched_y + b * stretched_x) / norm
    gradient_x = weight * (b * stretched_y + c * stretched_x) / norm
    gradient_y -= of_owner(gradient_y)
    gradient_x -= of_owner(gradient_x)
    steep = np.hypot(
        slope[0, 0] * gradient_y + slope[1, 0] * gradient_x,
        slope[0, 1] * gradient_y + slope[1, 1] * gradient_x,
    )
    apart = (q - of_owner(q)) / np.maximum(steep, 0.35)
    np.put_along_axis(apart, owner, np.inf, 0)
    # A soft minimum over the neighbours rounds the corners and thickens the junctions, as in the real tissue.
    nearness = np.exp(-np.minimum(apart, 200) / 3).sum(axis=0)
    distance = -3 * np.log(np.maximum(nearness, 1e-28))
    return Ownership(cell=near[owner[0]], y=of_owner(dy)[0], x=of_owner(dx)[0], distance=distance)


def _cells_near(seeds: _Seeds, bent: Field) -> tuple[npt.NDArray[np.intp], Field]:
    """Return the cells that can own a pixel of the tile or come within REACH of doing so, and their nearest images."""
    middle = bent.mean(axis=(1, 2))
    extent = np.hypot(*np.abs(bent - middle[:, None, None]).max(axis=(1, 2)))
    offset = _wrap(seeds.centre - middle)
    q = seeds.weight * (np.hypot(*np.einsum("nij,nj->in", seeds.metric, offset)) - seeds.radius)
    slack = seeds.weight * np.linalg.norm(seeds.metric, axis=(1, 2)) * extent  # q changes by no more in the tile
    near = np.flatnonzero(q - slack < (q + slack).min() + REACH)
    return near, middle + offset[near]
