"""Foreign graphs: what is in the way of streaming is named with what to do, before anything is run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.foreign_graphs import Sketch, logits_of, monai_like, smp_like
from unet_deploy.errors import (
    AdoptionError,
    MissingDependencyError,
    ModelNotFoundError,
    NotAnArtifactError,
    UnknownNameError,
    UnsafeModelError,
)

pytest.importorskip("onnxruntime", reason="foreign graphs are looked at with onnxruntime: extra 'cpu'")

from unet_deploy.exporters.foreign import load_foreign, read_foreign
from unet_deploy.exporters.foreign_graph import PixelGraph, rewrite
from unet_deploy.exporters.foreign_reach import SIDES, Reach, find_reach
from unet_deploy.exporters.foreign_write import infer_shapes, write_graph
from unet_deploy.runtime.adopted_graph import ADOPTED_OPERATORS
from unet_deploy.runtime.artifact import MAX_FILE_BYTES, OUTPUT_NAME

Change = Callable[[Any], object]
INDEX = {"dtype": np.int64}


def read(model: onnx.ModelProto, **more: Any) -> Any:
    return read_foreign(model.SerializeToString(), source="other.onnx", **more)


def rewritten(model: onnx.ModelProto) -> PixelGraph:
    return rewrite(read(model))


def reach_of(graph: PixelGraph) -> Reach:
    shapes = [infer_shapes(graph, side, source="other.onnx") for side in SIDES]
    return find_reach(graph, shapes, source="other.onnx")


def refusal(model: onnx.ModelProto) -> AdoptionError:
    """Return why a network is refused."""
    with pytest.raises(AdoptionError, match=r"^other\.onnx|^\w+ '/\w+' cuts") as caught:
        reach_of(rewritten(model))
    return caught.value


# ---- the file


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(
        ModelNotFoundError, match=r"^no model file at .*none\.onnx\n  an ONNX file was expected\n  fix: "
    ):
        load_foreign(tmp_path / "none.onnx")


def test_a_file_beyond_protobufs_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(UnsafeModelError, match=rf"huge\.onnx is {2**31} bytes, at most {2**31 - 1} were expected\n"):
        load_foreign(path)


def test_no_onnx(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(NotAnArtifactError, match=r"text\.onnx is not an ONNX file, or is damaged\n"):
        load_foreign(tmp_path / "text.onnx")


def test_one_of_ours(tiny_model: Path) -> None:
    with pytest.raises(
        AdoptionError, match=r"has a model card of ours already\n  there is nothing to adopt\n"
    ) as caught:
        load_foreign(tiny_model)
    assert caught.value.fix.startswith("use it as it is, unpacked if it is in a package: unet-deploy segment ")


def outside(location: str) -> Change:
    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", location

    return change


def a_constant_outside(model: Any) -> None:
    tensor = helper.make_tensor("far", TensorProto.FLOAT, [1], [0.0])
    tensor.external_data.add().key = "location"
    model.graph.node.insert(0, helper.make_node("Constant", [], ["far"], value=tensor))


def a_branch(model: Any) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], name="branch", then_branch=body, else_branch=body))


def a_loop(model: Any) -> None:
    body = helper.make_graph([], "body", [], [])
    model.graph.node.append(helper.make_node("Loop", ["x", ""], ["y"], name="again", body=body))


def a_stranger(model: Any) -> None:
    model.graph.node.append(helper.make_node("RunShell", ["input"], ["y"], domain="com.example"))
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def a_function(model: Any) -> None:
    model.functions.append(helper.make_function("f", "F", ["x"], ["y"], [], [helper.make_opsetid("", 18)]))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (outside("../../etc/passwd"), "weights in another file: 'c0'"),
        (outside("/etc/passwd"), "weights in another file: 'c0'"),
        (a_constant_outside, "weights in another file: 'far'"),
        (a_branch, "graphs within the graph: If 'branch'"),
        (a_loop, "graphs within the graph: Loop 'again'"),
        (a_stranger, "operators of other domains: com.example.RunShell"),
        (a_function, "functions, training information, sparse or annotated tensors"),
    ],
)
def test_what_no_segmentation_network_needs(change: Change, problem: str) -> None:
    model = smp_like()
    change(model)
    with pytest.raises(UnsafeModelError, match=r"^other\.onnx holds what a segmentation network has no need") as caught:
        read(model)
    assert caught.value.details == (problem,)
    assert "weights included" in caught.value.fix


def test_all_that_is_unsafe_is_said_at_once() -> None:
    model = smp_like()
    for change in (outside("/etc/passwd"), a_branch, a_stranger):
        change(model)
    with pytest.raises(UnsafeModelError) as caught:
        read(model)
    assert len(caught.value.details) == 3


def too_few_bytes(model: Any) -> None:
    model.graph.initializer[0].raw_data = model.graph.initializer[0].raw_data[:-4]


def more_than_any_memory(model: Any) -> None:
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend([2**31, 2**31])


def a_missing_tensor(model: Any) -> None:
    model.graph.node[0].input[0] = "nowhere"


@pytest.mark.parametrize("change", [too_few_bytes, more_than_any_memory, a_missing_tensor])
def test_a_damaged_file(change: Change) -> None:
    model = smp_like()
    change(model)
    with pytest.raises(
        NotAnArtifactError, match=r"^other\.onnx is not valid ONNX, or is damaged\n  .+\n  fix: copy or"
    ):
        read(model)


# ---- operator sets


@pytest.mark.parametrize("opset", [13, 18, 20, 21])
def test_older_and_newer_operator_sets_come_out_as_ours(opset: int) -> None:
    model = smp_like(opset=opset, classes=2)
    graph = rewritten(model)
    ours = write_graph(graph, classes=2, context=0, source="other.onnx")
    assert [(entry.domain, entry.version) for entry in ours.opset_import] == [("", 18)]
    image = np.random.default_rng(0).standard_normal((1, 1, 16, 24)).astype(np.float32)
    ours.graph.node[0].input[0] = "input"
    ours.graph.input[0].name = "input"
    assert np.array_equal(logits_of(ours, image), logits_of(model, image))
    assert read(model).opset == opset


def test_an_operator_set_of_the_future() -> None:
    model = smp_like()
    newest = onnx.defs.onnx_opset_version()
    model.opset_import[0].version = newest + 1
    with pytest.raises(
        AdoptionError, match=rf"^other\.onnx has operator set {newest + 1}, at most {newest} was expected\n"
    ):
        read(model)


def test_an_operator_set_that_cannot_be_raised() -> None:
    s = Sketch()
    x = s.add("Add", [s.conv("input", 1, 2), s.constant([1.0, 2.0])], axis=1, broadcast=1)  # as of before 2017
    with pytest.raises(AdoptionError, match=r"^other\.onnx has operator set 6, which cannot be brought to 18\n  onnx "):
        read(s.model(x, opset=6))


def test_what_our_operator_set_cannot_say() -> None:
    s = Sketch()
    x = s.add("AveragePool", [s.conv("input", 1, 2)], kernel_shape=[3, 3], dilations=[2, 2], pads=[2, 2, 2, 2])
    graph = rewritten(s.model(x, opset=19))  # dilations of an average came with 19
    with pytest.raises(
        AdoptionError, match=r"^other\.onnx cannot be written in operator set 18\n(.*\n)+  fix: export it"
    ):
        write_graph(graph, classes=2, context=0, source="other.onnx")


# ---- input and output


def test_a_network_of_three_dimensions() -> None:
    s = Sketch()
    model = s.model(s.add("Relu", ["input"]), shape=["b", 1, "d", "h", "w"])
    with pytest.raises(
        AdoptionError, match=r"does not take one image \(n, c, y, x\): it takes input \(b, 1, d, h, w\)\n"
    ):
        read(model)


def test_a_network_of_two_inputs() -> None:
    s = Sketch()
    model = s.model(s.add("Add", ["input", "mask"]))
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1, 1, 8, 8]))
    with pytest.raises(
        AdoptionError, match=r"it takes input \(b, 1, h, w\); mask \(1, 1, 8, 8\)\n  a 2-D network with one"
    ):
        read(model)


def test_a_network_that_reads_bytes() -> None:
    s = Sketch()
    model = s.model(s.add("Cast", ["input"], to=TensorProto.FLOAT), data_type=TensorProto.UINT8)
    with pytest.raises(
        AdoptionError, match=r"^other\.onnx takes UINT8, FLOAT was expected\n  input 'input'; grey values"
    ):
        read(model)


def test_channels_are_read_off_the_first_convolution() -> None:
    s = Sketch()
    assert read(s.model(s.conv("input", 5, 2), shape=["b", "c", "h", "w"])).in_channels == 5


def test_channels_that_nothing_tells() -> None:
    s = Sketch()
    with pytest.raises(
        AdoptionError, match=r"^other\.onnx does not say how many channels it takes\n  input 'input' has"
    ):
        read(s.model(s.add("Relu", ["input"]), shape=["b", "c", "h", "w"]))


def test_several_outputs() -> None:
    s = Sketch()
    first = s.conv("input", 1, 2)
    model = s.model(s.conv(first, 2, 3), outputs=(first, "t1"))
    with pytest.raises(AdoptionError, match=r"^other\.onnx has 2 outputs: t0, t1\n  which of them") as caught:
        read(model)
    assert caught.value.fix == "--logits t0"
    assert read(model, output="t1").logits == "t1"
    with pytest.raises(UnknownNameError, match=r"^unknown output: 't2'\n  known: t0, t1\n  fix: use one"):
        read(model, output="t2")


@pytest.mark.parametrize("head", ["Softmax", "LogSoftmax"])
def test_a_softmax_is_left_out(head: str) -> None:
    s = Sketch()
    logits = s.conv("input", 1, 3)
    foreign = read(s.model(s.add("Identity", [s.add(head, [logits], axis=-3)])))
    assert (foreign.logits, foreign.is_sigmoid) == (logits, False)
    assert foreign.notes == (
        f"the final {head} '/{head}_t1' is left out: logits come out, probabilities are made of them",
    )


def test_a_sigmoid_is_left_out() -> None:
    assert read(smp_like(head="Sigmoid")).is_sigmoid


def test_a_softmax_over_space() -> None:
    s = Sketch()
    with pytest.raises(
        AdoptionError, match=r"^other\.onnx ends in Softmax '/Softmax_t1' over axis 2, axis 1 was expected"
    ):
        read(s.model(s.add("Softmax", [s.conv("input", 1, 3)], axis=2)))


@pytest.mark.parametrize("head", ["ArgMax", "Relu", "Tanh", "Round"])
def test_what_is_no_logits(head: str) -> None:
    with pytest.raises(AdoptionError, match=rf"^other\.onnx ends in {head} '/{head}_t31', not in logits\n") as caught:
        read(smp_like(head=head))
    assert "export the network without its last step" in caught.value.fix


# ---- what cannot stream


def test_an_instance_norm() -> None:
    error = refusal(monai_like(norm="instance"))
    assert error.headline == "other.onnx cannot be tiled without seams: it has 3 InstanceNormalization"
    assert error.details == (
        "InstanceNormalization '/InstanceNormalization_t1' is computed from the whole tile, so that every tile "
        "would be normalised by itself",
        "and so do '/InstanceNormalization_t4', '/InstanceNormalization_t7'",
    )
    assert "batch normalisation" in error.fix


def gate(pool: str, **attributes: Any) -> Callable[[Sketch, str], str]:
    """Return a squeeze and excite of 4 channels."""

    def add(s: Sketch, x: str) -> str:
        return s.add("Mul", [x, s.add("Sigmoid", [s.conv(s.add(pool, [x], **attributes), 4, 4, kernel=1)])])

    return add


def mean_of_space(s: Sketch, x: str) -> str:
    return s.add("Sub", [x, s.add("ReduceMean", [x, s.constant([2, 3], np.int64)], keepdims=1)])


def attention(s: Sketch, x: str) -> str:
    return s.add("MatMul", [x, s.add("Transpose", [x], perm=[0, 1, 3, 2])])


@pytest.mark.parametrize(
    ("part", "operator", "why"),
    [
        (gate("GlobalAveragePool"), "GlobalAveragePool", "looks at the whole tile"),
        (gate("GlobalMaxPool"), "GlobalMaxPool", "looks at the whole tile"),
        (mean_of_space, "ReduceMean", "looks at the whole tile"),
        (attention, "MatMul", "relates every pixel of the tile to every other"),
        (lambda s, x: s.add("Softmax", [x], axis=2), "Softmax", "sums over the tile"),
        (lambda s, x: s.add("LayerNormalization", [x, s.constant([1.0])]), "LayerNormalization", "from the whole tile"),
    ],
)
def test_a_whole_tile(part: Callable[[Sketch, str], str], operator: str, why: str) -> None:
    s = Sketch()
    error = refusal(s.model(s.conv(part(s, s.conv("input", 1, 4)), 4, 2)))
    assert error.headline == f"other.onnx cannot be tiled without seams: it has 1 {operator}"
    assert f"{operator} '/{operator}_" in error.details[0]
    assert why in error.details[0]
    assert error.fix


def test_several_kinds_are_named() -> None:
    s = Sketch()
    x = gate("GlobalAveragePool")(s, s.conv("input", 1, 4))
    for _ in range(7):
        x = s.add("InstanceNormalization", [x, s.random(4), s.random(4)])
    error = refusal(s.model(s.conv(x, 4, 2)))
    assert error.details[1].endswith(" and 1 more")
    assert error.details[2] == "other operators of this kind: GlobalAveragePool"


def fixed_resize(s: Sketch, x: str) -> str:
    half = s.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    return s.add("Resize", [half, "", "", s.constant([1, 4, 64, 64], np.int64)], mode="nearest")


def test_a_resize_to_a_fixed_size() -> None:
    s = Sketch()
    error = refusal(s.model(s.conv(fixed_resize(s, s.conv("input", 1, 4)), 4, 2)))
    assert error.headline == "other.onnx cannot be tiled: Resize '/Resize_t2' gives 64 × 64 px whatever comes in"
    assert "dynamic_axes" in error.fix


def test_a_fixed_size_that_a_skip_does_not_have() -> None:
    """What cannot run is the concatenation; why is the size before it."""
    s = Sketch()
    x = s.conv("input", 1, 4)
    error = refusal(s.model(s.conv(s.add("Concat", [fixed_resize(s, x), x], axis=1), 8, 2)))
    assert error.headline == "other.onnx cannot be tiled: Resize '/Resize_t2' gives 64 × 64 px whatever comes in"


def test_a_resize_by_another_factor() -> None:
    s = Sketch()
    x = s.conv("input", 1, 4)
    sizes = s.add("Add", [s.add("Shape", [x]), s.constant([0, 0, 3, 3], np.int64)])
    error = refusal(s.model(s.conv(s.add("Resize", [x, "", "", sizes], mode="nearest"), 4, 2)))
    assert "enlarges by another factor for another tile" in error.headline
    assert error.details[0].startswith("factors y, x: ")


@pytest.mark.parametrize(
    ("attributes", "problem"),
    [
        ({"coordinate_transformation_mode": "align_corners", "mode": "linear"}, "places pixels by align_corners"),
        ({"antialias": 1, "mode": "linear"}, "smooths over its surroundings (antialias)"),
        ({"keep_aspect_ratio_policy": "not_larger"}, "keeps an aspect ratio"),
    ],
)
def test_a_resize_that_depends_on_its_tile(attributes: dict[str, Any], problem: str) -> None:
    s = Sketch()
    x = s.conv("input", 1, 4)
    sizes = s.size_of(x, times=2)
    error = refusal(s.model(s.conv(s.add("Resize", [x, "", "", sizes], **attributes), 4, 2)))
    assert error.headline == "other.onnx cannot be tiled: 1 of its nodes cannot be"
    assert problem in error.details[0]


@pytest.mark.parametrize(
    ("part", "problem"),
    [
        (lambda s, x: s.add("Sin", [x]), "Sin '/Sin_t1' is no operator that a tile can be computed with"),
        (lambda s, x: s.add("Concat", [x, x], axis=2), "is along axis 2, the channels (1) were expected"),
        (
            lambda s, x: s.add(
                "ConvTranspose", [x, s.random(4, 4, 2, 2)], strides=[2, 2], output_shape=[32, 32], kernel_shape=[2, 2]
            ),
            "has an output of fixed size, pads were expected",
        ),
    ],
)
def test_a_node_that_is_none_of_ours(part: Callable[[Sketch, str], str], problem: str) -> None:
    s = Sketch()
    error = refusal(s.model(s.conv(part(s, s.conv("input", 1, 4)), 4, 2)))
    assert problem in error.details[0]
    assert error.fix.startswith("export a network of convolutions")


def test_a_batch_norm_in_training() -> None:
    s = Sketch()
    x = s.norm(s.conv("input", 1, 4), 4)
    s.nodes[-1].attribute.append(helper.make_attribute("training_mode", 1))
    s.nodes[-1].output.extend(["m", "v"])
    assert "gives more than one result" in refusal(s.model(s.conv(x, 4, 2))).details[0]
    del s.nodes[1].output[1:]
    assert "is in training mode: it is computed from the whole tile" in refusal(s.model(s.conv(x, 4, 2))).details[0]


def test_a_drop_out_in_training() -> None:
    def model(is_training: bool) -> onnx.ModelProto:
        s = Sketch()
        x = s.add("Dropout", [s.conv("input", 1, 4), s.constant(0.5), s.constant(is_training, np.bool_)])
        return s.model(s.conv(x, 4, 2))

    assert [node.operator for node in rewritten(model(False)).nodes] == ["Conv", "Conv"]
    error = refusal(model(True))
    assert error.headline == "other.onnx drops values at random: Dropout '/Dropout_t1' is in training mode"
    assert error.fix == "export the network in evaluation mode: model.eval()"


def test_many_problems_are_counted() -> None:
    s = Sketch()
    x = s.conv("input", 1, 4)
    for _ in range(8):
        x = s.add("Sin", [x])
    error = refusal(s.model(s.conv(x, 4, 2)))
    assert error.headline == "other.onnx cannot be tiled: 8 of its nodes cannot be"
    assert error.details[-1] == "and 3 more like these"


def test_a_learnt_position() -> None:
    s = Sketch()
    x = s.add("Add", [s.conv("input", 1, 4), s.constant(np.zeros((1, 4, 64, 128)))])
    with pytest.raises(AdoptionError, match=r"cannot run other\.onnx|depends on where in its tile") as caught:
        rewritten(s.model(s.conv(x, 4, 2)))
    assert caught.value.headline == "other.onnx depends on where in its tile a pixel lies"
    assert "takes a constant of 1 × 4 × 64 × 128, one value for each place in a tile" in caught.value.details[0]


def test_a_value_that_is_the_tiles_size() -> None:
    s = Sketch()
    size = s.add("Cast", [s.add("Size", ["input"])], to=TensorProto.FLOAT)
    error = refusal(s.model(s.add("Div", [s.conv("input", 1, 2), size])))
    assert error.headline == "other.onnx cannot be tiled: Div '/Div_t3' depends on the tile's size"
    assert error.details == ("its input 't1' is 131072.0 for one tile and 393216.0 for another",)


def test_weights_that_are_computed_from_the_image() -> None:
    s = Sketch()
    x = s.conv("input", 1, 4)
    weight = s.add(
        "Slice", [x, *(s.constant([0, 0], np.int64), s.constant([3, 3], np.int64), s.constant([2, 3], np.int64))]
    )
    error = refusal(s.model(s.add("Conv", [x, weight], pads=[1, 1, 1, 1])))
    assert "takes 't1', which is computed from the image" in error.headline


def test_a_cut_that_moves() -> None:
    s = Sketch()
    x = s.add("Slice", [s.conv("input", 1, 2), *(s.constant([n], np.int64) for n in (0, 60, 2))])
    error = refusal(s.model(x))
    assert "cuts another part out of another tile" in error.headline
    assert error.fix == "export a network that crops by constant margins"


def test_weights_of_half_precision() -> None:
    s = Sketch()
    x = s.add("Pow", [s.conv("input", 1, 2), s.constant([2], np.int64)])
    error = refusal(s.model(x))
    assert error.headline == "other.onnx computes in int64, float32 was expected"


def test_an_output_without_an_input() -> None:
    s = Sketch()
    shape = s.add("Shape", ["input"])
    error = refusal(s.model(s.add("ConstantOfShape", [shape])))
    assert error.headline == "other.onnx: its output does not depend on its input"


def test_a_network_of_valid_convolutions() -> None:
    s = Sketch()
    error = refusal(s.model(s.conv("input", 1, 2, pads=[0] * 4)))
    assert error.headline == "other.onnx gives 510 px for 512 px on axis y, and 1022 for 1024"


def test_a_grid_that_is_no_power_of_two() -> None:
    s = Sketch()
    x = s.conv("input", 1, 2, stride=3)
    x = s.add("ConvTranspose", [x, s.random(2, 2, 3, 3)], strides=[3, 3], kernel_shape=[3, 3], pads=[0, 0, 1, 1])
    graph = rewritten(s.model(x))
    with pytest.raises(AdoptionError, match=r"^other\.onnx (reduces its input \d+-fold, a power of two|gives \d+ px)"):
        reach_of(graph)


def test_a_reach_beyond_any_tile() -> None:
    s = Sketch()
    x = s.conv("input", 1, 1, dilations=[4100, 4100], pads=[4100] * 4)
    error = refusal(s.model(x))
    assert error.headline == "other.onnx sees 4100 px far, at most 4096 was expected"


def test_an_operator_set_that_runs_nowhere() -> None:
    s = Sketch()
    x = s.add("Reshape", ["input", s.constant([1, 1, 64, 128], np.int64)])
    size = s.add("Cast", [s.add("Size", [x])], to=TensorProto.FLOAT)
    with pytest.raises(AdoptionError, match=r"^onnxruntime \S+ cannot run other\.onnx\n  on an input of ") as caught:
        rewritten(s.model(s.add("Mul", [s.conv("input", 1, 2), size])))
    assert "dynamic y and x" in caught.value.fix


def test_sizes_that_do_not_add_up() -> None:
    s = Sketch()
    half = s.add("MaxPool", [s.conv("input", 1, 2)], kernel_shape=[2, 2], strides=[2, 2])
    graph = rewritten(s.model(s.add("Add", [half, "input"])))
    with pytest.raises(AdoptionError, match=r"is no network of constant sizes: a tile of 512 px goes through it no"):
        reach_of(graph)


def test_a_network_that_a_tile_does_not_fill() -> None:
    s = Sketch()
    graph = rewritten(s.model(s.conv("input", 1, 2, pads=[0] * 4, dilations=[300, 300])))
    with pytest.raises(
        AdoptionError,
        match=r"^other\.onnx: the size of 't0' does not follow from its input's\n"
        r"  \(1, 2, -88, -88\) was found for an input of 512 px, \(n, c, y, x\) was expected\n",
    ) as caught:
        reach_of(graph)
    assert "sides may be any multiple of its down-sampling" in caught.value.fix


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"^adopting a network needs the package 'onnxruntime'"):
        rewritten(smp_like())


# ---- what is rewritten


def test_nothing_but_pixels_is_left() -> None:
    graph = rewritten(smp_like())
    operators = [node.operator for node in graph.nodes]
    assert set(operators) <= ADOPTED_OPERATORS - {"Identity"}
    assert operators.count("Resize") == 2
    resize = next(node for node in graph.nodes if node.operator == "Resize")
    assert graph.constants[resize.inputs[2]].tolist() == [1, 1, 2, 2]


def test_sides_that_divide_evenly_have_the_pads_that_auto_pad_means() -> None:
    s = Sketch()
    attributes = {"kernel_shape": [3, 3], "strides": [2, 2]}
    x = s.add("Conv", ["input", s.random(4, 1, 3, 3)], auto_pad="SAME_UPPER", **attributes)
    model = s.model(s.conv(s.up(x), 4, 2))
    graph = rewritten(model)
    assert graph.nodes[0].attributes["pads"] == [0, 0, 1, 1]
    ours = write_graph(graph, classes=2, context=0, source="other.onnx")
    ours.graph.input[0].name = ours.graph.node[0].input[0] = "input"
    image = np.random.default_rng(0).standard_normal((1, 1, 12, 20)).astype(np.float32)
    assert np.array_equal(logits_of(ours, image), logits_of(model, image))
    assert ours.graph.output[0].name == OUTPUT_NAME


def test_a_crop_up_to_a_computed_end_is_counted_from_the_other_side() -> None:
    s = Sketch()
    x = s.conv("input", 1, 2, pads=[3, 3, 3, 3])  # 4 px larger than its input
    shape = s.add("Shape", ["input"])
    ends = s.add(
        "Add", [s.add("Slice", [shape, *(s.constant([n], np.int64) for n in (2, 4, 0))]), s.constant([2, 2], np.int64)]
    )
    x = s.add("Slice", [x, s.constant([2, 2], np.int64), ends, s.constant([2, 3], np.int64)])
    graph = rewritten(s.model(x))
    cut = graph.nodes[-1]
    assert [graph.constants[name].tolist() for name in cut.inputs[1:]] == [[2, 2], [-2, -2], [2, 3], [1, 1]]
    reach = reach_of(graph)
    assert (reach.divisor, reach.before, reach.after) == (1, 1, 1)


def test_a_batch_norm_of_a_linear_up_sampling_reaches_as_far_as_its_samples() -> None:
    s = Sketch()
    x = s.add("MaxPool", ["input"], kernel_shape=[2, 2], strides=[2, 2])
    x = s.add("Resize", [x, "", s.constant([1, 1, 2, 2])], mode="linear")
    reach = reach_of(rewritten(s.model(s.conv(x, 1, 2, kernel=1))))
    assert (reach.divisor, reach.before, reach.after) == (2, 2, 2)


def test_shuffled_channels_are_pixels_of_a_finer_grid() -> None:
    s = Sketch()
    x = s.add("SpaceToDepth", ["input"], blocksize=4)
    x = s.add("DepthToSpace", [s.conv(x, 16, 32)], blocksize=4)
    reach = reach_of(rewritten(s.model(x)))
    assert (reach.divisor, reach.before, reach.after) == (4, 4, 4)
