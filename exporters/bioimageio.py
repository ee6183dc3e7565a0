"""A bioimage.io package of an artifact: one zip file that ilastik, deepImageJ and ``bioimageio.core`` know how to run.

1. The weights are the artifact's own file, byte for byte, with its model card in it.
2. ``rdf.yaml`` is a model description of format 0.5 (https://github.com/bioimage-io/spec-bioimage-io). An input side is
   min + n · step. The output is smaller by the context on each side, which the format calls an offset: what is left
   needs no halo, every pixel of it is valid.
3. Normalisation and soft-max stand beside the graph, as pre- and postprocessing in the format's own words. Of a card
   with percentiles these are taken over a plane's pixels, where this program takes those of the whole volume.
4. The test tensors are the card's raw image and what this very graph gives for it, computed while the package is made.
5. The same artifact gives the same bytes: no date, no compression (weights have no room for it), one order of files.

What the format has no place for (how tiles must lie to be seamless, the histogram, colours) stays in the card.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from unet_deploy.card import JsonObject, ModelCard, Network, Precision
from unet_deploy.errors import UsageError
from unet_deploy.exporters._bioimageio_text import list_citations, spdx_identifier, stated, write_readme, write_yaml
from unet_deploy.exporters.targets import require_place, write_whole
from unet_deploy.percentiles import percentile_range, rank_of
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines import open_engine
from unet_deploy.runtime.normalise import normaliser_of_image

FORMAT_VERSION = "0.5.12"
DESCRIPTION, WEIGHTS, README, LICENCE = "rdf.yaml", "model.onnx", "README.md", "LICENSE.txt"
TEST_INPUT, TEST_OUTPUT = "test_input.npy", "test_output.npy"
INPUT_ID, OUTPUT_ID = "image", "probabilities"
MIN_STD = 1e-3
"""Below this, the 1e-6 that readers add to a standard deviation would be seen in the result."""
MIN_NAME, MAX_NAME, MAX_DESCRIPTION = 5, 64, 512
TOLERANCES: dict[Precision, JsonObject] = {
    "fp32": {"relative_tolerance": 1e-3, "absolute_tolerance": 1e-3, "mismatched_elements_per_million": 100},
    "fp16": {"relative_tolerance": 1e-2, "absolute_tolerance": 5e-3, "mismatched_elements_per_million": 1000},
}
"""How far probabilities may be off on another machine; the format allows at most 0.01 of the largest. int8 is off by up
to 0.06 between two optimisation levels of one engine, so a package of it would fail its own test."""

Pixels = npt.NDArray[Any]


def write_package(
    artifact: Artifact, path: str | Path, *, overwrite: bool = False, authors: Sequence[str] = ()
) -> Path:
    """Write a bioimage.io model package.

    Parameters
    ----------
    artifact
        A checked artifact.
    path
        Where to, conventionally ``NAME.zip``.
    overwrite
        Replace an existing file.
    authors
        Who made the network, by name. The format only warns of none, but the bioimage.io collection asks for them.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    OutputExistsError, OutputPathError
        If something is there, or its folder does not exist or cannot be written to.
    NoSpaceError
        If the disk is full.
    UsageError
        If the artifact is int8, or its percentiles cannot be said in the format.
    MissingDependencyError
        If onnxruntime, which computes the test output, is not installed.
    ModelError
        If the engine does not run the artifact, or not as its parent ran.
    """
    path = Path(path)
    require_place("bioimageio", path, overwrite=overwrite)
    files = package_files(artifact, authors=authors)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16  # as on Unix, wherever it is written
            archive.writestr(entry, data)
    write_whole(path, buffer.getbuffer())
    return path


def require_packageable(card: ModelCard) -> None:
    """Say before any work whether a network can be a package.

    Raises
    ------
    UsageError
        If it is int8, or its percentiles cannot be said in the format.
    """
    if card.precision not in TOLERANCES:
        raise UsageError(
            f"{card.precision} came, a bioimage.io package takes {' or '.join(TOLERANCES)}",
            "its readers must reproduce a test image to 0.01, and int8 rounds differently on every kind of processor",
            fix=f"--precision {next(iter(TOLERANCES))}",
        )
    percentiles = card.normalisation.percentiles
    if percentiles is not None and percentiles[1] <= 1:
        raise UsageError(
            f"percentiles {percentiles[0]:g} and {percentiles[1]:g} cannot be said in a bioimage.io package",
            "the format takes an upper percentile above 1, so that nobody means 0.998 and writes it for 99.8",
            fix="use the ONNX file itself, or train with other percentiles",
        )


def package_files(artifact: Artifact, *, authors: Sequence[str] = ()) -> dict[str, bytes]:
    """Return the files of a package by name; exceptions as of `write_package`."""
    card = artifact.card
    require_packageable(card)
    image, probabilities = make_test_pair(artifact)
    files = {
        WEIGHTS: artifact.data,
        TEST_INPUT: _to_npy(image),
        TEST_OUTPUT: _to_npy(probabilities),
        README: write_readme(artifact, authors=authors).encode(),
    }
    if stated(card.training.licence) and spdx_identifier(card.training.licence) is None:
        files[LICENCE] = f"{card.training.licence}\n".encode()
    largest = float(probabilities.max())
    description = describe_package(artifact, files, largest_probability=largest, authors=authors)
    return {DESCRIPTION: write_yaml(description).encode(), **files}


def make_test_pair(artifact: Artifact) -> tuple[Pixels, npt.NDArray[np.float32]]:
    """Return a raw image (n, c, y, x) and the probabilities (n, classes, y', x') that the artifact gives for it.

    With percentiles, the image's extremes are clipped so that the readers' percentiles, which may lie between two grey
    values, and ours, which never do, are the same numbers.
    """
    card = artifact.card
    assert card.test_tensor is not None, "an artifact has a test tensor"
    image = card.test_tensor.image
    if card.normalisation.percentiles is not None:
        planes = [[_clip_to_percentiles(channel, card) for channel in one] for one in image]
        image = np.stack([np.stack(channels) for channels in planes])
    batch = np.stack([normaliser_of_image(card, one)(one) for one in image])
    engine = open_engine(artifact, device="cpu", engine="onnxruntime-cpu")
    try:
        logits = engine.infer(batch)
    finally:
        engine.close()
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return image, np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float32)


def describe_package(
    artifact: Artifact, files: Mapping[str, bytes], *, largest_probability: float, authors: Sequence[str]
) -> JsonObject:
    """Return ``rdf.yaml`` as plain values."""
    card = artifact.card
    tolerance = dict(TOLERANCES[card.precision])
    tolerance["absolute_tolerance"] = min(tolerance["absolute_tolerance"], 0.0099 * largest_probability)
    tolerance["weights_formats"] = ["onnx"]
    description: JsonObject = {
        "type": "model",
        "format_version": FORMAT_VERSION,
        "name": _name(card.name),
        "description": _cut(card.description, MAX_DESCRIPTION),
        "authors": [{"name": re.sub(r"[/\\]", "-", name)} for name in authors],
        "cite": list_citations(card),
        "license": _licence(card, files),
        "tags": ["2d", "segmentation", "semantic-segmentation", "onnx", "unet-deploy", *_network_tags(card)],
        "documentation": _file(README, files),
        "inputs": [_describe_input(card, files)],
        "outputs": [_describe_output(card, files)],
        "weights": {"onnx": {**_file(WEIGHTS, files), "opset_version": _opset(artifact)}},
        "config": {
            "bioimageio": {"reproducibility_tolerance": [tolerance]},
            "unet_deploy": {
                "artifact_sha256": artifact.sha256,
                "precision": card.precision,
                "divisor": card.geometry.divisor,
                "context": card.geometry.context,
            },
        },
    }
    return {key: value for key, value in description.items() if value not in ([], "", None)}


def _describe_input(card: ModelCard, files: Mapping[str, bytes]) -> JsonObject:
    size = {"min": card.geometry.smallest_tile, "step": card.geometry.divisor}
    # Percentiles make any data type right; a type named here would be cast to, and a 16-bit image wrapped around.
    data: JsonObject = (
        {"type": card.input.dtype, "range": list(card.input.value_range)}
        if card.normalisation.percentiles is None
        else {"type": "float32"}
    )
    return {
        "id": INPUT_ID,
        "description": "raw grey values, not normalised",
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": list(card.input.channels)},
            *({**axis, "size": size} for axis in _space_axes(card)),
        ],
        "data": data,
        "preprocessing": _preprocessing(card, data["type"]),
        "test_tensor": _file(TEST_INPUT, files),
    }


def _describe_output(card: ModelCard, files: Mapping[str, bytes]) -> JsonObject:
    def size(axis: str) -> JsonObject:
        return {"tensor_id": INPUT_ID, "axis_id": axis, "offset": -2 * card.geometry.context}

    return {
        "id": OUTPUT_ID,
        "description": "probability of each class",
        "axes": [
            {"type": "batch"},
            {"type": "channel", "channel_names": [info.name for info in card.classes]},
            *({**axis, "size": size(axis["id"])} for axis in _space_axes(card)),
        ],
        "data": {"type": "float32", "range": [0.0, 1.0]},
        "postprocessing": [
            {"id": "softmax", "kwargs": {"axis": "channel"}},
            {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
        ],
        "test_tensor": _file(TEST_OUTPUT, files),
    }


def _space_axes(card: ModelCard) -> list[JsonObject]:
    pixel = card.input.pixel_size_nm
    scales = (
        ({}, {})
        if pixel is None
        else ({"unit": "nanometer", "scale": pixel[0]}, {"unit": "nanometer", "scale": pixel[1]})
    )
    return [{"type": "space", "id": axis, **scale} for axis, scale in zip("yx", scales, strict=True)]


def _preprocessing(card: ModelCard, dtype: str) -> list[JsonObject]:
    constants = card.normalisation
    mean, std = list(constants.mean), list(constants.std)
    steps: list[JsonObject] = [{"id": "ensure_dtype", "kwargs": {"dtype": dtype}}]
    if constants.percentiles is not None:
        low, high = constants.percentiles
        steps.append(
            {"id": "scale_range", "kwargs": {"axes": ["y", "x"], "min_percentile": low, "max_percentile": high}}
        )
    if min(std) >= MIN_STD:
        steps.append({"id": "fixed_zero_mean_unit_variance", "kwargs": {"axis": "channel", "mean": mean, "std": std}})
    else:  # the same, without what is added to a standard deviation
        gain = [1 / s for s in std]
        offset = [-m / s for m, s in zip(mean, std, strict=True)]
        steps.append({"id": "scale_linear", "kwargs": {"axis": "channel", "gain": gain, "offset": offset}})
    return [*steps, {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}]


def _clip_to_percentiles(channel: Pixels, card: ModelCard) -> Pixels:
    """Return a channel whose values around each percentile's rank are one value, so that nothing lies between."""
    assert card.normalisation.percentiles is not None
    ordered = np.sort(channel, axis=None)
    above_low = ordered[min(rank_of(card.normalisation.percentiles[0], ordered.size) + 1, ordered.size - 1)]
    _, high = percentile_range(channel, card.normalisation.percentiles)
    return np.asarray(np.clip(channel, min(above_low, high), high), channel.dtype)


def _name(name: str) -> str:
    allowed = re.sub(r"[^A-Za-z0-9_+\- ()]+", "-", name)[:MAX_NAME].strip()
    return allowed if len(allowed) >= MIN_NAME else f"{allowed} network".strip()


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _licence(card: ModelCard, files: Mapping[str, bytes]) -> str | JsonObject | None:
    return _file(LICENCE, files) if LICENCE in files else spdx_identifier(card.training.licence)


def _network_tags(card: ModelCard) -> list[str]:
    return ["unet", "unet2d"] if isinstance(card.network, Network) else []


def _opset(artifact: Artifact) -> int:
    model = onnx.load_model_from_string(artifact.data)
    return max(int(opset.version) for opset in model.opset_import if opset.domain in ("", "ai.onnx"))


def _file(name: str, files: Mapping[str, bytes]) -> JsonObject:
    return {"source": name, "sha256": hashlib.sha256(files[name]).hexdigest()}


def _to_npy(array: Pixels) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()
