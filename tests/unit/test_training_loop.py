"""The schedule is a pure function, a run repeats exactly, and it learns an easy task."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from unet_deploy.card import Histogram, ModelCard  # noqa: E402
from unet_deploy.card_json import dump_card, parse_card  # noqa: E402
from unet_deploy.errors import ConfigurationError  # noqa: E402
from unet_deploy.training.config import About, TrainingConfig  # noqa: E402
from unet_deploy.training.data import AnnotatedImage, TrainingData  # noqa: E402
from unet_deploy.training.loop import (  # noqa: E402
    Progress,
    class_weights,
    learning_rate,
    train_unet,
)
from unet_deploy.training.network import UNet  # noqa: E402
from unet_deploy.training.validation import Score, Validation, predict_whole, score  # noqa: E402

SMALL = TrainingConfig(
    depth=1, base_width=4, tile_side=44, steps=6, warm_up_steps=2, validation_every_steps=3, learning_rate=5e-3
)
ABOUT = About(name="stripes", description="a test", data="made up", licence="none", citation="nobody")


def annotated(stem: str, seed: int) -> AnnotatedImage:
    """Bright discs on a dark, noisy ground."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:40, :56]
    label = np.zeros((40, 56), np.uint8)
    for _ in range(4):
        label |= ((y - random.integers(40)) ** 2 + (x - random.integers(56)) ** 2 < 36).astype(np.uint8)
    image = np.clip(60 + 120.0 * label + random.normal(0, 10, label.shape), 0, 255).astype(np.uint8)
    return AnnotatedImage(stem=stem, image=image, label=label)


def discs(validation: int = 1) -> TrainingData:
    images = [annotated(f"{i}", i) for i in range(3)]
    values = np.concatenate([a.image.ravel() for a in images])
    pixels = np.bincount(np.concatenate([a.label.ravel() for a in images]))
    return TrainingData(
        training=tuple(images),
        validation=tuple(annotated(f"v{i}", 10 + i) for i in range(validation)),
        excluded=(),
        classes=("ground", "disc"),
        dtype="uint8",
        value_range=(0.0, 255.0),
        mean=float(values.mean()),
        std=float(values.std()),
        histogram=Histogram(value_range=(0.0, 255.0), counts=(values.size,)),
        class_pixels=(int(pixels[0]), int(pixels[1])),
    )


def test_the_rate_warms_up_then_falls_to_its_end() -> None:
    config = TrainingConfig(steps=1000, warm_up_steps=100, learning_rate=0.5, final_learning_rate_ratio=0.02)
    rates = [learning_rate(step, config) for step in range(1001)]
    assert rates[0] == pytest.approx(0.005)
    assert rates[99] == rates[100] == max(rates) == 0.5
    assert all(a >= b for a, b in pairwise(rates[100:]))
    assert rates[1000] == pytest.approx(0.01)
    assert learning_rate(5000, config) == rates[1000]


def test_class_weights_run_from_equal_pixels_to_equal_classes() -> None:
    assert class_weights((300, 100), 0).tolist() == [1, 1]
    plain = class_weights((300, 100), 1)
    assert (plain * torch.tensor([0.75, 0.25])).tolist() == pytest.approx([0.5, 0.5])
    root = class_weights((300, 100), 0.5)
    assert root[1] / root[0] == pytest.approx(math.sqrt(3))


def test_a_run_repeats_exactly_and_leaves_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again = (train_unet(discs(), SMALL, about=ABOUT) for _ in range(2))
    other = train_unet(discs(), replace(SMALL, seed=1), about=ABOUT)
    assert torch.equal(torch.rand(3), expected)
    weights = [result.model.state_dict() for result in (first, again, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["head.weight"], weights[2]["head.weight"])
    assert first.best == again.best


def test_the_number_of_threads_is_given_back() -> None:
    before, during = torch.get_num_threads(), set()
    train_unet(
        discs(),
        replace(SMALL, threads=before + 1),
        about=ABOUT,
        on_progress=lambda _: during.add(torch.get_num_threads()),
    )
    assert (torch.get_num_threads(), during) == (before, {before + 1})


def test_it_learns_an_easy_task_and_keeps_the_best() -> None:
    seen: list[Progress] = []
    kept: list[tuple[int, float]] = []

    def keep(model: UNet, card: ModelCard) -> None:
        kept.append((card.training.steps, card.training.scores["pixel_disagreement"]))

    config = replace(SMALL, steps=60, validation_every_steps=20, base_width=8, dropout=0.0)
    result = train_unet(discs(validation=2), config, about=ABOUT, on_progress=seen.append, on_best=keep)
    validations = [p.validation for p in seen if p.validation is not None]
    assert [p.step for p in seen] == list(range(1, 61))
    assert [v.step for v in validations] == [20, 40, 60]
    assert result.best == min(validations, key=lambda v: v.disagreement)
    assert result.best.disagreement < 0.05
    assert result.best.dice > 0.8
    assert kept[-1] == (result.best.step, result.best.disagreement)
    assert seen[-1].eta_s == 0
    assert seen[0].eta_s > 0
    for image, one in zip(discs(validation=2).validation, result.best.scores, strict=True):
        assert score(image.stem, predict_whole(result.model, image.image, discs()).argmax(0), image) == one


def test_the_card_says_where_the_weights_come_from() -> None:
    result = train_unet(discs(), SMALL, about=replace(ABOUT, pixel_size_nm=(4.0, 5.0)))
    card = result.card
    assert parse_card(dump_card(card), source="here") == card
    assert (card.name, card.training.data, card.training.licence) == ("stripes", "made up", "none")
    assert [c.name for c in card.classes] == ["ground", "disc"]
    assert card.classes[0].colour == "#000000"
    assert card.input.pixel_size_nm == (4.0, 5.0)
    assert card.normalisation.mean == (discs().mean,)
    assert "3 training images" in card.normalisation.source
    assert card.training.validation == ("v0",)
    assert card.training.steps in (3, 6)
    assert card.training.recipe["tile_side"] == 44
    assert card.training.recipe["augmentation"]["displacement_grid"] == 3
    assert set(card.training.versions) == {"unet-deploy", "torch", "numpy", "python"}
    assert card.training.scores["pixel_disagreement v0"] == result.best.scores[0].disagreement


def test_a_time_limit_ends_the_run_with_a_validation() -> None:
    seen: list[Progress] = []
    config = replace(SMALL, steps=10_000, validation_every_steps=10_000, max_seconds=0.05)
    result = train_unet(discs(), config, about=ABOUT, on_progress=seen.append)
    assert result.steps == seen[-1].step < 10_000
    assert seen[-1].validation == result.best


def test_settings_that_cannot_be_are_reported_together() -> None:
    config: Any = replace(
        SMALL,
        depth=4,
        tile_side=250,
        steps=0,
        learning_rate=-1.0,
        dropout=1.0,
        max_seconds=0.0,
        base_width=0,
        threads=0,
    )
    with pytest.raises(ConfigurationError, match=r"8 setting\(s\) of the training cannot be") as caught:
        train_unet(discs(validation=0), config, about=ABOUT)
    for expected in (
        "tile_side: 250 is not legal for depth 4; nearest: 236, 252",
        "steps: 0 is not above 0",
        "base_width: 0 is not above 0",
        "learning_rate: -1.0 is not above 0",
        "dropout: 1.0 is not in [0, 1)",
        "max_seconds: 0.0 is not above 0",
        "threads: 0 is not above 0",
        "validation: no image to validate on",
    ):
        assert expected in str(caught.value)


def test_a_run_that_diverges_stops_and_says_so() -> None:
    config = replace(SMALL, steps=200, learning_rate=1e30, validation_every_steps=200)
    with pytest.raises(ConfigurationError, match=r"the loss is no finite number after \d+ steps") as caught:
        train_unet(discs(), config, about=ABOUT)
    assert "fix: --learning-rate 2.5e+29" in str(caught.value)


@pytest.mark.parametrize("extent", [(1, 1), (3, 50), (40, 56), (17, 33)])
def test_prediction_has_the_images_shape_and_is_the_mirrored_planes(extent: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model, data = UNet(depth=2, base_width=2).eval(), discs()
    image = np.random.default_rng(0).integers(0, 256, extent, np.uint8)
    logits = predict_whole(model, image, data)
    context = model.geometry.context
    pads = [(context, model.geometry.whole_window(side).stop - side) for side in extent]
    padded = np.pad(image, pads, mode="reflect") if min(extent) > 1 else np.pad(image, pads, mode="edge")
    tile = torch.from_numpy((padded.astype(np.float32) - data.mean) / data.std).float()[None, None]
    with torch.no_grad():
        expected = model(tile)[0, :, : extent[0], : extent[1]]
    assert logits.shape == (2, *extent)
    assert np.allclose(logits, expected.numpy(), atol=1e-5)


def test_scores_are_plain_disagreement_and_foreground_dice() -> None:
    label = np.array([[0, 1, 2, 2]], np.uint8)
    image = AnnotatedImage(stem="a", image=label, label=label)
    assert score("a", np.array([[0, 1, 1, 0]]), image) == Score(stem="a", disagreement=0.5, dice=0.8)
    empty = AnnotatedImage(stem="b", image=label, label=np.zeros_like(label))
    assert score("b", np.zeros((1, 4), int), empty) == Score(stem="b", disagreement=0.0, dice=1.0)
    both = Validation(step=1, scores=(score("a", label, image), score("b", label, empty)))
    assert (both.disagreement, both.dice) == (0.375, 0.5)
