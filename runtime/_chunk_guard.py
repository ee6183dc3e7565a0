"""What stands between a damaged or hostile chunk and its decoder.

zarr and its codecs let three kinds of damage pass, each seen with zarr 3.1 and numcodecs 0.16:

1. A shard of no bytes, or one that ends before a chunk does, reads as the fill value: `ChunkStore` refuses it.
2. A truncated Blosc chunk decodes to whatever stands behind it in memory: its header must declare the bytes there are.
3. A chunk that declares more than its array says is inflated before anyone counts: Blosc, zstd and LZ4 headers are
   read first. gzip and zlib declare nothing and are not bounded here.

The guard is a codec of zarr's own kind, placed behind each compressor, so it also stands inside shards.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

import numcodecs
from zarr.abc.codec import BytesBytesCodec
from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from unet_deploy.runtime._zarr_metadata import ITEM_BYTES, ArrayMetadata, Document

_HEADER_BYTES = 32
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


class DamagedChunkError(ValueError):
    """A chunk that must not be decoded; `Volume.read` says it as a ReadError."""


class ChunkStore(LocalStore):
    """A local store in which only a file that does not exist is an absent chunk."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the bytes at a key, None only if there is nothing there."""
        value = await super().get(key, prototype, byte_range)
        if value is None:
            if (self.root / key).exists():
                raise DamagedChunkError(f"{key} is there, but is no file")
            return None
        wanted = byte_range.end - byte_range.start if isinstance(byte_range, RangeByteRequest) else 1
        if len(value) < wanted:
            raise DamagedChunkError(f"{key} is cut short: {len(value)} bytes came, {wanted} were expected")
        return value


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
        declared = _zstd_declared(header)
    elif codec == "lz4" and length >= 4:
        (declared,) = struct.unpack_from("<I", header)
    if declared is not None and declared > limit:
        raise DamagedChunkError(f"a {codec} chunk declares {declared:,} bytes, at most {limit:,} were expected")


def _zstd_declared(header: bytes) -> int | None:
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


def _with_guards(codecs: list[Any], limit: int) -> list[Any]:
    guarded: list[Any] = []
    for codec in codecs:
        name = codec["name"] if isinstance(codec, dict) else codec
        guarded += [codec, ChunkGuard(codec=name, limit=limit)] if name in ("blosc", "zstd") else [codec]
    return guarded


@dataclass(frozen=True)
class ChunkGuard(BytesBytesCodec):
    """A codec that changes nothing and checks what the compressor before it wrote."""

    codec: str
    limit: int

    is_fixed_size = True

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:  # noqa: ARG002  # zarr's
        check_chunk(self.codec, chunk_bytes[:_HEADER_BYTES].to_bytes(), len(chunk_bytes), self.limit)
        return chunk_bytes

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:  # noqa: ARG002  # zarr's
        """Return the size unchanged."""
        return input_byte_length


class _GuardedCompressor(numcodecs.abc.Codec):  # type: ignore[misc]  # numcodecs has no types
    """A Zarr v2 compressor that checks a chunk before it is decoded."""

    codec_id = "unet_deploy_guarded"  # zarr looks for one on the class; it is registered nowhere

    def __init__(self, compressor: Any, limit: int) -> None:
        self._compressor = compressor
        self._limit = limit

    def decode(self, buf: Any, out: Any = None) -> Any:
        view = memoryview(buf).cast("B")
        check_chunk(self._compressor.codec_id, bytes(view[:_HEADER_BYTES]), len(view), self._limit)
        return self._compressor.decode(buf, out)

    def encode(self, buf: Any) -> Any:
        return self._compressor.encode(buf)

    def get_config(self) -> Any:
        return self._compressor.get_config()
