"""A composed graph gives for raw pixels the bytes that the host gives: same labels, probabilities within a level."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper

from tests.foreign_graphs import monai_like, save, smp_like
from tests.tiny import make_pixels, read_arrays, write_image
from unet_deploy.errors import PartialResultError
from unet_deploy.exporters import AdoptionSettings, adopt_model
from unet_deploy.runtime import segment
from unet_deploy.runtime.artifact import Artifact, load_artifact
from unet_deploy.runtime.composition import RAW_TYPES, compose_bytes
from unet_deploy.runtime.engines.base import ByteForm
from unet_deploy.runtime.engines.checked import CheckedEngine
from unet_deploy.runtime.engines.onnxruntime_cpu import OnnxruntimeCpuEngine
from unet_deploy.runtime.normalise import Normaliser, to_labels, to_probabilities

ort: Any = pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")

Array = npt.NDArray[Any]
BOTH = ("labels", "probabilities")


def identity(channels: int) -> bytes:
    """Return a graph whose logits are its input: what it is given is what its last part sees."""
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "y", "x"])
        for name in ("image", "logits")
    ]
    node = helper.make_node("Identity", ["image"], ["logits"])
    graph = helper.make_graph([node], "identity", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def run(graph: bytes, raw: Array, gain: Array, offset: Array) -> dict[str, Array]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    inputs = {"raw": raw, "gain": gain.reshape(-1, 1, 1), "offset": offset.reshape(-1, 1, 1)}
    return dict(zip(names, session.run(None, inputs), strict=True))


def ones(channels: int) -> tuple[Array, Array]:
    return np.ones(channels, np.float32), np.zeros(channels, np.float32)


# The last part: from logits to bytes.


@pytest.mark.parametrize("classes", [2, 3, 5])
@pytest.mark.parametrize("scale", [0.01, 1, 20, 400])
def test_bytes_are_those_of_the_host(make_card: Any, classes: int, scale: float) -> None:
    card = make_card(in_channels=classes, classes=classes)
    logits = np.random.default_rng(classes).normal(0, scale, (3, classes, 40, 50)).astype(np.float32)
    graph = compose_bytes(identity(classes), card, ByteForm(dtype="float32", kinds=BOTH))
    came = run(graph, logits, *ones(classes))
    assert list(came) == ["labels", "probabilities", "checksum"]
    for one, labels, probabilities in zip(logits, came["labels"], came["probabilities"], strict=True):
        np.testing.assert_array_equal(labels, to_labels(one), strict=True)
        host = to_probabilities(one.copy())
        assert probabilities.dtype == np.uint8
        assert np.abs(probabilities.astype(int) - host).max() <= 1
        if classes == 2:
            assert (probabilities.sum(axis=0, dtype=int) == 255).all()
    np.testing.assert_allclose(came["checksum"], logits.sum(axis=(1, 2, 3)), rtol=1e-3, atol=scale)
    assert came["checksum"].dtype == np.float32


@pytest.mark.parametrize("classes", [2, 4])
def test_on_a_tie_the_lower_class(make_card: Any, classes: int) -> None:
    card = make_card(in_channels=classes, classes=classes)
    values = np.random.default_rng(0).integers(-1, 2, (1, classes, 30, 30)).astype(np.float32)  # ties everywhere
    graph = compose_bytes(identity(classes), card, ByteForm(dtype="float32", kinds=BOTH))
    came = run(graph, values, *ones(classes))
    np.testing.assert_array_equal(came["labels"][0], to_labels(values[0]))
    if classes == 2:
        np.testing.assert_array_equal(came["probabilities"][0], to_probabilities(values[0].copy()))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_in_the_checksum(make_card: Any, value: float) -> None:
    card = make_card(in_channels=2, classes=2)
    logits = np.zeros((3, 2, 8, 8), np.float32)
    logits[1, 1, 7, 7] = value
    came = run(compose_bytes(identity(2), card, ByteForm(dtype="float32", kinds=("labels",))), logits, *ones(2))
    assert np.isfinite(came["checksum"]).tolist() == [True, False, True]


# The first part: from raw pixels to the network's input.


@pytest.mark.parametrize("dtype", sorted(RAW_TYPES))
def test_raw_pixels_are_scaled_by_channel(make_card: Any, dtype: str) -> None:
    card = make_card(in_channels=3, classes=3)
    raw = np.random.default_rng(1).integers(0, 200, (2, 3, 9, 8)).astype(dtype)
    normaliser = Normaliser(mean=(100.0, 50.0, 3.0), std=(40.0, 7.0, 0.5), gain=0.5, offset=-2.0)
    gain, offset = normaliser.gain_and_offset()
    graph = compose_bytes(identity(3), card, ByteForm(dtype=dtype, kinds=("labels",)))
    came = run(graph, raw, gain, offset)
    inputs = np.stack([normaliser(image) for image in raw])
    np.testing.assert_array_equal(came["labels"], np.stack([to_labels(one) for one in inputs]))
    np.testing.assert_allclose(came["checksum"], inputs.sum(axis=(1, 2, 3)), rtol=1e-5)


def test_only_what_is_asked_for_is_computed(make_card: Any) -> None:
    card = make_card(in_channels=2)
    for kinds in (("labels",), ("probabilities",)):
        model = onnx.load_model_from_string(compose_bytes(identity(2), card, ByteForm(dtype="uint8", kinds=kinds)))
        onnx.checker.check_model(model, full_check=True)
        assert [value.name for value in model.graph.output] == [*kinds, "checksum"]
        operators = {node.op_type for node in model.graph.node}
        assert ("Exp" in operators) == ("probabilities" in kinds)
        assert not model.metadata_props  # the card is one of the graph inside


def test_integers_are_only_cast(make_card: Any) -> None:
    """TensorRT computes with neither uint8 nor uint16."""
    for classes in (2, 3):
        card = make_card(in_channels=classes, classes=classes)
        data = compose_bytes(identity(classes), card, ByteForm(dtype="uint8", kinds=BOTH))
        model = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(data), strict_mode=True)
        types = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.input)}
        small = {name for name, kind in types.items() if kind in (TensorProto.UINT8, TensorProto.UINT16)}
        assert small == {"raw"}
        assert {node.op_type for node in model.graph.node if small & {*node.input}} == {"Cast"}


def test_a_network_may_use_our_names(make_card: Any) -> None:
    model = onnx.load_model_from_string(identity(2))
    names = ["image", "raw", "composed_float", "labels", "gain", "logits"]
    del model.graph.node[:]
    model.graph.node.extend(helper.make_node("Identity", [before], [after]) for before, after in pairwise(names))
    graph = compose_bytes(model.SerializeToString(), make_card(in_channels=2), ByteForm(dtype="uint8", kinds=BOTH))
    raw = np.random.default_rng(0).integers(0, 9, (1, 2, 8, 8), dtype=np.uint8)
    np.testing.assert_array_equal(run(graph, raw, *ones(2))["labels"][0], raw[0, 1] > raw[0, 0])


# The whole of it: a volume, by the host and by the graph.


def by_bytes(artifact: Artifact) -> OnnxruntimeCpuEngine:
    return OnnxruntimeCpuEngine(artifact.data, precision=artifact.card.precision, threads=1, card=artifact.card)


def by_host(artifact: Artifact) -> OnnxruntimeCpuEngine:
    return OnnxruntimeCpuEngine(artifact.data, precision=artifact.card.precision, threads=1)


def segmented(path: Path, artifact: Artifact, factory: Callable[[Artifact], Any], **settings: Any) -> dict[str, Array]:
    result = segment(path, model=artifact, engine_factory=factory, overwrite=True, **settings)
    return read_arrays(result.output)


@pytest.mark.parametrize(
    ("dtype", "factor", "input_range"),
    [("uint8", 1, None), ("uint16", 16, (0.0, 4080.0)), ("int16", 16, (0.0, 4080.0)), ("float32", 1, (0.0, 255.0))],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_volume_gets_the_same_bytes(
    tmp_path: Path, tiny_artifact: Artifact, dtype: str, factor: int, input_range: Any, batch: int
) -> None:
    pixels = make_pixels((3, 100, 90)).astype(dtype) * np.array(factor, dtype)
    path = write_image(tmp_path / "v.zarr", pixels)
    settings = {"input_range": input_range, "batch": batch, "tile": (60, 76)}
    host = segmented(path, tiny_artifact, by_host, **settings)
    came = segmented(path, tiny_artifact, by_bytes, **settings)
    difference = np.abs(came["0"].astype(int) - host["0"])
    assert difference.max() <= 1
    assert difference.mean() < 0.01
    labels = "labels/segmentation/0"
    relabelled = came[labels] != host[labels]
    assert (np.abs(host["0"][0].astype(int) - 127.5)[relabelled] <= 1).all()  # at most where it was a tie
    assert relabelled.mean() < 1e-4


@pytest.mark.parametrize("make", [smp_like, monai_like])
def test_an_adopted_network_is_composed_alike(tmp_path: Path, make: Callable[[], Any]) -> None:
    adopted = tmp_path / "ours.onnx"
    settings = AdoptionSettings(mean=(100.0,), std=(50.0,))
    adopt_model(save(make(), tmp_path / "other.onnx"), adopted, settings, threads=1)
    artifact = load_artifact(adopted)
    path = write_image(tmp_path / "v.zarr", make_pixels((2, 70, 90)))
    side = artifact.card.geometry.tile_side(32)
    host = segmented(path, artifact, by_host, tile=(side, side))
    came = segmented(path, artifact, by_bytes, tile=(side, side))
    assert np.abs(came["0"].astype(int) - host["0"]).max() <= 1
    assert (came["labels/segmentation/0"] != host["labels/segmentation/0"]).mean() < 1e-3
    assert len(np.unique(came["0"])) > 1


def test_the_byte_form_is_what_ran(tmp_path: Path, tiny_artifact: Artifact) -> None:
    """Guard: the test above would pass if both had gone by the host."""
    streams: list[tuple[int, ...]] = []

    class Counting(OnnxruntimeCpuEngine):
        def stream(self, batches: Any, *, gain: Any, offset: Any) -> Any:
            for result in super().stream(batches, gain=gain, offset=offset):
                streams.append(result.checksum.shape)
                yield result

    def factory(artifact: Artifact) -> Counting:
        return Counting(artifact.data, precision="fp32", threads=1, card=artifact.card)

    path = write_image(tmp_path / "v.zarr", make_pixels((2, 100, 90)))
    segmented(path, tiny_artifact, factory, batch=2, tile=(60, 60))
    assert len(streams) > 2
    before = len(streams)
    segmented(path, tiny_artifact, factory, tta=True)  # the mean of logits has no byte form
    assert len(streams) == before


@pytest.mark.parametrize("factory", [by_host, by_bytes])
def test_what_is_no_number_is_told_alike(tmp_path: Path, tiny_artifact: Artifact, factory: Any) -> None:
    pixels = make_pixels((2, 100, 90)).astype(np.float32)
    pixels[1, 50, 40] = np.nan
    path = write_image(tmp_path / "v.zarr", pixels)
    with pytest.raises(PartialResultError, match=r"1 of 2 blocks failed") as caught:
        segmented(path, tiny_artifact, factory, input_range=(0.0, 255.0))
    assert "block 1: ValueRangeError: the network's output is not a number there" in str(caught.value)


def test_a_nan_that_no_kept_pixel_sees_is_no_failure(tmp_path: Path, tiny_artifact: Artifact) -> None:
    """A tile's checksum covers what is computed and dropped as well; the host then decides."""
    card = tiny_artifact.card
    g, engine = card.geometry, CheckedEngine(by_bytes(tiny_artifact), card).open()
    from unet_deploy.geometry import Interval, cover_axis
    from unet_deploy.runtime.execute import segment_window
    from unet_deploy.runtime.plan import Block

    side = g.tile_side(8 * g.divisor)
    keep = Interval(0, g.divisor)
    tiles = cover_axis(g, keep, side)
    block = Block(index=0, t=0, z=Interval(0, 1), y=keep, x=keep, tiles_y=tiles, tiles_x=tiles)
    window = make_pixels((1, 1, side, side)).astype(np.float32)
    normaliser = Normaliser(mean=(128.0,), std=(40.0,))
    expected = segment_window(window, block, engine=engine, normaliser=normaliser, kinds=("labels",), batch=1)
    window[..., -1, -1] = np.nan
    came = segment_window(window, block, engine=engine, normaliser=normaliser, kinds=("labels",), batch=1)
    np.testing.assert_array_equal(came.labels, expected.labels)  # type: ignore[arg-type]


def test_tiny_contrast_on_a_high_pedestal_is_normalised_on_the_host(tmp_path: Path, tiny_artifact: Artifact) -> None:
    path = write_image(tmp_path / "v.zarr", make_pixels((1, 60, 60)).astype(np.uint16) // 8 + 60_000)
    settings = {"input_range": (60_000.0, 60_031.0)}
    host = segmented(path, tiny_artifact, by_host, **settings)
    came = segmented(path, tiny_artifact, by_bytes, **settings)
    np.testing.assert_array_equal(came["0"], host["0"])  # the very same way
