"""What a training step costs over the network's own forward and backward pass, and where the rest goes.

    python benchmarks/training.py [--steps 30] [--runs 15] [--device cpu] [--threads 2] [--network 4 16 572 ...]

The real loop (`train_unet`) trains on the procedural EM sample; after each of its steps, a copy of the network runs
forward and backward once on a tile of the same side, with the same memory layout and precision, but without patch,
loss, clipping and optimiser. So the two take turns, and the ratio is the median of the pairs. Then the parts are timed
alone. The first steps, in which the libraries choose their kernels, are left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import save

from unet_deploy.card import Histogram
from unet_deploy.geometry import UnetGeometry
from unet_deploy.metrics import number_components
from unet_deploy.sample import em_like_volume_with_truth
from unet_deploy.training.augment import AugmentationConfig, draw_patch
from unet_deploy.training.config import About, TrainingConfig
from unet_deploy.training.data import AnnotatedImage, TrainingData
from unet_deploy.training.device import open_device, precision
from unet_deploy.training.loop import Progress, make_optimiser, train_unet
from unet_deploy.training.loss import weighted_cross_entropy
from unet_deploy.training.network import UNet
from unet_deploy.training.validation import validate
from unet_deploy.training.weight_map import separate_touching, weight_map

WARM_UP = 3
SIDE = 512


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--network", type=int, nargs=3, action="append", metavar=("DEPTH", "WIDTH", "TILE"), help="may be repeated"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = open_device(options.device)
    data = draw_data()
    rows = []
    for depth, width, tile in options.network or [(4, 16, 572), (3, 16, 348)]:
        config = TrainingConfig(
            depth=depth,
            base_width=width,
            tile_side=tile,
            steps=options.steps + WARM_UP + 1,
            validation_every_steps=options.steps + WARM_UP + 1,
            device=options.device,
            threads=options.threads,
        )
        rows.append(
            {
                "depth": depth,
                "base_width": width,
                "tile_side": tile,
                **time_steps(data, config, device),
                **time_parts(data, config, device, options.runs),
            }
        )
    save(
        "training" if device.type == "cpu" else f"training-{device.type}",
        {
            "what": "a step of the training loop over the network's own forward and backward pass; medians",
            "command": f"python benchmarks/training.py --steps {options.steps} --runs {options.runs}",
            "data": f"procedural EM sample, {SIDE} x {SIDE}",
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "threads": options.threads,
            "torch": str(torch.__version__),
            "rows": rows,
            "weight_map": time_weight_map(options.runs),
        },
    )


def time_steps(data: TrainingData, config: TrainingConfig, device: torch.device) -> dict[str, Any]:
    """Time the loop's steps and the network's own passes, which take turns."""
    forward_backward = make_own_pass(config, len(data.classes), device)
    step_s: list[float] = []
    own_s: list[float] = []
    resumed = 0.0

    def take_turn(progress: Progress) -> None:
        nonlocal resumed
        synchronise(device)
        ended = time.perf_counter()
        own = time_once(forward_backward, device)
        if progress.step > WARM_UP and progress.validation is None:
            step_s.append(ended - resumed)
            own_s.append(own)
        resumed = time.perf_counter()

    train_unet(data, config, about=About(name="benchmark"), on_progress=take_turn)
    return {
        "step_over_network": round(statistics.median(s / o for s, o in zip(step_s, own_s, strict=True)), 3),
        "step_ms": in_ms(statistics.median(step_s)),
        "network_forward_backward_ms": in_ms(statistics.median(own_s)),
        "steps": len(step_s),
    }


def make_own_pass(config: TrainingConfig, classes: int, device: torch.device) -> Callable[[], None]:
    """Return a function that runs the network forward and backward on one tile, and does nothing else."""
    model = make_model(config, classes, device)
    tile = torch.randn((1, 1, config.tile_side, config.tile_side), device=device)
    side = UnetGeometry(config.depth).output_side(config.tile_side)
    gradient = torch.full((1, classes, side, side), 1 / side**2, device=device)

    def run() -> None:
        model.zero_grad(set_to_none=True)
        with precision(device, is_mixed=config.mixed_precision):
            logits = model(tile)
        logits.float().backward(gradient)

    return run


def time_parts(data: TrainingData, config: TrainingConfig, device: torch.device, runs: int) -> dict[str, Any]:
    """Time what a step and a validation consist of, besides the network's own passes."""
    geometry, classes = UnetGeometry(config.depth), len(data.classes)
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((1, SIDE, SIDE), generator=generator).to(device)
    truth = torch.rand((2, SIDE, SIDE), generator=generator).round().to(device)
    model = make_model(config, classes, device)
    optimiser = make_optimiser(model, config)
    side = geometry.output_side(config.tile_side)
    logits = torch.randn((1, classes, side, side), device=device, requires_grad=True)
    label = torch.zeros((1, side, side), dtype=torch.int64, device=device)
    weights = torch.ones((1, side, side), device=device)

    def draw(deformation: Any) -> None:
        draw_patch(
            image,
            truth,
            tile_side=config.tile_side,
            geometry=geometry,
            config=AugmentationConfig(deformation=deformation, deform_probability=1),  # the dearest patches
            generator=generator,
        )

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.gradient_norm_limit)
        optimiser.step()

    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    parts: dict[str, Callable[[], object]] = {
        "patch_grid_ms": lambda: draw("grid"),
        "patch_field_ms": lambda: draw("field"),
        "loss_forward_backward_ms": lambda: weighted_cross_entropy(logits, label, weights).backward(),
        "clip_and_update_ms": update,
        "validation_of_one_image_ms": lambda: validate(model, data, step=0),
    }
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for run in range(runs + 1):
        for name, part in parts.items():
            elapsed = time_once(part, device)
            if run:
                seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    per_second = {f"patches_per_s_{kind}": round(1 / medians[f"patch_{kind}_ms"], 1) for kind in ("grid", "field")}
    return {name: in_ms(value) for name, value in medians.items()} | per_second


def time_weight_map(runs: int) -> dict[str, Any]:
    """Time separation and weights of an image with some 500 cells, most of which touch."""
    y, x = np.mgrid[:SIDE, :SIDE]
    random = np.random.default_rng(0)
    step = 22
    number = (y // step) * (SIDE // step + 1) + x // step + 1
    size = random.integers(16, step + 1, number.max() + 1)[number]
    instances = np.where((y % step < size) & (x % step < size), number, 0)
    separating, weighing = [], []
    for _ in range(runs):
        start = time.perf_counter()
        cells = separate_touching(instances)
        separating.append(time.perf_counter() - start)
        label = (cells > 0).astype(np.uint8)
        start = time.perf_counter()
        weight_map(label, cells, class_weights=(1, 1), border_weight=10, border_sigma_px=5)
        weighing.append(time.perf_counter() - start)
    return {
        "image": f"{SIDE} x {SIDE}",
        "cells": len(np.unique(instances)) - 1,
        "separate_touching_ms": in_ms(statistics.median(separating)),
        "weight_map_ms": in_ms(statistics.median(weighing)),
    }


def draw_data() -> TrainingData:
    """Return two images to train on and one to validate on, with cells told apart."""
    sample = em_like_volume_with_truth(shape=(3, SIDE, SIDE), seed=1)
    images = [
        AnnotatedImage(stem=str(z), image=grey, label=membrane.astype(np.uint8), cells=number_components(~membrane))
        for z, (grey, membrane) in enumerate(zip(sample.image, sample.membrane, strict=True))
    ]
    grey = np.stack([a.image for a in images[:2]])
    inside, membrane = np.bincount(np.stack([a.label for a in images[:2]]).ravel(), minlength=2).tolist()
    return TrainingData(
        training=tuple(images[:2]),
        validation=tuple(images[2:]),
        excluded=(),
        classes=("inside", "membrane"),
        dtype="uint8",
        value_range=(0.0, 255.0),
        mean=float(grey.mean()),
        std=float(grey.std()),
        histogram=Histogram(value_range=(0.0, 255.0), counts=(grey.size,)),
        class_pixels=(inside, membrane),
        cell_class=0,
    )


def make_model(config: TrainingConfig, classes: int, device: torch.device) -> UNet:
    """Return the network in training mode, laid out in memory as the loop does it."""
    model = UNet(depth=config.depth, base_width=config.base_width, classes=classes, dropout=config.dropout)
    layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
    return model.to(device=device, memory_format=layout).train()  # type: ignore[call-overload, no-any-return]


def time_once(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of one run, all that it asked of a GPU included."""
    synchronise(device)
    start = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - start


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


if __name__ == "__main__":
    main()
