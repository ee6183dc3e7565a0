"""Every number a training run depends on besides the data, and what only the user can say about the result."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from unet_deploy.errors import ConfigurationError
from unet_deploy.geometry import MAX_DEPTH, UnetGeometry
from unet_deploy.training.augment import AugmentationConfig, Deformation
from unet_deploy.training.data import TrainingData

Optimiser = Literal["sgd", "adam"]
Sampling = Literal["images", "cells"]
Metric = Literal["pixel_disagreement", "foreground_dice", "rand_error", "seg"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Every number a run depends on besides the data; it becomes the card's recipe.

    `optimiser` is the paper's stochastic gradient descent with momentum 0.99, or Adam, which needs fewer steps.
    `class_balance` is the power of the class frequency that a class's weight w_c is divided by: 0 weighs pixels alike,
    1 classes alike. A gradient longer than `gradient_norm_limit` is shortened to it; None leaves it alone.
    `weight_averaging` is how much of the running mean of the weights each step keeps, and 0 for no mean.
    `border_weight` and `border_sigma_px` are the paper's w_0 and σ; they count where the data tell cells apart.
    `steps` decides the schedule; `max_seconds` only ends a run early. The best network is that of the
    validation with the best `best_by`; None takes what suits the labels (`validation.default_metric`).
    `sampling` draws every image alike, or in proportion to its cells, for images that hold few cells or many.
    `device` is ``auto``, ``cpu``, ``cuda`` or ``cuda:1``; `threads` are torch's own on the CPU, None leaves their
    number as it is. `mixed_precision` (bfloat16 where the GPU has it) and channels-last memory are for GPUs only.
    """

    depth: int = 4
    base_width: int = 16
    dropout: float = 0.5
    tile_side: int = 572
    steps: int = 2000
    max_seconds: float | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    mixed_precision: bool = True
    optimiser: Optimiser = "adam"
    momentum: float = 0.99
    learning_rate: float = 1e-3
    final_learning_rate_ratio: float = 0.01
    warm_up_steps: int = 50
    weight_averaging: float = 0.0
    gradient_norm_limit: float | None = 1.0
    class_balance: float = 0.0
    border_weight: float = 10.0
    border_sigma_px: float = 5.0
    validation_every_steps: int = 100
    best_by: Metric | None = None
    sampling: Sampling = "images"
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What only the user can say about a model: it goes into the card as it is."""

    name: str
    description: str = ""
    data: str = ""
    licence: str = ""
    citation: str = ""
    pixel_size_nm: tuple[float, float] | None = None
    channel: str = "grey"


def config_problems(config: TrainingConfig) -> list[str]:
    """Return every setting that cannot be, one line each; none for a sound configuration."""
    augmentation = config.augmentation
    problems = [
        *_not(config, "above 0", lambda v: v > 0, "base_width", "steps", "validation_every_steps", "learning_rate"),
        *_not(config, "above 0", lambda v: v > 0, "border_sigma_px"),
        *_not(config, "above 0", lambda v: v is None or v > 0, "max_seconds", "threads", "gradient_norm_limit"),
        *_not(config, "at least 0", lambda v: v >= 0, "border_weight", "class_balance", "warm_up_steps", "seed"),
        *_not(config, "below 2**63", lambda v: v < 2**63, "seed"),
        *_not(config, "in [0, 1)", lambda v: 0 <= v < 1, "dropout", "momentum", "weight_averaging"),
        *_not(config, "in [0, 1]", lambda v: 0 <= v <= 1, "final_learning_rate_ratio"),
        *_not(config, f"one of {', '.join(get_args(Optimiser))}", lambda v: v in get_args(Optimiser), "optimiser"),
        *_not(config, f"one of {', '.join(get_args(Sampling))}", lambda v: v in get_args(Sampling), "sampling"),
        *_not(config, f"one of {', '.join(get_args(Metric))}", lambda v: v is None or v in get_args(Metric), "best_by"),
        *_not(
            augmentation,
            "in [0, 1]",
            lambda v: 0 <= v <= 1,
            *(f.name for f in fields(augmentation) if f.name.endswith("_probability")),
        ),
        *_not(
            augmentation,
            "at least 0",
            lambda v: v >= 0,
            *(f.name for f in fields(augmentation) if f.name.endswith(("_std", "_px", "_degrees"))),
        ),
        *_not(augmentation, "at least 2", lambda v: v >= 2, "displacement_grid"),
        *_not(
            augmentation,
            f"one of {', '.join(get_args(Deformation))}",
            lambda v: v in get_args(Deformation),
            "deformation",
        ),
        *(
            problem
            for settings in (config, augmentation)
            for problem in _not(settings, "finite", _is_finite, *(f.name for f in fields(settings)))
        ),
    ]
    try:
        geometry = UnetGeometry(config.depth)
    except ConfigurationError as error:
        return [*problems, f"depth: {error.headline}"]
    if not geometry.is_legal(config.tile_side):
        nearest = ", ".join(map(str, geometry.nearest_legal(config.tile_side)))
        problems.append(f"tile_side: {config.tile_side} is not legal for depth {config.depth}; nearest: {nearest}")
    else:  # a blur reaches 3 sigma, rounded up, and mirrors the tile once
        names = ["blur_max_sigma_px", *(["field_sigma_px"] if augmentation.deformation == "field" else [])]
        third = (config.tile_side - 1) / 3
        problems += _not(augmentation, f"at most {third:g}, a third of the tile's side", lambda v: v <= third, *names)
    return problems


def check_config(config: TrainingConfig, data: TrainingData) -> None:
    """Raise a ConfigurationError with every setting that cannot be, by itself or with these data."""
    problems = [*config_problems(config), *_tile_problems(config, data), *_metric_problems(config, data)]
    if not data.validation:
        problems.append("validation: no image to validate on")
    if problems:
        raise ConfigurationError(
            f"{len(problems)} setting(s) of the training cannot be", *problems, fix="correct the settings named above"
        )


def largest_tile(side: int) -> int:
    """Return how far an image of `side` pixels reaches when mirrored once at both ends, the edge not repeated.

    >>> largest_tile(256)
    766
    """
    return 3 * side - 2


def _tile_problems(config: TrainingConfig, data: TrainingData) -> list[str]:
    """Say of the smallest training image whether the tile is too large for it."""
    smallest = min(data.training, key=lambda a: min(a.image.shape))
    side = min(smallest.image.shape)
    reach = largest_tile(side)
    if config.tile_side <= reach or not 1 <= config.depth <= MAX_DEPTH:
        return []
    geometry = UnetGeometry(config.depth)
    fitting = [n for n in geometry.nearest_legal(reach) if n <= reach]
    advice = f"{fitting[0]} would fit" if fitting else f"no tile of depth {config.depth} would fit, a smaller depth may"
    return [
        f"tile_side: {config.tile_side} is larger than {smallest.stem}, {side} px, mirrored once on either side "
        f"({reach} px); {advice}"
    ]


def _metric_problems(config: TrainingConfig, data: TrainingData) -> list[str]:
    """Say whether the metric that picks the best network can be had from these labels."""
    has_objects = any(a.instances is not None for a in data.validation)
    if config.best_by == "seg" and not has_objects:
        return ["best_by: seg needs labels that number objects (label_kind instances)"]
    if config.best_by == "rand_error" and (has_objects or data.cell_class is None):
        return ["best_by: rand_error needs labels of classes, and the class of the cells (cell_class)"]
    return []


def _is_finite(value: object) -> bool:
    return not (isinstance(value, float) and math.isinf(value))  # NaN fails every comparison above


def _not(settings: Any, expected: str, is_sound: Any, *names: str) -> list[str]:
    prefix = "augmentation." if isinstance(settings, AugmentationConfig) else ""
    return [
        f"{prefix}{name}: {getattr(settings, name)} is not {expected}"
        for name in names
        if not is_sound(getattr(settings, name))
    ]
