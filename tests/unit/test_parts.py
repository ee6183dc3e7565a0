"""A run of a part: the numbers of a whole run, and the next command goes on with the rest."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from tests.conftest import ArtifactFactory
from tests.tiny import make_pixels, snapshot, write_image
from unet_deploy.errors import (
    ConfigurationError,
    InterruptedRunError,
    NoSpaceError,
    OutputExistsError,
    OutputPathError,
    UsageError,
)
from unet_deploy.runtime import Progress, parse_region, segment
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.disk_space import check_space
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.instances import check_objects_table
from unet_deploy.runtime.journal import read_journal
from unet_deploy.runtime.output_paths import read_provenance
from unet_deploy.runtime.place import Place, share_to_make
from unet_deploy.runtime.preparation import prepare
from unet_deploy.runtime.resume import Begun
from unet_deploy.runtime.scheduling import connect
from unet_deploy.runtime.segmenter import Segmenter

Run = Callable[..., Any]
PLANE = 70 * 90
ARRAYS = ("0", "labels/segmentation/0", "unet_deploy_run")


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A volume of 12 planes, each a block."""
    return write_image(tmp_path / "brain.zarr", make_pixels((12, 70, 90)))


@pytest.fixture
def run(
    volume: Path, tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Callable[[Artifact], FakeEngine]
) -> Run:
    """Segment it into a store of a name."""

    def call(name: str, **options: Any) -> Any:
        return segment(
            volume,
            output=tmp_path / f"{name}.zarr",
            model=fake_artifact(),
            engine_factory=fake_factory,
            **options,
        )

    return call


def values_of(store: Path) -> dict[str, Any]:
    """Return an output's arrays."""
    return {name: zarr.open_array(store / name)[...] for name in ARRAYS}


def status_of(store: Path) -> Any:
    """Return what an output says it is."""
    found = read_provenance(store)
    assert found is not None
    return found["status"]


def test_a_region_has_the_numbers_of_the_whole_and_the_rest_follows(run: Run) -> None:
    whole = run("whole")
    assert whole.plan.n_blocks == 12
    expected = values_of(whole.output)
    part = run("part", region=parse_region("z=1:3,y=7:8"))
    assert (part.status, status_of(part.output)) == ("region", "region")
    assert part.pixels == 2 * PLANE
    found = values_of(part.output)
    assert found["unet_deploy_run"].ravel().tolist() == [0, 1, 1, *[0] * 9]
    for name in ARRAYS[:2]:
        np.testing.assert_array_equal(found[name][..., 1:3, :, :], expected[name][..., 1:3, :, :])
        assert not found[name][..., 3:, :, :].any()
    assert zarr.open_group(part.output).attrs["ome"]  # opens in a viewer as it is
    more = run("part", region=parse_region("z=2:5"))
    assert (more.status, more.blocks_found, more.pixels) == ("region", 1, 2 * PLANE)
    rest = run("part")
    assert (rest.status, status_of(rest.output)) == ("complete", "complete")
    assert rest.pixels == 8 * PLANE
    for name, value in values_of(rest.output).items():
        np.testing.assert_array_equal(value, expected[name])


def test_a_first_look_needs_the_disk_for_that_part_alone(tmp_path: Path, fake_artifact: ArtifactFactory) -> None:
    """The whole result would be larger than any disk; a plane of it is not. The rest is checked when it is asked."""
    volume = tmp_path / "huge.zarr"
    zarr.create_array(volume, shape=(10**12, 70, 90), chunks=(1, 70, 90), dtype="uint8")
    ready, output = prepare(volume, model=fake_artifact()), tmp_path / "out.zarr"
    spec = ready.output_spec(output, ("labels",))
    new = Place(target=output, begun=None, may_replace=False, again=False)
    assert share_to_make(ready.plan, new, None) == 1
    with pytest.raises(NoSpaceError, match=r"^the result may take"):
        check_space(spec, share=share_to_make(ready.plan, new, None))
    check_space(spec, share=share_to_make(ready.plan, new, parse_region("z=5")))
    begun = replace(new, begun=Begun(provenance={"status": "region"}, n_blocks=10**12 - 1))
    check_space(spec, share=share_to_make(ready.plan, begun, None))  # all but one plane are there


def test_a_region_outside_is_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=r"z"):
        run("part", region=parse_region("z=11:13"))
    assert snapshot(tmp_path) == before


def test_a_part_of_a_finished_output_is_made_again_only_if_told(run: Run, volume: Path) -> None:
    first = run("out")
    before = values_of(first.output)
    array: Any = zarr.open_array(volume / "0", mode="r+")
    array[1] = 255 - array[1]  # mended
    with pytest.raises(OutputExistsError, match=r"exists"):
        run("out", region=parse_region("z=1:2,y=0:1,x=0:1"))
    again = run("out", region=parse_region("z=1:2,y=0:1,x=0:1"), overwrite=True)
    assert again.status == "complete"
    assert again.pixels == PLANE
    found, fresh = values_of(again.output), values_of(run("fresh").output)
    label = "labels/segmentation/0"
    np.testing.assert_array_equal(found[label], fresh[label])
    assert [z for z in range(12) if (found[label][z] != before[label][z]).any()] == [1]
    assert again.class_fractions == pytest.approx(
        {name: float((found[label] == i).mean()) for i, name in enumerate(again.class_fractions)}
    )


def test_a_part_made_again_and_broken_off_is_gone_on_with(run: Run) -> None:
    first = run("out")
    told: list[Progress] = []
    part = {"region": parse_region("z=2:10"), "overwrite": True}
    with pytest.raises(InterruptedRunError, match=r"^stopped with \d of 8 blocks done"):
        run("out", **part, should_stop=lambda: bool(told), progress=told.append)
    assert status_of(first.output) == "running"
    journal, image = read_journal(first.output), zarr.open_array(first.output / "unet_deploy_run")
    assert journal is not None
    assert np.asarray(image).tobytes() == journal.status_values(12)
    assert not np.asarray(image).all()
    rest = run("out")
    assert rest.status == "complete"
    assert 0 < rest.pixels < 8 * PLANE  # what was made again in time is not made a third time


def test_the_pyramid_of_a_part_that_was_broken_off_is_not_forgotten(
    tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Callable[[Artifact], FakeEngine]
) -> None:
    volume = write_image(tmp_path / "wide.zarr", make_pixels((3, 70, 900)))
    small: dict[str, Any] = {"model": fake_artifact(), "engine_factory": fake_factory, **SMALL_BLOCKS}
    whole = segment(volume, output=tmp_path / "whole.zarr", **small)
    assert whole.plan.block_counts == (1, 3, 2, 5)
    told: list[Progress] = []
    with pytest.raises(InterruptedRunError, match=r"^stopped with 1\d of 20 blocks done"):  # all of the first plane's
        segment(
            volume,
            output=tmp_path / "out.zarr",
            region=parse_region("z=0:2"),
            should_stop=lambda: len(told) > 9,
            progress=told.append,
            **small,
        )
    rest = segment(volume, output=tmp_path / "out.zarr", region=parse_region("z=1:3"), **small)
    assert rest.status == "complete"
    for name in ("1", "labels/segmentation/1"):
        found, expected = (zarr.open_array(store / name)[...] for store in (rest.output, whole.output))
        np.testing.assert_array_equal(found, expected)


def test_objects_are_not_left_behind_by_labels_that_change(run: Run) -> None:
    first = run("out", write=["labels", "instances"])
    assert first.instances is not None
    with pytest.raises(ConfigurationError, match=r"^the objects of .* would no longer fit its labels") as caught:
        run("out", write=["labels"], region=parse_region("z=0"), overwrite=True)
    assert "--write instances" in caught.value.fix
    again = run("out", write=["labels", "instances"], region=parse_region("z=0"), overwrite=True)
    assert again.instances is not None
    assert again.instances.count == first.instances.count


def test_objects_wait_for_the_whole_volume(run: Run) -> None:
    part = run("out", write=["labels", "instances"], region=parse_region("z=0"))
    assert part.instances is None
    assert not (part.output / "labels" / "instances").exists()
    assert run("out", write=["labels", "instances"]).instances is not None


def test_a_table_has_a_row_for_each_block(run: Run, tmp_path: Path) -> None:
    result = run("out", table=tmp_path / "blocks.csv", region=parse_region("z=0:2"))
    assert result.table == tmp_path / "blocks.csv"
    rows = [*csv.DictReader((tmp_path / "blocks.csv").read_text(encoding="utf-8").splitlines())]
    assert len(rows) == result.plan.n_blocks
    assert {row["status"] for row in rows} == {"done", "pending"}
    assert sum(int(row["pixels"]) for row in rows if row["status"] == "done") == result.pixels


def test_what_another_run_finished_meanwhile_is_not_replaced(
    run: Run, volume: Path, fake_artifact: ArtifactFactory, fake_factory: Callable[[Artifact], FakeEngine]
) -> None:
    """This run found the output without a block, and measures the volume while another makes them all."""
    with pytest.raises(InterruptedRunError, match=r"^stopped with 0 of 12 blocks done"):
        run("out", should_stop=lambda: True)
    output = volume.with_name("out.zarr")
    made: list[dict[str, Any]] = []

    def measuring(progress: Progress) -> None:
        if progress.stage == "statistics" and not made:
            run("out")
            made.append(snapshot(output))

    with pytest.raises(OutputExistsError, match=r"^the output .* exists"):
        segment(
            volume,
            output=output,
            model=fake_artifact(percentiles=(1.0, 99.0)),
            engine_factory=fake_factory,
            progress=measuring,
        )
    assert status_of(output) == "complete"
    assert [snapshot(output)] == made


def test_a_paused_run_goes_on(run: Run) -> None:
    states = iter([False, True, True])
    told: list[Progress] = []
    result = run("out", should_pause=lambda: next(states, False), progress=told.append)
    assert result.status == "complete"
    assert [p.done for p in told if p.stage == "segment"] == [*range(1, 13)]


def test_a_run_that_is_paused_can_be_stopped(run: Run) -> None:
    with pytest.raises(InterruptedRunError, match=r"^stopped with 0 of 12 blocks done"):
        run("out", should_pause=lambda: True, should_stop=lambda: True)


SMALL_BLOCKS: dict[str, Any] = {"tile": (112, 232), "max_memory_bytes": 256 * 2**20}
"""Several along y and x of a small plane."""
OBJECTS = {"write": ("labels", "instances")}


def test_the_table_of_objects_replaces_nothing_unasked(run: Run, tmp_path: Path) -> None:
    """Nobody names it, so what lies at its place may be anything."""
    table = tmp_path / "out_objects.csv"
    table.write_text("id,class,pixels\n1,mine,7\n")
    before = snapshot(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(
            OutputPathError, match=r"^the table of objects would go to .*out_objects.csv, where somethi"
        ) as caught:
            run("out", **OBJECTS, overwrite=overwrite)
        assert "it is no table of objects written by unet-deploy, so it is never replaced" in str(caught.value)
        assert snapshot(tmp_path) == before
    table.unlink()
    assert run("out", **OBJECTS).instances.table == table
    assert not run("other").output.with_name("other_objects.csv").exists()
    table.replace(tmp_path / "new_objects.csv")
    with pytest.raises(
        OutputExistsError, match=r"^the table of objects .*new_objects.csv exists\n  nothing was written"
    ):
        run("new", **OBJECTS)
    assert not (tmp_path / "new.zarr").exists()
    assert run("new", **OBJECTS, overwrite=True).status == "complete"
    assert run("new", **OBJECTS, overwrite=True, region=parse_region("z=1:2")).status == "complete"


def test_a_place_for_the_table_of_objects_where_nobody_may_write_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        OutputPathError, match=r"^the table of objects .*objects.csv cannot be written\n  you may not write in"
    ):
        check_objects_table(tmp_path / "nowhere" / "a_objects.csv", overwrite=True)


def test_a_table_that_outlives_its_objects_is_told_of(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run("out", **OBJECTS)
    run("out", overwrite=True)
    assert f"{tmp_path / 'out_objects.csv'} lists objects of an earlier segmentation; no objects are" in caplog.text


@pytest.mark.parametrize("stage", ["segment", "pyramid", "instances"])
def test_a_run_that_ends_in_an_error_leaves_no_task_behind(
    stage: str, tmp_path: Path, fake_artifact: ArtifactFactory, fake_factory: Callable[[Artifact], FakeEngine]
) -> None:
    """Whoever keeps the error keeps the frames in which it came; a client of many runs does not go on with this one."""
    volume = write_image(tmp_path / "wide.zarr", make_pixels((2, 70, 900)))

    def fail(progress: Progress) -> None:
        if progress.stage == stage:
            raise KeyboardInterrupt

    small: dict[str, Any] = {"engine_factory": fake_factory, **SMALL_BLOCKS}
    with connect() as client, Segmenter(fake_artifact(), scheduler=client, **small) as segmenter:
        with pytest.raises(KeyboardInterrupt) as caught:
            segmenter.segment(volume, output=tmp_path / "out.zarr", progress=fail, **OBJECTS)
        assert caught.tb is not None
        deadline = time.monotonic() + 30
        while client.futures and time.monotonic() < deadline:  # the client lets go of them in a thread of its own
            time.sleep(0.05)
        assert not client.futures
