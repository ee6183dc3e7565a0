"""The chunks of an array behind an address.

A chunk is absent only as long as the array's own document is there: of a volume that was moved or deleted, every chunk
would read as the fill value. Anything but "not found" is an error, after the tries of `_remote`.
"""

from __future__ import annotations

from typing import Any

from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from unet_deploy.runtime._chunk_guard import DamagedChunkError


class RemoteChunkStore(ObjectStore[Any]):
    """An obstore store for zarr; `document` is the key of the array's own document."""

    def __init__(self, store: Any, *, read_only: bool = False, document: str = "") -> None:
        super().__init__(store, read_only=read_only)
        self._document = document

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes at a key, None only if there is nothing there and the array still is."""
        value = await super().get(key, prototype, byte_range)
        if value is None:
            if not await self.exists(self._document):
                raise DamagedChunkError(f"{self._document} is no longer there")
            return None
        wanted = byte_range.end - byte_range.start if isinstance(byte_range, RangeByteRequest) else 1
        if len(value) < wanted:
            raise DamagedChunkError(f"{key} is cut short: {len(value)} bytes came, {wanted} were expected")
        return value
