"""Training: the paper's network from a few annotated images (needs the extra ``train``).

`read_training_data` checks the images, `train_unet` trains, `save_checkpoint` and `load_checkpoint` keep the result;
`unet-deploy train` is the same on the command line. Importing this package loads no torch; using a name does.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unet_deploy.errors import MissingDependencyError

if TYPE_CHECKING:
    from unet_deploy.training.augment import AugmentationConfig, draw_patch
    from unet_deploy.training.checkpoint import load_checkpoint, save_checkpoint
    from unet_deploy.training.config import About, TrainingConfig
    from unet_deploy.training.data import AnnotatedImage, TrainingData, read_training_data
    from unet_deploy.training.loop import (
        Progress,
        TrainingResult,
        learning_rate,
        train_unet,
    )
    from unet_deploy.training.network import UNet
    from unet_deploy.training.validation import Score, Validation

__all__ = [
    "About",
    "AnnotatedImage",
    "AugmentationConfig",
    "Progress",
    "Score",
    "TrainingConfig",
    "TrainingData",
    "TrainingResult",
    "UNet",
    "Validation",
    "draw_patch",
    "learning_rate",
    "load_checkpoint",
    "read_training_data",
    "save_checkpoint",
    "train_unet",
]

_MODULES = {
    "AugmentationConfig": "augment",
    "draw_patch": "augment",
    "load_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
    "About": "config",
    "TrainingConfig": "config",
    "AnnotatedImage": "data",
    "TrainingData": "data",
    "read_training_data": "data",
    "UNet": "network",
    "Score": "validation",
    "Validation": "validation",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'loop')}"), name)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingDependencyError.of_extra("torch", extra="train", purpose="training") from error


def __dir__() -> list[str]:
    return sorted(__all__)
