"""Numbered objects: the label image they make, the words of every refusal, and the cases that random volumes miss."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import ome_zarr_models.v04
import ome_zarr_models.v05
import pytest
import zarr

from tests.labelled import CLASSES, Labels, read_ids, whole, write_labels
from tests.tiny import write_array
from unet_deploy.errors import (
    ConfigurationError,
    InterruptedRunError,
    MissingDependencyError,
    ReadError,
    UnknownNameError,
)
from unet_deploy.geometry import Interval
from unet_deploy.runtime import Progress, open_volume, segment
from unet_deploy.runtime._atomic_file import AtomicFile
from unet_deploy.runtime._box_grid import Box, BoxGrid
from unet_deploy.runtime._instance_blocks import OBJECT, STRIP_PIXELS, label_block, summarise_block
from unet_deploy.runtime._instance_merge import merge_pieces, write_table
from unet_deploy.runtime._instance_passes import (
    join_task,
    label_task,
    merge_blocks,
    number_pairs,
    prepare_instances,
    starts_of,
    write_task,
)
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.instances import InstanceRule, finish_instances, number_instances, require_rule
from unet_deploy.runtime.output import finish_output, mark_running, write_block
from unet_deploy.runtime.plan import Extents, SegmentationPlan, WriteGrid
from unet_deploy.runtime.pyramid import reduce_mode
from unet_deploy.runtime.scheduling import connect

RULE = InstanceRule(classes=(1,))


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connect(None) as client:
        yield client


def discs(shape: tuple[int, int], *, step: int = 24) -> Labels:
    y, x = np.indices(shape) % step - step // 2
    return (y**2 + x**2 < (step // 2 - 2) ** 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("zarr_format", "axes", "shard"),
    [(2, "yx", None), (3, "yx", (1, 144, 160)), (2, "tzyx", None), (3, "zyx", None)],
)
def test_they_are_a_label_image_beside_the_classes(
    tmp_path: Path, client: Any, zarr_format: int, axes: str, shard: tuple[int, int, int] | None
) -> None:
    grid = WriteGrid(chunk=(1, 72, 80), shard=shard)
    labels = np.broadcast_to(discs((1200, 336)), (2 if "t" in axes else 1, 2 if "z" in axes else 1, 1200, 336))
    spec = write_labels(tmp_path / "out.zarr", labels, (1, 144, 160), grid=grid, axes=axes, zarr_format=zarr_format)
    seen: list[Progress] = []
    result = number_instances(spec, RULE, client, progress=seen.append)
    finish_output(spec, provenance={"status": "complete"}, source=None)
    before = zarr.open_group(tmp_path / "out.zarr/labels", mode="r").attrs.asdict()
    assert before.get("ome", before)["labels"] == ["segmentation"]  # not listed before all of it is there
    finish_instances(spec, provenance=result.to_object(RULE), source="../../")

    assert spec.n_levels > 1 + spec.n_block_levels  # some levels are made by blocks, some by passes of their own
    expected = whole(labels, RULE).astype(np.uint32)
    assert result.count == expected.max() == labels.shape[0] * labels.shape[1] * 50 * 14
    for level in range(spec.n_levels):
        came = read_ids(spec, level)
        assert came.dtype == np.uint32
        assert np.array_equal(came, expected.reshape(came.shape)), level
        expected = reduce_mode(expected)
    assert (seen[-1].done, seen[-1].stage, seen[-1].pixels) == (seen[-1].total, "instances", labels.size)

    models: Any = ome_zarr_models.v04 if zarr_format == 2 else ome_zarr_models.v05
    group = zarr.open_group(tmp_path / "out.zarr", mode="r")
    assert models.Labels.from_zarr(group["labels"]).attributes is not None
    image = models.ImageLabel.from_zarr(group["labels/instances"])
    assert image is not None
    provenance: Any = group["labels/instances"].attrs["unet_deploy"]
    assert provenance == {
        "classes": [1], "dimensions": 2, "neighbours": "face", "min_size": 0,
        "objects": result.count, "by_class": {"nucleus": result.count}, "dropped": 0, "instances_of": "segmentation",
    }  # fmt: skip
    again = open_volume(tmp_path / "out.zarr/labels/instances", dtypes=("uint32",))
    assert again.info.axes == axes
    left = {path.name for path in (tmp_path / "out.zarr/unet_deploy_run").iterdir()}
    assert left <= {"journal.jsonl", "zarr.json", ".zarray", ".zattrs"}  # nothing of the passes


def test_numbering_again_with_another_rule_leaves_nothing_of_the_first(tmp_path: Path, client: Any) -> None:
    labels = discs((96, 96))[None, None]
    labels[..., :24, :24] *= 2
    spec = write_labels(tmp_path / "out.zarr", labels, (1, 32, 32), axes="yx")
    first = number_instances(spec, InstanceRule(classes=(1, 2)), client)
    finish_output(spec, provenance={}, source=None)
    finish_instances(spec, provenance={}, source=None)
    mark_running(spec, {"model": "m"})
    assert not (tmp_path / "out.zarr/labels/instances").exists()  # its labels may change
    second = number_instances(spec, InstanceRule(classes=(2,)), client)
    attributes: Any = zarr.open_group(tmp_path / "out.zarr/labels", mode="r").attrs["ome"]
    assert attributes["labels"] == ["segmentation"]
    assert (first.by_class, second.by_class) == ({"nucleus": 15, "membrane": 1}, {"membrane": 1})
    assert np.array_equal(read_ids(spec), whole(labels, InstanceRule(classes=(2,)))[0, 0])


def test_small_objects_are_dropped_by_their_whole_size(tmp_path: Path, client: Any) -> None:
    labels = np.zeros((1, 1, 8, 32), np.uint8)
    labels[0, 0, 1, 6:10] = 1  # 4 pixels, 2 in each of two blocks
    labels[0, 0, 5, 1:4] = 1
    spec = write_labels(tmp_path / "out.zarr", labels, (1, 8, 8), axes="yx")
    result = number_instances(spec, InstanceRule(classes=(1,), min_size=4), client, table=tmp_path / "objects.csv")
    assert (result.count, result.dropped) == (1, 1)
    assert read_ids(spec)[1].tolist() == [0] * 6 + [1] * 4 + [0] * 22
    assert (tmp_path / "objects.csv").read_text().splitlines() == [
        "id,class,pixels,y_start,y_stop,x_start,x_stop,y,x",
        "1,nucleus,4,1,2,6,10,1.000,7.500",
    ]
    assert [*tmp_path.glob("*.partial")] == []


@pytest.mark.parametrize(("neighbours", "count"), [("face", 2), ("full", 1)])
def test_a_corner_of_four_blocks_is_touched_by_full_neighbours_only(
    tmp_path: Path, client: Any, neighbours: Any, count: int
) -> None:
    for mirrored in (False, True):
        labels = np.zeros((1, 1, 16, 16), np.uint8)
        labels[0, 0, 7, 7] = labels[0, 0, 8, 8] = 1
        spec = write_labels(
            tmp_path / f"{mirrored}.zarr", labels[..., ::-1] if mirrored else labels, (1, 8, 8), axes="yx"
        )
        assert number_instances(spec, InstanceRule(classes=(1,), neighbours=neighbours), client).count == count


def test_the_grid_has_the_blocks_of_a_plan() -> None:
    extents = Extents(t=2, z=5, y=70, x=100)
    from unet_deploy.card import Network

    plan = SegmentationPlan(
        network=Network(depth=2, base_width=1, in_channels=1, classes=2),
        extents=extents,
        grid=WriteGrid(chunk=(2, 32, 32)),
        tile_y=60,
        tile_x=60,
        batch=1,
        block_shape=(2, 32, 64),
    )
    grid = BoxGrid(extents=extents, box=plan.block_shape)
    assert grid.n_boxes == plan.n_blocks == 2 * 3 * 3 * 2
    for ours, block in zip(map(grid.at, range(grid.n_boxes)), plan.blocks(), strict=True):
        assert (ours.index, ours.t, ours.z, ours.y, ours.x) == (block.index, block.t, block.z, block.y, block.x)
    assert grid.neighbour(0, (1, 1, 1)) == 9
    assert grid.neighbour(9, (-1, -1, -1)) == 0
    assert grid.neighbour(17, (1, 0, 0)) is None  # through z, never through t


def test_a_block_is_measured_in_strips() -> None:
    labels = np.zeros((1, 3, STRIP_PIXELS), np.uint8)
    labels[0, :, 5] = 1
    labels[0, 1, 2:-1] = 1
    ids, counts = label_block(labels, RULE)
    place = Box(index=0, t=1, z=Interval(4, 5), y=Interval(10, 13), x=Interval(100, 100 + STRIP_PIXELS))
    extents = Extents(t=2, z=5, y=13, x=100 + STRIP_PIXELS)
    (found,) = summarise_block(labels, ids, counts, place, extents=extents, rule=RULE).objects
    assert int(found["pixels"]) == STRIP_PIXELS - 3 + 2
    assert int(found["first"]) == ((1 * 5 + 4) * 13 + 10) * extents.x + 105
    assert found["start"].tolist() == [4, 10, 102]
    assert found["stop"].tolist() == [5, 13, extents.x - 1]
    columns = np.arange(2, STRIP_PIXELS - 1)
    assert found["sum"].tolist() == [4 * found["pixels"], 11 * found["pixels"], (columns + 100).sum() + 2 * 105]


def test_labels_that_change_meanwhile_are_an_error(tmp_path: Path) -> None:
    spec = write_labels(tmp_path / "out.zarr", discs((48, 48))[None, None], (1, 24, 24), axes="yx")
    job = prepare_instances(spec, RULE)
    n = job.grid.n_boxes
    starts = starts_of(np.array([label_task(job, index)[1] for index in range(n)]))
    pairs = np.concatenate([number_pairs(starts, *join_task(job, index)) for index in range(n)])
    merge_blocks(job, starts, pairs, table=None)
    everywhere = {"t": 0, "z": Interval(0, 1), "y": Interval(24, 48), "x": Interval(24, 48)}
    write_block(spec, **everywhere, labels=np.ones((1, 24, 24), np.uint8), probabilities=None)  # type: ignore[arg-type]
    write_task(job, 0)
    with pytest.raises(ReadError, match="the labels of block 3 changed while objects were numbered") as caught:
        write_task(job, 3)
    assert str(Path("labels") / "segmentation") in str(caught.value)
    assert "fix: let nothing else write there, then number the objects again" in str(caught.value)


@pytest.mark.parametrize("asked", [1, 5, 9])
def test_numbering_can_be_stopped_in_any_pass(tmp_path: Path, client: Any, asked: int) -> None:
    labels = discs((48, 48))[None, None]
    spec = write_labels(tmp_path / "out.zarr", labels, (1, 24, 24), axes="yx")
    seen: list[Progress] = []
    with pytest.raises(InterruptedRunError, match=r"^stopped while objects were numbered\n  the labels in ") as caught:
        number_instances(spec, RULE, client, should_stop=lambda: len(seen) + 1 >= asked, progress=seen.append)
    assert len(seen) >= asked - 1
    assert caught.value.details == (f"the labels in {spec.path} are finished, their objects are not",)
    assert caught.value.fix == "the same command numbers them from the start; --overwrite starts anew"
    assert number_instances(spec, RULE, client).count == 4
    assert np.array_equal(read_ids(spec), whole(labels, RULE)[0, 0])


def test_labels_that_cannot_be_read_are_an_error(tmp_path: Path, client: Any) -> None:
    spec = write_labels(tmp_path / "out.zarr", discs((48, 48))[None, None], (1, 24, 24), axes="yx")
    (tmp_path / "out.zarr/labels/segmentation/0/c/1/0").write_bytes(b"no chunk")
    with pytest.raises(ReadError, match="the window y 24:48, x 0:24 cannot be read"):
        number_instances(spec, RULE, client)


def test_more_objects_than_can_be_numbered_are_refused() -> None:
    pieces = np.zeros(4, OBJECT)
    pieces["pixels"], pieces["first"] = 5, np.arange(4)
    pairs = np.array([[0, 2]])
    assert merge_pieces(pieces, pairs, min_size=0, max_objects=3).ids.tolist() == [1, 2, 1, 3]
    with pytest.raises(ConfigurationError, match="3 objects came, at most 2 can be numbered") as caught:
        merge_pieces(pieces, pairs, min_size=0, max_objects=2)
    assert "an id is 32 bits" in str(caught.value)
    assert "fix: drop specks: a smallest object of more than 0 px" in str(caught.value)


def test_a_chain_of_a_million_pieces_is_one_object() -> None:
    n = 10**6
    pieces = np.zeros(n, OBJECT)
    pieces["pixels"], pieces["first"] = 1, np.arange(n)[::-1]
    pairs = np.stack([np.arange(n - 1), np.arange(1, n)], axis=1)
    found = merge_pieces(pieces, pairs, min_size=0)
    assert found.objects["pixels"].tolist() == [n]
    assert found.objects["first"].tolist() == [0]
    assert set(found.ids.tolist()) == {1}


def test_a_file_that_was_broken_off_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "numbers"
    path.write_bytes(b"before")

    def write_half() -> None:
        with AtomicFile(path) as file:
            file.write(b"half of it")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert path.read_bytes() == b"before"
    assert [*tmp_path.iterdir()] == [path]


def test_a_table_of_a_volume_through_time_says_when(tmp_path: Path) -> None:
    objects = np.zeros(1, OBJECT)
    objects["label"], objects["pixels"], objects["first"] = 1, 1, 3 * 20 + 7
    extents = Extents(t=4, z=1, y=4, x=5)
    write_table(tmp_path / "t.csv", objects, axes="tyx", extents=extents, class_names=["background", "cell, round"])
    header, row = (tmp_path / "t.csv").read_text().splitlines()
    assert header == "id,class,pixels,t,y_start,y_stop,x_start,x_stop,y,x"
    assert row.startswith('1,"cell, round",1,3,')


class WithoutScipy:
    def find_spec(self, name: str, *_: object) -> ModuleSpec | None:
        if name.partition(".")[0] == "scipy":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


@pytest.fixture
def without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment in which SciPy is not installed."""
    for module in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [WithoutScipy(), *sys.meta_path])


@pytest.mark.usefixtures("without_scipy")
def test_a_missing_package_names_the_extra(tmp_path: Path, client: Any) -> None:
    spec = write_labels(tmp_path / "out.zarr", np.ones((1, 1, 8, 8), np.uint8), (1, 8, 8), axes="yx")
    with pytest.raises(MissingDependencyError, match="numbering objects needs the package 'scipy'") as caught:
        number_instances(spec, RULE, client)
    assert "pip install 'unet-deploy[instances]'" in str(caught.value)
    assert not (tmp_path / "out.zarr/labels/instances").exists()  # before anything is written


@pytest.mark.usefixtures("without_scipy")
def test_a_missing_package_is_said_before_the_segmentation(
    tmp_path: Path, fake_artifact: Callable[..., Artifact], fake_factory: Callable[[Artifact], FakeEngine]
) -> None:
    volume = write_array(tmp_path / "v.zarr", np.zeros((1, 20, 20), np.uint8))
    asked: list[Progress] = []
    with pytest.raises(MissingDependencyError, match="numbering objects needs the package 'scipy'"):
        segment(
            volume,
            model=fake_artifact(),
            write=("labels", "instances"),
            engine_factory=fake_factory,
            progress=asked.append,
        )
    assert [path.name for path in tmp_path.iterdir()] == ["v.zarr"]
    assert asked == []
    whole = segment(volume, model=fake_artifact(), write=("labels",), engine_factory=fake_factory)
    assert whole.status == "complete"  # labels alone need no SciPy


def test_settings_become_a_rule() -> None:
    assert require_rule(CLASSES) == InstanceRule(classes=(1, 2, 3))
    came = require_rule(CLASSES, objects=["debris", 1, "1"], dimensions=3, neighbours="full", min_size=7)
    assert came == InstanceRule(classes=(1, 3), dimensions=3, neighbours="full", min_size=7)
    assert require_rule(CLASSES, objects=[0]).classes == (0,)  # the background's own regions, if one likes


def test_an_unknown_class_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="unknown class: 'nuclei'") as caught:
        require_rule(CLASSES, objects=["nuclei"])
    assert "did you mean 'nucleus'?" in str(caught.value)


def test_settings_that_cannot_be_meant_are_refused_together() -> None:
    with pytest.raises(ConfigurationError) as caught:
        require_rule(CLASSES, objects=[4, "-1"], dimensions=4, neighbours="corner", min_size=-1)
    assert str(caught.value).splitlines() == [
        "objects cannot be numbered so: class 4 does not exist: "
        "the model has 0 (background), 1 (nucleus), 2 (membrane), 3 (debris)",
        "  class -1 does not exist: the model has 0 (background), 1 (nucleus), 2 (membrane), 3 (debris)",
        "  objects of 4 dimensions: 2 (of single planes) or 3 (through z) was expected",
        "  neighbours 'corner': face or full was expected",
        "  smallest object of -1 px: the size cannot be negative",
        "  fix: leave the setting out: every class but the first, in single planes, by shared sides, of any size",
    ]
