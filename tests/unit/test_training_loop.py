"""The schedule is a pure function, a run repeats exactly, and it learns an easy task."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the extra 'train' is not installed")

from tests.discs import make_discs  # noqa: E402
from unet_deploy.card import ModelCard  # noqa: E402
from unet_deploy.card_json import dump_card, parse_card  # noqa: E402
from unet_deploy.errors import ConfigurationError, DeviceError, UsageError  # noqa: E402
from unet_deploy.training.augment import AugmentationConfig  # noqa: E402
from unet_deploy.training.config import About, Metric, TrainingConfig  # noqa: E402
from unet_deploy.training.loop import (  # noqa: E402
    MAX_IMAGES_SCORED,
    Progress,
    TrainingResult,
    count_cells,
    draw_image,
    fill_card,
    learning_rate,
    make_optimiser,
    train_unet,
    truth_tensor,
    update_average,
)
from unet_deploy.training.network import UNet  # noqa: E402
from unet_deploy.training.state import History  # noqa: E402
from unet_deploy.training.validation import Score, Validation, validate  # noqa: E402

SMALL = TrainingConfig(
    depth=1,
    base_width=4,
    tile_side=44,
    steps=6,
    warm_up_steps=2,
    validation_every_steps=3,
    learning_rate=5e-3,
    device="cpu",
)
ABOUT = About(name="stripes", description="a test", data="made up", licence="none", citation="nobody")


def train(has_cells: bool = False, **changes: Any) -> TrainingResult:
    return train_unet(make_discs(has_cells=has_cells), replace(SMALL, **changes), about=ABOUT)


def test_the_rate_warms_up_then_falls_to_its_end() -> None:
    config = TrainingConfig(steps=1000, warm_up_steps=100, learning_rate=0.5, final_learning_rate_ratio=0.02)
    rates = [learning_rate(step, config) for step in range(1001)]
    assert rates[0] == pytest.approx(0.005)
    assert rates[99] == rates[100] == max(rates) == 0.5
    assert all(a >= b for a, b in pairwise(rates[100:]))
    assert rates[1000] == pytest.approx(0.01)
    assert learning_rate(5000, config) == rates[1000]


def test_the_rate_without_warm_up_and_with_nothing_else() -> None:
    flat = TrainingConfig(steps=10, warm_up_steps=0, learning_rate=0.5, final_learning_rate_ratio=1)
    assert {learning_rate(step, flat) for step in range(10)} == {0.5}
    rising = TrainingConfig(steps=4, warm_up_steps=8, learning_rate=0.8)
    assert [learning_rate(step, rising) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_a_run_repeats_exactly_and_leaves_the_callers_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = train(), train(), train(seed=1)
    assert torch.equal(torch.rand(3), expected)
    weights = [result.model.state_dict() for result in (first, again, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0]["head.weight"], weights[2]["head.weight"])
    assert first.best == again.best
    assert first.history == again.history
    assert len(first.history.losses) == 6


def test_the_number_of_threads_is_given_back() -> None:
    before, during = torch.get_num_threads(), set()
    train_unet(
        make_discs(),
        replace(SMALL, threads=before + 1),
        about=ABOUT,
        on_progress=lambda _: during.add(torch.get_num_threads()),
    )
    assert (torch.get_num_threads(), during) == (before, {before + 1})


@pytest.mark.parametrize(
    "optimiser",
    [{"optimiser": "adam"}, {"optimiser": "sgd", "momentum": 0.9, "learning_rate": 0.05}],
    ids=lambda setting: setting["optimiser"],
)
def test_it_learns_an_easy_task_and_keeps_the_best(optimiser: dict[str, Any]) -> None:
    seen: list[Progress] = []
    kept: list[tuple[int, float]] = []
    histories: list[tuple[int, int]] = []

    def keep(_: UNet, card: ModelCard) -> None:
        kept.append((card.training.steps, card.training.scores["pixel_disagreement"]))

    def report(_: UNet, history: History) -> None:
        histories.append((len(history.losses), len(history.validations)))

    config = replace(SMALL, **{"steps": 60, "validation_every_steps": 20, "base_width": 8, "dropout": 0.0, **optimiser})
    data = make_discs(validation=2)
    result = train_unet(data, config, about=ABOUT, on_progress=seen.append, on_best=keep, on_validation=report)
    validations = [p.validation for p in seen if p.validation is not None]
    assert [p.step for p in seen] == list(range(1, 61))
    assert [v.step for v in validations] == [20, 40, 60]
    assert [p.loss for p in seen] == result.history.losses
    assert [p.learning_rate for p in seen] == [learning_rate(step, config) for step in range(60)]
    assert result.history.validations == validations
    assert histories == [(20, 1), (40, 2), (60, 3)]
    assert result.best == min(validations, key=lambda v: v.values["pixel_disagreement"])
    assert result.best.values["pixel_disagreement"] < 0.05
    assert result.best.values["foreground_dice"] > 0.8
    assert kept[-1] == (result.best.step, result.best.values["pixel_disagreement"])
    assert seen[-1].eta_s == 0
    assert seen[0].eta_s > 0
    assert validate(result.model, data, step=result.best.step) == result.best  # the weights given are the best ones


def test_the_optimisers_are_the_papers_and_adam() -> None:
    model = UNet(depth=1, base_width=2)
    sgd = make_optimiser(model, replace(SMALL, optimiser="sgd", momentum=0.99))
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.99
    assert isinstance(make_optimiser(model, SMALL), torch.optim.Adam)


@pytest.mark.parametrize(
    ("best_by", "choose"), [("pixel_disagreement", min), ("foreground_dice", max), ("rand_error", min), ("seg", max)]
)
def test_the_best_is_that_of_the_metric_asked_for(best_by: Metric, choose: Callable[..., Validation]) -> None:
    data = make_discs(validation=2, has_cells=best_by == "seg")
    data = replace(data, cell_class=0 if best_by == "rand_error" else None)
    config = replace(SMALL, steps=12, validation_every_steps=2, learning_rate=0.02, best_by=best_by)
    result = train_unet(data, config, about=ABOUT)
    assert len(result.history.validations) == 6
    assert result.best == choose(
        result.history.validations, key=lambda v: v.values[best_by]
    )  # of equal ones, the first
    assert result.card.training.scores[best_by] == result.best.values[best_by]


def test_without_a_metric_asked_for_the_labels_decide() -> None:
    data = make_discs(has_cells=True)
    config = replace(SMALL, steps=6, validation_every_steps=1)
    asked, left = (train_unet(data, replace(config, best_by=metric), about=ABOUT) for metric in ("seg", None))
    assert asked.best == left.best


def test_the_border_weight_counts_only_where_cells_are_told_apart() -> None:
    with_cells = [train(has_cells=True, border_weight=w).history.losses for w in (0.0, 10.0)]
    without = [train(border_weight=w).history.losses for w in (0.0, 10.0)]
    assert with_cells[0][0] < with_cells[1][0]
    assert without[0] == without[1] == with_cells[0]


def test_class_balance_changes_the_weights_of_the_loss() -> None:
    plain, balanced = train(class_balance=0.0), train(class_balance=1.0)
    assert plain.history.losses != balanced.history.losses
    truth = truth_tensor(make_discs(has_cells=True).training[0], (0.5, 3.0), SMALL)
    annotated = make_discs(has_cells=True).training[0]
    assert torch.equal(truth[0], torch.from_numpy(annotated.label).float())
    assert set(truth[1][truth[0] == 1].tolist()) == {3.0}
    assert truth[1][truth[0] == 0].min() >= 0.5
    assert truth[1][truth[0] == 0].max() > 1  # between two discs


def test_what_is_ignored_does_not_influence_the_training() -> None:
    data = make_discs()
    ignored = torch.zeros(40, 56, dtype=torch.bool).numpy()
    ignored[:, 30:] = True
    losses = []
    for change in (0, 1):
        training = tuple(
            replace(a, ignored=ignored, label=(a.label ^ (ignored * change)).astype(a.label.dtype))
            for a in data.training
        )
        assert change == 0 or not (training[0].label == data.training[0].label).all()
        losses.append(train_unet(replace(data, training=training), SMALL, about=ABOUT).history.losses)
    assert losses[0] == losses[1] != train().history.losses


def test_the_card_says_where_the_weights_come_from() -> None:
    data = replace(make_discs(), percentiles=(1.0, 99.8))
    result = train_unet(data, SMALL, about=replace(ABOUT, pixel_size_nm=(4.0, 5.0)))
    card = result.card
    assert parse_card(dump_card(card), source="here") == card
    assert (card.name, card.training.data, card.training.licence) == ("stripes", "made up", "none")
    assert [c.name for c in card.classes] == ["ground", "disc"]
    assert card.classes[0].colour == "#000000"
    assert card.input.pixel_size_nm == (4.0, 5.0)
    assert (card.normalisation.mean, card.normalisation.std) == ((data.mean,), (data.std,))
    assert card.normalisation.percentiles == (1.0, 99.8)
    assert "3 training images" in card.normalisation.source
    assert card.training.validation == ("v0",)
    assert card.training.steps == result.best.step in (3, 6)
    assert (card.training.seed, card.training.images) == (0, 3)
    assert card.training.recipe["tile_side"] == 44
    assert card.training.recipe["augmentation"]["displacement_grid"] == 3
    assert set(card.training.versions) == {"unet-deploy", "torch", "numpy", "python"}
    assert card.training.scores["pixel_disagreement"] == result.best.values["pixel_disagreement"]
    assert card.training.scores["foreground_dice v0"] == result.best.scores[0].values["foreground_dice"]


def test_the_card_lists_the_images_scores_while_they_are_few() -> None:
    for count in (MAX_IMAGES_SCORED, MAX_IMAGES_SCORED + 1):
        scores = tuple(Score(stem=str(i), values={"seg": 0.5}) for i in range(count))
        validation = Validation(step=1, values={"seg": 0.5}, scores=scores)
        card = fill_card(make_discs(), SMALL, about=ABOUT, validation=validation, seconds=1.23)
        assert len(card.training.scores) == (1 + count if count <= MAX_IMAGES_SCORED else 1)
        assert card.training.seconds == 1.2


def test_a_time_limit_ends_the_run_with_a_validation() -> None:
    seen: list[Progress] = []
    config = replace(SMALL, steps=10_000, validation_every_steps=10_000, max_seconds=0.05)
    result = train_unet(make_discs(), config, about=ABOUT, on_progress=seen.append)
    assert result.steps == seen[-1].step < 10_000
    assert seen[-1].validation == result.best
    assert seen[-1].eta_s == 0
    assert all(p.eta_s <= 0.05 for p in seen)


@pytest.mark.parametrize("deformation", ["grid", "field"])
def test_both_deformations_train(deformation: Any) -> None:
    augmentation = AugmentationConfig(deformation=deformation, field_sigma_px=6.0, deform_probability=1)
    assert train(augmentation=augmentation).steps == 6


def test_three_classes_train() -> None:
    data = make_discs()
    training = tuple(replace(a, label=a.label + (a.image > 200)) for a in data.training)
    data = replace(data, training=training, classes=("a", "b", "c"), class_pixels=(9, 9, 9))
    result = train_unet(data, SMALL, about=ABOUT)
    assert result.card.network.classes == 3
    assert len({c.colour for c in result.card.classes}) == 3


def test_settings_that_cannot_be_stop_it_before_any_work() -> None:
    with pytest.raises(ConfigurationError, match=r"3 setting\(s\) of the training cannot be") as caught:
        train_unet(make_discs(validation=0), replace(SMALL, steps=0, threads=0), about=ABOUT)
    for expected in ("steps: 0", "threads: 0", "validation: no image to validate on"):
        assert expected in str(caught.value)


def test_a_device_that_is_not_there_stops_it() -> None:
    with pytest.raises(DeviceError, match="cuda:999 was asked for"):
        train(device="cuda:999")


def test_a_run_that_diverges_stops_and_says_so() -> None:
    config = replace(SMALL, steps=200, learning_rate=1e30, validation_every_steps=200)
    with pytest.raises(ConfigurationError, match=r"the loss is no finite number after \d+ steps") as caught:
        train_unet(make_discs(), config, about=ABOUT)
    assert "fix: --learning-rate 2.5e+29" in str(caught.value)


def test_resuming_needs_the_place_of_a_state() -> None:
    with pytest.raises(UsageError, match=r"resume=True came without a state_path: there is nothing to go on from"):
        train_unet(make_discs(), SMALL, about=ABOUT, resume=True)


def test_weights_that_became_infinite_are_never_the_best() -> None:
    """A gradient that is not shortened, at an absurd rate: the loss is still a number when the weights are none."""
    kept: list[ModelCard] = []
    config = replace(SMALL, optimiser="sgd", learning_rate=1e38, gradient_norm_limit=None, validation_every_steps=1)
    with pytest.raises(ConfigurationError, match=r"training diverged: the loss is no finite number after \d+ steps"):
        train_unet(make_discs(), config, about=ABOUT, on_best=lambda _model, card: kept.append(card))
    assert all(math.isfinite(value) for card in kept for value in card.training.scores.values())


def test_images_are_drawn_alike_or_by_their_cells() -> None:
    cells = torch.tensor([0, 3, 6], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    alike = [draw_image(cells, "images", generator=generator) for _ in range(2000)]
    assert np.bincount(alike) / 2000 == pytest.approx([1 / 3, 1 / 3, 1 / 3], abs=0.05)
    by_cells = [draw_image(cells, "cells", generator=generator) for _ in range(2000)]
    assert np.bincount(by_cells) / 2000 == pytest.approx([0.1, 0.3, 0.6], abs=0.05)  # an image without counts as one


def test_cells_are_counted_by_their_numbers() -> None:
    annotated = make_discs(has_cells=True).training[0]
    assert count_cells(replace(annotated, cells=np.array([[0, 7, 7, 2]], np.int32))) == 2
    assert count_cells(replace(annotated, cells=None)) == 0


def test_the_mean_of_the_weights_follows_them() -> None:
    mean, model = UNet(depth=1, base_width=2), UNet(depth=1, base_width=2)
    before = [weight.detach().clone() for weight in mean.parameters()]
    update_average(mean, model, decay=0.75)
    for old, new, weight in zip(before, mean.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * weight)
    update_average(mean, model, decay=0.0)
    assert all(torch.equal(a, b) for a, b in zip(mean.parameters(), model.parameters(), strict=True))


def test_the_network_that_is_kept_has_the_mean_of_the_weights() -> None:
    plain = train_unet(make_discs(), SMALL, about=ABOUT)
    averaged = train_unet(make_discs(), replace(SMALL, weight_averaging=0.9), about=ABOUT)
    assert averaged.history.losses == plain.history.losses  # the steps themselves are the same
    weights = zip(averaged.model.parameters(), plain.model.parameters(), strict=True)
    assert not any(torch.equal(a, b) for a, b in weights)
