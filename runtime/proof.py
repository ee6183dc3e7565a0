"""The proof of one artifact on this machine: what the card promises, tried on the engine that will run it.

1. *Receptive field*: no output depends on more than the declared context (`unet_deploy.runtime.receptive_field`).
2. *Seams*: a picture in tiles, on two grids of different phase within the volume but both in phase with the pooling,
   equals the picture in one pass. A third grid, off the pooling grid, shows what that rule prevents; it proves nothing.
3. *Engines*: every engine at hand replays the card's test tensor.
4. *Extremes*: all black, all white, a checkerboard of both: the logits are finite.

Each of these has an answer; the verdict is that none of them failed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.geometry import AxisTile, Geometry, Interval
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines import CheckedEngine, EngineDescription
from unet_deploy.runtime.normalise import (
    Batch,
    is_finite,
    to_labels,
)
from unet_deploy.runtime.pictures import Picture
from unet_deploy.runtime.receptive_field import (
    Infer,
    Limit,
    ReceptiveField,
    impulse_phases,
    measure_receptive_field,
)
from unet_deploy.runtime.survey import EngineStatus
from unet_deploy.runtime.tolerances import TOLERANCES

STEPS: dict[str, float] = {"fp16": 4 * 2**-10, "int8": 4 / 255}
"""Of the largest value, what two ways of computing the same may differ by: four steps of the number format."""
OVERDRIVE: dict[str, float] = {"fp32": 64.0}
"""How much stronger than black and white impulses are; 16-bit numbers might overflow, 8-bit ones end there."""
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seam:
    """A picture in tiles against the same in one pass.

    `start` is where the first core begins, at or before 0; `differing` and `relabelled` are shares of pixels: those
    whose logits are further apart than `limit`, and those of another class.
    """

    tile: tuple[int, int]
    start: int
    tiles: int
    difference: float
    limit: float
    differing: float
    relabelled: float

    @property
    def is_equal(self) -> bool:
        """Whether the two agree up to the engine's rounding."""
        return self.difference <= self.limit  # false for NaN

    def to_object(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "tile": list(self.tile),
            "start": self.start,
            "tiles": self.tiles,
            "difference": self.difference if math.isfinite(self.difference) else None,  # JSON has no other numbers
            "limit": self.limit if math.isfinite(self.limit) else None,
            "differing": self.differing,
            "relabelled": self.relabelled,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """What was tried and what came of it; `problems` has one line for each failure."""

    model: str
    sha256: str
    engine: EngineDescription
    picture: str
    field: ReceptiveField
    seams: tuple[Seam, ...]
    misaligned: Seam
    engines: tuple[EngineStatus, ...]
    extremes: dict[str, bool]

    @property
    def problems(self) -> tuple[str, ...]:
        """What does not hold, in words."""
        found = _field_problems(self.field)
        found += [
            f"seams: tiles of {seam.tile[0]} × {seam.tile[1]} px from {seam.start} differ from one pass by "
            f"{seam.difference:.3g}, at most {seam.limit:.3g} is rounding"
            for seam in self.seams
            if not seam.is_equal
        ]
        found += [f"engine {status.name}: {status.reason}" for status in self.engines if status.is_wrong]
        found += [
            f"extremes: {name} gives logits that are no numbers" for name, good in self.extremes.items() if not good
        ]
        return tuple(found)

    @property
    def has_passed(self) -> bool:
        """Whether everything holds."""
        return not self.problems

    def to_object(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "model": self.model,
            "sha256": self.sha256,
            "engine": self.engine.to_object(),
            "picture": self.picture,
            "receptive_field": self.field.to_object(),
            "seams": [seam.to_object() for seam in self.seams],
            "misaligned": self.misaligned.to_object(),
            "engines": [status.to_object() for status in self.engines],
            "extremes_finite": self.extremes,
            "problems": list(self.problems),
            "passed": self.has_passed,
        }


def prove(
    artifact: Artifact,
    engine: CheckedEngine,
    picture: Picture,
    *,
    engines: Sequence[EngineStatus] = (),
    say: Say | None = None,
) -> Proof:
    """Try what the card promises.

    Parameters
    ----------
    artifact
        The artifact.
    engine
        It, open, on the device that is to run it.
    picture
        What to try it on: of `unet_deploy.runtime.pictures`.
    engines
        What `survey_engines` found.
    say
        Told what is being tried.

    Returns
    -------
    Proof
        Nothing is raised for what does not hold: see `Proof.problems`.
    """
    tell = say or (lambda _: None)
    geometry, description = artifact.card.geometry, engine.describe()
    limit = _rounding(description)
    tell(f"receptive field: {2 * len(impulse_phases(geometry.divisor))} impulses")
    field = measure_receptive_field(
        engine.infer, geometry, picture, limit=limit, overdrive=OVERDRIVE.get(description.precision, 0.0)
    )
    tell("tiled against whole")
    *seams, misaligned = _compare_grids(engine.infer, geometry, picture, limit=limit)
    tell("extremes")
    return Proof(
        model=f"{artifact.card.name} ({artifact.source})",
        sha256=artifact.sha256,
        engine=description,
        picture=picture.source,
        field=field,
        seams=tuple(seams),
        misaligned=misaligned,
        engines=tuple(engines),
        extremes=_try_extremes(engine.infer, geometry, picture),
    )


def _rounding(description: EngineDescription) -> Limit:
    """Return how far apart an engine may compute the same twice; far less than it may be from the fp32 parent."""
    exact = TOLERANCES[description.engine, "fp32"]
    step = STEPS.get(description.precision, 0.0)
    return lambda largest: exact.limit(largest) + step * largest


# ---- seams


def axis_grid(geometry: Geometry, extent: int, tile_side: int, start: int) -> tuple[AxisTile, ...]:
    """Cover ``[0, extent)`` with tiles whose cores begin at `start`, at or below 0, and follow each other.

    For a `start` that is a multiple of the divisor these are tiles as `cover_axis` makes them; for another one they
    are what must never be made.

    >>> from unet_deploy.geometry import UnetGeometry
    >>> [tile.keep for tile in axis_grid(UnetGeometry(4), 400, 572, -4)]
    [Interval(start=0, stop=380), Interval(start=380, stop=400)]
    """
    assert start <= 0, start
    core = geometry.core_side(tile_side)
    tiles: list[AxisTile] = []
    for first in range(start, extent, core):
        if first + core <= 0:  # it would keep nothing
            continue
        keep = Interval(max(first, 0), min(first + core, extent))
        read = Interval(first - geometry.context, first - geometry.context + tile_side)
        tiles.append(AxisTile(read, keep, keep.shifted(-first)))
    return tuple(tiles)


def _compare_grids(infer: Infer, geometry: Geometry, picture: Picture, *, limit: Limit) -> list[Seam]:
    """Return two grids that must agree with one pass, and last one that need not."""
    height, width = picture.pixels.shape[1:]
    whole_y, whole_x = (geometry.whole_window(extent) for extent in (height, width))
    whole = infer(picture.normalised(picture.mirrored(whole_y, whole_x)))[0, :, :height, :width].copy()
    small = _tile_for(geometry, height, parts=3), _tile_for(geometry, width, parts=2)
    wide = _tile_for(geometry, height, parts=2), _tile_for(geometry, width, parts=3)
    off = geometry.surplus or geometry.divisor // 2  # the paper's own stride is off by the surplus
    seams = []
    for tile, start in ((small, 0), (wide, -geometry.divisor), (small, -off)):
        tiled, n_tiles = _infer_tiled(infer, geometry, picture, tile, start, np.empty_like(whole))
        with np.errstate(invalid="ignore"):
            difference = np.abs(tiled - whole).max(axis=0)  # (y, x); NaN stays
        bound = limit(float(np.abs(whole).max()))
        seams.append(
            Seam(
                tile=tile,
                start=start,
                tiles=n_tiles,
                difference=float(difference.max()),
                limit=bound,
                differing=float((~(difference <= bound)).mean()),
                relabelled=float((to_labels(tiled) != to_labels(whole)).mean()),
            )
        )
    return seams


def _tile_for(geometry: Geometry, extent: int, *, parts: int) -> int:
    """Return the side of tiles of which about `parts` cover the extent."""
    return geometry.tile_side(geometry.round_up(-(-extent // parts)))


def _infer_tiled(
    infer: Infer, geometry: Geometry, picture: Picture, tile: tuple[int, int], start: int, out: Batch
) -> tuple[Batch, int]:
    """Fill `out`, the logits (k, y, x) of the picture, tile by tile; return it and the number of tiles."""
    rows, columns = (
        axis_grid(geometry, extent, side, start) for extent, side in zip(picture.pixels.shape[1:], tile, strict=True)
    )
    for ty in rows:
        for tx in columns:
            logits = infer(picture.normalised(picture.mirrored(ty.read, tx.read)))[0]
            out[:, ty.keep.slice, tx.keep.slice] = logits[:, ty.crop.slice, tx.crop.slice]
    return out, len(rows) * len(columns)


# ---- extremes


def _try_extremes(infer: Infer, geometry: Geometry, picture: Picture) -> dict[str, bool]:
    """Return whether the logits are finite, by what was put in."""
    side, channels = geometry.smallest_tile, picture.pixels.shape[0]
    flat = np.ones((channels, side, side), np.float32)
    inputs: dict[str, npt.NDArray[np.float32]] = {
        "all black": flat * np.float32(picture.black),
        "all white": flat * np.float32(picture.white),
        "a checkerboard": picture.checkerboard(side, side),
    }
    return {name: is_finite(infer(picture.normalised(raw))[0]) for name, raw in inputs.items()}


# ---- words


def _field_problems(field: ReceptiveField) -> list[str]:
    problems: list[str] = []
    if not field.felt:
        problems.append("receptive field: no impulse is felt at all, the network's output does not depend on its input")
    if not field.beyond <= field.beyond_limit:
        problems.append(
            f"receptive field: the card declares {field.declared.before} px before and {field.declared.after} px after "
            f"a core, an impulse is felt over {field.y.before} and {field.y.after} px on axis y, {field.x.before} and "
            f"{field.x.after} px on axis x"
        )
    if not field.scrambled <= field.scrambled_limit:
        problems.append(
            f"receptive field: a core changes by {field.scrambled:.3g} when everything outside its declared context is "
            f"replaced, at most {field.scrambled_limit:.3g} is rounding"
        )
    return problems
