"""A profile of real runs: what it says, and that nothing else is changed by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster

from tests.tiny import make_pixels, snapshot, write_array
from unet_deploy.errors import InterruptedRunError, OutputExistsError, PartialResultError, UsageError
from unet_deploy.runtime import Segmenter, segment
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.fake import FakeEngine
from unet_deploy.runtime.region import parse_region
from unet_deploy.runtime.timeline import span
from unet_deploy.runtime.timeline_page import GROUPS

Options = dict[str, Any]
NAMES = {name for _, _, names in GROUPS.values() for name in names}


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """Return a volume of 3 planes in blocks of one plane."""
    return write_array(tmp_path / "brain.zarr", make_pixels((3, 70, 90)), chunk_side=64)


@pytest.fixture
def options(
    tmp_path: Path, fake_artifact: Callable[..., Artifact], fake_factory: Callable[[Artifact], FakeEngine]
) -> Options:
    return {"model": fake_artifact(), "engine_factory": fake_factory, "output": tmp_path / "out.zarr"}


def pixels_of(store: Path) -> dict[str, str]:
    """Return what every file of an output holds but those that say when and how long."""
    return {
        name: content
        for name, content in snapshot(store).items()
        if "journal" not in name and Path(name) != Path("zarr.json")
    }


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def test_where_the_time_of_a_run_went(volume: Path, options: Options, tmp_path: Path) -> None:
    result = segment(volume, **options, profile=tmp_path / "p.html")
    profile = result.profile
    assert profile is not None
    stages = {stage.name: stage for stage in profile.stages}
    assert {*stages} <= NAMES
    blocks = result.plan.n_blocks
    for name in ("read", "mirror", "wait", "hold", "measure", "write", "write labels", "write probabilities"):
        assert stages[name].count >= blocks, name
    for name in ("open volume", "plan", "open engine", "connect", "statistics", "prove", "create output", "finish"):
        assert stages[name].count >= 1, name
    assert stages["journal"].count == blocks
    assert stages["label"].count == 2 * stages["infer"].count > 0  # what a helper does, and its being waited for
    assert stages["normalise"].count > stages["label"].count
    assert 0 < profile.device.busy_share <= 1
    assert profile.device.workers == 1
    assert profile.run_s >= result.seconds["total"]
    assert (profile.part, profile.n_left_out) == (None, 0)
    text = profile.path.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert text.count("<rect x=") == profile.n_spans
    assert str(volume) in text
    assert span("read") is span("write")  # nothing records any more


def test_the_result_is_the_same_to_the_byte(volume: Path, options: Options, tmp_path: Path) -> None:
    segment(volume, **options)
    plain = pixels_of(tmp_path / "out.zarr")
    assert len(plain) > 5
    segment(volume, **{**options, "output": tmp_path / "again.zarr"}, profile=tmp_path / "p.json")
    assert pixels_of(tmp_path / "again.zarr") == plain


def test_without_a_profile_nothing_is_recorded(volume: Path, options: Options) -> None:
    assert segment(volume, **options).profile is None


def test_the_spans_of_a_block_lie_within_it(volume: Path, options: Options, tmp_path: Path) -> None:
    segment(volume, **options, profile=tmp_path / "p.json")
    events = [event for event in read(tmp_path / "p.json")["traceEvents"] if event["ph"] == "X"]
    assert {event["args"]["block"] for event in events if event["name"] == "hold"} == {0, 1, 2}
    for block in range(3):
        of_block = [event for event in events if event["args"].get("block") == block]
        ends = {event["name"]: (event["ts"], event["ts"] + event["dur"]) for event in of_block}
        assert ends["read"][1] <= ends["wait"][0] <= ends["wait"][1] <= ends["hold"][0]
        assert ends["hold"][0] <= ends["infer"][0] <= ends["infer"][1] <= ends["hold"][1] <= ends["write"][0]
    assert all(event["ts"] >= 0 for event in events)


def test_a_wrong_suffix_is_refused_before_any_work(options: Options, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"the profile .*p\.png ends in '\.png'"):
        segment(tmp_path / "no.zarr", **options, profile=tmp_path / "p.png")


def test_what_exists_stays_unless_asked_for(volume: Path, options: Options, tmp_path: Path) -> None:
    page = tmp_path / "p.html"
    page.write_text("mine")
    with pytest.raises(OutputExistsError, match=r"the profile .*p\.html exists"):
        segment(volume, **options, profile=page)
    assert not options["output"].exists()
    assert page.read_text() == "mine"
    assert segment(volume, **options, profile=page, overwrite=True).profile is not None
    assert page.read_text(encoding="utf-8") != "mine"


def test_a_stopped_run_has_one_and_the_next_one_says_what_it_lacks(
    volume: Path, options: Options, tmp_path: Path
) -> None:
    page = tmp_path / "p.json"
    asked = iter([False, True])
    with pytest.raises(InterruptedRunError):
        segment(volume, **options, profile=page, should_stop=lambda: next(asked, True))
    first = read(page)["otherData"]["profile"]
    assert first["part"] == "stopped with 1 of 3 blocks done"
    assert first["stages"]["journal"]["count"] == 1
    assert span("read") is span("write")
    result = segment(volume, **options, profile=page)
    assert result.profile is not None
    assert result.profile.part == "1 of 3 blocks were done by an earlier run"
    assert read(page)["otherData"]["profile"]["stages"]["journal"]["count"] == 2


def test_a_region_says_what_is_left(volume: Path, options: Options, tmp_path: Path) -> None:
    result = segment(volume, **options, profile=tmp_path / "p.html", region=parse_region("z=1:2"))
    assert result.profile is not None
    assert result.profile.part == "2 of 3 blocks are yet to be done"


class Failing(FakeEngine):
    """Fails at the first tile that it is given."""

    failed = False

    def infer(self, batch: Any) -> Any:
        if not Failing.failed:
            Failing.failed = True
            raise OSError("the device is gone")
        return super().infer(batch)


def test_a_run_with_failed_blocks_has_one(volume: Path, options: Options, tmp_path: Path) -> None:
    Failing.failed = False

    def make(artifact: Artifact) -> FakeEngine:
        return Failing(artifact.card.network)

    with pytest.raises(PartialResultError) as caught:
        segment(volume, **{**options, "engine_factory": make}, profile=tmp_path / "p.html")
    result: Any = caught.value.result
    assert result.profile.path == tmp_path / "p.html"
    assert "1 of 3" in str(caught.value)


@pytest.mark.slow
def test_several_worker_processes_share_an_axis(volume: Path, tiny_artifact: Artifact, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        result = segment(
            volume,
            model=tiny_artifact,
            engine="onnxruntime-cpu",
            output=tmp_path / "out.zarr",
            scheduler=client,
            profile=tmp_path / "p.json",
        )
    assert result.profile is not None
    assert 1 <= result.profile.device.workers <= 2
    found = read(tmp_path / "p.json")
    events = [event for event in found["traceEvents"] if event["ph"] == "X"]
    tiles = [event for event in events if event["name"] == "infer"]
    assert tiles
    assert {event["pid"] for event in tiles}.isdisjoint({0})  # the run's own process made none
    for event in events:
        assert -0.1e6 <= event["ts"] <= event["ts"] + event["dur"] <= (result.profile.run_s + 0.1) * 1e6


def test_an_engine_that_takes_bytes_has_the_batches_that_are_on_their_way(
    volume: Path, options: Options, tmp_path: Path
) -> None:
    def make(artifact: Artifact) -> FakeEngine:
        return FakeEngine(artifact.card.network, takes_bytes=True)

    result = segment(volume, **{**options, "engine_factory": make}, profile=tmp_path / "p.json")
    assert result.profile is not None
    stages = {stage.name: stage.count for stage in result.profile.stages}
    assert "normalise" not in stages
    assert stages["gather"] == stages["label"] == result.plan.n_tiles
    events = [event for event in read(tmp_path / "p.json")["traceEvents"] if event["ph"] == "X"]
    own = [event for event in events if event["name"] == "infer"]
    assert len(own) == result.plan.n_blocks + result.plan.n_tiles  # of each block's thread, and of each batch
    assert 0 < result.profile.device.busy_share <= 1


def test_a_segmenter_writes_one_for_each_volume(volume: Path, options: Options, tmp_path: Path) -> None:
    with Segmenter(options["model"], engine_factory=options["engine_factory"]) as segmenter:
        first = segmenter.segment(volume, output=tmp_path / "a.zarr", profile=tmp_path / "a.html")
        second = segmenter.segment(volume, output=tmp_path / "b.zarr", profile=tmp_path / "b.html")
    assert first.profile is not None
    assert second.profile is not None
    assert "open engine" in {stage.name for stage in first.profile.stages}
    assert "open engine" not in {stage.name for stage in second.profile.stages}  # it was open


def test_blocks_of_one_grey_value_use_no_engine(options: Options, tmp_path: Path) -> None:
    grey = make_pixels((2, 70, 90))
    grey[:] = 7
    volume = write_array(tmp_path / "grey.zarr", grey)
    result = segment(volume, **options, profile=tmp_path / "p.html")
    assert result.profile is not None
    assert result.n_empty == 2
    assert result.profile.device.busy_share <= 1  # the engine was asked once what it says of such a tile
