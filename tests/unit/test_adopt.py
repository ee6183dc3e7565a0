"""Adopting a network: what comes out computes what came in, tile by tile, and what cannot is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.foreign_graphs import Sketch, logits_of, monai_like, save, smp_like
from unet_deploy.card import AdoptedNetwork
from unet_deploy.errors import (
    AdoptionError,
    ConfigurationError,
    OutputExistsError,
    OutputPathError,
    ParityError,
    UnknownNameError,
)

pytest.importorskip("onnxruntime", reason="adopting needs onnxruntime: extra 'cpu'")

from unet_deploy.exporters import AdoptionSettings, adopt_model
from unet_deploy.exporters.adopt import AdoptionReport
from unet_deploy.runtime.artifact import load_artifact
from unet_deploy.runtime.cost import flops_per_pixel, tile_flops, tile_memory_bytes, weights_bytes
from unet_deploy.runtime.engines import open_engine
from unet_deploy.runtime.normalise import normaliser_of_image

SETTINGS = AdoptionSettings(mean=(100.0,), std=(50.0,))
GREY: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
Makes = Callable[[], onnx.ModelProto]


def adopt(folder: Path, model: onnx.ModelProto, settings: AdoptionSettings = SETTINGS, **more: Any) -> AdoptionReport:
    return adopt_model(save(model, folder / "other.onnx"), folder / "ours.onnx", settings, threads=1, **more)


STYLES: dict[str, tuple[Makes, int, int, int]] = {
    # model, divisor, context before and after a cell, worked out by hand
    "smp": (smp_like, 4, 12, 9),
    "monai": (monai_like, 4, 7, 8),
}


@pytest.mark.parametrize("style", STYLES)
def test_it_computes_what_the_foreign_graph_does(style: str, tmp_path: Path) -> None:
    make, divisor, before, after = STYLES[style]
    model = make()
    report = adopt(tmp_path, model)
    reach, field = report.reach, report.proof.field
    cut = 4 * -(-max(before, after) // 4)
    assert (reach.divisor, reach.before, reach.after, reach.context) == (divisor, before, after, cut)
    assert (field.y, field.x) == ((before, after), (before, after))  # the graph says exactly what impulses find
    assert report.proof.has_passed
    assert report.test_difference <= 1e-6

    artifact = load_artifact(tmp_path / "ours.onnx")
    assert artifact.card == report.artifact.card
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (1, 60, 72)).astype(np.uint8)
    batch = normaliser_of_image(artifact.card, pixels)(pixels)[None]
    engine = open_engine(artifact, device="cpu", engine="onnxruntime-cpu", threads=1)
    try:
        came = engine.infer(batch)
    finally:
        engine.close()
    expected = logits_of(model, batch)[:, :, cut:-cut, cut:-cut]
    if expected.shape[1] == 1:
        expected = np.concatenate([0 * expected, expected], axis=1)
    assert np.abs(came - expected).max() <= 1e-5
    assert came.std() > 0.1


def test_the_card_says_what_is_known_and_no_more(tmp_path: Path) -> None:
    settings = replace(
        SETTINGS,
        name="cells",
        classes=("background", "cell"),
        channels=("dapi",),
        pixel_size_nm=(4.0, 5.0),
        dtype="uint16",
        value_range=(0.0, 4095.0),
        licence="MIT",
        citation="them",
    )
    report = adopt(tmp_path, smp_like(head="Sigmoid"), settings)
    card = report.artifact.card
    network = card.network
    assert isinstance(network, AdoptedNetwork)
    assert (network.divisor, network.context, network.in_channels, network.classes) == (4, 12, 1, 2)
    assert (card.name, card.input.channels, card.input.dtype) == ("cells", ("dapi",), "uint16")
    assert (card.input.value_range, card.input.pixel_size_nm) == ((0.0, 4095.0), (4.0, 5.0))
    assert [info.name for info in card.classes] == ["background", "cell"]
    assert (card.normalisation.mean, card.normalisation.std) == ((100.0,), (50.0,))
    training = card.training
    assert training.data == "adopted; training unknown"
    assert (training.images, training.steps, training.scores) == (0, 0, {})
    assert (training.licence, training.citation) == ("MIT", "them")
    origin = training.recipe["adopted"]
    assert (origin["file"], origin["producer"], origin["opset"], origin["reach"]) == (
        "other.onnx",
        "sketch",
        18,
        [12, 9],
    )
    assert card.parent_sha256 == origin["sha256"]
    assert card.test_tensor is not None
    assert card.test_tensor.image.dtype == np.uint16
    assert report.notes == (
        "the final Sigmoid '/Sigmoid_t31' is left out: logits come out, probabilities are made of them",
        "its one output is taken as the logit of the second class: the soft-max of (0, logit) is its sigmoid",
    )


def test_what_a_run_costs_is_counted_from_its_layers(tmp_path: Path) -> None:
    s = Sketch()
    x = s.conv("input", 2, 8)
    network = adopt(tmp_path, s.model(s.conv(x, 8, 3, kernel=1), channels=2)).artifact.card.network
    assert isinstance(network, AdoptedNetwork)
    assert network.flops_per_pixel == 2 * (9 * 2 * 8 + 8 * 3)
    assert network.activation_bytes_per_pixel == 1.5 * 4 * (16 + 16)  # 8 and 3 channels, in blocks
    assert network.weights_bytes == 4 * (9 * 2 * 8 + 8 + 8 * 3 + 3)
    assert tile_flops(network, 32, 64) == 336 * 32 * 64
    assert flops_per_pixel(network) == 336
    assert tile_memory_bytes(network, 32, 64, 2) == 192 * 32 * 64 * 2
    assert weights_bytes(network) == network.weights_bytes


def test_a_network_that_sees_one_pixel_needs_no_context(tmp_path: Path) -> None:
    s = Sketch()
    report = adopt(tmp_path, s.model(s.conv("input", 1, 2, kernel=1)))
    assert (report.reach.divisor, report.reach.context) == (1, 0)
    assert load_artifact(report.path).card.geometry.smallest_tile == 1


def test_a_file_for_one_size_whose_nodes_take_any(tmp_path: Path) -> None:
    model = monai_like()
    for axis, size in ((0, 1), (2, 64), (3, 64)):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
        model.graph.output[0].type.tensor_type.shape.dim[axis].dim_value = size
    assert adopt(tmp_path, model).reach == adopt(tmp_path, monai_like(), overwrite=True).reach


def test_percentiles_stand_in_the_card(tmp_path: Path) -> None:
    report = adopt(tmp_path, smp_like(), AdoptionSettings(percentiles=(1.0, 99.8)))
    normalisation = report.artifact.card.normalisation
    assert (normalisation.percentiles, normalisation.mean, normalisation.std) == ((1.0, 99.8), (0.0,), (1.0,))
    assert report.proof.has_passed


def test_one_constant_serves_all_channels(tmp_path: Path) -> None:
    report = adopt(tmp_path, smp_like(channels=3, classes=2))
    assert report.artifact.card.normalisation.mean == (100.0,) * 3
    assert report.artifact.card.input.channels == ("channel-0", "channel-1", "channel-2")


def test_a_name_of_ours_within_the_graph_is_no_trouble(tmp_path: Path) -> None:
    s = Sketch()
    s.add("Relu", [s.conv("input", 1, 4)], "logits")
    x = s.add("Relu", [s.conv("logits", 4, 4)], "image")
    report = adopt(tmp_path, s.model(s.conv(x, 4, 2)))
    names = [name for node in onnx.load(report.path).graph.node for name in node.output]
    assert {"foreign.logits", "foreign.image"} < set(names)
    assert report.test_difference <= 1e-6


def test_nothing_of_its_exporter_is_kept(tmp_path: Path) -> None:
    model = smp_like()
    model.graph.node[0].doc_string = "/home/someone/net.py"
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "stack", "/home/someone/net.py"
    report = adopt(tmp_path, model)
    assert b"/home/someone" not in report.path.read_bytes()


# ---- what stands in the way


def test_an_existing_file_stays(tmp_path: Path) -> None:
    (tmp_path / "ours.onnx").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"ours\.onnx exists\n  nothing was written\n  fix: choose another"):
        adopt(tmp_path, smp_like())
    assert (tmp_path / "ours.onnx").read_text() == "mine"
    adopt(tmp_path, smp_like(), overwrite=True)
    assert load_artifact(tmp_path / "ours.onnx").card.name == "other"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OutputPathError, match=r"^the folder of .+ does not exist"):
        adopt_model(save(smp_like(), tmp_path / "other.onnx"), tmp_path / "no" / "ours.onnx", SETTINGS)


def test_a_refused_network_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(AdoptionError):
        adopt(tmp_path, monai_like(norm="instance"))
    assert [path.name for path in tmp_path.iterdir()] == ["other.onnx"]


@pytest.mark.parametrize(
    "settings",
    [AdoptionSettings(), AdoptionSettings(mean=(1.0,)), AdoptionSettings(std=(1.0,))],
)
def test_normalisation_is_not_guessed(settings: AdoptionSettings, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^how grey values are normalised was not said: --mean and") as caught:
        adopt(tmp_path, smp_like(), settings)
    assert "gives other labels" in str(caught.value)
    assert caught.value.fix == "--mean 0 --std 255, or --percentiles 1,99.8"


def test_settings_that_cannot_be_meant_are_said_together(tmp_path: Path) -> None:
    settings = AdoptionSettings(
        dtype="float32",
        mean=(float("nan"),),
        std=(0.0,),
        percentiles=(99.0, 1.0),
        classes=("a", "a"),
        channels=(" ",),
        pixel_size_nm=(0.0, 4.0),
    )
    with pytest.raises(ConfigurationError, match=r"^7 setting\(s\) cannot be meant") as caught:
        adopt(tmp_path, smp_like(), settings)
    assert caught.value.details == (
        "value range: none came, and float32 has none of its own; e.g. --value-range 0:1",
        "mean: nan came, numbers were expected",
        "std: 0 came, numbers above 0 that float32 holds were expected",
        "percentiles: 99, 1 came, 0 <= low < high <= 100 was expected",
        "pixel size: (0.0, 4.0) came, sizes above 0 were expected",
        "classes: a, a came, names that differ were expected",
        "channels:   came, names that differ were expected",
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"value_range": (255.0, 0.0)}, "value range: 255:0 came, two numbers were expected, low first"),
        ({"std": (1e-320,)}, "std: 9.99989e-321 came, numbers above 0 that float32 holds were expected"),
        ({"mean": (2000.0,)}, "mean: 2000 lies outside of 0..255; is it another --dtype?"),
        ({"std": (), "percentiles": (1.0, 99.0)}, "normalisation: only the mean came, mean and std were expected"),
        ({"mean": (), "percentiles": (1.0, 99.0)}, "normalisation: only the std came, mean and std were expected"),
    ],
)
def test_a_setting_that_cannot_be_meant(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as caught:
        adopt(tmp_path, smp_like(), replace(SETTINGS, **changes))
    assert caught.value.details == (problem,)


def test_a_data_type_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"^unknown data type: 'uint7'\n(.*\n)*  fix: did you mean 'uint8'\?"):
        adopt(tmp_path, smp_like(), replace(SETTINGS, dtype="uint7"))


def test_settings_for_another_number_of_channels(tmp_path: Path) -> None:
    settings = replace(SETTINGS, mean=(1.0, 2.0), channels=("a", "b"))
    with pytest.raises(ConfigurationError, match=r"^the network takes 3 channel\(s\), the settings are for") as caught:
        adopt(tmp_path, smp_like(channels=3), settings)
    assert caught.value.details == (
        "mean: 2 came, one, or one for each of 3 channels, was expected",
        "channels: a, b came, 3 names were expected",
    )


def test_names_for_another_number_of_classes(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"^3 class name\(s\) came, the network has 2 classes") as caught:
        adopt(tmp_path, smp_like(), replace(SETTINGS, classes=("a", "b", "c")))
    assert caught.value.fix == "--classes class-0,class-1"


def test_a_sigmoid_over_several_outputs(tmp_path: Path) -> None:
    with pytest.raises(AdoptionError, match=r"ends in a sigmoid over 2 outputs, a soft-max was expected") as caught:
        adopt(tmp_path, smp_like(classes=2, head="Sigmoid"))
    assert "several things at once" in str(caught.value)


def test_more_channels_than_a_card_can_hold(tmp_path: Path) -> None:
    s = Sketch()
    with pytest.raises(AdoptionError, match=r"has 65 channels and 1 outputs\n  at most 64 and 255 were expected"):
        adopt(tmp_path, s.model(s.conv("input", 65, 1, kernel=1), channels=65))


def test_what_the_proof_finds_stops_it(tmp_path: Path) -> None:
    """Nothing in this graph is forbidden, and for most images it gives numbers; not for a white one."""
    s = Sketch()
    box = s.constant(np.full((2, 1, 3, 3), 2000 / 9))
    x = s.add("Conv", ["input", box, s.constant([-2000 * 254.9] * 2)], pads=[1, 1, 1, 1])
    with pytest.raises(ParityError, match=r"was not adopted: tiled, it does not compute what it computes in") as caught:
        adopt(tmp_path, s.model(s.add("Mul", [s.add("Exp", [x]), s.constant([0.5])])), replace(SETTINGS, **GREY))
    assert "extremes: all white gives logits that are no numbers" in caught.value.details
    assert caught.value.details[-1] == "context 1 px and divisor 1, by its graph"
    assert not (tmp_path / "ours.onnx").exists()
