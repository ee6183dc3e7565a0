"""A volume to segment: what it is, and its pixels by window.

1. `open_volume` reads the metadata itself (`_zarr_metadata`, `ome`), checks it, and only then makes a Zarr array of
   the very document that was checked, with a guard before each decoder (`_chunk_guard`).
2. Axes come from OME-Zarr; those of an array given by its own path from its names, else from the image that lists it,
   else from the number of dimensions where that is certain.
3. `Volume.read` returns (t, c, z, y, x) in native byte order, missing axes of size 1. A chunk that is absent reads as
   the fill value, as Zarr defines; a chunk that cannot be decoded is a `ReadError`, never a hole.
4. A volume pickles as its `VolumeInfo` and reopens where it arrives, so it travels to the workers of a cluster.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import StorePath

from unet_deploy.errors import (
    InputDataError,
    NotAVolumeError,
    ReadError,
    UnsupportedAxesError,
    UnsupportedMetadataError,
    UsageError,
)
from unet_deploy.geometry import Interval
from unet_deploy.runtime._chunk_guard import ChunkStore, guarded_document
from unet_deploy.runtime._locate import axes_of_array, locate
from unet_deploy.runtime._zarr_metadata import (
    INPUT_DTYPES,
    ITEM_BYTES,
    ArrayMetadata,
    Node,
    check_array,
    read_node,
)
from unet_deploy.runtime.ome import AXES, LevelTransform, MultiscaleImage


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One array of the pyramid; shape and chunks are None where the array is absent or cannot be read."""

    path: str
    shape: tuple[int, ...] | None
    chunks: tuple[int, ...] | None
    shards: tuple[int, ...] | None
    scale: tuple[float, ...] | None
    translation: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeInfo:
    """What is known about a volume without decoding a chunk.

    `path` is absolute and names the image's group or the bare array; `array_path` is the chosen level inside it, ""
    for a bare array. Tuples have one entry an axis of `axes`. `chunks` is the unit of decoding (in a sharded array
    the inner chunk). `scale`, `translation`, `units` and `ome_version` are None for a bare array.
    """

    path: str
    array_path: str
    zarr_format: int
    ome_version: str | None
    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...] | None
    scale: tuple[float, ...] | None
    translation: tuple[float, ...] | None
    units: tuple[str | None, ...] | None
    fill_value: int | float
    codecs: tuple[str, ...]
    channel_names: tuple[str, ...] | None
    levels: tuple[Level, ...]
    level: int


class Volume:
    """An open volume; made by `open_volume`. Safe to read from several threads."""

    __slots__ = ("_array", "_file", "info")

    def __init__(self, info: VolumeInfo, array: zarr.Array[Any], file: Path) -> None:
        self.info = info
        self._array = array
        self._file = file

    def __repr__(self) -> str:
        return (
            f"Volume({self.info.path!r}, axes={self.info.axes!r}, shape={self.info.shape}, dtype={self.info.dtype!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.info,)

    def extent(self, axis: str) -> int:
        """Return the number of pixels along an axis, 1 for an axis the volume does not have."""
        assert axis in tuple(AXES), axis
        return self.info.shape[self.info.axes.index(axis)] if axis in self.info.axes else 1

    def read(
        self,
        *,
        z: Interval,
        y: Interval,
        x: Interval,
        t: Interval | None = None,
        c: Sequence[int] | None = None,
    ) -> npt.NDArray[Any]:
        """Return the pixels of a window that lies inside the volume.

        Parameters
        ----------
        z, y, x
            Where to read; Interval(0, 1) along an axis the volume does not have.
        t
            Time points, all by default.
        c
            Channels in the order wanted, all by default.

        Returns
        -------
        numpy.ndarray
            Axes (t, c, z, y, x), `info.dtype` in native byte order, C-contiguous and the caller's own.

        Raises
        ------
        ReadError
            If a chunk cannot be read or decoded, or the volume is no longer there.
        """
        channels = [*range(self.extent("c"))] if c is None else [*c]
        window = {"t": t or Interval(0, self.extent("t")), "z": z, "y": y, "x": x}
        for axis, interval in window.items():
            assert 0 <= interval.start < interval.stop <= self.extent(axis), (axis, interval, self.info.shape)
        assert channels, "no channel asked for"
        assert all(0 <= channel < self.extent("c") for channel in channels), channels
        selection = tuple(window[axis].slice if axis != "c" else _as_index(channels) for axis in self.info.axes)
        try:
            data = np.asarray(self._array.oindex[selection])
        except MemoryError:
            raise  # not the volume's fault; whoever plans memory must see it
        except Exception as error:  # zarr, its codecs and the file system raise anything
            raise self._unreadable(window, channels, f"{type(error).__name__}: {error}") from error
        if not self._file.is_file():  # every chunk of a vanished volume would read as the fill value
            raise self._unreadable(window, channels, f"{self._file} is no longer there")
        sizes = [len(channels) if axis == "c" else window[axis].size for axis in AXES]
        return np.ascontiguousarray(data, dtype=self.info.dtype).reshape(sizes)

    def _unreadable(self, window: dict[str, Interval], channels: list[int], cause: str) -> ReadError:
        parts = [f"{axis} {window[axis].start}:{window[axis].stop}" for axis in self.info.axes if axis != "c"]
        if "c" in self.info.axes:
            parts.insert(self.info.axes.index("c"), f"c {','.join(map(str, channels))}")
        return ReadError(
            f"the window {', '.join(parts)} cannot be read",
            f"in {self._file.parent}",
            cause,
            fix="check the disk, and copy the volume again from its source if a chunk is damaged",
        )


def _as_index(channels: list[int]) -> slice | npt.NDArray[np.int64]:
    run = range(channels[0], channels[0] + len(channels))
    return slice(run.start, run.stop) if channels == [*run] else np.asarray(channels, dtype=np.int64)


def open_volume(
    path: str | Path, *, level: int = 0, axes: str | None = None, dtypes: Collection[str] = INPUT_DTYPES
) -> Volume:
    """Open a Zarr array or OME-Zarr image for reading.

    Parameters
    ----------
    path
        A local directory: an OME-Zarr group (0.1 to 0.5), or an array of Zarr v2 or v3, also inside a store.
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
        If there is nothing at the path, or it is a URL.
    NotAVolumeError
        If it is a file, no Zarr, a group without an image, or the level's array is absent.
    SeveralImagesError
        If the group holds several images.
    UnsupportedAxesError, UnsupportedDtypeError, UnsupportedCodecError, UnsupportedMetadataError
        If it is something the runtime cannot read.
    UnboundedMetadataError
        If a chunk or a metadata document is too large to be real.
    UsageError
        If there is no such level, or `axes` contradicts the OME-Zarr metadata.
    ReadError
        If the metadata exists and cannot be read.
    """
    located = locate(path)
    if isinstance(located.found, Node):
        return _open_array(located.root, located.found, level=level, axes=axes, dtypes=dtypes)
    return _open_image(located.root, located.found, level=level, axes=axes, dtypes=dtypes)


def _open_array(root: Path, node: Node, *, level: int, axes: str | None, dtypes: Collection[str]) -> Volume:
    if level != 0:
        raise UsageError(
            f"level {level} came, but {root} is an array, which has only level 0",
            fix="give the path of the image's group",
        )
    metadata = check_array(node, dtypes=dtypes)
    names = axes_of_array(root, metadata, axes=axes)
    transform = LevelTransform(path="", scale=None, translation=None)
    return _make(root, metadata, axes=names, levels=(_level(transform, metadata),), level=0, image=None)


def _open_image(root: Path, image: MultiscaleImage, *, level: int, axes: str | None, dtypes: Collection[str]) -> Volume:
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


def _metadata_or_none(directory: Path) -> ArrayMetadata | None:
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
    root: Path,
    metadata: ArrayMetadata,
    *,
    axes: str,
    levels: tuple[Level, ...],
    level: int,
    image: MultiscaleImage | None,
) -> Volume:
    array = _zarr_array(metadata)
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


def _zarr_array(metadata: ArrayMetadata) -> zarr.Array[Any]:
    store = StorePath(ChunkStore(metadata.file.parent, read_only=True))
    try:
        return zarr.Array.from_dict(store, guarded_document(metadata))
    except Exception as error:  # what zarr itself refuses, it refuses with many types
        raise UnsupportedMetadataError(
            f"zarr cannot open the array: {error}",
            f"in {metadata.file}",
            fix="write the array again with a current Zarr library",
        ) from error


def _reopen(info: VolumeInfo) -> Volume:
    directory = Path(info.path) / info.array_path
    node = read_node(directory)
    metadata = check_array(node, dtypes=ITEM_BYTES) if node is not None and node.kind == "array" else None
    found = None if metadata is None else (metadata.shape, metadata.dtype, metadata.chunks, metadata.shards)
    if metadata is None or found != (info.shape, info.dtype, info.chunks, info.shards):
        raise ReadError(
            f"the volume is not what it was when it was opened: {found or 'nothing'} is there now",
            f"in {directory}",
            fix="let every worker see the same files at the same path, and do not change a volume in use",
        )
    return Volume(info, _zarr_array(metadata), metadata.file)


def describe_volume(volume: Volume) -> dict[str, Any]:
    """Return what `inspect` shows of a volume, as plain JSON values."""
    info = volume.info
    units = info.units or (None,) * len(info.axes)
    return {
        "kind": "volume",
        "path": info.path,
        "array_path": info.array_path,
        "zarr_format": info.zarr_format,
        "ome_version": info.ome_version,
        "name": info.name,
        "axes": info.axes,
        "shape": list(info.shape),
        "dtype": info.dtype,
        "chunks": list(info.chunks),
        "shards": list(info.shards) if info.shards else None,
        "codecs": list(info.codecs),
        "fill_value": info.fill_value if math.isfinite(info.fill_value) else str(info.fill_value),
        "channel_names": list(info.channel_names) if info.channel_names else None,
        "scale": None
        if info.scale is None
        else {axis: {"value": s, "unit": u} for axis, s, u in zip(info.axes, info.scale, units, strict=True)},
        "bytes": math.prod(info.shape) * np.dtype(info.dtype).itemsize,
        "level": info.level,
        "levels": [
            {
                "path": level.path,
                "shape": list(level.shape) if level.shape else None,
                "chunks": list(level.chunks) if level.chunks else None,
                "shards": list(level.shards) if level.shards else None,
                "scale": list(level.scale) if level.scale else None,
                "translation": list(level.translation) if level.translation else None,
            }
            for level in info.levels
        ],
    }
