"""The cache of decoded chunks: each decoded once, within a bound, and never served for another volume."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_deploy.runtime._chunk_reading import boxes_of, cut_box
from unet_deploy.runtime.chunk_cache import ENTRY_BYTES, ChunkCache, Place, compact

Pixels = npt.NDArray[Any]
SIZE = 1000
COST = SIZE + ENTRY_BYTES
PLENTY = 10**9


def pixels_of(place: Place) -> Pixels:
    """Return the chunk that a place has: no two alike, none of a single value."""
    return (np.arange(SIZE) + sum(place)).astype(np.uint8)


class Reader:
    """Reads places through a cache, and says what it decoded."""

    def __init__(self, cache: ChunkCache, token: str = "a") -> None:
        self.cache, self.token = cache, token
        self.decoded: list[Place] = []

    def decode(self, places: Sequence[Place]) -> Iterator[tuple[Place, Pixels]]:
        for place in places:
            self.decoded.append(place)
            yield place, pixels_of(place)

    def read(self, *numbers: int, cache_bytes: int = PLENTY, spent: Sequence[int] = (), each: int = 1) -> list[Place]:
        """Read chunks, check them, and return those that were decoded now."""
        before, got = len(self.decoded), {}

        def use(place: Place, pixels: Pixels) -> None:
            assert place not in got
            got[place] = pixels.copy()

        def decode(places: Sequence[Place]) -> Iterator[tuple[Place, Pixels]]:
            for place, pixels in self.decode(places):
                use(place, pixels)
                yield place, pixels

        self.cache.fetch(
            (self.token, (0,)),
            [(n,) for n in numbers],
            decode=decode,
            use=use,
            cache_bytes=cache_bytes,
            is_spent=lambda place: place[0] in spent,
            each=each,
        )
        assert {*got} == {(n,) for n in numbers}
        for place, pixels in got.items():
            np.testing.assert_array_equal(pixels, pixels_of(place))
        return self.decoded[before:]


def test_a_chunk_is_decoded_once() -> None:
    reader = Reader(ChunkCache())
    assert reader.read(1, 2, 3) == [(1,), (2,), (3,)]
    assert reader.read(2, 4, 3) == [(4,)]
    counts = reader.cache.counts
    assert (counts.decoded, counts.served, counts.held, counts.held_bytes) == (4, 2, 4, 4 * COST)


def test_what_was_used_longest_ago_goes_first() -> None:
    reader = Reader(ChunkCache())
    reader.read(1, 2, 3, cache_bytes=3 * COST)
    reader.read(1, cache_bytes=3 * COST)
    reader.read(4, cache_bytes=3 * COST)  # 2 goes
    assert reader.read(1, 3, 4, cache_bytes=3 * COST) == []
    assert reader.read(2, cache_bytes=3 * COST) == [(2,)]
    assert reader.cache.counts.held_bytes == 3 * COST


def test_one_chunk_always_fits() -> None:
    reader = Reader(ChunkCache())
    reader.read(1, 2, cache_bytes=1)
    assert reader.cache.counts.held == 1
    assert reader.read(2, cache_bytes=1) == []
    assert reader.read(1, cache_bytes=1) == [(1,)]


@given(st.lists(st.lists(st.integers(0, 12), unique=True, min_size=1), max_size=12), st.integers(1, 9))
def test_the_bound_holds_whatever_is_read(reads: list[list[int]], room: int) -> None:
    reader = Reader(ChunkCache())
    for numbers in reads:
        reader.read(*numbers, cache_bytes=room * COST)
        assert reader.cache.counts.held_bytes <= room * COST
        assert reader.read(numbers[-1], cache_bytes=room * COST) in ([], [(numbers[-1],)])
    counts = reader.cache.counts
    assert counts.decoded + counts.served == sum(map(len, reads)) + len(reads)


def test_what_is_spent_is_not_kept() -> None:
    reader = Reader(ChunkCache())
    reader.read(1, 2, spent=[1])
    assert reader.cache.counts.held == 1
    assert reader.read(2, spent=[2]) == []  # served, and gone
    assert reader.cache.counts.held_bytes == 0
    assert reader.read(2) == [(2,)]


def test_no_volume_is_served_anothers_chunks() -> None:
    cache = ChunkCache()
    first, again = Reader(cache, "first"), Reader(cache, "opened again")
    first.read(1, 2)
    assert again.read(1) == [(1,)]
    cache.forget("first")
    assert cache.counts.held == 1
    assert again.read(1) == []
    assert first.read(1) == [(1,)]
    cache.reset()
    assert cache.counts.held == cache.counts.held_bytes == cache.counts.decoded == cache.counts.served == 0


def test_channels_that_the_store_divides_count_each() -> None:
    reader = Reader(ChunkCache())
    reader.read(1, each=3)
    reader.read(1, each=3)
    assert (reader.cache.counts.decoded, reader.cache.counts.served) == (3, 3)


def test_a_single_value_is_kept_without_pixels() -> None:
    cache = ChunkCache()
    into = np.zeros((2, 3), np.float32)

    def use(place: Place, pixels: Pixels) -> None:
        into[:] = pixels[:2, :3] if pixels.ndim else pixels

    def fetch() -> None:
        cache.fetch(
            ("a", ()),
            [(0,)],
            decode=lambda places: ((place, np.full((500, 500), 7, np.float32)) for place in places),
            use=use,
            cache_bytes=PLENTY,
            is_spent=lambda place: False,
        )

    fetch()
    assert cache.counts.held_bytes == ENTRY_BYTES
    into[:] = 0
    fetch()
    assert (into == 7).all()
    assert cache.counts.served == 1


@pytest.mark.parametrize(
    ("values", "is_one"),
    [
        ([5, 5, 5], True),
        ([5, 5, 6], False),
        ([5, 4, 5, 5, 5], False),
        ([0.0, -0.0], False),
        ([np.nan, np.nan], True),
        ([True, True], True),
        ([np.float16(1), np.float16(1)], True),
    ],
)
def test_single_values_are_told_to_the_bit(values: list[Any], is_one: bool) -> None:
    pixels = np.array(values)
    kept = compact(pixels)
    assert (kept.ndim == 0) is is_one
    assert kept.dtype == pixels.dtype
    np.testing.assert_array_equal(np.broadcast_to(kept, pixels.shape), pixels)
    if pixels.dtype.kind == "f":
        assert np.signbit(np.broadcast_to(kept, pixels.shape)).tolist() == np.signbit(pixels).tolist()
    assert not kept.flags.writeable
    assert not np.shares_memory(kept, pixels)


# Threads.


def test_two_threads_decode_a_chunk_once() -> None:
    cache, is_decoding, may_go_on = ChunkCache(), threading.Event(), threading.Event()

    class Slow(Reader):
        def decode(self, places: Sequence[Place]) -> Iterator[tuple[Place, Pixels]]:
            is_decoding.set()
            assert may_go_on.wait(10)
            yield from super().decode(places)

    slow, other = Slow(cache), Reader(cache)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(slow.read, 1, 2, spent=[2])
        assert is_decoding.wait(10)
        second = pool.submit(other.read, 1, 2, 3, spent=[1])
        while len(other.decoded) < 1:  # it decodes its own before it waits
            pass
        may_go_on.set()
        assert first.result(10) == [(1,), (2,)]
        assert second.result(10) == [(3,)]
    assert (cache.counts.decoded, cache.counts.served) == (3, 2)
    assert cache.counts.held == 1  # 2 was spent for the first, 1 for the one that waited


def test_one_waits_not_for_a_thread_that_failed() -> None:
    cache, is_decoding, may_go_on = ChunkCache(), threading.Event(), threading.Event()

    class Failing(Reader):
        def decode(self, places: Sequence[Place]) -> Iterator[tuple[Place, Pixels]]:
            yield from super().decode(places[:1])
            is_decoding.set()
            assert may_go_on.wait(10)
            raise OSError("the disk is gone")

    failing, other = Failing(cache), Reader(cache)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(failing.read, 1, 2)
        assert is_decoding.wait(10)
        second = pool.submit(other.read, 1, 2, 3)
        while len(other.decoded) < 1:
            pass
        may_go_on.set()
        with pytest.raises(OSError, match="the disk is gone"):
            first.result(10)
        assert second.result(10) == [(3,), (2,)]
    assert other.read(1, 2, 3) == []


def test_many_threads_read_at_random_and_all_is_right() -> None:
    cache = ChunkCache()
    readers = [Reader(cache) for _ in range(6)]

    def run(reader: Reader) -> None:
        generator = np.random.default_rng(readers.index(reader))
        for _ in range(60):
            wanted = generator.choice(20, 5, replace=False).tolist()
            reader.read(*wanted, cache_bytes=8 * COST, spent=wanted[:1])

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(run, readers))
    counts = cache.counts
    assert counts.decoded == sum(len(reader.decoded) for reader in readers)
    assert counts.decoded + counts.served == 6 * 60 * 5
    assert counts.served > 0
    assert counts.held_bytes <= 8 * COST


# Which calls are made.

places = st.sets(st.tuples(*[st.integers(0, 4)] * 3), max_size=40)


@given(places)
def test_boxes_hold_each_place_once(wanted: set[Place]) -> None:
    boxes = boxes_of(sorted(wanted))
    held = [place for box in boxes for place in _product(box)]
    assert sorted(held) == sorted(wanted)
    assert len(boxes) <= len(wanted)


def test_what_makes_a_box_is_one_box() -> None:
    box = (range(2, 5), range(7), range(3, 4))
    assert boxes_of(_product(box)) == [box]
    corner = [(y, x) for y in range(6) for x in range(6) if y >= 2 or x >= 2]  # what the block before left
    assert len(boxes_of(corner)) == 2
    assert boxes_of([]) == []


@given(st.tuples(*[st.integers(1, 6)] * 3), st.integers(1, 40))
def test_boxes_are_cut_to_what_is_allowed(sizes: tuple[int, int, int], most: int) -> None:
    box = tuple(range(3, 3 + size) for size in sizes)
    parts = [*cut_box(box, most=most)]
    assert [place for part in parts for place in _product(part)] == _product(box)
    assert all(len(_product(part)) <= most for part in parts)


def _product(box: tuple[range, ...]) -> list[Place]:
    return [(i, *rest) for i in box[0] for rest in _product(box[1:])] if box else [()]
