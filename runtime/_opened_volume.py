"""A volume that is open: its pixels by window; and how one that was described is opened again.

1. An array is made of a document that was checked, with a guard before each decoder (`_chunk_guard`).
2. `Volume.read` returns (t, c, z, y, x) in native byte order, missing axes of size 1. A chunk that is absent reads as
   the fill value, as Zarr defines; a chunk that cannot be decoded is a `ReadError`, never a hole.
3. Where the caller says how much may be kept, chunks that other windows need too are decoded once (`chunk_cache`).
4. A volume pickles as its `VolumeInfo` and reopens where it arrives, so it travels to the workers of a cluster.
"""

from __future__ import annotations

import functools
import math
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.storage import StorePath

from unet_deploy.errors import ReadError, UnsupportedMetadataError
from unet_deploy.geometry import Interval
from unet_deploy.runtime._chunk_guard import guarded_document
from unet_deploy.runtime._chunk_reading import ChunkGrid, Wanted, as_index, read_window
from unet_deploy.runtime._chunk_store import ChunkStore, TiffChunkStore, most_file_bytes
from unet_deploy.runtime._remote import Location, as_location, open_store
from unet_deploy.runtime._remote_store import RemoteChunkStore
from unet_deploy.runtime._tiff import TiffSeries, read_series
from unet_deploy.runtime._zarr_metadata import ITEM_BYTES, ArrayMetadata, check_array, read_node, shorten
from unet_deploy.runtime.chunk_cache import CHUNKS, ENTRY_BYTES
from unet_deploy.runtime.ome import AXES
from unet_deploy.runtime.timeline import span
from unet_deploy.runtime.volume_info import VolumeInfo


class Volume:
    """An open volume; made by `open_volume`. Safe to read from several threads."""

    __slots__ = ("_array", "_file", "info", "token")

    def __init__(self, info: VolumeInfo, array: zarr.Array[Any], file: Location, *, token: str | None = None) -> None:
        """Keep what is read: `file` is what must still be there afterwards.

        `token` is what its chunks are cached under: a new one each time it is opened, but the same on all workers.
        """
        self.info = info
        self.token = token or uuid.uuid4().hex
        self._array = array
        self._file = file

    def __repr__(self) -> str:
        return (
            f"Volume({self.info.path!r}, axes={self.info.axes!r}, shape={self.info.shape}, dtype={self.info.dtype!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.info, self.token)

    def extent(self, axis: str) -> int:
        """Return the number of pixels along an axis, 1 for an axis the volume does not have."""
        assert axis in tuple(AXES), axis
        return self.info.shape[self.info.axes.index(axis)] if axis in self.info.axes else 1

    def cache_for_all(self, channels: Collection[int], cache_bytes: int) -> int:
        """Return `cache_bytes` if they hold all chunks of these channels, else 0: what to read the whole volume with.

        A pass over more than that would push out what it has just decoded, and all that others need.
        """
        sizes = [
            (n, c) for n, c, axis in zip(self.info.shape, self.info.chunks, self.info.axes, strict=True) if axis != "c"
        ]
        pixels = math.prod(n for n, _ in sizes) * len({*channels})
        needed = pixels * np.dtype(self.info.dtype).itemsize + ENTRY_BYTES * math.prod(-(-n // c) for n, c in sizes)
        return cache_bytes if needed <= cache_bytes else 0

    def forget_chunks(self) -> None:
        """Drop what this process keeps of its decoded chunks; to be called when a run is over."""
        CHUNKS.forget(self.token)

    def read(
        self,
        *,
        z: Interval,
        y: Interval,
        x: Interval,
        t: Interval | None = None,
        c: Sequence[int] | None = None,
        cache_bytes: int = 0,
        spent: tuple[int, int] = (0, 0),
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
        cache_bytes
            How much of decoded chunks this process may keep for other windows; by default the window is read past them.
        spent
            Chunks that end at or before this (y, x) will not be needed again, and are not kept.

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
        decode = functools.partial(self._decode, window, channels)
        stored = self.info.stored_axes or self.info.axes
        if cache_bytes:
            wanted = Wanted(window=window, channels=tuple(channels), cache_bytes=cache_bytes, spent=spent)
            return read_window(self._grid, wanted, token=self.token, cache=CHUNKS, decode=decode)
        data = decode(tuple(window[axis].slice if axis != "c" else as_index(channels) for axis in stored))
        if stored != self.info.axes:
            data = data.transpose([stored.index(axis) for axis in self.info.axes])
        if "c" not in self.info.axes and len(channels) > 1:  # the one there is, for each that is asked for
            data = np.stack([data] * len(channels), axis=1 if "t" in self.info.axes else 0)
        sizes = [len(channels) if axis == "c" else window[axis].size for axis in AXES]
        return np.ascontiguousarray(data, dtype=self.info.dtype).reshape(sizes)

    @property
    def _grid(self) -> ChunkGrid:
        info = self.info
        stored = info.stored_axes or info.axes
        shape, chunks = (tuple(sizes[info.axes.index(axis)] for axis in stored) for sizes in (info.shape, info.chunks))
        return ChunkGrid(axes=stored, shape=shape, chunks=chunks, dtype=info.dtype)

    def _decode(self, window: dict[str, Interval], channels: list[int], selection: tuple[Any, ...]) -> npt.NDArray[Any]:
        """Return the pixels of a selection, along the axes of the store; `window` is what is said where it fails."""
        try:
            with span("decode"):
                data = np.asarray(self._array.oindex[selection])
        except MemoryError:
            raise  # not the volume's fault; whoever plans memory must see it
        except Exception as error:  # zarr, its codecs and the file system raise anything
            raise self._unreadable(window, channels, f"{type(error).__name__}: {error}") from error
        is_gone = isinstance(self._file, Path) and not self._file.is_file()
        if is_gone:  # every chunk of a vanished volume would read as the fill value; remote stores look for themselves
            raise self._unreadable(window, channels, f"{self._file} is no longer there")
        return data

    def _unreadable(self, window: dict[str, Interval], channels: list[int], cause: str) -> ReadError:
        parts = [f"{axis} {window[axis].start}:{window[axis].stop}" for axis in self.info.axes if axis != "c"]
        if "c" in self.info.axes:
            parts.insert(self.info.axes.index("c"), f"c {','.join(map(str, channels))}")
        return ReadError(
            f"the window {', '.join(parts)} cannot be read",
            f"in {self._file if self.info.container == 'tiff' else self._file.parent}",
            cause,
            fix="check the disk, and copy the volume again from its source if a chunk is damaged",
        )


def reopen_volume(info: VolumeInfo) -> Volume:
    """Open a volume again, as it was described; nothing that was read of it is served any more.

    Raises
    ------
    ReadError
        If it is no longer what it was.
    InputDataError
        If it cannot be read.
    """
    return _reopen(info, uuid.uuid4().hex)


def zarr_array(metadata: ArrayMetadata) -> zarr.Array[Any]:
    """Return the array of a document that was checked; raises `UnsupportedMetadataError`."""
    store = _chunk_store(metadata.file, most_bytes=most_file_bytes(metadata))
    try:
        return zarr.Array.from_dict(store, guarded_document(metadata))
    except Exception as error:  # what zarr itself refuses, it refuses with many types
        raise UnsupportedMetadataError(
            f"zarr cannot open the array: {shorten(str(error))}",
            f"in {metadata.file}",
            fix="write the array again with a current Zarr library",
        ) from error


def tiff_array(series: TiffSeries) -> zarr.Array[Any]:
    """Return the array of a TIFF series that was checked."""
    return zarr.Array.from_dict(StorePath(TiffChunkStore(series.store)), dict(series.document))


def _chunk_store(file: Location, *, most_bytes: int) -> StorePath:
    if isinstance(file, Path):
        return StorePath(ChunkStore(file.parent, most_bytes=most_bytes))
    store = RemoteChunkStore(open_store(file.base), document=file.key, most_bytes=most_bytes)
    return StorePath(store, file.parent.key)


def _reopen(info: VolumeInfo, token: str) -> Volume:
    if info.container == "tiff":
        return _reopen_tiff(info, token)
    directory = as_location(info.path) / info.array_path
    node = read_node(directory)
    metadata = check_array(node, dtypes=ITEM_BYTES) if node is not None and node.kind == "array" else None
    found = None if metadata is None else (metadata.shape, metadata.dtype, metadata.chunks, metadata.shards)
    if metadata is not None and info.grows:
        axis = info.axes.index(info.grows)
        if metadata.shape[axis] > info.shape[axis]:
            shape = (*metadata.shape[:axis], info.shape[axis], *metadata.shape[axis + 1 :])
            found = (shape, metadata.dtype, metadata.chunks, metadata.shards)
    if metadata is None or found != (info.shape, info.dtype, info.chunks, info.shards):
        raise _changed(found, directory)
    return Volume(info, zarr_array(metadata), metadata.file, token=token)


def _reopen_tiff(info: VolumeInfo, token: str) -> Volume:
    file = Path(info.path)
    series = read_series(file, info.series, level=info.level, axes=info.stored_axes, dtypes=(info.dtype,))
    found = (series.ordered(series.shape), series.dtype, series.ordered(series.chunks), None)
    if found != (info.shape, info.dtype, info.chunks, info.shards):
        raise _changed(found, file)
    return Volume(info, tiff_array(series), file, token=token)


def _changed(found: object, where: Location) -> ReadError:
    return ReadError(
        f"the volume is not what it was when it was opened: {found or 'nothing'} is there now",
        f"in {where}",
        fix="let every worker see the same files at the same path, and do not change a volume in use",
    )
