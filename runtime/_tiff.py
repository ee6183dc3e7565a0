"""TIFF files, OME-TIFF and plain stacks, as arrays of strips or tiles; read through tifffile's Zarr view.

1. A file is parsed once in a process and closed again; each chunk opens it for its own read, so that nothing is held.
2. What tifffile only logs (pages that end early, metadata it cannot follow) is an error here, and so is a page that is
   missing or ends behind the file: none may read as zeros.
3. Axes, pixel size and channel names come from OME-XML or from ImageJ's metadata. Samples of a pixel are channels; one
   axis without a meaning, as plain stacks have, is z.
4. Axes are put into the order t, c, z, y, x when pixels are read, not in the file.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unet_deploy.errors import (
    MissingDependencyError,
    NotAVolumeError,
    ReadError,
    UnboundedMetadataError,
    UnsupportedAxesError,
    UnsupportedCodecError,
    UnsupportedDtypeError,
    UsageError,
)
from unet_deploy.runtime._retry import read_again
from unet_deploy.runtime._tiff_metadata import TiffSize, imagej_size, ome_sizes
from unet_deploy.runtime._zarr_metadata import MAX_CHUNK_BYTES, MAX_EXTENT
from unet_deploy.runtime.ome import AXES, require_axes
from unet_deploy.runtime.volume_info import Level, VolumeInfo

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

logger = logging.getLogger(__name__)

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_INCOMPLETE = re.compile(r"OME series (is missing|is BinaryOnly|failed|missing|contains)")
_CODEC_BYTES = 16 * 1024
"""What a codec may add to pixels that do not compress."""
_FIX_DAMAGED = "copy the file again from its source, with all files of its series"


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffSeries:
    """One image of a TIFF file; `stored_axes` are in the file's order, `document` is what zarr is given."""

    name: str | None
    axes: str
    stored_axes: str
    shape: tuple[int, ...]
    dtype: str
    chunks: tuple[int, ...]
    codecs: tuple[str, ...]
    size: TiffSize
    level_shapes: tuple[tuple[int, ...], ...]
    document: Mapping[str, Any]
    store: Any

    def ordered(self, values: tuple[int, ...]) -> tuple[int, ...]:
        """Return numbers given in the file's order of axes in that of `axes`."""
        return tuple(values[self.stored_axes.index(axis)] for axis in self.axes)


def is_tiff(path: Path) -> bool:
    """Tell whether a path is a file that begins as TIFF does."""
    try:
        with path.open("rb") as stream:
            return stream.read(4) in _MAGIC
    except OSError:
        return False


def series_names(path: Path) -> tuple[str | None, ...]:
    """Return the names of a file's images, None where they have none; raises as `read_series`."""
    return tuple(series.name or None for series in _parse(path).series)


def read_series(path: Path, index: int, *, level: int, axes: str | None, dtypes: Collection[str]) -> TiffSeries:
    """Return one image of a file at a level.

    Raises
    ------
    MissingDependencyError
        If tifffile is not installed, or imagecodecs, which the file's compression needs.
    NotAVolumeError, ReadError
        If it is no TIFF after all, or damaged.
    UnsupportedAxesError, UnsupportedDtypeError, UnsupportedCodecError, UnboundedMetadataError
        If it is something the runtime cannot read.
    UsageError
        If there is no such level, or `axes` contradicts the file.
    """
    file = _parse(path)
    whole = file.series[index]
    if not 0 <= level < len(whole.levels):
        raise UsageError(
            f"level {level} came, levels 0 to {len(whole.levels) - 1} were expected",
            f"in {path}",
            fix=f"--level {len(whole.levels) - 1 if level > 0 else 0}",
        )
    series = whole.levels[level]
    stored = _axes(path, whole, axes)
    dtype = np.dtype(series.dtype)
    if dtype.name not in dtypes:
        raise UnsupportedDtypeError(
            f"data type {dtype.name!r} came, one of {', '.join(dtypes)} was expected",
            f"in {path}",
            fix="convert the image to one of these data types; whole numbers up to 65,535 fit uint16",
        )
    codecs = _require_codec(path, series)
    chunk_bytes = math.prod(series.keyframe.chunks) * dtype.itemsize
    if chunk_bytes > MAX_CHUNK_BYTES or max(series.shape) > MAX_EXTENT:
        raise UnboundedMetadataError(
            f"strips or tiles of {chunk_bytes:,} bytes came, at most {MAX_CHUNK_BYTES:,} were expected",
            f"in {path}",
            fix="write the image again in tiles, or as OME-Zarr (bioformats2raw IN.tif OUT.zarr)",
        )
    _require_whole(path, series, chunk_bytes=chunk_bytes)
    store = series.aszarr(level=0, read_only=True, _openfiles=0)
    document = _document(store, series)
    chunks = tuple(document["chunks"])
    return TiffSeries(
        name=whole.name or None,
        axes="".join(sorted(stored, key=AXES.index)),
        stored_axes=stored,
        shape=tuple(series.shape),
        dtype=dtype.name,
        chunks=chunks,
        codecs=codecs,
        size=_size(file, whole, index),
        level_shapes=tuple(tuple(entry.shape) for entry in whole.levels),
        document=document,
        store=store,
    )


def tiff_info(file: Path, series: TiffSeries, *, index: int, level: int) -> VolumeInfo:
    """Return what is known of a file's image at a level; `index` says which image it is."""
    scales = series.size.scale
    has_scale = {"y", "x"} <= scales.keys()
    shapes = [series.ordered(shape) for shape in series.level_shapes]
    levels = tuple(
        Level(
            path=str(number),
            shape=shape,
            chunks=series.ordered(series.chunks) if number == level else None,
            shards=None,
            scale=tuple(
                scales.get(axis, (1.0, ""))[0] * finest / size
                for axis, finest, size in zip(series.axes, shapes[0], shape, strict=True)
            )
            if has_scale
            else None,
            translation=None,
        )
        for number, shape in enumerate(shapes)
    )
    names = series.size.channel_names
    channels = shapes[level][series.axes.index("c")] if "c" in series.axes else 1
    return VolumeInfo(
        path=str(file),
        array_path="",
        zarr_format=3,
        ome_version=None,
        name=series.name or re.sub(r"(\.ome)?\.tiff?$", "", file.name, flags=re.IGNORECASE) or "volume",
        axes=series.axes,
        shape=shapes[level],
        dtype=series.dtype,
        chunks=series.ordered(series.chunks),
        shards=None,
        scale=levels[level].scale,
        translation=None,
        units=tuple(scales[a][1] if a in scales else None for a in series.axes) if has_scale else None,
        fill_value=0,
        codecs=series.codecs,
        channel_names=names if names is not None and len(names) == channels else None,
        levels=levels,
        level=level,
        container="tiff",
        series=index,
        stored_axes=series.stored_axes,
    )


def _parse(path: Path) -> TiffFile:
    try:
        facts = path.stat()
    except OSError as error:
        raise ReadError(
            "the TIFF cannot be read", f"in {path}", str(error), fix="check the path, the disk and the permissions"
        ) from error
    return _parse_once(str(path), facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _parse_once(path: str, size: int, changed_ns: int) -> TiffFile:  # noqa: ARG001  # another file has others
    try:
        import tifffile
    except ModuleNotFoundError as error:
        if error.name != "tifffile":
            raise
        raise MissingDependencyError.of_extra("tifffile", extra="tiff", purpose="reading TIFF") from error
    theirs, handler = logging.getLogger("tifffile"), _Errors()
    theirs.addHandler(handler)
    try:
        file, count = read_again(partial(_parse_all, tifffile.TiffFile, path))
    except Exception as error:  # tifffile and what it calls raise anything
        raise _damaged(path, f"{type(error).__name__}: {error}") from error
    finally:
        theirs.removeHandler(handler)
    if handler.said:
        raise _damaged(path, handler.said[0])
    if not count:
        raise _damaged(path, "it holds no image")
    return file


def _parse_all(open_file: Any, path: str) -> tuple[TiffFile, int]:
    with open_file(path) as file:
        return file, len(file.series)  # parses what it is made of


class _Errors(logging.Handler):
    """Keeps what this thread logs of a file that is not whole."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep errors, and warnings of frames or files that are missing."""
        message = record.getMessage()
        if record.thread == self._thread and (record.levelno >= logging.ERROR or _INCOMPLETE.search(message)):
            self.said.append(message)


def _axes(path: Path, series: TiffPageSeries, axes: str | None) -> str:
    """Return the axes in the file's order, in our letters."""
    came = series.axes.lower()
    named = "".join("c" if axis == "s" and "c" not in came else axis for axis in came)
    unknown = [axis for axis in named if axis in "iq"]
    if len(unknown) == 1 and "z" not in named:
        named = named.replace(unknown[0], "z")
    if axes is not None and series.kind in ("ome", "imagej") and sorted(axes) != sorted(named):
        raise UsageError(
            f"--axes {axes} came, but the TIFF's metadata says {named}", f"in {path}", fix="leave --axes out"
        )
    if axes is not None and series.kind not in ("ome", "imagej"):
        named = axes
    joined = require_axes(
        sorted(named, key=AXES.find), where=f"{path} (tifffile says {series.axes})", fix="say what they are with --axes"
    )
    if len(joined) != len(series.shape):
        raise UnsupportedAxesError(
            f"{len(joined)} axes {named} came for an image of {len(series.shape)} dimensions",
            f"{path} has the shape {list(series.shape)}",
            fix="say what they are with --axes",
        )
    return named


def _require_codec(path: Path, series: TiffPageSeries) -> tuple[str, ...]:
    import tifffile

    page = series.keyframe
    compression, predictor = tifffile.COMPRESSION(page.compression), page.predictor
    try:
        tifffile.TIFF.DECOMPRESSORS[compression]
        tifffile.TIFF.UNPREDICTORS[predictor]
    except KeyError as error:
        if "imagecodecs" in str(error):
            purpose = f"reading a TIFF compressed with {compression.name}"
            raise MissingDependencyError.of_extra("imagecodecs", extra="tiff", purpose=purpose) from error
        raise UnsupportedCodecError(
            f"compression {compression.name} came, one that tifffile reads was expected",
            f"in {path}",
            fix="write the image again with deflate, or as OME-Zarr",
        ) from error
    return () if compression == tifffile.COMPRESSION.NONE else (compression.name.lower(),)


def _require_whole(path: Path, series: TiffPageSeries, *, chunk_bytes: int) -> None:
    start = series.dataoffset
    if start is not None:  # one run of pixels, whose pages may not even be listed
        size = series.keyframe.parent.filehandle.size
        if start + series.nbytes > size:
            raise _damaged(path, f"its pixels end at byte {start + series.nbytes:,}, the file at {size:,}")
        return
    expected = math.prod(series.keyframe.chunked)
    absent = 0
    for number, page in enumerate(series):
        if page is None:
            raise _damaged(path, f"page {number} of {len(series)} is not there")
        places = [*zip(page.dataoffsets, page.databytecounts, strict=False)]
        size = page.parent.filehandle.size
        if len(places) < expected:
            raise _damaged(path, f"page {number} has {len(places)} strips or tiles, {expected} were expected")
        end, most = max(offset + count for offset, count in places), max(count for _, count in places)
        if end > size:
            raise _damaged(path, f"page {number} ends at byte {end:,}, the file at {size:,}")
        if most > 2 * chunk_bytes + _CODEC_BYTES:
            raise UnboundedMetadataError(
                f"a strip or tile of {most:,} bytes came for {chunk_bytes:,} bytes of pixels",
                f"page {number} of {path}",
                fix="write the image again; compressed pixels are not larger than the pixels",
            )
        absent += sum(not count or not offset for offset, count in places)
    if absent:
        logger.warning("%s: %d strips or tiles are not there, and read as 0", path, absent)


def _document(store: Any, series: TiffPageSeries) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(store._store[".zarray"])  # else only through asynchronous calls
    assert tuple(document["shape"]) == tuple(series.shape), document
    return {**document, "attributes": {}}


def _size(file: TiffFile, series: TiffPageSeries, index: int) -> TiffSize:
    if series.kind == "ome" and file.ome_metadata:
        sizes = ome_sizes(file.ome_metadata)
        return sizes[index] if len(sizes) == len(file.series) else TiffSize()
    if series.kind == "imagej":
        tags = {name: series.keyframe.tags.valueof(name) for name in ("XResolution", "YResolution")}
        return imagej_size(file.imagej_metadata or {}, tags)
    return TiffSize()


def _damaged(path: str | Path, cause: str) -> NotAVolumeError:
    return NotAVolumeError(f"{path} is no TIFF that can be read whole", cause, fix=_FIX_DAMAGED)
