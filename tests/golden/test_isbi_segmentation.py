"""The bundled network on real EM: the ISBI 2012 stack, used from beside the checkout and never committed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from unet_deploy.metrics import pixel_error, rand_error
from unet_deploy.runtime import load_bundled_artifact, segment

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (DATA / "isbi2012").is_dir(), reason=f"the ISBI 2012 data are not at {DATA}"),
]


def read_result(store: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    labels = zarr.open_array(str(store), path="labels/segmentation/0", mode="r")
    probabilities = zarr.open_array(str(store), path="0", mode="r")
    return np.asarray(labels[:]), np.asarray(probabilities[:])


def test_slices_left_out_of_training_are_right(tmp_path: Path) -> None:
    imread = pytest.importorskip("skimage.io", reason="reading PNG needs the extra 'train'").imread
    held_out = load_bundled_artifact().card.training.validation
    assert held_out == ("14", "29")
    folder = DATA / "isbi2012" / "train"
    images, truth = (
        np.stack([imread(folder / kind / f"{stem}.png") for stem in held_out]) for kind in ("image", "label")
    )
    zarr.create_array(str(tmp_path / "held_out.zarr"), data=images, chunks=(1, 256, 256))
    segment(tmp_path / "held_out.zarr", output=tmp_path / "result.zarr")
    labels, probabilities = read_result(tmp_path / "result.zarr")
    wrong = (labels != (truth == 0)).mean(axis=(1, 2))  # membrane is 0 in the annotation and class 1 in the network
    assert (wrong < 0.10).all(), dict(zip(held_out, wrong, strict=True))
    inside = probabilities[0]  # class 0, cell interior; (z, y, x)
    assert rand_error(truth, inside).error <= 0.06
    assert pixel_error(truth, inside).error <= 0.075
