"""Checkpoint in, checked artifacts out.

1. Load the checkpoint and write its graph.
2. Make the test tensor: a small synthetic image in the input's own dtype and range, and the torch network's logits.
3. Stamp the card, read the bytes back as the runtime will (every check of `runtime.artifact`), open the engine
   (which replays the test tensor), and compare with torch at several sizes. This is the fp32 artifact, the *parent*.
4. For fp16 and int8: convert the parent's graph, stamp the card with the parent's hash, compare with the parent on real
   tiles, write what was found into the card, and read it back and replay the test tensor as before.
5. Only when all that was asked for is proved, write the files, each in one move. Whatever fails before leaves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from unet_deploy.card import ModelCard, Parity, Precision, TestTensor
from unet_deploy.errors import OutputExistsError, OutputPathError, UsageError
from unet_deploy.exporters.calibration import CalibrationSource, Tiles, draw_sample, read_tiles
from unet_deploy.exporters.fp16 import convert_to_fp16, require_fp16_range
from unet_deploy.exporters.graph import build_graph, stamp_card
from unet_deploy.exporters.int8 import quantise
from unet_deploy.exporters.parity import ParityRow, compare, compare_tiles, mean_labels_equal, torch_logits
from unet_deploy.runtime.artifact import Artifact, hash_graph, read_artifact
from unet_deploy.runtime.engines import open_engine
from unet_deploy.runtime.engines.base import EngineDescription
from unet_deploy.runtime.normalise import normaliser_of_image
from unet_deploy.training.checkpoint import load_checkpoint
from unet_deploy.training.network import UNet

ENGINE = "onnxruntime-cpu"
"""What parity is shown through: every machine that exports has it, and all precisions run on it."""
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What was written and how it was checked; `compared_with` is what the parity rows are against."""

    path: Path
    n_bytes: int
    n_nodes: int
    n_weights: int
    sha256: str
    card: ModelCard
    engine: EngineDescription
    parity: tuple[ParityRow, ...]
    compared_with: str = "torch"

    @property
    def max_difference(self) -> float:
        """Largest difference to the parent at any size."""
        return max(row.max_difference for row in self.parity)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Product:
    """An artifact that was proved, not yet written."""

    artifact: Artifact
    engine: EngineDescription
    parity: tuple[ParityRow, ...]
    compared_with: str


def export_checkpoint(
    checkpoint: str | Path, output: str | Path, *, overwrite: bool = False, progress: Progress = lambda _: None
) -> ExportReport:
    """Export a training checkpoint as one checked ONNX artifact (fp32).

    Parameters, and exceptions, as of `export_precisions`.
    """
    (report,) = export_precisions(checkpoint, {"fp32": output}, overwrite=overwrite, progress=progress)
    return report


def export_precisions(
    checkpoint: str | Path,
    outputs: Mapping[Precision, str | Path],
    *,
    calibrate: CalibrationSource | None = None,
    overwrite: bool = False,
    progress: Progress = lambda _: None,
) -> tuple[ExportReport, ...]:
    """Export a training checkpoint as checked ONNX artifacts, one for each precision.

    Parameters
    ----------
    checkpoint
        A file written by ``unet-deploy train``.
    outputs
        Where to write the ONNX file of each precision.
    calibrate
        Data like those that will be segmented. int8 needs it; for fp16 it takes the place of the procedural sample.
    overwrite
        Replace existing files.
    progress
        Told each step, in words.

    Returns
    -------
    tuple of ExportReport
        One for each precision, in the order given.

    Raises
    ------
    UsageError
        If int8 is asked for without data to calibrate on, or data are given that nothing needs.
    OutputExistsError, OutputPathError
        If an output exists, or its folder does not.
    CheckpointError, ModelNotFoundError
        If the checkpoint cannot be loaded.
    MissingDependencyError
        If onnxruntime, which proves parity, is not installed.
    InputDataError
        If the calibration data cannot be read or used; see `exporters.calibration.read_tiles`.
    ParityError, TestTensorError
        If a file would not compute what the checkpoint computes.
    """
    paths = {precision: Path(output) for precision, output in outputs.items()}
    _require_calibration(paths, calibrate)
    for path in paths.values():
        _require_place(path, overwrite=overwrite)
    progress("loading the checkpoint")
    model, card = load_checkpoint(Path(checkpoint))
    parent = _export_parent(model, card, source=str(paths.get("fp32", checkpoint)), progress=progress)
    products: dict[Precision, _Product] = {"fp32": parent}
    if any(precision != "fp32" for precision in paths):
        progress("drawing tiles" if calibrate is None else f"drawing tiles of {calibrate.path}")
        tiles = draw_sample(card) if calibrate is None else read_tiles(calibrate, parent.artifact)
        for precision in paths:
            if precision != "fp32":
                products[precision] = _derive(precision, parent.artifact, model, tiles, progress=progress)
    for precision, path in paths.items():
        _write(path, products[precision].artifact.data)
    n_weights = sum(p.numel() for p in model.parameters())
    return tuple(_report(products[precision], path, n_weights) for precision, path in paths.items())


def _require_calibration(paths: Mapping[Precision, Path], calibrate: CalibrationSource | None) -> None:
    if "int8" in paths and calibrate is None:
        raise UsageError(
            "int8 needs data to calibrate on, and none were given",
            "the range of every layer's values is measured on tiles of data like those that will be segmented",
            fix="--calibrate VOLUME.zarr, or a folder of PNG or TIFF images",
        )
    if calibrate is not None and set(paths) <= {"fp32"}:
        raise UsageError(
            f"--calibrate {calibrate.path} came, and fp32 needs no calibration",
            "nothing was exported",
            fix="leave it out, or add --precision int8",
        )


def _require_place(output: Path, *, overwrite: bool) -> None:
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


def _export_parent(model: UNet, card: ModelCard, *, source: str, progress: Progress) -> _Product:
    """Make and prove the fp32 artifact."""
    progress("writing the graph")
    graph = build_graph(card.unet, {k: v.detach().numpy() for k, v in model.state_dict().items()})
    card = card.with_export(graph_sha256=hash_graph(graph), test_tensor=make_test_tensor(model, card))
    progress("reading it back and replaying the test tensor")
    artifact = read_artifact(stamp_card(graph, card), source=source)
    engine = open_engine(artifact, device="cpu", engine=ENGINE)
    try:
        progress("comparing with torch")
        parity = compare(model, engine, card.unet)
        return _Product(artifact=artifact, engine=engine.describe(), parity=parity, compared_with="torch")
    finally:
        engine.close()


def _derive(precision: Precision, parent: Artifact, model: UNet, tiles: Tiles, *, progress: Progress) -> _Product:
    """Make and prove the fp16 or int8 artifact of a parent."""
    graph = onnx.load_model_from_string(parent.data)
    del graph.metadata_props[:]
    if precision == "fp16":
        progress("looking for values beyond fp16")
        require_fp16_range(model, tiles.tiles, data=tiles.data)
        graph = convert_to_fp16(graph)
    else:
        progress(f"calibrating int8 on {len(tiles.calibration)} tiles")
        graph = quantise(graph, tiles.calibration)
    assert parent.card.test_tensor is not None
    card = parent.card.with_export(
        graph_sha256=hash_graph(graph),
        test_tensor=parent.card.test_tensor,
        precision=precision,
        parent_sha256=parent.sha256,
    )
    source = f"{parent.source} in {precision}"
    unproved = read_artifact(stamp_card(graph, card), source=source)
    progress(f"comparing {precision} with fp32 on {len(tiles.parity)} tiles")
    rows, description = _compare(parent, unproved, tiles)
    parity = Parity(
        engine=description.engine,
        data=tiles.data,
        tiles=len(rows),
        max_difference=max(row.max_difference for row in rows),
        mean_difference=float(np.mean([row.mean_difference for row in rows])),
        labels_equal=mean_labels_equal(rows),
    )
    artifact = read_artifact(stamp_card(graph, replace(card, parity=parity)), source=source)
    open_engine(artifact, device="cpu", engine=ENGINE).close()  # replays the test tensor
    return _Product(artifact=artifact, engine=description, parity=rows, compared_with=f"fp32 on {tiles.data}")


def _compare(parent: Artifact, product: Artifact, tiles: Tiles) -> tuple[tuple[ParityRow, ...], EngineDescription]:
    """Compare on the tiles first, which say more than a test tensor that fails."""
    without = replace(product, card=replace(product.card, test_tensor=None))
    expected = open_engine(parent, device="cpu", engine=ENGINE)
    try:
        engine = open_engine(without, device="cpu", engine=ENGINE)
        try:
            return compare_tiles(expected, engine, tiles.parity, data=tiles.data), engine.describe()
        finally:
            engine.close()
    finally:
        expected.close()


def _write(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _report(product: _Product, path: Path, n_weights: int) -> ExportReport:
    artifact = product.artifact
    return ExportReport(
        path=path,
        n_bytes=len(artifact.data),
        n_nodes=artifact.n_nodes,
        n_weights=n_weights,
        sha256=artifact.sha256,
        card=artifact.card,
        engine=product.engine,
        parity=product.parity,
        compared_with=product.compared_with,
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
