"""Peers are measured with our weights: benchmarks/peers_networks.py changes their padding."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from unet_deploy.runtime import load_bundled_artifact

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "peers_networks.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="benchmarks/ is not part of a source distribution")


@pytest.fixture(scope="module")
def networks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_peers_networks", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_padding_changes_nothing_where_no_pad_is_seen(networks: ModuleType) -> None:
    """A valid tile that begins 2 pixels later halves at the same places."""
    data = load_bundled_artifact().data
    image = np.random.default_rng(0).standard_normal((1, 1, 224, 224), np.float32)
    same = networks.open_predictor(networks.pad_convolutions(data), engine="onnxruntime-cpu", threads=1)(image)
    valid = networks.open_predictor(data, engine="onnxruntime-cpu", threads=1)(image[:, :, 2:222, 2:222])
    assert same.shape == (1, 2, 224, 224)
    np.testing.assert_allclose(same[:, :, 96:128, 96:128], valid[:, :, 2:34, 2:34], rtol=1e-5, atol=1e-5)


def test_torch_has_the_same_two_networks(networks: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    data = load_bundled_artifact().data
    image = np.random.default_rng(1).standard_normal((1, 1, 204, 204), np.float32)
    threads = torch.get_num_threads()
    for padding, graph, side in (("valid", data, 204), ("same", networks.pad_convolutions(data), 192)):
        tile = np.ascontiguousarray(image[:, :, :side, :side])
        with torch.inference_mode():
            came = networks.torch_network(data, padding=padding, threads=threads)(torch.from_numpy(tile)).numpy()
        expected = networks.open_predictor(graph, engine="onnxruntime-cpu", threads=1)(tile)
        np.testing.assert_allclose(came, expected, rtol=1e-4, atol=1e-4)


def test_blocks_with_a_halo_are_one_pass(networks: ModuleType) -> None:
    """So is the reference that a peer's seams are counted against."""
    same = networks.pad_convolutions(load_bundled_artifact().data)
    predict = networks.open_predictor(same, engine="onnxruntime-cpu", threads=1)
    image = np.random.default_rng(2).standard_normal((336, 272), np.float32)
    whole = predict(image[None, None])[0].argmax(0)
    assert 0 < whole.mean() < 1
    labels = networks.label_blocks(predict, image, block=128, halo=networks.HALO)
    np.testing.assert_array_equal(labels, whole)
