"""A volume to segment, opened: what it is, read from its metadata and checked before anything else is.

1. `open_volume` reads the metadata itself (`_zarr_metadata`, `ome`), checks it, and only then makes a Zarr array of
   the very document that was checked (`_opened_volume`, which reads its pixels).
2. Axes come from OME-Zarr; those of an array given by its own path from its names, else from the image that lists it,
   else from the number of dimensions where that is certain.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from unet_deploy.errors import InputDataError, NotAVolumeError, UnsupportedAxesError, UsageError
from unet_deploy.runtime._locate import axes_of_array, locate
from unet_deploy.runtime._opened_volume import Volume, reopen_volume, tiff_array, zarr_array
from unet_deploy.runtime._remote import Location
from unet_deploy.runtime._tiff import is_tiff, read_series, tiff_info
from unet_deploy.runtime._zarr_metadata import (
    INPUT_DTYPES,
    ITEM_BYTES,
    ArrayMetadata,
    Node,
    check_array,
    read_node,
)
from unet_deploy.runtime.images import choose_entry, list_images
from unet_deploy.runtime.ome import LevelTransform, MultiscaleImage
from unet_deploy.runtime.volume_info import Level, VolumeInfo, describe_info

__all__ = ["Level", "Volume", "VolumeInfo", "describe_volume", "open_volume", "reopen_volume"]


def describe_volume(volume: Volume) -> dict[str, Any]:
    """Return what `inspect` shows of a volume, as plain JSON values."""
    return describe_info(volume.info)


def open_volume(
    path: str | Path,
    *,
    image: str | None = None,
    level: int = 0,
    axes: str | None = None,
    dtypes: Collection[str] = INPUT_DTYPES,
) -> Volume:
    """Open a Zarr array or OME-Zarr image for reading.

    Parameters
    ----------
    path
        A local directory or an address (http, https, s3): an OME-Zarr group (0.1 to 0.5, and drafts of 0.6), or an
        array of Zarr v2 or v3, also inside a store. Or a local TIFF file.
    image
        Which image of a plate, well, bioformats2raw series or other group of several: its name as `list_images` gives
        it, its path inside the store, or its title; "" is the path itself.
    level
        Which array of an OME-Zarr pyramid; 0 is the finest.
    axes
        What a bare array's axes are, e.g. ``"czyx"``; by default its own names, else yx, zyx or tczyx.
    dtypes
        The data types to accept: by default those that a network is given; for labels and scores, any of bool, int8
        to int64, uint8 to uint64, float16 to float64.

    Returns
    -------
    Volume

    Raises
    ------
    VolumeNotFoundError
        If there is nothing at the path, or it is an address of another kind.
    NotAVolumeError
        If it is a file, no Zarr, a group without an image, or the level's array is absent.
    SeveralImagesError
        If the group holds several images, and none was named.
    UnknownNameError
        If there is no image of that name, or several.
    UnsupportedAxesError, UnsupportedDtypeError, UnsupportedCodecError, UnsupportedMetadataError
        If it is something the runtime cannot read.
    UnboundedMetadataError
        If a chunk or a metadata document is too large to be real.
    UsageError
        If there is no such level, or `axes` contradicts the OME-Zarr metadata.
    ReadError
        If the metadata exists and cannot be read.
    """
    if is_tiff(Path(path)):
        return _open_tiff(Path(path).absolute(), image=image, level=level, axes=axes, dtypes=dtypes)
    located = locate(path, image)
    if isinstance(located.found, Node):
        return _open_array(located.root, located.found, level=level, axes=axes, dtypes=dtypes)
    return _open_image(located.root, located.found, level=level, axes=axes, dtypes=dtypes)


def _open_tiff(file: Path, *, image: str | None, level: int, axes: str | None, dtypes: Collection[str]) -> Volume:
    entries = list_images(file)
    index = entries.index(choose_entry(str(file), entries, image))
    series = read_series(file, index, level=level, axes=axes, dtypes=dtypes)
    info = tiff_info(file, series, index=index, level=level)
    return Volume(info, tiff_array(series), file)


def _open_array(root: Location, node: Node, *, level: int, axes: str | None, dtypes: Collection[str]) -> Volume:
    if level != 0:
        raise UsageError(
            f"level {level} came, but {root} is an array, which has only level 0",
            fix="give the path of the image's group",
        )
    metadata = check_array(node, dtypes=dtypes)
    names = axes_of_array(root, metadata, axes=axes)
    transform = LevelTransform(path="", scale=None, translation=None)
    return _make(root, metadata, axes=names, levels=(_level(transform, metadata),), level=0, image=None)


def _open_image(
    root: Location, image: MultiscaleImage, *, level: int, axes: str | None, dtypes: Collection[str]
) -> Volume:
    if axes is not None and axes != image.axes:
        raise UsageError(
            f"--axes {axes} came, but the OME-Zarr metadata says {image.axes}",
            f"in {root}",
            fix=f"leave --axes out, or give the path of the array: {root / image.levels[0].path}",
        )
    if not 0 <= level < len(image.levels):
        raise UsageError(
            f"level {level} came, levels 0 to {len(image.levels) - 1} were expected",
            f"{root} holds {', '.join(transform.path for transform in image.levels)}",
            fix=f"--level {len(image.levels) - 1 if level > 0 else 0}",
        )
    chosen = image.levels[level]
    node = read_node(root / chosen.path)
    if node is None or node.kind != "array":
        raise NotAVolumeError(
            f"level {level} of the image has no array at {chosen.path!r}",
            f"in {root}",
            fix="copy the volume again, whole, or choose another level with --level",
        )
    metadata = check_array(node, dtypes=dtypes)
    if len(image.axes) != len(metadata.shape):
        raise UnsupportedAxesError(
            f"the array has {len(metadata.shape)} axes, the image's metadata says {image.axes}",
            f"{root / chosen.path} has the shape {list(metadata.shape)}",
            fix="give the path of the array itself, with --axes; its pixel size is then unknown",
        )
    levels = tuple(
        _level(transform, metadata if transform is chosen else _metadata_or_none(root / transform.path))
        for transform in image.levels
    )
    return _make(root, metadata, axes=image.axes, levels=levels, level=level, image=image)


def _metadata_or_none(directory: Location) -> ArrayMetadata | None:
    try:
        node = read_node(directory)
        return check_array(node, dtypes=ITEM_BYTES) if node is not None and node.kind == "array" else None
    except InputDataError:
        return None  # an unused level may be broken; choosing it says how


def _level(transform: LevelTransform, metadata: ArrayMetadata | None) -> Level:
    return Level(
        path=transform.path,
        shape=metadata.shape if metadata else None,
        chunks=metadata.chunks if metadata else None,
        shards=metadata.shards if metadata else None,
        scale=transform.scale,
        translation=transform.translation,
    )


def _make(
    root: Location,
    metadata: ArrayMetadata,
    *,
    axes: str,
    levels: tuple[Level, ...],
    level: int,
    image: MultiscaleImage | None,
) -> Volume:
    array = zarr_array(metadata)
    channels = metadata.shape[axes.index("c")] if "c" in axes else 1
    names = image.channel_names if image is not None else None
    info = VolumeInfo(
        path=str(root),
        array_path=levels[level].path,
        zarr_format=metadata.zarr_format,
        ome_version=image.version if image is not None else None,
        name=(image.name if image is not None else None) or re.sub(r"(\.ome)?\.zarr$", "", root.name) or "volume",
        axes=axes,
        shape=metadata.shape,
        dtype=metadata.dtype,
        chunks=metadata.chunks,
        shards=metadata.shards,
        scale=levels[level].scale,
        translation=levels[level].translation,
        units=image.units if image is not None else None,
        fill_value=0 if array.fill_value is None else np.asarray(array.fill_value).item(),
        codecs=metadata.codecs,
        channel_names=names if names is not None and len(names) == channels else None,
        levels=levels,
        level=level,
    )
    return Volume(info, array, metadata.file)
