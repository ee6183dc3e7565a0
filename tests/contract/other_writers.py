"""Volumes (z, y, x) written by programs other than zarr-python; each writer skips where it is not installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pytest

Pixels = npt.NDArray[Any]
Chunk = tuple[int, int, int]
CHUNK: Chunk = (2, 8, 7)
SCALE = (50.0, 4.0, 4.0)
UNITS = ("nanometer",) * 3


def _tensorstore(path: Path, pixels: Pixels, spec: dict[str, Any]) -> Path:
    ts = pytest.importorskip("tensorstore", reason="writes a store to read; pip install tensorstore")
    spec = {**spec, "kvstore": {"driver": "file", "path": str(path)}}
    ts.open(spec, create=True, dtype=pixels.dtype, shape=pixels.shape).result().write(pixels).result()
    return path


def tensorstore_v2(path: Path, pixels: Pixels, *, chunk: Chunk = CHUNK) -> Path:
    """Write a bare Zarr v2 array: big-endian, F order, blosc."""
    compressor = {"id": "blosc", "cname": "zstd", "clevel": 3, "shuffle": 1}
    dtype = pixels.dtype.newbyteorder(">").str
    metadata = {"compressor": compressor, "dtype": dtype, "order": "F", "chunks": chunk, "dimension_separator": "/"}
    return _tensorstore(path, pixels, {"driver": "zarr", "metadata": metadata})


def tensorstore_v3(path: Path, pixels: Pixels, *, chunk: Chunk = CHUNK) -> Path:
    """Write a bare Zarr v3 array: shards of transposed big-endian chunks."""
    inner = [
        {"name": "transpose", "configuration": {"order": [2, 0, 1]}},
        {"name": "bytes", "configuration": {"endian": "big"}},
        {"name": "zstd", "configuration": {"level": 3}},
    ]
    sharding = {"name": "sharding_indexed", "configuration": {"chunk_shape": chunk, "codecs": inner}}
    grid = {"name": "regular", "configuration": {"chunk_shape": [2 * n for n in chunk]}}
    metadata = {"chunk_grid": grid, "codecs": [sharding], "dimension_names": ["z", "y", "x"]}
    return _tensorstore(path, pixels, {"driver": "zarr3", "metadata": metadata})


def _acquire() -> Any:
    return pytest.importorskip("acquire_zarr", reason="writes a store to read; pip install acquire-zarr")


def _acquire_array(pixels: Pixels, *, chunk: Chunk = CHUNK, **options: Any) -> Any:
    az = _acquire()
    dimensions = [
        az.Dimension(
            name=name,
            kind=az.DimensionType.SPACE,
            array_size_px=size,
            chunk_size_px=side,
            shard_size_chunks=2,
            unit="nanometer",
            scale=scale,
        )
        for name, size, side, scale in zip("zyx", pixels.shape, chunk, SCALE, strict=True)
    ]
    data_type = getattr(az.DataType, pixels.dtype.name.upper())
    return az.ArraySettings(dimensions=dimensions, data_type=data_type, **options)


def acquire_v05(path: Path, pixels: Pixels, *, chunk: Chunk = CHUNK) -> Path:
    """Write OME-Zarr 0.5 as a microscope streams it: shards, blosc, a pyramid."""
    az = _acquire()
    compression = az.CompressionSettings(
        compressor=az.Compressor.BLOSC1, codec=az.CompressionCodec.BLOSC_ZSTD, level=1, shuffle=1
    )
    method = az.DownsamplingMethod.MEAN
    array = _acquire_array(pixels, chunk=chunk, compression=compression, downsampling_method=method)
    settings = az.StreamSettings(store_path=str(path), version=az.ZarrVersion.V3, overwrite=True, arrays=[array])
    stream = az.ZarrStream(settings)
    stream.append(pixels)
    stream.close()
    return path


def acquire_plate(path: Path, pixels: dict[str, Pixels]) -> Path:
    """Write a plate with the fields of well A/2; returns its path."""
    az = _acquire()
    fields = [
        az.FieldOfView(path=name, acquisition_id=0, array_settings=_acquire_array(field))
        for name, field in pixels.items()
    ]
    well = az.Well(row_name="A", column_name="2", images=fields)
    runs = [az.Acquisition(id=0, name="run")]
    plate = az.Plate(path="plate", name="plate", row_names=["A"], column_names=["2"], acquisitions=runs, wells=[well])
    settings = az.StreamSettings(store_path=str(path), version=az.ZarrVersion.V3, overwrite=True, hcs_plates=[plate])
    stream = az.ZarrStream(settings)
    for name, field in pixels.items():
        stream.append(field, key=f"plate/A/2/{name}")
    stream.close()
    return path / "plate"


def _bioio(path: Path, pixels: Pixels, *, chunk: Chunk, **options: Any) -> Path:
    writers = pytest.importorskip("bioio_ome_zarr.writers", reason="writes a store; pip install bioio-ome-zarr")
    coarse = pixels[:, ::2, ::2]
    writer = writers.OMEZarrWriter(
        str(path),
        level_shapes=[pixels.shape, coarse.shape],
        dtype=pixels.dtype,
        chunk_shape=chunk,
        axes_names=["z", "y", "x"],
        axes_types=["space"] * 3,
        axes_units=list(UNITS),
        physical_pixel_size=list(SCALE),
        **options,
    )
    writer.write_full_volume(pixels)
    return path


def bioio_v04(path: Path, pixels: Pixels, *, chunk: Chunk = CHUNK) -> Path:
    """Write OME-Zarr 0.4."""
    return _bioio(path, pixels, chunk=chunk, zarr_format=2)


def bioio_v05(path: Path, pixels: Pixels, *, chunk: Chunk = CHUNK) -> Path:
    """Write OME-Zarr 0.5 in shards."""
    return _bioio(path, pixels, chunk=chunk, zarr_format=3, shard_shape=tuple(2 * n for n in chunk))


def _ome_zarr_py(path: Path, pixels: Pixels, *, chunk: Chunk, version: str) -> Path:
    writer = pytest.importorskip("ome_zarr.writer", reason="writes a store to read; pip install ome-zarr")
    formats = pytest.importorskip("ome_zarr.format")
    writer.write_image(
        pixels,
        str(path),
        scale_factors=(2,),
        axes="zyx",
        fmt=formats.format_from_version(version),
        scale=dict(zip("zyx", SCALE, strict=True)),
        axes_units=dict.fromkeys("zyx", "nanometer"),
        storage_options={"chunks": chunk},
    )
    return path


def ome_zarr_py_v04(path: Path, pixels: Pixels, *, chunk: Chunk = CHUNK) -> Path:
    """Write OME-Zarr 0.4."""
    return _ome_zarr_py(path, pixels, chunk=chunk, version="0.4")


def ome_zarr_py_v05(path: Path, pixels: Pixels, *, chunk: Chunk = CHUNK) -> Path:
    """Write OME-Zarr 0.5."""
    return _ome_zarr_py(path, pixels, chunk=chunk, version="0.5")


WRITERS: dict[str, Callable[..., Path]] = {
    writer.__name__: writer
    for writer in (
        tensorstore_v2,
        tensorstore_v3,
        acquire_v05,
        bioio_v04,
        bioio_v05,
        ome_zarr_py_v04,
        ome_zarr_py_v05,
    )
}
