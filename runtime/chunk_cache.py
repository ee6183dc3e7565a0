"""Decoded chunks that will be needed again, kept within a bound; one cache for the process.

1. A chunk is known by its volume's token and its place. A volume has a new token each time it is opened, so what was
   read in one run, absent chunks among it, is never served in another.
2. Two threads that want one chunk decode it once: the first does, the other waits for it.
3. Beyond the bound, what was used longest ago goes first. What the reader says is needed no more is not kept at all.
4. A chunk of a single value is kept as that value.

Nobody waits while others wait for it: a thread first decodes all that it has promised.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[Any]
Place = tuple[int, ...]
Source = tuple[Hashable, Hashable]
Key = tuple[Source, Place]

ENTRY_BYTES = 512
"""What an entry costs beside its pixels; bounds how many single values are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheCounts:
    """How many chunks were decoded, and how many were served without; what is held now."""

    decoded: int = 0
    served: int = 0
    held: int = 0
    held_bytes: int = 0


@dataclass(slots=True, eq=False)
class _Promise:
    """A chunk that some thread is decoding. `pixels` stays None if that thread failed."""

    done: threading.Event = field(default_factory=threading.Event)
    pixels: Pixels | None = None
    waiting: int = 0


class ChunkCache:
    """A bounded cache of decoded chunks; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[Key, Pixels] = OrderedDict()
        self._promised: dict[Key, _Promise] = {}
        self._bytes = 0
        self._decoded = 0
        self._served = 0

    @property
    def counts(self) -> CacheCounts:
        """What was done since the process began, or since `reset`."""
        with self._lock:
            return CacheCounts(decoded=self._decoded, served=self._served, held=len(self._kept), held_bytes=self._bytes)

    def reset(self) -> None:
        """Forget all chunks and counts; chunks that are being decoded come in later."""
        with self._lock:
            self._kept.clear()
            self._bytes = self._decoded = self._served = 0

    def forget(self, token: Hashable) -> None:
        """Forget the chunks of a volume, when its run is over."""
        with self._lock:
            for key in [key for key in self._kept if key[0][0] == token]:
                self._remove(key)

    def fetch(
        self,
        source: Source,
        places: Sequence[Place],
        *,
        decode: Callable[[Sequence[Place]], Iterator[tuple[Place, Pixels]]],
        use: Callable[[Place, Pixels], None],
        cache_bytes: int,
        is_spent: Callable[[Place], bool],
        each: int = 1,
    ) -> None:
        """Give each chunk to `use` that is at hand or that another thread decodes, and have `decode` do the others.

        Parameters
        ----------
        source
            The volume's token, and what else tells its chunks apart: the channels chosen.
        places
            Which chunks, each once.
        decode
            Yields chunks as it has decoded and used them; they may be views, and are copied if they are kept.
        use
            Takes a chunk's pixels, which it must not keep; or an array of no axes, the value of all of them.
        cache_bytes
            What may be kept afterwards; at least one chunk always is.
        is_spent
            Whether a chunk will not be needed again.
        each
            How many chunks the store has at one place, for the counts.
        """
        left = [*places]
        while left:
            found, promised, mine = self._claim(source, left, each=each)
            try:
                for place, pixels in found:
                    use(place, pixels)
                for place, pixels in decode([*mine]) if mine else ():
                    self._publish((source, place), pixels, cache_bytes=cache_bytes, is_spent=is_spent(place), each=each)
                    del mine[place]
                assert not mine, mine
            finally:
                self._break(source, mine)
            left = []
            for place, promise in promised:
                promise.done.wait()
                if promise.pixels is None:  # the other thread failed; its reason is its own
                    left.append(place)
                else:
                    use(place, promise.pixels)
                    self._count_served(each)
        self._drop(source, filter(is_spent, places))  # not before: a block that runs late may come by meanwhile

    def _claim(
        self,
        source: Source,
        places: Iterable[Place],
        *,
        each: int,
    ) -> tuple[list[tuple[Place, Pixels]], list[tuple[Place, _Promise]], dict[Place, None]]:
        """Return what is here, what other threads will have, and what the caller must decode now."""
        found: list[tuple[Place, Pixels]] = []
        promised: list[tuple[Place, _Promise]] = []
        mine: dict[Place, None] = {}
        with self._lock:
            for place in places:
                key = (source, place)
                if key in self._kept:
                    found.append((place, self._kept[key]))
                    self._served += each
                    self._kept.move_to_end(key)
                elif key in self._promised:
                    self._promised[key].waiting += 1
                    promised.append((place, self._promised[key]))
                else:
                    self._promised[key] = _Promise()
                    mine[place] = None
        return found, promised, mine

    def _publish(self, key: Key, pixels: Pixels, *, cache_bytes: int, is_spent: bool, each: int) -> None:
        """Keep a chunk that was decoded, as far as anyone needs it."""
        with self._lock:
            self._decoded += each
            if is_spent and not self._promised[key].waiting:
                del self._promised[key]
                return
        kept = compact(pixels)
        with self._lock:
            promise = self._promised.pop(key)
            promise.pixels = kept
            promise.done.set()
            if is_spent:
                return
            self._kept[key] = kept
            self._bytes += _cost(kept)
            while self._bytes > cache_bytes and len(self._kept) > 1:
                self._remove(next(iter(self._kept)))

    def _break(self, source: Source, places: Iterable[Place]) -> None:
        """Tell whoever waits for what this thread could not decode."""
        with self._lock:
            for place in places:
                promise = self._promised.pop((source, place), None)
                if promise is not None:
                    promise.done.set()

    def _remove(self, key: Key) -> None:
        self._bytes -= _cost(self._kept.pop(key))

    def _drop(self, source: Source, places: Iterable[Place]) -> None:
        with self._lock:
            for place in places:
                if (source, place) in self._kept:
                    self._remove((source, place))

    def _count_served(self, each: int) -> None:
        with self._lock:
            self._served += each


def compact(pixels: Pixels) -> Pixels:
    """Return a read-only copy, of no axes if all pixels are one value to the bit.

    >>> compact(np.full((2, 3), 7)).shape, compact(np.array([0.0, -0.0])).shape
    ((), (2,))
    """
    whole = np.array(pixels, order="C")
    bits = whole.reshape(-1).view(f"u{whole.itemsize}")
    if bits[0] == bits[-1] and bits[0] == bits[bits.size // 2] and (bits == bits[0]).all():
        whole = whole.reshape(-1)[:1].copy().reshape(())
    whole.flags.writeable = False
    return whole


def _cost(kept: Pixels) -> int:
    return ENTRY_BYTES + (kept.nbytes if kept.ndim else 0)


CHUNKS = ChunkCache()
"""The one of this process."""
