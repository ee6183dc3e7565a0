"""Runs of a part: what they leave is gone on with, and blocks that are made again change nothing beside them."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.tiny import make_pixels, read_arrays, read_provenance, write_image
from unet_deploy.errors import InterruptedRunError
from unet_deploy.runtime import segment
from unet_deploy.runtime.execute import Progress
from unet_deploy.runtime.journal import journal_path, read_journal
from unet_deploy.runtime.region import parse_region

PLANES = 6
BLACK = 4
"""The plane without contrast, which is answered without the network."""


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    pixels = make_pixels((PLANES, 100, 90))
    pixels[BLACK] = 0
    return write_image(tmp_path / "v.zarr", pixels)


@pytest.fixture
def run(volume: Path, tiny_model: Path) -> Callable[..., Any]:
    def segment_it(output: str, **options: Any) -> Any:
        return segment(volume, model=tiny_model, output=volume.with_name(output), threads=1, **options)

    return segment_it


def blocks_written(output: Path) -> list[int]:
    """Return the blocks in the order in which they were done, those that were done once more again."""
    lines = [json.loads(line.partition(" ")[2]) for line in journal_path(output).read_text().splitlines()[1:]]
    return [line["block"] for line in lines if line["status"] != "pending"]


def assert_same(one: Path, other: Path) -> None:
    first, second = read_arrays(one), read_arrays(other)
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], err_msg=name)


def test_a_region_and_then_the_rest_is_the_whole(tmp_path: Path, run: Callable[..., Any]) -> None:
    whole, output = tmp_path / "whole.zarr", tmp_path / "out.zarr"
    run("whole.zarr")
    seen: list[Progress] = []
    part = run("out.zarr", region=parse_region("z=2:4"), progress=seen.append)
    assert [(p.done, p.total, p.failed) for p in seen if p.stage == "segment"] == [(1, 2, 0), (2, 2, 0)]
    assert part.status == read_provenance(output)["status"] == "region"
    assert sorted(blocks_written(output)) == [2, 3]
    another = run("out.zarr", region=parse_region("z=3:5"))
    assert another.status == "region"
    assert another.blocks_found == 1
    assert sorted(blocks_written(output)) == [2, 3, 4]
    rest = run("out.zarr")
    assert rest.status == read_provenance(output)["status"] == "complete"
    assert rest.blocks_found == 3
    assert sorted(blocks_written(output)) == list(range(PLANES))
    assert_same(output, whole)
    said = read_provenance(output)
    assert [p["blocks_done"] for p in said["parts"]] == [2, 3]
    assert [p["region"] for p in (*said["parts"], said)] == [{"z": [2, 4]}, {"z": [3, 5]}, None]
    seconds = [p["seconds"]["total"] for p in (*said["parts"], said)]  # each its own
    assert seconds == [pytest.approx(r.seconds["total"], abs=0.01) for r in (part, another, rest)]


def test_a_region_of_a_complete_output_is_made_again_and_nothing_else(
    tmp_path: Path, volume: Path, run: Callable[..., Any]
) -> None:
    output = tmp_path / "out.zarr"
    before = run("out.zarr")
    arrays = read_arrays(output)
    again = run("out.zarr", region=parse_region("z=1:3"), overwrite=True)
    assert again.status == "complete"
    assert again.pixels == 2 * 100 * 90
    assert sorted(blocks_written(output)[PLANES:]) == [1, 2]
    assert again.class_fractions == before.class_fractions  # a block that is done again does not count twice
    for name, values in read_arrays(output).items():
        np.testing.assert_array_equal(values, arrays[name], err_msg=name)


def test_an_output_is_no_result_while_a_part_of_it_is_made_again(tmp_path: Path, run: Callable[..., Any]) -> None:
    output = tmp_path / "out.zarr"
    run("out.zarr")
    asked = iter(range(100))
    with pytest.raises(InterruptedRunError, match=r"^stopped with \d of 5 blocks done"):
        run("out.zarr", region=parse_region("z=1:6"), overwrite=True, should_stop=lambda: next(asked) > 1)
    assert read_provenance(output)["status"] == "running"
    assert run("out.zarr").status == "complete"  # every block is there, so only the end is made
    first, broken_off = read_provenance(output)["parts"]
    assert (first["region"], broken_off["region"]) == (None, {"z": [1, 6]})
    assert (first["seconds"]["total"] > 0, broken_off["seconds"]) == (True, None)


def test_what_is_left_is_counted(tmp_path: Path, volume: Path, run: Callable[..., Any]) -> None:
    """Blocks that were done before are not left, wherever they stand in the order, nor are those that ran."""
    run("out.zarr", region=parse_region("z=3:5"))
    asked = iter(range(100))
    with pytest.raises(InterruptedRunError) as caught:
        run("out.zarr", should_stop=lambda: next(asked) > 1)
    done = len(set(blocks_written(tmp_path / "out.zarr")))
    assert 2 < done < PLANES
    assert str(caught.value).startswith(f"stopped with {done} of {PLANES} blocks done")


def test_what_is_left_of_a_run_that_was_paused_is_counted_too(tmp_path: Path, run: Callable[..., Any]) -> None:
    run("out.zarr", region=parse_region("z=3:5"))
    asked = iter(range(100))
    with pytest.raises(InterruptedRunError, match=rf"^stopped with 2 of {PLANES} blocks done"):
        run("out.zarr", should_pause=lambda: True, should_stop=lambda: next(asked) > 1)
    assert sorted(blocks_written(tmp_path / "out.zarr")) == [3, 4]


def test_measures_of_each_block(tmp_path: Path, volume: Path, run: Callable[..., Any]) -> None:
    run("out.zarr", table=tmp_path / "blocks.csv")
    arrays, pixels = read_arrays(tmp_path / "out.zarr"), read_arrays(volume)["0"]
    journal = read_journal(tmp_path / "out.zarr")
    assert journal is not None
    records = list(journal.iter_records())
    labels, probabilities = arrays["labels/segmentation/0"], arrays["0"]
    winning = probabilities.max(axis=probabilities.shape.index(2))
    for record in records:
        z = record.index
        assert record.class_counts == tuple(np.bincount(labels[z].ravel(), minlength=2))
        assert record.confidence == pytest.approx(winning[z].mean() / 255, abs=1e-6)
        assert record.saturated == pytest.approx(((pixels[z] == 0) | (pixels[z] == 255)).mean(), abs=1e-6)
    assert [record.status for record in records] == ["empty" if z == BLACK else "done" for z in range(PLANES)]
    assert records[BLACK].saturated == 1.0
    assert journal.class_totals == tuple(np.bincount(labels.ravel(), minlength=2))
    with (tmp_path / "blocks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == [record.status for record in records]
    assert [float(row["foreground_fraction"]) for row in rows] == pytest.approx(
        [(labels[z] != 0).mean() for z in range(PLANES)], abs=1e-6
    )


def test_measures_that_there_are_no_numbers_for(tmp_path: Path, tiny_model: Path) -> None:
    write_image(tmp_path / "f.zarr", make_pixels((1, 70, 80)).astype(np.float32))
    options: dict[str, Any] = {"model": tiny_model, "threads": 1, "input_range": (0, 255)}
    for kind in ("labels", "probabilities"):
        segment(tmp_path / "f.zarr", output=tmp_path / f"{kind}.zarr", write=[kind], **options)
        journal = read_journal(tmp_path / f"{kind}.zarr")
        assert journal is not None
        (record,) = journal.iter_records()
        assert record.saturated is None
        assert (record.confidence is None) == (kind == "labels")
        assert (record.class_counts == ()) == (kind == "probabilities")
