"""The mean over the symmetries through onnxruntime: tiled equals one pass, and it is not the plain result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from tests.tiny import make_pixels
from unet_deploy.geometry import Interval, cover_axis
from unet_deploy.runtime import segment
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines import open_engine
from unet_deploy.runtime.engines.symmetries import SYMMETRIES, SymmetricEngine, TileEngine
from unet_deploy.runtime.normalise import Normaliser, to_labels, to_probabilities
from unet_deploy.runtime.windows import plan_window, spread

SHAPE = (150, 118)
TILES = ((60, 60), (44, 76), (108, 60), (92, 92))

Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def plane() -> npt.NDArray[np.uint8]:
    return make_pixels(SHAPE, seed=4)


def infer(artifact: Artifact, engine: TileEngine, pixels: npt.NDArray[Any]) -> Logits:
    constants = artifact.card.normalisation
    return engine.infer(Normaliser(mean=constants.mean, std=constants.std)(pixels[None])[None])[0]


def infer_whole(artifact: Artifact, engine: TileEngine, plane: npt.NDArray[Any]) -> Logits:
    padding = [(-w.start, w.stop - n) for n in SHAPE if (w := artifact.card.geometry.whole_window(n))]
    return infer(artifact, engine, np.pad(plane, padding, mode="reflect"))[:, : SHAPE[0], : SHAPE[1]]


def infer_tiled(artifact: Artifact, engine: TileEngine, plane: npt.NDArray[Any], tile: tuple[int, int]) -> Logits:
    g = artifact.card.geometry
    rows, columns = (cover_axis(g, Interval(0, n), side) for n, side in zip(SHAPE, tile, strict=True))
    y, x = plan_window(g, rows, SHAPE[0]), plan_window(g, columns, SHAPE[1])
    window = spread(plane, y, x)
    result = np.empty((artifact.card.network.classes, *SHAPE), np.float32)
    for ty in rows:
        for tx in columns:
            pixels = window[ty.read.shifted(-y.window.start).slice, tx.read.shifted(-x.window.start).slice]
            logits = infer(artifact, engine, pixels)
            result[:, ty.keep.slice, tx.keep.slice] = logits[:, ty.crop.slice, tx.crop.slice]
    return result


@pytest.mark.parametrize("tile", TILES)
def test_logits_are_the_mean_of_one_pass_over_each_form(
    tiny_artifact: Artifact, plane: npt.NDArray[np.uint8], tile: tuple[int, int]
) -> None:
    plain = open_engine(tiny_artifact, device="cpu")
    engine = SymmetricEngine(plain)
    whole = infer_whole(tiny_artifact, engine, plane)
    # As in test_tiled_equals_whole: a kernel may round a border column of a tile differently.
    assert np.abs(infer_tiled(tiny_artifact, engine, plane, tile) - whole).max() <= 1e-5
    assert np.abs(whole - infer_whole(tiny_artifact, plain, plane)).max() > 1e-3  # guard: the mean is something else


def test_each_form_is_seamless_by_itself(tiny_artifact: Artifact, plane: npt.NDArray[np.uint8]) -> None:
    """A seam of one form must not vanish in the mean of eight."""
    plain = open_engine(tiny_artifact, device="cpu")

    class One:
        classes = plain.classes

        def __init__(self, symmetry: Any) -> None:
            self._symmetry = symmetry

        def infer(self, batch: Any) -> Any:
            return self._symmetry.undo(plain.infer(np.ascontiguousarray(self._symmetry.apply(batch))))

    forms: list[Logits] = []
    for symmetry in SYMMETRIES:
        one: Any = One(symmetry)
        forms.append(infer_whole(tiny_artifact, one, plane))
        assert np.abs(infer_tiled(tiny_artifact, one, plane, (44, 76)) - forms[-1]).max() <= 1e-5
    assert len({form.tobytes() for form in forms}) == 8


def test_a_run_writes_the_mean(tiny_artifact: Artifact, plane: npt.NDArray[np.uint8], tmp_path: Path) -> None:
    zarr.create_array(str(tmp_path / "plane.zarr"), data=plane, chunks=(64, 50))
    whole = infer_whole(tiny_artifact, SymmetricEngine(open_engine(tiny_artifact, device="cpu")), plane)
    is_sure = np.abs(whole[0] - whole[1]) > 2e-5
    assert is_sure.mean() > 0.4  # guard: of random weights, not all pixels say something
    assert 0.05 < to_labels(whole).mean() < 0.95
    for tile in (None, (44, 76)):
        output = tmp_path / f"{tile}.zarr"
        segment(tmp_path / "plane.zarr", model=tiny_artifact, output=output, tile=tile, tta=True)
        labels = zarr.open_array(str(output), path="labels/segmentation/0", mode="r")[:]
        probabilities = zarr.open_array(str(output), path="0", mode="r")[:]
        np.testing.assert_array_equal(np.asarray(labels)[is_sure], to_labels(whole)[is_sure])
        difference = np.asarray(probabilities).astype(int) - to_probabilities(whole)
        assert np.abs(difference).max() <= 1
