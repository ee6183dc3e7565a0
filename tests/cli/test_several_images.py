"""What `segment` and `plan` say and do with a plate: each image, or one by name, and never a silent gap."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import Outcome
from tests.contract.test_images import write_plate
from tests.contract.volumes import chunk_files, write_image
from tests.tiny import make_pixels, read_arrays

Cli = Callable[..., Outcome]
NAMES = ["A/1/0", "A/1/1", "A/2/0", "A/2/1"]
FLAGS = ("--write", "labels", "--engine", "onnxruntime-cpu")


@pytest.fixture
def plate(tmp_path: Path) -> Path:
    """Return a plate of four fields, in the current folder."""
    path = write_plate(tmp_path / "plate.zarr")
    for seed, name in enumerate(NAMES):
        shutil.rmtree(path / name)
        pixels = make_pixels((70, 90), seed=seed)
        write_image(path / name, pixels, axes="yx", version="0.4", levels=1, scale=(4.0, 4.0))
    return path


def test_a_plate_is_segmented_field_by_field(cli: Cli, plate: Path, tiny_model: Path) -> None:
    done = cli("segment", "plate.zarr", "--model", tiny_model, *FLAGS)
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    for name, line in zip(NAMES, lines, strict=False):
        output = f"plate_{name.replace('/', '_')}_segmentation.ome.zarr"
        assert line.startswith(f"{name}: done: {output}, ")
        assert ", membrane " in line
        assert (plate.parent / output / "labels" / "segmentation" / "0").is_dir()
    assert lines[4:6] == ["images  4 done", "pixels  25,200"]
    assert lines[6].startswith("time    ")
    again = cli("segment", "plate.zarr", "--model", tiny_model, *FLAGS)
    assert again.code == 0
    assert again.out.splitlines()[0] == "A/1/0: was finished before: plate_A_1_0_segmentation.ome.zarr"
    assert again.out.splitlines()[4] == "images  0 done, 4 were finished before"


def test_one_by_name_is_as_one_by_path(cli: Cli, plate: Path, tiny_model: Path) -> None:
    named = cli("segment", "plate.zarr", "--image", "A/2/1", "--model", tiny_model, *FLAGS)
    assert (named.code, named.out.splitlines()[0]) == (0, "output  plate_A_2_1_segmentation.ome.zarr")
    by_path = cli("segment", "plate.zarr/A/2/1", "-o", "path.ome.zarr", "--model", tiny_model, *FLAGS)
    assert by_path.code == 0
    came = read_arrays(plate.parent / "plate_A_2_1_segmentation.ome.zarr")
    for name, array in read_arrays(plate.parent / "path.ome.zarr").items():
        np.testing.assert_array_equal(came[name], array)
    wrong = cli("segment", "plate.zarr", "--image", "A/2/9", "--model", tiny_model)
    assert wrong.code == 2
    assert "error[unknown-name]" in wrong.err


def test_a_field_that_fails_is_shown_and_listed(cli: Cli, plate: Path, tiny_model: Path) -> None:
    chunk_files(plate / "A" / "1" / "1" / "0")[0].write_bytes(b"no zstd")
    shutil.rmtree(plate / "A" / "2" / "0")
    done = cli("segment", "plate.zarr", "-o", "results", "--model", tiny_model, *FLAGS)
    assert done.code == 6
    lines = done.out.splitlines()
    assert lines[1].startswith("A/1/1: failed: [partial-result] 1 of 1 blocks failed; they are 0 in ")
    assert lines[2].startswith("A/2/0: failed: [volume-not-found] there is nothing at ")
    assert lines[4] == "images  2 done, 2 failed"
    assert "error[partial-result]: 2 of 4 images failed; the others are done\n  A/1/1: [partial-result] " in done.err
    assert done.err.rstrip().endswith("with --retry-failed: what is finished stays as it is")
    assert {path.name for path in (plate.parent / "results").iterdir()} == {
        f"plate_A_{n}_segmentation.ome.zarr" for n in ("1_0", "1_1", "2_1")
    }


def test_json_is_one_document_whatever_happens(cli: Cli, plate: Path, tiny_model: Path) -> None:
    shutil.rmtree(plate / "A" / "2" / "0")
    done = cli("segment", "plate.zarr", "--json", "--model", tiny_model, *FLAGS)
    assert done.code == 6
    facts: Any = json.loads(done.out)
    assert facts["volume"] == "plate.zarr"
    assert [(each["image"], each["outcome"]) for each in facts["images"]] == [
        ("A/1/0", "done"),
        ("A/1/1", "done"),
        ("A/2/0", "failed"),
        ("A/2/1", "done"),
    ]
    assert facts["images"][0]["result"]["pixels"] == 70 * 90
    assert facts["images"][2]["error"]["code"] == "volume-not-found"
    assert facts["images"][2]["result"] is None
    assert "A/1/0: done: plate_A_1_0_segmentation.ome.zarr" in done.err  # people see it go on


def test_a_setting_that_suits_none_is_said_once(cli: Cli, plate: Path, tiny_model: Path) -> None:
    done = cli("segment", "plate.zarr", "--tile", "61", "--model", tiny_model, *FLAGS)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error[tile-not-legal]: ")
    assert cli("plan", "plate.zarr", "--tile", "61", "--model", tiny_model, "--no-probe").code == 2
    store = cli("segment", "plate.zarr", "-o", "all.ome.zarr", "--model", tiny_model, *FLAGS)
    assert store.code == 3
    assert "error[output-path]: several images are to be segmented, and the output all.ome.zarr is named" in store.err


def test_what_differs_in_all_fields_is_said_once(cli: Cli, plate: Path, tiny_model: Path) -> None:
    for name in NAMES[1:]:
        shutil.rmtree(plate / name)
        write_image(plate / name, np.zeros((70, 90), np.uint8), axes="yx", version="0.4", levels=1)
    done = cli("segment", "plate.zarr", "--model", tiny_model, *FLAGS)
    assert done.code == 0
    assert done.err.splitlines() == [
        "A/1/1 differs in one way from what the model was trained on",
        "  all grey values looked at are 0: there is nothing to segment [constant]",
        "    what to do: check the channel, the level and the file",
    ]
    lines = done.out.splitlines()
    assert "unlike" not in lines[0]
    assert all(line.endswith(", unlike the training images: constant") for line in lines[1:4])
    assert logging.getLogger("unet_deploy.runtime.run").level == logging.INFO
    strict = cli("segment", "plate.zarr", "--strict", "-o", "strict", "--model", tiny_model, *FLAGS)
    assert strict.code == 6
    assert strict.out.splitlines()[1].startswith("A/1/1: failed: [value-range] ")


def test_plan_lists_what_would_be_segmented(cli: Cli, plate: Path, tiny_model: Path) -> None:
    done = cli("plan", "plate.zarr", "--model", tiny_model, "--engine", "onnxruntime-cpu")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[:4] == [f"{name}: yx 70 × 90 uint8, 6,300 px in 1 block(s)" for name in NAMES]
    rows = {line.split("  ")[0]: line.split("  ", 1)[1].strip() for line in lines[4:]}
    assert rows["images"] == "4, one after the other; one alone with --image NAME"
    assert rows["pixels"] == "25,200"
    assert rows["time"].startswith("about ")
    assert rows["output"] == "plate_A_1_0_segmentation.ome.zarr and so on"
    shutil.rmtree(plate / "A" / "2" / "0")
    done = cli("plan", "plate.zarr", "--json", "--no-probe", "--model", tiny_model)
    assert done.code == 6
    assert "error[partial-result]: 1 of 4 images cannot be segmented\n  A/2/0: [volume-not-found] " in done.err
    facts = json.loads(done.out)
    assert [each["image"] for each in facts["images"]] == ["A/1/0", "A/1/1", "A/2/1"]
    assert facts["totals"]["pixels"] == 3 * 6300
    assert facts["totals"]["seconds"] is None
    assert len(facts["problems"]) == 1
    one = cli("plan", "plate.zarr", "--image", "A/1/0", "--no-probe", "--model", tiny_model)
    assert one.out.splitlines()[0].endswith("A/1/0: yx 70 × 90 uint8")


def test_the_level_of_a_pyramid_is_said(cli: Cli, tmp_path: Path) -> None:
    write_image(tmp_path / "em.zarr", make_pixels((96, 128)), axes="yx", version="0.5", scale=(2.0, 2.0), levels=2)
    said = "level 1 of 2: 4 nm is nearest to the 4 nm trained at"
    assert json.loads(cli("plan", "em.zarr", "--no-probe", "--json").out)["level_choice"] == said
    assert f"level       {said.removeprefix('level ')}" in cli("plan", "em.zarr", "--no-probe").out
    assert json.loads(cli("plan", "em.zarr", "--no-probe", "--json", "--level", "0").out)["level_choice"] is None


def test_plan_says_how_the_volume_differs(cli: Cli, tmp_path: Path) -> None:
    path = write_image(
        tmp_path / "em.zarr", 4 * make_pixels((9, 128)).astype("uint16"), axes="yx", version="0.5", scale=(1, 1)
    )
    said = json.loads(cli("plan", "em.zarr", "--no-probe", "--json", "--input-range", "0:1020").out)
    assert said["differs_from_training"] == ["pixels are 2 nm, the model was trained at 4 nm: a factor of 2.0"]
    for chunk in chunk_files(path / "1"):
        chunk.write_bytes(b"no zstd")
    said = cli("plan", "em.zarr", "--no-probe", "--input-range", "0:1020")
    assert said.code == 0
    assert "differs" not in said.out
