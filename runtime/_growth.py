"""A volume that gets longer while it is followed: as far as it is there, and an output that gets longer with it.

1. It grows along its first axis, t or z: the numbers of blocks stay what they are, and new ones come after them.
2. Until the end it is taken as long as it has whole chunks and whole blocks, so that no block is run before all of its
   planes are there: a run at `whole_length` is the beginning of any longer one.
3. Of the output, documents are replaced by those of a longer store, each at once; its chunks stay what they are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unet_deploy.errors import InputDataError, JournalError, UsageError
from unet_deploy.runtime._shape_watch import ShapeWatch
from unet_deploy.runtime.journal import FOLDER, remove
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.output import create_array, create_status
from unet_deploy.runtime.plan import SegmentationPlan
from unet_deploy.runtime.preparation import Preparation
from unet_deploy.runtime.volume import Volume, reopen_volume
from unet_deploy.runtime.volume_info import VolumeInfo

_REOPENINGS, _PAUSE_S = 10, 0.1


def growth_axis(info: VolumeInfo) -> str:
    """Return the axis along which a volume may grow.

    Raises
    ------
    UsageError
        If it has neither t nor z.
    """
    axes = info.axes.replace("c", "")
    if axes[0] in "tz":
        return axes[0]
    raise UsageError(
        f"a volume of the axes {info.axes} cannot be followed while it grows",
        "it grows along t, or along z where it has no t",
        fix="leave --grows out, and follow it at the shape that it has",
    )


def whole_length(info: VolumeInfo, plan: SegmentationPlan, length: int) -> int:
    """Return how much of a length, along the axis that grows, is whole files and whole blocks."""
    axis = growth_axis(info)
    depth = (info.shards or info.chunks)[info.axes.index(axis)]
    step = plan.block_shape[0] if axis == "z" else 1
    return length // depth * depth // step * step


def length_now(ready: Preparation) -> int:
    """Return the length of a volume that grows, as its document says now.

    Raises
    ------
    ReadError
        If its shape is another in other ways too.
    """
    info = ready.volume.info
    return ShapeWatch(info, settle_s=0).length(0, info.axes.index(growth_axis(info)))


def reopen_patiently(info: VolumeInfo) -> Volume:
    """Open a volume again, as it was described, whose document may be being written just now.

    Raises
    ------
    InputDataError
        If it is no longer what it was.
    """
    for _ in range(_REOPENINGS):
        try:
            return reopen_volume(info)
        except InputDataError:
            time.sleep(_PAUSE_S)
    if not info.grows:  # one that got longer is told how to follow such a volume
        ShapeWatch(info, settle_s=0).length(0, None)
    return reopen_volume(info)


def at_length(ready: Preparation, length: int) -> Preparation:
    """Return the preparation of a volume as far as it is there by now.

    Raises
    ------
    ReadError
        If the volume is shorter, or no longer what it was.
    """
    info, plan = ready.volume.info, ready.plan
    axis = growth_axis(info)
    shape = tuple(length if name == axis else n for name, n in zip(info.axes, info.shape, strict=True))
    extents = replace(plan.extents, **{axis: length})
    volume = reopen_patiently(replace(info, shape=shape, grows=axis))
    return replace(ready, volume=volume, plan=replace(plan, extents=extents))


def begin_at(ready: Preparation, fingerprint: Mapping[str, Any] | None) -> Preparation:
    """Return the preparation that a run on a growing volume begins with, or goes on with.

    Parameters
    ----------
    ready
        What was prepared of the volume as it is now.
    fingerprint
        That of the run that goes on, None where a new one begins.

    Raises
    ------
    JournalError
        If blocks were run at the end of a volume that has grown since.
    """
    info, plan = ready.volume.info, ready.plan
    axis = info.axes.index(growth_axis(info))
    now, begun = info.shape[axis], None
    if fingerprint is not None:
        shape = fingerprint.get("volume", {}).get("shape", [])
        begun = shape[axis] if len(shape) == len(info.shape) and type(shape[axis]) is int else None
    if begun is None or begun > now:  # whose journal says what differs
        return at_length(ready, whole_length(info, plan, now) or now)
    if begun < now and growth_axis(info) == "z" and begun % plan.block_shape[0]:
        raise JournalError(
            f"the volume has {now} planes now; it had {begun} when its last blocks were run, "
            f"which go over {plan.block_shape[0]} planes",
            f"{info.path} had been silent for so long that it was taken to be finished",
            fix="start anew with --overwrite",
        )
    return at_length(ready, begun)


def extend_output(spec: OutputSpec) -> None:
    """Let an output, which was made for a shorter volume, be that of `spec`."""
    output = Path(spec.path)
    scratch = output / FOLDER / "longer"
    if scratch.exists():
        remove(scratch)
    document = "zarr.json" if spec.zarr_format == 3 else ".zarray"
    names = [spec.array_path(kind, level) for kind in spec.kinds for level in range(spec.n_levels)]
    for kind in spec.kinds:
        for level in range(spec.n_levels):
            create_array(spec, str(scratch), spec.array_path(kind, level), kind=kind, level=level, dtype="uint8")
    create_status(replace(spec, path=str(scratch)))
    for name in (*names, FOLDER):
        (scratch / name / document).replace(output / name / document)
    remove(scratch)
