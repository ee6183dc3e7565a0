"""The model card as versioned JSON.

1. `dump_card` and `parse_card` are exact inverses.
2. `parse_card` refuses unknown versions and unknown keys, and reports every problem at once.
3. In an ONNX file the text stands under ``metadata_props[METADATA_KEY]``, and its sha256 under `CARD_HASH_KEY`.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
import zlib
from dataclasses import asdict
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from unet_deploy._card_network import network_to_objects, read_network
from unet_deploy._json_reader import Reader, is_mapping, is_names, is_number, load_strict
from unet_deploy.card import (
    AnyNetwork,
    ClassInfo,
    Histogram,
    InputContract,
    InputDtype,
    JsonObject,
    ModelCard,
    Network,
    Normalisation,
    Parity,
    Precision,
    TestTensor,
    Training,
)
from unet_deploy.errors import CardError

METADATA_KEY = "unet_deploy"
CARD_HASH_KEY = "unet_deploy_card_sha256"
CARD_VERSION = 1
MAX_TENSOR_BYTES = 64 * 2**20
"""A test tensor that declares more is refused before it is inflated."""

_COLOUR = re.compile(r"#[0-9a-f]{6}")


def dump_card(card: ModelCard) -> str:
    """Return the card as JSON text: keys sorted, ASCII only, so equal cards give equal text."""
    return json.dumps(card_to_object(card), sort_keys=True, allow_nan=False)


def card_to_object(card: ModelCard) -> JsonObject:
    """Return the card as plain JSON values."""
    return {
        "card_version": CARD_VERSION,
        "name": card.name,
        "description": card.description,
        **network_to_objects(card.network),
        "input": {
            "axes": "cyx",
            "dtype": card.input.dtype,
            "value_range": list(card.input.value_range),
            "channels": list(card.input.channels),
            "pixel_size_nm": _list_or_none(card.input.pixel_size_nm),
        },
        "normalisation": {
            "kind": "fixed",
            "mean": list(card.normalisation.mean),
            "std": list(card.normalisation.std),
            "source": card.normalisation.source,
            **_percentiles_or_nothing(card.normalisation),
        },
        "classes": [{"name": c.name, "colour": c.colour} for c in card.classes],
        "training": {
            "data": card.training.data,
            "licence": card.training.licence,
            "citation": card.training.citation,
            "images": card.training.images,
            "validation": list(card.training.validation),
            "steps": card.training.steps,
            "seed": card.training.seed,
            "seconds": card.training.seconds,
            "versions": card.training.versions,
            "scores": card.training.scores,
            "recipe": card.training.recipe,
        },
        "histogram": None
        if card.histogram is None
        else {"value_range": list(card.histogram.value_range), "counts": list(card.histogram.counts)},
        "precision": card.precision,
        "parent_sha256": card.parent_sha256,
        "graph_sha256": card.graph_sha256,
        **_parity_or_nothing(card.parity),
        "test_tensor": None
        if card.test_tensor is None
        else {"image": _encode(card.test_tensor.image), "logits": _encode(card.test_tensor.logits)},
    }


def parse_card(text: str, *, source: str) -> ModelCard:
    """Read a card, or say everything that is wrong with it.

    Parameters
    ----------
    text
        The JSON text of `dump_card`.
    source
        Where it came from, for the message.

    Raises
    ------
    CardError
        If it is no JSON, of an unknown version, has unknown or missing keys, or values that cannot be.
    """
    try:
        data = load_strict(text)
    except (ValueError, RecursionError) as error:
        raise CardError(
            "the model card is not valid JSON", f"in {source}", str(error), fix="export the model again"
        ) from error
    version = data.get("card_version") if isinstance(data, dict) else None
    if type(version) is not int or version != CARD_VERSION:
        raise CardError(
            f"model card version {version!r} came, this release reads version {CARD_VERSION}",
            f"in {source}",
            fix="use the unet-deploy release that exported the model, or export it again with this one",
        )
    reader = Reader(data, "")
    card = _read_card(reader)
    if card is None:
        raise CardError(
            f"the model card has {len(reader.problems)} problem(s)",
            f"in {source}",
            *reader.problems,
            fix="export the model again with this release",
        )
    return card


def _read_card(reader: Reader) -> ModelCard | None:
    reader.left.discard("card_version")
    name, description = reader.take_text("name"), reader.take_text("description")

    network, channels, classes = read_network(reader)

    inp = reader.take_object("input")
    inp.take_choice("axes", ("cyx",))
    dtype = inp.take_choice("dtype", get_args(InputDtype))
    value_range = inp.take_numbers("value_range", length=2)
    channel_names = inp.take("channels", f"a list of {channels} names", lambda v: is_names(v, channels))
    pixel_size = inp.take_numbers("pixel_size_nm", positive=True, optional=True, length=2)
    inp.finish()
    if value_range is not None and value_range[0] >= value_range[1]:
        inp.note("value_range", f"low must be below high, {list(value_range)} came")

    norm = reader.take_object("normalisation")
    norm.take_choice("kind", ("fixed",))
    mean = norm.take_numbers("mean", length=channels)
    std = norm.take_numbers("std", positive=True, length=channels)
    norm_source = norm.take_text("source")
    percentiles = _take_percentiles(norm)
    norm.finish()

    class_list = reader.take(
        "classes", f"a list of {classes} classes", lambda v: isinstance(v, list) and classes in (None, len(v))
    )
    infos = []
    for index, entry in enumerate(class_list or []):
        item = Reader(entry, f"classes[{index}].", reader.problems)
        colour = item.take("colour", "#rrggbb", lambda v: isinstance(v, str) and bool(_COLOUR.fullmatch(v)))
        infos.append(ClassInfo(name=item.take_text("name"), colour=colour))
        item.finish()

    training = _read_training(reader.take_object("training"))
    histogram = _read_histogram(reader)
    precision = reader.take_choice("precision", get_args(Precision))
    parent, graph = reader.take_hash("parent_sha256"), reader.take_hash("graph_sha256")
    parity = _take_parity(reader)
    tensor = _read_test_tensor(reader, dtype=dtype, channels=channels, classes=classes, network=network)
    reader.finish()
    if reader.problems:
        return None
    assert network is not None
    return ModelCard(
        name=name,
        description=description,
        network=network,
        input=InputContract(
            dtype=dtype, value_range=value_range, channels=tuple(channel_names), pixel_size_nm=pixel_size
        ),
        normalisation=Normalisation(mean=mean, std=std, source=norm_source, percentiles=percentiles),
        classes=tuple(infos),
        training=training,
        histogram=histogram,
        precision=precision,
        parent_sha256=parent,
        graph_sha256=graph,
        parity=parity,
        test_tensor=tensor,
    )


def _take_percentiles(norm: Reader) -> tuple[float, float] | None:
    """Take the percentiles; a card without the key, as all were before it existed, has none."""
    if "percentiles" not in norm.left:
        return None
    pair = norm.take(
        "percentiles",
        "two numbers, 0 <= low < high <= 100,",
        lambda v: isinstance(v, list) and len(v) == 2 and all(map(is_number, v)) and 0 <= v[0] < v[1] <= 100,
    )
    return None if pair is None else (pair[0], pair[1])


def _read_training(item: Reader) -> Training:
    training = Training(
        data=item.take_text("data"),
        licence=item.take_text("licence"),
        citation=item.take_text("citation"),
        images=item.take_int("images", 0, 10**9),
        validation=tuple(item.take("validation", "a list of names", lambda v: is_names(v, None)) or ()),
        steps=item.take_int("steps", 0, 10**12),
        seed=item.take_int("seed", 0, 2**64 - 1),
        seconds=item.take("seconds", "a number", is_number),
        versions=item.take("versions", "names to versions", lambda v: is_mapping(v, lambda x: isinstance(x, str))),
        scores=item.take("scores", "names to numbers", lambda v: is_mapping(v, is_number)),
        recipe=item.take("recipe", "an object", lambda v: isinstance(v, dict)),
    )
    item.finish()
    return training


def _read_histogram(reader: Reader) -> Histogram | None:
    data = reader.take("histogram", "an object or null", lambda v: v is None or isinstance(v, dict))
    if data is None:
        return None
    item = Reader(data, "histogram.", reader.problems)
    value_range = item.take_numbers("value_range", length=2)
    counts = item.take(
        "counts", "a list of counts", lambda v: isinstance(v, list) and all(type(c) is int and c >= 0 for c in v)
    )
    item.finish()
    if value_range is not None and value_range[0] >= value_range[1]:
        item.note("value_range", f"low must be below high, {list(value_range)} came")
    return None if item.problems else Histogram(value_range=value_range, counts=tuple(counts))


def _take_parity(reader: Reader) -> Parity | None:
    """Take the record of a product's parity; a card without the key, as of any fp32 graph, has none."""
    if "parity" not in reader.left:
        return None
    item = reader.take_object("parity")
    parity = Parity(
        engine=item.take_text("engine"),
        data=item.take_text("data"),
        tiles=item.take_int("tiles", 1, 10**9),
        max_difference=item.take("max_difference", "a number from 0", _is_size),
        mean_difference=item.take("mean_difference", "a number from 0", _is_size),
        labels_equal=item.take("labels_equal", "a share, 0..1", lambda v: _is_size(v) and v <= 1),
    )
    item.finish()
    return parity


def _is_size(value: Any) -> bool:
    return is_number(value) and value >= 0


def _read_test_tensor(
    reader: Reader, *, dtype: str | None, channels: int | None, classes: int | None, network: AnyNetwork | None
) -> TestTensor | None:
    data = reader.take("test_tensor", "an object or null", lambda v: v is None or isinstance(v, dict))
    if data is None:
        return None
    item = Reader(data, "test_tensor.", reader.problems)
    image, logits = (_decode(item, key) for key in ("image", "logits"))
    item.finish()
    if image is None or logits is None or network is None or dtype is None:
        return None
    geometry = network.geometry
    shrink = 2 * geometry.context
    if image.ndim != 4 or image.shape[1] != channels or image.dtype != dtype:
        item.note("image", f"(n, {channels}, y, x) of {dtype} was expected, {image.shape} of {image.dtype} came")
        return None
    if not all(geometry.is_legal(side) for side in image.shape[2:]):
        sides = " x ".join(map(str, image.shape[2:]))
        item.note("image", f"sides that a {_takes(network)} takes were expected, {sides} came")
        return None
    expected = (image.shape[0], classes, image.shape[2] - shrink, image.shape[3] - shrink)
    if logits.shape != expected or logits.dtype != np.float32:
        item.note("logits", f"{expected} of float32 was expected, {logits.shape} of {logits.dtype} came")
    return TestTensor(image=image, logits=logits)


def _takes(network: AnyNetwork) -> str:
    if isinstance(network, Network):
        return f"network of depth {network.depth}"
    return f"network of divisor {network.divisor} and context {network.context}"


def _encode(array: npt.NDArray[Any]) -> JsonObject:
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data = base64.b64encode(zlib.compress(little.tobytes(), 9)).decode("ascii")
    return {"dtype": array.dtype.name, "shape": list(array.shape), "zlib_base64": data}


def _decode(parent: Reader, key: str) -> npt.NDArray[Any] | None:
    item = parent.take_object(key)
    dtype = item.take_choice("dtype", get_args(InputDtype))
    shape = item.take(
        "shape",
        "a list of positive sizes",
        lambda v: isinstance(v, list) and all(type(n) is int and 0 < n <= MAX_TENSOR_BYTES for n in v),
    )
    text = item.take_text("zlib_base64")
    item.finish()
    if dtype is None or shape is None or text is None:
        return None
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    if nbytes > MAX_TENSOR_BYTES:
        item.note("shape", f"at most {MAX_TENSOR_BYTES} bytes were expected, {nbytes} came")
        return None
    try:
        inflater = zlib.decompressobj()
        raw = inflater.decompress(base64.b64decode(text, validate=True), nbytes + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        item.note("zlib_base64", f"cannot be decoded: {error}")
        return None
    if len(raw) != nbytes:
        item.note("zlib_base64", f"{nbytes} bytes were expected, {len(raw)} came")
        return None
    return np.frombuffer(raw, np.dtype(dtype).newbyteorder("<")).astype(dtype).reshape(shape)


def _percentiles_or_nothing(normalisation: Normalisation) -> JsonObject:
    # Only where there are some: the text of every card written before stays what it was.
    return {} if normalisation.percentiles is None else {"percentiles": list(normalisation.percentiles)}


def _parity_or_nothing(parity: Parity | None) -> JsonObject:
    return {} if parity is None else {"parity": asdict(parity)}


def _list_or_none(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)
