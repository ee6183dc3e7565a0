"""Every kind of Zarr store the runtime reads, written by zarr-python."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numcodecs
import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

from unet_deploy.runtime.ome import LevelTransform, OmeVersion, multiscales_attributes

DTYPES = ("uint8", "uint16", "int16", "float16", "float32")
AXES = ("yx", "zyx", "cyx", "tyx", "czyx", "tzyx", "tcyx", "tczyx")
EXTENTS = {"t": 2, "c": 3, "z": 5, "y": 21, "x": 19}
CHUNKS = {"t": 1, "c": 2, "z": 2, "y": 8, "x": 7}  # ragged at every far edge


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreKind:
    """How an array is stored; `codec` is a compressor's name, None for raw chunks."""

    name: str
    zarr_format: Literal[2, 3]
    codec: str | None = "zstd"
    order: Literal["C", "F"] = "C"
    endian: Literal["little", "big"] = "little"
    separator: Literal[".", "/"] = "/"
    shard_chunks: int = 0
    index_location: Literal["start", "end"] = "end"


KINDS = (
    *(StoreKind(name=f"v2-{codec}", zarr_format=2, codec=codec) for codec in ("blosc", "gzip", "lz4", "zlib", "zstd")),
    StoreKind(name="v2-raw", zarr_format=2, codec=None),
    StoreKind(name="v2-dots", zarr_format=2, separator="."),
    StoreKind(name="v2-fortran", zarr_format=2, order="F"),
    StoreKind(name="v2-big-endian", zarr_format=2, endian="big"),
    *(StoreKind(name=f"v3-{codec}", zarr_format=3, codec=codec) for codec in ("blosc", "crc32c", "gzip", "zstd")),
    StoreKind(name="v3-raw", zarr_format=3, codec=None),
    StoreKind(name="v3-dots", zarr_format=3, separator="."),
    StoreKind(name="v3-transposed", zarr_format=3, order="F"),
    StoreKind(name="v3-big-endian", zarr_format=3, endian="big"),
    StoreKind(name="v3-sharded", zarr_format=3, shard_chunks=2),
    StoreKind(name="v3-sharded-index-first", zarr_format=3, shard_chunks=2, index_location="start"),
    StoreKind(name="v3-sharded-transposed-big", zarr_format=3, shard_chunks=2, order="F", endian="big", codec="blosc"),
)


def make_pixels(axes: str, dtype: str, *, seed: int = 0) -> npt.NDArray[Any]:
    """Return random pixels over the dtype's range (integers) or around zero (floats), with `EXTENTS` by axis."""
    generator = np.random.default_rng(seed)
    shape = tuple(EXTENTS[axis] for axis in axes)
    if np.dtype(dtype).kind == "f":
        return generator.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return generator.integers(limits.min, limits.max, size=shape, dtype=dtype, endpoint=True)


def write_array(
    directory: Path,
    pixels: npt.NDArray[Any],
    *,
    axes: str,
    kind: StoreKind,
    fill_value: float = 0,
    names: tuple[str, ...] | None = None,
    chunks: tuple[int, ...] | None = None,
) -> Path:
    """Write a bare array; chunks that hold nothing but `fill_value` are left out."""
    chunks = chunks or tuple(min(CHUNKS[axis], size) for axis, size in zip(axes, pixels.shape, strict=True))
    dtype = pixels.dtype.newbyteorder(">" if kind.endian == "big" else "<")
    if kind.zarr_format == 2:
        compressors = {
            "blosc": numcodecs.Blosc("lz4"),
            "gzip": numcodecs.GZip(),
            "lz4": numcodecs.LZ4(),
            "zlib": numcodecs.Zlib(),
            "zstd": numcodecs.Zstd(),
        }
        array = zarr.create_array(
            directory,
            shape=pixels.shape,
            chunks=chunks,
            dtype=dtype,
            zarr_format=2,
            order=kind.order,
            compressors=compressors[kind.codec] if kind.codec is not None else None,
            fill_value=fill_value,
            chunk_key_encoding={"name": "v2", "separator": kind.separator},
            attributes={"_ARRAY_DIMENSIONS": list(names)} if names else None,
        )
    else:
        array = _create_v3(directory, pixels, chunks=chunks, kind=kind, fill_value=fill_value, names=names)
    array[...] = pixels
    return directory


def _create_v3(
    directory: Path,
    pixels: npt.NDArray[Any],
    *,
    chunks: tuple[int, ...],
    kind: StoreKind,
    fill_value: float,
    names: tuple[str, ...] | None,
) -> zarr.Array[Any]:
    compressors = {
        "blosc": BloscCodec(typesize=pixels.dtype.itemsize),
        "crc32c": Crc32cCodec(),
        "gzip": GzipCodec(),
        "zstd": ZstdCodec(),
    }
    codecs: list[Any] = [TransposeCodec(order=range(pixels.ndim)[::-1])] if kind.order == "F" else []
    codecs.append(BytesCodec(endian=kind.endian))
    codecs += [compressors[kind.codec]] if kind.codec is not None else []
    outer = chunks
    if kind.shard_chunks:
        outer = tuple(size * kind.shard_chunks for size in chunks)
        codecs = [ShardingCodec(chunk_shape=chunks, codecs=codecs, index_location=kind.index_location)]
    return zarr.create(
        store=str(directory),
        shape=pixels.shape,
        chunks=outer,
        dtype=pixels.dtype,
        zarr_format=3,
        codecs=codecs,
        fill_value=fill_value,
        chunk_key_encoding={"name": "default", "separator": kind.separator},
        dimension_names=names,
        config={"write_empty_chunks": False},
    )


def write_image(
    directory: Path,
    pixels: npt.NDArray[Any],
    *,
    axes: str,
    version: OmeVersion,
    scale: tuple[float, ...] | None = None,
    levels: int = 2,
    channel_names: tuple[str, ...] = (),
    sharded: bool = False,
) -> Path:
    """Write an OME-Zarr image in its usual Zarr version; each level takes every second pixel of y and x."""
    kind = next(kind for kind in KINDS if kind.name == ("v2-zstd" if version == "0.4" else "v3-zstd"))
    if sharded:
        kind = next(kind for kind in KINDS if kind.name == "v3-sharded")
    transforms = []
    for level in range(levels):
        factors = [2**level if axis in "yx" else 1 for axis in axes]
        names = tuple(axes) if kind.zarr_format == 3 else None
        write_array(directory / str(level), pixels, axes=axes, kind=kind, names=names)
        pixels = pixels[..., ::2, ::2]
        level_scale = tuple(s * f for s, f in zip(scale or (1.0,) * len(axes), factors, strict=True))
        transforms.append(LevelTransform(path=str(level), scale=level_scale, translation=None))
    units = tuple("nanometer" if axis in "zyx" else None for axis in axes)
    attributes = multiscales_attributes(
        version=version, name="test", axes=axes, units=units, levels=transforms, type_="mean"
    )
    if channel_names:
        holder = attributes if version == "0.4" else attributes["ome"]
        holder["omero"] = {"channels": [{"label": name} for name in channel_names]}
    return write_group(directory, attributes, zarr_format=kind.zarr_format)


def write_group(directory: Path, attributes: dict[str, Any], *, zarr_format: int) -> Path:
    """Write a group's documents by hand, so that they can also be wrong."""
    directory.mkdir(parents=True, exist_ok=True)
    if zarr_format == 2:
        (directory / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
        (directory / ".zattrs").write_text(json.dumps(attributes))
    else:
        document = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
        (directory / "zarr.json").write_text(json.dumps(document))
    return directory


def edit_document(file: Path, **changes: Any) -> None:
    """Change keys of a JSON document; a value of ... removes the key."""
    document = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in document.items() if value is not ...}))


def chunk_files(directory: Path) -> list[Path]:
    """Return an array's chunk (or shard) files."""
    names = {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}
    return sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in names)
