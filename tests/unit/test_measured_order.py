"""What was measured on this machine decides which engine comes first, if all that are installed were measured."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_costs import EngineCosts, TileSample
from unet_deploy.runtime.engines.choice import CPU_ORDERS, candidates, open_engine, ordered_candidates
from unet_deploy.runtime.engines.measured_order import compare
from unet_deploy.runtime.kept_costs import keep_costs

needs_both = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("openvino", "onnxruntime")),
    reason="the extras 'cpu' and 'openvino' are not both installed",
)
Keep = Callable[..., None]


def costs_of(engine: str, seconds: dict[int, float], *, measured: str = "2026-11-21", threads: int = 0) -> EngineCosts:
    """Return costs by the side of a tile."""
    samples = [TileSample(tile_y=n, tile_x=n, batch=1, seconds=s, memory_bytes=1) for n, s in seconds.items()]
    return EngineCosts(
        engine=engine,
        device="cpu",
        precision="fp32",
        threads=threads,
        versions={},
        samples=tuple(samples),
        measured=measured,
    )


@pytest.fixture
def keep(tiny_artifact: Artifact, tmp_path: Path) -> Keep:
    def keep_one(engine: str, seconds: dict[int, float], **settings: Any) -> None:
        assert keep_costs(tiny_artifact, costs_of(engine, seconds, **settings), folder=tmp_path) is not None

    return keep_one


def order(artifact: Artifact, folder: Path, **settings: Any) -> tuple[list[str], dict[str, str]]:
    kinds, whys = ordered_candidates(artifact, costs_folder=folder, **{"device": "cpu", **settings})
    return [kind.name for kind in kinds], whys


USUAL = [*CPU_ORDERS["fp32"].names]


@needs_both
@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_the_faster_one_comes_first(keep: Keep, device: str, tiny_artifact: Artifact, tmp_path: Path) -> None:
    keep("openvino", {204: 1.0, 572: 3.0, 1212: 1.0}, measured="2026-11-22")
    keep("onnxruntime-cpu", {204: 9.0, 572: 2.4})
    names, whys = order(tiny_artifact, tmp_path, device=device)
    gpus = [kind.name for kind in candidates(device) if kind.device == "cuda"]
    assert names == [*gpus, "onnxruntime-cpu", "openvino"]
    assert whys == {"cpu": "measured here on 2026-11-21: onnxruntime-cpu takes 0.80 of openvino's time"}
    opened = open_engine(tiny_artifact, device="cpu", costs_folder=tmp_path)
    try:
        choice = [(v.engine, v.verdict) for v in opened.describe().choice]
    finally:
        opened.close()
    assert choice == [
        ("onnxruntime-cpu", f"first of those that work ({whys['cpu']})"),
        ("openvino", "not tried: onnxruntime-cpu comes first"),
    ]


@needs_both
def test_the_usual_order_may_be_measured_too(keep: Keep, tiny_artifact: Artifact, tmp_path: Path) -> None:
    keep("openvino", {572: 1.0})
    keep("onnxruntime-cpu", {572: 4.0})
    names, whys = order(tiny_artifact, tmp_path)
    assert names == USUAL
    assert whys == {"cpu": "measured here on 2026-11-21: openvino takes 0.25 of onnxruntime-cpu's time"}


@needs_both
@pytest.mark.parametrize("case", ["nothing", "one", "no common tile", "other threads", "another network"])
def test_otherwise_the_order_is_the_usual_one(case: str, keep: Keep, tiny_artifact: Artifact, tmp_path: Path) -> None:
    artifact = tiny_artifact
    if case != "nothing":
        keep("onnxruntime-cpu", {572: 1.0})
    if case not in ("nothing", "one"):
        keep("openvino", {204 if case == "no common tile" else 572: 2.0}, threads=case == "other threads")
    if case == "another network":
        network = replace(tiny_artifact.card.unet, base_width=99)
        artifact = replace(tiny_artifact, card=replace(tiny_artifact.card, network=network))
    assert order(artifact, tmp_path) == (USUAL, {})


def test_what_is_named_is_not_ordered(tiny_artifact: Artifact, tmp_path: Path) -> None:
    assert order(tiny_artifact, tmp_path, engine="openvino") == (["openvino"], {})


def test_three_are_compared_on_the_largest_tile_of_all() -> None:
    a = costs_of("a", {204: 1.0, 572: 3.0, 1212: 1.0}, measured="2026-11-23")
    b, c = costs_of("b", {204: 1.0, 572: 2.0}), costs_of("c", {572: 1.0, 204: 9.0}, measured="2026-11-22")
    assert compare([a, b, c]) == ({"a": 3.0, "b": 2.0, "c": 1.0}, "2026-11-21")
    assert compare([a]) == compare([]) == ({}, "")
