"""A bioimage.io package: what it says becomes settings, or is refused by its name."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.foreign_graphs import monai_like
from unet_deploy.errors import (
    AdoptionError,
    ConfigurationError,
    MissingDependencyError,
    ModelNotFoundError,
    UnsafeModelError,
)

pytest.importorskip("onnxruntime", reason="adopting needs onnxruntime: extra 'cpu'")

from unet_deploy.exporters import AdoptionSettings, adopt_model
from unet_deploy.exporters.foreign_files import FREE_BYTES
from unet_deploy.exporters.foreign_package import fill_in, is_package, open_package

Json = dict[str, Any]
WEIGHTS = monai_like().SerializeToString()
FIXED = {"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 126.5, "std": 44.0}}


def description() -> Json:
    """Return a model description in format 0.5."""

    def space(name: str) -> Json:
        return {"type": "space", "id": name, "size": {"min": 64, "step": 8}, "scale": 0.004, "unit": "micrometer"}

    def axes(*channels: str) -> list[Json]:
        return [{"type": "batch"}, {"type": "channel", "channel_names": [*channels]}, space("y"), space("x")]

    return {
        "format_version": "0.5.3",
        "type": "model",
        "name": "Cells",
        "license": "MIT",
        "cite": [{"text": "Them 2020", "doi": "10.1/1"}, {"text": "Those 2021"}],
        "inputs": [{"id": "raw", "axes": axes("dapi"), "data": {"type": "float32"}, "preprocessing": [FIXED]}],
        "outputs": [{"id": "out", "axes": axes("background", "cell", "border"), "data": {"type": "float32"}}],
        "weights": {"onnx": {"source": "weights.onnx", "sha256": hashlib.sha256(WEIGHTS).hexdigest()}},
    }


OLD = """
# as bioimage.io had them until 2023
format_version: 0.4.10
type: model
name: Cells
license: CC-BY-4.0
cite:
  - text: Them 2020
    doi: 10.1/1
inputs:
  - name: raw
    axes: bcyx
    data_type: uint16
    data_range: [0, 4095]
    shape: {min: [1, 1, 64, 64], step: [0, 0, 8, 8]}
    preprocessing:
      - name: scale_linear
        kwargs: {gain: 0.5, offset: -1.0, axes: yx}
outputs:
  - name: out
    axes: bcyx
    postprocessing:
      - name: softmax
weights:
  onnx: {source: ./weights.onnx}
"""


def write(folder: Path, described: Json | str, *, weights: bytes = WEIGHTS) -> Path:
    """Write a package as a folder; JSON is YAML too."""
    folder.mkdir(exist_ok=True)
    text = described if isinstance(described, str) else json.dumps(described)
    (folder / "rdf.yaml").write_text(text)
    (folder / "weights.onnx").write_bytes(weights)
    return folder


def pack(folder: Path, method: int = zipfile.ZIP_STORED) -> Path:
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


def opened(folder: Path, change: Callable[[Json], object] = lambda _: None) -> Any:
    data = description()
    change(data)
    return open_package(write(folder / "package", data))


def with_steps(*steps: Json) -> Callable[[Json], None]:
    def change(data: Json) -> None:
        data["inputs"][0]["preprocessing"] = [*steps]

    return change


def with_channels(*names: str) -> Callable[[Json], None]:
    def change(data: Json) -> None:
        data["inputs"][0]["axes"][1]["channel_names"] = [*names]

    return change


# ---- what it says


def test_what_it_says_is_filled_in(tmp_path: Path) -> None:
    package = opened(tmp_path)
    assert package.settings == AdoptionSettings(
        dtype=None,
        mean=(126.5,),
        std=(44.0,),
        name="Cells",
        classes=("background", "cell", "border"),
        channels=("dapi",),
        pixel_size_nm=(4.0, 4.0),
        licence="MIT",
        citation="Them 2020; Those 2021",
        normalisation_source="the steps that rdf.yaml describes",
    )
    assert package.data == WEIGHTS
    assert not package.is_sigmoid
    assert package.notes == (
        "the package does not say which grey values its images have: uint8, unless --dtype says another",
    )


def test_the_older_format(tmp_path: Path) -> None:
    package = open_package(write(tmp_path / "package", OLD))
    assert (package.settings.dtype, package.settings.value_range) == ("uint16", (0.0, 4095.0))
    assert (package.settings.mean, package.settings.std) == ((2.0,), (2.0,))  # (v - 2) / 2 is v / 2 - 1
    assert (package.settings.classes, package.settings.channels) == ((), ())
    assert package.notes == ()


@pytest.mark.parametrize("form", ["folder", "description", "zip"])
def test_it_is_adopted(form: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "package", description())
    path = {"folder": folder, "description": folder / "rdf.yaml", "zip": tmp_path / "package.zip"}[form]
    pack(folder)
    said: list[str] = []
    report = adopt_model(path, tmp_path / "ours.onnx", AdoptionSettings(), threads=1, progress=said.append)
    assert said[:2] == ["reading the package", "looking at the graph"]
    card = report.artifact.card
    assert (card.name, card.training.licence, card.training.citation) == ("Cells", "MIT", "Them 2020; Those 2021")
    assert (card.normalisation.mean, card.normalisation.std) == ((126.5,), (44.0,))
    assert [info.name for info in card.classes] == ["background", "cell", "border"]
    assert report.test_difference <= 1e-6


def test_what_is_given_comes_first(tmp_path: Path) -> None:
    described = opened(tmp_path).settings
    given = AdoptionSettings(name="mine", percentiles=(1.0, 99.0), dtype="uint16", licence="ours")
    both = fill_in(given, described)
    assert (both.name, both.dtype, both.licence, both.citation) == ("mine", "uint16", "ours", "Them 2020; Those 2021")
    assert (both.mean, both.std, both.percentiles) == ((), (), (1.0, 99.0))
    assert both.normalisation_source == given.normalisation_source
    assert fill_in(AdoptionSettings(), described) == described


def test_steps_follow_each_other(tmp_path: Path) -> None:
    steps = (
        {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
        {"id": "scale_linear", "kwargs": {"gain": [0.5, 2.0], "offset": [1.0, 0.0], "axis": "channel"}},
        {"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": [3.0, 4.0], "std": [5.0, 8.0], "axis": "channel"}},
    )

    def change(data: Json) -> None:
        with_steps(*steps)(data)
        with_channels("a", "b")(data)

    settings = opened(tmp_path, change).settings
    for value in (0.0, 10.0, 255.0):
        expected = ((value * 0.5 + 1 - 3) / 5, (value * 2 - 4) / 8)
        came = [(value - mean) / std for mean, std in zip(settings.mean, settings.std, strict=True)]
        np.testing.assert_allclose(came, expected, rtol=1e-12)


def test_percentiles_are_those_of_the_volume(tmp_path: Path) -> None:
    step = {"id": "scale_range", "kwargs": {"min_percentile": 1.0, "max_percentile": 99.8, "axes": ["y", "x"]}}
    package = opened(tmp_path, with_steps(step))
    assert (package.settings.percentiles, package.settings.mean, package.settings.std) == ((1.0, 99.8), (0.0,), (1.0,))
    assert package.notes[0].startswith("percentiles are those of each channel of the whole volume")


def test_a_data_type_named_first_changes_nothing(tmp_path: Path) -> None:
    steps = (
        {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}},
        {"id": "scale_range", "kwargs": {"min_percentile": 1.0, "max_percentile": 99.8, "axes": ["y", "x"]}},
    )
    assert opened(tmp_path, with_steps(*steps)).settings.percentiles == (1.0, 99.8)


@pytest.mark.parametrize(
    ("data", "dtype", "value_range"),
    [
        ({"type": "float32", "range": [0.0, 1.0]}, "float32", (0.0, 1.0)),
        ({"type": "float64", "range": [0, 255]}, "float32", (0.0, 255.0)),
        ({"type": "float32", "range": [None, None]}, None, None),
        ({"type": "uint32", "range": [0, 4095]}, None, None),
        ({"type": "uint16", "range": [0, 4095]}, "uint16", (0.0, 4095.0)),
    ],
)
def test_grey_values(data: Json, dtype: str | None, value_range: tuple[float, float] | None, tmp_path: Path) -> None:
    package = opened(tmp_path, lambda described: described["inputs"][0].update(data=data))
    assert (package.settings.dtype, package.settings.value_range) == (dtype, value_range)
    assert any("uint8, unless --dtype says another" in note for note in package.notes) == (dtype is None)


def test_a_sigmoid_after_it(tmp_path: Path) -> None:
    def change(data: Json) -> None:
        data["outputs"][0]["postprocessing"] = [{"id": "sigmoid"}]

    folder = write(tmp_path / "package", description())
    assert opened(tmp_path, change).is_sigmoid
    with pytest.raises(AdoptionError, match=r"ends in a sigmoid over 3 outputs, a soft-max was expected"):
        adopt_model(folder, tmp_path / "ours.onnx", AdoptionSettings(), threads=1)


@pytest.mark.parametrize(
    ("path", "is_one"), [("a.zip", True), ("rdf.yaml", True), ("a.onnx", False), ("a.YML", True), (".", True)]
)
def test_what_is_a_package(path: str, is_one: bool) -> None:
    assert is_package(Path(path)) == is_one


# ---- what cannot be honoured


@pytest.mark.parametrize(
    ("step", "named"),
    [
        ({"id": "zero_mean_unit_variance", "kwargs": {"axes": ["y", "x"]}}, "zero_mean_unit_variance"),
        (
            {"name": "zero_mean_unit_variance", "kwargs": {"mode": "per_sample", "axes": "yx"}},
            "zero_mean_unit_variance (per_sample)",
        ),
        ({"id": "binarize", "kwargs": {"threshold": 3}}, "binarize"),
        ({"id": "clip", "kwargs": {"min": 0, "max": 1}}, "clip"),
        ({"id": "scale_range", "kwargs": {"axes": ["x"]}}, "scale_range"),
    ],
)
def test_a_step_that_measures_its_sample(step: Json, named: str, tmp_path: Path) -> None:
    with pytest.raises(AdoptionError, match=r"prepares its input by ") as caught:
        opened(tmp_path, with_steps(step))
    assert caught.value.headline.endswith(f"prepares its input by {named}")
    assert "measured on every tile by itself" in caught.value.details[0]


def test_values_cut_to_integers_midway(tmp_path: Path) -> None:
    with pytest.raises(AdoptionError, match=r"prepares its input by ensure_dtype\n"):
        opened(tmp_path, with_steps(FIXED, {"id": "ensure_dtype", "kwargs": {"dtype": "uint8"}}))


def test_percentiles_over_channels_together(tmp_path: Path) -> None:
    def change(data: Json) -> None:
        with_steps({"id": "scale_range", "kwargs": {"axes": ["channel", "y", "x"]}})(data)
        with_channels("a", "b")(data)

    with pytest.raises(AdoptionError, match=r"prepares its input by scale_range"):
        opened(tmp_path, change)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": "a", "std": 1}}, "mean 'a'"),
        ({"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 1}}, "std None"),
        ({"id": "fixed_zero_mean_unit_variance", "kwargs": {"mean": 1, "std": 0}}, "std 0"),
        ({"id": "scale_linear", "kwargs": {"gain": [1, 2]}}, r"gain \[1, 2\]"),
    ],
)
def test_constants_that_are_none(step: Json, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=rf"scales its input with {words}\n  one number, or 1, were expected"):
        opened(tmp_path, with_steps(step))


def test_a_factor_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"scales its input by \[0\.0\]\n  factors other than 0 were expected"):
        opened(tmp_path, with_steps({"id": "scale_linear", "kwargs": {"gain": 0}}))


def test_a_step_after_it_that_makes_something_else(tmp_path: Path) -> None:
    def change(data: Json) -> None:
        data["outputs"][0]["postprocessing"] = [{"id": "stardist_postprocessing", "kwargs": {}}]

    with pytest.raises(AdoptionError, match=r"changes its output by stardist_postprocessing\n  steps that make prob"):
        opened(tmp_path, change)


def two_inputs(data: Json) -> None:
    data["inputs"] *= 2


def three_dimensions(data: Json) -> None:
    data["inputs"][0]["axes"].insert(2, {"type": "space", "id": "z", "size": 8})


def no_onnx(data: Json) -> None:
    data["weights"] = {"torchscript": {"source": "weights.pt"}}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (two_inputs, r"describes no network of one input and one output\n  2 input\(s\) and 1 output\(s\) came"),
        (three_dimensions, r"describes an input with the axes b, c, z, y, x\n  batch, channel, y, x were expected"),
        (no_onnx, r"has no ONNX weights\n  weights: torchscript\n"),
        (
            lambda data: data.update(format_version="0.3.6"),
            r"describes 'model' in format 0\.3\.6\n  a model in format 0",
        ),
        (lambda data: data.update(type="dataset"), r"describes 'dataset' in format 0\.5\.3\n"),
    ],
)
def test_what_is_no_network_of_ours(change: Callable[[Json], object], problem: str, tmp_path: Path) -> None:
    with pytest.raises(AdoptionError, match=problem):
        opened(tmp_path, change)


# ---- its files


def test_weights_that_are_others(tmp_path: Path) -> None:
    folder = write(tmp_path / "package", description(), weights=WEIGHTS + b"x")
    with pytest.raises(UnsafeModelError, match=r"^weights\.onnx of .+ is not the file that the package describes\n"):
        open_package(folder)


@pytest.mark.parametrize(
    "name", ["../weights.onnx", "/etc/passwd", "a/../../b", "https://host/weights.onnx", "a\\b", "a\0b", "a" * 300]
)
def test_a_file_outside(name: str, tmp_path: Path) -> None:
    def change(data: Json) -> None:
        data["weights"]["onnx"]["source"] = name

    with pytest.raises(UnsafeModelError, match=r"names a file outside of itself: "):
        opened(tmp_path, change)
    with pytest.raises(UnsafeModelError, match=r"names a file outside of itself: "):
        open_package(pack(tmp_path / "package"))


def test_a_link_to_a_file_outside(tmp_path: Path) -> None:
    folder = write(tmp_path / "package", description())
    (tmp_path / "elsewhere.onnx").write_bytes(WEIGHTS)
    (folder / "weights.onnx").unlink()
    try:
        (folder / "weights.onnx").symlink_to(tmp_path / "elsewhere.onnx")
    except OSError:
        pytest.skip("this system makes no links")
    with pytest.raises(UnsafeModelError, match=r"names a file outside of itself: weights\.onnx"):
        open_package(folder)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^no model at .+nothing\.zip\n"):
        open_package(tmp_path / "nothing.zip")
    with pytest.raises(ModelNotFoundError, match=r"holds no rdf\.yaml\n"):
        open_package(tmp_path)


def test_a_zip_without_its_files(tmp_path: Path) -> None:
    folder = write(tmp_path / "package", description())
    (folder / "weights.onnx").unlink()
    with pytest.raises(ModelNotFoundError, match=r"package\.zip holds no weights\.onnx\n"):
        open_package(pack(folder))
    (folder / "rdf.yaml").unlink()
    with pytest.raises(ModelNotFoundError, match=r"package\.zip holds no rdf\.yaml\n"):
        open_package(pack(folder))
    (folder / "rdf.yaml").write_text(json.dumps(description()))
    with pytest.raises(ModelNotFoundError, match=r"holds no weights\.onnx"):
        open_package(folder)


def test_no_zip(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_text("hello")
    with pytest.raises(AdoptionError, match=r"a\.zip is no zip file, or is damaged\n"):
        open_package(tmp_path / "a.zip")


def test_a_damaged_zip(tmp_path: Path) -> None:
    path = pack(write(tmp_path / "package", description()))
    data = bytearray(path.read_bytes())
    at = data.index(b'"format_version"')
    data[at + 3] ^= 1  # stored, not deflated: only the checksum tells
    path.write_bytes(bytes(data))
    with pytest.raises(AdoptionError, match=r"^rdf\.yaml of .+package\.zip cannot be unpacked\n  Bad CRC-32"):
        open_package(path)


def test_a_zip_with_a_damaged_stream(tmp_path: Path) -> None:
    path = pack(write(tmp_path / "package", description()), zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(path) as archive:
        entry = archive.getinfo("rdf.yaml")
    data = bytearray(path.read_bytes())
    data[entry.header_offset + 30 + len("rdf.yaml")] = 0xFF  # no block of deflate begins so
    path.write_bytes(bytes(data))
    with pytest.raises(AdoptionError, match=r"^rdf\.yaml of .+package\.zip cannot be unpacked\n  Error -3"):
        open_package(path)


def test_a_zip_that_inflates_beyond_reason(tmp_path: Path) -> None:
    path = pack(write(tmp_path / "package", description(), weights=bytes(FREE_BYTES + 1)), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < FREE_BYTES / 500
    with pytest.raises(UnsafeModelError, match=rf"^weights\.onnx of .+ declares {FREE_BYTES + 1} bytes in \d+\n"):
        open_package(path)


def test_no_more_is_inflated_than_is_declared(tmp_path: Path) -> None:
    path = pack(write(tmp_path / "package", description(), weights=bytes(FREE_BYTES)), zipfile.ZIP_DEFLATED)
    data = path.read_bytes()  # declared in the member's header, and in the table of contents
    path.write_bytes(data.replace(struct.pack("<I", FREE_BYTES), struct.pack("<I", 10)))
    tracemalloc.start()
    try:
        with pytest.raises(AdoptionError, match=r"weights\.onnx of .+ cannot be unpacked\n  Bad CRC-32"):
            open_package(path)
        assert tracemalloc.get_traced_memory()[1] < FREE_BYTES / 4
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_of_another_method(method: int, tmp_path: Path) -> None:
    path = pack(write(tmp_path / "package", description()), method)
    with pytest.raises(AdoptionError, match=rf"^rdf\.yaml of .+ is compressed by method {method}\n  stored or defl"):
        open_package(path)


def test_aliases_that_stand_for_any_number_of_values(tmp_path: Path) -> None:
    lines = ["l0: &l0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"l{i}: &l{i} [{', '.join(10 * [f'*l{i - 1}'])}]" for i in range(1, 9)]
    text = "\n".join([*lines, "type: model", "format_version: *l8", ""])
    with pytest.raises(UnsafeModelError, match=r"holds more than a description of a model\n  at most 100000 values"):
        open_package(write(tmp_path / "package", text))


@pytest.mark.parametrize("text", ["a: &a [*a]", f"{'[' * 60}{']' * 60}", f"format_version: 0x{'f' * 5000}"])
def test_values_that_are_no_description(text: str, tmp_path: Path) -> None:
    with pytest.raises(UnsafeModelError, match=r"holds more than a description of a model\n"):
        open_package(write(tmp_path / "package", text))


def test_a_description_without_end(tmp_path: Path) -> None:
    folder = write(tmp_path / "package", description())
    (folder / "rdf.yaml").write_text(" " * (2**20 + 1))
    for path in (folder, pack(folder)):
        with pytest.raises(
            UnsafeModelError, match=rf"^rdf\.yaml of .+ is {2**20 + 1} bytes or more, at most {2**20} were"
        ):
            open_package(path)


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.system ['true']", "a: 1\n\tb: 2"])
def test_no_yaml(text: str, tmp_path: Path) -> None:
    with pytest.raises(AdoptionError, match=r"^rdf\.yaml of .+ is no YAML\n"):
        open_package(write(tmp_path / "package", text))


def test_without_pyyaml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(MissingDependencyError, match=r"^reading a bioimage\.io package needs the package 'yaml'"):
        opened(tmp_path)
