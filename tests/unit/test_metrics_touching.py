"""Touching pairs, on cases small enough to check by hand, and against a search pixel by pixel."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from unet_deploy.errors import ConfigurationError, ShapeMismatchError, UnsupportedDtypeError, ValueRangeError
from unet_deploy.metrics.pairs import PairCounter
from unet_deploy.metrics.touching import TouchingPairs, count_separated, count_touching_pairs, find_touching

Labels = npt.NDArray[Any]


def grid(*rows: str) -> Labels:
    """Read labels from digits, a string a row; a dot is background."""
    return np.array([[0 if letter == "." else int(letter) for letter in row] for row in rows], np.uint16)


@pytest.mark.parametrize(
    ("truth", "reach", "pairs"),
    [
        (grid("1122"), 2, {(1, 2)}),  # side by side
        (grid("11.22"), 2, {(1, 2)}),  # one pixel apart, as annotators leave it
        (grid("11.22"), 1, set()),
        (grid("11..22"), 2, set()),
        (grid("11..22"), 3, {(1, 2)}),
        (grid("1.", ".2"), 1, {(1, 2)}),  # corner to corner
        (grid(".1", "2."), 1, {(1, 2)}),
        (grid("1..", "...", "..2"), 2, {(1, 2)}),
        (grid("..1", "...", "2.."), 2, {(1, 2)}),
        (grid("..1", "...", "...", "2.."), 2, set()),
        (grid("2211133"), 2, {(1, 2), (1, 3)}),  # a row of three has two pairs
        (grid("12", "34"), 1, {(1, 2), (1, 3), (1, 4), (2, 3), (2, 4), (3, 4)}),
        (grid("112211"), 2, {(1, 2)}),  # twice is once
        (grid("11111"), 2, set()),
        (grid("....."), 2, set()),
    ],
)
def test_what_touches(truth: Labels, reach: int, pairs: set[tuple[int, int]]) -> None:
    assert find_touching(truth, reach=reach) == pairs
    assert find_touching(truth.T, reach=reach) == pairs
    assert find_touching(truth[::-1, ::-1], reach=reach) == pairs


@pytest.mark.parametrize(
    ("truth", "predicted", "separated"),
    [
        ("11.22", "33.44", 1),
        ("11.22", "33333", 0),  # merged
        ("11.22", "33...", 0),  # one was missed
        ("11.22", ".....", 0),
        ("1122", "3344", 1),
        ("1111.2222", "3334.5555", 1),  # a crumb does not matter
        ("1111.2222", "33...3333", 0),  # exactly half is no match
        ("1111.2222", "333..4...", 0),
        ("1111.2222", "3334.3344", 0),
        ("112233", "445566", 2),
        ("112233", "444466", 1),
    ],
)
def test_what_is_separated(truth: str, predicted: str, separated: int) -> None:
    counted = count_touching_pairs(grid(truth), grid(predicted))
    assert counted == TouchingPairs(pairs=len(find_touching(grid(truth))), separated=separated)


def test_two_pieces_of_one_predicted_label_do_not_separate() -> None:
    assert count_touching_pairs(grid("11.22"), grid("33.33")).separated == 0


def test_all_pairs_are_found_that_a_search_pixel_by_pixel_finds() -> None:
    generator = np.random.default_rng(5)
    n_found = 0
    for reach, (height, width) in product((1, 2, 3), ((1, 9), (7, 2), (8, 8))):
        truth = generator.integers(0, 12, (height, width)) * (generator.random((height, width)) < 0.4)
        places = [(int(y), int(x)) for y, x in np.argwhere(truth)]
        slow = {
            (min(truth[a], truth[b]), max(truth[a], truth[b]))
            for a, b in product(places, places)
            if truth[a] != truth[b] and max(abs(a[0] - b[0]), abs(a[1] - b[1])) <= reach
        }
        assert find_touching(truth, reach=reach) == slow
        n_found += len(slow)
    assert n_found > 50


def test_a_volume_is_looked_at_plane_by_plane_and_its_objects_span_planes() -> None:
    truth = np.stack([grid("11...", "....."), grid("11.22", "....."), grid(".....", "33333")])
    predicted = np.stack([grid("44...", "....."), grid("66.55", "....."), grid(".....", "77777")])
    # 3 lies below both, but in another plane; 1 is half 4 and half 6
    assert count_touching_pairs(truth, predicted) == TouchingPairs(pairs=1, separated=0)
    predicted[0][0, 2:4] = 6
    predicted[0][0, :2] = 6
    assert count_touching_pairs(truth, predicted) == TouchingPairs(pairs=1, separated=1)


def test_part_by_part_is_the_same_as_at_once() -> None:
    generator = np.random.default_rng(6)
    truth, predicted = generator.integers(0, 30, (2, 4, 12, 12))
    predicted = np.where(generator.random(truth.shape) < 0.5, truth, predicted)
    table = PairCounter()
    touching: set[tuple[int, int]] = set()
    for plane, guess in zip(truth, predicted, strict=True):
        table.add(plane, guess)
        touching |= find_touching(plane)
    whole = count_touching_pairs(truth, predicted)
    assert count_separated(touching, table.counts()) == whole
    assert 0 < whole.separated < whole.pairs


def test_frames_add_up_and_the_ratio_is_of_the_sums() -> None:
    total = TouchingPairs(pairs=3, separated=1) + TouchingPairs(pairs=1, separated=1)
    assert total == TouchingPairs(pairs=4, separated=2)
    assert total.ratio == 0.5
    assert TouchingPairs(pairs=0, separated=0).ratio is None


def test_empty_and_one_dimensional_arrays_are_images_too() -> None:
    assert count_touching_pairs(np.zeros((0, 4), int), np.zeros((0, 4), int)).pairs == 0
    assert find_touching(np.array([1, 2])) == {(1, 2)}


def test_a_reach_of_zero_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="reach 0 is not at least 1"):
        find_touching(grid("12"), reach=0)


def test_what_count_pairs_refuses_is_refused() -> None:
    with pytest.raises(ShapeMismatchError, match="they must be equal"):
        count_touching_pairs(grid("12"), grid("123"))
    with pytest.raises(UnsupportedDtypeError, match="not integer or bool"):
        count_touching_pairs(grid("12"), grid("12").astype(float))
    with pytest.raises(ValueRangeError, match="label -1"):
        count_touching_pairs(np.array([[1, -1]]), np.array([[1, 1]]))
