"""A percentile is a value that occurs, of the rank that its decimals say, however the values come."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_deploy.errors import UnsupportedDtypeError, ValueRangeError
from unet_deploy.percentiles import (
    PART_VALUES,
    PercentileSearch,
    percentile_range,
    rank_of,
    scale_by_percentiles,
    scale_by_range,
    span_of,
)

READ = ("uint8", "uint16", "int16", "float16", "float32")
OTHERS = ("bool", "int8", "uint32", "int32", "uint64", "int64", "float64", ">u2", ">f4")

pairs = st.lists(st.integers(0, 1000), min_size=2, max_size=2, unique=True).map(
    lambda pair: (min(pair) / 10, max(pair) / 10)
)


def arrays(dtype: str, **options: Any) -> st.SearchStrategy[npt.NDArray[Any]]:
    finite = {"allow_nan": False, "allow_infinity": False} if np.dtype(dtype).kind == "f" else {}
    return hnp.arrays(dtype, st.integers(1, 60), elements=finite, **options)


@given(data=st.data(), dtype=st.sampled_from(READ + OTHERS), percentiles=pairs)
def test_it_is_the_value_of_that_rank(data: st.DataObject, dtype: str, percentiles: tuple[float, float]) -> None:
    values = data.draw(arrays(dtype))
    ordered = np.sort(values)
    expected = tuple(float(ordered[rank_of(q, values.size)]) for q in percentiles)
    assert percentile_range(values, percentiles) == expected


@given(values=arrays("uint16") | arrays("float32"), percentiles=pairs)
def test_it_is_numpys_lower_percentile(values: npt.NDArray[Any], percentiles: tuple[float, float]) -> None:
    for came, q in zip(percentile_range(values, percentiles), percentiles, strict=True):
        if (Fraction(repr(q)) * (values.size - 1) / 100).denominator > 1:  # else numpy's own rounding decides
            assert came == float(np.percentile(values, q, method="lower"))


@pytest.mark.parametrize(
    ("percentile", "count", "rank"), [(0, 9, 0), (100, 9, 8), (99.8, 1001, 998), (0.1, 1001, 1), (50, 4, 1), (99, 1, 0)]
)
def test_ranks_are_counted_in_decimals(percentile: float, count: int, rank: int) -> None:
    assert rank_of(percentile, count) == rank
    assert rank_of(np.float32(percentile) if percentile == 50 else percentile, count) == rank


@given(data=st.data(), dtype=st.sampled_from(READ), percentiles=pairs)
def test_parts_in_any_order_give_what_the_whole_gives(
    data: st.DataObject, dtype: str, percentiles: tuple[float, float]
) -> None:
    values = data.draw(arrays(dtype))
    cuts = sorted(data.draw(st.lists(st.integers(0, values.size), max_size=4)))
    parts = data.draw(st.permutations(np.split(values, cuts)))
    search = PercentileSearch.begin(dtype, values.size, percentiles)
    while not search.is_done:
        search = search.narrowed(np.sum([search.count(part, source="a part") for part in parts], axis=0))
    assert search.values == percentile_range(values, percentiles)


def test_large_arrays_are_counted_in_parts() -> None:
    values = np.arange(PART_VALUES + 1000, dtype=np.uint32)[::-1].reshape(8, -1)
    assert percentile_range(values, (0, 100)) == (0, PART_VALUES + 999)
    assert percentile_range(values.astype(np.float32), (50, 100)) == ((PART_VALUES + 999) // 2, PART_VALUES + 999)


@pytest.mark.parametrize(("dtype", "passes"), [("uint8", 1), ("uint16", 1), ("int16", 1), ("float16", 1), ("f4", 2)])
def test_a_pass_for_every_16_bit(dtype: str, passes: int) -> None:
    search = PercentileSearch.begin(dtype, 10, (1, 99))
    assert search.n_passes == passes
    assert search.count(np.zeros(10, dtype), source="v").nbytes <= 8 * 2**16


def test_the_values_are_not_changed() -> None:
    for dtype in READ:
        values = np.array([3, 1, 2], dtype)
        percentile_range(values, (1, 99))
        assert values.tolist() == [3, 1, 2]


def test_zero_has_no_sign() -> None:
    low, high = percentile_range(np.array([-0.0, 0.0, 0.0], np.float32), (0, 100))
    assert (math.copysign(1, low), math.copysign(1, high)) == (1, 1)


@given(st.sampled_from(READ), pairs)
def test_a_constant_image_has_a_span(dtype: str, percentiles: tuple[float, float]) -> None:
    image = np.full((4, 5), 7, dtype)
    assert percentile_range(image, percentiles) == (7, 7)
    assert span_of((7, 7)) == 1
    assert not scale_by_percentiles(image, percentiles).any()


@pytest.mark.parametrize("dtype", READ)
def test_scaling_brings_the_percentiles_to_0_and_1(dtype: str) -> None:
    image = np.random.default_rng(0).integers(0, 120, (30, 40)).astype(dtype)
    low, high = percentile_range(image, (2, 95))
    came = scale_by_percentiles(image, (2, 95))
    assert (came.dtype, came.shape) == (np.float32, image.shape)
    np.testing.assert_array_equal(came, scale_by_range(image, (low, high)), strict=True)
    assert (came[image == low] == 0).all()
    assert (came[image == high] == 1).all()
    np.testing.assert_allclose(came, (image.astype(float) - low) / (high - low), rtol=1e-6)


def test_brightness_does_not_matter() -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40), np.uint8)
    np.testing.assert_array_equal(
        scale_by_percentiles(image, (1, 99.8)), scale_by_percentiles(image.astype(np.uint16) * 16 + 64, (1, 99.8))
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_what_is_no_number_is_refused(bad: float, dtype: str) -> None:
    image = np.ones((4, 5), dtype)
    image[2, 3] = bad
    with pytest.raises(
        ValueRangeError,
        match=r"^grey values that are no numbers came, where the percentiles of all were to be taken\n"
        r"  im\.tif holds NaN or infinity\n  fix: replace them by a grey value$",
    ):
        percentile_range(image, (1, 99), source="im.tif")
    with pytest.raises(ValueRangeError, match=r"\n  the image holds NaN or infinity\n"):
        scale_by_percentiles(image, (1, 99))


@pytest.mark.parametrize("dtype", ["complex64", "U3", "datetime64[s]"])
def test_what_has_no_order_is_refused(dtype: str) -> None:
    with pytest.raises(
        UnsupportedDtypeError, match=r" came, numbers of at most 64 bit were expected to take percentiles of\n  in im\n"
    ) as caught:
        percentile_range(np.zeros(3, dtype), (1, 99), source="im")
    assert caught.value.headline.startswith(np.dtype(dtype).name)
    assert caught.value.fix == "convert it to uint8, uint16, int16 or float32"
