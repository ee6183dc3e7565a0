"""Validation scores what the runtime would segment, with the metrics of `unet-deploy evaluate`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from tests.discs import annotate, make_discs  # noqa: E402
from unet_deploy.metrics import Frame, number_components, rand_error, seg_scores  # noqa: E402
from unet_deploy.training.data import AnnotatedImage  # noqa: E402
from unet_deploy.training.network import UNet  # noqa: E402
from unet_deploy.training.validation import (  # noqa: E402
    Score,
    Validation,
    default_metric,
    pixel_scores,
    predict_whole,
    probability,
    score_all,
    validate,
)

LABEL = np.array([[0, 1, 2, 2]], np.uint8)


def noisy_logits(annotated: AnnotatedImage, seed: int) -> npt.NDArray[np.float32]:
    """Return logits (2, y, x) that are mostly right."""
    signal = np.where(annotated.label == 1, 1.0, -1.0) + np.random.default_rng(seed).normal(
        0, 0.7, annotated.label.shape
    )
    return np.stack([-signal, signal]).astype(np.float32)


def test_pixel_scores_are_plain_disagreement_and_foreground_dice() -> None:
    image = AnnotatedImage(stem="a", image=LABEL, label=LABEL)
    came = pixel_scores(np.array([[0, 1, 1, 0]], np.uint8), image)
    assert came == {"pixel_disagreement": 0.5, "foreground_dice": 0.8}
    empty = replace(image, label=np.zeros_like(LABEL))
    assert pixel_scores(np.zeros_like(LABEL), empty) == {"pixel_disagreement": 0, "foreground_dice": 1}
    assert pixel_scores(LABEL, empty) == {"pixel_disagreement": 0.75, "foreground_dice": 0}


def test_ignored_pixels_are_not_scored() -> None:
    ignored = np.array([[False, False, True, True]])
    image = AnnotatedImage(stem="a", image=LABEL, label=LABEL, ignored=ignored)
    came = pixel_scores(np.array([[0, 1, 1, 0]], np.uint8), image)
    assert came == {"pixel_disagreement": 0, "foreground_dice": 1}
    everything = replace(image, ignored=np.ones_like(ignored))
    assert pixel_scores(LABEL, everything) == {"pixel_disagreement": 0, "foreground_dice": 1}


def test_objects_are_scored_by_seg_pooled_over_the_images() -> None:
    data = make_discs(2, has_cells=True)
    predictions = [(a, noisy_logits(a, seed)) for seed, a in enumerate(data.validation)]
    came = score_all(predictions, data, step=7)
    truth, result = {}, {}
    for index, (annotated, logits) in enumerate(predictions):
        assert annotated.instances is not None
        truth[Frame(index)], result[Frame(index)] = annotated.instances, number_components(logits.argmax(0) == 1)
    expected = seg_scores(truth, result)
    assert came.step == 7
    assert came.values["seg"] == expected.seg
    assert [s.values["seg"] for s in came.scores] == [frame.seg for frame in expected.frames]
    assert 0 < came.values["seg"] < 1
    assert "rand_error" not in came.values


def test_cells_between_membranes_are_scored_by_the_rand_error_pooled() -> None:
    data = replace(make_discs(2), cell_class=1)
    predictions = [(a, noisy_logits(a, seed)) for seed, a in enumerate(data.validation)]
    came = score_all(predictions, data)
    truth = np.stack([(a.label == 1).astype(np.uint8) for a in data.validation])
    inside = np.stack([probability(logits, 1) for _, logits in predictions])
    assert came.values["rand_error"] == rand_error(truth, inside).error > 0
    assert [s.values["rand_error"] for s in came.scores] == [
        rand_error(t, i).error for t, i in zip(truth, inside, strict=True)
    ]
    assert came.values["pixel_disagreement"] == pytest.approx(
        np.mean([s.values["pixel_disagreement"] for s in came.scores])
    )


def test_ignored_pixels_are_no_cells_of_the_rand_error() -> None:
    data = replace(make_discs(1), cell_class=0)
    image = replace(data.validation[0], label=np.zeros((40, 56), np.uint8))  # one cell
    inside = np.full((40, 56), 5.0, np.float32)
    inside[:, 10] = -200  # and a membrane across it, at any threshold
    logits = np.stack([inside, -inside])
    ignored = np.zeros((40, 56), np.bool_)
    ignored[:, :20] = True
    assert score_all([(image, logits)], data).values["rand_error"] > 0.1
    assert score_all([(replace(image, ignored=ignored), logits)], data).values["rand_error"] == 0


def test_pixels_alone_are_scored_by_pixels() -> None:
    data = make_discs(1)
    assert set(score_all([(data.validation[0], noisy_logits(data.validation[0], 0))], data).values) == {
        "pixel_disagreement",
        "foreground_dice",
    }


def test_the_metric_follows_from_the_labels() -> None:
    assert default_metric(make_discs()) == "pixel_disagreement"
    assert default_metric(replace(make_discs(), cell_class=0)) == "rand_error"
    assert default_metric(make_discs(has_cells=True)) == "seg"


def test_better_is_lower_for_errors_and_higher_for_overlaps() -> None:
    first = Validation(
        step=1,
        values={"pixel_disagreement": 0.1, "rand_error": 0.1, "foreground_dice": 0.1, "seg": 0.1},
        scores=(),
    )
    second = replace(first, values=dict.fromkeys(first.values, 0.2))
    for metric in first.values:
        is_overlap = metric in ("foreground_dice", "seg")
        assert second.is_better(first, metric) is is_overlap
        assert first.is_better(second, metric) is not is_overlap
        assert not first.is_better(first, metric)
        assert first.is_better(None, metric)


def test_probability_is_the_soft_max_even_of_great_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (3, 4, 5)).astype(np.float32)
    expected = torch.softmax(torch.from_numpy(logits), 0).numpy()
    assert np.allclose(probability(logits, 2), expected[2], atol=1e-6)
    assert probability(np.array([[[1e4]], [[-1e4]]], np.float32), 0).tolist() == [[1]]


def test_components_hang_together_by_edges() -> None:
    found = number_components(np.array([[1, 0, 1], [1, 0, 1], [0, 1, 0]], np.bool_))
    assert (found.dtype, int(found.max())) == (np.int32, 3)
    assert found[0, 1] == 0


@pytest.mark.parametrize("extent", [(1, 1), (3, 50), (40, 56), (17, 33)])
@pytest.mark.parametrize("grey_range", [None, (20.0, 220.0)])
def test_prediction_has_the_images_shape_and_is_the_mirrored_planes(extent: tuple[int, int], grey_range: Any) -> None:
    torch.manual_seed(0)
    model, data = UNet(depth=2, base_width=2), make_discs()
    image = np.random.default_rng(0).integers(0, 256, extent, np.uint8)
    annotated = AnnotatedImage(stem="a", image=image, label=np.zeros_like(image), grey_range=grey_range)
    logits = predict_whole(model, annotated, data)
    context = model.geometry.context
    pads = [(context, model.geometry.whole_window(side).stop - side) for side in extent]
    low, high = grey_range or (0.0, 1.0)
    values = ((image.astype(np.float32) - low) / (high - low) - data.mean) / data.std
    padded = np.pad(values, pads, mode="reflect" if min(extent) > 1 else "edge")
    with torch.no_grad():
        expected = model.eval()(torch.from_numpy(padded).float()[None, None])[0, :, : extent[0], : extent[1]]
    assert (logits.shape, logits.dtype) == ((2, *extent), np.float32)
    assert np.allclose(logits, expected.numpy(), atol=1e-5)


def test_validation_draws_no_random_numbers_and_drops_nothing() -> None:
    model, data = UNet(depth=1, base_width=2, dropout=0.5).train(), make_discs(2)
    before = torch.get_rng_state()
    first, again = validate(model, data, step=3), validate(model.train(), data, step=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert first == again
    assert first.scores[1] == Score(stem="v1", values=again.scores[1].values)
    assert annotate("v1", 11).stem == first.scores[1].stem


def test_a_large_image_is_segmented_in_tiles_to_the_same_logits() -> None:
    data = make_discs()
    model = UNet(depth=1, base_width=4).eval()
    whole = predict_whole(model, data.training[0], data)
    tiled = predict_whole(model, data.training[0], data, largest_core=16)
    assert tiled.shape == whole.shape == (2, *data.training[0].image.shape)
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=1e-5)
