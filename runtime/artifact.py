"""Load an artifact: an ONNX file that we exported, with its card, checked before any engine sees it.

1. The file is read once, as bytes; engines get these bytes, never a path (hard links and links would let a path
   reach outside itself: DESIGN section 9).
2. The card must have the hash that stands beside it, and parse.
3. The graph must be self-contained and plain: no external data, no functions, no sub-graphs, and of operators and data
   types only what a graph of the card's precision needs, or what an adopted network may hold.
4. Card and graph must belong together: every tensor of the name, type and shape that the card's sizes and precision
   ask for, and the graph's hash, which is recomputed: an edit or a flipped bit is found here.
5. The test tensor is replayed later, by the engine, on the device it will run on.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.resources
import math
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from unet_deploy.card import AdoptedNetwork, ModelCard
from unet_deploy.card_json import CARD_HASH_KEY, METADATA_KEY, parse_card
from unet_deploy.errors import CardError, ModelNotFoundError, NotAnArtifactError, UnsafeModelError
from unet_deploy.runtime.adopted_graph import ADOPTED_DATA_TYPE_BYTES, ADOPTED_OPERATORS
from unet_deploy.runtime.unet_graph import (
    DATA_TYPE_BYTES,
    PRECISION_OPERATORS,
    is_activation_constant,
    weight_tensors,
)

MAX_FILE_BYTES = 2**31 - 1
"""Protobuf's own limit; the paper's network needs 124 MB."""
OPSET = 18
MAX_IR_VERSION = 10
INPUT_NAME, OUTPUT_NAME = "image", "logits"
ATTRIBUTES: dict[int, str] = {onnx.AttributeProto.INT: "i", onnx.AttributeProto.INTS: "ints"}
"""The kinds of attribute that our graphs have, and the field that holds each."""
ADOPTED_ATTRIBUTES: dict[int, str] = {
    **ATTRIBUTES,
    onnx.AttributeProto.FLOAT: "f",
    onnx.AttributeProto.FLOATS: "floats",
    onnx.AttributeProto.STRING: "s",
}
DEFAULT_MODEL = "membrane"
SHOWN = 5
"""So many tensors are named in a message; whoever says the wrong precision has them all wrong."""
_ZIP_HEAD = 1024
"""The first entry of a zip file, which torch writes as NAME/data.pkl, begins therein."""
_BARE_NAME = re.compile(r"[\w-]+")
_TYPE_NAMES: dict[int, str] = {number: name for name, number in onnx.TensorProto.DataType.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A checked artifact in memory.

    `source` is where it came from (for messages and provenance), `sha256` the hash of `data`.
    """

    data: bytes = field(repr=False)
    card: ModelCard
    source: str
    sha256: str
    n_nodes: int


def load_artifact(path: str | Path) -> Artifact:
    """Read and check the artifact at `path`, or the bundled network of that name.

    Parameters
    ----------
    path
        A file, else the name of a network that comes with the package (`bundled_names`).

    Raises
    ------
    ModelNotFoundError
        If there is no file, and no such network.
    NotAnArtifactError
        If it is no ONNX, is damaged, or was not written by ``unet-deploy export`` or ``adopt``.
    UnsafeModelError
        If it holds more than a segmentation network needs.
    CardError
        If the card is damaged or does not fit the graph.
    """
    name = os.fspath(path)
    path = Path(path)
    if not path.is_file():
        if _BARE_NAME.fullmatch(name):
            return load_bundled_artifact(name)
        raise ModelNotFoundError(
            f"no model file at {path}",
            "an ONNX file written by `unet-deploy export` was expected",
            fix="check the path, or export one: unet-deploy export model.pt",
        )
    if path.suffix == ".engine":
        raise NotAnArtifactError(
            f"{path} is an engine plan, an ONNX file was expected",
            "a plan is run by `unet-deploy segment`, and shown by `unet-deploy inspect`",
            fix="give the ONNX file that it was built from",
        )
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UnsafeModelError(
            f"{path} is {size} bytes, at most {MAX_FILE_BYTES} were expected",
            "ONNX files beyond that keep their weights outside themselves",
            fix="export the model again with `unet-deploy export`",
        )
    return read_artifact(path.read_bytes(), source=str(path))


def bundled_names() -> tuple[str, ...]:
    """Return the names of the networks that come with the package."""
    entries = importlib.resources.files("unet_deploy.models").iterdir()
    return tuple(sorted(Path(entry.name).stem for entry in entries if entry.name.endswith(".onnx")))


def is_bundled(name: str | Path) -> bool:
    """Tell whether `load_artifact` gives a bundled network for this name: no file of that name is in the way."""
    return os.fspath(name) in bundled_names() and not Path(name).is_file()


def load_bundled_artifact(name: str = DEFAULT_MODEL) -> Artifact:
    """Return a network that comes with the package; by default that of membranes in EM, trained on ISBI 2012.

    Raises
    ------
    ModelNotFoundError
        If there is none of that name.
    """
    names = bundled_names()
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean --model {close[0]}? otherwise " if close else ""
        raise ModelNotFoundError(
            f"no model file at {name}, and no bundled network of that name",
            f"bundled with unet-deploy: {', '.join(names) or 'none, which this installation lacks'}",
            fix=hint + "give the path of an ONNX file written by `unet-deploy export`",
        )
    file = f"{name}.onnx"
    data = importlib.resources.files("unet_deploy.models").joinpath(file).read_bytes()
    return read_artifact(data, source=f"bundled {file}")


def read_artifact(data: bytes, *, source: str) -> Artifact:
    """Check an artifact's bytes; see `load_artifact`."""
    model = parse_model(data, source)
    texts = {str(entry.key): entry.value for entry in model.metadata_props}
    if METADATA_KEY not in texts:
        found = ", ".join(sorted(texts)[:5]) or "none"
        raise NotAnArtifactError(
            f"{source} is an ONNX file, but none of ours: it has no model card",
            f"metadata {METADATA_KEY!r} was expected, found: {found}; produced by {model.producer_name or 'unknown'!r}",
            "without a card its normalisation, classes and context would be guesses",
            fix="unet-deploy export model.pt, if it was trained here; another program's: unet-deploy adopt",
        )
    text = texts[METADATA_KEY]
    if not isinstance(text, str) or texts.get(CARD_HASH_KEY) != hash_card(text):
        raise CardError(
            f"the model card of {source} was edited or damaged",
            f"its text does not have the sha256 under {CARD_HASH_KEY!r}",
            fix="copy the file again, or export it again; to change what a card says, train or export with other flags",
        )
    card = parse_card(text, source=source)
    _require_plain(model, card, source)
    _require_fit(model, card, source, data)
    return Artifact(
        data=data,
        card=card,
        source=source,
        sha256=hashlib.sha256(data).hexdigest(),
        n_nodes=len(model.graph.node),
    )


def hash_card(text: str) -> str:
    """Return the sha256 of a card's text, which stands beside it in the file."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_graph(model: Any) -> str:
    """Return the sha256 of everything in an ``onnx.ModelProto`` but its metadata: operators and weights."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def parse_model(data: bytes, source: str) -> Any:
    """Return the ``onnx.ModelProto`` of these bytes, or say that they are none (`NotAnArtifactError`)."""
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        fix = "copy or export the file again; a truncated copy looks like this"
        told: list[str] = []
        if data[:4] == b"PK\3\4" and b"/data.pkl" in data[:_ZIP_HEAD]:
            told, fix = ["it looks like a checkpoint of torch"], f"unet-deploy export {source}"
        elif data[:4] == b"PK\3\4":
            told = ["it is a zip file, as bioimage.io packages are: `unet-deploy adopt` reads those"]
        raise NotAnArtifactError(
            f"{source} is not an ONNX file, or is damaged",
            f"{len(data)} bytes came, which do not parse: {error}",
            *told,
            fix=fix,
        ) from error
    if not model.graph.node or not model.opset_import:
        raise NotAnArtifactError(
            f"{source} is not an ONNX file, or is damaged",
            f"{len(data)} bytes came, which hold no graph",
            fix="copy or export the file again; a truncated copy looks like this",
        )
    return model


def _require_plain(model: Any, card: ModelCard, source: str) -> None:
    precision, is_adopted = card.precision, isinstance(card.network, AdoptedNetwork)
    data_types = ADOPTED_DATA_TYPE_BYTES if is_adopted else DATA_TYPE_BYTES[precision]
    problems: list[str] = []
    opsets = [(entry.domain or "ai.onnx", entry.version) for entry in model.opset_import]
    if opsets != [("ai.onnx", OPSET)]:
        came = ", ".join(f"{domain} {version}" for domain, version in opsets)
        problems.append(f"operator sets: ai.onnx {OPSET} was expected, {came} came")
    if model.ir_version > MAX_IR_VERSION:
        problems.append(f"IR version: at most {MAX_IR_VERSION} was expected, {model.ir_version} came")
    if model.functions or model.training_info or model.graph.sparse_initializer or model.graph.quantization_annotation:
        problems.append("functions, training information, sparse or annotated tensors")
    # Protobuf gives bytes for a text that is no UTF-8.
    known = ADOPTED_OPERATORS if is_adopted else PRECISION_OPERATORS[precision]
    unknown = sorted({str(n.op_type) for n in model.graph.node if n.op_type not in known or n.domain or n.overload})
    if unknown:
        problems.append(f"operators: {', '.join(sorted(known))} were expected, {', '.join(unknown)} came")
    attributes = ADOPTED_ATTRIBUTES if is_adopted else ATTRIBUTES
    if any(_holds_more(a, attributes) for n in model.graph.node for a in n.attribute):
        plain = "numbers or words: sub-graphs, tensors" if is_adopted else "integers: sub-graphs, tensors, texts"
        problems.append(f"attributes that are no {plain}")
    tensors = [p for t in model.graph.initializer if (p := _tensor_problem(t, data_types))]
    problems += tensors[:SHOWN]
    if len(tensors) > SHOWN:
        problems.append(f"and {len(tensors) - SHOWN} more tensors like these")
    if problems and precision != "fp32":
        problems.append(f"its card says that it computes in {precision}")
    if problems:
        raise UnsafeModelError(
            f"{source} holds what a segmentation network has no need of",
            *problems,
            fix="export the model again with `unet-deploy export`, and do not trust this file",
        )


def _holds_more(attribute: Any, kinds: dict[int, str]) -> bool:
    """Tell whether an attribute is of another kind, or carries something beside what its type says."""
    allowed = {"name", "type", "doc_string", kinds.get(attribute.type)}
    return attribute.type not in kinds or any(field.name not in allowed for field, _ in attribute.ListFields())


def _tensor_problem(tensor: Any, item_bytes: dict[str, int]) -> str | None:
    if tensor.data_location != onnx.TensorProto.DEFAULT or tensor.external_data:
        return f"tensor {tensor.name!r} lies in another file"
    name = _TYPE_NAMES.get(tensor.data_type, str(tensor.data_type))
    if name not in item_bytes:
        return f"tensor {tensor.name!r} has the data type {name}"
    declared = math.prod(tensor.dims) * item_bytes[name]
    if min(tensor.dims, default=1) < 0 or len(tensor.raw_data) != declared:
        return f"tensor {tensor.name!r} declares {declared} bytes and has {len(tensor.raw_data)}"
    return None


def _require_fit(model: Any, card: ModelCard, source: str, data: bytes) -> None:
    problems: list[str] = []
    if card.test_tensor is None or card.graph_sha256 is None:
        problems.append("graph_sha256 and test_tensor were expected, but the card is one of a checkpoint")
    elif card.graph_sha256 != hash_graph(model):  # whoever changed the graph did not export it
        problems.append(f"graph_sha256 {card.graph_sha256[:12]}… was expected, {hash_graph(model)[:12]}… came")
    if card.precision != "fp32" and card.parent_sha256 is None:
        problems.append(f"parent_sha256 was expected in a card of {card.precision}: that of the fp32 artifact")
    expected = (
        ("input", model.graph.input, INPUT_NAME, card.network.in_channels),
        ("output", model.graph.output, OUTPUT_NAME, card.network.classes),
    )
    for kind, values, name, channels in expected:
        shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
        if shapes != {name: [0, channels, 0, 0]}:
            problems.append(f"{kind}: {name} (n, {channels}, y, x) was expected, {shapes} came (0: any size)")
        if any(v.type.tensor_type.elem_type != onnx.TensorProto.FLOAT for v in values):
            problems.append(f"{kind}: float32 was expected")
    problems += _adopted_problems(card) if isinstance(card.network, AdoptedNetwork) else _weight_problems(model, card)
    try:
        onnx.checker.check_model(data)  # `model` would be written out again for it
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: its own message was no UTF-8
        problems.append(f"the graph is not valid ONNX: {str(error).splitlines()[0]}")
    if problems:
        raise CardError(
            f"the model card and the graph of {source} do not belong together",
            *problems,
            fix="the file was changed after its export, or damaged: export or copy it again",
        )


def _adopted_problems(card: ModelCard) -> list[str]:
    """Return what an adopted network's card may not say; its weights are another program's, and only hashed."""
    if card.precision == "fp32":
        return []
    return [f"precision: fp32 was expected of an adopted network, {card.precision} came"]


def _weight_problems(model: Any, card: ModelCard) -> list[str]:
    """Return what is wrong with the weights of the paper's network: they are those of its sizes."""
    tensors = {t.name: (_TYPE_NAMES[t.data_type], tuple(t.dims)) for t in model.graph.initializer}
    weights = {name: tensor for name, tensor in tensors.items() if tensor[0] != "INT64"}  # which is where to crop
    expected_weights = weight_tensors(card.unet, card.precision)
    activations = {
        n for n in weights.keys() - expected_weights.keys() if is_activation_constant(n, weights[n], card.precision)
    }
    found = {name: tensor for name, tensor in weights.items() if name not in activations}
    if found == expected_weights and len(tensors) == len(model.graph.initializer):
        return []
    return [
        f"weights: those of depth {card.unet.depth} and width {card.unet.base_width} in {card.precision} "
        f"were expected, {len(found)} tensors of {sum(math.prod(shape) for _, shape in found.values()):,} values "
        "came"
    ]
