"""A volume's percentiles are those of all its pixels, whatever its chunks; each chunk is read once a pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.contract.volumes import AXES, DTYPES, KINDS, make_pixels, write_array
from unet_deploy.errors import ReadError, ValueRangeError
from unet_deploy.percentiles import PercentileSearch, percentile_range
from unet_deploy.runtime import Progress, Volume, open_volume
from unet_deploy.runtime.scheduling import connect
from unet_deploy.runtime.statistics import (
    PIECE_VALUES,
    Counting,
    bytes_to_measure,
    count_piece,
    measure_volume,
    piece_shape,
)


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connect(None) as client:
        yield client


def channel_of(pixels: Any, axes: str, channel: int) -> Any:
    return pixels if "c" not in axes else pixels.take(channel, axis=axes.index("c"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", AXES)
def test_they_are_those_of_all_pixels(tmp_path: Path, client: Any, axes: str, dtype: str) -> None:
    pixels = make_pixels(axes, dtype)
    volume = open_volume(write_array(tmp_path / "v.zarr", pixels, axes=axes, kind=KINDS[0]), axes=axes)
    channels = (2, 0, 2) if "c" in axes else (0,)
    came = measure_volume(volume, channels, (1, 99.8), client)
    assert came.percentiles == (1, 99.8)
    assert came.ranges == tuple(percentile_range(channel_of(pixels, axes, c), (1, 99.8)) for c in channels)
    assert all(low < high for low, high in came.ranges)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_how_they_are_stored_does_not_matter(tmp_path: Path, client: Any, kind: Any) -> None:
    pixels = make_pixels("czyx", "float32")
    volume = open_volume(write_array(tmp_path / "v.zarr", pixels, axes="czyx", kind=kind), axes="czyx")
    came = measure_volume(volume, (1,), (10, 75), client).ranges
    assert came == (percentile_range(pixels[1], (10, 75)),)


def test_any_pieces_give_the_same(tmp_path: Path) -> None:
    pixels = make_pixels("zyx", "float32")
    volume = open_volume(write_array(tmp_path / "v.zarr", pixels, axes="zyx", kind=KINDS[0]))
    for piece in ((1, 1, 21, 19), (1, 2, 8, 7), (1, 5, 3, 19)):
        search = PercentileSearch.begin("float32", pixels.size, (1, 99.8))
        while not search.is_done:
            counting = Counting(volume=volume, channels=(0,), searches=(search,), piece=piece)
            done = [count_piece(counting, index) for index in range(counting.n_pieces)]
            assert sum(n for n, _ in done) == pixels.size
            search = search.narrowed(sum(counts[0] for _, counts in done))
        assert search.values == percentile_range(pixels, (1, 99.8))


def test_absent_chunks_count_as_their_fill_value(tmp_path: Path, client: Any) -> None:
    array = zarr.create_array(
        tmp_path / "v.zarr", shape=(4, 50, 50), chunks=(1, 50, 50), dtype="uint8", fill_value=9, overwrite=True
    )
    array[0] = 100
    assert measure_volume(open_volume(tmp_path / "v.zarr"), (0,), (70, 80), client).ranges == ((9, 100),)


def test_a_level_of_its_own(tmp_path: Path, client: Any) -> None:
    from unet_deploy.runtime.ome import LevelTransform, multiscales_attributes

    levels = [LevelTransform(path=str(i), scale=(2.0**i, 2.0**i), translation=None) for i in range(2)]
    attributes = multiscales_attributes(
        version="0.5", name="v", axes="yx", units=(None, None), levels=levels, type_="mean"
    )
    root = zarr.create_group(tmp_path / "v.zarr", attributes=attributes)
    for level in range(2):
        root.create_array(str(level), data=np.full((8 >> level, 8 >> level), level, np.uint8))
    for level in range(2):
        volume = open_volume(tmp_path / "v.zarr", level=level)
        assert measure_volume(volume, (0,), (1, 99), client).ranges == ((level, level),)


def test_progress_counts_pieces_and_pixels(tmp_path: Path, client: Any) -> None:
    pixels = np.zeros((3, 2048, 2048), np.float32)
    zarr.create_array(tmp_path / "v.zarr", shape=pixels.shape, chunks=(1, 1024, 1024), dtype="float32")
    said: list[Progress] = []
    measure_volume(open_volume(tmp_path / "v.zarr"), (0,), (1, 99), client, progress=said.append)
    assert {p.stage for p in said} == {"statistics"}
    assert [(p.done, p.total) for p in said] == [(i + 1, 6) for i in range(6)]  # two passes of a plane each
    assert said[-1].pixels == 2 * pixels.size
    assert [p.seconds for p in said] == sorted(p.seconds for p in said)


# What is read.


def volume_of(extents: tuple[int, ...], chunks: tuple[int, ...], shards: tuple[int, ...] | None, store: Path) -> Volume:
    zarr.create_array(store, shape=extents, chunks=chunks, shards=shards, dtype="uint8", overwrite=True)
    return open_volume(store, axes="tczyx")


@given(data=st.data())
@settings(max_examples=40)
def test_every_chunk_lies_in_one_piece(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    sizes = [data.draw(st.integers(1, limit)) for limit in (6, 3, 40, 6000, 6000)]
    chunks = tuple(data.draw(st.integers(1, min(limit, size))) for size, limit in zip(sizes, (3, 3, 20, 900, 900)))  # noqa: B905 - the same length
    per_shard = data.draw(st.none() | st.integers(1, 3))
    shards = None if per_shard is None else tuple(per_shard * chunk for chunk in chunks)
    info = volume_of(tuple(sizes), chunks, shards, tmp_path_factory.getbasetemp() / "v.zarr").info
    piece = piece_shape(info, n_channels=2)
    by_axis = dict(zip("tczyx", zip(sizes, chunks, strict=True), strict=True))
    for axis, size in zip("tzyx", piece, strict=True):
        extent, chunk = by_axis[axis]
        assert size % chunk == 0 or size == extent
        assert 1 <= size <= extent
    unit = np.prod([min(by_axis[axis][1], by_axis[axis][0]) for axis in "tzyx"])
    assert 2 * np.prod(piece) <= max(PIECE_VALUES, 2 * unit)


def test_pieces_cover_the_volume_once(tmp_path: Path) -> None:
    volume = volume_of((2, 1, 5, 30, 40), (1, 1, 2, 8, 16), None, tmp_path / "v.zarr")
    search = PercentileSearch.begin("uint8", 1, (0, 100))
    counting = Counting(volume=volume, channels=(0,), searches=(search,), piece=(1, 2, 8, 16))
    times = np.zeros((2, 5, 30, 40), int)
    for index in range(counting.n_pieces):
        place = counting.place(index)
        times[tuple(place[axis].slice for axis in "tzyx")] += 1
    assert (times == 1).all()
    assert counting.n_pieces == 2 * 3 * 4 * 3


def test_small_chunks_are_read_together_and_large_ones_alone(tmp_path: Path) -> None:
    small = volume_of((1, 1, 64, 4096, 4096), (1, 1, 8, 64, 64), None, tmp_path / "v.zarr").info
    assert np.prod(piece_shape(small, n_channels=1)) == PIECE_VALUES
    large = volume_of((1, 1, 64, 4096, 4096), (1, 1, 64, 2048, 2048), None, tmp_path / "v.zarr").info
    assert piece_shape(large, n_channels=1) == (1, 64, 2048, 2048)
    sharded = volume_of((1, 1, 64, 4096, 4096), (1, 1, 1, 64, 64), (1, 1, 1, 2048, 2048), tmp_path / "v.zarr").info
    assert piece_shape(sharded, n_channels=1) == (1, 1, 2048, 2048)
    assert piece_shape(replace(sharded, shards=(1, 1, 64, 4096, 4096)), n_channels=1)[:3] == (1, 1, 1024)


@pytest.mark.parametrize(("dtype", "passes"), [("uint8", 1), ("uint16", 1), ("float32", 2)])
def test_what_will_be_read_is_said(tmp_path: Path, dtype: str, passes: int) -> None:
    zarr.create_array(tmp_path / "v.zarr", shape=(3, 2, 10, 10), chunks=(1, 1, 10, 10), dtype=dtype)
    volume = open_volume(tmp_path / "v.zarr", axes="czyx")
    assert bytes_to_measure(volume, (0, 2, 0)) == passes * 2 * 200 * np.dtype(dtype).itemsize


# What is refused.


def test_a_chunk_that_cannot_be_read_ends_it(tmp_path: Path, client: Any) -> None:
    pixels = make_pixels("zyx", "uint8")
    store = write_array(tmp_path / "v.zarr", pixels, axes="zyx", kind=KINDS[0])
    chunk = next(path for path in sorted(store.rglob("*")) if path.is_file() and not path.name.startswith("."))
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(ReadError, match=r"^the window .* cannot be read\n"):
        measure_volume(open_volume(store), (0,), (1, 99), client)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_refused_with_its_place(tmp_path: Path, client: Any, bad: float) -> None:
    pixels = make_pixels("zyx", "float32")
    pixels[3, 4, 5] = bad
    store = write_array(tmp_path / "v.zarr", pixels, axes="zyx", kind=KINDS[0])
    with pytest.raises(
        ValueRangeError,
        match=r"^grey values that are no .*\n  .*v\.zarr at z 0:5, y 0:21, x 0:19 holds NaN or infinity\n",
    ):
        measure_volume(open_volume(store), (0,), (1, 99), client)
