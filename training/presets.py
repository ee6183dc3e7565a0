"""The recipes with a name: what differs from the defaults for a kind of image, and nothing else. Loads no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    # The network and the training of Ronneberger et al. (2015); 20,000 steps are about its 10 hours on a Titan.
    "paper": {
        "training": {
            "depth": 4,
            "base_width": 64,
            "dropout": 0.5,
            "tile_side": 572,
            "optimiser": "sgd",
            "momentum": 0.99,
            "learning_rate": 1e-3,
            "warm_up_steps": 500,
            "steps": 20_000,
            "validation_every_steps": 500,
            "class_balance": 1.0,
            "border_weight": 10.0,
            "border_sigma_px": 5.0,
        },
        "augmentation": {"deformation": "grid", "displacement_grid": 3, "displacement_std_px": 10.0},
    },
    # A quick look at whether images and labels can be learnt from: minutes on a CPU.
    "small": {
        "training": {
            "depth": 3,
            "base_width": 16,
            "tile_side": 348,
            "optimiser": "adam",
            "steps": 300,
            "warm_up_steps": 20,
            "validation_every_steps": 50,
        },
    },
    # Cells that dark membranes part, in a stack of slices; labels as in ISBI 2012, 255 inside and 0 on the membrane.
    "membranes": {
        "data": {
            "label_kind": "classes",
            "classes": {"cell interior": 255, "membrane": 0},
            "cell_class": "cell interior",
            "is_stack": True,
        },
        "training": {
            "depth": 4,
            "base_width": 16,
            "tile_side": 572,
            "optimiser": "adam",
            "learning_rate": 1e-3,
            "steps": 2500,
            "weight_averaging": 0.998,
            "border_weight": 2.0,
        },
    },
    # Objects that touch, in images that differ in brightness and magnification.
    "nuclei": {
        "data": {"label_kind": "instances", "foreground": "nucleus", "percentiles": (1.0, 99.8)},
        "training": {
            "depth": 4,
            "base_width": 16,
            "tile_side": 444,
            "dropout": 0.0,
            "optimiser": "adam",
            "learning_rate": 1.5e-3,
            "weight_averaging": 0.998,
            "steps": 6000,
            "validation_every_steps": 250,
            "class_balance": 0.25,
            "border_weight": 10.0,
            "border_sigma_px": 2.0,
            "sampling": "cells",
        },
        # Dim nuclei are a tenth of a standard deviation above the background: strong noise would hide them.
        "augmentation": {"zoom_log_std": 0.15, "offset_std": 0.1, "noise_max_std": 0.1},
    },
}
