"""The bundled network at the paper's width: same function, four times the channels, for measurements at width 64.

    python benchmarks/wide_network.py wide.pt [--factor 4]

Every channel is repeated, and the weights that read it are divided by the factor: the logits stay what they were, up to
rounding, with the cost and the file size of the wide network. So parity and calibration are of real values.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from unet_deploy.runtime import load_bundled_artifact
from unet_deploy.training.checkpoint import save_checkpoint
from unet_deploy.training.network import UNet


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("output", type=Path)
    parser.add_argument("--factor", type=int, default=4)
    options = parser.parse_args()
    artifact = load_bundled_artifact()
    card = artifact.card
    network = replace(card.network, base_width=card.network.base_width * options.factor)
    graph = onnx.load_model_from_string(artifact.data).graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer if not t.name.startswith("crop")}
    model = UNet(
        depth=network.depth, base_width=network.base_width, in_channels=network.in_channels, classes=network.classes
    )
    model.load_state_dict({name: torch.from_numpy(widen(name, w, options.factor)) for name, w in weights.items()})
    wide = replace(card, network=network, name=f"{card.name}, widened", graph_sha256=None, test_tensor=None)
    save_checkpoint(options.output, model=model, card=wide, overwrite=True)
    print(f"{options.output}: width {network.base_width}, {sum(p.numel() for p in model.parameters()):,} weights")


def widen(name: str, values: np.ndarray, factor: int) -> np.ndarray:
    """Return a weight or bias with each channel repeated, but those of the image and of the classes."""
    if name.endswith(".bias"):
        return values.copy() if name.startswith("head") else values.repeat(factor)
    into, out_of = (0, 1) if name.startswith("up.") else (1, 0)  # transposed convolutions have them the other way
    if not name.startswith("head"):
        values = values.repeat(factor, axis=out_of)
    if not name.startswith("contracting.0.0"):
        values = values.repeat(factor, axis=into) / np.float32(factor)
    return values.astype(np.float32)


if __name__ == "__main__":
    main()
