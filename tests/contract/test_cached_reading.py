"""What is read through the cache of decoded chunks is what is read past it, and a run decodes each chunk about once.

Decodes are counted where the chunks lie: by what a store is asked for, not by the cache's own word.
"""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore

from tests.contract.volumes import AXES, KINDS, StoreKind, chunk_files, make_pixels, write_array
from unet_deploy.card import Network
from unet_deploy.errors import ReadError
from unet_deploy.geometry import Interval
from unet_deploy.runtime import segment
from unet_deploy.runtime.chunk_cache import CHUNKS, ENTRY_BYTES, CacheCounts
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.follow import Following
from unet_deploy.runtime.grey_values import sample_volume
from unet_deploy.runtime.plan import Extents, SegmentationPlan, plan_segmentation
from unet_deploy.runtime.scheduling import connect
from unet_deploy.runtime.statistics import measure_volume
from unet_deploy.runtime.volume import Volume, open_volume
from unet_deploy.runtime.windows import plan_window

MIB = 2**20
KIND = {kind.name: kind for kind in KINDS}
SMALL = Network(depth=2, base_width=4, in_channels=1, classes=2)
CASES = [(kind, AXES[index % len(AXES)]) for index, kind in enumerate(KINDS)] + [(KINDS[0], "tczyx")]


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    CHUNKS.reset()
    yield
    CHUNKS.reset()


class CountingStore(LocalStore):
    """Counts the chunks that are asked for: those in parts of shards and in whole shards too; not a shard's index."""

    def __init__(self, root: Path, *, per_object: int = 1) -> None:
        super().__init__(root, read_only=True)
        self.asked: Counter[str] = Counter()
        self._per_object = per_object

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        if "c/" in key and not isinstance(byte_range, SuffixByteRequest):
            self.asked[key] += 1 if isinstance(byte_range, RangeByteRequest) else self._per_object
        return await super().get(key, prototype, byte_range)


def counted(path: Path) -> tuple[Volume, CountingStore]:
    """Return a volume whose chunks are counted as they are asked for."""
    info = open_volume(path).info
    store = CountingStore(path, per_object=math.prod(info.shards or info.chunks) // math.prod(info.chunks))
    return Volume(info, zarr.open_array(store, mode="r"), path / "zarr.json"), store


def read_in_order(volume: Volume, plan: SegmentationPlan, *, threads: int = 1) -> None:
    """Read the windows of all blocks as a run does, and check each against the plain reading."""

    def read(index: int) -> None:
        block = plan.block(index)
        y = plan_window(plan.geometry, block.tiles_y, plan.extents.y).source
        x = plan_window(plan.geometry, block.tiles_x, plan.extents.x).source
        t = Interval(block.t, block.t + 1)
        spent = plan.spent(index)
        pixels = volume.read(t=t, z=block.z, y=y, x=x, cache_bytes=plan.cache_bytes, spent=spent)
        assert pixels.shape == (1, 1, block.z.size, y.size, x.size)
        sums.append(int(pixels.sum(dtype=np.int64)))

    sums: list[int] = []
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read, plan.order()))
    assert len(sums) == plan.n_blocks
    assert any(sums)


# The same pixels.


@pytest.mark.parametrize(("kind", "axes"), CASES, ids=[f"{kind.name}-{axes}" for kind, axes in CASES])
def test_windows_are_the_same_through_the_cache(tmp_path: Path, kind: StoreKind, axes: str) -> None:
    dtype = ("uint8", "int16", "float32")[len(axes) % 3]
    pixels = make_pixels(axes, dtype)
    volume = open_volume(write_array(tmp_path / "array", pixels, axes=axes, kind=kind), axes=axes)
    generator = np.random.default_rng(2)
    for turn in range(12):
        window = {}
        for axis in "tczyx":
            start, stop = sorted(generator.choice(volume.extent(axis) + 1, 2, replace=False).tolist())
            window[axis] = Interval(start, stop)
        channels = generator.permutation(range(window["c"].start, window["c"].stop)).tolist()
        channels += channels[:1] if turn % 3 == 0 else []
        asked: dict[str, Any] = {axis: window[axis] for axis in "tzyx"} | {"c": channels}
        spent = (window["y"].stop, window["x"].start) if turn % 2 else (0, 0)
        cached = volume.read(**asked, cache_bytes=(1, 2000, MIB)[turn % 3], spent=spent)
        np.testing.assert_array_equal(cached, volume.read(**asked))
        assert cached.dtype == np.dtype(dtype)
        assert cached.dtype.isnative
        assert cached.flags.c_contiguous
        assert cached.flags.writeable
        cached[...] = 0  # the caller's own: nothing that is kept may change
    whole = {axis: Interval(0, volume.extent(axis)) for axis in "tzyx"}
    for _ in range(2):
        np.testing.assert_array_equal(volume.read(**whole, cache_bytes=MIB), volume.read(**whole))
    assert CHUNKS.counts.served > 0


def test_absent_chunks_and_single_values_take_no_room(tmp_path: Path) -> None:
    pixels = np.full((5, 21, 19), 7, np.int16)
    pixels[2:4, 8:16, 7:14] = make_pixels("zyx", "int16")[2:4, 8:16, 7:14]
    pixels[4] = 9
    kind = KIND["v3-zstd"]
    volume = open_volume(write_array(tmp_path / "array", pixels, axes="zyx", kind=kind, fill_value=7))
    whole = {axis: Interval(0, volume.extent(axis)) for axis in "zyx"}
    for _ in range(2):
        np.testing.assert_array_equal(volume.read(**whole, cache_bytes=MIB)[0, 0], pixels)
    counts = CHUNKS.counts
    assert (counts.decoded, counts.served) == (3 * 3 * 3, 3 * 3 * 3)
    assert counts.held_bytes < 27 * 512 + 2 * 2 * 8 * 7 + 100


def test_a_volume_opened_again_is_read_again(tmp_path: Path) -> None:
    # It was still growing in the first run.
    path = write_array(tmp_path / "array", make_pixels("yx", "uint8"), axes="yx", kind=KIND["v3-zstd"])
    late = chunk_files(path)[0]
    content = late.read_bytes()
    late.unlink()
    window = {"z": Interval(0, 1), "y": Interval(0, 21), "x": Interval(0, 19)}
    first = open_volume(path)
    before = first.read(**window, cache_bytes=MIB)
    late.write_bytes(content)
    np.testing.assert_array_equal(first.read(**window, cache_bytes=MIB), before)
    again = open_volume(path)
    assert (again.read(**window, cache_bytes=MIB) != before).any()
    first.forget_chunks()
    assert CHUNKS.counts.held == 9
    np.testing.assert_array_equal(first.read(**window, cache_bytes=MIB), again.read(**window))


def test_a_volume_that_travelled_keeps_its_token(tmp_path: Path) -> None:
    path = write_array(tmp_path / "array", make_pixels("yx", "uint8"), axes="yx", kind=KIND["v3-zstd"])
    volume = open_volume(path)
    assert pickle.loads(pickle.dumps(volume)).token == volume.token
    assert open_volume(path).token != volume.token


def test_a_broken_chunk_is_an_error_every_time_and_nothing_of_it_is_kept(tmp_path: Path) -> None:
    path = write_array(tmp_path / "array", make_pixels("yx", "uint8"), axes="yx", kind=KIND["v3-zstd"])
    volume = open_volume(path)
    broken = chunk_files(path)[0]
    content = broken.read_bytes()
    broken.write_bytes(content[:10])
    window = {"z": Interval(0, 1), "y": Interval(1, 21), "x": Interval(0, 19)}
    for _ in range(2):
        with pytest.raises(ReadError, match=r"the window y 1:21, x 0:19 cannot be read\n  in .*array\n  .*"):
            volume.read(**window, cache_bytes=MIB)
    broken.write_bytes(content)
    np.testing.assert_array_equal(volume.read(**window, cache_bytes=MIB), volume.read(**window))


def test_nothing_is_kept_of_a_volume_that_vanished(tmp_path: Path) -> None:
    # Its chunks read as the fill value; should it come back, these must not be served.
    path = write_array(tmp_path / "array", make_pixels("yx", "uint8"), axes="yx", kind=KIND["v3-zstd"])
    volume = open_volume(path)
    path.rename(tmp_path / "away")
    window = {"z": Interval(0, 1), "y": Interval(0, 21), "x": Interval(0, 19)}
    with pytest.raises(ReadError, match="is no longer there"):
        volume.read(**window, cache_bytes=MIB)
    assert CHUNKS.counts.held == 0
    (tmp_path / "away").rename(path)
    np.testing.assert_array_equal(volume.read(**window, cache_bytes=MIB), volume.read(**window))


# Decoded about once.

STORES = {
    "planes": ((3, 1400, 1700), (1, 256, 256), None),
    "large": ((2, 2100, 2100), (1, 1024, 1024), None),
    "cubes": ((70, 420, 460), (64, 64, 64), None),
    "deep": ((100, 420, 260), (100, 64, 64), None),
    "shards": ((5, 1100, 1200), (1, 64, 64), (2, 256, 256)),
}


def write_volume(path: Path, name: str) -> Path:
    shape, chunks, shards = STORES[name]
    array = zarr.create_array(str(path), shape=shape, chunks=chunks, shards=shards, dtype="uint8")
    array[...] = np.random.default_rng(0).integers(0, 8, shape, dtype=np.uint8)
    return path


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", STORES)
def test_a_run_decodes_each_chunk_about_once(tmp_path: Path, name: str, threads: int) -> None:
    volume, store = counted(write_volume(tmp_path / "volume", name))
    shape, chunks, shards = STORES[name]
    planned = plan_segmentation(
        SMALL, Extents(t=1, z=shape[0], y=shape[1], x=shape[2]), source_chunk=chunks, source_shard=shards
    )
    plan = replace(planned, block_shape=planned.grid.unit)  # many small blocks, as a large volume has of large ones
    assert plan.n_blocks >= 18
    read_in_order(volume, plan, threads=threads)
    n_chunks = math.prod(-(-n // c) for n, c in zip(shape, chunks, strict=True))
    assert n_chunks <= store.asked.total() <= (1.1 if threads == 1 else 1.25) * n_chunks  # two may run out of order
    assert CHUNKS.counts.decoded == store.asked.total()
    assert CHUNKS.counts.served > 0
    assert CHUNKS.counts.held_bytes <= plan.cache_bytes


def test_without_a_cache_they_are_decoded_for_each_window(tmp_path: Path) -> None:
    volume, store = counted(write_volume(tmp_path / "volume", "large"))
    for _ in range(2):
        volume.read(z=Interval(0, 1), y=Interval(0, 100), x=Interval(0, 100))
    assert store.asked.total() == 2
    assert CHUNKS.counts.decoded == CHUNKS.counts.held == 0


NEEDED = 150 * 170 * 2 + 9 * ENTRY_BYTES


@pytest.mark.parametrize("room", [NEEDED, NEEDED - 1])
def test_a_pass_over_everything_keeps_it_only_if_all_of_it_fits(tmp_path: Path, room: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 99, (150, 170), dtype=np.uint16)
    path = write_array(tmp_path / "v", pixels, axes="yx", kind=KIND["v3-zstd"], chunks=(64, 64))
    volume, store = counted(path)
    fits = room == NEEDED
    assert volume.cache_for_all((0,), room) == (room if fits else 0)
    sampled = sample_volume(volume, (0,), None, sample_values=None, cache_bytes=room)
    assert sampled.pixels == 150 * 170
    assert CHUNKS.counts.held == (9 if fits else 0)
    with connect(None) as client:
        measured = measure_volume(open_volume(path), (0,), (1, 99), client, cache_bytes=room)
    assert measured.ranges == (tuple(np.percentile(pixels, (1, 99), method="inverted_cdf")),)
    assert CHUNKS.counts.decoded == (18 if fits else 0)
    CHUNKS.forget(volume.token)
    sample_volume(volume, (0,), None, sample_values=None, cache_bytes=room)
    volume.read(z=Interval(0, 1), y=Interval(0, 150), x=Interval(0, 170), cache_bytes=room)
    assert store.asked.total() == (18 if fits else 27)


def test_a_whole_segmentation_decodes_each_chunk_about_once(tmp_path: Path, fake_artifact: Any) -> None:
    # The drift guard looks at the whole of so small a volume, and the blocks are served what it decoded.
    pixels = np.random.default_rng(0).integers(0, 255, (2, 300, 400), dtype=np.uint8)
    path = write_array(tmp_path / "v.zarr", pixels, axes="zyx", kind=KIND["v3-zstd"], chunks=(1, 64, 64))
    result = segment(
        path,
        model=fake_artifact(),
        engine_factory=lambda artifact: FakeEngine(artifact.card.network),
        output=tmp_path / "out.zarr",
        tile=(60, 60),
    )
    n_chunks = 2 * 5 * 7
    counts = CHUNKS.counts
    assert result.plan.n_blocks >= 2
    assert n_chunks <= counts.decoded <= 1.1 * n_chunks
    assert counts.served >= n_chunks
    assert counts.held == 0  # the run is over


def test_nothing_is_kept_of_a_volume_that_is_followed(tmp_path: Path, fake_artifact: Any) -> None:
    # A chunk that is written again after it was read must not be served to a later block.
    pixels = np.random.default_rng(0).integers(0, 255, (2, 100, 120), dtype=np.uint8)
    path = write_array(tmp_path / "v.zarr", pixels, axes="zyx", kind=KIND["v3-zstd"], chunks=(1, 64, 64))
    segment(
        path,
        model=fake_artifact(),
        engine_factory=lambda artifact: FakeEngine(artifact.card.network),
        output=tmp_path / "out.zarr",
        follow=Following(timeout_s=30.0),
    )
    assert CHUNKS.counts == CacheCounts()
