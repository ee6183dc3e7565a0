"""A folded graph computes what the graph did, with fewer operations; whatever is built otherwise is left alone."""

from __future__ import annotations

import io
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.foreign_graphs import monai_like, smp_like
from unet_deploy.runtime import load_bundled_artifact, open_engine
from unet_deploy.runtime.engines.openvino import OpenvinoEngine
from unet_deploy.runtime.engines.openvino_graph import fold, fold_up_convolutions

openvino = pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")

Array = npt.NDArray[Any]
RNG = np.random.default_rng(0)
C_IN, C_UP, C_SKIP, C_OUT = 5, 4, 3, 2


def read(graph: bytes) -> Any:
    return openvino.Core().read_model(io.BytesIO(graph))


def compute(model: Any, **inputs: Array) -> list[Array]:
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    made = openvino.Core().compile_model(model, "CPU", settings)(inputs)
    return [np.array(made[i]) for i in range(len(model.outputs))]


def operators(model: Any) -> Counter[str]:
    """Count what makes maps of all pixels and is not element by element."""
    maps = [n for n in model.get_ordered_ops() if n.outputs() and len(n.get_output_partial_shape(0)) == 4]
    kinds = Counter(node.get_type_name() for node in maps)
    wanted = "Convolution", "ConvolutionBackpropData", "Concat", "MaxPool"
    return Counter({kind: kinds[kind] for kind in wanted if kinds[kind]})


FOLDED = Counter(ConvolutionBackpropData=1, Convolution=1)


def draw(*shape: int) -> Array:
    return RNG.standard_normal(shape).astype(np.float32)


def make_site(
    *,
    is_skip_first: bool = True,
    has_biases: bool = True,
    between: str | None = None,
    up: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
    shares: str | None = None,
    c_up: int = C_UP,
    dtype: Any = np.float32,
) -> bytes:
    """Return a graph of one up-convolution, a concatenation and a convolution.

    `between` is an operator after the up-convolution, `up` and `after` are attributes, `shares` is a tensor that is an
    output too.
    """
    tensors = {
        "up.weight": draw(C_IN, c_up, 2, 2),
        "up.bias": draw(c_up),
        "after.weight": draw(C_OUT, c_up + C_SKIP, 3, 3),
        "after.bias": draw(C_OUT),
    }
    of = {name: [f"{name}.weight", *([f"{name}.bias"] if has_biases else [])] for name in ("up", "after")}
    joined = ["skip", "raised"] if is_skip_first else ["raised", "skip"]
    nodes = [
        helper.make_node(
            "ConvTranspose",
            ["low", *of["up"]],
            ["came_up"],
            **({"kernel_shape": [2, 2], "strides": [2, 2]} | (up or {})),
        ),
        helper.make_node(between or "Identity", ["came_up"], ["raised"]),
        helper.make_node("Concat", joined, ["joined"], axis=1),
        helper.make_node("Conv", ["joined", *of["after"]], ["out"], **({"kernel_shape": [3, 3]} | (after or {}))),
    ]
    if between is None:
        del nodes[1]
        nodes[0].output[:] = ["raised"]
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))

    def value(name: str) -> Any:
        return helper.make_tensor_value_info(name, element, [None] * 4)

    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "site",
        [value("low"), value("skip")],
        [value("out"), *([value(shares)] if shares else [])],
        [numpy_helper.from_array(array.astype(dtype), name) for name, array in tensors.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def inputs_of(low: tuple[int, int], n: int = 2) -> dict[str, Array]:
    return {"low": draw(n, C_IN, *low), "skip": draw(n, C_SKIP, 2 * low[0], 2 * low[1])}


@pytest.mark.parametrize("is_skip_first", [True, False])
@pytest.mark.parametrize("has_biases", [True, False])
@pytest.mark.parametrize("low", [(2, 2), (3, 7), (8, 5)])
def test_the_same_values_to_the_last_pixel(is_skip_first: bool, has_biases: bool, low: tuple[int, int]) -> None:
    graph, inputs = make_site(is_skip_first=is_skip_first, has_biases=has_biases), inputs_of(low)
    model = read(graph)
    assert fold_up_convolutions(model) == 1
    assert operators(model) == FOLDED
    (after,) = compute(model, **inputs)
    before = ReferenceEvaluator(onnx.load_model_from_string(graph)).run(None, inputs)[0]
    assert before.shape == after.shape == (2, C_OUT, 2 * low[0] - 2, 2 * low[1] - 2)
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-5)


def test_weights_are_multiplied_in_double_precision() -> None:
    up, after = RNG.standard_normal((C_IN, C_UP, 2, 2)), RNG.standard_normal((C_OUT, C_UP, 3, 3))
    low = RNG.standard_normal((C_IN, 4, 6))
    raised = np.zeros((C_UP, 8, 12))
    for y in range(2):
        for x in range(2):
            raised[:, y::2, x::2] = np.einsum("iyx,io->oyx", low, up[:, :, y, x])
    expected = np.zeros((C_OUT, 6, 10))
    for y in range(3):
        for x in range(3):
            expected += np.einsum("iyx,oi->oyx", raised[:, y : y + 6, x : x + 10], after[:, :, y, x])
    kernel, whole = fold(up, after), np.zeros((C_OUT, 10, 14))
    for y in range(4):
        for x in range(4):
            whole[:, y : y + 8 : 2, x : x + 12 : 2] += np.einsum("iyx,io->oyx", low, kernel[:, :, y, x])
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(whole[:, 2:-2, 2:-2], expected, rtol=0, atol=2e-5)
    exact = np.zeros((C_IN, C_OUT, 4, 4))
    for u, v, y, x in np.ndindex(2, 2, 3, 3):
        exact[:, :, u + 2 - y, v + 2 - x] += up[:, :, u, v] @ after[:, :, y, x].T
    np.testing.assert_array_equal(kernel, exact.astype(np.float32))


def test_the_bundled_network() -> None:
    artifact = load_bundled_artifact()
    depth = artifact.card.network.depth
    model = read(artifact.data)
    before = operators(model)
    assert fold_up_convolutions(model) == depth
    assert before["Concat"] == before["ConvolutionBackpropData"] == depth
    assert operators(model) == before - Counter(Concat=depth)
    assert fold_up_convolutions(model) == 0


@pytest.mark.parametrize(
    "changed",
    [
        {"between": "Relu"},
        {"after": {"pads": [1, 1, 1, 1]}},
        {"after": {"auto_pad": "SAME_UPPER"}},
        {"after": {"strides": [2, 2]}},
        {"after": {"dilations": [2, 2]}},
        {"up": {"pads": [1, 1, 1, 1]}},
        {"up": {"output_padding": [1, 1]}},
        {"up": {"output_shape": [8, 8]}},
        {"up": {"auto_pad": "SAME_LOWER"}},
        {"shares": "joined"},
        {"shares": "raised"},
        {"dtype": np.float16},
    ],
    ids=str,
)
def test_what_is_built_otherwise_is_left_as_it_is(changed: dict[str, Any]) -> None:
    model = read(make_site(**changed))
    before = operators(model)
    assert fold_up_convolutions(model) == 0
    assert operators(model) == before


def rename(graph: bytes, **names: str) -> bytes:
    """Return a graph with other names of tensors."""
    model = onnx.load_model_from_string(graph)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
    for value in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def test_two_places_may_share_their_weights() -> None:
    graph = make_site()
    model = onnx.load_model_from_string(graph)
    other = onnx.load_model_from_string(rename(graph, raised="raised 2", joined="joined 2", out="out 2"))
    model.graph.node.extend(other.graph.node)
    model.graph.output.extend(other.graph.output)
    both = model.SerializeToString()
    folded = read(both)
    assert fold_up_convolutions(folded) == 2
    inputs = inputs_of((4, 3))
    expected = ReferenceEvaluator(onnx.load_model_from_string(graph)).run(None, inputs)[0]
    for values in compute(folded, **inputs):
        np.testing.assert_allclose(values, expected, rtol=0, atol=2e-5)


def test_a_place_may_read_what_another_makes() -> None:
    """The second one's map of the contracting path, and what it raises, are the first one's output."""
    first, second = (onnx.load_model_from_string(make_site(c_up=8)) for _ in range(2))
    renamed = {name: f"2 {name}" for node in second.graph.node for name in (*node.input, *node.output)}
    second = onnx.load_model_from_string(rename(second.SerializeToString(), **renamed | {"low": "out", "skip": "same"}))
    up, after = draw(C_OUT, 8, 2, 2), draw(C_OUT, 8 + C_OUT, 3, 3)
    for tensor in second.graph.initializer:
        for name, values in (("2 up.weight", up), ("2 after.weight", after)):
            if tensor.name == name:
                tensor.CopyFrom(numpy_helper.from_array(values, name))
    sizes = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "sizes")
    larger = helper.make_node("Resize", ["out", "", "sizes"], ["same"], mode="nearest")
    model = first
    model.graph.node.extend([larger, *second.graph.node])
    model.graph.initializer.extend([sizes, *second.graph.initializer])
    model.graph.output[0].name = "2 out"
    graph, inputs = model.SerializeToString(), inputs_of((4, 5))
    onnx.checker.check_model(model)
    expected = ReferenceEvaluator(model).run(None, inputs)[0]
    folded = read(graph)
    assert fold_up_convolutions(folded) == 2
    kinds = operators(folded)
    assert (kinds["Convolution"], kinds["ConvolutionBackpropData"]) == (2, 2)  # nothing is computed twice
    np.testing.assert_allclose(compute(folded, **inputs)[0], expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("tensor", ["up.weight", "after.weight"])
def test_weights_that_a_node_makes_are_left_alone(tensor: str) -> None:
    model = onnx.load_model_from_string(rename(make_site(), **{tensor: "made"}))
    next(t for t in model.graph.initializer if t.name == "made").name = "kept"
    model.graph.node.insert(0, helper.make_node("Exp", ["kept"], ["made"]))
    onnx.checker.check_model(model)
    assert fold_up_convolutions(read(model.SerializeToString())) == 0


@pytest.mark.parametrize("tensor", ["up.bias", "after.bias"])
def test_a_bias_that_a_node_makes_counts_all_the_same(tensor: str) -> None:
    model = onnx.load_model_from_string(rename(make_site(), **{tensor: "made"}))
    next(t for t in model.graph.initializer if t.name == "made").name = "kept"
    model.graph.node.insert(0, helper.make_node("Exp", ["kept"], ["made"]))
    graph, inputs = model.SerializeToString(), inputs_of((4, 5))
    folded = read(graph)
    assert fold_up_convolutions(folded) == (tensor == "after.bias")  # that is added to the sum
    expected = ReferenceEvaluator(model).run(None, inputs)[0]
    np.testing.assert_allclose(compute(folded, **inputs)[0], expected, rtol=0, atol=2e-5)


def test_a_map_joined_to_itself_is_left_alone() -> None:
    model = onnx.load_model_from_string(make_site(c_up=3))
    next(node for node in model.graph.node if node.op_type == "Concat").input[0] = "raised"
    assert fold_up_convolutions(read(model.SerializeToString())) == 0


@pytest.mark.parametrize(("c_up", "is_folded"), [(1, False), (2, True)])
def test_what_would_take_more_operations_is_left_alone(c_up: int, *, is_folded: bool) -> None:
    """It takes 4 · 5 · 2 multiplications a pixel instead of c_up · (5 + 9 · 2)."""
    assert fold_up_convolutions(read(make_site(c_up=c_up))) == is_folded


def test_another_software_s_networks_are_left_as_they_are() -> None:
    for model in (monai_like(), smp_like()):
        assert fold_up_convolutions(read(model.SerializeToString())) == 0


@pytest.mark.parametrize("tile", [(204, 236), (396, 300)])
def test_openvino_runs_it_folded_and_says_what_onnxruntime_says_of_the_artifact(tile: tuple[int, int]) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    artifact = load_bundled_artifact()
    batch = draw(1, 1, *tile)
    logits = [open_engine(artifact, engine=name).infer(batch) for name in ("onnxruntime-cpu", "openvino")]
    assert np.abs(logits[0]).max() > 1
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-5)
    engine = OpenvinoEngine(artifact.data, precision="fp32")
    engine.open()
    request = engine._request(batch.shape)
    layers = {
        op.get_rt_info()["layerType"].astype(str) for op in request.get_compiled_model().get_runtime_model().get_ops()
    }
    assert "Deconvolution" in layers
    assert "Concatenation" not in layers
