"""What the verbs say and do with a model that scales each volume by its own percentiles, and with bundled names."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Outcome
from tests.tiny import make_pixels, read_arrays, read_provenance, write_image
from unet_deploy.percentiles import percentile_range
from unet_deploy.picture import write_png
from unet_deploy.runtime.artifact import bundled_names

Cli = Callable[..., Outcome]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network with a card that asks for percentiles, exported."""
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    from unet_deploy.exporters.export import export_checkpoint
    from unet_deploy.training.checkpoint import load_checkpoint, save_checkpoint

    network, card = load_checkpoint(tiny_checkpoint)
    scaled = replace(card.normalisation, mean=(0.5,), std=(0.25,), percentiles=(1.0, 99.8))
    folder = tmp_path_factory.mktemp("percentiles")
    save_checkpoint(folder / "model.pt", model=network, card=replace(card, normalisation=scaled))
    return export_checkpoint(folder / "model.pt", folder / "model.onnx").path


def rows(text: str) -> dict[str, str]:
    """Return what a verb shows in two columns; of rows with one name, the last."""
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in text.splitlines() if "  " in line)


def test_inspect_shows_them(cli: Cli, model: Path) -> None:
    for path in (model, model.with_suffix(".pt")):
        shown = rows(cli("inspect", path).out)
        assert shown["scaled"] == "percentiles 1 and 99.8 of each channel of the volume become 0 and 1, then"
        assert shown["normalised"] == "(v − 0.5) / 0.25, from made up"
        assert json.loads(cli("inspect", path, "--json").out)["normalisation"]["percentiles"] == [1.0, 99.8]


def test_plan_says_what_will_be_read(cli: Cli, model: Path, tiny_model: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "v.zarr", make_pixels((2, 100, 90)).astype(np.float32))
    said = rows(cli("plan", "v.zarr", "--model", model, "--no-probe").out)["statistics"]
    assert said == ("144.0 kB are read first, for the volume's percentiles 1 and 99.8; --input-range takes their place")
    flags = ("plan", "v.zarr", "--model", model, "--no-probe")
    assert json.loads(cli(*flags, "--json").out)["statistics_bytes"] == 2 * 4 * 2 * 100 * 90
    assert "statistics" not in rows(cli(*flags, "--input-range", "0:255").out)
    assert json.loads(cli(*flags, "--input-range", "0:255", "--json").out)["statistics_bytes"] == 0


def test_segment_measures_says_and_stores_them(cli: Cli, model: Path, tmp_path: Path) -> None:
    pixels = make_pixels((2, 100, 90)).astype(np.uint16) * 9
    write_image(tmp_path / "v.zarr", pixels)
    low, high = percentile_range(pixels, (1, 99.8))
    outcome = cli("segment", "v.zarr", "--model", model)
    assert outcome.code == 0, outcome.err
    assert "statistics: 1/1" in outcome.err
    shown = rows(outcome.out)
    assert shown["grey values"] == (
        f"{low:g}:{high:g} are the percentiles 1 and 99.8 of the volume "
        f"(--input-range {low}:{high} gives another volume the same scale)"
    )
    assert ", grey values " in shown["time"]
    assert read_provenance(tmp_path / "v_segmentation.ome.zarr")["statistics"]["ranges"] == [[low, high]]
    given = cli("segment", "v.zarr", "-m", model, "--input-range", f"{low}:{high}", "-o", "given.zarr", "--json")
    assert json.loads(given.out)["statistics"] is None
    measured, again = (read_arrays(tmp_path / name) for name in ("v_segmentation.ome.zarr", "given.zarr"))
    for name, values in measured.items():
        np.testing.assert_array_equal(values, again[name], strict=True)
    facts = json.loads(cli("segment", "v.zarr", "-m", model, "--overwrite", "--json").out)
    assert facts["statistics"] == {"percentiles": [1.0, 99.8], "ranges": [[low, high]]}


def test_images_of_a_folder_are_volumes_of_their_own(cli: Cli, model: Path, tmp_path: Path) -> None:
    """Twenty times the brightness in one folder: each is segmented as it would be alone."""
    for name in ("images", "truth"):
        (tmp_path / name).mkdir()
    for index, divisor in enumerate((20, 1, 3)):
        pixels = make_pixels((60, 52), seed=index) // divisor
        write_image(tmp_path / f"{index}.zarr", pixels[None])
        assert cli("segment", f"{index}.zarr", "-m", model, "-o", f"{index}_out.zarr").code == 0
        labels: Any = read_arrays(tmp_path / f"{index}_out.zarr")["labels/segmentation/0"][0]
        assert 0 < labels.mean() < 1
        write_png(tmp_path / "images" / f"{index}.png", pixels)
        write_png(tmp_path / "truth" / f"{index}.png", labels)
    flags = ("-m", model, "--kind", "classes", "--json")
    scores = json.loads(cli("evaluate", "images", "truth", *flags).out)["scores"]
    assert scores["pixel_accuracy"] == 1
    fixed = json.loads(cli("evaluate", "images", "truth", *flags, "--input-range", "0:255").out)["scores"]
    assert fixed["pixel_accuracy"] < 1


def test_the_slices_of_a_file_are_one_volume(cli: Cli, model: Path, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile", reason="comes with the extra 'evaluate'")
    pixels = make_pixels((3, 60, 52))
    pixels[1] //= 4
    write_image(tmp_path / "v.zarr", pixels)
    assert cli("segment", "v.zarr", "-m", model, "-o", "out.zarr").code == 0
    labels = read_arrays(tmp_path / "out.zarr")["labels/segmentation/0"]
    tifffile.imwrite(tmp_path / "images.tif", pixels, photometric="minisblack")
    tifffile.imwrite(tmp_path / "truth.tif", labels, photometric="minisblack")
    outcome = cli("evaluate", "images.tif", "truth.tif", "-m", model, "--kind", "classes", "--json")
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["scores"]["pixel_accuracy"] == 1


# ---- bundled networks by name


@pytest.mark.parametrize("name", bundled_names())
def test_a_bundled_network_is_chosen_by_its_name(cli: Cli, tmp_path: Path, name: str) -> None:
    write_image(tmp_path / "v.zarr", make_pixels((1, 60, 52)))
    outcome = cli("plan", "v.zarr", "--model", name, "--no-probe")
    assert outcome.code == 0, outcome.err
    assert rows(outcome.out)["model"].endswith(f"(bundled {name}.onnx)")
    assert outcome.err.startswith("model: the bundled ")
    inspected = cli("inspect", name)
    assert (inspected.code, inspected.err) == (0, "")
    assert rows(inspected.out)["artifact"].startswith(f"bundled {name}.onnx, ")


def test_the_environment_may_name_one(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(tmp_path / "v.zarr", make_pixels((1, 60, 52)))
    monkeypatch.setenv("UNET_DEPLOY_MODEL", "membrane")
    outcome = cli("plan", "v.zarr", "--no-probe")
    assert rows(outcome.out)["model"].endswith("(bundled membrane.onnx)")
    assert "model: membrane (from $UNET_DEPLOY_MODEL)" in outcome.err


def test_what_stands_there_is_inspected_before_a_name(cli: Cli, tmp_path: Path) -> None:
    write_image(tmp_path / "membrane", make_pixels((1, 60, 52)))
    assert rows(cli("inspect", "membrane").out)["axes"] == "z 1, y 60, x 52"
