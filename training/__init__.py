"""Training: the paper's network from a few annotated images (needs the extra ``train``).

`read_recipe` gathers all settings, `read_training_data` checks the images, `train_unet` trains, `save_checkpoint` and
`load_checkpoint` keep the result; `unet-deploy train` is the same on the command line. Importing this package loads no
torch; using a name does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unet_deploy.errors import MissingDependencyError

if TYPE_CHECKING:
    from unet_deploy.training.augment import AugmentationConfig, draw_patch
    from unet_deploy.training.checkpoint import load_checkpoint, save_checkpoint
    from unet_deploy.training.config import About, TrainingConfig, check_config
    from unet_deploy.training.data import AnnotatedImage, TrainingData, read_training_data
    from unet_deploy.training.data_config import DataConfig
    from unet_deploy.training.loop import Progress, TrainingResult, learning_rate, train_unet
    from unet_deploy.training.loss import weighted_cross_entropy
    from unet_deploy.training.network import UNet
    from unet_deploy.training.recipe import Recipe, parse_assignment, preset_settings, read_recipe, recipe_to_toml
    from unet_deploy.training.report import TrainingReport
    from unet_deploy.training.state import History
    from unet_deploy.training.validation import Score, Validation, default_metric

__all__ = [
    "About",
    "AnnotatedImage",
    "AugmentationConfig",
    "DataConfig",
    "History",
    "Progress",
    "Recipe",
    "Score",
    "TrainingConfig",
    "TrainingData",
    "TrainingReport",
    "TrainingResult",
    "UNet",
    "Validation",
    "check_config",
    "default_metric",
    "draw_patch",
    "learning_rate",
    "load_checkpoint",
    "parse_assignment",
    "preset_settings",
    "read_recipe",
    "read_training_data",
    "recipe_to_toml",
    "save_checkpoint",
    "train_unet",
    "weighted_cross_entropy",
]

_MODULES = {
    "AugmentationConfig": "augment",
    "draw_patch": "augment",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "About": "config",
    "TrainingConfig": "config",
    "check_config": "config",
    "AnnotatedImage": "data",
    "TrainingData": "data",
    "read_training_data": "data",
    "DataConfig": "data_config",
    "Progress": "loop",
    "TrainingResult": "loop",
    "learning_rate": "loop",
    "train_unet": "loop",
    "weighted_cross_entropy": "loss",
    "UNet": "network",
    "Recipe": "recipe",
    "parse_assignment": "recipe",
    "preset_settings": "recipe",
    "read_recipe": "recipe",
    "recipe_to_toml": "recipe",
    "TrainingReport": "report",
    "History": "state",
    "Score": "validation",
    "Validation": "validation",
    "default_metric": "validation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError.of_extra("torch", extra="train", purpose="training") from error


def __dir__() -> list[str]:
    return sorted(__all__)
