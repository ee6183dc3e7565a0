"""The chunks of an array behind an address.

A chunk is absent only as long as the array's own document is there: of a volume that was moved or deleted, every chunk
would read as the fill value. Anything but "not found" is an error, after the tries of `_remote`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import ObjectStore

from unet_deploy.runtime._chunk_guard import DamagedChunkError
from unet_deploy.runtime._chunk_store import require_bounded, require_whole
from unet_deploy.runtime._remote import is_broken_off
from unet_deploy.runtime._retry import read_again_async


class RemoteChunkStore(ObjectStore[Any]):
    """An obstore store for zarr, read-only; `document` is the key of the array's own document.

    Nothing longer than `most_bytes` is fetched.
    """

    def __init__(self, store: Any, *, read_only: bool = True, document: str, most_bytes: int) -> None:
        super().__init__(store, read_only=read_only)
        self._document = document
        self._most_bytes = most_bytes

    def with_read_only(self, read_only: bool = False) -> RemoteChunkStore:
        """Return the same store; it is never written to, whatever is asked."""
        assert read_only
        return RemoteChunkStore(self.store, document=self._document, most_bytes=self._most_bytes)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return the bytes at a key, None only if there is nothing there and the array still is."""
        if isinstance(byte_range, RangeByteRequest):
            wanted = byte_range.end - byte_range.start
            require_bounded(key, wanted, self._most_bytes)
        else:
            wanted = 1
        read = partial(super().get, key, prototype, byte_range)
        if byte_range is None:
            read = partial(self._get_whole, key, prototype)
        value = await read_again_async(read, is_passing=is_broken_off)
        if value is None:
            if not await self.exists(self._document):
                raise DamagedChunkError(f"{self._document} is no longer there")
            return None
        require_whole(key, len(value), wanted)
        return value

    async def _get_whole(self, key: str, prototype: BufferPrototype) -> Buffer | None:
        try:
            answer = await self.store.get_async(key)
        except FileNotFoundError:
            return None
        require_bounded(key, answer.meta["size"], self._most_bytes)
        return prototype.buffer.from_bytes(bytes(await answer.bytes_async()))
