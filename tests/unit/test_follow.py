"""What is given of a volume that is still being written, by a clock that the test turns."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import zarr

from tests.contract.volumes import KINDS, StoreKind, write_array
from tests.tiny import CARD, NETWORK
from unet_deploy.card import ModelCard, Normalisation
from unet_deploy.errors import (
    ConfigurationError,
    InterruptedRunError,
    JournalError,
    ReadError,
    UsageError,
    VolumeNotFoundError,
)
from unet_deploy.runtime._arrivals import Arrivals
from unet_deploy.runtime._block_chunks import find_block_chunks
from unet_deploy.runtime._chunk_files import ChunkFiles, describe_files
from unet_deploy.runtime._follower import LOOK_S, SETTLE_S, Follower
from unet_deploy.runtime._growth import growth_axis, reopen_patiently, whole_length
from unet_deploy.runtime._zarr_metadata import ITEM_BYTES, check_array, read_node
from unet_deploy.runtime.follow import (
    ATTEMPTS,
    Following,
    require_followable,
    run_following,
    wait_for_volume,
)
from unet_deploy.runtime.journal import BlockRecord, create_journal, read_journal, reopen_journal
from unet_deploy.runtime.plan import Extents, SegmentationPlan, plan_segmentation
from unet_deploy.runtime.volume import open_volume, reopen_volume
from unet_deploy.runtime.volume_info import VolumeInfo
from unet_deploy.runtime.windows import plan_window


class Clock:
    """Seconds that go on when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_plan(info: VolumeInfo, *, tile: tuple[int, int] | None = None) -> SegmentationPlan:
    size = dict(zip(info.axes, info.shape, strict=True))
    chunk = dict(zip(info.axes, info.chunks, strict=True))
    return plan_segmentation(
        NETWORK,
        Extents(t=size.get("t", 1), z=size.get("z", 1), y=size["y"], x=size["x"]),
        source_chunk=(chunk.get("z", 1), chunk["y"], chunk["x"]),
        tile=tile,
    )


def files_of(folder: Path) -> ChunkFiles:
    node = read_node(folder)
    assert node is not None
    metadata = check_array(node, dtypes=ITEM_BYTES)
    return describe_files(metadata, metadata.shape)


class Acquisition:
    """A volume whose chunks lie aside until they are let in."""

    def __init__(self, tmp_path: Path, shape: Sequence[int], chunks: Sequence[int], **options: Any) -> None:
        self.folder = tmp_path / "v.zarr"
        self.aside = tmp_path / "aside"
        names = options.pop("names", None) or "tczyx"[-len(shape) :]
        array = zarr.create_array(
            self.folder, shape=tuple(shape), chunks=tuple(chunks), dtype="uint8", dimension_names=list(names), **options
        )
        array[...] = np.random.default_rng(0).integers(1, 255, shape, np.uint8)
        self.clock = Clock()
        self.info = open_volume(self.folder).info
        self.plan = make_plan(self.info, tile=(60, 60))
        self.files = files_of(self.folder)
        self.aside.mkdir()
        for number in np.ndindex(self.files.counts):
            self.files.path(number).rename(self.aside / "_".join(map(str, number)))

    def let_in(self, *number: int) -> None:
        path = self.files.path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.aside / "_".join(map(str, number))).rename(path)

    def follow(self, wanted: Iterable[int] | None = None, channels: Sequence[int] = (0,), **following: Any) -> Follower:
        order = range(self.plan.n_blocks) if wanted is None else wanted
        return Follower(self.info, self.plan, channels, order, Following(**following), clock=self.clock)

    def lengthen(self, follower: Follower, length: int) -> None:
        """Let the follower know of as much of the volume; and the test's own plan."""
        axis = growth_axis(self.info)
        shape = tuple(length if a == axis else n for a, n in zip(self.info.axes, self.info.shape, strict=True))
        self.info = replace(self.info, shape=shape, grows=axis)
        self.plan = replace(self.plan, extents=replace(self.plan.extents, **{axis: length}))
        follower.grow(self.info, self.plan)

    def wait(self, seconds: float, numbers: Iterable[int | None]) -> list[int]:
        """Let time go by in steps, and return what is given meanwhile."""
        given: list[int] = []
        for _ in range(math.ceil(seconds / LOOK_S)):
            self.clock.now += LOOK_S
            for number in numbers:
                if number is None:
                    break
                given.append(number)
        return given


@pytest.fixture
def planes(tmp_path: Path) -> Acquisition:
    """Four planes of one block, each of 2 × 2 chunks."""
    return Acquisition(tmp_path, (4, 100, 90), (1, 64, 64))


CORNERS = [(y, x) for y in range(2) for x in range(2)]


def test_a_block_is_given_when_the_last_of_its_chunks_has_settled(planes: Acquisition) -> None:
    assert planes.plan.n_blocks == 4
    numbers = planes.follow().numbers()
    assert planes.wait(5, numbers) == []
    for y, x in CORNERS[:3]:
        planes.let_in(2, y, x)
    assert planes.wait(5, numbers) == []
    planes.let_in(2, 1, 1)
    assert planes.wait(SETTLE_S - LOOK_S, numbers) == []
    assert planes.wait(2 * LOOK_S, numbers) == [2]
    assert planes.wait(5, numbers) == []


def test_each_block_is_given_once_and_then_it_ends(planes: Acquisition) -> None:
    follower = planes.follow()
    numbers = follower.numbers()
    given: list[int] = []
    for z, (y, x) in [(z, corner) for z in (3, 0, 2, 1) for corner in CORNERS]:
        planes.let_in(z, y, x)
        given += planes.wait(1, numbers)
    given += planes.wait(5, numbers)
    assert given == [3, 0, 2, 1]
    assert [*numbers] == []
    assert follower.n_waiting == 0
    follower.require_all(Path("out.zarr"))


def test_what_is_there_at_once_is_given_in_the_order_wanted(planes: Acquisition) -> None:
    for z in range(4):
        for corner in CORNERS:
            planes.let_in(z, *corner)
    assert planes.wait(5, planes.follow([2, 0, 3]).numbers()) == [2, 0, 3]


def test_only_the_chunks_of_wanted_blocks_are_waited_for(planes: Acquisition) -> None:
    numbers = planes.follow([1]).numbers()
    for corner in CORNERS:
        planes.let_in(1, *corner)
        planes.let_in(0, *corner)
    assert planes.wait(5, numbers) == [1]
    assert [*numbers] == []


def test_only_the_channels_that_are_read_are_waited_for(tmp_path: Path) -> None:
    volume = Acquisition(tmp_path, (3, 2, 64, 64), (1, 1, 64, 64))  # c, z, y, x
    numbers = volume.follow(channels=(2,)).numbers()
    volume.let_in(2, 1, 0, 0)
    assert volume.wait(5, numbers) == [1]
    volume.let_in(0, 0, 0, 0)
    assert volume.wait(5, numbers) == []


def test_the_clock_of_the_files_does_not_matter(planes: Acquisition) -> None:
    numbers = planes.follow().numbers()
    for corner, when in zip(CORNERS, (0, 2**31, 4_102_444_800, 1), strict=True):  # 1970, 2038, 2100
        planes.let_in(0, *corner)
        os.utime(planes.files.path((0, *corner)), (when, when))
    assert planes.wait(5, numbers) == [0]


def test_a_file_that_goes_on_growing_is_not_read(planes: Acquisition) -> None:
    numbers = planes.follow().numbers()
    for corner in CORNERS[:3]:
        planes.let_in(0, *corner)
    whole = (planes.aside / "0_1_1").read_bytes()
    path = planes.files.path((0, 1, 1))
    for end in range(10, 100, 10):
        path.write_bytes(whole[:end])
        assert planes.wait(SETTLE_S - LOOK_S, numbers) == []
    path.write_bytes(whole)
    assert planes.wait(SETTLE_S + LOOK_S, numbers) == [0]


@pytest.mark.parametrize("kind", ["v2-raw", "v3-raw", "v3-crc32c", "v2-blosc", "v3-blosc", "v3-sharded"])
def test_half_a_chunk_is_seen_to_be_none_however_long_it_lies_there(kind: str, tmp_path: Path) -> None:
    store = next(k for k in KINDS if k.name == kind)
    folder = write_array(tmp_path / "v.zarr", random_pixels(), axes="yx", kind=store)
    files = files_of(folder)
    path = files.path((0,) * 2)
    whole = path.read_bytes()
    arrivals = Arrivals(files, np.ones(files.counts, np.bool_), settle_s=1)
    path.write_bytes(whole[: len(whole) // 2])
    looks = [number for now in range(10) for number in arrivals.look(now)]
    assert (0, 0) not in looks
    assert looks  # the others are there
    path.write_bytes(b"")
    assert arrivals.look(20) == arrivals.look(22) == []
    path.write_bytes(whole)
    assert arrivals.look(30) == []
    assert arrivals.look(31) == [(0, 0)]


def random_pixels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(1, 255, (21, 19), np.uint8)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_kind_of_store_is_found(kind: StoreKind, tmp_path: Path) -> None:
    folder = write_array(tmp_path / "v.zarr", random_pixels(), axes="yx", kind=kind)
    files = files_of(folder)
    (folder / "notes.txt").write_text("not a chunk")
    arrivals = Arrivals(files, np.ones(files.counts, np.bool_), settle_s=1)
    assert arrivals.look(0) == []
    assert sorted(arrivals.look(1)) == [*np.ndindex(files.counts)]
    assert not arrivals.absent.any()
    assert arrivals.first_absent(3) == []


def test_keys_beyond_the_grid_or_written_otherwise_are_no_chunks(tmp_path: Path) -> None:
    folder = write_array(
        tmp_path / "v.zarr", random_pixels(), axes="yx", kind=next(k for k in KINDS if k.name == "v2-dots")
    )
    files = files_of(folder)
    for number in np.ndindex(files.counts):
        files.path(number).unlink()
    for name in ("00.0", "9.0", "0", "0.0.0", "-1.0", "²", "0.0.5e.partial"):
        (folder / name).write_bytes(b"x" * 100)
    (folder / "1.1").mkdir()
    assert [*files.present(np.ones(files.counts, np.bool_))] == [((1, 1), str(folder / "1.1"))]
    arrivals = Arrivals(files, np.ones(files.counts, np.bool_), settle_s=1)
    assert arrivals.look(0) == arrivals.look(2) == []  # a folder is no chunk


@pytest.mark.parametrize("sizes", [(3, 5, 150, 130), (1, 4, 100, 90)])
def test_a_block_waits_for_exactly_the_files_that_its_windows_touch(sizes: tuple[int, ...], tmp_path: Path) -> None:
    y, x = sizes[2:]
    zarr.create_array(
        tmp_path / "v.zarr", shape=sizes, chunks=(2, 3, 50, 40), dtype="uint8", dimension_names=list("tzyx")
    )
    info = open_volume(tmp_path / "v.zarr").info
    plan = make_plan(info, tile=(60, 60))
    chunks = find_block_chunks(plan, info.axes, files_of(tmp_path / "v.zarr"), (0,))
    counts = chunks.count_files().ravel()
    for block in plan.blocks():
        touched = np.zeros(sizes, np.bool_)
        window = [
            plan_window(plan.geometry, tiles, extent).source.slice
            for tiles, extent in ((block.tiles_y, y), (block.tiles_x, x))
        ]
        touched[block.t, block.z.slice, window[0], window[1]] = True
        wanted = {tuple(map(int, at)) for at in np.unique(np.argwhere(touched) // info.chunks, axis=0)}
        needed = chunks.needed([block.index])
        assert {tuple(map(int, at)) for at in np.argwhere(needed)} == wanted
        assert counts[block.index] == len(wanted)
        for number in wanted:
            readers = np.zeros(plan.block_counts, np.bool_)
            readers[chunks.blocks_of(number)] = True
            assert readers.flat[block.index]
    assert np.array_equal(chunks.needed(range(plan.n_blocks)), np.ones(chunks.file_counts, np.bool_))


def test_it_ends_when_nothing_has_come_for_long_enough(planes: Acquisition) -> None:
    follower = planes.follow(timeout_s=10)
    numbers = follower.numbers()
    for corner in CORNERS:
        planes.let_in(1, *corner)
    assert planes.wait(8, numbers) == [1]
    planes.let_in(2, 0, 0)  # news
    assert planes.wait(9, numbers) == []
    planes.let_in(2, 0, 1)
    assert planes.wait(9, numbers) == []
    assert next(numbers, "ended") is None
    assert planes.wait(5, numbers) == []
    assert next(numbers, "ended") == "ended"
    assert follower.n_waiting == 3
    with pytest.raises(InterruptedRunError, match=r"^nothing new arrived for 10 s, and 3 of 4 blocks wait") as caught:
        follower.require_all(Path("out.zarr"))
    assert caught.value.details == (
        f"absent, or not whole: c/0/0/0, c/0/0/1, c/0/1/0, c/0/1/1, c/2/1/0 and 5 more in {planes.folder}",
        "what is done is in out.zarr, which is no result yet",
    )
    assert "without --follow, absent chunks are taken as the fill value 0" in caught.value.fix


def test_without_a_timeout_it_waits(planes: Acquisition) -> None:
    numbers = planes.follow(timeout_s=None).numbers()
    assert next(numbers) is None
    planes.clock.now += 1e6
    assert next(numbers, "ended") is None


def test_a_file_that_changed_after_it_had_arrived_has_its_blocks_run_again(planes: Acquisition) -> None:
    for z in range(4):
        for corner in CORNERS:
            planes.let_in(z, *corner)
    follower = planes.follow()
    assert planes.wait(5, follower.numbers()) == [0, 1, 2, 3]
    assert follower.take_back_changed() == []
    changed = planes.files.path((2, 0, 1))
    changed.write_bytes(changed.read_bytes() + b"\0")
    assert follower.take_back_changed() == [2]
    assert follower.n_waiting == 1
    numbers = follower.numbers()
    assert planes.wait(SETTLE_S - LOOK_S, numbers) == []
    assert planes.wait(2, numbers) == [2]
    assert follower.take_back_changed() == []


class Runner:
    """Runs blocks as the test says: a number fails as often as `failures` tells."""

    def __init__(self, volume: Acquisition, failures: dict[int, int] | None = None) -> None:
        self.volume, self.failures, self.runs = volume, failures or {}, list[int]()
        self.failed: set[int] = set()
        self.lengths: list[int] = []
        self.forgotten: list[int] = []
        self.between: Any = None
        self.after: Any = None

    def follow(self, follower: Follower, *, should_stop: bool = False) -> None:
        def grow(length: int) -> None:
            self.lengths.append(length)
            self.volume.lengthen(follower, length)

        run_following(
            follower,
            self.run,
            failed=lambda: sorted(self.failed),
            forget=self.forgotten.extend,
            grow=grow,
            should_stop=lambda: should_stop,
        )

    def run(self, numbers: Iterable[int | None], _: int) -> None:
        for number in numbers:
            if number is None:
                self.volume.clock.now += LOOK_S
                if self.between is not None:
                    self.between()
                continue
            self.runs.append(number)
            self.failed.discard(number)
            if self.failures.get(number, 0):
                self.failures[number] -= 1
                self.failed.add(number)
        if self.after is not None:
            self.after()


@pytest.fixture
def finished(planes: Acquisition) -> Acquisition:
    for z in range(4):
        for corner in CORNERS:
            planes.let_in(z, *corner)
    return planes


def test_blocks_that_failed_are_run_again_a_few_times(finished: Acquisition) -> None:
    runner = Runner(finished, {1: 1, 3: 99})
    runner.follow(finished.follow())
    assert runner.runs == [0, 1, 2, 3, 1, 3, 3]
    assert runner.forgotten == [1, 3, 3]
    assert runner.runs.count(3) == ATTEMPTS
    assert runner.failed == {3}


def test_a_chunk_that_changes_while_its_block_runs_is_read_again_until_it_is_still(finished: Acquisition) -> None:
    runner = Runner(finished)
    lengths = iter((1, 2, 3))

    def write_again() -> None:
        path = finished.files.path((0, 0, 0))
        n = next(lengths, 0)
        if n:
            path.write_bytes(path.read_bytes() + b"\0" * n)

    runner.after = write_again
    runner.follow(finished.follow())
    assert runner.runs == [0, 1, 2, 3, 0, 0, 0]
    assert runner.forgotten == [0, 0, 0]


def test_a_run_that_is_stopped_begins_nothing_more(finished: Acquisition) -> None:
    runner = Runner(finished, {1: 1})
    runner.follow(finished.follow(), should_stop=True)
    assert len(runner.runs) == 4


def test_after_a_timeout_nothing_is_run_again(planes: Acquisition) -> None:
    runner = Runner(planes)
    follower = planes.follow(timeout_s=5)
    runner.failed = {0}
    runner.follow(follower)
    assert runner.runs == []
    assert follower.n_waiting == 4


def set_shape(document: Path, shape: Sequence[int]) -> None:
    document.write_text(json.dumps({**json.loads(document.read_text()), "shape": [*shape]}))


def test_another_shape_is_refused(planes: Acquisition) -> None:
    numbers = planes.follow().numbers()
    assert planes.wait(2, numbers) == []
    set_shape(planes.folder / "zarr.json", (5, 100, 90))
    with pytest.raises(ReadError, match=r"shape is \[5, 100, 90\] now, it was \[4, 100, 90\]") as caught:
        planes.wait(2, numbers)
    assert caught.value.fix.startswith("follow a volume that gets longer along its first axis, t or z, with --grows")


def test_a_document_that_is_being_written_is_read_later(planes: Acquisition) -> None:
    document = planes.folder / "zarr.json"
    text = document.read_text()
    numbers = planes.follow().numbers()
    document.write_text(text[:50])
    assert planes.wait(SETTLE_S - LOOK_S, numbers) == []
    document.write_text(text)
    assert planes.wait(10, numbers) == []
    document.unlink()
    assert planes.wait(SETTLE_S - LOOK_S, numbers) == []
    with pytest.raises(ReadError, match="the volume is no longer there"):
        planes.wait(10, numbers)


@pytest.mark.parametrize(("name", "value"), [("timeout_s", 0.0), ("settle_s", -1.0), ("timeout_s", math.nan)])
def test_times_that_cannot_be_meant_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match="came, more than 0 was expected"):
        Following(**{name: value})


def test_addresses_and_tiff_files_are_refused(planes: Acquisition, make_card: Any) -> None:
    card = make_card()
    require_followable(planes.info, card, input_range=None)
    address = replace(planes.info, path="s3://bucket/v.zarr")
    with pytest.raises(UsageError, match=r"^s3://bucket/v.zarr is an address, which cannot be followed") as caught:
        require_followable(address, card, input_range=None)
    assert caught.value.fix == "leave --follow out, and segment it when it is finished"
    file = planes.folder.with_name("v.tif")
    file.write_bytes(b"II*\0")
    with pytest.raises(UsageError, match=r"v\.tif is a TIFF file, which cannot be followed"):
        wait_for_volume(file, lambda: planes.info, Following())


def test_a_volume_that_is_not_finished_is_not_compared_with_training(planes: Acquisition, make_card: Any) -> None:
    with pytest.raises(UsageError, match=r"^--strict came with --follow\n  a volume that is still being") as caught:
        require_followable(planes.info, make_card(), input_range=None, is_strict=True)
    assert caught.value.fix is not None
    assert caught.value.fix.startswith("leave --strict out")


def test_a_volume_that_gets_longer_unexpectedly_is_told_how_it_is_followed(tmp_path: Path) -> None:
    """As acquire-zarr writes: its document has the length up to now."""
    folder = tmp_path / "v.zarr"
    zarr.create_array(folder, shape=(3, 64, 64), chunks=(1, 64, 64), dtype="uint8")
    info = open_volume(folder, axes="zyx").info
    set_shape(folder / "zarr.json", (4, 64, 64))
    with pytest.raises(ReadError, match=r"the volume's shape is \[4, 64, 64\] now, it was \[3, 64, 64\]") as caught:
        reopen_patiently(info)
    assert caught.value.fix is not None
    assert "with --grows" in caught.value.fix


def test_a_stop_while_waiting_for_a_volume_is_no_fault_of_the_volume(tmp_path: Path) -> None:
    with pytest.raises(InterruptedRunError, match="stopped while waiting for") as caught:
        wait_for_volume(
            tmp_path / "w.zarr",
            lambda: open_volume(tmp_path / "w.zarr").info,
            Following(timeout_s=60),
            should_stop=lambda: True,
        )
    assert caught.value.details[0].startswith("up to now: there is nothing at ")
    assert caught.value.fix == "the same command waits again"


def test_percentiles_of_a_volume_that_is_not_finished_are_refused(planes: Acquisition, make_card: Any) -> None:
    card: ModelCard = make_card(percentiles=(1.0, 99.0))
    assert isinstance(card.normalisation, Normalisation)
    with pytest.raises(UsageError, match=r"percentiles of the whole of it, which are not known") as caught:
        require_followable(planes.info, card, input_range=None)
    assert caught.value.fix.startswith("--input-range LOW:HIGH")
    require_followable(planes.info, card, input_range=(0, 200))
    assert CARD.normalisation.percentiles is None


def test_many_files_are_looked_at_in_little_time(tmp_path: Path) -> None:
    """A look at a million chunks, of which few are there, lists few folders."""
    zarr.create_array(
        tmp_path / "v.zarr", shape=(10_000, 640, 640), chunks=(1, 64, 64), dtype="uint8", dimension_names=list("zyx")
    )
    files = files_of(tmp_path / "v.zarr")
    for z in (3, 9_000):
        (tmp_path / "v.zarr" / "c" / str(z) / "0").mkdir(parents=True)
        (tmp_path / "v.zarr" / "c" / str(z) / "0" / "5").write_bytes(b"a chunk")
    arrivals = Arrivals(files, np.ones(files.counts, np.bool_), settle_s=1)
    arrivals.look(0)
    assert arrivals.look(1) == [(3, 0, 5), (9_000, 0, 5)]
    assert arrivals.absent.sum() == 10**6 - 2


class Growing(Acquisition):
    """An acquisition whose document says how long it is by now."""

    def __init__(self, tmp_path: Path, shape: Sequence[int], chunks: Sequence[int], **options: Any) -> None:
        super().__init__(tmp_path, shape, chunks, **options)
        self.final = self.info.shape
        self.all_files = self.files

    def begin(self, length: int, **following: Any) -> Follower:
        """Follow it from a length on."""
        self.set_length(length)
        axis = growth_axis(self.info)
        shape = (length, *self.info.shape[1:])
        self.info = replace(self.info, shape=shape, grows=axis)
        self.plan = replace(self.plan, extents=replace(self.plan.extents, **{axis: length}))
        return self.follow(**{"timeout_s": 20, "grows": True, **following})

    def set_length(self, length: int) -> None:
        set_shape(self.folder / "zarr.json", (length, *self.final[1:]))

    def let_in_all_of(self, first: int) -> None:
        for number in np.ndindex(self.all_files.counts[1:]):
            self.let_in(first, *number)


def test_time_points_are_added_as_they_come(tmp_path: Path) -> None:
    volume = Growing(tmp_path, (5, 2, 100, 90), (1, 1, 64, 64), names="tzyx")
    per_point = volume.plan.n_blocks // 5
    follower = volume.begin(1)
    runner = Runner(volume)
    steps = iter([lambda t=t: (volume.set_length(t + 1), volume.let_in_all_of(t)) for t in range(5)])
    waited = iter(range(10**6))

    def acquire() -> None:
        if next(waited) % 7 == 0 and (step := next(steps, None)):
            step()

    runner.between = acquire
    runner.follow(follower)
    assert runner.runs == [*range(5 * per_point)]
    assert runner.lengths == [2, 3, 4, 5]
    assert follower.n_waiting == 0
    assert follower.n_wanted == 5 * per_point


def test_thick_chunks_and_blocks_are_run_when_they_are_whole_or_at_the_end(tmp_path: Path) -> None:
    volume = Growing(tmp_path, (100, 70, 64), (67, 64, 64))  # z, y, x
    assert volume.plan.block_shape[0] == 64
    assert [whole_length(volume.info, volume.plan, n) for n in (66, 67, 133, 134, 201)] == [0, 64, 64, 128, 192]
    follower = volume.begin(64)
    runner = Runner(volume)
    volume.set_length(67)
    volume.let_in_all_of(0)
    numbers = follower.numbers()
    assert volume.wait(5, numbers) == [0]
    volume.set_length(100)
    volume.let_in_all_of(1)
    assert volume.wait(10, numbers) == []  # there may be more to come
    runner.follow(follower)
    assert runner.lengths == [100]
    assert runner.runs == [1]
    assert follower.n_waiting == 0


def test_what_was_taken_as_the_end_of_a_volume_is_not_gone_beyond(tmp_path: Path) -> None:
    """Its last block was planned with the planes that there were: it would not be that of the longer volume."""
    volume = Growing(tmp_path, (16, 64, 64), (8, 64, 64))
    assert volume.plan.block_shape[0] == 8
    follower = volume.begin(3)
    numbers = follower.numbers()
    assert volume.wait(2, numbers) == []
    volume.set_length(16)
    volume.let_in_all_of(0)
    with pytest.raises(ReadError, match=r"^the volume's shape is \[16, 64, 64\] now, it was \[3, 64, 64\] when it was"):
        volume.wait(5, numbers)


def test_a_file_that_came_for_an_earlier_block_serves_a_later_one(tmp_path: Path) -> None:
    volume = Growing(tmp_path, (134, 64, 64), (67, 64, 64))
    follower = volume.begin(64)
    volume.set_length(67)
    volume.let_in_all_of(0)
    runner = Runner(volume)
    numbers = follower.numbers()
    assert volume.wait(5, numbers) == [0]
    volume.set_length(134)
    assert volume.wait(1, numbers) == []
    assert follower.has_grown
    volume.lengthen(follower, 128)
    assert volume.wait(5, follower.numbers()) == []  # block 1 needs the file that is there, and the one that is not
    assert follower.n_waiting == 1
    volume.let_in_all_of(1)
    runner.follow(follower)
    assert runner.lengths == [134]
    assert runner.runs == [1, 2]


def test_what_changed_is_found_in_all_of_a_volume_that_grew(tmp_path: Path) -> None:
    volume = Growing(tmp_path, (3, 64, 64), (1, 64, 64))
    follower = volume.begin(1)
    volume.set_length(3)
    for z in range(3):
        volume.let_in_all_of(z)
    runner = Runner(volume)
    changes = iter([volume.files.path((0, 0, 0))])

    def write_again() -> None:
        if len(runner.runs) == 3 and (path := next(changes, None)):
            path.write_bytes(path.read_bytes() + b"\0")

    runner.after = write_again
    runner.follow(follower)
    assert runner.runs == [0, 1, 2, 0]


def test_a_volume_that_grows_and_misses_chunks_ends_without_them(tmp_path: Path) -> None:
    volume = Growing(tmp_path, (3, 64, 64), (1, 64, 64))
    follower = volume.begin(1)
    volume.set_length(3)
    volume.let_in_all_of(0)
    volume.let_in_all_of(2)
    runner = Runner(volume)
    runner.follow(follower)
    assert runner.runs == [0, 2]
    with pytest.raises(InterruptedRunError, match="1 of 3 blocks wait for chunks") as caught:
        follower.require_all(Path("out.zarr"))
    assert "absent, or not whole: c/1/0/0 in" in caught.value.details[0]


@pytest.mark.parametrize("shape", [(2, 64, 64), (3, 64, 65)])
def test_a_volume_may_grow_along_its_first_axis_only(shape: tuple[int, ...], tmp_path: Path) -> None:
    volume = Growing(tmp_path, (3, 64, 64), (1, 64, 64))
    follower = volume.begin(3)
    set_shape(volume.folder / "zarr.json", shape)
    with pytest.raises(ReadError, match=r"the volume's shape is .* now, it was \[3, 64, 64\]"):
        volume.wait(5, follower.numbers())


def test_a_plane_cannot_grow(tmp_path: Path) -> None:
    volume = Acquisition(tmp_path, (64, 64), (64, 64))
    with pytest.raises(UsageError, match="a volume of the axes yx cannot be followed while it grows") as caught:
        growth_axis(volume.info)
    assert caught.value.fix.startswith("leave --grows out")


def test_the_end_of_a_volume_that_grows_is_known_by_the_time_alone() -> None:
    with pytest.raises(ConfigurationError, match="a volume that grows is to be followed without a time-out") as caught:
        Following(grows=True)
    assert caught.value.fix == "--follow --grows --follow-timeout 600"


def test_a_volume_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    clock = Clock()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        clock.now += seconds
        slept.append(clock.now)
        if len(slept) == 3:
            zarr.create_array(tmp_path / "v.zarr", shape=(3, 64, 64), chunks=(2, 64, 64), dtype="uint8")
            set_shape(tmp_path / "v.zarr" / "zarr.json", (0, 64, 64))
        elif len(slept) > 5:
            set_shape(tmp_path / "v.zarr" / "zarr.json", (len(slept) - 5, 64, 64))

    def describe() -> VolumeInfo:
        return open_volume(tmp_path / "v.zarr", axes="zyx").info

    wait_for_volume(tmp_path / "v.zarr", describe, Following(grows=True, timeout_s=60), clock=clock, sleep=sleep)
    assert len(slept) == 7
    assert describe().shape == (2, 64, 64)
    with pytest.raises(VolumeNotFoundError):
        wait_for_volume(
            tmp_path / "w.zarr",
            lambda: open_volume(tmp_path / "w.zarr").info,
            Following(timeout_s=60),
            clock=clock,
            sleep=sleep,
        )
    set_shape(tmp_path / "v.zarr" / "zarr.json", (1, 64, 64))
    wait_for_volume(  # it ended before its first chunk was whole
        tmp_path / "v.zarr",
        describe,
        Following(grows=True, timeout_s=1),
        clock=clock,
        sleep=lambda s: setattr(clock, "now", clock.now + s),
    )


def test_a_volume_that_grows_is_opened_again_as_long_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "v.zarr"
    array = zarr.create_array(folder, shape=(3, 64, 64), chunks=(1, 64, 64), dtype="uint8")
    array[...] = 7
    info = open_volume(folder, axes="zyx").info
    shorter = reopen_volume(replace(info, shape=(2, 64, 64), grows="z"))
    assert shorter.extent("z") == 2
    assert pickle.loads(pickle.dumps(shorter)).info == shorter.info
    assert pickle.loads(pickle.dumps(shorter)).token == shorter.token != reopen_volume(shorter.info).token
    for shape, axis in (((2, 64, 64), ""), ((4, 64, 64), "z"), ((3, 64, 32), "z")):
        with pytest.raises(ReadError, match="the volume is not what it was when it was opened"):
            reopen_volume(replace(info, shape=shape, grows=axis))


def test_a_journal_goes_on_with_the_fingerprint_of_a_longer_volume(tmp_path: Path) -> None:
    with create_journal(tmp_path, {"length": 1}) as journal:
        journal.add(BlockRecord(index=0, status="done"))
        journal.amend({"length": 2})
        journal.add(BlockRecord(index=1, status="done"))
        assert journal.fingerprint == {"length": 2}
    found = read_journal(tmp_path)
    assert found is not None
    assert found.fingerprint == {"length": 2}
    assert [record.index for record in found.iter_records()] == [0, 1]
    with pytest.raises(JournalError, match="was begun by a run with other inputs") as caught:
        reopen_journal(tmp_path, {"length": 1})
    assert caught.value.details == ("length: begun with 2, now 1",)
    reopen_journal(tmp_path, {"length": 2}).close()
