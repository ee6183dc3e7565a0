"""What is known about a volume without decoding a chunk; plain values, which travel to the workers of a cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Container = Literal["zarr", "tiff"]


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

    In a TIFF file, `path` is the file, `series` one of its images, `stored_axes` the axes in the file's order; its
    `zarr_format` is that of the view it is read through.

    `grows` is the axis along which a volume that is still being written may be longer than `shape` says by now.
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
    container: Container = "zarr"
    series: int = 0
    stored_axes: str = ""
    grows: str = ""


def describe_info(info: VolumeInfo) -> dict[str, Any]:
    """Return what is known of a volume, as plain JSON values."""
    units = info.units or (None,) * len(info.axes)
    return {
        "kind": "volume",
        "container": info.container,
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
