"""An export leaves one checked file, or nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="exporting needs the extra 'train'")
pytest.importorskip("onnxruntime", reason="parity is proved through onnxruntime: extra 'cpu'")

from tests.tiny import snapshot  # noqa: E402
from unet_deploy.card import ModelCard  # noqa: E402
from unet_deploy.errors import (  # noqa: E402
    CheckpointError,
    ModelNotFoundError,
    OutputExistsError,
    OutputPathError,
    ParityError,
    TestTensorError,
)
from unet_deploy.exporters import export_checkpoint  # noqa: E402
from unet_deploy.exporters.parity import compare, parity_shapes, torch_logits  # noqa: E402
from unet_deploy.exporters.products import make_test_tensor  # noqa: E402
from unet_deploy.percentiles import scale_by_percentiles  # noqa: E402
from unet_deploy.runtime.artifact import load_artifact  # noqa: E402
from unet_deploy.runtime.engines import open_engine  # noqa: E402
from unet_deploy.runtime.normalise import Normaliser  # noqa: E402
from unet_deploy.training.checkpoint import load_checkpoint, save_checkpoint  # noqa: E402
from unet_deploy.training.network import UNet  # noqa: E402

CardFactory = Callable[..., ModelCard]


def write_checkpoint(path: Path, card: ModelCard, *, seed: int = 0, factor: float = 1) -> Path:
    network = card.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = UNet(
            depth=network.depth, base_width=network.base_width, in_channels=network.in_channels, classes=network.classes
        )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    save_checkpoint(path, model=model, card=card)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is left.


def test_the_report_is_of_the_file(tmp_path: Path, tiny_checkpoint: Path) -> None:
    said: list[str] = []
    path = tmp_path / "model.onnx"
    report = export_checkpoint(str(tiny_checkpoint), str(path), progress=said.append)
    data = path.read_bytes()
    model, card = load_checkpoint(tiny_checkpoint)
    assert report.path == path
    assert report.n_bytes == len(data)
    assert report.sha256 == hashlib.sha256(data).hexdigest()
    assert report.n_nodes == len(onnx.load_model_from_string(data).graph.node) == 29
    assert report.n_weights == sum(p.numel() for p in model.parameters())
    assert report.card == load_artifact(path).card
    assert replace(report.card, graph_sha256=None, test_tensor=None) == card
    assert (report.engine.engine, report.engine.device, report.engine.precision) == ("onnxruntime-cpu", "cpu", "fp32")
    assert [row.shape for row in report.parity] == [*parity_shapes(card.network)]
    assert report.max_difference == max(row.max_difference for row in report.parity) < 1e-4
    assert all(row.max_difference <= row.limit and row.labels_equal > 0.99 for row in report.parity)
    assert len(said) == 4
    assert names(tmp_path) == ["model.onnx"]


def test_parity_is_shown_at_the_papers_size_at_oblong_ones_and_in_batches(make_card: CardFactory) -> None:
    network = make_card(depth=4, in_channels=3).network
    shapes = parity_shapes(network)
    assert (1, 3, 572, 572) in shapes
    assert any(y < x for _, _, y, x in shapes)
    assert any(y > x for _, _, y, x in shapes)
    assert max(n for n, _, _, _ in shapes) > 1
    assert all(network.geometry.is_legal(side) for shape in shapes for side in shape[2:])


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "another folder").mkdir()
    copy = tmp_path / "another folder" / "renamed.pt"
    copy.write_bytes(tiny_checkpoint.read_bytes())
    first = export_checkpoint(tiny_checkpoint, tmp_path / "a.onnx")
    second = export_checkpoint(copy, tmp_path / "another folder" / "b.onnx")
    assert first.sha256 == second.sha256


def test_other_weights_give_other_bytes(tmp_path: Path, make_card: CardFactory) -> None:
    hashes = {
        export_checkpoint(
            write_checkpoint(tmp_path / f"{s}.pt", make_card(depth=1), seed=s), tmp_path / f"{s}.onnx"
        ).sha256
        for s in (1, 2)
    }
    assert len(hashes) == 2


def test_the_file_names_no_place(tiny_model: Path) -> None:
    data = tiny_model.read_bytes()
    for trace in (
        b"/tmp",
        b".py",
        b"site-packages",
        b"tiny.pt",
        os.fsencode(Path.cwd()),
        os.fsencode(tiny_model.parent),
    ):
        assert trace not in data
    model = onnx.load_model_from_string(data)
    assert all(t.data_location == onnx.TensorProto.DEFAULT and not t.external_data for t in model.graph.initializer)
    assert (model.opset_import[0].version, model.ir_version) == (18, 10)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_the_test_tensor_is_what_the_network_will_see(make_card: CardFactory, dtype: str) -> None:
    low, high = (-3.0, 3.0) if dtype == "float32" else (0.0, 4000.0) if dtype != "uint8" else (0.0, 255.0)
    card = make_card(
        depth=2,
        base_width=4,
        in_channels=2,
        dtype=dtype,
        value_range=(low, high),
        mean=(low + high) / 2,
        std=(high - low) / 6,
    )
    torch.manual_seed(0)  # some networks of width 4 are dead, and say the same of every image
    model = UNet(depth=2, base_width=4, in_channels=2).eval()
    tensor = make_test_tensor(model, card)
    assert tensor.image.dtype == dtype
    n, c, y, x = tensor.image.shape
    assert (n, c) == (1, 2)
    assert y != x  # a transposed engine is found
    assert low <= tensor.image.min() < tensor.image.max() <= high
    assert tensor.image.astype(float).std() > (high - low) / 12
    normalised = Normaliser(mean=card.normalisation.mean, std=card.normalisation.std)(tensor.image[0])
    np.testing.assert_array_equal(tensor.logits, torch_logits(model, normalised[None]), strict=True)
    assert tensor.logits.std() > 0
    again = make_test_tensor(model, card)
    np.testing.assert_array_equal(again.image, tensor.image, strict=True)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_a_network_that_scales_by_percentiles_is_exported(tmp_path: Path, make_card: CardFactory, dtype: str) -> None:
    low, high = (-3.0, 3.0) if dtype == "float32" else (0.0, 255.0)
    card = make_card(
        base_width=4, in_channels=2, dtype=dtype, value_range=(low, high), mean=0.3, std=0.2, percentiles=(1.0, 99.8)
    )
    checkpoint = write_checkpoint(tmp_path / "model.pt", card)
    report = export_checkpoint(checkpoint, tmp_path / "model.onnx")
    artifact = load_artifact(tmp_path / "model.onnx")
    assert artifact.card == report.card
    assert artifact.card.normalisation == card.normalisation
    tensor = artifact.card.test_tensor
    assert tensor is not None
    (image,) = tensor.image
    assert low <= image.min() < image.max() <= high
    assert image.astype(float).std() > (high - low) / 12
    # The image is a whole volume of its own.
    scaled = np.stack([scale_by_percentiles(channel, (1.0, 99.8)) for channel in image])
    model, _ = load_checkpoint(checkpoint)
    expected = torch_logits(model, ((scaled - 0.3) / 0.2).astype(np.float32)[None])
    np.testing.assert_allclose(tensor.logits, expected, rtol=1e-4, atol=1e-4)
    engine = open_engine(artifact, device="cpu")
    try:
        assert engine.test_difference < 1e-4
    finally:
        engine.close()


def test_an_existing_file_is_replaced_when_asked(tmp_path: Path, tiny_checkpoint: Path, tiny_model: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    export_checkpoint(tiny_checkpoint, path, overwrite=True)
    assert path.read_bytes() == tiny_model.read_bytes()
    assert names(tmp_path) == ["model.onnx"]


# What is refused, with nothing written.


def test_an_existing_file_is_not_replaced(tmp_path: Path, tiny_checkpoint: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with pytest.raises(
        OutputExistsError, match=r"model\.onnx exists\n  nothing was written\n  fix: choose another --output"
    ):
        export_checkpoint(tiny_checkpoint, path)
    assert path.read_text() == "old"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_missing_folder_is_refused(tmp_path: Path, tiny_checkpoint: Path, overwrite: bool) -> None:
    path = tmp_path / "not there" / "model.onnx"
    with pytest.raises(OutputPathError, match=r"^the folder of .*model\.onnx does not exist\n  the ONNX file was"):
        export_checkpoint(tiny_checkpoint, path, overwrite=overwrite)
    assert names(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_is_no_place_for_a_file(tmp_path: Path, tiny_checkpoint: Path, overwrite: bool) -> None:
    with pytest.raises((OutputPathError, OutputExistsError), match=r"\n  fix: "):
        export_checkpoint(tiny_checkpoint, tmp_path, overwrite=overwrite)
    assert names(tmp_path) == []
    assert [name for name in names(tmp_path.parent) if name.endswith(".partial")] == []


def test_a_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^there is no checkpoint file .*none\.pt\n"):
        export_checkpoint(tmp_path / "none.pt", tmp_path / "model.onnx")
    assert names(tmp_path) == []


def test_a_checkpoint_with_nan_is_refused(tmp_path: Path, make_card: CardFactory) -> None:
    checkpoint = write_checkpoint(tmp_path / "nan.pt", make_card(depth=1), factor=float("nan"))
    with pytest.raises(CheckpointError, match=r"contracting\.0\.0\.bias: holds NaN or infinity"):
        export_checkpoint(checkpoint, tmp_path / "model.onnx")
    assert names(tmp_path) == ["nan.pt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_network_that_overflows_leaves_nothing(tmp_path: Path, make_card: CardFactory, overwrite: bool) -> None:
    # Finite weights whose logits are not: nothing could be compared with them.
    write_checkpoint(tmp_path / "huge.pt", make_card(depth=1, base_width=2), factor=1e30)
    if overwrite:
        (tmp_path / "model.onnx").write_text("old")
    before = snapshot(tmp_path)
    with pytest.raises((TestTensorError, ParityError), match=r"does not compute what .*\n(  .+\n)+  fix: "):
        export_checkpoint(tmp_path / "huge.pt", tmp_path / "model.onnx", overwrite=overwrite)
    assert snapshot(tmp_path) == before


def test_an_engine_that_computes_something_else_is_found(tmp_path: Path, make_card: CardFactory) -> None:
    card = make_card(depth=1, base_width=2)
    for seed in (1, 2):
        export_checkpoint(write_checkpoint(tmp_path / f"{seed}.pt", card, seed=seed), tmp_path / f"{seed}.onnx")
    engine = open_engine(load_artifact(tmp_path / "1.onnx"), device="cpu", engine="onnxruntime-cpu")
    model, _ = load_checkpoint(tmp_path / "2.pt")
    with pytest.raises(
        ParityError, match=r"^onnxruntime-cpu \(fp32\) does not compute what the checkpoint computes\n"
    ) as caught:
        compare(model, engine, card.network)
    shapes = parity_shapes(card.network)
    assert len(caught.value.details) == len(shapes)
    for shape, line in zip(shapes, caught.value.details, strict=True):
        assert line.startswith(f"input {shape}: difference ")
        assert line.endswith(" allowed")
    assert caught.value.fix.startswith("no file was written; please report this")
    own, _ = load_checkpoint(tmp_path / "1.pt")
    assert len(compare(own, engine, card.network)) == len(shapes)
