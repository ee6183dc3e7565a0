"""What a run is planned with, before its engine is open: what was measured of the one it will most likely use."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from unet_deploy.card import Network
from unet_deploy.errors import DeviceError
from unet_deploy.runtime import prepare
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_costs import CAUTIOUS, CostModel, EngineCosts, TileSample, rule_for
from unet_deploy.runtime.engines.choice import CPU_ORDERS
from unet_deploy.runtime.expected_costs import (
    PROBE_CORES,
    PROBE_SECONDS,
    costs_of,
    engine_to_go_on_with,
    expect_costs,
    expected_engine,
)
from unet_deploy.runtime.expected_costs import probe_if_long as probe_as_it_is
from unet_deploy.runtime.kept_costs import keep_costs
from unet_deploy.runtime.machine import Gpu, Gpus, Memory
from unet_deploy.runtime.plan import Extents, SegmentationPlan, plan_segmentation
from unet_deploy.runtime.region import parse_region
from unet_deploy.runtime.replanning import plan_as_begun, plan_for_taken

pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")

needs_both = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="the extra 'openvino' is not installed"
)

Artifacts = Callable[..., Artifact]
ORT = "onnxruntime-cpu"
ROOM = Memory(total_bytes=2**36, available_bytes=2**36, limit_bytes=None)


def measured(seconds: float = 0.2, **changes: Any) -> EngineCosts:
    sample = TileSample(tile_y=1212, tile_x=1212, batch=1, seconds=seconds, memory_bytes=2**26)
    costs = EngineCosts(
        engine=ORT, device="cpu", precision="fp32", threads=0, versions={}, samples=(sample,), measured="2026-11-21"
    )
    return replace(costs, **changes)


def probe_if_long(artifact: Artifact, plan: SegmentationPlan, **options: Any) -> CostModel | None:
    """Probe on a quiet machine with much memory, unless something else is said."""
    return probe_as_it_is(artifact, plan, **{"memory": ROOM, "ask_busy": lambda: 0.0, **options})


def plan_of(side: int, network: Network, **options: Any) -> SegmentationPlan:
    return plan_segmentation(network, Extents(t=1, z=1, y=side, x=side), source_chunk=(1, 1024, 1024), **options)


def test_the_engine_named_is_the_one_expected(fake_artifact: Artifacts, tmp_path: Path) -> None:
    assert expected_engine(fake_artifact(), engine=ORT, folder=tmp_path) == ORT
    assert expect_costs(fake_artifact(), engine=ORT, folder=tmp_path) == rule_for(ORT, "fp32")


def test_what_was_measured_here_counts_here_and_nowhere_else(fake_artifact: Artifacts, tmp_path: Path) -> None:
    artifact = fake_artifact()
    assert keep_costs(artifact, measured(), folder=tmp_path) is not None
    assert expect_costs(artifact, engine=ORT, folder=tmp_path) == measured()
    assert expect_costs(artifact, engine=ORT, folder=tmp_path, is_here=False) == rule_for(ORT, "fp32")
    assert expect_costs(artifact, engine=ORT, threads=1, folder=tmp_path) == rule_for(ORT, "fp32")
    other = fake_artifact(base_width=2)
    assert expect_costs(other, engine=ORT, folder=tmp_path) == rule_for(ORT, "fp32")


def test_a_gpu_that_is_not_there_is_not_expected(fake_artifact: Artifacts, tmp_path: Path) -> None:
    none = expected_engine(fake_artifact(), folder=tmp_path, ask=lambda: Gpus(found=(), note="none"))
    assert none in (ORT, "openvino")


def test_half_of_a_gpus_memory_may_be_used(fake_artifact: Artifacts, tmp_path: Path) -> None:
    gpu = Gpu(name="NVIDIA H200", driver="580", memory_bytes=140 * 2**30, compute_capability="9.0")
    costs = costs_of(fake_artifact(), "tensorrt", folder=tmp_path, ask=lambda: Gpus(found=(gpu,), note="made up"))
    assert costs.is_on_device
    assert costs.budget_bytes == 70 * 2**30
    unknown = costs_of(fake_artifact(), "tensorrt", folder=tmp_path, ask=lambda: Gpus(found=(), note="made up"))
    assert unknown.budget_bytes == 2 * 2**30


# Measuring before a long run.


def test_a_long_run_is_measured_first_and_only_once(
    fake_artifact: Artifacts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    artifact, asked = fake_artifact(base_width=16), []

    def measure(artifact: Artifact, **options: Any) -> EngineCosts:
        asked.append(options)
        return measured()

    long = plan_of(200_000, artifact.card.network)
    with caplog.at_level(logging.INFO):
        assert probe_if_long(artifact, long, engine=ORT, folder=tmp_path, measure=measure) == measured()
    assert f"measuring {ORT} for up to 20 s, once for this machine and kind of network" in caplog.text
    assert asked[0]["seconds_limit"] == PROBE_SECONDS
    assert len(asked[0]["tiles"]) > 2
    assert all(y == x and artifact.card.geometry.is_legal(y) for y, x in asked[0]["tiles"])
    known = expect_costs(artifact, engine=ORT, folder=tmp_path)
    assert known == measured()
    again = plan_of(200_000, artifact.card.network, costs=known)
    assert probe_if_long(artifact, again, engine=ORT, folder=tmp_path, measure=measure) is None
    assert len(asked) == 1


def test_a_small_part_of_a_long_run_is_not_measured(fake_artifact: Artifacts, tmp_path: Path) -> None:
    artifact, asked = fake_artifact(base_width=16), []
    plan = plan_of(200_000, artifact.card.network)

    def measure(*_: Any, **__: Any) -> EngineCosts:
        asked.append("measure")
        return measured()

    options = {"engine": ORT, "folder": tmp_path, "measure": measure}
    assert probe_if_long(artifact, plan, region=parse_region("y=0:100,x=0:100"), **options) is None
    assert not asked
    assert probe_if_long(artifact, plan, region=parse_region("y=0:100000"), **options) == measured()


@pytest.mark.parametrize("limit", ["available", "container", "asked for"])
def test_nothing_is_measured_that_the_memory_may_not_hold(limit: str, fake_artifact: Artifacts, tmp_path: Path) -> None:
    """Or the system would end a process for it, perhaps this one."""
    memory = Memory(
        total_bytes=2**36,
        available_bytes=2**30 if limit == "available" else 2**36,
        limit_bytes=2**30 if limit == "container" else None,
    )
    artifact = fake_artifact(base_width=16)
    plan = plan_of(200_000, artifact.card.network)
    most = 2**30 if limit == "asked for" else None
    found = probe_if_long(
        artifact, plan, engine=ORT, folder=tmp_path, memory=memory, max_memory_bytes=most, measure=refuse_loudly
    )
    assert found is None


@pytest.mark.parametrize("case", ["small tiles", "stopped", "busy"])
def test_what_tells_too_little_or_was_disturbed_is_not_kept(
    case: str, fake_artifact: Artifacts, tmp_path: Path
) -> None:
    artifact, told = fake_artifact(base_width=16), measured()
    if case == "small tiles":
        told = replace(told, samples=(replace(told.samples[0], tile_y=412, tile_x=412),))
    found = probe_if_long(
        artifact,
        plan_of(200_000, artifact.card.network),
        engine=ORT,
        folder=tmp_path,
        measure=lambda *_, **__: told,
        should_stop=lambda: case == "stopped",
        ask_busy=lambda: 0.9 if case == "busy" else None,
    )
    assert found == (told if case == "busy" else None)
    assert expect_costs(artifact, engine=ORT, folder=tmp_path) == rule_for(ORT, "fp32")


def test_a_measurement_that_was_stopped_is_no_warning(
    fake_artifact: Artifacts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(10**6, fake_artifact().card.network)
    found = probe_if_long(fake_artifact(), plan, engine=ORT, folder=tmp_path, measure=refuse, should_stop=lambda: True)
    assert found is None
    assert "could not be measured" not in caplog.text


@needs_both
def test_another_engine_may_be_the_first_once_all_were_measured(fake_artifact: Artifacts, tmp_path: Path) -> None:
    artifact = fake_artifact(base_width=16)
    first, other = CPU_ORDERS["fp32"].names
    assert keep_costs(artifact, measured(0.1, engine=other), folder=tmp_path) is not None
    plan = plan_of(200_000, artifact.card.network)
    found = probe_if_long(
        artifact, plan, device="cpu", folder=tmp_path, measure=lambda *_, **__: measured(0.2, engine=first)
    )
    assert found == measured(0.1, engine=other)
    assert expect_costs(artifact, device="cpu", folder=tmp_path) == found
    assert engine_to_go_on_with(artifact, first, device="cpu", folder=tmp_path) == first
    assert engine_to_go_on_with(artifact, other, device="cpu", folder=tmp_path) is None


@pytest.mark.parametrize("name", [None, "", "tensorrt", "an engine of a later release"])
def test_a_run_does_not_go_on_with_what_the_device_does_not_have(
    name: str | None, fake_artifact: Artifacts, tmp_path: Path
) -> None:
    assert engine_to_go_on_with(fake_artifact(), name, device="cpu", folder=tmp_path) is None


def test_a_short_run_is_not_measured(fake_artifact: Artifacts, tmp_path: Path) -> None:
    plan = plan_of(500, fake_artifact().card.network)
    assert probe_if_long(fake_artifact(), plan, engine=ORT, folder=tmp_path, measure=refuse) is None


def test_a_gpu_is_not_measured_unasked(fake_artifact: Artifacts, tmp_path: Path) -> None:
    plan = plan_of(10**6, fake_artifact().card.network, costs=rule_for("tensorrt", "fp32"))
    assert probe_if_long(fake_artifact(), plan, folder=tmp_path, measure=refuse) is None


def test_tiles_that_do_not_fit_are_not_tried(fake_artifact: Artifacts, tmp_path: Path) -> None:
    artifact, asked = fake_artifact(base_width=64), []

    def measure(artifact: Artifact, *, tiles: list[tuple[int, int]], **_: Any) -> EngineCosts:
        asked.extend(tiles)
        return measured()

    plan = plan_of(10**5, artifact.card.network)
    probe_if_long(artifact, plan, engine=ORT, folder=tmp_path, measure=measure)
    assert 0 < len(asked) < len(PROBE_CORES)


def test_an_engine_that_cannot_be_measured_is_used_by_rule(
    fake_artifact: Artifacts, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = plan_of(10**6, fake_artifact().card.network)
    assert probe_if_long(fake_artifact(), plan, engine=ORT, folder=tmp_path, measure=refuse) is None
    assert f"{ORT} could not be measured, and the tile is chosen by rule of thumb: it broke" in caplog.text


def refuse(*_: Any, **__: Any) -> EngineCosts:
    raise DeviceError("it broke", fix="nothing")


def refuse_loudly(*_: Any, **__: Any) -> EngineCosts:
    raise AssertionError("it was measured")


# A run that goes on keeps its tile and blocks, whatever was learnt meanwhile.


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "v.zarr"
    zarr.create_array(str(path), data=np.zeros((600, 700), np.uint8), chunks=(64, 64), dimension_names=("y", "x"))
    return path


def test_the_plan_of_a_run_that_was_begun_is_kept(fake_artifact: Artifacts, volume: Path) -> None:
    artifact = fake_artifact(base_width=32)
    begun = prepare(volume, model=artifact, costs=CAUTIOUS, max_memory_bytes=300 * 2**20).plan
    now = prepare(volume, model=artifact, costs=CAUTIOUS)
    assert (begun.tile_y, begun.tile_x) != (now.plan.tile_y, now.plan.tile_x)
    kept = plan_as_begun(now, begun.to_object()).plan
    assert (kept.tile_y, kept.tile_x, kept.block_shape) == (begun.tile_y, begun.tile_x, begun.block_shape)
    assert kept.reason == begun.reason


def test_a_plan_within_the_limit_stays_when_more_is_foretold_now(fake_artifact: Artifacts, volume: Path) -> None:
    """Or the same command would be refused, since an engine was measured meanwhile."""
    artifact, limit = fake_artifact(base_width=32), 300 * 2**20
    begun = prepare(volume, model=artifact, costs=CAUTIOUS, max_memory_bytes=limit).plan
    heavy = replace(CAUTIOUS, maps_held=14)
    now = prepare(volume, model=artifact, costs=heavy, max_memory_bytes=limit)
    assert (now.plan.tile_y, now.plan.tile_x) != (begun.tile_y, begun.tile_x)
    kept = plan_as_begun(now, begun.to_object(), max_memory_bytes=limit).plan
    assert (kept.tile_y, kept.tile_x, kept.block_shape) == (begun.tile_y, begun.tile_x, begun.block_shape)
    smaller = begun.peak_memory_bytes - 2**20  # somebody wants less than the run began with
    assert plan_as_begun(now, begun.to_object(), max_memory_bytes=smaller) == now


def test_a_smaller_cache_is_no_other_plan(fake_artifact: Artifacts, volume: Path) -> None:
    artifact = fake_artifact(base_width=32)
    now = prepare(volume, model=artifact, costs=CAUTIOUS)
    limit = now.plan.peak_memory_bytes - now.plan.cache_bytes // 2
    kept = plan_as_begun(now, now.plan.to_object(), max_memory_bytes=limit).plan
    assert kept.peak_memory_bytes <= limit
    assert replace(kept, cache_bytes=now.plan.cache_bytes) == now.plan


def test_blocks_are_kept_of_a_tile_that_was_given_too(fake_artifact: Artifacts, volume: Path) -> None:
    now = prepare(volume, model=fake_artifact(), costs=CAUTIOUS, tile=(60, 60))
    said = {**now.plan.to_object(), "block": [1, *(2 * n for n in now.plan.grid.unit[1:])]}
    assert list(plan_as_begun(now, said, tile=(60, 60)).plan.block_shape) == said["block"]
    assert plan_as_begun(now, {**said, "tile": [44, 44]}, tile=(60, 60)) == now


def test_a_tile_for_a_gpu_is_none_for_main_memory(fake_artifact: Artifacts, volume: Path) -> None:
    """Where the GPU that was expected cannot be used, the run falls back to the CPU."""
    artifact, room = fake_artifact(base_width=32), 40 * 2**20
    gpu = replace(rule_for("tensorrt", "fp32"), budget_bytes=2**36)
    cpu = replace(rule_for(ORT, "fp32"), budget_bytes=room)
    ready = prepare(volume, model=artifact, costs=gpu)
    kept = plan_for_taken(ready, cpu, may_change=False).plan
    assert (kept.batch_shape, kept.costs) == (ready.plan.batch_shape, cpu)
    assert kept.engine_memory_bytes > room
    now = plan_for_taken(ready, cpu, may_change=True, batch=1, max_memory_bytes=None, tta=False).plan
    assert now.engine_memory_bytes <= room
    assert now == prepare(volume, model=artifact, costs=cpu).plan
    same = plan_for_taken(ready, replace(gpu, maps_held=5), may_change=True).plan
    assert same.batch_shape == ready.plan.batch_shape


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"tile": [44, 44]},
        {"tile": [45, 44], "block": [1, 608, 704], "batch": 1},
        {"tile": [44, 44], "block": [1, 5, 704], "batch": 1},
        {"tile": [44, 44], "block": [1, 608, 704], "batch": 2},
        {"tile": [True, 44], "block": [1, 608, 704], "batch": 1},
        {"tile": "44", "block": None, "batch": 1},
    ],
)
def test_a_plan_that_cannot_be_is_not_taken(fake_artifact: Artifacts, volume: Path, said: dict[str, Any]) -> None:
    now = prepare(volume, model=fake_artifact(), costs=CAUTIOUS)
    assert plan_as_begun(now, said) == now
