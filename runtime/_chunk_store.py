"""The bytes of chunks in local files, read no further than a chunk can go.

1. Only a file that does not exist is an absent chunk. What is there and is no file of data (a folder, a pipe, a device)
   is damage; a pipe would never end.
2. How long a file is is looked at before any memory is taken for it: a sparse file of a tebibyte costs a disk nothing.
   A chunk that was compressed is hardly longer than its pixels; the bound leaves room for those who pad.
3. Reads that fail are tried again (`_retry`).
"""

from __future__ import annotations

import asyncio
import math
import os
import stat
from functools import partial
from pathlib import Path
from typing import Any

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore, WrapperStore

from unet_deploy.runtime._chunk_guard import DamagedChunkError
from unet_deploy.runtime._retry import read_again_async
from unet_deploy.runtime._zarr_metadata import ITEM_BYTES, ArrayMetadata

_HEADER_BYTES = 1024
_ROOM_BYTES = 2**20
"""What a chunk, and the file that holds it, may have beyond twice its pixels."""


def most_file_bytes(metadata: ArrayMetadata) -> int:
    """Return how long the file of a chunk, or of a shard, may be.

    >>> from unet_deploy.runtime._chunk_store import _most_bytes
    >>> _most_bytes(64 * 64, n_chunks=1), _most_bytes(64 * 64, n_chunks=4)
    (1057792, 1085440)
    """
    n_chunks = math.prod(metadata.shards) // math.prod(metadata.chunks) if metadata.shards else 1
    return _most_bytes(math.prod(metadata.chunks) * ITEM_BYTES[metadata.dtype], n_chunks=n_chunks)


def _most_bytes(chunk_bytes: int, *, n_chunks: int) -> int:
    return n_chunks * (2 * chunk_bytes + _HEADER_BYTES) + _ROOM_BYTES


class ChunkStore(LocalStore):
    """A folder of chunks for zarr, read-only; no file may hold more than `most_bytes`."""

    def __init__(self, root: Path | str, *, read_only: bool = True, most_bytes: int) -> None:
        super().__init__(root, read_only=read_only)
        self._most_bytes = most_bytes

    def with_read_only(self, read_only: bool = False) -> ChunkStore:
        """Return the same store; it is never written to, whatever is asked."""
        assert read_only
        return ChunkStore(self.root, most_bytes=self._most_bytes)

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes at a key, None only if there is nothing there."""
        read = partial(asyncio.to_thread, _read, self.root, key, byte_range, self._most_bytes)
        data = await read_again_async(read)
        return None if data is None else (prototype or default_buffer_prototype()).buffer.from_bytes(data)


def _read(root: Path, key: str, byte_range: ByteRequest | None, most_bytes: int) -> bytes | None:
    path = root / key
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DamagedChunkError(f"{key} is there, but is no file")
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            start, stop = span(byte_range, size)
            require_bounded(key, stop - start, most_bytes)
            stream.seek(start)
            data = stream.read(max(min(stop, size) - start, 0))
    except (FileNotFoundError, NotADirectoryError):
        return None
    require_whole(key, len(data), stop - start)
    return data


def span(byte_range: ByteRequest | None, size: int) -> tuple[int, int]:
    """Return which bytes of a file of that size are asked for; they may end behind it."""
    match byte_range:
        case None:
            return 0, size
        case RangeByteRequest():
            return byte_range.start, byte_range.end
        case OffsetByteRequest():
            return min(byte_range.offset, size), size
        case SuffixByteRequest():
            return max(size - byte_range.suffix, 0), size


def require_bounded(key: str, wanted: int, most_bytes: int) -> None:
    """Refuse to read more of a file than its chunk, or all of its shard's, can be.

    Raises
    ------
    DamagedChunkError
        If it is more.
    """
    if wanted > most_bytes:
        raise DamagedChunkError(f"{key}: {wanted:,} bytes would be read, at most {most_bytes:,} were expected")


def require_whole(key: str, came: int, wanted: int) -> None:
    """Refuse what is less than was asked for, and nothing at all: to zarr, no bytes of a shard are an empty shard.

    Raises
    ------
    DamagedChunkError
        If it is less.
    """
    wanted = max(wanted, 1)
    if came < wanted:
        raise DamagedChunkError(f"{key} is cut short: {came} bytes came, {wanted} were expected")


class TiffChunkStore(WrapperStore[Any]):
    """tifffile's view of a TIFF, with reads that fail repeated."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the strip or tile at a key, None where the file says that there is none."""
        return await read_again_async(partial(super().get, key, prototype, byte_range))
