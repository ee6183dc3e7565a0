"""The warping error against the definition done slowly, case by case by hand, and the text of what it refuses."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("scipy", reason="the extra 'evaluate' is not installed")

from unet_deploy.errors import ConfigurationError
from unet_deploy.metrics import Mismatch, MismatchPixels, find_mismatches, warping_error
from unet_deploy.metrics._isbi_input import label_components
from unet_deploy.metrics._warp import _RING, _YOKOI, classify_mismatches, warp

Mask = npt.NDArray[np.bool_]
NEIGHBOURS = [step for step in itertools.product((-1, 0, 1), repeat=2) if step != (0, 0)]
HALF = (0.5,)


def warp_slowly(truth: Mask, probability: npt.NDArray[np.float32], threshold: float) -> Mask:
    """Warp by the definition: every pass visits every mismatch and looks at its neighbours anew."""
    inside = probability > np.float64(threshold)
    warped = np.pad(truth, 1)
    simple = _YOKOI == 1
    while True:
        visits = [
            (-np.float32(abs(float(probability[y, x]) - threshold)), x, y)
            for x in range(truth.shape[1])
            for y in range(truth.shape[0])
            if warped[y + 1, x + 1] != inside[y, x]
        ]
        flipped = 0
        for _, x, y in sorted(visits):
            code = sum(int(warped[y + 1 + dy, x + 1 + dx]) << k for k, (dy, dx) in enumerate(_RING))
            if simple[code]:
                warped[y + 1, x + 1] ^= True
                flipped += 1
        if not flipped:
            return warped[1:-1, 1:-1]


def classify_slowly(warped: Mask, y: int, x: int, *, radius: int) -> Mismatch:
    """Classify one mismatch by the words of the definition, labelling everything anew."""

    def around(labels: npt.NDArray[np.intp]) -> set[int]:
        inside = [
            (y + dy, x + dx) for dy, dx in NEIGHBOURS if 0 <= y + dy < warped.shape[0] and 0 <= x + dx < warped.shape[1]
        ]
        return {int(labels[place]) for place in inside}

    is_set = bool(warped[y, x])
    found = around(label_components(warped)) or {0}
    if found == {0}:
        return Mismatch.OBJECT_DELETED if is_set else Mismatch.OBJECT_ADDED
    if len(found) == 1:
        return Mismatch.HOLE_ADDED if is_set else Mismatch.HOLE_DELETED
    if len(found) > 2:
        return Mismatch.SPLIT if is_set else Mismatch.MERGE
    if not is_set:
        return Mismatch.HOLE_ADDED
    without = warped.copy()
    without[y, x] = False
    if 1 <= radius <= min(warped.shape):
        rows, columns = np.indices(warped.shape)
        without &= (abs(rows - y) <= radius) & (abs(columns - x) <= radius)
    return Mismatch.SPLIT if len(around(label_components(without)) - {0}) > 1 else Mismatch.HOLE_DELETED


def test_a_pixel_is_simple_just_if_one_object_and_one_background_meet_there() -> None:
    """The table against the topological numbers of Bertrand and Malandain 1994, which are 1 and 1 of a simple point."""
    for code in range(256):
        patch = np.zeros((3, 3), bool)
        for k, (dy, dx) in enumerate(_RING):
            patch[1 + dy, 1 + dx] = code >> k & 1
        beside = label_components(patch)[[0, 1, 1, 2], [1, 0, 2, 1]]
        objects = len(set(beside.tolist()) - {0})
        outside = ~patch
        outside[1, 1] = False
        backgrounds = int(label_components(outside, neighbours=8).max())
        assert (_YOKOI[code] == 1) == (objects == 1 and backgrounds == 1)
        # Also used as the number of background arcs around a pixel that is not simple but has a neighbour beside it.
        if objects and backgrounds:
            assert _YOKOI[code] == objects == backgrounds


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("levels", [2, 4, 1000])
def test_the_fast_warp_is_the_slow_one(seed: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.random((5, 6)) > 0.45
    truth = np.kron(coarse, np.ones((4, 3), bool)).astype(bool)
    probability = (rng.integers(0, levels, truth.shape) / (levels - 1)).astype(np.float32)
    probability = np.clip(0.5 * probability + 0.5 * np.roll(truth, seed % 3, axis=1), 0, 1).astype(np.float32)
    for threshold in (0.0, 0.5, 0.7):
        warped, is_mismatch = warp(truth, probability, threshold=threshold)
        assert np.array_equal(warped, warp_slowly(truth, probability, threshold))
        assert np.array_equal(is_mismatch, warped != (probability > np.float64(threshold)))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("radius", [-1, 1, 2, 4, 50])
def test_the_fast_classification_is_the_slow_one(seed: int, radius: int) -> None:
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.random((4, 4)) > 0.4, np.ones((4, 4), bool)).astype(bool)
    warped, is_mismatch = warp(truth, rng.random(truth.shape).astype(np.float32), threshold=0.3 + 0.05 * seed)
    kinds = classify_mismatches(warped, is_mismatch, radius=radius)
    assert is_mismatch.any()
    assert np.array_equal(kinds != Mismatch.NONE, is_mismatch)
    for y, x in np.argwhere(is_mismatch).tolist():
        assert kinds[y, x] == classify_slowly(warped, y, x, radius=radius), (y, x)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radius", [-1, 3])
def test_any_pixel_can_be_classified_not_only_what_a_warp_leaves(seed: int, radius: int) -> None:
    mask = np.random.default_rng(seed).random((9, 11)) > 0.35
    kinds = classify_mismatches(mask, np.ones_like(mask), radius=radius)
    for y, x in np.ndindex(mask.shape):
        code = sum(int(np.pad(mask, 1)[y + 1 + dy, x + 1 + dx]) << k for k, (dy, dx) in enumerate(_RING))
        if _YOKOI[code] != 1:
            assert kinds[y, x] == classify_slowly(mask, y, x, radius=radius), (y, x)


def ring(radius_of_way_round: int) -> npt.NDArray[np.uint8]:
    """Return a closed ring, one pixel wide."""
    side = 2 * radius_of_way_round + 5
    image = np.zeros((side, side), np.uint8)
    image[1:-1, 1:-1] = 255
    image[2:-2, 2:-2] = 0
    return image


def test_a_radius_too_small_to_see_the_way_round_makes_a_split() -> None:
    truth = ring(6)
    prediction = truth / 255
    middle = truth.shape[1] // 2
    prediction[1, middle] = 0  # cut open: a hole deleted, for the ring still hangs together the other way
    for radius, kind in ((-1, Mismatch.HOLE_DELETED), (16, Mismatch.HOLE_DELETED), (3, Mismatch.SPLIT)):
        kinds = find_mismatches(truth, prediction, threshold=0.5, radius=radius)
        assert np.argwhere(kinds).tolist() == [[1, middle]]
        assert kinds[1, middle] == kind
        assert kinds.dtype == np.uint8


def test_each_type_by_hand() -> None:
    truth = np.zeros((9, 14), np.uint8)
    truth[1:8, 1:6] = truth[1:8, 7:12] = 255
    prediction = truth / 255
    prediction[4, 6] = 1  # a gap in the membrane
    prediction[2, 9] = 0  # a hole in the right cell
    prediction[8, 13] = 1  # a speck
    kinds = find_mismatches(truth, prediction, threshold=0.5)
    found = {tuple(place): Mismatch(kinds[tuple(place)]) for place in np.argwhere(kinds).tolist()}
    assert found == {(4, 6): Mismatch.MERGE, (2, 9): Mismatch.HOLE_ADDED, (8, 13): Mismatch.OBJECT_ADDED}


def test_one_object_filling_the_image_may_get_a_hole() -> None:
    truth, prediction = np.full((5, 5), 255, np.uint8), np.ones((5, 5))
    prediction[2, 2] = 0
    (row,) = warping_error(truth, prediction, thresholds=HALF).rows
    assert row.mismatches == MismatchPixels(hole_added=1)
    assert (row.error, row.classic_error) == (0, 1 / 25)


def test_a_single_pixel_has_no_neighbours() -> None:
    on, off = np.array([[255]], np.uint8), np.array([[0]], np.uint8)
    assert warping_error(on, off, thresholds=HALF).rows[0].mismatches == MismatchPixels(object_deleted=1)
    assert warping_error(off, on, thresholds=HALF).rows[0].mismatches == MismatchPixels(object_added=1)


def test_the_best_threshold_may_be_another_for_the_classic_error() -> None:
    truth = np.zeros((7, 9), np.uint8)
    truth[1:6, 1:4] = truth[1:6, 5:8] = 255
    prediction = truth / 255
    prediction[3, 4] = 0.3  # merges up to 0.3
    prediction[2:5, 2:7:4] = 0.6  # holes from 0.6 on
    prediction[2, 2] = 0.6
    scores = warping_error(truth, prediction, thresholds=(0.2, 0.65))
    assert [row.mismatches.merge for row in scores.rows] == [1, 0]
    assert [row.mismatches.hole_added for row in scores.rows] == [0, 6]
    assert (scores.best.threshold, scores.error) == (0.65, 0)
    assert scores.lowest_classic_error == 1 / 63
    assert scores.radius == -1


def test_the_map_has_the_shape_of_the_truth() -> None:
    truth = np.zeros((3, 4, 5), np.uint8)
    assert find_mismatches(truth, truth, threshold=0.5).shape == (3, 4, 5)
    assert find_mismatches(truth[0], truth[0], threshold=0.5).shape == (4, 5)


@pytest.mark.parametrize("radius", [0, -2, -20])
def test_a_radius_of_nothing(radius: int) -> None:
    truth = np.zeros((4, 4), np.uint8)
    with pytest.raises(ConfigurationError, match=f"radius {radius} is neither -1 nor at least 1"):
        warping_error(truth, truth, radius=radius)
    with pytest.raises(ConfigurationError, match=f"radius {radius} is neither -1 nor at least 1"):
        find_mismatches(truth, truth, threshold=0.5, radius=radius)


@pytest.mark.parametrize(
    ("truth", "text"),
    [
        ([[0, 0, 0], [1, 7, 0]], "labels 1 and 7 touch at y=1, x=0 of the truth; 0 must lie between"),
        ([[0, 3], [0, 7]], "labels 3 and 7 touch at y=0, x=1 of the truth; 0 must lie between"),
    ],
)
def test_touching_labels(truth: list[list[int]], text: str) -> None:
    labels = np.array(truth)
    with pytest.raises(ConfigurationError, match=text):
        warping_error(labels, np.zeros(labels.shape))
    with pytest.raises(ConfigurationError, match=text):
        find_mismatches(labels, np.zeros(labels.shape), threshold=0.5)


def test_labels_that_meet_at_a_corner_do_not_touch() -> None:
    labels = np.array([[1, 0], [0, 2]])
    assert warping_error(labels, labels > 0).error == 0
