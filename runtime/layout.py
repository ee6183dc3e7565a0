"""What an output is: its kinds of result, their arrays, pyramid and OME metadata. Pure.

1. A store of its own is an image (probabilities, one channel a class) with ``labels/segmentation`` inside, and
   ``labels/instances`` where objects are numbered.
2. A *label group* lies in the volume's own ``labels``: it has the labels alone, and their objects beside it.
3. A level halves y and x of the one above; odd sides are rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from unet_deploy.card import ClassInfo
from unet_deploy.errors import ConfigurationError
from unet_deploy.runtime.ome import LevelTransform, multiscales_attributes
from unet_deploy.runtime.plan import Extents, WriteGrid

Kind = Literal["labels", "probabilities"]
KINDS: tuple[Kind, ...] = get_args(Kind)
INSTANCES = "instances"
"""What a user asks for beside the kinds: it is made of finished labels, not of what the network says."""
LABELS_NAME = "segmentation"
INSTANCES_NAME = "instances"
PROVENANCE_KEY = "unet_deploy"
SMALLEST_LEVEL = 512
REGION_SIDE = 1024


def require_kinds(kinds: Sequence[str]) -> tuple[Kind, ...]:
    """Return the kinds of result in our order.

    Raises
    ------
    ConfigurationError
        If one is unknown, or there is none.
    """
    _require_known(kinds, KINDS, "labels are the class of each pixel, probabilities its soft-max in 8 bit")
    return tuple(kind for kind in KINDS if kind in kinds)


def split_kinds(write: Sequence[str] | None, *, is_label_group: bool = False) -> tuple[tuple[Kind, ...], bool]:
    """Return the kinds of result in our order, and whether objects are to be numbered.

    None is labels and probabilities, or, in a label group, labels alone.

    Raises
    ------
    ConfigurationError
        If one is unknown, there is none, or objects are wanted of labels that are not.

    Examples
    --------
    >>> split_kinds(["instances", "labels"])
    (('labels',), True)
    """
    if write is None:
        return (("labels",) if is_label_group else KINDS), False
    meaning = "labels are the class of each pixel, probabilities its soft-max in 8 bit, instances the objects' numbers"
    _require_known(write, (*KINDS, INSTANCES), meaning)
    wants_instances = INSTANCES in write
    if wants_instances and "labels" not in write:
        raise ConfigurationError(
            "results to write: instances came without labels",
            "objects are what touches in the finished labels, so these are written too",
            fix=" ".join(f"--write {kind}" for kind in ("labels", *sorted(set(write), reverse=True))),
        )
    return tuple(kind for kind in KINDS if kind in write), wants_instances


def _require_known(came: Sequence[str], known: Sequence[str], meaning: str) -> None:
    unknown = sorted(set(came) - set(known))
    if unknown or not came:
        *others, last = known
        raise ConfigurationError(
            f"results to write: {', '.join(unknown) or 'none'} came, {', '.join(others)} or {last} was expected",
            meaning,
            fix="--write labels --write probabilities",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputSpec:
    """Everything that decides the output store, except its values."""

    path: str
    zarr_format: Literal[2, 3]
    ome_version: Literal["0.4", "0.5"]
    kinds: tuple[Kind, ...]
    name: str
    axes: str
    """The volume's axes without c."""
    extents: Extents
    grid: WriteGrid
    block: tuple[int, int, int]
    """(z, y, x) of what one task writes: whole units of `grid`."""
    classes: tuple[ClassInfo, ...]
    scale: tuple[float, ...]
    translation: tuple[float, ...]
    units: tuple[str | None, ...]
    """By axis of `axes`."""
    is_label_group: bool = False
    """Whether `path` is a group in the volume's own ``labels``, made of labels alone; else a store of its own."""
    volume_levels: int | None = None
    """Levels of the volume that a label group lies in: labels must have as many (OME-Zarr 0.4, section 3.6)."""

    @property
    def labels_path(self) -> str:
        """Where the group of the labels stands in the store; "" is the store itself."""
        return "" if self.is_label_group else f"labels/{LABELS_NAME}"

    @property
    def labels_name(self) -> str:
        """What the image of labels is called."""
        return Path(self.path).name if self.is_label_group else LABELS_NAME

    @property
    def instances_path(self) -> str:
        """The folder of the group of object ids: in a store of its own, or beside the label group."""
        path = Path(self.path)
        return str(
            path.with_name(f"{path.name}_{INSTANCES_NAME}") if self.is_label_group else path / "labels" / INSTANCES_NAME
        )

    @property
    def labels_folder(self) -> str:
        """The folder of the group that lists the labels."""
        return str(Path(self.path).parent if self.is_label_group else Path(self.path) / "labels")

    @property
    def n_levels(self) -> int:
        """Levels of the pyramid; the smallest is at most SMALLEST_LEVEL pixels a side, unless the volume says."""
        if self.volume_levels is not None:
            return self.volume_levels
        longest = max(self.extents.y, self.extents.x)
        return 1 + max(math.ceil(math.log2(longest / SMALLEST_LEVEL)), 0)

    @property
    def n_block_levels(self) -> int:
        """How many levels below the finest a block's task can make by itself: it holds whole units of them."""
        return self.levels_within(0, self.block)

    @property
    def region(self) -> tuple[int, int, int]:
        """(z, y, x) of the pieces in which the levels are made that blocks cannot make; whole write units."""
        z, y, x = self.grid.unit
        return z, max(REGION_SIDE // y, 1) * y, max(REGION_SIDE // x, 1) * x

    @property
    def passes(self) -> tuple[int, ...]:
        """The levels that are made by a pass of their own after the blocks; each pass makes those below it too."""
        found, level = [], 1 + self.n_block_levels
        while level < self.n_levels:
            found.append(level)
            level += 1 + self.levels_within(level, self.region)
        return tuple(found)

    def levels_within(self, level: int, box: tuple[int, int, int]) -> int:
        """Return how many levels below `level` boxes of (z, y, x) pixels of it can make, each by itself.

        A box can if it holds whole write units of that level, or the whole extent.
        """
        extents = self.level_extents(level)
        sides = ((extents.y, box[1], self.grid.unit[1]), (extents.x, box[2], self.grid.unit[2]))
        for deeper in range(1, self.n_levels - level):
            if not all(side >= extent or side % (unit << deeper) == 0 for extent, side, unit in sides):
                return deeper - 1
        return self.n_levels - 1 - level

    def level_extents(self, level: int) -> Extents:
        """Return the extents of a pyramid level; odd sides are rounded up."""
        e = self.extents
        return Extents(t=e.t, z=e.z, y=-(-e.y // 2**level), x=-(-e.x // 2**level))

    def array_path(self, kind: Kind, level: int) -> str:
        """Return where a level's array stands in the store."""
        return str(level) if kind == "probabilities" or self.is_label_group else f"{self.labels_path}/{level}"

    def axes_of(self, kind: Kind) -> str:
        """Return the axes of a kind's arrays: probabilities have c."""
        return self.axes if kind == "labels" else "".join(a for a in "tczyx" if a in self.axes + "c")

    @property
    def raw_bytes(self) -> int:
        """Uncompressed size of everything, pyramid included."""
        per_pixel = sum(1 if kind == "labels" else len(self.classes) for kind in self.kinds)
        return self._pyramid_pixels * per_pixel

    @property
    def instance_bytes(self) -> int:
        """Uncompressed size of the objects' ids, pyramid included."""
        return self._pyramid_pixels * 4

    @property
    def _pyramid_pixels(self) -> int:
        return sum(self.level_extents(level).pixels for level in range(self.n_levels))

    def to_layout(self, kind: Kind, values: Mapping[str, Any]) -> tuple[Any, ...]:
        """Order values given by axis name as a kind's array has its axes."""
        return tuple(values[axis] for axis in self.axes_of(kind))


def multiscales_of(spec: OutputSpec, kind: Kind, *, prefix: str) -> dict[str, Any]:
    """Return the OME attributes of a kind's pyramid; `prefix` is what stands before the levels' paths."""
    axes = spec.axes_of(kind)
    base = dict(zip(spec.axes, spec.scale, strict=True))
    origin = dict(zip(spec.axes, spec.translation, strict=True))
    unit = dict(zip(spec.axes, spec.units, strict=True))
    levels = []
    for level in range(spec.n_levels):
        factor = {axis: 2**level if axis in "yx" else 1 for axis in axes}
        scale = tuple(base.get(a, 1.0) * factor[a] for a in axes)
        # The centre of a cell of 2**level pixels lies half a cell, less half a pixel, further in.
        shift = tuple(origin.get(a, 0.0) + base.get(a, 1.0) * (factor[a] - 1) / 2 for a in axes)
        levels.append(LevelTransform(path=f"{prefix}{level}", scale=scale, translation=shift))
    return multiscales_attributes(
        version=spec.ome_version,
        name=spec.name if kind == "probabilities" else spec.labels_name,
        axes=axes,
        units=tuple(unit.get(a) for a in axes),
        levels=levels,
        type_="mean" if kind == "probabilities" else "mode",
    )


def omero_of(classes: Sequence[ClassInfo]) -> dict[str, Any]:
    """Return viewer settings that name the channels by class; class 0 starts hidden."""
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    return {
        "channels": [
            {
                "label": c.name,
                "color": (c.colour[1:] if c.colour != "#000000" else "808080").upper(),
                "window": window,
                "active": index > 0,
            }
            for index, c in enumerate(classes)
        ]
    }
