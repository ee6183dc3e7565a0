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
from unet_deploy.runtime._instance_passes import (
    InstanceJob,
    join_task,
    label_task,
    merge_blocks,
    number_pairs,
    prepare_instances,
    starts_of,
    write_task,
)
from unet_deploy.runtime.instances import InstanceRule, number_instances
from unet_deploy.runtime.plan import WriteGrid
from unet_deploy.runtime.scheduling import connect


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connect(None) as client:
        yield client


def run_passes(job: InstanceJob, *, orders: Any = None, table: Path | None = None) -> Any:
    n = job.grid.n_boxes
    label, join, write = orders or (range(n),) * 3
    counts = np.zeros(n, np.int64)
    for index in label:
        counts[index] = label_task(job, index)[1]
    starts = starts_of(counts)
    pairs = np.concatenate([number_pairs(starts, *join_task(job, index)) for index in join])
    result = merge_blocks(job, starts, pairs, table=table)
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


def serpent(shape: tuple[int, int, int, int]) -> Labels:
    """Return one object that goes through every block of each plane, corner to corner where rows turn, and specks."""
    labels = np.zeros(shape, np.uint8)
    labels[..., ::6, 1:-1] = 1
    for row in range(0, shape[2] - 6, 6):
        end = 0 if row % 12 else -1  # a step outside the row touches it by a corner
        labels[:, :, row + 1 : row + 6, end] = 1
    labels[:, :, 3::6, 5:-5:7] = 1
    labels[:, 1::2] = np.roll(labels[:, 1::2], 2, axis=2)
    return labels


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize("neighbours", ["face", "full"])
@pytest.mark.parametrize(
    ("shard", "zarr_format"), [((2, 16, 24), 3), (None, 3), (None, 2)], ids=["shards", "chunks", "v2"]
)
def test_scipy_finds_the_same_in_the_whole_volume(
    tmp_path: Path, client: Any, shard: tuple[int, int, int] | None, zarr_format: int, neighbours: Any, dimensions: Any
) -> None:
    labels = serpent((2, 3, 40, 53))  # no side is whole blocks
    grid = WriteGrid(chunk=(2, 8, 12), shard=shard)
    spec = write_labels(tmp_path / "out.zarr", labels, (2, 16, 24), grid=grid, zarr_format=zarr_format)
    rule = InstanceRule(classes=(1,), dimensions=dimensions, neighbours=neighbours)
    result = number_instances(spec, rule, client)

    reach = np.abs(np.indices((3, 3, 3, 3)) - 1)
    touches = (reach.sum(axis=0) <= 1) if neighbours == "face" else np.ones((3,) * 4, bool)
    through = touches & (reach[0] == 0) & ((reach[1] == 0) | (dimensions == 3))
    expected, count = ndimage.label(labels, structure=through)
    came = read_ids(spec)
    assert result.count == count
    assert np.array_equal(came > 0, expected > 0)
    pairs = np.unique(np.stack([came[expected > 0], expected[expected > 0].astype(np.uint32)]), axis=1)
    assert pairs.shape[1] == count  # the same up to renumbering: each of ours is one of scipy's
    assert np.array_equal(pairs[0], np.arange(1, count + 1))  # and dense
    first = [int(np.argmax(came.reshape(-1) == i)) for i in range(1, 1 + min(count, 40))]
    assert first == sorted(first)
    largest = came == np.bincount(came[came > 0]).argmax()
    blocks = {tuple(place // np.array([1, 2, 16, 24])) for place in np.argwhere(largest)}
    assert len(blocks) >= (3 if neighbours == "face" else 9)  # no test of joining otherwise


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
