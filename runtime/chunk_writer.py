"""Write whole chunks and shards of a local array without zarr's machinery, byte for byte as zarr would; read them back.

zarr-python takes as long to hand a chunk on, through its event loop and copies, as zstd takes to compress it.

1. The array's own metadata says how it is stored. `Storage` is what we make (see `output`): a regular grid of unsigned
   integers, little endian, zstd, in shards or not, and 0 where nothing is stored. Anything else is left to zarr.
2. A box is cut into the units that it holds whole, a chunk or a shard each. What one has beyond the array's end is 0. A
   unit of nothing but 0 is not stored, and one that was is deleted.
3. Each is compressed in one of a few threads, which numcodecs lets run side by side and the network comes before, and
   written under another name, then moved to its place: it is there as a whole, or not at all.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from numcodecs.checksum32 import CRC32C
from numcodecs.zstd import Zstd

from unet_deploy.runtime._atomic_file import AtomicFile
from unet_deploy.runtime.disk_space import full_disk_named
from unet_deploy.runtime.machine import give_way, usable_cores
from unet_deploy.runtime.timeline import carried

MOST_THREADS = 8
_ABSENT = struct.pack("<QQ", 2**64 - 1, 2**64 - 1)
"""What a shard's index says of a chunk that is not stored."""
_V3_KEYS = {
    *("zarr_format", "node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs"),
    *("attributes", "dimension_names", "storage_transformers"),
}
_V2_KEYS = {
    *("zarr_format", "shape", "chunks", "dtype", "fill_value", "order", "filters", "compressor"),
    "dimension_separator",
}
_V2_DTYPES = {"|u1": "uint8", "<u2": "uint16", "<u4": "uint32"}

Place = tuple[slice, ...]
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """How an array is stored that can be written here.

    `unit` is the shape of what a file holds, `inner` that of the chunks in it where it is a shard, `prefix` the folder
    that the files' numbers begin in.
    """

    shape: tuple[int, ...]
    unit: tuple[int, ...]
    inner: tuple[int, ...] | None
    dtype: np.dtype[Any]
    level: int
    prefix: str

    def holds_whole(self, place: Place) -> bool:
        """Tell whether a box, within the array, is made of whole units."""
        return len(place) == len(self.shape) and all(
            side.start % unit == 0 and side.start < side.stop <= n and (side.stop % unit == 0 or side.stop == n)
            for side, unit, n in zip(place, self.unit, self.shape, strict=True)
        )

    def file(self, array: Path, number: tuple[int, ...]) -> Path:
        """Return where a unit is stored."""
        return array.joinpath(self.prefix, *map(str, number))


class ChunkWriter:
    """Writes boxes; used as a context. What was begun is written when it ends, or it raises what was in the way."""

    def __init__(self) -> None:
        self._pool = _threads("write")
        self._begun: list[tuple[str, Future[None]]] = []

    def __enter__(self) -> ChunkWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                for where, begun in self._begun:
                    with full_disk_named(where):
                        begun.result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def write(self, array: Path, place: Place, values: Array, *, where: str) -> bool:
        """Begin to write a box of an array; return whether it can be done here.

        Parameters
        ----------
        array
            The folder of the array, which exists.
        place
            The box: a slice with start and stop for every axis.
        values
            Its values, of the array's dtype; not to be changed until the context ends.
        where
            What is written, for the message where the disk is full.
        """
        storage = read_storage(array)
        if storage is None or not storage.holds_whole(place):
            return False
        if (values.dtype, values.shape) != (storage.dtype, _shape(place)):
            return False
        for number, box in _units(storage, place):
            file = storage.file(array, number)
            self._begun.append((where, self._pool.submit(carried(_write_unit), file, values[box], storage)))
        return True


def read_back(array: Path, place: Place) -> Array | None:
    """Return a box of whole chunks; None where it is of anything else, or stored otherwise, or in shards.

    A chunk that is damaged raises what its decoder says, as with zarr.
    """
    storage = read_storage(array)
    if storage is None or storage.inner is not None or not storage.holds_whole(place):
        return None
    values = np.empty(_shape(place), storage.dtype)
    with _threads("read") as pool:
        begun = [
            pool.submit(carried(_read_unit), storage.file(array, number), values[box], storage)
            for number, box in _units(storage, place)
        ]
        for read in begun:
            read.result()
    return values


def read_storage(array: Path) -> Storage | None:
    """Return how an array is stored, None if it is not there or stored in another way than can be written here."""
    for name in ("zarr.json", ".zarray"):
        try:
            return _understand((array / name).read_bytes())
        except OSError:
            continue
    return None


@lru_cache(maxsize=64)
def _understand(document: bytes) -> Storage | None:
    try:
        found = json.loads(document)
        return _storage_v3(found) if found["zarr_format"] == 3 else _storage_v2(found)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _storage_v3(found: Mapping[str, Any]) -> Storage | None:
    inner, codecs, dtype = None, found["codecs"], found["data_type"]
    if len(codecs) == 1:
        sharding = codecs[0]["configuration"]
        inner, codecs = tuple(sharding["chunk_shape"]), sharding["codecs"]
        index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
        expected = {"chunk_shape": [*inner], "codecs": codecs, "index_codecs": index, "index_location": "end"}
        if found["codecs"] != [{"name": "sharding_indexed", "configuration": expected}]:
            return None
    level = codecs[-1]["configuration"]["level"]
    little, zstd = {"endian": "little"}, {"name": "zstd", "configuration": {"level": level, "checksum": False}}
    known = [[{"name": "bytes", "configuration": little}, zstd]]
    if dtype == "uint8":
        known.append([{"name": "bytes"}, zstd])
    unit = found["chunk_grid"]["configuration"]["chunk_shape"]
    if (
        not _V3_KEYS.issuperset(found)
        or found["node_type"] != "array"
        or codecs not in known
        or found["chunk_grid"] != {"name": "regular", "configuration": {"chunk_shape": unit}}
        or found["chunk_key_encoding"] != {"name": "default", "configuration": {"separator": "/"}}
        or found["fill_value"] != 0
        or found.get("storage_transformers", [])
        or dtype not in _V2_DTYPES.values()
    ):
        return None
    return _storage(found["shape"], unit, inner, dtype, level, "c")


def _storage_v2(found: Mapping[str, Any]) -> Storage | None:
    level = found["compressor"]["level"]
    if (
        not _V2_KEYS.issuperset(found)
        or found["zarr_format"] != 2
        or found["order"] != "C"
        or found["filters"]
        or found["fill_value"] != 0
        or {"checksum": False, **found["compressor"]} != {"id": "zstd", "level": level, "checksum": False}
        or found.get("dimension_separator") != "/"
    ):
        return None
    return _storage(found["shape"], found["chunks"], None, _V2_DTYPES[found["dtype"]], level, "")


def _storage(
    shape: Sequence[int], unit: Sequence[int], inner: tuple[int, ...] | None, dtype: str, level: int, prefix: str
) -> Storage | None:
    sizes = (shape, unit, inner or unit)
    if not shape or any(len(some) != len(shape) or not all(type(n) is int and n > 0 for n in some) for some in sizes):
        return None
    if type(level) is not int or any(n % step for n, step in zip(unit, sizes[2], strict=True)):
        return None
    little = np.dtype(dtype).newbyteorder("<")
    return Storage(shape=(*shape,), unit=(*unit,), inner=inner, dtype=little, level=level, prefix=prefix)


def _shape(place: Place) -> tuple[int, ...]:
    return tuple(side.stop - side.start for side in place)


def _units(storage: Storage, place: Place) -> Iterator[tuple[tuple[int, ...], Place]]:
    """Yield the number of each unit in a box, and where in the box's values it is."""
    spans = [range(side.start // unit, -(-side.stop // unit)) for side, unit in zip(place, storage.unit, strict=True)]
    for number in product(*spans):
        yield (
            number,
            tuple(
                slice(i * unit - side.start, min((i + 1) * unit, side.stop) - side.start)
                for i, unit, side in zip(number, storage.unit, place, strict=True)
            ),
        )


def _read_unit(file: Path, values: Array, storage: Storage) -> None:
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        values[...] = 0
        return
    chunk = np.frombuffer(Zstd().decode(content), storage.dtype).reshape(storage.unit)
    values[...] = chunk[tuple(map(slice, values.shape))]


def _write_unit(file: Path, values: Array, storage: Storage) -> None:
    if storage.inner is None:
        content = _compress(values, storage.unit, storage)
    else:
        content = _shard(values, storage.inner, storage)
    if content is None:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with AtomicFile(file) as opened:
        opened.write(content)


def _compress(values: Array, shape: tuple[int, ...], storage: Storage) -> Any:
    """Return a chunk as it is stored, None where there is nothing to store."""
    if not values.any():
        return None
    whole = values
    if values.shape != shape:
        whole = np.zeros(shape, storage.dtype)
        whole[tuple(map(slice, values.shape))] = values
    return Zstd(level=storage.level).encode(np.ascontiguousarray(whole, storage.dtype))


def _shard(values: Array, inner: tuple[int, ...], storage: Storage) -> bytes | None:
    """Return a shard as it is stored: its chunks, then where each begins and how long it is (Zarr v3, sharding)."""
    counts = tuple(unit // n for unit, n in zip(storage.unit, inner, strict=True))
    index = dict.fromkeys(product(*map(range, counts)), _ABSENT)
    parts, end = [], 0
    for number in _morton_order(counts):
        part = values[tuple(slice(i * n, (i + 1) * n) for i, n in zip(number, inner, strict=True))]
        chunk = _compress(part, inner, storage)
        if chunk is not None:
            index[number] = struct.pack("<QQ", end, len(chunk))
            parts.append(chunk)
            end += len(chunk)
    if not parts:
        return None
    return b"".join([*parts, CRC32C().encode(b"".join(index.values()))])


@lru_cache(maxsize=16)
def _morton_order(counts: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Return a shard's chunks in the order in which zarr stores them: neighbours are near; any order is allowed."""
    bits = [(count - 1).bit_length() for count in counts]
    places = [(axis, bit) for bit in range(max(bits)) for axis, n in enumerate(bits) if bit < n]
    numbers = product(*map(range, counts))
    return tuple(sorted(numbers, key=lambda i: sum((i[a] >> bit & 1) << k for k, (a, bit) in enumerate(places))))


def _threads(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(usable_cores() or 1, MOST_THREADS), name, initializer=give_way)
