"""What stands between a damaged or hostile chunk and its decoder.

zarr and its codecs let three kinds of damage pass, each seen with zarr 3.1 and numcodecs 0.16:

1. A shard of no bytes, or one that ends before a chunk does, reads as the fill value: `_chunk_store` refuses it.
2. A truncated Blosc chunk decodes to whatever stands behind it in memory: its header must declare the bytes there are.
3. A chunk that inflates beyond what its array says does so before anyone counts. Blosc and LZ4 headers are read first.
   Of zstd all frames are walked, since a frame may declare nothing and 4 bytes of it may stand for 128 KiB. gzip and
   zlib declare nothing: they are inflated here, no further than a chunk goes.

The guard is a codec of zarr's own kind, placed behind each compressor or in its place, so it also stands inside shards.
"""

from __future__ import annotations

import asyncio
import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numcodecs
from zarr.abc.codec import BytesBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer

from unet_deploy.runtime._zarr_metadata import ITEM_BYTES, ArrayMetadata, Document

_PIECE_BYTES = 16 * 1024
_HEADER_BYTES = 32
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCK = 128 * 1024
"""The most that one block of zstd may stand for."""
_ZSTD_ROOM = 16 * 2**20
"""What blocks that do not tell their size may add up to beyond a chunk: each is counted as a full one."""
_GZIP, _ZLIB = 31, 15  # zlib's window bits for either format


class DamagedChunkError(ValueError):
    """A chunk that must not be decoded; `Volume.read` says it as a ReadError."""


def guarded_document(metadata: ArrayMetadata) -> Document:
    """Return the document for zarr with a guard behind every compressor."""
    limit = math.prod(metadata.chunks) * ITEM_BYTES[metadata.dtype]
    limit += limit // 64 + 1024  # one compressor's worst case inside another
    document = metadata.document
    if metadata.zarr_format == 2:
        config = document.get("compressor")
        compressor = None if config is None else _GuardedCompressor(numcodecs.get_codec(dict(config)), limit)
        return {**document, "compressor": compressor}
    codecs = document["codecs"]
    if metadata.shards is None:
        return {**document, "codecs": _with_guards(codecs, limit)}
    configuration = codecs[0]["configuration"]
    inner = {**configuration, "codecs": _with_guards(configuration["codecs"], limit)}
    return {**document, "codecs": [{**codecs[0], "configuration": inner}]}


def check_chunk(codec: str, header: bytes, length: int, limit: int) -> None:
    """Refuse a compressed chunk of `length` bytes whose header cannot be true.

    Raises
    ------
    DamagedChunkError
        If it is shorter than its header, declares another length, or would inflate beyond `limit` bytes.
    """
    declared: int | None = None
    if codec == "blosc":
        if length < 16:
            raise DamagedChunkError(f"a blosc chunk of {length} bytes came, at least 16 were expected")
        declared, _, compressed = struct.unpack_from("<III", header, 4)
        if compressed != length:
            raise DamagedChunkError(f"a blosc chunk of {length} bytes came, its header says {compressed}")
    elif codec == "zstd":
        declared = zstd_declared(header)
    elif codec == "lz4" and length >= 4:
        (declared,) = struct.unpack_from("<I", header)
    if declared is not None and declared > limit:
        raise DamagedChunkError(f"a {codec} chunk declares {declared:,} bytes, at most {limit:,} were expected")


def zstd_declared(header: bytes) -> int | None:
    """Return a frame's content size, None where it is not declared (RFC 8878, section 3.1.1.1)."""
    if len(header) < 6 or header[:4] != _ZSTD_MAGIC:
        return None
    descriptor = header[4]
    is_single_segment = bool(descriptor >> 5 & 1)
    size = (int(is_single_segment), 2, 4, 8)[descriptor >> 6]
    start = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    if size == 0 or len(header) < start + size:
        return None
    value = int.from_bytes(header[start : start + size], "little")
    return value + 256 if size == 2 else value


def check_zstd(data: bytes | memoryview, limit: int) -> None:
    """Refuse zstd frames that may inflate beyond `limit` bytes, without inflating them (RFC 8878, section 3.1.1).

    A frame that declares its size cannot give more. Of any other, blocks that are copied or repeated tell theirs, and
    compressed ones are counted as full, with `_ZSTD_ROOM` to spare: a stream is flushed early now and then.

    Raises
    ------
    DamagedChunkError
        If they may, if something is no frame, or if one is cut short.
    """
    place = sure = possible = 0
    while place < len(data):
        if data[place + 1 : place + 4] == b"\x2a\x4d\x18" and data[place] & 0xF0 == 0x50:  # to be skipped
            place += 8 + int.from_bytes(data[place + 4 : place + 8], "little")
            continue
        if data[place : place + 4] != _ZSTD_MAGIC:
            raise DamagedChunkError(f"a zstd chunk has no frame at byte {place}")
        header = bytes(data[place : place + _HEADER_BYTES])
        declared, descriptor, is_last = zstd_declared(header), header[4:5] or b"\0", False
        sure += declared or 0
        place += _zstd_header_bytes(descriptor[0])
        while not is_last:
            if place + 3 > len(data):
                raise DamagedChunkError(f"a zstd chunk of {len(data)} bytes is cut short")
            block = int.from_bytes(data[place : place + 3], "little")
            is_last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
            place += 3 + (1 if kind == 1 else size)  # a repeated byte stands for as many as it says
            if declared is None:
                sure, possible = (sure, possible + _ZSTD_BLOCK) if kind == 2 else (sure + size, possible)
            if sure > limit or sure + possible > 2 * limit + _ZSTD_ROOM:
                most = f"at most {limit:,} were expected"
                raise DamagedChunkError(f"a zstd chunk may inflate to {sure + possible:,} bytes or more, {most}")
        place += 4 * (descriptor[0] >> 2 & 1)  # a checksum


def _zstd_header_bytes(descriptor: int) -> int:
    """Return the length of a frame's header, magic number included."""
    is_single_segment = bool(descriptor >> 5 & 1)
    size = (int(is_single_segment), 2, 4, 8)[descriptor >> 6]
    return 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3] + size


def inflate(data: bytes | memoryview, limit: int, *, codec: str) -> bytes:
    """Return what gzip (all its members) or zlib bytes stand for, never holding more than `limit` of it.

    Raises
    ------
    DamagedChunkError
        If that is more, or the bytes are cut short or damaged.
    """
    inflated, view = bytearray(), memoryview(data).cast("B")
    start, stream, has_ended = 0, None, False
    while start < len(view):
        piece = bytes(view[start : start + _PIECE_BYTES])  # small, since what a member leaves over is copied
        start += len(piece)
        if stream is None:
            if codec == "gzip" and has_ended and not (piece := piece.lstrip(b"\0")):  # zeros may follow a member
                continue
            stream = zlib.decompressobj(_GZIP if codec == "gzip" else _ZLIB)
        try:
            inflated += stream.decompress(piece, limit + 1 - len(inflated))
        except zlib.error as error:
            raise DamagedChunkError(f"a {codec} chunk of {len(data)} bytes is damaged: {error}") from error
        if len(inflated) > limit:
            raise DamagedChunkError(f"a {codec} chunk inflates beyond the {limit:,} bytes it may hold")
        if stream.eof:
            if codec != "gzip":
                return bytes(inflated)
            start -= len(stream.unused_data)
            stream, has_ended = None, True
    if stream is not None:
        raise DamagedChunkError(f"a {codec} chunk of {len(data)} bytes is cut short")
    return bytes(inflated)


def _with_guards(codecs: list[Any], limit: int) -> list[Any]:
    guarded: list[Any] = []
    for codec in codecs:
        name = codec["name"] if isinstance(codec, dict) else codec
        if name == "gzip":
            guarded.append(BoundedGzip(limit=limit))
        else:
            guarded += [codec, ChunkGuard(codec=name, limit=limit)] if name in ("blosc", "zstd") else [codec]
    return guarded


@dataclass(frozen=True)
class ChunkGuard(BytesBytesCodec):
    """A codec that changes nothing and checks what the compressor before it wrote."""

    codec: str
    limit: int

    is_fixed_size = True

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:  # noqa: ARG002  # zarr's
        _check_whole(self.codec, chunk_bytes.as_numpy_array().data.cast("B"), self.limit)
        return chunk_bytes

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:  # noqa: ARG002  # zarr's
        """Return the size unchanged."""
        return input_byte_length


@dataclass(frozen=True)
class BoundedGzip(BytesBytesCodec):
    """Reads what zarr's own gzip codec wrote, up to a chunk's size."""

    limit: int

    is_fixed_size = False

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        data = await asyncio.to_thread(inflate, chunk_bytes.to_bytes(), self.limit, codec="gzip")
        return chunk_spec.prototype.buffer.from_bytes(data)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Say that it is not known before."""
        raise NotImplementedError


def _check_whole(codec: str, view: memoryview, limit: int) -> None:
    check_chunk(codec, bytes(view[:_HEADER_BYTES]), len(view), limit)
    if codec == "zstd":
        check_zstd(view, limit)


class _GuardedCompressor(numcodecs.abc.Codec):  # type: ignore[misc]  # numcodecs has no types
    """A Zarr v2 compressor that checks a chunk before it is decoded."""

    codec_id = "unet_deploy_guarded"  # zarr looks for one on the class; it is registered nowhere

    def __init__(self, compressor: Any, limit: int) -> None:
        self._compressor = compressor
        self._limit = limit

    def decode(self, buf: Any, out: Any = None) -> Any:
        view = memoryview(buf).cast("B")
        codec = self._compressor.codec_id
        if codec in ("gzip", "zlib"):
            return numcodecs.compat.ndarray_copy(inflate(view, self._limit, codec=codec), out)
        _check_whole(codec, view, self._limit)
        return self._compressor.decode(buf, out)

    def encode(self, buf: Any) -> Any:
        return self._compressor.encode(buf)

    def get_config(self) -> Any:
        return self._compressor.get_config()
