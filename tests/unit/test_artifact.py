"""An artifact is what the exporter wrote, whole and unchanged, or it is refused with what is wrong."""

from __future__ import annotations

import hashlib
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from unet_deploy.card import ModelCard, TestTensor
from unet_deploy.card_json import CARD_HASH_KEY, METADATA_KEY, dump_card
from unet_deploy.errors import (
    CardError,
    ModelError,
    ModelNotFoundError,
    NotAnArtifactError,
    UnsafeModelError,
)
from unet_deploy.runtime.artifact import (
    MAX_FILE_BYTES,
    Artifact,
    bundled_names,
    hash_card,
    hash_graph,
    is_bundled,
    load_artifact,
    load_bundled_artifact,
    read_artifact,
)
from unet_deploy.runtime.engines import open_engine

Change = Callable[[Any], object]


def nothing(model: Any) -> None:
    """Change nothing."""


def write_card(model: Any, text: str) -> bytes:
    """Return the file with another card, and the hash of its text beside it."""
    values = {METADATA_KEY: text, CARD_HASH_KEY: hash_card(text)}
    for entry in model.metadata_props:
        entry.value = values[entry.key]
    return bytes(model.SerializeToString(deterministic=True))


def forged(artifact: Artifact, change: Change = nothing, *, card: ModelCard | None = None) -> bytes:
    """Return the file with its graph changed and the card's hash made to fit: what a careful forger would write."""
    model = onnx.load_model_from_string(artifact.data)
    change(model)
    honest = replace(card or artifact.card, graph_sha256=hash_graph(model))
    return write_card(model, dump_card(honest))


def damaged(artifact: Artifact, change: Change) -> bytes:
    """Return the file with its graph changed and the card as it was."""
    model = onnx.load_model_from_string(artifact.data)
    change(model)
    return bytes(model.SerializeToString(deterministic=True))


# What is written is read.


def test_a_file_comes_back(tiny_model: Path, tiny_artifact: Artifact) -> None:
    data = tiny_model.read_bytes()
    again = load_artifact(str(tiny_model))
    assert (again.data, again.sha256) == (data, hashlib.sha256(data).hexdigest())
    assert again.source == str(tiny_model)
    assert again.n_nodes == 12 * again.card.network.depth + 5
    assert again.card == tiny_artifact.card
    assert again.card.graph_sha256 == hash_graph(onnx.load_model_from_string(data))
    assert again.card.test_tensor is not None
    assert "data=b" not in repr(again)


def test_reading_does_not_depend_on_where_the_bytes_came_from(tiny_artifact: Artifact) -> None:
    again = read_artifact(forged(tiny_artifact), source="a socket")
    assert (again.source, again.sha256) == ("a socket", tiny_artifact.sha256)


def test_the_bundled_network_is_an_artifact() -> None:
    artifact = load_bundled_artifact()
    assert artifact.source == "bundled membrane.onnx"
    assert artifact.card.network.depth == 4
    assert artifact.n_nodes == 53


def test_bundled_networks_are_found_by_name() -> None:
    names = bundled_names()
    assert "membrane" in names
    assert names == tuple(sorted(names))
    for name in names:
        assert is_bundled(name)
        artifact = load_artifact(name)
        assert artifact.source == f"bundled {name}.onnx"
        assert load_artifact(Path(name)).sha256 == load_bundled_artifact(name).sha256 == artifact.sha256
    assert load_bundled_artifact().sha256 == load_bundled_artifact("membrane").sha256
    assert not is_bundled("membrane.onnx")


def test_a_file_comes_before_a_bundled_network_of_its_name(
    tmp_path: Path, tiny_model: Path, tiny_artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_model, "membrane")
    assert not is_bundled("membrane")
    assert load_artifact("membrane").sha256 == tiny_artifact.sha256


@pytest.mark.parametrize(
    ("came", "fix"),
    [
        ("membrain", "did you mean --model membrane? otherwise give the path of an ONNX file "),
        ("xyz", "give the path of an ONNX file "),
    ],
)
def test_a_name_that_is_nothing_is_refused_with_those_there_are(came: str, fix: str) -> None:
    with pytest.raises(
        ModelNotFoundError, match=rf"^no model file at {came}, and no bundled network of that name\n  bundled with "
    ) as caught:
        load_artifact(came)
    assert caught.value.details == (f"bundled with unet-deploy: {', '.join(bundled_names())}",)
    assert caught.value.fix.startswith(fix)


@pytest.mark.parametrize("came", ["membrane.onnx", "./membrane", "models/membrane", "membrane/", "..", ""])
def test_a_path_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, came: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelNotFoundError, match=r"^no model file at .*\n  an ONNX file written by"):
        load_artifact(came)


# What is no artifact.


@pytest.mark.parametrize("what", ["nothing", "folder"])
def test_there_must_be_a_file(tmp_path: Path, what: str) -> None:
    path = tmp_path / "model.onnx"
    if what == "folder":
        path.mkdir()
    with pytest.raises(
        ModelNotFoundError, match=r"^no model file at .*model\.onnx\n  an ONNX file written by"
    ) as caught:
        load_artifact(path)
    assert caught.value.fix == "check the path, or export one: unet-deploy export model.pt"


def test_a_file_beyond_protobufs_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)  # sparse
    with pytest.raises(
        UnsafeModelError, match=rf"model\.onnx is {2**31} bytes, at most {2**31 - 1} were expected\n"
    ) as caught:
        load_artifact(path)
    assert "keep their weights outside themselves" in caught.value.details[0]


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.onnx"
    path.touch()
    with pytest.raises(
        NotAnArtifactError,
        match=r"empty\.onnx is not an ONNX file, or is damaged\n  0 bytes came, which hold no graph\n",
    ) as caught:
        load_artifact(path)
    assert caught.value.fix == "copy or export the file again; a truncated copy looks like this"


@pytest.mark.parametrize(
    "data", [b"PK\x03\x04 a torch file", b"\x89HDF\r\n\x1a\n", b"{}", b"\x00" * 100, b"\xff" * 100]
)
def test_another_format_is_refused(data: bytes) -> None:
    with pytest.raises(NotAnArtifactError, match=rf"^x is not an ONNX file, or is damaged\n  {len(data)} bytes came, "):
        read_artifact(data, source="x")


@pytest.mark.parametrize("seed", range(8))
def test_random_bytes_are_refused(seed: int) -> None:
    with pytest.raises(NotAnArtifactError, match=r"^x is "):
        read_artifact(random.Random(seed).randbytes(10 ** (seed % 5)), source="x")


@pytest.mark.parametrize("part", [n / 20 for n in range(20)])
def test_a_truncated_file_is_refused(tmp_path: Path, tiny_artifact: Artifact, part: float) -> None:
    path = tmp_path / "half.onnx"
    data = tiny_artifact.data
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ModelError, match=r"half\.onnx") as caught:
        load_artifact(path)
    assert caught.value.exit_code == 4


def test_a_file_without_its_last_byte_is_refused(tiny_artifact: Artifact) -> None:
    with pytest.raises(NotAnArtifactError, match=r"bytes came, which do not parse: "):
        read_artifact(tiny_artifact.data[:-1], source="x")


def test_a_package_or_a_plan_is_called_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(NotAnArtifactError, match=r"do not parse: .+\n  it is a zip file, as bioimage\.io packages are"):
        read_artifact(b"PK\3\4" + bytes(30), source="x")
    with pytest.raises(NotAnArtifactError, match=r"\n  it looks like a checkpoint of torch\n") as caught:
        read_artifact(b"PK\3\4" + bytes(26) + b"model/data.pkl" + bytes(30), source="model.pt")
    assert caught.value.fix == "unet-deploy export model.pt"
    (tmp_path / "a.engine").write_bytes(b"plan")
    with pytest.raises(NotAnArtifactError, match=r"a\.engine is an engine plan, an ONNX file was expected\n") as caught:
        load_artifact(tmp_path / "a.engine")
    assert "unet-deploy inspect" in caught.value.details[0]


def test_a_foreign_onnx_is_refused() -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    model = helper.make_model(graph, producer_name="pytorch")
    with pytest.raises(
        NotAnArtifactError,
        match=r"^x is an ONNX file, but none of ours: it has no model card\n"
        r"  metadata 'unet_deploy' was expected, found: none; produced by 'pytorch'\n",
    ) as caught:
        read_artifact(model.SerializeToString(), source="x")
    assert "unet-deploy export model.pt" in caught.value.fix
    assert caught.value.fix.endswith("another program's: unet-deploy adopt")
    for key in ("author", "date"):
        model.metadata_props.add().key = key
    model.producer_name = ""
    with pytest.raises(NotAnArtifactError, match=r"found: author, date; produced by 'unknown'"):
        read_artifact(model.SerializeToString(), source="x")


# What is damaged.


def test_a_flipped_bit_in_the_weights_is_found(tiny_artifact: Artifact) -> None:
    def flip(model: Any) -> None:
        tensor = model.graph.initializer[4]
        tensor.raw_data = tensor.raw_data[:-1] + bytes([tensor.raw_data[-1] ^ 1])

    with pytest.raises(
        CardError,
        match=r"^the model card and the graph of x do not belong together\n"
        r"  graph_sha256 [0-9a-f]{12}… was expected, [0-9a-f]{12}… came\n",
    ) as caught:
        read_artifact(damaged(tiny_artifact, flip), source="x")
    assert caught.value.fix == "the file was changed after its export, or damaged: export or copy it again"


def test_a_flipped_bit_anywhere_is_refused_or_does_no_harm(tiny_artifact: Artifact) -> None:
    """Whatever one bit does, it is one of our errors, or the graph and its hash are as they were."""
    data, rng = tiny_artifact.data, random.Random(0)
    weights = {i for t in onnx.load_model_from_string(data).graph.initializer for i in _span(data, t.raw_data)}
    structure = [i for i in range(len(data)) if i not in weights]
    refused = 0
    for place in [*rng.sample(range(len(data)), 300), *rng.sample(structure, 1500)]:
        flipped = bytearray(data)
        flipped[place] ^= 1 << rng.randrange(8)
        try:
            came = read_artifact(bytes(flipped), source="x")
        except ModelError:
            refused += 1
        else:
            assert came.card.graph_sha256 == tiny_artifact.card.graph_sha256, place
    assert refused > 1700  # the rest is text within the card


def _span(data: bytes, part: bytes) -> range:
    start = data.find(part)
    return range(start, start + len(part))


# What holds more than a network needs.


def add_custom_node(model: Any) -> None:
    model.graph.node.append(helper.make_node("Fetch", ["image"], ["unused"], domain="com.example"))


def add_known_name_of_another_domain(model: Any) -> None:
    model.graph.node[0].domain = "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def add_function(model: Any) -> None:
    node = helper.make_node("Relu", ["a"], ["b"])
    model.functions.append(helper.make_function("local", "F", ["a"], ["b"], [node], [helper.make_opsetid("", 18)]))


def add_subgraph(model: Any) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("body", helper.make_graph([], "inner", [], [])))


def add_subgraphs(model: Any) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("bodies", [helper.make_graph([], "inner", [], [])]))


def use_opset(version: int) -> Change:
    return lambda model: setattr(model.opset_import[0], "version", version)


def use_half_precision(model: Any) -> None:
    tensor = model.graph.initializer[0]
    values = np.frombuffer(tensor.raw_data, np.float32).astype(np.float16)
    tensor.data_type, tensor.raw_data = TensorProto.FLOAT16, values.tobytes()


def declare_too_much(model: Any) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def declare_less_than_nothing(model: Any) -> None:
    dims = model.graph.initializer[0].dims
    dims[0], dims[1] = -dims[0], -dims[1]


def hold_half(model: Any) -> None:
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[: len(tensor.raw_data) // 2]


def add_sparse(model: Any) -> None:
    values = helper.make_tensor("s", TensorProto.FLOAT, [1], [1.0])
    indices = helper.make_tensor("i", TensorProto.INT64, [1], [0])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [4]))


def unknown_data_type(model: Any) -> None:
    model.graph.initializer[0].data_type = 999


def unreadable_operator(model: Any) -> None:
    data = model.SerializeToString()
    place = data.index(b"ConvTranspose")
    model.ParseFromString(data[:place] + b"\xff\xfe" + data[place + 2 :])


KNOWN = "Concat, Conv, ConvTranspose, MaxPool, Relu, Slice"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (add_custom_node, rf"operators: {KNOWN} were expected, Fetch came"),
        (add_known_name_of_another_domain, rf"operators: {KNOWN} were expected, Conv came"),
        (
            add_known_name_of_another_domain,
            r"operator sets: ai\.onnx 18 was expected, ai\.onnx 18, com\.example 1 came",
        ),
        (
            lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3)),
            r"operator sets: .*, ai\.onnx\.ml 3 came",
        ),
        (add_function, "functions, training information, sparse or annotated tensors"),
        (lambda m: m.training_info.add(), "functions, training information, sparse or annotated tensors"),
        (add_sparse, "functions, training information, sparse or annotated tensors"),
        (add_subgraph, "attributes that are no integers: sub-graphs.*"),
        (add_subgraphs, "attributes that are no integers: sub-graphs.*"),
        (use_opset(17), r"operator sets: ai\.onnx 18 was expected, ai\.onnx 17 came"),
        (lambda m: m.opset_import.append(helper.make_opsetid("", 18)), r"operator sets: .*, ai\.onnx 18 came"),
        (lambda m: setattr(m.graph.node[0], "overload", "mine"), rf"operators: {KNOWN} were expected, Conv came"),
        (use_opset(19), r"operator sets: ai\.onnx 18 was expected, ai\.onnx 19 came"),
        (lambda m: setattr(m, "ir_version", 11), "IR version: at most 10 was expected, 11 came"),
        (use_half_precision, r"tensor 'contracting\.0\.0\.weight' has the data type FLOAT16"),
        (unknown_data_type, r"tensor 'contracting\.0\.0\.weight' has the data type .*999"),
        (unreadable_operator, r"operators: .* were expected, .* came"),
        (declare_too_much, r"tensor 'contracting\.0\.0\.weight' declares \d{14} bytes and has \d+"),
        (declare_less_than_nothing, r"tensor 'contracting\.0\.0\.weight' declares \d+ bytes and has \d+"),
        (hold_half, r"tensor 'contracting\.0\.0\.weight' declares (\d+) bytes and has (?!\1)\d+"),
    ],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_what_a_network_has_no_need_of_is_refused(tiny_artifact: Artifact, change: Change, problem: str) -> None:
    with pytest.raises(
        UnsafeModelError, match=rf"^x holds what a segmentation network has no need of\n(  .*\n)*  {problem}\n"
    ) as caught:
        read_artifact(forged(tiny_artifact, change), source="x")
    assert caught.value.fix == "export the model again with `unet-deploy export`, and do not trust this file"


def point_outside(tensor: Any, location: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value


@pytest.mark.parametrize("location", ["../secret.bin", "weights.bin", "/etc/passwd", "", "a/../../secret.bin"])
def test_weights_in_another_file_are_refused(tmp_path: Path, tiny_artifact: Artifact, location: str) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(1000))  # being there makes it no better
    path = tmp_path / "model.onnx"
    path.write_bytes(forged(tiny_artifact, lambda m: point_outside(m.graph.initializer[0], location)))
    with pytest.raises(UnsafeModelError, match=r"\n  tensor 'contracting\.0\.0\.weight' lies in another file\n"):
        load_artifact(path)


def test_a_place_without_the_flag_is_refused_too(tiny_artifact: Artifact) -> None:
    def change(model: Any) -> None:
        entry = model.graph.initializer[0].external_data.add()
        entry.key, entry.value = "location", "../secret.bin"

    with pytest.raises(UnsafeModelError, match=r"\n  tensor 'contracting\.0\.0\.weight' lies in another file\n"):
        read_artifact(forged(tiny_artifact, change), source="x")


@pytest.mark.parametrize("field", ["t", "tensors", "sparse_tensor"])
def test_a_tensor_in_an_attribute_is_refused(tiny_artifact: Artifact, field: str) -> None:
    # None of our operators has one, and it could lie in another file.
    def change(model: Any) -> None:
        attribute = model.graph.node[0].attribute.add()
        attribute.name = "value"
        tensor = helper.make_tensor("w", TensorProto.FLOAT, [4], np.zeros(4, np.float32).tobytes(), raw=True)
        if field == "sparse_tensor":
            attribute.type = onnx.AttributeProto.SPARSE_TENSOR
            attribute.sparse_tensor.values.CopyFrom(tensor)
        elif field == "tensors":
            attribute.type = onnx.AttributeProto.TENSORS
            point_outside(tensor, "../secret.bin")
            attribute.tensors.append(tensor)
        else:
            attribute.type = onnx.AttributeProto.TENSOR
            point_outside(tensor, "../secret.bin")
            attribute.t.CopyFrom(tensor)

    with pytest.raises(UnsafeModelError, match=r"^x holds what a segmentation network has no need of\n"):
        read_artifact(forged(tiny_artifact, change), source="x")


def test_all_problems_are_said_together(tiny_artifact: Artifact) -> None:
    def change(model: Any) -> None:
        for one in (use_opset(17), add_function, add_subgraph, use_half_precision):
            one(model)

    with pytest.raises(UnsafeModelError, match=r"^x holds ") as caught:
        read_artifact(forged(tiny_artifact, change), source="x")
    assert len(caught.value.details) == 4


# What does not belong together.


def test_the_card_of_a_checkpoint_is_refused(tiny_artifact: Artifact) -> None:
    model = onnx.load_model_from_string(tiny_artifact.data)
    data = write_card(model, dump_card(replace(tiny_artifact.card, graph_sha256=None, test_tensor=None)))
    with pytest.raises(
        CardError, match=r"\n  graph_sha256 and test_tensor were expected, but the card is one of a checkpoint\n"
    ):
        read_artifact(data, source="x")


def test_a_card_that_cannot_be_read_is_refused(tiny_artifact: Artifact) -> None:
    model = onnx.load_model_from_string(tiny_artifact.data)
    with pytest.raises(CardError, match=r"^the model card is not valid JSON\n  in x\n"):
        read_artifact(write_card(model, "{"), source="x")


@pytest.mark.parametrize("what", ["edited", "unhashed", "no-text"])
def test_a_card_whose_text_was_changed_is_refused(tiny_artifact: Artifact, what: str) -> None:
    model = onnx.load_model_from_string(tiny_artifact.data)
    entries = {entry.key: entry for entry in model.metadata_props}
    if what == "edited":
        entries[METADATA_KEY].value = entries[METADATA_KEY].value.replace("class 1", "class 7").replace("255", "254")
    elif what == "unhashed":
        model.metadata_props.remove(entries[CARD_HASH_KEY])
    else:
        entries[METADATA_KEY].value = ""
    with pytest.raises(CardError, match=r"^the model card of x was edited or damaged\n  its text does not"):
        read_artifact(model.SerializeToString(), source="x")


def rename(kind: str) -> Change:
    def change(model: Any) -> None:
        (value,) = getattr(model.graph, kind)
        for node in model.graph.node:
            for names in (node.input, node.output):
                for index, name in enumerate(names):
                    if name == value.name:
                        names[index] = "other"
        value.name = "other"

    return change


def fix_size(model: Any) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 572


def add_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, ["n"]))


def set_channels(kind: str, count: int) -> Change:
    return lambda m: setattr(getattr(m.graph, kind)[0].type.tensor_type.shape.dim[1], "dim_value", count)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            rename("input"),
            r"input: image \(n, 1, y, x\) was expected, \{'other': \[0, 1, 0, 0\]\} came \(0: any size\)",
        ),
        (rename("output"), r"output: logits \(n, 2, y, x\) was expected, \{'other': \[0, 2, 0, 0\]\} came"),
        (set_channels("input", 3), r"input: .*\{'image': \[0, 3, 0, 0\]\} came"),
        (set_channels("output", 7), r"output: .*\{'logits': \[0, 7, 0, 0\]\} came"),
        (fix_size, r"input: .*\{'image': \[0, 1, 572, 0\]\} came"),
        (add_input, r"input: .*\{'image': \[0, 1, 0, 0\], 'more': \[0\]\} came"),
        (lambda m: m.graph.output.pop(), r"output: .*\{\} came"),
        (lambda m: m.graph.input[0].type.Clear(), r"input: .*\{'image': \[\]\} came"),
    ],
    ids=[
        "input-name",
        "output-name",
        "input-channels",
        "output-channels",
        "fixed",
        "two-inputs",
        "no-output",
        "no-type",
    ],
)
def test_another_interface_is_refused(tiny_artifact: Artifact, change: Change, problem: str) -> None:
    with pytest.raises(
        CardError, match=rf"^the model card and the graph of x do not belong together\n  {problem}.*\n"
    ) as caught:
        read_artifact(forged(tiny_artifact, change), source="x")
    assert caught.value.fix.endswith("export or copy it again")


def loses_nodes(model: Any) -> None:
    del model.graph.node[3:5]


def has_a_dangling_input(model: Any) -> None:
    model.graph.node[1].input[0] = "nowhere"


def pads_its_convolutions(model: Any) -> None:
    for node in model.graph.node:
        if node.op_type == "Conv":
            node.attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))


def takes_half_precision(model: Any) -> None:
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT16


@pytest.mark.parametrize("change", [loses_nodes, has_a_dangling_input, pads_its_convolutions, takes_half_precision])
def test_a_graph_that_is_not_the_cards_network_is_refused(tiny_artifact: Artifact, change: Change) -> None:
    # At load or when the engine opens; in either case as an error about the model, never as one of the engine's own.
    with pytest.raises(ModelError, match=r"^.+\n(  .+\n)*  fix: "):
        open_engine(read_artifact(forged(tiny_artifact, change), source="x"), device="cpu")


def test_a_graph_that_is_no_onnx_is_refused(tiny_artifact: Artifact) -> None:
    with pytest.raises(
        CardError,
        match=r"^the model card and the graph of x do not belong together\n  the graph is not valid ONNX: Nodes in a",
    ):
        read_artifact(forged(tiny_artifact, has_a_dangling_input), source="x")


def test_a_card_of_another_depth_is_refused(tiny_artifact: Artifact) -> None:
    tensor = tiny_artifact.card.test_tensor
    assert tensor is not None
    n, _, y, x = tensor.image.shape
    card = replace(
        tiny_artifact.card,
        network=replace(tiny_artifact.card.network, depth=1),
        test_tensor=TestTensor(image=tensor.image, logits=np.zeros((n, 2, y - 16, x - 16), np.float32)),
    )
    with pytest.raises(ModelError, match=r"^.+\n(  .+\n)*  fix: "):
        open_engine(read_artifact(forged(tiny_artifact, card=card), source="x"), device="cpu")


def test_a_card_of_another_width_is_refused(tiny_artifact: Artifact) -> None:
    # Memory and time are planned from the width.
    card = replace(tiny_artifact.card, network=replace(tiny_artifact.card.network, base_width=64))
    with pytest.raises(ModelError, match=r"^.+\n(  .+\n)*  fix: "):
        open_engine(read_artifact(forged(tiny_artifact, card=card), source="x"), device="cpu")


def test_a_precision_that_the_graph_does_not_have_is_refused(tiny_artifact: Artifact) -> None:
    card = replace(tiny_artifact.card, precision="int8")
    with pytest.raises(ModelError, match=r"^.+\n(  .+\n)*  fix: "):
        open_engine(read_artifact(forged(tiny_artifact, card=card), source="x"), device="cpu")


def test_a_test_tensor_of_an_illegal_size_is_refused(tiny_artifact: Artifact) -> None:
    tensor = TestTensor(image=np.zeros((1, 1, 43, 44), np.uint8), logits=np.zeros((1, 2, 3, 4), np.float32))
    card = replace(tiny_artifact.card, test_tensor=tensor)
    with pytest.raises(ModelError, match=r"^.+\n(  .+\n)*  fix: "):
        open_engine(read_artifact(forged(tiny_artifact, card=card), source="x"), device="cpu")


def test_the_card_stands_where_it_is_said_to(tiny_artifact: Artifact) -> None:
    entry, stamp = onnx.load_model_from_string(tiny_artifact.data).metadata_props
    assert entry.key == METADATA_KEY == "unet_deploy"
    assert (stamp.key, stamp.value) == ("unet_deploy_card_sha256", hashlib.sha256(entry.value.encode()).hexdigest())
