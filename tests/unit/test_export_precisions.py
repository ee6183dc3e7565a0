"""An fp16 or int8 export is proved against fp32 on real tiles, which its card records; or nothing is left behind."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

torch = pytest.importorskip("torch", reason="exporting needs the extra 'train'")
pytest.importorskip("onnxruntime", reason="parity is proved through onnxruntime: extra 'cpu'")

from tests.tiny import CARD, NETWORK, make_pixels, snapshot, write_array, write_image  # noqa: E402
from unet_deploy.card import Parity, Precision  # noqa: E402
from unet_deploy.card_json import dump_card, parse_card  # noqa: E402
from unet_deploy.errors import CardError, OutputExistsError, ParityError, UsageError  # noqa: E402
from unet_deploy.exporters import CalibrationSource, export_precisions  # noqa: E402
from unet_deploy.exporters.calibration import draw_sample  # noqa: E402
from unet_deploy.exporters.export import ExportReport  # noqa: E402
from unet_deploy.exporters.fp16 import FP16_LARGEST, measure_activations, require_fp16_range  # noqa: E402
from unet_deploy.exporters.graph import build_graph  # noqa: E402
from unet_deploy.exporters.int8 import quantise  # noqa: E402
from unet_deploy.exporters.parity import mean_labels_equal  # noqa: E402
from unet_deploy.runtime.artifact import load_artifact  # noqa: E402
from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine  # noqa: E402
from unet_deploy.runtime.tolerances import TOLERANCES  # noqa: E402
from unet_deploy.training.checkpoint import save_checkpoint  # noqa: E402
from unet_deploy.training.network import UNet  # noqa: E402

DERIVED: tuple[Precision, ...] = ("fp16", "int8")


def make_network() -> UNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet(depth=NETWORK.depth, base_width=NETWORK.base_width)


def write_network(path: Path, change: Callable[[UNet], object]) -> Path:
    model = make_network()
    with torch.no_grad():
        change(model)
    save_checkpoint(path, model=model, card=CARD)
    return path


def has_an_outlier(bias: float) -> Callable[[UNet], object]:
    """Let one channel of the first layer be large, and the next layer not look at it: the same function."""

    def change(model: UNet) -> None:
        first, second = model.contracting[0][0], model.contracting[0][2]
        first.bias[0] = bias
        second.weight[:, 0] = 0

    return change


def export(checkpoint: Path, precision: Precision, *, overwrite: bool = False) -> ExportReport:
    folder = checkpoint.parent
    volume = folder / "v.zarr"
    if not volume.exists():
        write_image(volume, make_pixels((2, 60, 70)))
    (report,) = export_precisions(
        checkpoint,
        {precision: folder / "model.onnx"},
        calibrate=CalibrationSource(path=volume),
        overwrite=overwrite,
    )
    return report


# What is written.


@pytest.mark.parametrize("precision", DERIVED)
def test_the_card_says_what_it_is_and_how_near(tiny_products: dict[str, Path], precision: Precision) -> None:
    parent, product = (load_artifact(tiny_products[p]) for p in ("fp32", precision))
    assert (product.card.precision, product.card.parent_sha256) == (precision, parent.sha256)
    assert product.card.network == parent.card.network
    assert product.card.training == parent.card.training
    assert parent.card.parity is None
    parity = product.card.parity
    assert parity is not None
    assert (parity.engine, parity.tiles) == ("onnxruntime-cpu", 1)
    assert parity.data == "calibration.zarr, 3 tile(s) of 424 x 424 px"
    assert parity.labels_equal >= TOLERANCES["onnxruntime-cpu", precision].labels
    assert 0 < parity.mean_difference < parity.max_difference
    tensors = product.card.test_tensor, parent.card.test_tensor
    assert tensors[0] is not None
    assert tensors[1] is not None
    np.testing.assert_array_equal(tensors[0].logits, tensors[1].logits)  # the parent's


def test_products_are_smaller(tiny_products: dict[str, Path]) -> None:
    weights = {
        p: sum(len(t.raw_data) for t in onnx.load(path).graph.initializer if t.data_type != onnx.TensorProto.INT64)
        for p, path in tiny_products.items()
    }
    assert weights["fp16"] == weights["fp32"] / 2
    names = {p: {n.op_type for n in onnx.load(path).graph.node} for p, path in tiny_products.items()}
    plain = {"Conv", "ConvTranspose", "Relu", "MaxPool", "Slice", "Concat"}
    assert names == {
        "fp32": plain,
        "fp16": plain | {"Cast"},
        "int8": plain | {"QuantizeLinear", "DequantizeLinear"},
    }


def test_the_ends_are_not_quantised(tiny_products: dict[str, Path]) -> None:
    graph = onnx.load(tiny_products["int8"]).graph
    kinds = {t.name: t.data_type for t in graph.initializer}
    first, head = (next(n for n in graph.node if n.name == name) for name in ("contracting.0.0", "head"))
    for node in (first, head):
        assert [kinds[name] for name in node.input[1:]] == [onnx.TensorProto.FLOAT] * 2
    assert (first.input[0], [*head.output]) == ("image", ["logits"])
    assert sum(kind == onnx.TensorProto.INT8 for kind in kinds.values()) == 2 * (5 * 2 + 2 - 1)  # and zero points


def test_the_report_is_of_the_file(tmp_path: Path, tiny_checkpoint: Path) -> None:
    checkpoint = tmp_path / "tiny.pt"
    checkpoint.write_bytes(tiny_checkpoint.read_bytes())
    report = export(checkpoint, "int8")
    artifact = load_artifact(report.path)
    assert report.sha256 == artifact.sha256 == hashlib.sha256(report.path.read_bytes()).hexdigest()
    assert (report.card, report.n_nodes, report.n_bytes) == (artifact.card, artifact.n_nodes, len(artifact.data))
    assert report.compared_with == "fp32 on v.zarr, 2 tile(s) of 424 x 424 px"
    assert (report.engine.engine, report.engine.precision) == ("onnxruntime-cpu", "int8")
    parity = report.card.parity
    assert parity is not None
    assert parity.max_difference == report.max_difference
    assert parity.labels_equal == mean_labels_equal(report.parity)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "tiny.pt", "v.zarr"]  # nor the parent
    again = export(checkpoint, "int8", overwrite=True)
    assert again.sha256 == report.sha256


def test_fp16_without_data_is_shown_on_the_sample(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (report,) = export_precisions(tiny_checkpoint, {"fp16": tmp_path / "m.onnx"})
    assert report.compared_with == "fp32 on the procedural sample, 4 tile(s) of 424 x 424 px"


def test_the_sample_has_the_cards_channels() -> None:
    card = replace(CARD, network=replace(NETWORK, in_channels=3))
    sample = draw_sample(card, count=2)
    assert [tile.shape for tile in sample.tiles] == [(1, 3, 424, 424)] * 2
    assert abs(float(np.mean(sample.tiles))) < 0.01
    assert float(np.std(sample.tiles)) == pytest.approx(1, abs=0.01)
    assert len(sample.calibration) == len(sample.parity) == 1


def test_quantising_leaves_its_parent_alone_and_is_repeatable(capfd: pytest.CaptureFixture[str]) -> None:
    graph = build_graph(NETWORK, {k: v.detach().numpy() for k, v in make_network().state_dict().items()})
    before = graph.SerializeToString(deterministic=True)
    tile = np.random.default_rng(0).standard_normal((1, 1, 44, 60), np.float32)
    results = {quantise(graph, [tile]).SerializeToString(deterministic=True) for _ in range(2)}
    assert len(results) == 1
    assert graph.SerializeToString(deterministic=True) == before
    (data,) = results
    for trace in (b"/tmp", b".py", b"onnxruntime", b"quant.infer", b"\\Temp"):
        assert trace not in data
    assert capfd.readouterr() == ("", "")


def test_the_form_for_tensorrt_is_one_it_can_parse() -> None:
    model = make_network()
    graph = build_graph(NETWORK, {k: v.detach().numpy() for k, v in model.state_dict().items()})
    tiles = draw_sample(CARD, count=3).tiles
    quantised = quantise(graph, tiles[:2], form="tensorrt")
    tensors = {t.name: t for t in quantised.graph.initializer}
    kinds = {onnx.TensorProto.DataType.Name(t.data_type) for t in tensors.values()}
    assert kinds == {"FLOAT", "INT64", "INT8"}  # neither unsigned activations nor 32 bit biases
    consumers: dict[str, set[str]] = {}
    for node in quantised.graph.node:
        for name in node.input:
            consumers.setdefault(name, set()).add(node.op_type)
    scaled = [node for node in quantised.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    assert len([node for node in scaled if node.op_type == "QuantizeLinear"]) >= 2 * 5 + 2 - 1
    for node in scaled:
        assert not numpy_helper.to_array(tensors[node.input[2]]).any()  # symmetric
        if node.op_type == "DequantizeLinear":
            assert consumers[node.output[0]] <= {"Conv", "ConvTranspose"}
    assert sum(node.op_type == "Relu" for node in quantised.graph.node) == 2 * 5
    engine = OnnxruntimeCpuEngine(quantised.SerializeToString(), precision="int8")
    engine.open()
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(tiles[2])).numpy()
    came = engine.infer(tiles[2])
    tolerance = TOLERANCES["onnxruntime-cpu", "int8"]
    assert np.abs(came - expected).max() <= tolerance.limit(float(np.abs(expected).max()))
    assert (came.argmax(1) == expected.argmax(1)).mean() >= 0.95  # random weights are undecided of many pixels


# What is refused, with nothing written.


def test_int8_without_data_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"^int8 needs data to calibrate on, and none were given\n") as caught:
        export_precisions(tiny_checkpoint, {"fp32": tmp_path / "a.onnx", "int8": tmp_path / "b.onnx"})
    assert caught.value.fix == "--calibrate VOLUME.zarr, or a folder of PNG or TIFF images"
    assert snapshot(tmp_path) == {}


def test_data_that_nothing_needs_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    source = CalibrationSource(path=tmp_path / "v.zarr")
    with pytest.raises(UsageError, match=r"^--calibrate .*v\.zarr came, and fp32 needs no calibration\n"):
        export_precisions(tiny_checkpoint, {"fp32": tmp_path / "a.onnx"}, calibrate=source)
    assert snapshot(tmp_path) == {}


def test_one_file_in_the_way_stops_all(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "b.onnx").write_text("old")
    before = snapshot(tmp_path)
    with pytest.raises(OutputExistsError, match=r"b\.onnx exists\n"):
        export_precisions(tiny_checkpoint, {"fp32": tmp_path / "a.onnx", "fp16": tmp_path / "b.onnx"})
    assert snapshot(tmp_path) == before


def test_an_outlier_that_ruins_int8_leaves_nothing(tmp_path: Path) -> None:
    checkpoint = write_network(tmp_path / "m.pt", has_an_outlier(3000))
    write_image(tmp_path / "v.zarr", make_pixels((2, 60, 70)))
    before = snapshot(tmp_path)
    with pytest.raises(
        ParityError, match=r"^onnxruntime-cpu \(int8\) does not compute what the fp32 graph computes\n"
    ) as caught:
        export(checkpoint, "int8")
    *rows, last = caught.value.details
    assert last == "on v.zarr, 2 tile(s) of 424 x 424 px"
    assert rows
    assert any("at most" in row or "labels equal on" in row for row in rows)
    assert caught.value.fix.startswith("no file was written; export it as fp16, or calibrate it on data like")
    assert snapshot(tmp_path) == before


def test_one_that_fails_takes_the_others_with_it(tmp_path: Path) -> None:
    checkpoint = write_network(tmp_path / "m.pt", has_an_outlier(30_000))
    before = snapshot(tmp_path)
    with pytest.raises(ParityError, match=r"^the network does not fit fp16"):
        export_precisions(checkpoint, {"fp32": tmp_path / "a.onnx", "fp16": tmp_path / "b.onnx"})
    assert snapshot(tmp_path) == before


def test_activations_beyond_fp16_are_refused() -> None:
    model = make_network()
    with torch.no_grad():
        has_an_outlier(30_000)(model)  # it would fit, but with little to spare
    tile = np.zeros((1, 1, 44, 44), np.float32)
    with pytest.raises(
        ParityError, match=r"^the network does not fit fp16: values would overflow to infinity\n"
    ) as caught:
        require_fp16_range(model, [tile], data="zeros")
    assert caught.value.details[0] == (
        "output of contracting.0.0: 3e+04 on zeros, at most 16376 was expected (a quarter of what fits)"
    )
    assert caught.value.fix == "export it as fp32: --precision fp32"


def test_weights_beyond_fp16_are_refused() -> None:
    model = make_network()
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.fill_(0 if index > 8 else 1e5)
    with pytest.raises(ParityError, match=r"\n  weight contracting\.0\.0\.weight: 1e\+05, at most 65504 fits\n") as c:
        require_fp16_range(model, [np.zeros((1, 1, 44, 44), np.float32)], data="zeros")
    assert c.value.details[-1].startswith("and ")


def test_a_nan_is_no_activation_that_fits() -> None:
    model = make_network()
    tile = np.full((1, 1, 44, 44), np.nan, np.float32)
    assert np.isnan(measure_activations(model, [tile])["head"])
    with pytest.raises(ParityError, match=r"output of .*: nan on noise"):
        require_fp16_range(model, [tile], data="noise")


def test_every_layer_is_looked_at() -> None:
    model = make_network()
    found = measure_activations(model, [np.ones((1, 1, 44, 60), np.float32), np.full((2, 1, 44, 44), -3, np.float32)])
    assert found["image"] == 3
    assert {"contracting.0.0", "up.1", "expanding.1.2", "head"} <= found.keys()
    assert all(0 <= value < FP16_LARGEST for value in found.values())
    assert not any(module._forward_hooks for module in model.modules())


# The card.


def test_parity_is_read_as_it_was_written() -> None:
    parity = Parity(engine="e", data="d", tiles=3, max_difference=0.5, mean_difference=0.0, labels_equal=1.0)
    card = replace(CARD, parity=parity)
    assert parse_card(dump_card(card), source="here") == card
    assert '"parity"' not in dump_card(CARD)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            '"labels_equal": 1.0',
            '"labels_equal": 1.5',
            r"parity\.labels_equal: a share, 0\.\.1 was expected, 1\.5 came",
        ),
        ('"max_difference": 0.5', '"max_difference": -1', r"parity\.max_difference: a number from 0 was expected"),
        ('"tiles": 3', '"tiles": 0', r"parity\.tiles: an integer in 1\.\.1000000000 was expected, 0 came"),
        ('"data": "d"', '"dada": "d"', r"parity\.data: missing\n  parity\.dada: unknown key"),
        ('"labels_equal": 1.0', '"labels_equal": null', r"parity\.labels_equal: .*, null came"),
    ],
)
def test_a_parity_that_cannot_be_is_refused(old: str, new: str, problem: str) -> None:
    parity = Parity(engine="e", data="d", tiles=3, max_difference=0.5, mean_difference=0.0, labels_equal=1.0)
    text = dump_card(replace(CARD, parity=parity))
    assert old in text
    with pytest.raises(CardError, match=problem):
        parse_card(text.replace(old, new, 1), source="here")


def test_a_volume_without_ome_metadata_is_calibrated_on(tmp_path: Path, tiny_checkpoint: Path) -> None:
    array = write_array(tmp_path / "a.zarr", make_pixels((70, 60)))
    (report,) = export_precisions(
        tiny_checkpoint, {"int8": tmp_path / "m.onnx"}, calibrate=CalibrationSource(path=array, axes="yx")
    )
    assert report.compared_with == "fp32 on a.zarr, 1 tile(s) of 424 x 424 px"
