"""Objects numbered block by block are those of the whole volume, whatever the blocks, their order and their number."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from tests.labelled import CLASSES, Labels, read_ids, whole, write_labels
from unet_deploy.runtime.instances import (
    InstanceJob,
    InstanceRule,
    join_task,
    label_task,
    merge_blocks,
    number_instances,
    prepare_instances,
    write_task,
)
from unet_deploy.runtime.scheduling import connect


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connect(None) as client:
        yield client


def run_passes(job: InstanceJob, *, orders: Any = None, table: Path | None = None) -> Any:
    n = job.grid.n_boxes
    label, join, write = orders or (range(n),) * 3
    for index in label:
        label_task(job, index)
    result = merge_blocks(job, [join_task(job, index) for index in join], table=table)
    for index in write:
        write_task(job, index)
    return result


@st.composite
def volumes(draw: st.DrawFn) -> tuple[Labels, tuple[int, int, int]]:
    shape = draw(st.tuples(*(st.integers(1, n) for n in (2, 7, 17, 19))))
    n_classes = draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.sampled_from([0.1, 0.4, 0.6, 0.9]))
    noise = np.where(rng.random(shape) < share, rng.integers(1, n_classes, shape), 0).astype(np.uint8)
    if draw(st.booleans()):  # larger objects: the same label over boxes of pixels
        noise = noise.repeat(2, axis=2).repeat(3, axis=3)[:, :, : shape[2], : shape[3]]
    block = draw(st.tuples(st.integers(1, 4), st.integers(3, 9), st.integers(4, 10)))
    return noise, block


RULES = st.builds(
    InstanceRule,
    classes=st.sets(st.integers(1, 3), min_size=1).map(lambda found: tuple(sorted(found))),
    dimensions=st.sampled_from([2, 3]),
    neighbours=st.sampled_from(["face", "full"]),
    min_size=st.sampled_from([0, 1, 2, 5]),
)


@settings(max_examples=40)
@given(volumes(), RULES, st.randoms(use_true_random=False))
def test_they_are_those_of_the_whole_volume(
    volume: tuple[Labels, tuple[int, int, int]], rule: InstanceRule, random: Any
) -> None:
    labels, block = volume
    with TemporaryDirectory() as folder:
        spec = write_labels(Path(folder) / "out.zarr", labels, block)
        job = prepare_instances(spec, rule)
        n = job.grid.n_boxes
        orders = [random.sample(range(n), n) for _ in range(3)]
        result = run_passes(job, orders=orders, table=Path(folder) / "objects.csv")
        expected = whole(labels, rule)
        assert np.array_equal(read_ids(spec), expected)
        assert result.count == expected.max()
        check_table(Path(folder) / "objects.csv", labels, expected)


def check_table(path: Path, labels: Labels, expected: npt.NDArray[np.int64]) -> None:
    rows = [*csv.DictReader(path.read_text(encoding="utf-8").splitlines())]
    assert [int(row["id"]) for row in rows] == [*range(1, int(expected.max()) + 1)]
    for row, place in zip(rows, ndimage.find_objects(expected.astype(np.int32)), strict=True):
        pixels = np.argwhere(expected == int(row["id"]))
        assert row["class"] == CLASSES[labels[tuple(pixels[0])]].name
        assert int(row["pixels"]) == len(pixels)
        assert int(row["t"]) == place[0].start == place[0].stop - 1
        for i, axis in enumerate("zyx", 1):
            assert (int(row[f"{axis}_start"]), int(row[f"{axis}_stop"])) == (place[i].start, place[i].stop)
            assert float(row[axis]) == pytest.approx(pixels[:, i].mean(), abs=6e-4)


@settings(max_examples=10)
@given(volumes(), RULES)
def test_a_single_block_gives_the_same_as_many(volume: tuple[Labels, tuple[int, int, int]], rule: InstanceRule) -> None:
    labels, block = volume
    _, z, y, x = labels.shape
    with TemporaryDirectory() as folder:
        many, one = (write_labels(Path(folder) / name, labels, size) for name, size in (("a", block), ("b", (z, y, x))))
        for spec in (many, one):
            run_passes(prepare_instances(spec, rule))
        assert np.array_equal(read_ids(many), read_ids(one))


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("neighbours", ["face", "full"])
def test_a_pass_that_was_broken_off_may_be_done_again(tmp_path: Path, dimensions: Any, neighbours: Any) -> None:
    labels = np.random.default_rng(3).integers(0, 3, (1, 6, 30, 30)).astype(np.uint8)
    rule = InstanceRule(classes=(1, 2), dimensions=dimensions, neighbours=neighbours, min_size=3)
    spec = write_labels(tmp_path / "out.zarr", labels, (2, 8, 8))
    job = prepare_instances(spec, rule)
    n = job.grid.n_boxes
    half = [*range(0, n, 2)]
    run_passes(job, orders=([*half, *range(n)], [*range(n)], half))
    before = {path.name: path.read_bytes() for path in job.folder.iterdir()}
    run_passes(job, orders=(range(n), reversed(range(n)), [*half, *reversed(range(n)), *half]))
    assert {path.name: path.read_bytes() for path in job.folder.iterdir()} == before
    assert len(before) == n + 2
    assert np.array_equal(read_ids(spec), whole(labels, rule))


@pytest.mark.parametrize(
    ("fill", "count"), [(0, 0), (1, 1), (3, 0)], ids=["nothing", "one object", "only a class that does not count"]
)
def test_empty_and_full_volumes(tmp_path: Path, client: Any, fill: int, count: int) -> None:
    spec = write_labels(tmp_path / "out.zarr", np.full((1, 5, 33, 47), fill, np.uint8), (2, 16, 16))
    rule = InstanceRule(classes=(1, 2), dimensions=3)
    result = number_instances(spec, rule, client, table=tmp_path / "objects.csv")
    assert (result.count, result.by_class) == (count, {"nucleus": count, "membrane": 0})
    assert (read_ids(spec) == count).all()
    assert len((tmp_path / "objects.csv").read_text().splitlines()) == 1 + count


def test_more_objects_than_16_bits_hold(tmp_path: Path, client: Any) -> None:
    labels = np.zeros((1, 1, 520, 600), np.uint8)
    labels[..., ::2, ::2] = 1
    labels[..., 3, :] = 1  # joins two rows of objects, through many blocks
    rule = InstanceRule(classes=(1,))
    spec = write_labels(tmp_path / "out.zarr", labels, (1, 64, 64))
    result = number_instances(spec, rule, client)
    expected = whole(labels, rule)
    assert result.count == expected.max() > 2**16
    assert np.array_equal(read_ids(spec), expected)
