"""A tiny network and tiny volumes: the whole main job in a tenth of a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import zarr

from unet_deploy.card import ClassInfo, InputContract, ModelCard, Network, Normalisation, Training
from unet_deploy.card_json import CARD_HASH_KEY, METADATA_KEY
from unet_deploy.runtime.artifact import hash_card
from unet_deploy.runtime.ome import LevelTransform, multiscales_attributes

NETWORK = Network(depth=2, base_width=2, in_channels=1, classes=2)
CARD = ModelCard(
    name="tiny",
    description="random weights, for tests",
    network=NETWORK,
    input=InputContract(dtype="uint8", value_range=(0.0, 255.0), channels=("grey",)),
    normalisation=Normalisation(mean=(128.0,), std=(40.0,), source="made up"),
    classes=(ClassInfo(name="inside", colour="#000000"), ClassInfo(name="membrane", colour="#ffffff")),
    training=Training(
        data="no data",
        licence="CC0",
        citation="none",
        images=1,
        validation=("7",),
        steps=1,
        seed=0,
        seconds=1.0,
        versions={"torch": "none"},
        scores={"dice": 0.5},
        recipe={},
    ),
)
VOXEL_NM = (50.0, 4.0, 4.0)


def write_checkpoint(path: Path) -> Path:
    """Write a checkpoint of the tiny network with fixed random weights; needs torch."""
    import torch

    from unet_deploy.training.checkpoint import save_checkpoint
    from unet_deploy.training.network import UNet

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UNet(depth=NETWORK.depth, base_width=NETWORK.base_width)
    save_checkpoint(path, model=model, card=CARD)
    return path


def write_bundled_checkpoint(path: Path, name: str) -> Path:
    """Write a bundled network as a checkpoint: the names of its weights are those of the torch network; needs torch."""
    import torch

    from unet_deploy.runtime import load_bundled_artifact
    from unet_deploy.training.checkpoint import save_checkpoint
    from unet_deploy.training.network import UNet

    artifact = load_bundled_artifact(name)
    network = artifact.card.unet
    model = UNet(depth=network.depth, base_width=network.base_width)
    graph = onnx.load_model_from_string(artifact.data).graph
    weights = {
        t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT
    }
    model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in weights.items()})
    save_checkpoint(path, model=model, card=replace(artifact.card, graph_sha256=None, test_tensor=None))
    return path


def edit_card(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Write a copy of an artifact whose card was changed, and nothing else."""
    model = onnx.load(source)
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    card = json.loads(entry.value)
    change(card)
    entry.value = json.dumps(card, sort_keys=True)
    stamp = next(entry for entry in model.metadata_props if entry.key == CARD_HASH_KEY)
    stamp.value = hash_card(entry.value)  # or every edit would be refused for the same reason
    target.write_bytes(model.SerializeToString(deterministic=True))
    return target


def make_pixels(shape: Sequence[int], *, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return noise with structure at several scales, so that labels are neither all 0 nor all 1."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(128, 40, shape)
    coarse = np.kron(rng.normal(0, 60, [*shape[:-2], *(-(-n // 8) for n in shape[-2:])]), np.ones((8, 8)))
    return np.clip(noise + coarse[..., : shape[-2], : shape[-1]], 0, 255).astype(np.uint8)


def write_array(path: Path, pixels: npt.NDArray[Any], *, chunk_side: int = 64, names: str | None = None) -> Path:
    """Write a bare Zarr v3 array, one plane a chunk."""
    chunks = tuple(min(n, chunk_side) if i >= pixels.ndim - 2 else 1 for i, n in enumerate(pixels.shape))
    array = zarr.create_array(
        path, shape=pixels.shape, chunks=chunks, dtype=pixels.dtype, dimension_names=list(names) if names else None
    )
    array[...] = pixels
    return path


def write_image(
    path: Path,
    pixels: npt.NDArray[Any],
    *,
    axes: str = "zyx",
    version: Literal["0.4", "0.5"] = "0.5",
    channel_names: Sequence[str] = (),
) -> Path:
    """Write an OME-Zarr of one level, with the voxel size `VOXEL_NM`."""
    scales = dict(zip("zyx", VOXEL_NM, strict=True))
    scale = tuple(scales.get(axis, 1.0) for axis in axes)
    attributes = multiscales_attributes(
        version=version,
        name="tiny",
        axes=axes,
        units=tuple("nanometer" if axis in scales else None for axis in axes),
        levels=[LevelTransform(path="0", scale=scale, translation=None)],
        type_="mean",
    )
    if channel_names:
        holder = attributes["ome"] if version == "0.5" else attributes
        holder["omero"] = {"channels": [{"label": name} for name in channel_names]}
    zarr_format = 3 if version == "0.5" else 2
    root = zarr.create_group(path, zarr_format=zarr_format, attributes=attributes)
    chunks = tuple(min(n, 64) if i >= pixels.ndim - 2 else 1 for i, n in enumerate(pixels.shape))
    array: Any = root.create_array("0", shape=pixels.shape, chunks=chunks, dtype=pixels.dtype)
    array[...] = pixels
    return path


def write_huge(path: Path, shape: Sequence[int]) -> Path:
    """Write the metadata of a huge array without a single chunk."""
    chunks = (1,) * (len(shape) - 2) + (1024, 1024)
    zarr.create_array(path, shape=tuple(shape), chunks=chunks, dtype="uint8")
    return path


def read_arrays(store: Path) -> dict[str, npt.NDArray[Any]]:
    """Return every array of a store by its path, without the image of its blocks' status."""
    root = zarr.open_group(store, mode="r")
    return {
        name: np.asarray(array[...])
        for name, array in root.members(max_depth=None)
        if isinstance(array, zarr.Array) and name != "unet_deploy_run"
    }


def read_provenance(store: Path) -> dict[str, Any]:
    """Return what a segmentation says of itself."""
    value: Any = zarr.open_group(store, mode="r").attrs["unet_deploy"]
    return dict(value)


def snapshot(folder: Path) -> dict[str, str]:
    """Return everything below a folder: paths and, for files, hashes of the content."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@contextmanager
def no_file_above(n_bytes: int) -> Iterator[None]:
    """Let this process write no file longer than that: a disk that is full, as far as a small test can have one."""
    resource: Any = pytest.importorskip("resource", reason="Windows has no limit on the size of a file to set")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))  # Python ignores the signal, so the write fails
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
