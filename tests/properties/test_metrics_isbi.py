"""What holds of the ISBI metrics whatever the images: bounds, symmetry, relabelling, identity, nothing, everything."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

pytest.importorskip("scipy", reason="the extra 'evaluate' is not installed")

from unet_deploy.metrics import isbi_scores, pixel_error, rand_error, v_scores, warping_error
from unet_deploy.metrics._isbi_input import is_inside, label_components
from unet_deploy.metrics._warp import warp
from unet_deploy.metrics.pairs import count_pairs
from unet_deploy.metrics.vrand import count_pixel_pairs, information_score, thin

Array = npt.NDArray[Any]
SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)
STACKS = hnp.array_shapes(min_dims=3, max_dims=3, min_side=1, max_side=7)
FRACTIONS = st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.6, 0.75, 0.9, 1.0])
HALF = (0.5,)


@st.composite
def pairs_of_masks(draw: st.DrawFn) -> tuple[Array, Array]:
    shape = draw(SHAPES)
    return draw(hnp.arrays(bool, shape)), draw(hnp.arrays(bool, shape))


@st.composite
def stacks(draw: st.DrawFn) -> tuple[Array, Array]:
    """Return a truth and probabilities that often agree with it."""
    shape = draw(STACKS)
    truth, values = draw(hnp.arrays(bool, shape)), draw(hnp.arrays(np.float64, shape, elements=FRACTIONS))
    agrees = draw(hnp.arrays(bool, shape))
    return truth, np.where(agrees, truth.astype(float), values)


@st.composite
def pairs_of_labels(draw: st.DrawFn) -> tuple[Array, Array]:
    shape = draw(SHAPES)
    labels = hnp.arrays(np.int64, shape, elements=st.integers(1, 5))
    return draw(labels), draw(labels)


def all_scores(truth: Array, prediction: Array) -> tuple[float, ...]:
    scores = isbi_scores(truth, prediction)
    return (scores.pixel.error, scores.rand.error, scores.warping.error, scores.v.v_rand, scores.v.v_info)


@settings(max_examples=40)
@given(stacks())
def test_scores_are_parts_of_one(images: tuple[Array, Array]) -> None:
    scores = isbi_scores(*images)
    assert all(0 <= value <= 1 for value in all_scores(*images))
    for rand, v, pixel in zip(scores.rand.rows, scores.v.rows, scores.pixel.rows, strict=True):
        found = (rand.pairs.precision, rand.pairs.recall, rand.pairs.f, rand.rand_index)
        found += (v.v_rand, v.v_info, v.rand_index, v.pooled.f, pixel.f, pixel.disagreement)
        assert all(0 <= value <= 1 for value in found)


@settings(max_examples=40)
@given(hnp.arrays(bool, STACKS))
def test_identical_is_perfect(truth: Array) -> None:
    assert all_scores(truth, truth.astype(float)) == (0, 0, 0, 1, 1)
    assert isbi_scores(truth, truth).warping.lowest_classic_error == 0


@given(pairs_of_masks())
def test_the_pixel_error_is_symmetric(masks: tuple[Array, Array]) -> None:
    one, other = masks
    there, back = pixel_error(one, other, thresholds=HALF), pixel_error(other, one, thresholds=HALF)
    assert there.error == pytest.approx(back.error)
    assert (there.best.precision, there.best.recall) == (back.best.recall, back.best.precision)
    assert there.best.disagreement == back.best.disagreement == np.mean(one != other)


@given(pairs_of_labels())
def test_pairs_and_information_are_symmetric_where_nothing_is_background(labels: tuple[Array, Array]) -> None:
    one, other = labels
    there, back = count_pixel_pairs(count_pairs(one, other)), count_pixel_pairs(count_pairs(other, one))
    assert (there.precision, there.recall, there.f) == (back.recall, back.precision, pytest.approx(back.f))
    assert information_score(count_pairs(one, other)) == pytest.approx(information_score(count_pairs(other, one)))


@given(pairs_of_labels())
def test_pairs_are_counted_as_defined(labels: tuple[Array, Array]) -> None:
    one, other = (item.ravel() for item in labels)
    with_background = other * (other > 2)
    alone = np.where(with_background == 0, 100 + np.arange(other.size), with_background)
    pairs = count_pixel_pairs(count_pairs(one, with_background))
    in_truth, in_prediction = one[:, None] == one, alone[:, None] == alone
    assert pairs.truth == in_truth.sum()
    assert pairs.prediction == in_prediction.sum()
    assert pairs.both == (in_truth & in_prediction).sum()
    assert pairs.index == pytest.approx((in_truth == in_prediction).mean())


@settings(max_examples=40)
@given(stacks(), st.randoms(use_true_random=False))
def test_relabelling_changes_nothing(images: tuple[Array, Array], random: Any) -> None:
    truth, prediction = images
    cells = np.stack([label_components(plane) for plane in truth])
    names = list(range(1, int(cells.max()) + 1))
    random.shuffle(names)
    renamed = np.array([0, *(3 * name + 300 for name in names)])[cells]
    assert isbi_scores(renamed, prediction) == isbi_scores(truth, prediction)


@settings(max_examples=40)
@given(hnp.arrays(np.float64, SHAPES, elements=FRACTIONS))
def test_an_empty_truth(prediction: Array) -> None:
    truth = np.zeros(prediction.shape, np.uint8)
    scores = isbi_scores(truth, prediction)
    n_inside = [int(is_inside(prediction.astype(np.float32), row.threshold).sum()) for row in scores.pixel.rows]
    assert [row.f for row in scores.pixel.rows] == [float(n == 0) for n in n_inside]
    assert (scores.rand.error, scores.v.v_rand, scores.v.v_info, scores.warping.error) == (0, 1, 1, 0)
    assert [row.mismatches.object_added for row in scores.warping.rows] == n_inside
    assert [row.mismatches.total for row in scores.warping.rows] == n_inside


@settings(max_examples=40)
@given(hnp.arrays(bool, SHAPES))
def test_an_empty_prediction(truth: Array) -> None:
    scores = isbi_scores(truth, np.zeros(truth.shape))
    n_inside = int(truth.sum())
    sizes = np.bincount(label_components(truth).ravel())[1:]
    assert scores.pixel.error == float(n_inside > 0)
    pairs = scores.rand.best.pairs
    assert (pairs.both, pairs.truth) == (n_inside, int((sizes**2).sum()))
    assert scores.warping.rows[0].mismatches.total >= (len(sizes) > 0)
    # One segment, for nothing parts it: right if there is one cell.
    if len(sizes) == 1:
        assert (scores.v.v_rand, scores.v.v_info) == (1, 1)


@settings(max_examples=40)
@given(SHAPES)
def test_one_object_filling_the_image(shape: tuple[int, int]) -> None:
    truth = np.ones(shape, np.uint8)
    assert all_scores(truth, truth * 1.0) == (0, 0, 0, 1, 1)
    size = truth.size
    nothing = isbi_scores(truth, truth * 0.0)
    assert nothing.pixel.error == 1
    assert nothing.rand.best.pairs.recall == 1 / size
    assert nothing.warping.best.mismatches.object_deleted == nothing.warping.best.mismatches.total == 1
    everything = isbi_scores(np.zeros_like(truth), truth * 1.0)
    assert everything.warping.best.mismatches.object_added == size


@given(stacks(), st.sampled_from([0.0, 0.4, 0.7]))
def test_warping_keeps_objects_and_holes(images: tuple[Array, Array], threshold: float) -> None:
    for truth, probability in zip(images[0], images[1].astype(np.float32), strict=True):
        warped, is_mismatch = warp(truth, probability, threshold=threshold)
        for before, after, neighbours in ((truth, warped, 4), (~truth, ~warped, 8)):
            counts = [
                label_components(np.pad(mask, 1, constant_values=neighbours == 8), neighbours=neighbours).max()  # type: ignore[arg-type]
                for mask in (before, after)
            ]
            assert counts[0] == counts[1]
        assert np.array_equal(is_mismatch, warped != is_inside(probability, threshold))
        assert np.count_nonzero(is_mismatch) <= np.count_nonzero(truth != is_inside(probability, threshold))


@settings(max_examples=40)
@given(stacks())
def test_a_smaller_radius_only_finds_more_splits(images: tuple[Array, Array]) -> None:
    by_radius = [warping_error(*images, radius=radius) for radius in (-1, 3, 1)]
    for rows in zip(*(scores.rows for scores in by_radius), strict=True):
        splits = [row.mismatches.split for row in rows]
        assert splits == sorted(splits)
        assert len({row.mismatches.total for row in rows}) == 1
        assert len({row.mismatches.split + row.mismatches.hole_deleted for row in rows}) == 1


@given(hnp.arrays(bool, SHAPES))
def test_thinning_grows_every_segment_and_adds_none(inside: Array) -> None:
    cells, thinned = label_components(inside), thin(inside)
    if inside.any():
        assert np.array_equal(thinned[inside], cells[inside])
        assert thinned.max() == cells.max()
    across = ((thinned[:, 1:], thinned[:, :-1]), (thinned[1:], thinned[:-1]))
    for near, far in across:
        assert not ((near != far) & (near > 0) & (far > 0)).any()
    for segment in range(1, int(thinned.max()) + 1):
        assert label_components(thinned == segment).max() == 1


@settings(max_examples=25)
@given(stacks())
def test_a_metric_alone_is_the_metric_among_all(images: tuple[Array, Array]) -> None:
    scores = isbi_scores(*images, radius=2)
    assert scores.pixel == pixel_error(*images)
    assert scores.rand == rand_error(*images)
    assert scores.v == v_scores(*images)
    assert scores.warping == warping_error(*images, radius=2)
