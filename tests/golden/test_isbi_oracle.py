"""The ISBI metrics against what Fiji's Trainable Segmentation printed, and against cases counted by hand.

The files lie beside the checkout in ``shared/oracle/isbi`` (its README says how they were made): three true slices, one
proposal with eroded cells, one of noisy probabilities, and per threshold every number the program gave, at radius 20.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="the extra 'evaluate' is not installed")

from unet_deploy.metrics import (
    Mismatch,
    VCounter,
    find_mismatches,
    isbi_scores,
    pixel_error,
    rand_error,
    v_scores,
    warping_error,
)

ORACLE = Path(__file__).resolve().parents[2].parent / "shared" / "oracle" / "isbi"
MISMATCH_KEYS = ("split", "merge", "hole_add", "hole_del", "object_add", "object_del")

needs_oracle = pytest.mark.skipif(not ORACLE.is_dir(), reason="shared/oracle/isbi does not lie beside this checkout")
both_proposals = pytest.mark.parametrize("name", ["eroded", "noisy"])


def read_image(name: str) -> Any:
    tifffile = pytest.importorskip("tifffile", reason="the oracle's images are TIFF")
    return tifffile.imread(ORACLE / f"{name}.tif")


def read_rows(name: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    *rows, last = map(json.loads, (ORACLE / f"{name}.jsonl").read_text("utf-8").splitlines())
    assert len(rows) == 10
    return rows, last["summary"]


def about(value: float, tolerance: float = 1e-6) -> Any:
    return pytest.approx(value, rel=0, abs=tolerance)


@needs_oracle
@both_proposals
def test_pixel_error(name: str) -> None:
    scores = pixel_error(read_image("gt"), read_image(name))
    rows, summary = read_rows(name)
    for row, expected in zip(scores.rows, rows, strict=True):
        assert row.threshold == about(expected["threshold"])
        found = {"value": row.disagreement, "precision": row.precision, "recall": row.recall, "f": row.f}
        assert found == {key: about(value) for key, value in expected["pixel"].items()}
        assert row.disagreement == about(expected["pixel_error"])
    assert scores.error == about(summary["pixel_error"])
    assert scores.lowest_disagreement == about(summary["plain_pixel_error_min"])


@needs_oracle
@both_proposals
def test_rand_error(name: str) -> None:
    scores = rand_error(read_image("gt"), read_image(name))
    rows, summary = read_rows(name)
    for row, expected in zip(scores.rows, rows, strict=True):
        pairs = row.pairs
        found = {"value": row.rand_index, "precision": pairs.precision, "recall": pairs.recall, "f": pairs.f}
        assert found == {key: about(value) for key, value in expected["fg_rand"].items()}
    assert scores.error == about(summary["rand_error"])


@needs_oracle
@both_proposals
def test_v_rand_and_v_info(name: str) -> None:
    # 1e-3 is what another watershed would be allowed; this one is the program's own, so 1e-6 holds as well.
    scores = v_scores(read_image("gt"), read_image(name))
    rows, summary = read_rows(name)
    for row, expected in zip(scores.rows, rows, strict=True):
        pooled = row.pooled
        found = {"value": row.rand_index, "precision": pooled.precision, "recall": pooled.recall, "f": row.v_rand}
        assert found == {key: about(value) for key, value in expected["vrand_thin"].items()}
        assert pooled.f == about(expected["vrand_thin_micro"])
        assert row.v_info == about(expected["vinfo_thin"])
    assert scores.v_rand == about(summary["vrand_thin"])
    assert scores.v_rand_pooled == about(summary["vrand_thin_micro"])
    assert scores.v_info == about(summary["vinfo_thin"])


@needs_oracle
@pytest.mark.parametrize("name", ["eroded", pytest.param("noisy", marks=pytest.mark.slow)])
def test_warping_error(name: str) -> None:
    scores = warping_error(read_image("gt"), read_image(name), radius=20)
    rows, summary = read_rows(name)
    for row, expected in zip(scores.rows, rows, strict=True):
        found = dict(zip(MISMATCH_KEYS, asdict(row.mismatches).values(), strict=True))
        assert found == expected["mismatch_pixels"]
        assert row.error == about(expected["warping_splits_mergers"], 1e-9)
        assert row.classic_error == about(expected["warping_classic"], 1e-9)
    assert scores.error == about(summary["warping_error"], 1e-9)
    assert scores.lowest_classic_error == about(summary["warping_classic_min"], 1e-9)
    assert scores.radius == 20


@needs_oracle
@pytest.mark.parametrize(("radius", "splits"), [(20, 104), (-1, 92), (600, 92)])
def test_the_radius_decides_what_is_a_split(radius: int, splits: int) -> None:
    kinds = find_mismatches(read_image("gt")[0], read_image("eroded")[0], threshold=0.5, radius=radius)
    assert np.count_nonzero(kinds == Mismatch.SPLIT) == splits


# What is changed in two cells [4:28, 4:15] and [4:28, 17:28] of a 32x32 truth, threshold 0.5, radius -1; then pixels
# that differ, Rand F, V_Rand, V_info, and the pixels left by the warping. Counted by hand; the program prints the same.
HAND: dict[str, tuple[tuple[tuple[slice, slice], int] | None, int, float, float, float, dict[str, int]]] = {
    "identical": (None, 0, 1, 1, 1, {}),
    "boundary moved by 1 px": ((np.s_[4:28, 15:16], 255), 24, 1, 1, 1, {}),
    "gap of 4x2": ((np.s_[10:14, 15:17], 255), 8, 0.666667, 0.666667, 0, {"merge": 4}),
    "line": ((np.s_[15:16, 4:15], 0), 11, 0.844007, 0.844007, 0.7475166, {"split": 1}),
    "hole": ((np.s_[10:12, 8:10], 0), 4, 0.992439, 1, 1, {"hole_added": 4}),
    "left cell deleted": ((np.s_[4:28, 4:15], 0), 264, 0.668348, 0.666667, 0, {"object_deleted": 1}),
    "object added": ((np.s_[0:2, 0:2], 255), 4, 1, 1, 1, {"object_added": 4}),
}


@pytest.mark.parametrize("case", HAND)
@pytest.mark.parametrize("as_float", [False, True])
def test_a_case_counted_by_hand(case: str, as_float: bool) -> None:
    change, pixels, rand_f, v_rand, v_info, mismatches = HAND[case]
    truth = np.zeros((32, 32), np.uint8)
    truth[4:28, 4:15] = truth[4:28, 17:28] = 255
    proposal = truth.copy()
    if change is not None:
        where, value = change
        proposal[where] = value
    scores = isbi_scores(truth, proposal / 255 if as_float else proposal, thresholds=(0.5,))
    (pixel,), (rand,), (warping,), (v,) = (part.rows for part in (scores.pixel, scores.rand, scores.warping, scores.v))
    assert pixel.false_positives + pixel.false_negatives == pixels
    assert pixel.disagreement == pixels / 1024
    assert (rand.pairs.f, v.v_rand, v.v_info) == (about(rand_f), about(v_rand), about(v_info, 1e-7))
    assert {name: count for name, count in asdict(warping.mismatches).items() if count} == mismatches
    assert warping.classic_error == sum(mismatches.values()) / 1024
    assert warping.error == (mismatches.get("split", 0) + mismatches.get("merge", 0)) / 1024


def test_the_rand_f_of_the_line_by_hand() -> None:
    """Cells of 264 pixels, one cut into 121 + 132 + 11 singles: 264² + 121² + 132² + 11 pairs are found of 2 · 264²."""
    both, truth = 264**2 + 121**2 + 132**2 + 11, 2 * 264**2
    assert 2 * both / (both + truth) == about(HAND["line"][2])


def test_slices_weigh_the_same_in_v_rand_and_pairs_in_the_pooled_one() -> None:
    truth = np.zeros((2, 32, 32), np.uint8)
    truth[:, 4:28, 4:15] = truth[:, 4:28, 17:28] = 255
    prediction = truth.copy()
    prediction[0, 10:14, 15:17] = 255
    truth[1, 4:28, 4:15] = prediction[1, 4:28, 4:15] = 0
    counter = VCounter(thresholds=(0.5,))
    counter.add(truth, prediction)
    (row,) = counter.scores().rows
    assert row.v_rand == about((2 / 3 + 1) / 2)
    assert row.pooled.f == about(2 * 3 * 264**2 / (528**2 + 264**2 + 3 * 264**2))
