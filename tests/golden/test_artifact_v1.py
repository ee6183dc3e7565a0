"""An artifact of release 0.1.0 is read by this release, and gives what it gave then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.golden.artifact_v1.make import HERE, image
from tests.tiny import CARD, read_arrays, write_image
from unet_deploy.card_json import dump_card, parse_card
from unet_deploy.runtime import load_artifact, segment

MODEL = HERE / "tiny.onnx"


def test_it_says_what_it_said() -> None:
    card = load_artifact(MODEL).card
    assert (card.name, card.network, card.input, card.normalisation) == (
        CARD.name,
        CARD.network,
        CARD.input,
        CARD.normalisation,
    )
    assert (card.classes, card.training, card.precision) == (CARD.classes, CARD.training, "fp32")
    assert parse_card(dump_card(card), source="here") == card


def test_it_segments_as_it_did(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    volume = write_image(tmp_path / "v.zarr", image())
    # Another tile than the one chosen then: it must not matter.
    came = read_arrays(segment(volume, model=MODEL, output=tmp_path / "out.zarr", tile=(60, 76)).output)
    with np.load(HERE / "expected.npz") as expected:
        assert 0.05 < expected["labels"].mean() < 0.95
        assert np.abs(came["0"].astype(int) - expected["probabilities"]).max() <= 1  # vector units round differently
        assert (came["labels/segmentation/0"] != expected["labels"]).mean() <= 1e-3


def test_this_release_exports_the_same_graph(tiny_model: Path) -> None:
    """Weights may differ: torch promises no random numbers across its versions."""

    def bare(path: Path) -> onnx.ModelProto:
        model = onnx.load(path)
        del model.metadata_props[:]
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                tensor.raw_data = bytes(len(tensor.raw_data))
        return model

    assert bare(tiny_model) == bare(MODEL)
