"""Settings that cannot be are all named before any work, with what was expected."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra 'train' is not installed")

from tests.discs import annotate, make_discs
from unet_deploy.errors import ConfigurationError
from unet_deploy.training.augment import AugmentationConfig
from unet_deploy.training.config import TrainingConfig, check_config, config_problems, largest_tile

SMALL = TrainingConfig(depth=1, base_width=4, tile_side=44)


def test_the_defaults_are_sound() -> None:
    assert config_problems(TrainingConfig()) == []
    assert config_problems(SMALL) == []
    check_config(SMALL, make_discs())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"base_width": 0}, "base_width: 0 is not above 0"),
        ({"steps": 0}, "steps: 0 is not above 0"),
        ({"validation_every_steps": -1}, "validation_every_steps: -1 is not above 0"),
        ({"learning_rate": -1.0}, "learning_rate: -1.0 is not above 0"),
        ({"learning_rate": math.nan}, "learning_rate: nan is not above 0"),
        ({"gradient_norm_limit": 0.0}, "gradient_norm_limit: 0.0 is not above 0"),
        ({"gradient_norm_limit": math.inf}, "gradient_norm_limit: inf is not finite"),
        ({"border_sigma_px": 0.0}, "border_sigma_px: 0.0 is not above 0"),
        ({"border_weight": -1.0}, "border_weight: -1.0 is not at least 0"),
        ({"class_balance": -0.1}, "class_balance: -0.1 is not at least 0"),
        ({"warm_up_steps": -1}, "warm_up_steps: -1 is not at least 0"),
        ({"seed": -1}, "seed: -1 is not at least 0"),
        ({"seed": 2**63}, f"seed: {2**63} is not below 2**63"),
        ({"max_seconds": 0.0}, "max_seconds: 0.0 is not above 0"),
        ({"max_seconds": math.inf}, "max_seconds: inf is not finite"),
        ({"threads": 0}, "threads: 0 is not above 0"),
        ({"dropout": 1.0}, "dropout: 1.0 is not in [0, 1)"),
        ({"momentum": 1.0}, "momentum: 1.0 is not in [0, 1)"),
        ({"final_learning_rate_ratio": 1.1}, "final_learning_rate_ratio: 1.1 is not in [0, 1]"),
        ({"optimiser": "adamw"}, "optimiser: adamw is not one of sgd, adam"),
        ({"best_by": "iou"}, "best_by: iou is not one of pixel_disagreement, foreground_dice, rand_error, seg"),
        ({"depth": 9}, "depth: network depth 9 is not in 1..8"),
        ({"depth": 4, "tile_side": 250}, "tile_side: 250 is not legal for depth 4; nearest: 236, 252"),
    ],
)
def test_a_setting_that_cannot_be(changes: dict[str, Any], expected: str) -> None:
    assert config_problems(replace(SMALL, **changes)) == [expected]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"deform_probability": 1.5}, "deform_probability: 1.5 is not in [0, 1]"),
        ({"blur_probability": -0.5}, "blur_probability: -0.5 is not in [0, 1]"),
        ({"displacement_std_px": -1.0}, "displacement_std_px: -1.0 is not at least 0"),
        ({"rotation_max_degrees": -1.0}, "rotation_max_degrees: -1.0 is not at least 0"),
        ({"zoom_log_std": math.inf}, "zoom_log_std: inf is not finite"),
        ({"displacement_grid": 1}, "displacement_grid: 1 is not at least 2"),
        ({"deformation": "elastic"}, "deformation: elastic is not one of grid, field"),
        (
            {"deformation": "field", "field_sigma_px": 14.5},  # 3 sigma, rounded up, is the whole tile
            "field_sigma_px: 14.5 is not at most 14.3333, a third of the tile's side",
        ),
        ({"blur_max_sigma_px": 20.0}, "blur_max_sigma_px: 20.0 is not at most 14.3333, a third of the tile's side"),
    ],
)
def test_an_augmentation_that_cannot_be(changes: dict[str, Any], expected: str) -> None:
    problems = config_problems(replace(SMALL, augmentation=AugmentationConfig(**changes)))
    assert problems == [f"augmentation.{expected}"]


def test_the_widest_smoothing_let_through_can_be_drawn() -> None:
    import torch

    from unet_deploy.training.augment import draw_displacement

    config = AugmentationConfig(deformation="field", field_sigma_px=43 / 3)
    assert config_problems(replace(SMALL, augmentation=config)) == []
    draw_displacement(44, config=config, generator=torch.Generator())


def test_every_problem_is_said_at_once() -> None:
    config: Any = replace(
        SMALL, depth=9, steps=0, dropout=1.0, augmentation=AugmentationConfig(flip=True, blur_probability=2)
    )
    with pytest.raises(ConfigurationError, match=r"5 setting\(s\) of the training cannot be") as caught:
        check_config(config, make_discs(validation=0))
    for expected in ("depth: ", "steps: ", "dropout: ", "augmentation.blur_probability: ", "no image to validate on"):
        assert expected in str(caught.value)
    assert "fix: correct the settings named above" in str(caught.value)


def test_a_tile_larger_than_the_smallest_image_mirrored() -> None:
    data = make_discs()
    small = replace(annotate("small", 0), image=np.zeros((17, 90), np.uint8))
    data = replace(data, training=(*data.training, small))
    expected = r"tile_side: 52 is larger than small, 17 px, mirrored once on either side \(49 px\); 48 would fit"
    with pytest.raises(ConfigurationError, match=r"1 setting\(s\)") as caught:
        check_config(replace(SMALL, tile_side=52), data)
    assert str(caught.value).splitlines()[1].strip() == expected.replace("\\", "")
    check_config(replace(SMALL, tile_side=48), data)


def test_an_image_too_small_for_any_tile_of_that_depth() -> None:
    data = make_discs()
    with pytest.raises(ConfigurationError, match=r"1 setting\(s\)") as caught:
        check_config(replace(SMALL, depth=4, tile_side=572), data)
    assert "40 px, mirrored once on either side (118 px); no tile of depth 4 would fit, a smaller depth may" in str(
        caught.value
    )


def test_an_image_as_large_as_a_tile_mirrored_may_be() -> None:
    assert largest_tile(256) == 766
    image = np.arange(5)
    assert len(np.pad(image, 4, mode="reflect")) == largest_tile(5)


@pytest.mark.parametrize(
    ("best_by", "expected"),
    [
        ("seg", "best_by: seg needs labels that number objects (label_kind instances)"),
        ("rand_error", "best_by: rand_error needs labels of classes, and the class of the cells (cell_class)"),
    ],
)
def test_a_metric_that_these_labels_do_not_give(best_by: Any, expected: str) -> None:
    with pytest.raises(ConfigurationError, match=r"1 setting\(s\)") as caught:
        check_config(replace(SMALL, best_by=best_by), make_discs())
    assert expected in str(caught.value)
    if best_by == "seg":
        check_config(replace(SMALL, best_by=best_by), make_discs(has_cells=True))
    else:
        check_config(replace(SMALL, best_by=best_by), replace(make_discs(), cell_class=0))
        with pytest.raises(ConfigurationError, match=r"1 setting\(s\)"):
            check_config(replace(SMALL, best_by=best_by), replace(make_discs(has_cells=True), cell_class=0))
