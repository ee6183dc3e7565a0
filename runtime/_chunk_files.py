"""Where the chunks of a local Zarr array lie, and what of a chunk's file tells whether it is whole.

1. The key of a chunk, and so its file, follows from its number along each axis: Zarr v2 and v3, "." or "/" between
   the numbers. In a sharded array the file is the shard.
2. Files are found by listing folders, never by asking for each: 100,000 chunks are a second of looking, not minutes.
   A folder of which nothing is wanted any more is not listed again.
3. Of a file that is there, its size or its own header may tell that it is not whole: raw chunks have a known size,
   Blosc says how long it is, a shard's index says where its chunks end.
"""

from __future__ import annotations

import math
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.runtime._zarr_metadata import ITEM_BYTES, ArrayMetadata

ChunkNumber = tuple[int, ...]
"""Of a chunk's file, along each axis of the array."""
_NOTHING = 2**64 - 1
"""Offset and length, in a shard's index, of a chunk that is not in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardIndex:
    """Where a shard says which chunks it holds."""

    chunks: int
    is_at_start: bool
    is_little_endian: bool
    has_checksum: bool

    @property
    def n_bytes(self) -> int:
        """Length of the index."""
        return 16 * self.chunks + 4 * self.has_checksum


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkFiles:
    """Where an array's chunks lie; `counts` is how many files there are along each axis, `sizes` their pixels."""

    folder: Path
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    prefix: str
    separator: str
    raw_bytes: int | None
    is_blosc: bool
    index: ShardIndex | None

    def of_shape(self, shape: tuple[int, ...]) -> ChunkFiles:
        """Return the files of the same array, grown to another shape."""
        return replace(self, counts=_count(shape, self.sizes))

    def key(self, number: ChunkNumber) -> str:
        """Return a chunk's key, which is its file's path inside the array's folder."""
        return self.separator.join([*([self.prefix] if self.prefix else []), *map(str, number)])

    def path(self, number: ChunkNumber) -> Path:
        """Return a chunk's file."""
        return self.folder / self.key(number)

    def present(self, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[ChunkNumber, str]]:
        """Yield number and path of every file that is there, of the chunks that are True in `wanted`."""
        if self.separator == "/":
            yield from self._walk(str(self.folder / self.prefix), (), wanted)
            return
        head = f"{self.prefix}." if self.prefix else ""
        for name in _names(str(self.folder)):
            parts = name.removeprefix(head).split(".") if name.startswith(head) else []
            if len(parts) == len(self.counts):
                found = tuple(_number(part, n) for part, n in zip(parts, self.counts, strict=True))
                number = tuple(n for n in found if n is not None)
                if len(number) == len(found) and wanted[number]:
                    yield number, os.path.join(self.folder, name)  # noqa: PTH118  # a Path a file is slow

    def _walk(
        self, folder: str, above: ChunkNumber, wanted: npt.NDArray[np.bool_]
    ) -> Iterator[tuple[ChunkNumber, str]]:
        if not wanted.any():
            return
        for name in _names(folder):
            n = _number(name, wanted.shape[0])
            if n is None:
                continue
            inside = os.path.join(folder, name)  # noqa: PTH118  # a Path a file is slow
            if wanted.ndim > 1:
                yield from self._walk(inside, (*above, n), wanted[n])
            elif wanted[n]:
                yield (*above, n), inside

    def is_whole(self, path: str, n_bytes: int) -> bool:
        """Tell whether a file of `n_bytes` may be a whole chunk; False where it surely is none yet."""
        if n_bytes == 0 or (self.raw_bytes is not None and n_bytes < self.raw_bytes):
            return False
        try:
            if self.is_blosc:
                return _whole_blosc(path, n_bytes)
            return self.index is None or _whole_shard(path, n_bytes, self.index)
        except OSError:  # its writer holds it, or has just replaced it
            return False


def describe_files(metadata: ArrayMetadata, shape: tuple[int, ...]) -> ChunkFiles:
    """Return where the chunks of a local array of a shape lie."""
    document, sizes = metadata.document, metadata.shards or metadata.chunks
    assert isinstance(metadata.file, Path), metadata.file
    if metadata.zarr_format == 2:
        prefix, separator = "", document.get("dimension_separator", ".")
    else:
        encoding = document.get("chunk_key_encoding") or {}
        name = encoding.get("name", "default")
        prefix = "c" if name == "default" else ""
        separator = (encoding.get("configuration") or {}).get("separator", "/" if name == "default" else ".")
    is_raw = set(metadata.codecs) <= {"bytes", "transpose", "crc32c"}
    chunk_bytes = math.prod(metadata.chunks) * ITEM_BYTES[metadata.dtype]
    return ChunkFiles(
        folder=metadata.file.parent,
        counts=_count(shape, sizes),
        sizes=sizes,
        prefix=prefix,
        separator=separator,
        raw_bytes=chunk_bytes + 4 * metadata.codecs.count("crc32c") if is_raw else None,
        is_blosc=metadata.shards is None and metadata.codecs[-1:] == ("blosc",),
        index=None if metadata.shards is None else _shard_index(document, metadata.shards, metadata.chunks),
    )


def _count(shape: tuple[int, ...], sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-(-n // size) for n, size in zip(shape, sizes, strict=True))


def is_file(found: os.stat_result) -> bool:
    """Tell whether it is a file, and no folder of that name."""
    return stat.S_ISREG(found.st_mode)


def _shard_index(document: dict[str, Any], shards: tuple[int, ...], chunks: tuple[int, ...]) -> ShardIndex:
    configuration = document["codecs"][0]["configuration"]
    codecs = [c if isinstance(c, dict) else {"name": c} for c in configuration["index_codecs"]]
    endian = next((c.get("configuration", {}).get("endian") for c in codecs if c["name"] == "bytes"), "little")
    return ShardIndex(
        chunks=math.prod(shards) // math.prod(chunks),
        is_at_start=configuration.get("index_location", "end") == "start",
        is_little_endian=endian != "big",
        has_checksum=any(c["name"] == "crc32c" for c in codecs),
    )


def _whole_blosc(path: str, n_bytes: int) -> bool:
    with open(path, "rb") as stream:  # noqa: PTH123  # as it was listed
        header = stream.read(16)
    return len(header) == 16 and struct.unpack_from("<I", header, 12)[0] <= n_bytes


def _whole_shard(path: str, n_bytes: int, index: ShardIndex) -> bool:
    """Tell whether every chunk that the index names ends within the file."""
    if n_bytes < index.n_bytes:
        return False
    with open(path, "rb") as stream:  # noqa: PTH123  # as it was listed
        stream.seek(0 if index.is_at_start else n_bytes - index.n_bytes)
        raw = stream.read(16 * index.chunks)
    if len(raw) < 16 * index.chunks:
        return False
    entries = np.frombuffer(raw, "<u8" if index.is_little_endian else ">u8").reshape(-1, 2)
    offset, length = entries[~(entries == _NOTHING).all(axis=1)].T
    ends = offset + length
    return bool(((length > 0) & (ends > offset) & (ends <= n_bytes)).all())


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)  # noqa: PTH208  # names alone, of up to 100,000 files
    except (FileNotFoundError, NotADirectoryError):
        return []


def _number(text: str, count: int) -> int | None:
    """Return the number below `count` that is written so in a key; None for any other text."""
    if not (text.isascii() and text.isdigit()) or len(text) > 12 or (text[0] == "0" and text != "0"):
        return None
    return int(text) if int(text) < count else None
