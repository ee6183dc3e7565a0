"""A bioimage.io package is the artifact with everything its readers need, the same bytes each time, or nothing.

The declared processing is written down again here, in plain numpy, and must give the declared result; the readers' own
library, where it is installed, runs the package too.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from onnx import numpy_helper

yaml = pytest.importorskip("yaml", reason="dask brings PyYAML")
ort = pytest.importorskip("onnxruntime", reason="the test output is computed through onnxruntime: extra 'cpu'")

from tests.foreign_graphs import save, smp_like  # noqa: E402
from tests.tiny import snapshot  # noqa: E402
from unet_deploy.card import ModelCard  # noqa: E402
from unet_deploy.errors import OutputExistsError, OutputPathError, UsageError  # noqa: E402
from unet_deploy.exporters import AdoptionSettings, adopt_model  # noqa: E402
from unet_deploy.exporters._bioimageio_text import (  # noqa: E402
    PAPER,
    list_citations,
    spdx_identifier,
    write_readme,
    write_yaml,
)
from unet_deploy.exporters.bioimageio import (  # noqa: E402
    DESCRIPTION,
    FORMAT_VERSION,
    LICENCE,
    make_test_pair,
    package_files,
    require_packageable,
    write_package,
)
from unet_deploy.runtime.artifact import Artifact, load_artifact  # noqa: E402

Array = npt.NDArray[Any]
CardFactory = Callable[..., ModelCard]


def files_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def description_of(artifact: Artifact, **keywords: Any) -> dict[str, Any]:
    return dict(yaml.safe_load(package_files(artifact, **keywords)[DESCRIPTION]))


def with_training(artifact: Artifact, **changes: Any) -> Artifact:
    return replace(artifact, card=replace(artifact.card, training=replace(artifact.card.training, **changes)))


def along(axis: str, axes: list[str], values: list[float]) -> Array:
    return np.reshape(np.array(values), [-1 if name == axis else 1 for name in axes])


def preprocess(step: dict[str, Any], array: Array, axes: list[str]) -> Array:
    """Do one step as the format's documentation says."""
    kwargs = step["kwargs"]
    if step["id"] == "ensure_dtype":
        return array.astype(kwargs["dtype"])
    if step["id"] == "scale_range":
        over = tuple(axes.index(axis) for axis in kwargs["axes"])
        low, high = (
            np.percentile(array, kwargs[f"{end}_percentile"], axis=over, keepdims=True) for end in ("min", "max")
        )
        return np.asarray((array - low) / (high - low + 1e-6))
    if step["id"] == "fixed_zero_mean_unit_variance":
        mean, std = (along(kwargs["axis"], axes, kwargs[name]) for name in ("mean", "std"))
        return np.asarray((array - mean) / (std + 1e-6))
    assert step["id"] == "scale_linear", step
    gain, offset = (along(kwargs["axis"], axes, kwargs[name]) for name in ("gain", "offset"))
    return np.asarray(array * gain + offset)


def run_package(files: dict[str, bytes]) -> tuple[Array, Array]:
    """Return what the package's test input gives by its own description, and its test output."""
    description = yaml.safe_load(files[DESCRIPTION])
    (given,), (wanted,) = description["inputs"], description["outputs"]
    axes = [axis.get("id", axis["type"]) for axis in given["axes"]]
    array = np.load(io.BytesIO(files[given["test_tensor"]["source"]]), allow_pickle=False)
    for step in given["preprocessing"]:
        array = preprocess(step, array, axes)
    session = ort.InferenceSession(files[description["weights"]["onnx"]["source"]], providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: array})
    assert [step["id"] for step in wanted["postprocessing"]] == ["softmax", "ensure_dtype"]
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    expected = np.load(io.BytesIO(files[wanted["test_tensor"]["source"]]), allow_pickle=False)
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32), expected


# What is written.


def test_a_package_is_the_artifact_and_what_its_readers_need(tmp_path: Path, tiny_artifact: Artifact) -> None:
    path = write_package(tiny_artifact, tmp_path / "tiny.zip")
    files = files_of(path)
    assert [*files] == ["rdf.yaml", "model.onnx", "test_input.npy", "test_output.npy", "README.md"]
    assert files["model.onnx"] == tiny_artifact.data
    description = yaml.safe_load(files["rdf.yaml"])
    assert (description["type"], description["format_version"]) == ("model", FORMAT_VERSION)
    assert description["weights"]["onnx"]["opset_version"] == 18
    assert description["config"]["unet_deploy"]["artifact_sha256"] == tiny_artifact.sha256
    assert load_artifact(_unpacked(files, tmp_path) / "model.onnx").card == tiny_artifact.card
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.zip", "unpacked"]


def _unpacked(files: dict[str, bytes], folder: Path) -> Path:
    target = folder / "unpacked"
    target.mkdir()
    for name, data in files.items():
        (target / name).write_bytes(data)
    return target


def test_every_file_has_its_hash(tiny_artifact: Artifact) -> None:
    files = package_files(with_training(tiny_artifact, licence="ask the facility"))
    text = files[DESCRIPTION].decode()
    named = re.findall(r'source: "([^"]+)"\n\s+sha256: "([0-9a-f]{64})"', text)
    assert {name for name, _ in named} == files.keys() - {DESCRIPTION}
    assert all(hashlib.sha256(files[name]).hexdigest() == sha256 for name, sha256 in named)


def test_the_same_artifact_gives_the_same_bytes(tmp_path: Path, tiny_artifact: Artifact) -> None:
    first, second = (write_package(tiny_artifact, tmp_path / f"{n}.zip").read_bytes() for n in "ab")
    assert first == second
    with zipfile.ZipFile(io.BytesIO(first)) as archive:
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {entry.create_system for entry in archive.infolist()} == {3}
        assert archive.testzip() is None


def test_sizes_are_those_of_valid_convolutions(tiny_artifact: Artifact) -> None:
    description, geometry = description_of(tiny_artifact), tiny_artifact.card.geometry
    (given,), (wanted,) = description["inputs"], description["outputs"]
    assert [axis["type"] for axis in given["axes"]] == ["batch", "channel", "space", "space"]
    for axis, out in zip(given["axes"][2:], wanted["axes"][2:], strict=True):
        size, reference = axis["size"], out["size"]
        assert all(geometry.is_legal(size["min"] + n * size["step"]) for n in range(4))
        assert not geometry.is_legal(size["min"] + size["step"] - 1)
        assert (reference["tensor_id"], reference["axis_id"]) == (given["id"], axis["id"])
        assert size["min"] + reference["offset"] == geometry.output_side(size["min"])
        assert "halo" not in out
    image, probabilities = make_test_pair(tiny_artifact)
    assert probabilities.shape[2:] == tuple(geometry.output_side(n) for n in image.shape[2:])


def test_classes_channels_and_pixel_size_are_carried(tiny_artifact: Artifact) -> None:
    card = tiny_artifact.card
    sized = replace(card, input=replace(card.input, pixel_size_nm=(4.0, 5e-05)))
    description = description_of(replace(tiny_artifact, card=sized))
    (given,), (wanted,) = description["inputs"], description["outputs"]
    assert given["axes"][1]["channel_names"] == ["grey"]
    assert wanted["axes"][1]["channel_names"] == ["inside", "membrane"]
    for tensor in (given, wanted):
        assert [axis["scale"] for axis in tensor["axes"][2:]] == [4.0, 5e-05]
        assert {axis["unit"] for axis in tensor["axes"][2:]} == {"nanometer"}
    assert given["data"] == {"type": "uint8", "range": [0.0, 255.0]}
    assert "unit" not in description_of(tiny_artifact)["inputs"][0]["axes"][2]


# It computes what the artifact computes.


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_declared_processing_gives_the_declared_result(tiny_products: dict[str, Path], precision: str) -> None:
    came, expected = run_package(package_files(load_artifact(tiny_products[precision])))
    assert expected.dtype == np.float32
    assert 0.0 < expected.min() < expected.max() < 1.0
    np.testing.assert_allclose(came, expected, atol=1e-5 if precision == "fp32" else 1e-3)


def test_the_test_output_is_the_cards_own(tiny_artifact: Artifact) -> None:
    tensor = tiny_artifact.card.test_tensor
    assert tensor is not None
    image, probabilities = make_test_pair(tiny_artifact)
    assert np.array_equal(image, tensor.image)
    powers = np.exp(tensor.logits)
    np.testing.assert_allclose(probabilities, powers / powers.sum(axis=1, keepdims=True), atol=1e-5)


@pytest.mark.parametrize(("dtype", "value_range"), [("uint8", (0, 255)), ("uint16", (0, 65535)), ("float32", (0, 1))])
def test_percentiles_mean_the_same_to_both(
    make_card: CardFactory, tmp_path: Path, dtype: str, value_range: tuple[float, float]
) -> None:
    pytest.importorskip("torch", reason="exporting needs the extra 'train'")
    from tests.unit.test_export import write_checkpoint
    from unet_deploy.exporters import export_checkpoint

    card = make_card(
        base_width=2, in_channels=2, dtype=dtype, value_range=value_range, mean=0.2, std=0.25, percentiles=(1.0, 99.8)
    )
    report = export_checkpoint(write_checkpoint(tmp_path / "p.pt", card), tmp_path / "p.onnx")
    files = package_files(load_artifact(report.path))
    given = yaml.safe_load(files[DESCRIPTION])["inputs"][0]
    assert [step["id"] for step in given["preprocessing"]][1:3] == ["scale_range", "fixed_zero_mean_unit_variance"]
    assert given["preprocessing"][1]["kwargs"] == {"axes": ["y", "x"], "min_percentile": 1.0, "max_percentile": 99.8}
    assert given["data"]["type"] == "float32"  # or an image of another type would be cast to the card's
    came, expected = run_package(files)
    np.testing.assert_allclose(came, expected, atol=1e-4)


def test_a_tiny_deviation_is_not_drowned(make_card: CardFactory, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="exporting needs the extra 'train'")
    from tests.unit.test_export import write_checkpoint
    from unet_deploy.exporters import export_checkpoint

    card = make_card(base_width=2, dtype="float32", value_range=(0.0, 1e-4), mean=5e-5, std=1e-5)
    report = export_checkpoint(write_checkpoint(tmp_path / "s.pt", card), tmp_path / "s.onnx")
    files = package_files(load_artifact(report.path))
    steps = yaml.safe_load(files[DESCRIPTION])["inputs"][0]["preprocessing"]
    assert steps[1] == {
        "id": "scale_linear",
        "kwargs": {"axis": "channel", "gain": [pytest.approx(1e5)], "offset": [pytest.approx(-5.0)]},
    }
    came, expected = run_package(files)
    np.testing.assert_allclose(came, expected, atol=1e-4)


def test_the_tolerance_is_one_that_the_format_allows(tiny_products: dict[str, Path]) -> None:
    for precision, wanted in (("fp32", 1e-3), ("fp16", 5e-3)):
        files = package_files(load_artifact(tiny_products[precision]))
        (tolerance,) = yaml.safe_load(files[DESCRIPTION])["config"]["bioimageio"]["reproducibility_tolerance"]
        largest = np.load(io.BytesIO(files["test_output.npy"])).max()
        assert tolerance["absolute_tolerance"] == min(wanted, 0.0099 * float(largest)) <= 0.01 * largest
        assert tolerance["relative_tolerance"] <= 0.01
        assert tolerance["mismatched_elements_per_million"] <= 5000


def test_bioimageio_core_runs_it(tmp_path: Path, tiny_products: dict[str, Path]) -> None:
    core = pytest.importorskip("bioimageio.core", reason="the readers' own library is not installed")
    for precision in ("fp32", "fp16"):
        path = write_package(load_artifact(tiny_products[precision]), tmp_path / f"{precision}.zip")
        summary = core.test_model(path)
        assert summary.status == "passed", summary.display()


# What cannot be a package.


def test_int8_is_refused(tiny_products: dict[str, Path], tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=r"^int8 came, a bioimage.io package takes fp32 or fp16\n") as caught:
        write_package(load_artifact(tiny_products["int8"]), tmp_path / "x.zip")
    assert caught.value.fix == "--precision fp32"
    assert "int8 rounds differently" in caught.value.details[0]
    assert snapshot(tmp_path) == before


def test_percentiles_that_the_format_cannot_say_are_refused(make_card: CardFactory) -> None:
    with pytest.raises(UsageError, match=r"^percentiles 0.1 and 1 cannot be said in a bioimage.io package\n") as caught:
        require_packageable(make_card(percentiles=(0.1, 1.0)))
    assert "an upper percentile above 1" in caught.value.details[0]
    require_packageable(make_card(percentiles=(0.0, 1.5)))


def test_what_exists_stays(tmp_path: Path, tiny_artifact: Artifact) -> None:
    path = tmp_path / "model.zip"
    path.write_bytes(b"precious")
    with pytest.raises(OutputExistsError, match=r"model\.zip exists\n  nothing was written\n") as caught:
        write_package(tiny_artifact, path)
    assert "--overwrite" in caught.value.fix
    assert path.read_bytes() == b"precious"
    assert write_package(tiny_artifact, path, overwrite=True) == path
    assert zipfile.is_zipfile(path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.zip"]


def test_places_that_cannot_be_written_to(tmp_path: Path, tiny_artifact: Artifact) -> None:
    with pytest.raises(OutputPathError, match=r"^the folder of .* does not exist\n  the package was"):
        write_package(tiny_artifact, tmp_path / "nowhere" / "model.zip")
    with pytest.raises(OutputPathError, match=r" is a folder\n  a file was to be written there\n"):
        write_package(tiny_artifact, tmp_path, overwrite=True)
    assert not [*tmp_path.iterdir()]


# Texts.


@pytest.mark.parametrize(
    ("licence", "identifier"),
    [
        ("CC0 1.0", "CC0-1.0"),
        ("CC0", "CC0-1.0"),
        ("CC BY 4.0", "CC-BY-4.0"),
        ("cc-by-nc-sa-4.0", "CC-BY-NC-SA-4.0"),
        ("CC BY", None),
        ("MIT", "MIT"),
        ("BSD 3-Clause", "BSD-3-Clause"),
        ("Apache License 2.0", "Apache-2.0"),
        ("MIT, but not on Sundays", None),
        ("", None),
    ],
)
def test_licences_are_named_where_they_have_a_name(
    tiny_artifact: Artifact, licence: str, identifier: str | None
) -> None:
    assert spdx_identifier(licence) == identifier
    files = package_files(with_training(tiny_artifact, licence=licence))
    description = yaml.safe_load(files[DESCRIPTION])
    if identifier is not None or not licence:
        assert description.get("license") == identifier
        assert LICENCE not in files
    else:
        assert description["license"]["source"] == LICENCE
        assert files[LICENCE].decode() == f"{licence}\n"


def test_citations_that_can_be_looked_up_are_listed(make_card: CardFactory) -> None:
    def cited(text: str) -> list[dict[str, Any]]:
        card = make_card()
        return list_citations(replace(card, training=replace(card.training, citation=text)))

    assert cited("Someone 1999, a journal") == [PAPER]
    assert cited("A 2020, doi:10.1038/s41592-019-0612-7; B, https://example.org/data.") == [
        {"text": "A 2020, doi:10.1038/s41592-019-0612-7", "doi": "10.1038/s41592-019-0612-7"},
        {"text": "B, https://example.org/data.", "url": "https://example.org/data"},
        PAPER,
    ]
    (entry,) = cited("Ronneberger, Fischer and Brox 2015, MICCAI, arXiv:1505.04597")
    assert entry["doi"] == "10.48550/arXiv.1505.04597"


def test_an_adopted_network_is_packed_as_what_it_is(tmp_path: Path) -> None:
    model = smp_like()
    for head in model.graph.initializer[-2:]:  # random weights are surer of themselves than a trained network
        head.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(head) * np.float32(3e-3), head.name))
    other = save(model, tmp_path / "other.onnx")
    report = adopt_model(other, tmp_path / "ours.onnx", AdoptionSettings(mean=(100.0,), std=(50.0,)), threads=1)
    files = package_files(report.artifact)
    came, expected = run_package(files)
    np.testing.assert_allclose(came, expected, atol=1e-5)
    assert ((expected > 0.01) & (expected < 0.99)).mean() > 0.1
    description = yaml.safe_load(files[DESCRIPTION])
    geometry = report.artifact.card.geometry
    assert description["inputs"][0]["axes"][2]["size"] == {"min": geometry.smallest_tile, "step": geometry.divisor}
    assert description["outputs"][0]["axes"][2]["size"]["offset"] == -2 * geometry.context
    assert not {"unet", "unet2d"} & set(description["tags"])
    assert "cite" not in description  # not the paper's, and nobody said whose
    assert "license" not in description
    assert LICENCE not in files
    text = files["README.md"].decode()
    assert f"adopted network, divisor 4, context {geometry.context} px" in text
    assert "## Licence\n\nnot stated" in text
    assert "10.1007" not in text
    assert "0 steps" not in text


def test_names_and_descriptions_fit_the_format(tiny_artifact: Artifact) -> None:
    def named(name: str) -> str:
        return str(description_of(replace(tiny_artifact, card=replace(tiny_artifact.card, name=name)))["name"])

    assert named("tiny") == "tiny network"
    assert named("Zellkerne: größer/kleiner") == "Zellkerne- gr-er-kleiner"
    assert len(named("n" * 200)) == 64
    long = replace(tiny_artifact, card=replace(tiny_artifact.card, description="d" * 2000))
    text = description_of(long, authors=["A. Author", "B/C"])
    assert len(text["description"]) == 512
    assert text["authors"] == [{"name": "A. Author"}, {"name": "B-C"}]
    assert "authors" not in description_of(tiny_artifact)  # nobody is made up


def test_the_readme_says_how_it_was_validated(tiny_artifact: Artifact) -> None:
    text = write_readme(tiny_artifact, authors=["A. Author"])
    assert "\n## Validation\n" in text
    assert "(7)" in text
    assert "- dice: 0.5" in text
    assert "Authors: A. Author" in text
    without = with_training(tiny_artifact, scores={}, licence="", citation="")
    assert "The card has no scores." in write_readme(without, authors=())
    assert "## Licence\n\nnot stated" in write_readme(without, authors=())


def test_yaml_comes_back_as_it_was() -> None:
    value = {
        "texts": ["plain", 'quotes " and \\', "new\nline", "yes", "1e3", "größe ✓ 😀", "\x7f\u2028\x00", "", "a: b #c"],
        "numbers": [1, -2, 0.5, 1e-05, -3e22, 1e16, True, None],
        "nested": [{"a": [{"b": 1, "c": ["x"]}, []], "d": {}}, {"e": {"f": 2.0}}, [[1, 2], ["y"]]],
    }
    assert yaml.safe_load(write_yaml(value)) == value
