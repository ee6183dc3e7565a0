"""The model card as text: what goes in comes out, and what cannot be is refused by name."""

from __future__ import annotations

import base64
import json
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from unet_deploy.card import (
    ClassInfo,
    Histogram,
    InputContract,
    ModelCard,
    Network,
    Normalisation,
    TestTensor,
    Training,
)
from unet_deploy.card_json import (
    CARD_VERSION,
    MAX_TENSOR_BYTES,
    METADATA_KEY,
    card_to_object,
    dump_card,
    parse_card,
)
from unet_deploy.errors import CardError

Json = dict[str, Any]


def a_card() -> ModelCard:
    """Return a card with every field filled: depth 1, so that a test tensor of 20 px is legal and yields 4."""
    rng = np.random.default_rng(0)
    return ModelCard(
        name="em-membrane",
        description="membranes in serial-section EM",
        network=Network(depth=1, base_width=8, in_channels=1, classes=2),
        input=InputContract(dtype="uint8", value_range=(0, 255), channels=("em",), pixel_size_nm=(4.0, 4.0)),
        normalisation=Normalisation(mean=(126.4,), std=(43.1,), source="all training pixels"),
        classes=(ClassInfo(name="background", colour="#000000"), ClassInfo(name="membrane", colour="#ff8800")),
        training=Training(
            data="ISBI 2012",
            licence="non-commercial",
            citation="Cardona et al. 2010",
            images=24,
            validation=("slice 28", "slice 29"),
            steps=1500,
            seed=7,
            seconds=412.5,
            versions={"torch": "2.13.0"},
            scores={"pixel_disagreement": 0.081},
            recipe={"learning_rate": 1e-3, "augmentation": ["flip"]},
        ),
        histogram=Histogram(value_range=(0, 255), counts=(1, 0, 3)),
        parent_sha256="ab" * 32,
        graph_sha256="cd" * 32,
        test_tensor=TestTensor(
            image=rng.integers(0, 256, (1, 1, 20, 22), np.uint8),
            logits=rng.standard_normal((1, 2, 4, 6)).astype(np.float32),
        ),
    )


def problems_of(change: Callable[[Json], object]) -> list[str]:
    """Change a good card's JSON and return what `parse_card` says is wrong with it."""
    data = card_to_object(a_card())
    change(data)
    with pytest.raises(CardError, match=r"^the model card has \d+ problem\(s\)\n  in model\.onnx\n") as caught:
        parse_card(json.dumps(data), source="model.onnx")
    assert caught.value.fix == "export the model again with this release"
    head, *problems = caught.value.details
    assert head == "in model.onnx"
    assert caught.value.headline == f"the model card has {len(problems)} problem(s)"
    return problems


def put(path: str, value: Any) -> Callable[[Json], None]:
    """Return a change that sets one value, named as the messages name it: ``network.depth``, ``classes[1].name``."""

    def change(data: Json) -> None:
        *steps, last = path.replace("[", ".[").split(".")
        place: Any = data
        for step in steps:
            place = place[int(step[1:-1])] if step.startswith("[") else place[step]
        place[last] = value

    return change


def take_away(path: str) -> Callable[[Json], object]:
    parent, _, last = path.rpartition(".")
    return lambda data: (data[parent] if parent else data).pop(last)


def packed(array: np.ndarray[Any, Any], **changes: Any) -> Json:
    data = base64.b64encode(zlib.compress(array.tobytes())).decode()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "zlib_base64": data} | changes


# -- what goes in comes out


def test_a_card_comes_back() -> None:
    card = a_card()
    again = parse_card(dump_card(card), source="here")
    assert again == card
    assert card.test_tensor is not None
    assert again.test_tensor is not None
    for name in ("image", "logits"):
        np.testing.assert_array_equal(getattr(again.test_tensor, name), getattr(card.test_tensor, name), strict=True)


def test_a_card_before_export_comes_back() -> None:
    card = replace(a_card(), histogram=None, parent_sha256=None, graph_sha256=None, test_tensor=None)
    again = parse_card(dump_card(card), source="here")
    assert again == card
    assert again.test_tensor is None


def test_percentiles_come_back() -> None:
    normalisation = replace(a_card().normalisation, percentiles=(1.0, 99.8))
    again = parse_card(dump_card(replace(a_card(), normalisation=normalisation)), source="here")
    assert again.normalisation == normalisation
    assert again.normalisation.percentiles == (1.0, 99.8)


def test_a_card_without_percentiles_says_nothing_of_them() -> None:
    """Cards of before the key was known have not changed by a letter."""
    assert "percentiles" not in card_to_object(a_card())["normalisation"]
    assert parse_card(dump_card(a_card()), source="here").normalisation.percentiles is None


def test_equal_cards_give_equal_ascii_text() -> None:
    text = dump_card(replace(a_card(), name="Zellmembran µm"))
    assert text == dump_card(replace(a_card(), name="Zellmembran µm"))
    assert text.isascii()
    assert list(json.loads(text)) == sorted(json.loads(text))
    assert parse_card(text, source="here").name == "Zellmembran µm"


def test_the_geometry_is_written_for_those_who_read_without_us() -> None:
    card = replace(a_card(), network=Network(depth=4, base_width=64, in_channels=1, classes=2))
    assert card_to_object(card)["geometry"] == {"divisor": 16, "context": 92, "crop_margins": [4, 16, 40, 88]}
    assert card.geometry.context == 92
    assert (METADATA_KEY, CARD_VERSION) == ("unet_deploy", 1)


def test_an_export_adds_what_only_it_knows() -> None:
    card = replace(a_card(), graph_sha256=None, parent_sha256=None, test_tensor=None)
    tensor = a_card().test_tensor
    assert tensor is not None
    exported = card.with_export(graph_sha256="0" * 64, test_tensor=tensor, precision="fp16", parent_sha256="1" * 64)
    assert (exported.graph_sha256, exported.parent_sha256, exported.precision) == ("0" * 64, "1" * 64, "fp16")
    assert exported.test_tensor is tensor
    assert replace(exported, graph_sha256=None, parent_sha256=None, test_tensor=None, precision="fp32") == card


def test_a_tensor_of_another_byte_order_comes_back() -> None:
    card = replace(a_card(), input=replace(a_card().input, dtype="uint16"))
    assert card.test_tensor is not None
    image = card.test_tensor.image.astype(">u2")
    card = replace(card, test_tensor=replace(card.test_tensor, image=image))
    again = parse_card(dump_card(card), source="here").test_tensor
    assert again is not None
    np.testing.assert_array_equal(again.image, image)
    assert again.image.dtype == np.uint16


# -- what is no card


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "Expecting value"),
        ("{", "Expecting property name"),
        ('{"card_version": NaN}', "NaN is not a number a card may hold"),
        ('{"card_version": 1, "x": -Infinity}', "-Infinity is not a number a card may hold"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_no_json(text: str, why: str) -> None:
    with pytest.raises(CardError, match=r"^the model card is not valid JSON\n  in model\.onnx\n") as caught:
        parse_card(text, source="model.onnx")
    assert why in str(caught.value)
    assert caught.value.fix == "export the model again"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[]", "None"),
        ("{}", "None"),
        ('{"card_version": 2}', "2"),
        ('{"card_version": "1"}', "'1'"),
        ('{"card_version": true}', "True"),
    ],
)
def test_an_unknown_version(text: str, shown: str) -> None:
    with pytest.raises(CardError, match=rf"^model card version {shown} came, this release reads version 1\n") as caught:
        parse_card(text, source="model.onnx")
    assert "in model.onnx" in caught.value.details
    assert "use the unet-deploy release that exported the model" in caught.value.fix


# -- what a card may not say, each with the words it is refused in


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (put("colour", 1), "colour: unknown key"),
        (put("network.dropout", 0.5), "network.dropout: unknown key"),
        (put("geometry.halo", 92), "geometry.halo: unknown key"),
        (put("input.order", "C"), "input.order: unknown key"),
        (put("normalisation.gain", 1), "normalisation.gain: unknown key"),
        (put("classes[1].weight", 2), "classes[1].weight: unknown key"),
        (put("training.lr", 2), "training.lr: unknown key"),
        (put("histogram.bins", 2), "histogram.bins: unknown key"),
        (put("test_tensor.labels", 2), "test_tensor.labels: unknown key"),
        (put("test_tensor.image.order", "C"), "test_tensor.image.order: unknown key"),
        (take_away("name"), "name: missing"),
        (take_away("network.depth"), "network.depth: missing"),
        (take_away("input.value_range"), "input.value_range: missing"),
        (take_away("training.licence"), "training.licence: missing"),
        (take_away("graph_sha256"), "graph_sha256: missing"),
        (put("name", 3), "name: text was expected, 3 came"),
        (put("description", None), "description: text was expected, null came"),
        (
            put("network.architecture", "resnet"),
            'network.architecture: one of unet-2015, adopted was expected, "resnet" came',
        ),
        (put("network.depth", 9), "network.depth: an integer in 1..8 was expected, 9 came"),
        (put("network.depth", 10**30), f"network.depth: an integer in 1..8 was expected, {10**30} came"),
        (put("network.depth", True), "network.depth: an integer in 1..8 was expected, true came"),
        (put("network.depth", 4.0), "network.depth: an integer in 1..8 was expected, 4.0 came"),
        (put("network.base_width", 0), "network.base_width: an integer in 1..1024 was expected, 0 came"),
        (put("geometry.divisor", 16), "geometry.divisor: 2 (depth 1) was expected, 16 came"),
        (put("geometry.context", 92), "geometry.context: 8 (depth 1) was expected, 92 came"),
        (put("geometry.crop_margins", []), "geometry.crop_margins: [4] (depth 1) was expected, [] came"),
        (put("input.axes", "yxc"), 'input.axes: one of cyx was expected, "yxc" came'),
        (put("input.value_range", [0]), "input.value_range: 2 of numbers was expected, [0] came"),
        (put("input.value_range", [255, 0]), "input.value_range: low must be below high, [255, 0] came"),
        (put("input.channels", ["a", "b"]), 'input.channels: a list of 1 names was expected, ["a", "b"] came'),
        (put("input.pixel_size_nm", [4, 0]), "input.pixel_size_nm: 2 of positive numbers was expected, [4, 0] came"),
        (put("normalisation.kind", "tile"), 'normalisation.kind: one of fixed was expected, "tile" came'),
        (put("normalisation.mean", ["a"]), 'normalisation.mean: 1 of numbers was expected, ["a"] came'),
        (put("normalisation.mean", [1, 2]), "normalisation.mean: 1 of numbers was expected, [1, 2] came"),
        (put("normalisation.std", [0]), "normalisation.std: 1 of positive numbers was expected, [0] came"),
        (put("normalisation.source", []), "normalisation.source: text was expected, [] came"),
        *(
            (
                put("normalisation.percentiles", came),
                "normalisation.percentiles: two numbers, 0 <= low < high <= 100, was expected, "
                f"{json.dumps(came)} came",
            )
            for came in (None, 1, [], [1], ["1", 2], [1, 2, 3], [-1, 99], [1, 101], [50, 50], [99, 1], [False, 1])
        ),
        (put("classes", []), "classes: a list of 2 classes was expected, [] came"),
        (put("classes[0].colour", "red"), 'classes[0].colour: #rrggbb was expected, "red" came'),
        (put("training.images", -1), "training.images: an integer in 0..1000000000 was expected, -1 came"),
        (put("training.validation", "all"), 'training.validation: a list of names was expected, "all" came'),
        (put("training.seconds", "1"), 'training.seconds: a number was expected, "1" came'),
        (put("training.versions", {"a": 1}), 'training.versions: names to versions was expected, {"a": 1} came'),
        (put("training.scores", {"a": "b"}), 'training.scores: names to numbers was expected, {"a": "b"} came'),
        (put("training.recipe", []), "training.recipe: an object was expected, [] came"),
        (put("histogram", 1), "histogram: an object or null was expected, 1 came"),
        (put("histogram.value_range", [9, 9]), "histogram.value_range: low must be below high, [9, 9] came"),
        (put("histogram.counts", [1, -1]), "histogram.counts: a list of counts was expected, [1, -1] came"),
        (put("precision", "fp64"), 'precision: one of fp32, fp16, int8 was expected, "fp64" came'),
        (put("graph_sha256", "xyz"), 'graph_sha256: a sha256 or null was expected, "xyz" came'),
        (put("parent_sha256", "AB" * 32), f'parent_sha256: a sha256 or null was expected, "{"AB" * 28}... came'),
        (put("test_tensor", []), "test_tensor: an object or null was expected, [] came"),
        (put("test_tensor.logits.shape", 0), "test_tensor.logits.shape: a list of positive sizes was expected, 0 came"),
        (put("test_tensor.image.zlib_base64", 1), "test_tensor.image.zlib_base64: text was expected, 1 came"),
    ],
    ids=lambda value: value.split(" ")[0].rstrip(":") if isinstance(value, str) else "",
)
def test_a_wrong_value(change: Callable[[Json], object], problem: str) -> None:
    assert problem in problems_of(change)


@pytest.mark.parametrize("number", ["1e999", "-1e999"])
@pytest.mark.parametrize("place", ['"seconds": 412.5', '"learning_rate": 0.001'])
def test_a_number_beyond_any_float(place: str, number: str) -> None:
    # JSON has no infinity, but Python reads one out of a large exponent, also where the recipe may hold anything.
    text = dump_card(a_card()).replace(place, f"{place.split(':', maxsplit=1)[0]}: {number}")
    with pytest.raises(CardError, match=rf"^the model card is not valid JSON\n(.*\n)*  {number} is not a number"):
        parse_card(text, source="model.onnx")


@pytest.mark.parametrize("change", [put("training.seconds", 10**400), put("normalisation.mean", [10**400])])
def test_an_integer_beyond_any_float(change: Callable[[Json], object]) -> None:
    (problem,) = problems_of(change)
    assert "number" in problem
    assert f"1{'0' * 20}" in problem


def test_a_key_that_comes_twice() -> None:
    text = dump_card(a_card()).replace('"precision": ', '"precision": "fp16", "precision": ')
    with pytest.raises(CardError, match=r"^the model card is not valid JSON\n(.*\n)*  the key 'precision' comes twice"):
        parse_card(text, source="model.onnx")


def places(value: Any) -> list[tuple[Any, Any]]:
    """Return every (container, key) of a JSON value, however deep."""
    keys = list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


@pytest.mark.parametrize(
    "value",
    [10**400, -(10**400), 2**64, -1, 0, 0.5, True, None, "", "#", "\ud800", [], [[]], {}, {"": None}],
    ids=lambda value: repr(value)[:12],
)
def test_no_value_brings_another_exception(value: Any) -> None:
    # A card comes from a file of unknown origin.
    count = len(places(card_to_object(a_card())))
    assert count > 70
    for index in range(count):
        tree = card_to_object(a_card())
        container, key = places(tree)[index]
        container[key] = value
        try:
            card = parse_card(json.dumps(tree), source="here")
        except CardError as error:
            assert "in here" in error.details  # noqa: PT017 - either ending is right
        else:
            assert parse_card(dump_card(card), source="there") == card


def test_an_object_that_is_none() -> None:
    problems = problems_of(put("network", []))
    assert problems[0] == "network: an object was expected, [] came"
    problems = problems_of(lambda data: data["classes"].__setitem__(0, 7))
    assert problems[0] == "classes[0].: an object was expected, 7 came"


def test_all_problems_are_said_at_once() -> None:
    def spoil(data: Json) -> None:
        for change in (
            put("name", 1),
            put("network.base_width", -1),
            put("geometry.context", 92),
            put("classes[1].colour", "blue"),
            put("precision", "fp8"),
            put("surprise", 0),
        ):
            change(data)

    assert problems_of(spoil) == [
        "name: text was expected, 1 came",
        "network.base_width: an integer in 1..1024 was expected, -1 came",
        "geometry.context: 8 (depth 1) was expected, 92 came",
        'classes[1].colour: #rrggbb was expected, "blue" came',
        'precision: one of fp32, fp16, int8 was expected, "fp8" came',
        "surprise: unknown key",
    ]


# -- test tensors: nothing is inflated beyond what was declared, nothing declared beyond what is sane


def test_a_tensor_too_big_is_refused_by_its_shape() -> None:
    (problem,) = problems_of(put("test_tensor.image.shape", [1, 1, 2**20, 2**20]))
    assert problem == f"test_tensor.image.shape: at most {MAX_TENSOR_BYTES} bytes were expected, {2**40} came"


def test_a_bomb_is_not_inflated() -> None:
    bomb = base64.b64encode(zlib.compress(bytes(200 * 2**20), 9)).decode()
    tracemalloc.start()
    try:
        (problem,) = problems_of(put("test_tensor.image.zlib_base64", bomb))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert problem == "test_tensor.image.zlib_base64: 440 bytes were expected, 441 came"
    assert peak < 8 * 2**20


def test_a_tensor_of_too_few_bytes() -> None:
    (problem,) = problems_of(put("test_tensor.image.shape", [1, 1, 20, 24]))
    assert problem == "test_tensor.image.zlib_base64: 480 bytes were expected, 440 came"


@pytest.mark.parametrize("text", ["!!!", "µ", base64.b64encode(b"no zlib").decode()])
def test_bytes_that_cannot_be_decoded(text: str) -> None:
    (problem,) = problems_of(put("test_tensor.logits.zlib_base64", text))
    assert problem.startswith("test_tensor.logits.zlib_base64: cannot be decoded: ")


def test_a_tensor_that_no_pooling_halves() -> None:
    def change(data: Json) -> None:
        image, logits = np.zeros((1, 1, 20, 21), np.uint8), np.zeros((1, 2, 4, 5), np.float32)
        data["test_tensor"] = {"image": packed(image), "logits": packed(logits)}

    (problem,) = problems_of(change)
    assert problem == "test_tensor.image: sides that a network of depth 1 takes were expected, 20 x 21 came"


def test_a_size_beyond_any_memory_is_not_multiplied() -> None:
    # The product of these would have too many digits to be printed.
    problems = problems_of(put("test_tensor.image.shape", [10**300] * 20))
    assert problems[0].startswith("test_tensor.image.shape: a list of positive sizes was expected, [1000")


@pytest.mark.parametrize(
    ("key", "array", "problem"),
    [
        (
            "image",
            np.zeros((1, 2, 20, 22), np.uint8),
            "test_tensor.image: (n, 1, y, x) of uint8 was expected, (1, 2, 20, 22) of uint8 came",
        ),
        (
            "image",
            np.zeros((20, 22), np.uint8),
            "test_tensor.image: (n, 1, y, x) of uint8 was expected, (20, 22) of uint8 came",
        ),
        (
            "image",
            np.zeros((1, 1, 20, 22), np.float32),
            "test_tensor.image: (n, 1, y, x) of uint8 was expected, (1, 1, 20, 22) of float32 came",
        ),
        (
            "logits",
            np.zeros((1, 2, 20, 22), np.float32),
            "test_tensor.logits: (1, 2, 4, 6) of float32 was expected, (1, 2, 20, 22) of float32 came",
        ),
        (
            "logits",
            np.zeros((1, 2, 4, 6), np.int16),
            "test_tensor.logits: (1, 2, 4, 6) of float32 was expected, (1, 2, 4, 6) of int16 came",
        ),
        (
            "logits",
            np.zeros((1, 3, 4, 6), np.float32),
            "test_tensor.logits: (1, 2, 4, 6) of float32 was expected, (1, 3, 4, 6) of float32 came",
        ),
    ],
)
def test_a_tensor_of_another_shape(key: str, array: np.ndarray[Any, Any], problem: str) -> None:
    assert problems_of(put(f"test_tensor.{key}", packed(array))) == [problem]


def test_a_tensor_of_an_unknown_dtype() -> None:
    (problem,) = problems_of(put("test_tensor.logits.dtype", "object"))
    assert problem == 'test_tensor.logits.dtype: one of uint8, uint16, int16, float32 was expected, "object" came'
