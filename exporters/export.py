"""Checkpoint in, checked artifact out.

1. Load the checkpoint and write its graph.
2. Make the test tensor: a small synthetic image in the input's own dtype and range, and the torch network's logits.
3. Stamp the card, read the bytes back as the runtime will (every check of `runtime.artifact`), open the engine
   (which replays the test tensor), and compare with torch at several sizes.
4. Only then write the file, in one move. Whatever fails before leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.card import ModelCard, TestTensor
from unet_deploy.errors import OutputExistsError, OutputPathError
from unet_deploy.exporters.graph import build_graph, stamp_card
from unet_deploy.exporters.parity import ParityRow, compare, torch_logits
from unet_deploy.runtime.artifact import hash_graph, read_artifact
from unet_deploy.runtime.engines import open_engine
from unet_deploy.runtime.engines.base import EngineDescription
from unet_deploy.runtime.normalise import normaliser_of_image
from unet_deploy.training.checkpoint import load_checkpoint
from unet_deploy.training.network import UNet


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written and how it was checked."""

    path: Path
    n_bytes: int
    n_nodes: int
    n_weights: int
    sha256: str
    card: ModelCard
    engine: EngineDescription
    parity: tuple[ParityRow, ...]

    @property
    def max_difference(self) -> float:
        """Largest difference to torch at any size."""
        return max(row.max_difference for row in self.parity)


def export_checkpoint(
    checkpoint: str | Path,
    output: str | Path,
    *,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> ExportReport:
    """Export a training checkpoint as one checked ONNX artifact (fp32).

    Parameters
    ----------
    checkpoint
        A file written by ``unet-deploy train``.
    output
        Where to write the ONNX file.
    overwrite
        Replace an existing file.
    progress
        Told each step, in words.

    Raises
    ------
    OutputExistsError, OutputPathError
        If the output exists, or its folder does not.
    CheckpointError, ModelNotFoundError
        If the checkpoint cannot be loaded.
    MissingDependencyError
        If onnxruntime, which proves parity, is not installed.
    ParityError, TestTensorError
        If the file would not compute what the checkpoint computes.
    """
    output = Path(output)
    if not output.parent.is_dir():
        raise OutputPathError(
            f"the folder of {output} does not exist",
            "the ONNX file was to be written there",
            fix="create it, or choose --output",
        )
    if output.is_dir():
        raise OutputPathError(
            f"{output} is a folder", "a file was to be written there", fix=f"--output {output / 'model.onnx'}"
        )
    if output.exists() and not overwrite:
        raise OutputExistsError(
            f"{output} exists", "nothing was written", fix="choose another --output, or --overwrite"
        )
    progress("loading the checkpoint")
    model, card = load_checkpoint(Path(checkpoint))
    progress("writing the graph")
    graph = build_graph(card.network, {k: v.detach().numpy() for k, v in model.state_dict().items()})
    card = card.with_export(graph_sha256=hash_graph(graph), test_tensor=make_test_tensor(model, card))
    data = stamp_card(graph, card)
    progress("reading it back and replaying the test tensor")
    artifact = read_artifact(data, source=str(output))
    engine = open_engine(artifact, device="cpu")
    try:
        progress("comparing with torch")
        parity = compare(model, engine, card.network)
        description = engine.describe()
    finally:
        engine.close()
    partial = output.with_name(f".{output.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    return ExportReport(
        path=output,
        n_bytes=len(data),
        n_nodes=artifact.n_nodes,
        n_weights=sum(p.numel() for p in model.parameters()),
        sha256=artifact.sha256,
        card=card,
        engine=description,
        parity=parity,
    )


def make_test_tensor(model: UNet, card: ModelCard) -> TestTensor:
    """Return a smooth random image in the card's dtype and range, and the torch network's logits for it."""
    geometry, channels = card.geometry, card.network.in_channels
    y, x = geometry.smallest_tile, geometry.smallest_tile + geometry.divisor
    image = _smooth_image(channels, y, x, card)
    normalise = normaliser_of_image(card, image)
    return TestTensor(image=image[None], logits=torch_logits(model, normalise(image)[None]))


def _smooth_image(channels: int, y: int, x: int, card: ModelCard) -> npt.NDArray[Any]:
    """Return noise smoothed over 4 px with the training images' mean and spread: (c, y, x) in the card's dtype."""
    rng = np.random.default_rng(20150518)  # the paper's date on arXiv
    noise = rng.standard_normal((channels, y + 3, x + 3))
    smooth: Any = sum(noise[:, i : i + y, j : j + x] for i in range(4) for j in range(4)) / 4  # unit variance again
    mean, std = (np.array(v)[:, None, None] for v in (card.normalisation.mean, card.normalisation.std))
    low, high = card.input.value_range
    values = smooth * std + mean
    if card.normalisation.percentiles is not None:  # the constants are those of images scaled to 0..1
        values = low + (high - low) * values
    values = np.clip(values, low, high)
    dtype = np.dtype(card.input.dtype)
    return np.asarray(np.rint(values) if dtype.kind in "iu" else values, dtype)
