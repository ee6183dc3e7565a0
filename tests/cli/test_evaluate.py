"""``unet-deploy evaluate``: the scores of every kind of input, the reports, and every refusal."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("scipy", reason="the extra 'evaluate' is not installed")
pytest.importorskip("skimage", reason="the extra 'evaluate' is not installed")

import tifffile
import zarr

from tests.conftest import Outcome
from tests.tiny import edit_card, make_pixels, snapshot, write_array, write_image
from unet_deploy.metrics import number_components
from unet_deploy.picture import write_png

Cli = Callable[..., Outcome]
Array = npt.NDArray[Any]
ORACLE = Path(__file__).resolve().parents[2].parent / "shared" / "oracle"

needs_oracle = pytest.mark.skipif(not ORACLE.is_dir(), reason="shared/oracle does not lie beside this checkout")


def write(path: Path, data: Array) -> Path:
    """Write slices as the name says: ``.zarr``, ``.tif``, or a folder of PNG or TIFF files."""
    if path.suffix == ".zarr":
        return write_array(path, data)
    if path.suffix == ".tif":
        tifffile.imwrite(path, data, photometric="minisblack")
        return path
    path.mkdir()
    for index, plane in enumerate(data):
        if plane.dtype == np.uint8:
            write_png(path / f"{index}.png", plane)
        else:
            tifffile.imwrite(path / f"{index}.tif", plane)
    return path


def cells(count: int = 2) -> Array:
    """Two cells of 24 × 11 px in each slice, 255, with membrane between; that of the oracle's table."""
    truth = np.zeros((count, 32, 32), np.uint8)
    truth[:, 4:28, 4:15] = truth[:, 4:28, 17:28] = 255
    return truth


def with_gap(count: int = 2) -> Array:
    prediction = cells(count)
    prediction[0, 10:14, 15:17] = 255
    return prediction


def objects() -> tuple[Array, Array]:
    """Four true objects in two slices: one right, one split, two merged; one predicted object is added."""
    truth, prediction = np.zeros((2, 40, 60), np.uint16), np.zeros((2, 40, 60), np.uint16)
    truth[:, 2:12, 2:12] = prediction[:, 2:12, 2:12] = 700
    truth[:, 2:12, 20:40] = 701
    prediction[:, 2:12, 20:30], prediction[:, 2:12, 30:40] = 702, 703
    truth[:, 20:30, 2:12], truth[:, 20:30, 12:22] = 704, 705
    prediction[:, 20:30, 2:22] = 706
    prediction[:, 33:38, 50:58] = 707
    return truth, prediction


def run_json(cli: Cli, *arguments: str | Path) -> dict[str, Any]:
    outcome = cli("evaluate", *arguments, "--json")
    assert outcome.code == 0, outcome.err
    facts: dict[str, Any] = json.loads(outcome.out)
    return facts


# ---- the field's own numbers


@needs_oracle
def test_seg_is_the_official_value(cli: Cli) -> None:
    folder = ORACLE / "ctc"
    outcome = cli("evaluate", folder / "01_RES", folder / "01_GT")
    assert outcome.code == 0
    assert re.search(
        r"^  SEG +0\.656356  higher is better  192 objects in 3 frames, pooled$", outcome.out, re.MULTILINE
    )
    assert "kind: ctc (maskTTT.tif and man_segTTT.tif)" in outcome.err
    facts = run_json(cli, folder / "01_RES", folder / "01_GT" / "SEG")
    lines = (ORACLE / "ctc" / "SEG_log.txt").read_text(encoding="utf-8").splitlines()
    official = [line for line in lines if line.startswith("GT_label=")]
    ours = [item for frame in facts["frames"] for item in frame["objects"]]
    assert [f"GT_label={item['label']} J={item['jaccard']:.6g}" for item in ours] == official


@needs_oracle
@pytest.mark.parametrize("name", ["eroded", pytest.param("noisy", marks=pytest.mark.slow)])
def test_isbi_scores_are_those_of_the_reference(name: str, cli: Cli) -> None:
    folder = ORACLE / "isbi"
    facts = run_json(cli, folder / f"{name}.tif", folder / "gt.tif", "--kind", "membranes", "--radius", "20")
    *rows, last = map(json.loads, (folder / f"{name}.jsonl").read_text("utf-8").splitlines())
    summary, scores = last["summary"], facts["scores"]
    for key in ("warping_error", "rand_error", "pixel_error"):
        assert scores[key] == pytest.approx(summary[key], rel=0, abs=1e-6 if key != "warping_error" else 1e-9)
    assert scores["v_rand"] == pytest.approx(summary["vrand_thin"], rel=0, abs=1e-6)
    assert scores["v_info"] == pytest.approx(summary["vinfo_thin"], rel=0, abs=1e-6)
    assert facts["radius"] == 20
    for found, expected in zip(facts["thresholds"], rows, strict=True):
        assert found["warping_error"] == pytest.approx(expected["warping_splits_mergers"], rel=0, abs=1e-9)


# ---- every kind of input gives the same numbers


@pytest.mark.parametrize("of_truth", ["t.zarr", "t.tif", "t_folder"])
@pytest.mark.parametrize("of_prediction", ["p.zarr", "p.tif", "p_folder"])
@pytest.mark.parametrize("as_float", [False, True])
def test_membranes(of_truth: str, of_prediction: str, as_float: bool, cli: Cli, tmp_path: Path) -> None:
    prediction = with_gap().astype(np.float32) / 255 if as_float else with_gap()
    facts = run_json(
        cli, write(tmp_path / of_prediction, prediction), write(tmp_path / of_truth, cells()), "--kind", "membranes"
    )
    assert (facts["kind"], facts["slices"], facts["radius"]) == ("membranes", 2, -1)
    assert facts["scores"]["warping_error"] == 4 / 2048  # the oracle's table: a gap of 4x2 merges 4 px
    assert facts["scores"]["v_rand"] == pytest.approx((2 / 3 + 1) / 2)
    assert {row["mismatch_pixels"]["merge"] for row in facts["thresholds"]} == {4}


@pytest.mark.parametrize("of_truth", ["t.zarr", "t.tif", "t_folder"])
@pytest.mark.parametrize("of_prediction", ["p.zarr", "p.tif", "p_folder"])
def test_instances(of_truth: str, of_prediction: str, cli: Cli, tmp_path: Path) -> None:
    truth, prediction = objects()
    facts = run_json(cli, write(tmp_path / of_prediction, prediction), write(tmp_path / of_truth, truth))
    frames = 2 if of_truth == "t_folder" else 1  # a file is a frame; the slices of a volume are one
    counts = {key: facts["scores"][key] for key in ("splits", "merges", "missed", "added")}
    assert (facts["kind"], len(facts["frames"])) == ("instances", frames)
    assert counts == {"splits": frames, "merges": frames, "missed": 0, "added": frames}
    assert [row["threshold"] for row in facts["thresholds"]][::9] == [0.5, 0.95]
    assert facts["thresholds"][0]["true_positives"] == frames
    # Of each frame's four: one is right, one split in equal halves, two are merged into equal halves.
    assert facts["scores"]["seg"] == pytest.approx((1 + 0 + 0.5 + 0.5) / 4)
    assert (facts["scores"]["touching_pairs"], facts["scores"]["separated_pairs"]) == (frames, 0)


def test_objects_of_single_slices(cli: Cli, tmp_path: Path) -> None:
    truth, prediction = objects()
    paths = write(tmp_path / "p.zarr", prediction), write(tmp_path / "t.zarr", truth)
    assert len(run_json(cli, *paths, "--per-slice")["frames"]) == 2
    assert len(run_json(cli, *paths, "--thresholds", "0.5,0.9")["thresholds"]) == 2


@pytest.mark.parametrize("dtype", ["int32", "uint32", "uint64"])
def test_labels_of_other_programs(dtype: str, cli: Cli, tmp_path: Path) -> None:
    truth, prediction = objects()
    paths = write(tmp_path / "p.zarr", prediction.astype(dtype)), write(tmp_path / "t.zarr", truth.astype(dtype))
    assert run_json(cli, *paths)["scores"]["splits"] == 1


@pytest.mark.parametrize("of_truth", ["t.zarr", "t.tif", "t_folder"])
@pytest.mark.parametrize("of_prediction", ["p.zarr", "p.tif", "p_folder"])
def test_classes(of_truth: str, of_prediction: str, cli: Cli, tmp_path: Path) -> None:
    truth, prediction = cells() // 255, with_gap() // 255
    facts = run_json(cli, write(tmp_path / of_prediction, prediction), write(tmp_path / of_truth, truth))
    inside = 2 * 2 * 24 * 11
    assert facts["kind"] == "classes"
    assert facts["confusion"] == [[2 * 32 * 32 - inside - 8, 8], [0, inside]]
    assert facts["classes"][1]["iou"] == inside / (inside + 8)
    assert facts["scores"]["pixel_accuracy"] == 1 - 8 / 2048


def test_values_of_the_truth_become_classes(cli: Cli, tmp_path: Path) -> None:
    paths = write(tmp_path / "p", 1 - with_gap() // 255), write(tmp_path / "t", cells())
    named = run_json(cli, *paths, "--class", "cell interior=255", "--class", "membrane=0", "--kind", "classes")
    assert [(c["name"], c["label"]) for c in named["classes"]] == [("cell interior", 0), ("membrane", 1)]
    assert named["scores"]["pixel_accuracy"] == 1 - 8 / 2048
    assert run_json(cli, *paths, "--positive", "0", "--kind", "classes")["confusion"] == named["confusion"]


def test_polarity_of_truth_and_prediction(cli: Cli, tmp_path: Path) -> None:
    expected = run_json(cli, write(tmp_path / "p", with_gap()), write(tmp_path / "t", cells()), "--kind", "membranes")
    paths = write(tmp_path / "q", 255 - with_gap()), write(tmp_path / "u", 255 - cells())
    turned = run_json(cli, *paths, "--kind", "membranes", "--positive", "0", "--predicts", "membrane")
    assert turned["scores"] == expected["scores"]
    assert expected["scores"]["warping_error"] > 0


def test_a_mask_of_0_and_1_is_no_probability_of_1_in_255(cli: Cli, tmp_path: Path) -> None:
    paths = write(tmp_path / "p", with_gap() // 255), write(tmp_path / "t", cells())
    facts = run_json(cli, *paths, "--kind", "membranes")
    assert {row["mismatch_pixels"]["merge"] for row in facts["thresholds"]} == {4}


def test_what_has_no_truth_is_said(cli: Cli, tmp_path: Path) -> None:
    prediction, truth = write(tmp_path / "p", with_gap(3)), write(tmp_path / "t", cells(3))
    (truth / "1.png").unlink()
    outcome = cli("evaluate", prediction, truth, "--kind", "membranes", "--thresholds", "0.5")
    assert outcome.code == 0
    assert "note: not scored, for want of a truth: 1" in outcome.err
    assert "2 slice(s)" in outcome.out


# ---- segmentations of ours, and models


@pytest.fixture
def segmentation(cli: Cli, tiny_model: Path, tmp_path: Path) -> Path:
    write_image(tmp_path / "v.ome.zarr", make_pixels((2, 60, 52)))
    assert cli("segment", "v.ome.zarr", "-m", tiny_model, "-o", "s.ome.zarr").code == 0
    return tmp_path / "s.ome.zarr"


def read(store: Path, path: str) -> Array:
    return np.asarray(zarr.open_array(store, path=path, mode="r")[...])


def test_a_segmentation_of_ours(cli: Cli, segmentation: Path, tmp_path: Path) -> None:
    labels = read(segmentation, "labels/segmentation/0")
    truth = write(tmp_path / "t.tif", ((labels == 0) * 255).astype(np.uint8))
    outcome = cli("evaluate", segmentation, truth, "--thresholds", "0.5")
    assert outcome.code == 0
    assert "kind: membranes (the class 'membrane'); choose with --kind" in outcome.err
    assert "probability of 'membrane', taken as 1 - p for the inside of cells" in outcome.out
    facts = run_json(cli, segmentation, truth, "--thresholds", "0.5")
    assert facts["scores"]["pixel_error"] < 0.01  # rounding to 8 bits moves what is near 0.5
    by_other = run_json(cli, segmentation, truth, "--thresholds", "0.5", "--probability", "inside")
    assert by_other["scores"]["pixel_error"] < 0.01
    same = run_json(cli, segmentation, segmentation, "--kind", "classes")
    assert same["scores"] == {"mean_iou": 1.0, "mean_dice": 1.0, "pixel_accuracy": 1.0}
    assert [c["name"] for c in same["classes"]] == ["inside", "membrane"]
    flags = ("--kind", "classes", "--class", "inside=255", "--class", "membrane=0")
    assert run_json(cli, segmentation, truth, *flags)["scores"]["pixel_accuracy"] == 1


def test_a_model_segments_first(cli: Cli, segmentation: Path, tiny_model: Path, tmp_path: Path) -> None:
    truth = write(tmp_path / "t", ((read(segmentation, "labels/segmentation/0") == 0) * 255).astype(np.uint8))
    images = write(tmp_path / "images", make_pixels((2, 60, 52)))
    before = snapshot(tmp_path)
    expected = run_json(cli, segmentation, truth, "--thresholds", "0.5")["scores"]
    for prediction in ("v.ome.zarr", images):
        facts = run_json(cli, prediction, truth, "--model", tiny_model, "--thresholds", "0.5")
        assert facts["scores"] == expected
        assert facts["prediction"].endswith(", segmented by tiny")
    classes = run_json(cli, images, truth, "-m", tiny_model, "--positive", "0", "--kind", "classes")
    assert classes["scores"]["pixel_accuracy"] == 1
    assert snapshot(tmp_path) == before


def test_what_cells_need_is_said_before_a_model_segments(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "t.tif", cells())
    write(tmp_path / "v.zarr", make_pixels((2, 32, 32)))
    monkeypatch.setitem(sys.modules, "scipy", None)  # what an absent package does
    assert cli("evaluate", "v.zarr", "t.tif", "-m", tiny_model, "--kind", "classes", "--positive", "0").code == 0
    outcome = cli("evaluate", "v.zarr", "t.tif", "-m", tiny_model)
    assert outcome.code == 5
    assert "finding the cells of a segmentation needs the package 'scipy', which is not installed" in outcome.err
    assert "segment" not in outcome.err.replace("a segmentation", "")


def number_objects(labels: Array, *, min_size: int = 0) -> Array:
    return number_components(labels != 0, min_size=min_size).astype(np.uint16)


def test_objects_are_made_of_a_segmentation(cli: Cli, segmentation: Path, tiny_model: Path, tmp_path: Path) -> None:
    labels = read(segmentation, "labels/segmentation/0")
    images = write(tmp_path / "images", make_pixels((2, 60, 52)))
    deep = write(tmp_path / "deep.tif", number_objects(labels))
    flat = write(tmp_path / "flat", np.stack([number_objects(plane) for plane in labels]))
    large = write(tmp_path / "large", np.stack([number_objects(plane, min_size=4) for plane in labels]))
    how = "objects are pixels of 'membrane' connected by their sides"
    small = ("--min-size", "4")
    for arguments, frames, says in (
        ((segmentation, deep), 1, f"{how}, going on from slice to slice\n"),
        ((segmentation, flat), 2, f"{how}\n"),
        ((segmentation, large, *small), 2, f"{how}, those below 4 px dropped\n"),
        (("v.ome.zarr", deep, "-m", tiny_model), 1, f"{how}, going on from slice to slice\n"),
        ((images, flat, "-m", tiny_model), 2, f"{how}\n"),
        ((images, large, "-m", tiny_model, *small), 2, f"{how}, those below 4 px dropped\n"),
    ):
        outcome = cli("evaluate", *arguments, "--kind", "instances", "--json")
        assert outcome.code == 0, outcome.err
        assert says in outcome.err
        facts = json.loads(outcome.out)
        assert facts["read_as"]["prediction"].endswith(f"labels; {says.strip()}")
        assert len(facts["frames"]) == frames
        assert facts["frames"][0]["true_objects"] > 5
        assert (facts["scores"]["mean_f1"], facts["scores"]["seg"]) == (1, 1)
        assert facts["scores"]["separated_pairs"] == facts["scores"]["touching_pairs"] > 0
    per_slice = run_json(cli, segmentation, flat, "--kind", "instances", "--per-slice")
    assert per_slice["scores"]["seg"] == 1
    everything = run_json(cli, segmentation, large, "--kind", "instances")["scores"]
    assert (everything["seg"], everything["added"] > 0) == (1, True)


def test_a_model_is_scored_by_the_challenge_s_measure(
    cli: Cli, segmentation: Path, tiny_model: Path, tmp_path: Path
) -> None:
    labels, pixels = read(segmentation, "labels/segmentation/0"), make_pixels((2, 60, 52))
    (tmp_path / "01").mkdir()
    (tmp_path / "01_GT" / "SEG").mkdir(parents=True)
    for t in (0, 3, 7):  # 7 is not annotated
        tifffile.imwrite(tmp_path / "01" / f"t{t:03}.tif", pixels[t % 2])
    for t in (0, 3):
        tifffile.imwrite(tmp_path / "01_GT" / "SEG" / f"man_seg{t:03}.tif", number_objects(labels[t % 2]))
    before = snapshot(tmp_path)
    facts = run_json(cli, "01", "01_GT", "-m", tiny_model, "--kind", "ctc")
    assert (facts["kind"], facts["scores"]["seg"], facts["slices"]) == ("ctc", 1, 2)
    assert [frame["t"] for frame in facts["frames"]] == [0, 3]
    by_table = run_json(cli, "01", "01_GT", "-m", tiny_model, "--compare", "ctc2015", "--compare-by", "dic_hela")
    assert by_table["compare"]["rank"] == "1"
    report = cli("evaluate", "01", "01_GT", "-m", tiny_model, "--kind", "ctc", "--report", "r.html")
    assert report.code == 0, report.err
    (tmp_path / "r.html").unlink()
    assert snapshot(tmp_path) == before


def test_a_model_averages_first(cli: Cli, segmentation: Path, tiny_model: Path, tmp_path: Path) -> None:
    truth = write(tmp_path / "t", ((read(segmentation, "labels/segmentation/0") == 0) * 255).astype(np.uint8))
    images = write(tmp_path / "images", make_pixels((2, 60, 52)))
    assert cli("segment", "v.ome.zarr", "-m", tiny_model, "-o", "tta.ome.zarr", "--tta").code == 0
    flags = ("--thresholds", "0.5")
    expected = run_json(cli, "tta.ome.zarr", truth, *flags)["scores"]
    facts = run_json(cli, images, truth, "-m", tiny_model, "--tta", *flags)
    assert facts["prediction"].endswith(", segmented by tiny over turned and mirrored images")
    assert facts["scores"] == expected
    assert expected != run_json(cli, images, truth, "-m", tiny_model, *flags)["scores"]


def test_images_of_several_sizes(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    for name in ("images", "t"):
        (tmp_path / name).mkdir()
    for index, side in enumerate((40, 40, 56)):
        pixels = make_pixels((side, side), seed=index)
        write_png(tmp_path / "images" / f"{index}.png", pixels)
        write_png(tmp_path / "t" / f"{index}.png", np.where(pixels > 128, 255, 0).astype(np.uint8))
    facts = run_json(cli, "images", "t", "-m", tiny_model, "--positive", "0", "--kind", "classes")
    assert sum(map(sum, facts["confusion"])) == 40 * 40 * 2 + 56 * 56


def test_a_segmentation_that_is_not_finished(cli: Cli, segmentation: Path) -> None:
    group = zarr.open_group(segmentation, mode="r+")
    made: Any = group.attrs["unet_deploy"]
    group.attrs["unet_deploy"] = {**made, "status": "partial", "failed_blocks": [{}]}
    arguments = ("evaluate", segmentation, segmentation, "--kind", "classes")
    assert f"prediction: 1 block(s) of {segmentation} failed; they are scored as 0" in cli(*arguments).err
    group.attrs["unet_deploy"] = {**made, "status": "running"}
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out) == (3, "")
    assert "s.ome.zarr is no result: it is being written, or its run was killed" in outcome.err


def test_what_was_not_written_cannot_be_scored(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "v.ome.zarr", make_pixels((2, 60, 52)))
    for kind, other, name in (("labels", "membranes", "l.zarr"), ("probabilities", "classes", "p.zarr")):
        assert cli("segment", "v.ome.zarr", "-m", tiny_model, "-o", name, "--write", kind).code == 0
        outcome = cli("evaluate", name, "v.ome.zarr", "--kind", other)
        assert outcome.code == 3
        missing = "probabilities" if kind == "labels" else "labels"
        assert f"error[not-a-volume]: {name} holds no {missing}" in outcome.err
        assert f"it was written with --write {kind}" in outcome.err


def test_which_class_is_membrane(cli: Cli, segmentation: Path, tmp_path: Path) -> None:
    truth = write(tmp_path / "t.tif", cells()[:, :2, :2])
    outcome = cli("evaluate", segmentation, truth, "--kind", "membranes", "--probability", "2")
    assert (outcome.code, "error[channel]: the segmentation has no class '2'" in outcome.err) == (3, True)
    group = zarr.open_group(segmentation, mode="r+")
    made: Any = group.attrs["unet_deploy"]
    group.attrs["unet_deploy"] = {**made, "model": {**made["model"], "classes": ["a", "b"]}}
    outcome = cli("evaluate", segmentation, truth, "--kind", "membranes")
    assert "no class of the segmentation is called membrane or border" in outcome.err
    assert "fix: --probability 0 --predicts interior" in outcome.err


# ---- what is printed


def test_the_table_on_the_terminal(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "p", with_gap())
    write(tmp_path / "t", cells())
    outcome = cli("evaluate", "p", "t", "--kind", "membranes", "--thresholds", "0.3,0.5")
    assert outcome.code == 0
    shown = {line[:15].strip(): line for line in outcome.out.splitlines()}
    score, note = shown["warping error"].split(" at 0.3: ")
    assert score.split() == ["warping", "error", "0.001953", "lower", "is", "better"]
    assert note == "0 split px, 4 merge px; splits told in the whole image"
    assert shown["V_Rand"].split()[1:5] == ["0.833333", "higher", "is", "better"]
    assert outcome.out.splitlines()[:2] == [
        "prediction  p: probability, taken for the inside of cells",
        "truth       t: all but 0 is the inside of cells",
    ]
    assert "scoring: 2/2" in outcome.err


def test_nothing_to_divide_is_none(cli: Cli, tmp_path: Path) -> None:
    nothing = np.zeros((2, 8, 8), np.uint16)
    paths = write(tmp_path / "p.tif", nothing), write(tmp_path / "t.tif", nothing)
    facts = run_json(cli, *paths, "--kind", "instances")
    assert facts["scores"]["mean_f1"] is None
    assert re.search(r"mean F1 +none +higher", cli("evaluate", *paths, "--kind", "instances").out)


# ---- the paper's tables


def test_a_row_in_table_1(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "p", with_gap())
    write(tmp_path / "t", cells())
    outcome = cli("evaluate", "p", "t", "--compare", "isbi2012")
    assert outcome.code == 0
    rows = re.findall(r"^  ([ >]) (\S.*?)  +(\S+) +(\d\.\d{6}|-) +(\S+) +(\S+)$", outcome.out, re.MULTILINE)
    assert [row[1] for row in rows] == [
        "human values", "u-net", "DIVE-SCI", "IDSIA", "DIVE", "IDSIA-SCI", "yours (p)",
    ]  # fmt: skip
    assert [row[3] for row in rows if row[0] == ">"] == ["0.001953"]
    assert [row[2] for row in rows] == ["-", "1", "2", "3", "4", "10", "11+"]
    assert "The published rows were measured on the challenge's secret test set." in outcome.out
    facts = run_json(cli, "p", "t", "--compare", "isbi2012", "--compare-by", "rand_error")
    assert facts["compare"]["ranked_by"] == "rand_error"
    assert [row["name"] for row in facts["compare"]["rows"] if row["is_yours"]] == ["yours (p)"]


def write_challenge(folder: Path) -> tuple[Path, Path]:
    truth, prediction = objects()
    result, annotated = folder / "01_RES", folder / "01_GT"
    result.mkdir(parents=True)
    (annotated / "SEG").mkdir(parents=True)
    for t in range(2):
        tifffile.imwrite(result / f"mask{t:03}.tif", prediction[t])
        tifffile.imwrite(annotated / "SEG" / f"man_seg{t:03}.tif", truth[t])
    return result, annotated


def test_a_row_in_table_2(cli: Cli, tmp_path: Path) -> None:
    paths = write_challenge(tmp_path)
    outcome = cli("evaluate", *paths, "--compare", "ctc2015")
    assert outcome.code == 0
    assert "SEG stands under phc_u373 (--compare-by dic_hela for the other)" in outcome.err
    # 1 is right; of the split one, no piece is more than half; the merged pair has IoU 1/2 each.
    assert re.search(r"SEG +0\.500000", outcome.out)
    assert re.search(r"> yours \(01_RES\) +\S+ +0\.5000 +-$", outcome.out, re.MULTILINE)
    facts = run_json(cli, *paths, "--compare", "ctc2015", "--compare-by", "dic_hela")
    assert (facts["compare"]["ranked_by"], facts["compare"]["rank"]) == ("dic_hela", "2")


def test_the_data_set_is_known_by_its_path(cli: Cli, tmp_path: Path) -> None:
    facts = run_json(cli, *write_challenge(tmp_path / "DIC-C2DH-HeLa"), "--compare", "ctc2015")
    assert facts["compare"]["ranked_by"] == "dic_hela"


# ---- reports


def pictures_of(page: str) -> list[Array]:
    """Decode the pictures of an HTML report."""
    import base64
    import io

    from skimage.io import imread

    return [imread(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"data:image/png;base64,([^']+)", page)]


def test_an_html_report_needs_nothing_else(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "p<b>", with_gap())
    write(tmp_path / "t", cells())
    arguments = ("evaluate", "p<b>", "t", "--kind", "membranes", "--compare", "isbi2012", "--report", "r.html")
    outcome = cli(*arguments)
    assert (outcome.code, outcome.out.splitlines()[-1]) == (0, "look    r.html")
    page = (tmp_path / "r.html").read_text("utf-8")
    assert re.findall(r"(?:src|href)=.(?!data:)", page) == []
    assert not re.search(r"https?://|<script|@import|url\(", page)
    assert "p&lt;b&gt;" in page
    assert "<b>" not in page
    panels = pictures_of(page)
    assert len(panels) == 2 * 3
    assert {panel.shape for panel in panels} == {(256, 256, 3)}  # enlarged eight times
    merge, split = (0x2A, 0xA5, 0xFF), (0xFF, 0x4A, 0x1C)
    has_merge = [bool((panel == merge).all(axis=2).any()) for panel in panels]
    assert has_merge == [False, False, True, False, False, False]  # the errors of the first slice
    assert not any((panel == split).all(axis=2).any() for panel in panels)
    for text in ("warping error", "lower is better", "yours (p", "merge: a gap joins true cells", "secret test set"):
        assert text in page
    assert "all slices" in page
    refused = cli(*arguments)
    assert (refused.code, refused.out) == (3, "")
    assert "error[output-exists]: the report r.html exists" in refused.err
    assert cli(*arguments, "--overwrite").code == 0


@pytest.mark.parametrize("kind", ["membranes", "classes", "instances", "ctc"])
def test_a_folder_report_of_every_kind(kind: str, cli: Cli, tmp_path: Path) -> None:
    from skimage.io import imread

    truth, prediction = objects() if kind == "instances" else (cells(), with_gap())
    if kind == "ctc":
        paths = write_challenge(tmp_path)
    else:
        paths = write(tmp_path / "p", prediction), write(tmp_path / "t", truth)
    outcome = cli("evaluate", *paths, "--kind", kind, "--report", "report")
    assert outcome.code == 0
    folder = tmp_path / "report"
    names = ["report.html", "report.png", "scores.json", "slice_00.png", "slice_01.png"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert json.loads((folder / "scores.json").read_text())["kind"] == kind
    row = imread(folder / "slice_00.png")
    panels = (row.shape[1] - 16) / 3
    assert panels == {"membranes": 256, "classes": 256}.get(kind, 240)
    page = imread(folder / "report.png")
    assert page.shape[0] > 2 * row.shape[0]
    assert page.shape[1] >= row.shape[1]
    colours = {tuple(colour) for colour in np.unique(row.reshape(-1, 3), axis=0).tolist()}
    # Of the classes, the gap was taken for class 255, whose colour is that of 255 % 8.
    wrong = {"membranes": "2aa5ff", "classes": "cc79a7", "instances": "ff4a1c", "ctc": "ff4a1c"}[kind]
    assert tuple(bytes.fromhex(wrong)) in colours
    assert cli("evaluate", *paths, "--kind", kind, "--report", "report", "--overwrite").code == 0


def test_a_png_report_holds_its_slices(cli: Cli, tmp_path: Path) -> None:
    from skimage.io import imread

    write(tmp_path / "p.tif", with_gap(40))
    write(tmp_path / "t.tif", cells(40))
    flags = ("--kind", "membranes", "--thresholds", "0.5")
    assert cli("evaluate", "p.tif", "t.tif", *flags, "--report", "r.png").code == 0
    page = imread(tmp_path / "r.png")
    assert 16 * 256 < page.shape[0] < 17 * 400  # 16 of 40 slices
    assert cli("evaluate", "p.tif", "t.tif", *flags, "--report", "r.html").code == 0
    html = (tmp_path / "r.html").read_text("utf-8")
    assert "16 of 40 slices, spread over all" in html
    assert [int(z) for z in re.findall(r"<h3>z=(\d+)</h3>", html)][::15] == [0, 39]


def test_a_large_slice_is_cut_where_the_errors_are(cli: Cli, tmp_path: Path) -> None:
    truth, prediction = np.zeros((1, 700, 1400), np.uint8), np.zeros((1, 700, 1400), np.uint8)
    prediction[0, 650:660, 1300:1320] = 1
    truth[0, 10:20, 10:20] = prediction[0, 10:20, 10:20] = 1
    write(tmp_path / "p.tif", prediction)
    write(tmp_path / "t.tif", truth)
    assert cli("evaluate", "p.tif", "t.tif", "--report", "r.html").code == 0
    page = (tmp_path / "r.html").read_text("utf-8")
    found = re.search(r"shown: y (\d+):(\d+), x (\d+):(\d+) of 700 × 1400 px", page)
    assert found is not None
    top, bottom, left, right = map(int, found.groups())
    assert top <= 650 < 660 <= bottom
    assert left <= 1300 < 1320 <= right
    assert (bottom - top, right - left) == (512, 512)


def test_the_images_lie_under_the_outline(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "p", with_gap())
    write(tmp_path / "t", cells())
    write(tmp_path / "i", make_pixels((2, 32, 32)))
    arguments = ("evaluate", "p", "t", "--kind", "membranes", "--thresholds", "0.5")
    assert cli(*arguments, "--report", "r.html", "--images", "i").code == 0
    panel = pictures_of((tmp_path / "r.html").read_text("utf-8"))[0]
    assert len(np.unique(panel.reshape(-1, 3), axis=0)) > 50


def test_images_of_the_challenge(cli: Cli, tmp_path: Path) -> None:
    paths = write_challenge(tmp_path)
    (tmp_path / "01").mkdir()
    for t in range(2):
        tifffile.imwrite(tmp_path / "01" / f"t{t:03}.tif", make_pixels((40, 60), seed=t))
    assert cli("evaluate", *paths, "--images", "01", "--report", "r.html").code == 0
    assert len(pictures_of((tmp_path / "r.html").read_text("utf-8"))) == 6
    (tmp_path / "01" / "t001.tif").unlink()
    outcome = cli("evaluate", *paths, "--images", "01", "--report", "s.html")
    assert (outcome.code, "the images lack frame T=1" in outcome.err) == (3, True)


def test_the_text_of_a_png_needs_pillow(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "p.tif", with_gap())
    write(tmp_path / "t.tif", cells())
    monkeypatch.setitem(sys.modules, "PIL", None)  # what an absent package does
    for report in ("r.png", "r"):
        outcome = cli("evaluate", "p.tif", "t.tif", "--report", report)
        assert outcome.code == 5
        assert "a report as PNG needs the package 'pillow', which is not installed" in outcome.err
        assert "kind: " not in outcome.err  # before anything was read
        assert not (tmp_path / report).exists()
    assert cli("evaluate", "p.tif", "t.tif", "--report", "r.html").code == 0


def test_a_report_that_cannot_be_written(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "p.tif", with_gap())
    write(tmp_path / "t.tif", cells())
    report = tmp_path / "report"
    assert cli("evaluate", "p.tif", "t.tif", "--report", "report").code == 0
    (report / "scores.json").unlink()
    (report / "scores.json").mkdir()
    outcome = cli("evaluate", "p.tif", "t.tif", "--report", "report", "--overwrite")
    assert outcome.code == 3
    assert "error[output-path]: the report report cannot be written" in outcome.err


# ---- refusals: exit code, what is said, the fix; nothing is written

PAIR = ("p.tif", "t.tif")
REFUSED: dict[str, tuple[tuple[str, ...], int, str, str]] = {
    "an unknown kind": ((*PAIR, "--kind", "class"), 2, "unknown kind of scores: 'class'", "did you mean 'classes'?"),
    "an unknown table": ((*PAIR, "--compare", "isbi2013"), 2, "unknown published table: 'isbi2013'", "'isbi2012'?"),
    "an unknown column": (
        (*PAIR, "--compare", "isbi2012", "--compare-by", "rand_eror"), 2, "unknown column of isbi2012: 'rand_eror'",
        "did you mean 'rand_error'?",
    ),
    "a column of no table": (
        (*PAIR, "--compare-by", "rand_error"), 2, "--compare-by rand_error came without --compare",
        "--compare isbi2012",
    ),
    "an unknown meaning": ((*PAIR, "--predicts", "cell"), 2, "unknown meaning of a probability: 'cell'", "known"),
    "a table of another kind": (
        (*PAIR, "--kind", "classes", "--compare", "ctc2015"), 2, "--compare ctc2015 came with --kind classes",
        "--kind ctc --compare ctc2015",
    ),
    "thresholds that are none": ((*PAIR, "--thresholds", "a,b"), 2, "numbers with commas between", "0.5,0.75,0.95"),
    "thresholds out of order": (
        (*PAIR, "--kind", "membranes", "--thresholds", "0.7,0.3"), 2,
        "--thresholds 0.7,0.3 came; they must increase and lie in [0, 1)", "--thresholds 0.3,0.7",
    ),
    "a threshold of 1": ((*PAIR, "--thresholds", "0.5,1"), 2, "must increase and lie in [0, 1)", "--thresholds 0.5"),
    "IoU thresholds too low": (
        ("o.tif", "o.tif", "--thresholds", "0.3,0.5"), 2, "IoU thresholds lie in [0.5, 1)", "--thresholds 0.5,0.75",
    ),
    "a radius of 0": ((*PAIR, "--radius", "0"), 2, "radius 0 is neither -1 nor at least 1", "leave it out"),
    "a flag of another kind": (
        (*PAIR, "--kind", "classes", "--radius", "20"), 2, "--radius came, which says nothing about classes",
        "leave it out, or --kind membranes",
    ),
    "two ways to say the class": (
        (*PAIR, "--kind", "classes", "--class", "a=0", "--class", "b=255", "--positive", "255"), 2,
        "--positive and --class came together", "leave one",
    ),
    "images without a report": ((*PAIR, "--images", "t.tif"), 2, "--images came without --report", "--report report"),
    "images with a model": (
        (*PAIR, "--images", "t.tif", "--model", "m.onnx"), 2, "--images came with --model", "leave --images out",
    ),
    "an average without a model": ((*PAIR, "--tta"), 2, "--tta came without --model", "--model FILE, or segment --tta"),
    "small ones of numbered objects": (
        ("o.tif", "o.tif", "--min-size", "5"), 2, "--min-size 5 came, and the objects of the prediction are numbered",
        "leave it out",
    ),
    "small objects of another kind": (
        (*PAIR, "--kind", "classes", "--min-size", "5"), 2, "--min-size came, which says nothing about classes",
        "leave it out, or --kind instances",
    ),
    "nothing there": (("q.tif", "t.tif"), 3, "there is nothing at q.tif", "did you mean"),
    "shapes that differ": (("small.tif", "t.tif"), 3, "differ in shape: (2, 32, 32) and (2, 30, 32)", "one resolution"),
    "numbers of slices": (("three.tif", "t.tif"), 3, "the truth has 2 slices, the prediction 3", "the same slices"),
    "missing slices": (("p_folder", "t_folder"), 3, "the prediction lacks 1 of 2 slices: 1", "the stem of its truth"),
    "missing frames": (
        ("01_RES", "01_GT"), 3, "the result lacks 1 of 2 annotated frames: T=1 Z=0", "segment those frames too",
    ),
    "a float truth": (("p.tif", "float.tif"), 3, "slice z=0 of the truth is float32, whole numbers", "uint8 or uint16"),
    "a float prediction of classes": (
        ("float.tif", "t.tif", "--kind", "classes"), 3, "slice z=0 of the prediction is float32", "--kind membranes",
    ),
    "colour pictures": (
        ("colour", "t_folder", "--kind", "classes"), 3,
        "slice 0 has the shape (32, 32, 3), (y, x) with one channel was expected", "image[..., 0] if all channels",
    ),
    "negative labels": (
        ("negative.tif", "t.tif", "--kind", "instances"), 3, "slice z=0 of the prediction holds the label -1", "from 0",
    ),
    "logits": (("logits.tif", "t.tif"), 3, "slice z=1 of the prediction goes from -3 to 255, not within", "sigmoid"),
    "not a number": (("nan.tif", "t.tif"), 3, "slice z=0 of the prediction goes from nan to nan", "sigmoid"),
    "16-bit probabilities": (
        ("o.tif", "o.tif", "--kind", "membranes"), 3, "slice z=0 of the prediction is uint16, probabilities", "float32",
    ),
    "a mask that becomes grey": (
        ("odd.tif", "five.tif", "--kind", "membranes"), 3, "slice z=1 of the prediction holds 9; the slices seen first",
        "save all slices alike",
    ),
    "a value of the truth that is nowhere": (
        (*PAIR, "--kind", "membranes", "--positive", "128"), 3, "--positive 128 came, and no pixel",
        "255 and 0 are usual",
    ),
    "masks of 1 and of 255": (
        ("ones.tif", "t.tif"), 3, "the truth holds the labels 0, 255, the prediction 0, 1", "--class 'class 0=255'",
    ),
    "a value of no class": (
        (*PAIR, "--kind", "classes", "--class", "a=0", "--class", "b=1"), 3,
        "slice z=0 of the truth holds 255 on 528 px",
        "--class NAME=255",
    ),
    "objects as classes": (
        ("o.tif", "o.tif", "--kind", "classes"), 3, "holds the label 705, classes are 0..255", "--kind instances",
    ),
    "a class that is no class": ((*PAIR, "--class", "a"), 2, "--class 'a' is not NAME=VALUE", "--class"),
    "a report of another kind": ((*PAIR, "--report", "r.pdf"), 3, "the report r.pdf ends in .pdf", "--report r.html"),
    "a report without a folder": (
        (*PAIR, "--report", "no/r.html"), 3, f"the folder of the report {Path('no/r.html')} does not exist",
        "create it",
    ),
    "a report that is there": ((*PAIR, "--report", "old.html"), 3, "the report old.html exists", "--overwrite"),
    "a folder that is no report": (
        (*PAIR, "--report", "p_folder", "--overwrite"), 3, "p_folder is no report of this kind", "another --report",
    ),
    "touching cells": (
        ("p.tif", "touching.tif", "--kind", "membranes"), 2, "labels 1 and 2 touch at y=4, x=14 of the truth",
        "find_boundaries",
    ),
}  # fmt: skip


def prepare(folder: Path) -> None:
    """Make everything that `REFUSED` names, and more than it asks for."""
    truth = cells()
    write(folder / "p.tif", with_gap())
    write(folder / "t.tif", truth)
    write(folder / "o.tif", objects()[0])
    write(folder / "small.tif", truth[:, 1:-1])
    write(folder / "three.tif", cells(3))
    write(folder / "float.tif", (truth / 255).astype(np.float32))
    write(folder / "ones.tif", truth // 255)
    write(folder / "negative.tif", -(truth // 255).astype(np.int16))
    logits = (truth / 255).astype(np.float32)
    logits[1, 0, :2] = -3, 255
    write(folder / "logits.tif", logits)
    write(folder / "nan.tif", np.full(truth.shape, np.nan, np.float32))
    touching = truth // 255
    touching[:, 4:28, 15:28] = 2
    write(folder / "touching.tif", touching)
    write(folder / "five.tif", cells(5))
    odd = cells(5) // 255
    odd[1, 0, 0] = 9
    write(folder / "odd.tif", odd)
    write(folder / "p_folder", truth[:1])
    write(folder / "t_folder", truth)
    write(folder / "colour", np.stack([truth] * 3, axis=-1))
    result, _ = write_challenge(folder)
    (result / "mask001.tif").unlink()
    (folder / "old.html").write_text("an earlier report")


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal(case: str, cli: Cli, tmp_path: Path) -> None:
    arguments, code, says, fix = REFUSED[case]
    prepare(tmp_path)
    before = snapshot(tmp_path)
    outcome = cli("evaluate", *arguments)
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    said = outcome.err[outcome.err.index("error[") :]
    assert says in said
    assert fix in said
    assert "  fix: " in said or "  known: " in said
    assert snapshot(tmp_path) == before


def test_classes_that_the_model_does_not_have(cli: Cli, segmentation: Path, tmp_path: Path) -> None:
    truth = write(tmp_path / "t.tif", np.full((2, 60, 52), 255, np.uint8))
    outcome = cli("evaluate", segmentation, truth, "--kind", "classes")
    assert outcome.code == 3
    assert "the truth holds the labels 255" in outcome.err
    assert "0 inside, 1 membrane" in outcome.err


def test_images_of_the_challenge_that_are_no_folder(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    write(tmp_path / "i.tif", make_pixels((2, 40, 60)))
    write_challenge(tmp_path)
    outcome = cli("evaluate", "i.tif", "01_GT", "-m", tiny_model, "--kind", "ctc")
    assert outcome.code == 3
    assert "the folder of images i.tif is no folder" in outcome.err
    assert "the challenge's layout is 01/tTTT.tif and 01_GT/SEG/man_segTTT.tif" in outcome.err
    assert "give 01 and 01_GT" in outcome.err


def test_channels_of_a_png(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    write(tmp_path / "i", make_pixels((2, 32, 32)))
    write(tmp_path / "t", cells())
    outcome = cli("evaluate", "i", "t", "-m", tiny_model, "--channel", "0")
    assert (outcome.code, "--channel or --axes came with images that are no Zarr" in outcome.err) == (2, True)


def test_a_model_that_is_not_there_is_said_before_any_work(cli: Cli, tmp_path: Path) -> None:
    write(tmp_path / "i", make_pixels((2, 32, 32)))
    write(tmp_path / "t", cells())
    outcome = cli("evaluate", "i", "t", "-m", "no.onnx")
    assert (outcome.code, "error[model-not-found]" in outcome.err) == (4, True)


def test_a_third_class_has_no_membrane(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    """Without a class that is called membrane, a segmentation is scored by its classes."""

    def rename(card: dict[str, Any]) -> None:
        for number, item in enumerate(card["classes"]):
            item["name"] = f"kind {number}"

    model = edit_card(tiny_model, tmp_path / "m.onnx", rename)
    write(tmp_path / "i", make_pixels((2, 32, 32)))
    write(tmp_path / "t", cells() // 255)
    facts = run_json(cli, "i", "t", "-m", model)
    assert facts["kind"] == "classes"
    assert not math.isnan(facts["scores"]["mean_iou"])
