"""Counted grey values are those of the pixels, in any parts; a sample is spread, repeatable and reads whole chunks."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.volumes import AXES, DTYPES, KINDS, make_pixels, write_array
from unet_deploy.errors import ReadError
from unet_deploy.runtime import open_volume
from unet_deploy.runtime.grey_values import (
    CHUNK_COST,
    PART_VALUES,
    SMALLEST_SAMPLE,
    TASK_VALUES,
    count_grey_values,
    plan_sampling,
    sample_volume,
    spread_evenly,
    values_of,
)
from unet_deploy.runtime.scheduling import connect


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connect(None) as client:
        yield client


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", ">u2"])
def test_each_small_integer_is_counted_by_itself(dtype: str) -> None:
    kind = np.iinfo(dtype)
    pixels = np.random.default_rng(0).integers(kind.min, kind.max, (2, 3, 500), endpoint=True).astype(dtype)
    pixels[0, 0, :2] = kind.min, kind.max
    found = count_grey_values(pixels)
    values, counts = np.unique(pixels, return_counts=True)
    assert np.array_equal(found.histogram[0], values)
    assert np.array_equal(found.histogram[1], counts)
    assert (found.low, found.high, found.not_finite, found.total) == (kind.min, kind.max, 0, pixels.size)


@pytest.mark.parametrize("size", [1, 2, 3, PART_VALUES - 1, PART_VALUES + 1, 2 * PART_VALUES + 5])
def test_bytes_are_counted_in_pairs_and_one_may_be_left(size: int) -> None:
    pixels = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    assert np.array_equal(count_grey_values(pixels).counts[:256], np.bincount(pixels, minlength=256))


@given(st.lists(st.floats(width=32), min_size=1, max_size=50))
def test_floats_are_counted_to_eight_bits(values: list[float]) -> None:
    pixels = np.array(values, np.float32)
    numbers = np.sort(pixels[np.isfinite(pixels)])
    found = count_grey_values(pixels)
    assert found.not_finite == pixels.size - numbers.size
    assert found.total == numbers.size
    if numbers.size:
        assert (found.low, found.high) == (numbers[0], numbers[-1])
        came = np.repeat(*found.histogram)
        assert np.all(np.abs(came - numbers) <= np.abs(numbers) / 256 + 1e-38)


def test_wider_numbers_are_counted_as_floats() -> None:
    values, counts = count_grey_values(np.array([0, 4095, 2**31, 2**31], np.uint32)).histogram
    assert values.tolist() == pytest.approx([0, 4088, 2**31])
    assert counts.tolist() == [1, 1, 2]
    assert count_grey_values(np.array([-1e300, 0.5])).not_finite == 1  # no float32
    assert count_grey_values(np.array([0.5, 0.25], np.float16)).low == 0.25


def test_values_sort_like_their_digits() -> None:
    for dtype in ("int16", "float32"):
        values = values_of(dtype)
        finite = values[np.isfinite(values)]
        assert np.all(np.diff(finite) > 0)


def test_counts_of_parts_add_up() -> None:
    pixels = np.random.default_rng(1).normal(100, 30, PART_VALUES + 77).astype(np.float32)
    pixels[5] = np.nan
    whole = count_grey_values(pixels)
    parts = count_grey_values(pixels[:1000]) + count_grey_values(pixels[1000:])
    assert np.array_equal(whole.counts, parts.counts)
    assert (whole.low, whole.high, whole.not_finite) == (parts.low, parts.high, parts.not_finite)
    assert (whole.low, whole.high) == (np.nanmin(pixels), np.nanmax(pixels))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axes", AXES)
def test_a_small_volume_is_counted_whole(tmp_path: Path, client: Any, axes: str, dtype: str) -> None:
    pixels = make_pixels(axes, dtype)
    volume = open_volume(write_array(tmp_path / "v.zarr", pixels, axes=axes, kind=KINDS[0]), axes=axes)
    channels = (2, 0, 2) if "c" in axes else (0,)
    came = sample_volume(volume, channels, client)
    chosen = pixels if "c" not in axes else pixels.take([0, 2], axis=axes.index("c"))
    assert came.is_whole
    assert np.array_equal(came.counts.counts, count_grey_values(chosen).counts)
    assert came.pixels == chosen.size // len(set(channels))


def test_a_sample_is_of_whole_chunks_spread_over_the_volume(tmp_path: Path, client: Any) -> None:
    array: Any = zarr.create_array(tmp_path / "v.zarr", shape=(40, 320, 320), chunks=(1, 32, 320), dtype="uint16")
    pixels = np.broadcast_to(np.arange(40, dtype=np.uint16)[:, None, None], array.shape).copy()
    pixels[:, ::2] += 100
    array[...] = pixels
    volume = open_volume(tmp_path / "v.zarr")
    plan = plan_sampling(volume, (0,), sample_values=20 * 320 * 320)
    assert plan.grid.box == (1, 320, 320)  # ten chunks, grown along y
    assert len(plan.boxes) == 20
    came = sample_volume(volume, (0,), client, sample_values=20 * 320 * 320)
    assert not came.is_whole
    assert came.pixels == 20 * 320 * 320
    planes = sorted({int(v) % 100 for v in came.counts.histogram[0]})
    assert planes == [*plan.boxes]
    assert max(np.diff(planes)) <= 5
    assert plan == plan_sampling(volume, (0,), sample_values=20 * 320 * 320)
    assert len(plan_sampling(volume, (0,), sample_values=4 * 320 * 320).boxes) == SMALLEST_SAMPLE
    assert len(plan_sampling(volume, (0,), sample_values=1).boxes) == 1  # each box is far more than was asked for
    assert len(plan_sampling(volume, (0,), sample_values=None).boxes) == 40


def test_boxes_are_counted_alike_by_tasks_of_several_and_here(tmp_path: Path, client: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 200, (2304, 2304), dtype=np.uint8)
    pixels[:600, :600] = 255
    array = zarr.create_array(str(tmp_path / "v.zarr"), shape=pixels.shape, chunks=(576, 576), dtype="uint8")
    array[:] = pixels
    volume = open_volume(tmp_path / "v.zarr")
    sampling = plan_sampling(volume, (0,), sample_values=None)
    box_values = math.prod(sampling.grid.box)
    assert len(sampling.boxes) > TASK_VALUES // box_values > 1  # several tasks, of several boxes
    for came in (sample_volume(volume, (0,), asked) for asked in (client, None)):
        assert np.array_equal(came.counts.counts, count_grey_values(pixels).counts)
        assert came.pixels == pixels.size


def test_tiny_chunks_are_not_all_read(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "v.zarr", shape=(2000, 2000), chunks=(4, 4), dtype="uint8")
    volume = open_volume(tmp_path / "v.zarr")
    plan = plan_sampling(volume, (0,), sample_values=2**26)
    n_chunks = len(plan.boxes) * -(-plan.grid.box[1] // 4) * -(-plan.grid.box[2] // 4)
    assert 2**26 // CHUNK_COST // 2 < n_chunks < 2**26 // CHUNK_COST * 1.1
    assert len(plan.boxes) >= SMALLEST_SAMPLE
    assert len(plan_sampling(volume, (0,), sample_values=2**21).boxes) == 2
    assert len(plan_sampling(volume, (0,), sample_values=None).boxes) == plan.grid.n_boxes


def test_places_are_in_step_with_no_grid() -> None:
    chosen = spread_evenly(64, 64 * 64)
    assert len(chosen) == 64
    assert len({i % 64 for i in chosen}) > 32
    assert len({i // 64 for i in chosen}) > 48


def test_boxes_of_one_value_are_left_out(tmp_path: Path, client: Any) -> None:
    array: Any = zarr.create_array(tmp_path / "v.zarr", shape=(8, 1024, 1024), chunks=(1, 1024, 1024), dtype="uint8")
    array[3] = np.arange(1024, dtype=np.uint16)[:, None] % 200
    came = sample_volume(open_volume(tmp_path / "v.zarr"), (0,), client)
    assert (came.pixels, came.empty_pixels) == (8 * 2**20, 7 * 2**20)
    assert came.counts.total == 2**20
    array[3] = 0
    came = sample_volume(open_volume(tmp_path / "v.zarr"), (0,), client)
    assert (came.pixels, came.empty_pixels, came.counts.is_constant) == (8 * 2**20, 8 * 2**20, True)


def test_a_chunk_that_cannot_be_read_is_an_error(tmp_path: Path, client: Any) -> None:
    array: Any = zarr.create_array(tmp_path / "v.zarr", shape=(32, 32), chunks=(32, 32), dtype="uint8")
    array[...] = 1
    (tmp_path / "v.zarr/c/0/0").write_bytes(b"no chunk")
    with pytest.raises(ReadError, match="the window y 0:32, x 0:32 cannot be read"):
        sample_volume(open_volume(tmp_path / "v.zarr"), (0,), client)
