"""Every number a training run depends on besides the data, and what only the user can say about the result."""

from __future__ import annotations

from dataclasses import dataclass, field

from unet_deploy.errors import ConfigurationError
from unet_deploy.geometry import Geometry
from unet_deploy.training.augment import AugmentationConfig
from unet_deploy.training.data import TrainingData


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Every number a run depends on besides the data; it becomes the card's recipe.

    `class_balance` is the power of the class frequency that a class's weight is divided by: 0 weighs pixels alike,
    1 classes alike. `steps` decides the schedule; `max_seconds` only ends a run early. `threads` are torch's own on the
    CPU; None leaves their number as it is.
    """

    depth: int = 4
    base_width: int = 16
    dropout: float = 0.5
    tile_side: int = 572
    steps: int = 2000
    max_seconds: float | None = None
    seed: int = 0
    threads: int | None = None
    learning_rate: float = 1e-3
    final_learning_rate_ratio: float = 0.01
    warm_up_steps: int = 50
    gradient_norm_limit: float = 1.0
    class_balance: float = 0.0
    validation_every_steps: int = 100
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


def check_config(config: TrainingConfig, data: TrainingData) -> None:
    """Raise a ConfigurationError with every setting that cannot be."""
    geometry = Geometry(config.depth)
    above_zero = ("base_width", "steps", "validation_every_steps", "learning_rate", "gradient_norm_limit")
    problems = [
        f"{name}: {getattr(config, name)} is not above 0" for name in above_zero if not getattr(config, name) > 0
    ]
    if not geometry.is_legal(config.tile_side):
        nearest = ", ".join(map(str, geometry.nearest_legal(config.tile_side)))
        problems.append(f"tile_side: {config.tile_side} is not legal for depth {config.depth}; nearest: {nearest}")
    for name, limit in (("max_seconds", config.max_seconds), ("threads", config.threads)):
        if limit is not None and not limit > 0:
            problems.append(f"{name}: {limit} is not above 0")
    if not 0 <= config.dropout < 1:
        problems.append(f"dropout: {config.dropout} is not in [0, 1)")
    if not data.validation:
        problems.append("validation: no image to validate on")
    if problems:
        raise ConfigurationError(
            f"{len(problems)} setting(s) of the training cannot be", *problems, fix="correct the settings named above"
        )
