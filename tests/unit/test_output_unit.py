"""Where an output may go, how its arrays are laid out, and what a pyramid's pixels are."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unet_deploy.card import ClassInfo
from unet_deploy.errors import NoSpaceError, OutputExistsError, OutputPathError
from unet_deploy.geometry import Interval
from unet_deploy.runtime._box_grid import BoxGrid
from unet_deploy.runtime.disk_space import check_space, full_disk_named
from unet_deploy.runtime.layout import PROVENANCE_KEY, SMALLEST_LEVEL, OutputSpec
from unet_deploy.runtime.output import create_output, downsample_region, finish_output, list_regions, write_block
from unet_deploy.runtime.output_paths import GROUP_FILES, check_output_path, is_stillborn, read_provenance
from unet_deploy.runtime.plan import Extents, WriteGrid
from unet_deploy.runtime.pyramid import reduce_mean, reduce_mode
from unet_deploy.runtime.region import parse_region

Pixels = npt.NDArray[np.uint8]


def make_spec(folder: Path, **changes: Any) -> OutputSpec:
    """Return the output of a small zyx volume of Zarr v3; `shape` and `chunk` are short for extents and grid."""
    shape, chunk = changes.pop("shape", (2, 40, 50)), changes.pop("chunk", (1, 16, 16))
    shard = changes.pop("shard", None)
    grid = WriteGrid(chunk=chunk, shard=shard)
    spec = OutputSpec(
        path=str(folder / "out.zarr"),
        zarr_format=3,
        ome_version="0.5",
        kinds=("labels", "probabilities"),
        name="brain",
        axes="zyx",
        extents=Extents(t=1, z=shape[0], y=shape[1], x=shape[2]),
        grid=grid,
        block=changes.pop("block", grid.unit),
        classes=(ClassInfo(name="a", colour="#000000"), ClassInfo(name="b", colour="#ff0000")),
        scale=(1.0, 1.0, 1.0),
        translation=(0.0, 0.0, 0.0),
        units=(None, None, None),
    )
    return replace(spec, **changes)


def write_group(path: Path, **attributes: Any) -> Path:
    zarr.create_group(path, attributes=attributes)
    return path


def read(spec: OutputSpec, path: str) -> Pixels:
    return np.asarray(zarr.open_array(spec.path, path=path, mode="r")[...])


# Where it may go.


@pytest.mark.parametrize(
    "output", ["brain.zarr", "brain.zarr/labels", "brain.zarr/a/b", ".", "brain.zarr/../brain.zarr"]
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_output_and_volume_do_not_lie_inside_each_other(tmp_path: Path, output: str, overwrite: bool) -> None:
    volume = write_group(tmp_path / "brain.zarr")
    with pytest.raises(
        OutputPathError,
        match=r"^the output .* and the volume .* lie inside each other\n  writing there would change or",
    ) as caught:
        check_output_path(tmp_path / output, volume=volume, overwrite=overwrite)
    assert caught.value.fix == f"--output {tmp_path / 'brain_segmentation.ome.zarr'}"
    assert volume.is_dir()


def test_names_that_begin_alike_are_not_inside_each_other(tmp_path: Path) -> None:
    volume = write_group(tmp_path / "brain")
    check_output_path(tmp_path / "brain_segmentation.ome.zarr", volume=volume, overwrite=False)
    check_output_path(tmp_path / "bra", volume=volume, overwrite=False)


@pytest.mark.parametrize("place", ["new.zarr", "a/new.zarr"])
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_another_store_is_no_place_for_it(tmp_path: Path, place: str, zarr_format: Any) -> None:
    other = tmp_path / "other.zarr"
    zarr.create_group(other, zarr_format=zarr_format).create_group("a")
    with pytest.raises(
        OutputPathError, match=r"lies inside the Zarr store .*other\.zarr\n  a store is changed"
    ) as caught:
        check_output_path(other / place, volume=tmp_path / "brain.zarr", overwrite=False)
    assert caught.value.fix == f"--output {tmp_path / 'new_segmentation.ome.zarr'}"


def test_the_folder_must_exist(tmp_path: Path) -> None:
    output = tmp_path / "not there" / "out.zarr"
    with pytest.raises(OutputPathError, match=r"^the folder of the output .*out\.zarr does not exist\n") as caught:
        check_output_path(output, volume=tmp_path / "brain.zarr", overwrite=True)
    assert caught.value.details == (f"{output.parent} was expected to be a folder",)
    assert caught.value.fix == "create it, or choose another --output"


@pytest.mark.parametrize("what", ["file", "folder", "segmentation"])
def test_what_exists_stays(tmp_path: Path, what: str) -> None:
    output = tmp_path / "out.zarr"
    if what == "file":
        output.write_text("precious")
    elif what == "folder":
        output.mkdir()
    else:
        write_group(output, **{PROVENANCE_KEY: {}})
    with pytest.raises(OutputExistsError, match=r"^the output .*out\.zarr exists\n  nothing was written\n") as caught:
        check_output_path(output, volume=tmp_path / "brain.zarr", overwrite=False)
    assert caught.value.fix == "choose another --output, or replace it with --overwrite"
    assert output.exists()


@pytest.mark.parametrize("what", ["file", "folder", "group", "array", "damaged", "odd"])
def test_only_a_segmentation_of_ours_may_be_replaced(tmp_path: Path, what: str) -> None:
    output = tmp_path / "out.zarr"
    if what == "file":
        output.write_text("precious")
    elif what == "array":
        zarr.create_array(output, shape=(2,), dtype="uint8")
    elif what == "group":
        write_group(output, someone="else's")
    elif what == "odd":
        write_group(output, **{PROVENANCE_KEY: "text"})
    else:
        output.mkdir()
        if what == "damaged":
            (output / "zarr.json").write_text("{")
    with pytest.raises(
        OutputPathError,
        match=r"out\.zarr is no segmentation written by unet-deploy, so --overwrite does not delete it\n"
        r"  a Zarr group with the attribute 'unet_deploy' was expected\n",
    ) as caught:
        check_output_path(output, volume=tmp_path / "brain.zarr", overwrite=True)
    assert caught.value.fix == "choose another --output, or remove it yourself"


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_one_that_was_half_deleted_is_still_ours(tmp_path: Path, zarr_format: Any) -> None:
    spec = make_spec(tmp_path, zarr_format=zarr_format, ome_version="0.5" if zarr_format == 3 else "0.4")
    path = Path(spec.path)
    create_output(spec, fingerprint={}, provenance={}, overwrite=False).close()
    finish_output(spec, provenance={"status": "complete"}, source=None)
    held = [entry.name for entry in path.iterdir() if entry.name not in (*GROUP_FILES, "unet_deploy_run")]
    assert len(held) > 1
    for name in held:  # in the order of `create_output`, and killed after each
        shutil.rmtree(path / name)
        assert read_provenance(path) is not None
        check_output_path(path, volume=tmp_path / "brain.zarr", overwrite=True)
    for file in [entry for entry in path.iterdir() if entry.name in GROUP_FILES]:
        check_output_path(path, volume=tmp_path / "brain.zarr", overwrite=True)
        file.unlink()
    assert is_stillborn(path)
    check_output_path(path, volume=tmp_path / "brain.zarr", overwrite=False)


def test_ours_may_be_replaced(tmp_path: Path) -> None:
    output = write_group(tmp_path / "out.zarr", **{PROVENANCE_KEY: {"status": "running"}})
    check_output_path(output, volume=tmp_path / "brain.zarr", overwrite=True)
    assert read_provenance(output) == {"status": "running"}
    assert read_provenance(tmp_path) is None


def test_the_disk_must_hold_it(tmp_path: Path) -> None:
    check_space(make_spec(tmp_path))
    huge = make_spec(tmp_path, shape=(10**6, 10**6, 10**6))
    assert huge.raw_bytes > shutil.disk_usage(tmp_path).free
    with pytest.raises(
        NoSpaceError,
        match=r"^the result may take 3,999,999,[\d.]+ GB, [\d,]+\.\d GB are free\n"
        r"  at .*out\.zarr; uncompressed size of labels and probabilities with pyramid\n",
    ) as caught:
        check_space(huge)
    assert "--output on another disk" in caught.value.fix
    assert not Path(huge.path).exists()


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = make_spec(tmp_path, path=str(tmp_path / "file" / "out.zarr"))
    with pytest.raises(
        OutputPathError, match=r"^the output .*out\.zarr cannot be written: .+\n  \w+Error at .+\n"
    ) as caught:
        create_output(spec, fingerprint={}, provenance={}, overwrite=True).close()
    assert caught.value.fix == "choose an --output where you may write"


# How it is laid out.


@pytest.mark.parametrize(
    ("y", "x", "levels"), [(1, 1, 1), (512, 512, 1), (513, 1, 2), (1, 1024, 2), (1025, 7, 3), (16384, 16384, 6)]
)
def test_the_smallest_level_fits_a_screen(tmp_path: Path, y: int, x: int, levels: int) -> None:
    spec = make_spec(tmp_path, shape=(3, y, x))
    assert spec.n_levels == levels
    last = spec.level_extents(levels - 1)
    assert max(last.y, last.x) <= SMALLEST_LEVEL
    assert levels == 1 or max(spec.level_extents(levels - 2).y, spec.level_extents(levels - 2).x) > SMALLEST_LEVEL
    assert {spec.level_extents(level).z for level in range(levels)} == {3}


@given(y=st.integers(1, 5000), x=st.integers(1, 5000))
def test_a_level_has_half_the_pixels_rounded_up(y: int, x: int) -> None:
    spec = make_spec(Path(), shape=(1, y, x))
    for level in range(1, spec.n_levels):
        above, here = spec.level_extents(level - 1), spec.level_extents(level)
        assert (here.y, here.x) == ((above.y + 1) // 2, (above.x + 1) // 2)


def test_arrays_have_the_volumes_axes(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, axes="tyx")
    assert (spec.axes_of("labels"), spec.axes_of("probabilities")) == ("tyx", "tcyx")
    values = dict(zip("tczyx", range(5), strict=True))
    assert spec.to_layout("labels", values) == (0, 3, 4)
    assert spec.to_layout("probabilities", values) == (0, 1, 3, 4)
    assert (spec.array_path("labels", 2), spec.array_path("probabilities", 2)) == ("labels/segmentation/2", "2")


def test_the_raw_size_is_that_of_all_arrays(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, shape=(2, 700, 30))
    pixels = 2 * (700 * 30 + 350 * 15)
    assert spec.raw_bytes == pixels * 3
    assert replace(spec, kinds=("labels",)).raw_bytes == pixels
    assert replace(spec, kinds=("probabilities",)).raw_bytes == pixels * 2


def test_an_unfinished_output_does_not_look_like_a_result(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, shape=(1, 600, 20))
    create_output(spec, fingerprint={}, provenance={"model": "m"}, overwrite=True).close()
    root = zarr.open_group(spec.path, mode="r")
    assert root.attrs.asdict() == {PROVENANCE_KEY: {"model": "m", "status": "running"}}
    assert root["labels"].attrs.asdict() == root["labels/segmentation"].attrs.asdict() == {}
    finish_output(spec, provenance={"status": "complete"}, source="../../")
    root = zarr.open_group(spec.path, mode="r")
    assert set(root.attrs.asdict()) == {PROVENANCE_KEY, "ome"}
    assert read_provenance(Path(spec.path)) == {"status": "complete"}
    assert root["labels/segmentation"].attrs.asdict()["ome"]["image-label"]["source"] == {"image": "../../"}


PLANE = {"axes": "yx", "shape": (1, 40, 50), "scale": (1.0,) * 2, "translation": (0.0,) * 2, "units": (None,) * 2}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({}, {"shape": (1, 90, 20), "chunk": (1, 32, 32)}),
        ({}, {"zarr_format": 2, "ome_version": "0.4"}),
        ({"zarr_format": 2, "ome_version": "0.4"}, {"shard": (1, 32, 32)}),
        ({}, PLANE),
    ],
    ids=["shape", "to-v2", "from-v2", "axes"],
)
def test_nothing_of_a_replaced_output_is_left(tmp_path: Path, first: dict[str, Any], second: dict[str, Any]) -> None:
    # Several times, for the file system may give the new store the old one's inode.
    for value, changes in zip((1, 2, 3, 4), (first, second, first, second), strict=True):
        spec = make_spec(tmp_path, **changes)
        create_output(spec, fingerprint={}, provenance={}, overwrite=True).close()
        write_everything(spec, value)
        for path in ("labels/segmentation/0", "0"):
            array = zarr.open_array(spec.path, path=path, mode="r")
            assert array.metadata.zarr_format == spec.zarr_format
            assert (np.asarray(array[...]) == value).all()
            if array.shards is None:  # of a shard, Zarr counts the chunks beyond the edge too
                assert array.nchunks_initialized == array.nchunks


def write_everything(spec: OutputSpec, value: int) -> None:
    e = spec.extents
    full = np.full((e.z, e.y, e.x), value, np.uint8)
    write_block(
        replace(spec, block=(e.z, e.y, e.x)),
        t=0,
        z=Interval(0, e.z),
        y=Interval(0, e.y),
        x=Interval(0, e.x),
        labels=full,
        probabilities=np.stack([full, full]),
    )


# The pyramid.


@given(hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 3), elements=st.integers(0, 3)))
def test_the_mode_is_the_most_frequent_and_on_a_tie_the_first(values: Pixels) -> None:
    came = reduce_mode(values)
    assert came.dtype == np.uint8
    for z, y, x in np.ndindex(came.shape):
        cell = [int(values[z, min(i, values.shape[1] - 1), min(j, values.shape[2] - 1)])
                for i in (2 * y, 2 * y + 1) for j in (2 * x, 2 * x + 1)]  # fmt: skip
        count = Counter(cell)  # in reading order
        assert came[z, y, x] == max(count, key=lambda v: count[v])


@given(hnp.arrays(np.uint8, st.tuples(*[st.integers(1, 7)] * 3)))
def test_the_mean_is_rounded_half_up(values: Pixels) -> None:
    padded = np.pad(values, [(0, 0), (0, values.shape[1] % 2), (0, values.shape[2] % 2)], mode="edge").astype(int)
    total = padded[:, ::2, ::2] + padded[:, 1::2, ::2] + padded[:, ::2, 1::2] + padded[:, 1::2, 1::2]
    came = reduce_mean(values)
    assert came.dtype == np.uint8
    np.testing.assert_array_equal(came, np.floor(total / 4 + 0.5))


def reference_mode(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the mode by comparing every corner with every other."""
    values = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, n % 2) for n in values.shape[-2:]], mode="edge")
    a, b, c, d = (values[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    is_second = (b == c) | (b == d)
    return np.where((a == b) | (a == c) | (a == d), a, np.where(is_second, b, np.where(c == d, c, a)))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint32])
@pytest.mark.parametrize("most", [2, 4, 256])
@pytest.mark.parametrize("shape", [(2, 300, 7), (1, 2, 129, 64), (257, 31)])
def test_strips_and_types_change_nothing(dtype: Any, most: int, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).integers(0, most, (*shape[:-1], 2 * shape[-1])).astype(dtype)
    for view in (values[..., ::2], values[..., ::-1, 3:]):  # as a window of something else, too
        np.testing.assert_array_equal(reduce_mode(view), reference_mode(view), strict=True)
    before = values.copy()
    reduce_mode(values)
    assert np.array_equal(values, before)
    if dtype == np.uint8:
        mean = reduce_mean(values)
        np.testing.assert_array_equal(mean[..., :1, :], reduce_mean(values[..., :2, :]), strict=True)
        np.testing.assert_array_equal(mean, reduce_mean(np.asfortranarray(values)), strict=True)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_a_plain_image_stays_plain(value: int) -> None:
    plane = np.full((1, 5, 9), value, np.uint8)
    assert (reduce_mode(plane) == value).all()
    assert (reduce_mean(plane) == value).all()


@st.composite
def pyramids(draw: st.DrawFn) -> OutputSpec:
    """Draw outputs of several levels, cut into blocks of any whole number of chunks or shards."""
    side = st.one_of(st.integers(1, 90), st.integers(513, 1300))
    y, x = draw(st.tuples(side, st.integers(513, 1300)))
    y, x = draw(st.sampled_from([(y, x), (x, y)]))
    chunk = 1, draw(st.sampled_from([48, 64, 256, 512])), draw(st.sampled_from([48, 64, 256, 512]))
    factor = draw(st.sampled_from([1, 2]))
    unit = 1, chunk[1] * factor, chunk[2] * factor
    block = 1, unit[1] * draw(st.integers(1, 4)), unit[2] * draw(st.integers(1, 4))
    return make_spec(
        Path(), shape=(2, y, x), chunk=chunk, shard=unit if factor > 1 else None, block=block, kinds=("labels",)
    )


def blocks_of(spec: OutputSpec) -> list[tuple[Interval, ...]]:
    sides = (spec.extents.z, spec.extents.y, spec.extents.x)
    return [
        tuple(Interval(i * b, min((i + 1) * b, n)) for i, b, n in zip(place, spec.block, sides, strict=True))
        for place in itertools.product(*(range(-(-n // b)) for n, b in zip(sides, spec.block, strict=True)))
    ]


@given(spec=pyramids(), seed=st.integers(0, 99))
@settings(max_examples=8)
def test_the_pyramid_does_not_depend_on_how_the_work_is_cut(tmp_path_factory: Any, spec: OutputSpec, seed: int) -> None:
    spec = replace(spec, path=str(tmp_path_factory.mktemp("pyramid") / "out.zarr"))
    rng = np.random.default_rng(seed)
    e = spec.extents
    labels = rng.integers(0, 3, (e.z, e.y, e.x), dtype=np.uint8)
    create_output(spec, fingerprint={}, provenance={}, overwrite=True).close()
    blocks = blocks_of(spec)
    rng.shuffle(blocks)
    for z, y, x in blocks:
        write_block(spec, t=0, z=z, y=y, x=x, labels=labels[z.slice, y.slice, x.slice], probabilities=None)
    for level in range(spec.n_block_levels + 1, spec.n_levels):
        for index in rng.permutation(list_regions(spec, level)):
            downsample_region(spec, level, int(index))
    for level in range(spec.n_levels):
        np.testing.assert_array_equal(read(spec, f"labels/segmentation/{level}"), labels)
        labels = reduce_mode(labels)


@given(spec=pyramids())
@settings(max_examples=100)
def test_no_two_blocks_touch_one_write_unit_of_a_level(spec: OutputSpec) -> None:
    unit = spec.grid.unit
    for level in range(spec.n_block_levels + 1):
        e = spec.level_extents(level)
        touched: Counter[tuple[int, ...]] = Counter()
        for z, y, x in blocks_of(spec):
            spans = [range(z.start // unit[0], -(-z.stop // unit[0]))]
            for side, extent, size in ((y, e.y, unit[1]), (x, e.x, unit[2])):
                start, stop = side.start >> level, min(-(-side.stop >> level), extent)
                spans.append(range(start // size, -(-stop // size)))
            touched.update(itertools.product(*spans))
        assert set(touched.values()) == {1}


def test_blocks_make_what_they_can(tmp_path: Path) -> None:
    assert make_spec(tmp_path, shape=(1, 16384, 16384), chunk=(1, 256, 256), block=(1, 2048, 2048)).n_block_levels == 3
    assert (
        make_spec(tmp_path, shape=(1, 16384, 16384), chunk=(1, 1024, 1024), block=(1, 2048, 2048)).n_block_levels == 1
    )
    assert make_spec(tmp_path, shape=(1, 900, 2000), chunk=(1, 64, 64), block=(1, 1024, 2048)).n_block_levels == 2
    assert make_spec(tmp_path, shape=(1, 9000, 9000), chunk=(1, 48, 64), block=(1, 2016, 2048)).n_block_levels == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_named(number: int) -> None:
    with (
        pytest.raises(NoSpaceError, match=r"^the disk is full: it is so\n  while writing labels at x\n") as caught,
        full_disk_named("while writing labels at x"),
    ):
        raise OSError(number, "it is so")
    assert caught.value.fix == "free space, then give the same command again"


def test_another_error_of_the_disk_passes() -> None:
    with pytest.raises(PermissionError, match="not yours"), full_disk_named("x"):
        raise PermissionError(errno.EACCES, "not yours")


@pytest.mark.parametrize("part", ["z=1:2", "y=0:5", "y=3000:3001,x=4100:4200", "z=0,y=2047:2049"])
def test_the_pieces_that_a_part_changes_are_those_that_it_touches(part: str, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, shape=(3, 5000, 9000), chunk=(1, 64, 64))
    region = parse_region(part)
    for level in spec.passes:
        e = spec.level_extents(level)
        grid = BoxGrid(extents=e, box=spec.region)
        touched = []
        for box in map(grid.at, list_regions(spec, level)):
            near = True
            for axis, side in (("z", box.z), ("y", box.y), ("x", box.x)):
                along = region.along(axis)
                scale = 1 if axis == "z" else 2**level
                near &= along is None or (along.start < side.stop * scale and side.start * scale < along.stop)
            touched += [box.index] if near else []
        assert list_regions(spec, level, region) == touched
        assert 0 < len(touched) < grid.n_boxes
