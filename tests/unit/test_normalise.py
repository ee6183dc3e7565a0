"""Grey values become what the card says and nothing else; logits become labels and 8-bit probabilities."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_deploy.card import ModelCard
from unet_deploy.errors import ConfigurationError, ValueRangeError
from unet_deploy.percentiles import scale_by_percentiles
from unet_deploy.runtime.normalise import (
    STRIP,
    Normaliser,
    choose_normaliser,
    is_finite,
    is_in_range,
    needs_statistics,
    normaliser_of_image,
    to_labels,
    to_probabilities,
)

CardFactory = Callable[..., ModelCard]
Logits = npt.NDArray[np.float32]


def logits(limit: float = 30, classes: int | None = None) -> st.SearchStrategy[Logits]:
    k = st.integers(2, 9) if classes is None else st.just(classes)
    shapes = st.tuples(k, st.integers(1, 5), st.integers(1, 5))
    return hnp.arrays(np.float32, shapes, elements=st.floats(-limit, limit, width=32))


def soft_max(values: Logits) -> npt.NDArray[np.float64]:
    powers = np.exp(values.astype(np.float64) - values.max(axis=0))
    return np.asarray(powers / powers.sum(axis=0))


# Grey values.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3.4e38, -3.4e38])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_is_no_grey_value_is_told(value: float, dtype: str) -> None:
    normaliser = Normaliser(mean=(1.0, 2.0), std=(4.0, 1e-3))
    raw = np.random.default_rng(0).normal(0, 1e6, (2, 3, 20, 20)).astype(dtype)
    assert is_in_range(raw, normaliser)
    raw[1, 2, 7, 3] = value
    assert not is_in_range(raw, normaliser)
    assert is_in_range(raw[:, :2], normaliser)
    assert is_in_range(np.full((2, 1, 1), 65_535, np.uint16), normaliser)  # whole numbers are always fine


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32", ">u2"])
def test_values_are_those_of_plain_numpy(dtype: str) -> None:
    raw = np.random.default_rng(0).integers(0, 127, (2, 5, 7)).astype(dtype)
    came = Normaliser(mean=(126.4, 3.5), std=(43.1, 0.25))(raw)
    mean, std = (np.array(v, np.float32).reshape(2, 1, 1) for v in ((126.4, 3.5), (43.1, 0.25)))
    np.testing.assert_array_equal(came, (raw.astype(np.float32) - mean) / std, strict=True)


def test_the_input_is_not_changed_and_the_result_is_contiguous() -> None:
    raw = np.ones((2, 8, 9), np.float32)
    view = raw[:, 1:5, ::2]
    came = Normaliser(mean=(1.0, 0.0), std=(2.0, 2.0))(view)
    assert came.flags.c_contiguous
    assert not np.shares_memory(came, raw)
    assert (raw == 1).all()
    assert ((came[0] == 0) & (came[1] == 0.5)).all()


@given(hnp.arrays(np.uint16, (1, 6, 7)), st.integers(0, 2), st.integers(3, 7))
def test_a_value_does_not_depend_on_its_neighbours(raw: npt.NDArray[np.uint16], start: int, stop: int) -> None:
    normalise = Normaliser(mean=(1000.5,), std=(321.0,), gain=0.06227, offset=-3.0)
    np.testing.assert_array_equal(normalise(raw)[..., start:stop], normalise(raw[..., start:stop]))


def test_an_input_range_maps_its_ends_to_the_cards(make_card: CardFactory) -> None:
    card = make_card(mean=0.0, std=1.0)
    normalise = choose_normaliser(card, "uint16", input_range=(0, 4095), source="v")
    came = normalise(np.array([[[0, 819, 4095, 8190]]], np.uint16))
    np.testing.assert_allclose(came, [[[0, 51, 255, 510]]], rtol=1e-6)


@pytest.mark.parametrize(
    ("first", "last", "value_range"),
    [(100, 300, (0, 255)), (-500, 500, (0, 65535)), (0.0, 1.0, (-1, 1)), (7, 8, (10, 20))],
)
def test_any_range_is_mapped_then_normalised(
    make_card: CardFactory, first: float, last: float, value_range: tuple[float, float]
) -> None:
    card = make_card(dtype="float32", value_range=value_range, mean=5.0, std=4.0)
    normalise = choose_normaliser(card, "float32", input_range=(first, last), source="v")
    low, high = value_range
    came = normalise(np.array([[[first, (first + last) / 2, last]]], np.float32))
    expected = (np.array([low, (low + high) / 2, high]) - 5) / 4
    np.testing.assert_allclose(came[0, 0], expected, rtol=1e-6, atol=1e-6 * (high - low))


@pytest.mark.parametrize(
    ("trained", "came"), [("uint8", "uint8"), ("uint16", "uint16"), ("int16", "int16"), ("float32", "float16")]
)
def test_the_same_grey_values_are_used_as_they_are(make_card: CardFactory, trained: str, came: str) -> None:
    card = make_card(dtype=trained, mean=3.0, std=2.0, in_channels=2)
    normaliser = choose_normaliser(card, came, input_range=None, source="v")
    assert normaliser == Normaliser(mean=(3.0, 3.0), std=(2.0, 2.0), gain=1.0, offset=0.0)


@pytest.mark.parametrize(
    ("trained", "came", "example"),
    [
        ("uint8", "uint16", "0:65535"),
        ("uint16", "uint8", "0:255"),
        ("uint8", "int16", "-32768:32767"),
        ("uint8", "float32", "0:1"),
        ("float32", "uint8", "0:255"),
    ],
)
def test_other_grey_values_are_refused(make_card: CardFactory, trained: str, came: str, example: str) -> None:
    card = replace(make_card(dtype=trained), name="em-net")
    with pytest.raises(
        ValueRangeError,
        match=rf"^the volume is {came}, the model was trained on {trained} in 0\.\.255\n"
        r"  volume: brain\.zarr\n  model: em-net\n  the same number means another grey value",
    ) as caught:
        choose_normaliser(card, came, input_range=None, source="brain.zarr")
    assert f"--input-range {example} " in caught.value.fix
    first, last = map(float, example.split(":"))
    assert choose_normaliser(card, came, input_range=(first, last), source="v").gain > 0  # the advice works


@pytest.mark.parametrize(("first", "last", "fix"), [(5, 5, "5:6"), (4095, 0, "0:4095")])
def test_an_empty_range_is_refused(make_card: CardFactory, first: float, last: float, fix: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"^input range {first}:{last} is empty\n  the volume's grey values .* low first\n"
    ) as caught:
        choose_normaliser(make_card(), "uint8", input_range=(first, last), source="v")
    assert caught.value.fix == f"--input-range {fix}"


@pytest.mark.parametrize(
    "input_range", [(0, float("inf")), (float("-inf"), 0), (float("nan"), 1), (0, float("nan"))], ids=str
)
def test_a_range_that_is_no_range_is_refused(make_card: CardFactory, input_range: tuple[float, float]) -> None:
    # 0:inf would make every pixel black, and -inf:0 every pixel NaN.
    with pytest.raises(ConfigurationError, match=r"^input range "):
        choose_normaliser(make_card(), "uint8", input_range=input_range, source="v")


# Percentiles of the volume.


def test_measured_percentiles_become_0_and_1_by_channel(make_card: CardFactory) -> None:
    card = make_card(in_channels=2, mean=0.25, std=0.5, percentiles=(1, 99.8))
    assert needs_statistics(card, input_range=None)
    normalise = choose_normaliser(card, "uint16", input_range=None, source="v", measured=[(100, 300), (0, 4)])
    came = normalise(np.array([[[100, 200, 300, 500]], [[0, 2, 4, 8]]], np.uint16))
    np.testing.assert_allclose(came, [[[-0.5, 0.5, 1.5, 3.5]]] * 2, atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float16", "float32"])
def test_an_input_range_takes_the_place_of_percentiles_in_any_dtype(make_card: CardFactory, dtype: str) -> None:
    card = make_card(in_channels=2, mean=0.25, std=0.5, percentiles=(1, 99.8))
    assert not needs_statistics(card, input_range=(10, 90))
    measured = choose_normaliser(card, dtype, input_range=None, source="v", measured=[(10, 90)] * 2)
    assert choose_normaliser(card, dtype, input_range=(10, 90), source="v") == measured


def test_an_empty_range_is_refused_for_percentiles_too(make_card: CardFactory) -> None:
    with pytest.raises(ConfigurationError, match=r"^input range 9:9 is empty\n"):
        choose_normaliser(make_card(percentiles=(1, 99)), "uint8", input_range=(9, 9), source="v")


def test_a_constant_channel_is_0_before_the_constants(make_card: CardFactory) -> None:
    card = make_card(mean=0.25, std=0.5, percentiles=(1, 99.8))
    normalise = choose_normaliser(card, "uint8", input_range=None, source="v", measured=[(7, 7)])
    np.testing.assert_allclose(normalise(np.full((1, 2, 2), 7, np.uint8)), -0.5)


def test_a_multiple_of_the_grey_values_is_the_same_to_the_last_bit(make_card: CardFactory) -> None:
    card = make_card(mean=0.3, std=0.21, percentiles=(1, 99.8))
    raw = np.random.default_rng(0).integers(0, 256, (1, 40, 50), np.uint8)
    wide = raw.astype(np.uint16) * 16
    np.testing.assert_array_equal(
        normaliser_of_image(card, raw)(raw), normaliser_of_image(card, wide)(wide), strict=True
    )


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_an_image_of_its_own_is_scaled_as_in_training(make_card: CardFactory, dtype: str) -> None:
    card = make_card(in_channels=2, mean=0.3, std=0.2, percentiles=(2, 95))
    image = np.random.default_rng(0).integers(0, 120, (2, 30, 40)).astype(dtype) * np.array([[[1]], [[0.5]]], dtype)
    came = normaliser_of_image(card, image)(image)
    trained = np.stack([(scale_by_percentiles(channel, (2, 95)) - 0.3) / 0.2 for channel in image])
    np.testing.assert_allclose(came, trained, rtol=1e-5, atol=1e-5)
    plain = make_card(in_channels=2, mean=3.0, std=2.0)
    assert normaliser_of_image(plain, image) == Normaliser(mean=(3.0, 3.0), std=(2.0, 2.0))


# Labels.


@given(logits())
def test_a_label_is_the_first_of_the_largest(values: Logits) -> None:
    labels = to_labels(values)
    assert labels.dtype == np.uint8
    expected = [max(range(len(v)), key=lambda k: (v[k], -k)) for v in values.reshape(len(values), -1).T]
    assert labels.ravel().tolist() == expected


@given(logits(classes=2))
def test_two_classes_are_no_special_case(values: Logits) -> None:
    third = np.full_like(values[:1], -np.inf)
    np.testing.assert_array_equal(to_labels(values), to_labels(np.concatenate([values, third])), strict=True)


@pytest.mark.parametrize("classes", [2, 3, 255])
def test_a_tie_is_the_lower_class(classes: int) -> None:
    tie = np.zeros((classes, 1, 1), np.float32)
    assert to_labels(tie).item() == 0
    tie[0] = -1
    assert to_labels(tie).item() == 1


# Probabilities.


@given(logits())
def test_probabilities_are_the_soft_max_rounded(values: Logits) -> None:
    came = to_probabilities(values)
    assert (came.dtype, came.shape) == (np.uint8, values.shape)
    assert np.abs(came - 255 * soft_max(values)).max() <= 0.5 + 1e-3


@given(logits())
def test_probabilities_sum_to_certainty_up_to_rounding(values: Logits) -> None:
    total = to_probabilities(values).astype(int).sum(axis=0)
    assert (np.abs(total - 255) <= len(values) / 2).all()


@given(logits(classes=2))
def test_two_classes_sum_to_255(values: Logits) -> None:
    assert (to_probabilities(values).astype(int).sum(axis=0) == 255).all()


@given(logits())
def test_a_larger_logit_is_never_less_probable(values: Logits) -> None:
    order = np.argsort(values, axis=0, kind="stable")
    came = np.take_along_axis(to_probabilities(values), order, axis=0).astype(int)
    rises = np.diff(np.take_along_axis(values, order, axis=0), axis=0) > 0
    # Of two classes whose probabilities are equal in 8 bit, the first gets the half that 255 has over.
    assert (np.diff(came, axis=0)[rises] >= -1).all()
    assert (np.diff(came, axis=0)[rises & (came[1:] != 127)] >= 0).all()


@given(logits())
def test_the_label_is_a_most_probable_class(values: Logits) -> None:
    came = to_probabilities(values).astype(int)
    chosen = np.take_along_axis(came, to_labels(values)[None].astype(np.intp), axis=0)
    assert (chosen >= came.max(axis=0) - 1).all()  # of two equal classes one gets 127 of 255


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1e38, -1e38], [255, 0]),
        ([-1e38, -1e38], [128, 127]),
        ([1e38, 1e38, 0.0], [128, 128, 0]),
        ([90.0, 0.0], [255, 0]),
        ([-200.0, -1000.0, -200.0], [128, 0, 128]),
        ([0.0, -0.0], [128, 127]),
        ([0.0, 500.0], [0, 255]),
    ],
)
def test_extreme_logits_are_certain_not_undefined(values: list[float], expected: list[int]) -> None:
    came = to_probabilities(np.array(values, np.float32)[:, None, None])
    assert came.ravel().tolist() == expected


def test_a_plane_higher_than_a_strip_is_no_special_case() -> None:
    rng = np.random.default_rng(0)
    for classes in (2, 3):
        values = rng.normal(0, 3, (classes, 2 * STRIP + 7, 5)).astype(np.float32)
        rows = [to_probabilities(values[:, i : i + 1]) for i in range(values.shape[1])]
        np.testing.assert_array_equal(to_probabilities(values), np.concatenate(rows, axis=1), strict=True)


def test_results_are_written_where_asked() -> None:
    values = np.random.default_rng(0).normal(0, 3, (2, 3, 70, 5)).astype(np.float32)
    place = np.full((2, 3, 80, 9), 99, np.uint8)
    for logits_, part in zip(values, place, strict=True):
        to_probabilities(logits_, out=part[:, 3:73, 2:7])
        np.testing.assert_array_equal(part[:, 3:73, 2:7], to_probabilities(logits_))
    assert (place[:, :, :3] == 99).all()
    assert (place[..., 7:] == 99).all()
    tile = np.zeros((3, 70, 5), np.float32)
    normalise = Normaliser(mean=(1.0, 2.0, 3.0), std=(2.0, 2.0, 2.0), gain=3.0)
    raw = np.arange(3 * 70 * 5, dtype=np.uint16).reshape(3, 70, 5)
    assert normalise(raw, out=tile) is tile
    np.testing.assert_array_equal(tile, normalise(raw), strict=True)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_no_number_is_found(bad: float) -> None:
    values = np.random.default_rng(0).normal(0, 1e30, (2, 50, 60)).astype(np.float32)
    assert is_finite(values)
    values[1, 20, 30] = bad
    assert not is_finite(values)
    values[0, 5, 5] = -bad  # nor do two of them cancel
    assert not is_finite(values)


def test_a_sum_that_overflows_is_still_of_numbers() -> None:
    assert is_finite(np.full((2, 8, 8), 3e38, np.float32))


def test_the_logits_are_not_changed() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 2, 2)
    before = values.copy()
    to_probabilities(values)
    to_labels(values)
    np.testing.assert_array_equal(values, before)
