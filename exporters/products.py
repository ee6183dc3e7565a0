"""The artifacts of a checkpoint, in memory: made, and proved to compute what they were made from.

1. fp32: the graph, a test tensor (a small synthetic image in the input's own dtype and range, and the torch network's
   logits), the card; read back as the runtime will (every check of `runtime.artifact`), opened (which replays the test
   tensor), and compared with torch at several sizes. This is the *parent*.
2. fp16 and int8: the parent's graph converted, the card with the parent's hash, compared with the parent on real tiles;
   what was found is written into the card, which is read back and replayed as before.
3. Every comparison is a `Proof`: through which engine, against what. One artifact may have several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from unet_deploy.card import ModelCard, Parity, Precision, TestTensor
from unet_deploy.exporters.calibration import Tiles
from unet_deploy.exporters.fp16 import convert_to_fp16, require_fp16_range
from unet_deploy.exporters.graph import build_graph, stamp_card
from unet_deploy.exporters.int8 import quantise
from unet_deploy.exporters.parity import ParityRow, compare, compare_tiles, mean_labels_equal, torch_logits
from unet_deploy.runtime.artifact import Artifact, hash_graph, read_artifact
from unet_deploy.runtime.engines import CheckedEngine, EngineDescription, open_engine
from unet_deploy.runtime.normalise import normaliser_of_image
from unet_deploy.training.network import UNet

ENGINE = "onnxruntime-cpu"
"""What parity is shown through: every machine that exports has it, and all precisions run on it."""
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """A comparison that was passed: through which engine, against what, and the rows."""

    engine: EngineDescription
    rows: tuple[ParityRow, ...]
    compared_with: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """An artifact that was proved, not yet written; the first proof is that through `ENGINE`."""

    artifact: Artifact
    proofs: tuple[Proof, ...]


def make_parent(
    model: UNet, card: ModelCard, *, source: str, progress: Progress, engines: Sequence[str] = (ENGINE,)
) -> Product:
    """Make and prove the fp32 artifact.

    Parameters
    ----------
    model, card
        The checkpoint.
    source
        What to call it in messages.
    progress
        Told each step, in words.
    engines
        Which engines are to prove it, by name.

    Raises
    ------
    ParityError, TestTensorError
        If an engine does not compute what the checkpoint computes.
    MissingDependencyError
        If an engine is not installed.
    """
    progress("writing the graph")
    graph = build_graph(card.unet, {k: v.detach().numpy() for k, v in model.state_dict().items()})
    card = card.with_export(graph_sha256=hash_graph(graph), test_tensor=make_test_tensor(model, card))
    progress("reading it back and replaying the test tensor")
    artifact = read_artifact(stamp_card(graph, card), source=source)
    proofs: list[Proof] = []
    for name in engines:
        engine = open_engine(artifact, device="cpu", engine=name)
        try:
            progress("comparing with torch" if name == ENGINE else f"comparing {name} with torch")
            rows = compare(model, engine, card.unet)
            proofs.append(Proof(engine=engine.describe(), rows=rows, compared_with="torch"))
        finally:
            engine.close()
    return Product(artifact=artifact, proofs=tuple(proofs))


def derive(
    precision: Precision,
    parent: Artifact,
    model: UNet,
    tiles: Tiles,
    *,
    progress: Progress,
    engines: Sequence[str] = (ENGINE,),
) -> Product:
    """Make and prove the fp16 or int8 artifact of a parent; keywords and exceptions as of `make_parent`."""
    graph = bare_graph(parent)
    if precision == "fp16":
        progress("looking for values beyond fp16")
        require_fp16_range(model, tiles.tiles, data=tiles.data)
        graph = convert_to_fp16(graph)
    else:
        progress(f"calibrating int8 on {len(tiles.calibration)} tiles")
        graph = quantise(graph, tiles.calibration)
    card = derived_card(parent, graph, precision)
    source = f"{parent.source} in {precision}"
    unproved = read_artifact(stamp_card(graph, card), source=source)
    proofs = prove(parent, unproved, tiles, progress=progress, engines=engines)
    proved = replace(card, parity=record(proofs, tiles))
    artifact = read_artifact(stamp_card(graph, proved), source=source)
    for name in engines:
        open_engine(artifact, device="cpu", engine=name).close()  # replays the test tensor
    return Product(artifact=artifact, proofs=proofs)


def bare_graph(artifact: Artifact) -> onnx.ModelProto:
    """Return an artifact's graph without its card."""
    graph = onnx.load_model_from_string(artifact.data)
    del graph.metadata_props[:]
    return graph


def derived_card(parent: Artifact, graph: onnx.ModelProto, precision: Precision) -> ModelCard:
    """Return the card of a graph that was made from the parent's."""
    assert parent.card.test_tensor is not None
    return parent.card.with_export(
        graph_sha256=hash_graph(graph),
        test_tensor=parent.card.test_tensor,
        precision=precision,
        parent_sha256=parent.sha256,
    )


def prove(
    parent: Artifact, product: Artifact, tiles: Tiles, *, progress: Progress, engines: Sequence[str] = (ENGINE,)
) -> tuple[Proof, ...]:
    """Compare a product with its parent on tiles, through each engine; the parent always runs on `ENGINE`.

    On the tiles first, which say more than a test tensor that fails: the product's is not replayed here.

    Raises
    ------
    ParityError
        If it is farther from the parent than the engine's tolerance.
    """
    without = replace(product, card=replace(product.card, test_tensor=None))
    proofs: list[Proof] = []
    expected = open_engine(parent, device="cpu", engine=ENGINE)
    try:
        for name in engines:
            through = "" if name == ENGINE else f" through {name}"
            progress(f"comparing {product.card.precision} with fp32 on {len(tiles.parity)} tiles{through}")
            engine = open_engine(without, device="cpu", engine=name)
            try:
                proofs.append(prove_on_tiles(expected, engine, tiles))
            finally:
                engine.close()
    finally:
        expected.close()
    return tuple(proofs)


def prove_on_tiles(parent: CheckedEngine, engine: CheckedEngine, tiles: Tiles) -> Proof:
    """Compare two open engines on tiles."""
    rows = compare_tiles(parent, engine, tiles.parity, data=tiles.data)
    return Proof(engine=engine.describe(), rows=rows, compared_with=f"fp32 on {tiles.data}")


def record(proofs: Sequence[Proof], tiles: Tiles) -> Parity:
    """Return what a card says of proofs on tiles: of several engines, the worst each found."""
    return Parity(
        engine=", ".join(proof.engine.engine for proof in proofs),
        data=tiles.data,
        tiles=len(proofs[0].rows),
        max_difference=max(row.max_difference for proof in proofs for row in proof.rows),
        mean_difference=max(float(np.mean([row.mean_difference for row in proof.rows])) for proof in proofs),
        labels_equal=min(mean_labels_equal(proof.rows) for proof in proofs),
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
