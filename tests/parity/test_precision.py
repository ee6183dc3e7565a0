"""The bundled network in fp16 and int8 says what it says in fp32; its files are segmented with as any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="exporting needs the extra 'train'")
pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")

from tests.tiny import make_pixels, read_arrays, read_provenance, write_bundled_checkpoint, write_image
from unet_deploy.exporters import CalibrationSource, export_precisions
from unet_deploy.runtime import segment
from unet_deploy.sample import em_like_volume


@pytest.fixture(scope="module")
def membrane(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundled_checkpoint(tmp_path_factory.mktemp("membrane") / "membrane.pt", "membrane")


def test_the_bundled_network_keeps_its_labels(tmp_path: Path, membrane: Path) -> None:
    volume = write_image(tmp_path / "v.zarr", em_like_volume(shape=(4, 384, 384)))
    reports = export_precisions(
        membrane,
        {"fp16": tmp_path / "m.fp16.onnx", "int8": tmp_path / "m.int8.onnx"},
        calibrate=CalibrationSource(path=volume),
    )
    by_precision = {report.card.precision: report.card.parity for report in reports}
    half, byte = by_precision["fp16"], by_precision["int8"]
    assert half is not None
    assert byte is not None
    assert half.labels_equal >= 0.9995
    assert byte.labels_equal >= 0.995
    assert half.max_difference < 0.05 < byte.max_difference < 2
    assert [report.n_nodes for report in reports] == [55, 146]
    size = (tmp_path / "m.int8.onnx").stat().st_size
    assert size < 0.3 * membrane.stat().st_size


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_a_volume_is_segmented_with_it(tmp_path: Path, tiny_products: dict[str, Path], precision: str) -> None:
    volume = write_image(tmp_path / "v.zarr", make_pixels((2, 90, 110), seed=1))
    labels = {}
    for name in ("fp32", precision):
        output = segment(volume, model=tiny_products[name], output=tmp_path / f"{name}.zarr", tile=(60, 76)).output
        labels[name] = read_arrays(output)["labels/segmentation/0"]
        made = read_provenance(output)
        assert made["model"]["precision"] == made["engine"]["precision"] == name
    assert labels["fp32"].any()
    assert np.mean(labels["fp32"] == labels[precision]) > 0.98


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_tiles_of_any_size_give_the_same(tmp_path: Path, tiny_products: dict[str, Path], precision: str) -> None:
    """Ranges are constants of the graph, so int8 is as exact across seams as fp32."""
    volume = write_image(tmp_path / "v.zarr", make_pixels((1, 90, 110), seed=2))
    results = [
        read_arrays(segment(volume, model=tiny_products[precision], output=tmp_path / f"{i}.zarr", tile=tile).output)
        for i, tile in enumerate([(44, 44), (140, 156)])
    ]
    assert np.abs(results[0]["0"].astype(int) - results[1]["0"].astype(int)).max() <= 1
    assert np.mean(results[0]["labels/segmentation/0"] != results[1]["labels/segmentation/0"]) <= 1e-3
