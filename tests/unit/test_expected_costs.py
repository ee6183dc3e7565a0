"""What a run is planned with, before its engine is open: what was measured of the one it will most likely use."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.contract.volumes import write_image
from unet_deploy.card import Network
from unet_deploy.errors import DeviceError
from unet_deploy.runtime import prepare
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_costs import CAUTIOUS, EngineCosts, TileSample, rule_for
from unet_deploy.runtime.expected_costs import (
    PROBE_CORES,
    PROBE_SECONDS,
    costs_of,
    expect_costs,
    expected_engine,
    probe_if_long,
)
from unet_deploy.runtime.kept_costs import keep_costs
from unet_deploy.runtime.machine import Gpu, Gpus
from unet_deploy.runtime.plan import Extents, SegmentationPlan, plan_segmentation
from unet_deploy.runtime.preparation import plan_as_begun

pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")

Artifacts = Callable[..., Artifact]
ORT = "onnxruntime-cpu"


def measured(seconds: float = 0.2, **changes: Any) -> EngineCosts:
    sample = TileSample(tile_y=572, tile_x=572, batch=1, seconds=seconds, memory_bytes=2**26)
    costs = EngineCosts(
        engine=ORT, device="cpu", precision="fp32", threads=0, versions={}, samples=(sample,), measured="2026-11-21"
    )
    return replace(costs, **changes)


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


# A run that goes on keeps its tile and blocks, whatever was learnt meanwhile.


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return write_image(tmp_path / "v.zarr", np.zeros((600, 700), np.uint8), axes="yx", version="0.5")


def test_the_plan_of_a_run_that_was_begun_is_kept(fake_artifact: Artifacts, volume: Path) -> None:
    artifact = fake_artifact(base_width=32)
    begun = prepare(volume, model=artifact, costs=CAUTIOUS, max_memory_bytes=450 * 2**20).plan
    now = prepare(volume, model=artifact, costs=CAUTIOUS)
    assert (begun.tile_y, begun.tile_x) != (now.plan.tile_y, now.plan.tile_x)
    kept = plan_as_begun(now, begun.to_object()).plan
    assert (kept.tile_y, kept.tile_x, kept.block_shape) == (begun.tile_y, begun.tile_x, begun.block_shape)
    assert kept.reason == begun.reason


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
