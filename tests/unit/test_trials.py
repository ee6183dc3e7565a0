"""What is tried on a machine, what is left out and why, and what is advised."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.test_planned_tiles import planned
from unet_deploy.errors import UnknownNameError, UsageError
from unet_deploy.runtime.advice import advise, plan_tile
from unet_deploy.runtime.artifact import Artifact, load_artifact
from unet_deploy.runtime.engine_costs import EngineCosts, TileSample, rule_for
from unet_deploy.runtime.engine_plan import Profile
from unet_deploy.runtime.engines.choice import CPU_ORDERS, NO_GPU
from unet_deploy.runtime.kept_costs import keep_costs
from unet_deploy.runtime.machine import Gpu, Gpus, Memory
from unet_deploy.runtime.trials import (
    Trial,
    available_bytes,
    find_siblings,
    rank,
    run_trials,
    split_by_use,
    tile_sides,
)

needs_both = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("openvino", "onnxruntime")),
    reason="the extras 'cpu' and 'openvino' are not both installed",
)
CORES = (16, 64)
PLENTY = Memory(total_bytes=2**40, available_bytes=2**40, limit_bytes=None)
Maker = Callable[..., Artifact]


def no_gpus() -> Gpus:
    return Gpus(found=(), note="none")


def trial_of(artifact: Artifact, engine: str, seconds: dict[int, float]) -> Trial:
    """Return a trial with these seconds by the side of a tile."""
    samples = [TileSample(tile_y=n, tile_x=n, batch=1, seconds=s, memory_bytes=10**6) for n, s in seconds.items()]
    costs = EngineCosts(
        engine=engine,
        device="cpu",
        precision=artifact.card.precision,
        threads=0,
        versions={},
        samples=tuple(samples),
        measured="2026-11-21",
    )
    return Trial(artifact=artifact, engine=engine, costs=costs)


# ---- files


def test_the_other_precisions_lie_beside(tiny_products: dict[str, Path], tmp_path: Path) -> None:
    for precision, path in tiny_products.items():
        found, notes = find_siblings(load_artifact(path))
        assert (found[0].card.precision, notes) == (precision, ())
        assert {artifact.card.precision for artifact in found} == {"fp32", "fp16", "int8"}
    alone = shutil.copy(tiny_products["fp32"], tmp_path / "alone.onnx")
    assert len(find_siblings(load_artifact(alone))[0]) == 1


def test_a_file_beside_of_another_network_is_left_out(
    tiny_products: dict[str, Path], tiny_model: Path, tmp_path: Path
) -> None:
    from tests.tiny import edit_card

    one = tmp_path / "m.onnx"
    shutil.copy(tiny_products["fp32"], one)
    edit_card(tiny_products["int8"], tmp_path / "m.int8.onnx", lambda card: card.update(parent_sha256="0" * 64))
    (tmp_path / "m.fp16.onnx").write_bytes(b"nothing")
    found, notes = find_siblings(load_artifact(one))
    assert len(found) == 1
    assert notes == (
        f"{tmp_path / 'm.int8.onnx'}: made from another network than m.onnx",
        f"{tmp_path / 'm.fp16.onnx'}: {tmp_path / 'm.fp16.onnx'} is not an ONNX file, or is damaged",
    )


def test_a_bundled_network_has_nothing_beside_it(fake_artifact: Maker) -> None:
    artifact = replace(fake_artifact(), source="bundled membrane.onnx")
    assert find_siblings(artifact) == ((artifact,), ())


def test_fp16_is_for_gpus(tiny_products: dict[str, Path]) -> None:
    fp32, int8, fp16 = (load_artifact(tiny_products[precision]) for precision in ("fp32", "int8", "fp16"))
    gpu = Gpu(name="one", driver="1", memory_bytes=None, compute_capability=None)

    def one_gpu() -> Gpus:
        return Gpus(found=(gpu,), note="made up")

    assert split_by_use([fp32, int8, fp16], device="auto", ask=no_gpus) == ([fp32, int8], [fp16])
    assert split_by_use([fp32, int8, fp16], device="cpu", ask=one_gpu) == ([fp32, int8], [fp16])
    assert split_by_use([fp32, int8, fp16], device="auto", ask=one_gpu) == ([fp32, int8, fp16], [])
    assert split_by_use([fp16, fp32], device="cpu", ask=no_gpus) == ([fp16, fp32], [])  # it was asked for


# ---- what is run


@needs_both
def test_engines_take_turns(tiny_products: dict[str, Path]) -> None:
    artifacts = [load_artifact(tiny_products[precision]) for precision in ("fp32", "int8")]
    said: list[str] = []
    trials = run_trials(artifacts, device="cpu", threads=1, cores=CORES, seconds=60, memory=PLENTY, say=said.append)
    assert said == ["fp32 on openvino, onnxruntime-cpu (1 of 2)", "int8 on openvino, onnxruntime-cpu (2 of 2)"]
    assert [(t.artifact.card.precision, t.engine) for t in trials] == [
        (p, name) for p in ("fp32", "int8") for name in CPU_ORDERS[p].names
    ]
    sides = [artifacts[0].card.geometry.tile_side(core) for core in CORES]
    for trial in trials:
        assert trial.costs is not None
        assert [s.tile_y for s in trial.costs.samples] == sides
        assert (trial.costs.threads, trial.left_out, trial.reason) == (1, (), "")
    rows = rank(trials)
    assert len(rows) == 8
    assert rows[0].relative_time == 1.0
    assert [r.pixels_per_second for r in rows] == sorted((r.pixels_per_second for r in rows), reverse=True)


@needs_both
def test_what_there_is_no_time_or_memory_for_is_left_out(tiny_artifact: Artifact) -> None:
    small = Memory(total_bytes=2**30, available_bytes=2**10, limit_bytes=None)
    for engine, memory, why in ((None, PLENTY, "time"), ("onnxruntime-cpu", small, "memory")):
        trials = run_trials(
            [tiny_artifact],
            device="cpu",
            engine=engine,
            cores=CORES,
            seconds=0 if why == "time" else 9,
            memory=memory,
        )
        assert len(trials) == (2 if engine is None else 1)
        for trial in trials:
            assert trial.costs is not None
            assert len(trial.costs.samples) == 1
            assert trial.left_out == ((64, why),)


@needs_both
def test_a_second_file_waits_for_time(tiny_products: dict[str, Path]) -> None:
    artifacts = [load_artifact(tiny_products[precision]) for precision in ("fp32", "int8")]
    said: list[str] = []
    trials = run_trials(artifacts, engine="onnxruntime-cpu", cores=CORES, seconds=0, memory=PLENTY, say=said.append)
    assert said == ["fp32 on onnxruntime-cpu (1 of 2)"]
    assert [(trial.costs is None, trial.reason) for trial in trials] == [(False, ""), (True, "there was no time")]


def test_what_cannot_be_tried_has_its_reason(tiny_artifact: Artifact) -> None:
    trials = run_trials([tiny_artifact], device="cuda", seconds=1, ask=no_gpus)
    assert {(t.reason, t.fix) for t in trials} == {(NO_GPU, "install the GPU's driver, if there is one")}
    assert len(trials) == 3
    with pytest.raises(UnknownNameError, match="unknown engine: 'torch'"):
        run_trials([tiny_artifact], engine="torch", seconds=1)


def test_an_engine_plan_is_tried_on_its_own_engine_within_its_sizes(fake_artifact: Maker) -> None:
    small = Profile(minimum=(1, 1, 44, 44), optimum=(1, 1, 76, 76), maximum=(2, 1, 140, 140))
    plan = planned(fake_artifact, small)
    assert tile_sides(plan, (16, 64, 96, 128)) == (56, 104, 136)
    assert tile_sides(plan, (128,)) == (168,)  # opening the engine says what it takes
    assert plan_tile(plan, rule_for("tensorrt", "fp32")) == (140, 140)
    (trial,) = run_trials([plan], seconds=1, ask=no_gpus)
    assert (trial.engine, trial.reason) == ("tensorrt", NO_GPU)
    said: list[str] = []
    with pytest.raises(UsageError, match=r"^engine openvino was asked for, and x\.engine is a plan of tensorrt\n"):
        run_trials([fake_artifact(), plan], engine="openvino", seconds=1, say=said.append)
    assert said == []  # before anything was measured


def test_an_engine_that_does_not_open_has_its_reason(tiny_artifact: Artifact) -> None:
    pytest.importorskip("onnxruntime", reason="the extra 'cpu' is not installed")
    broken = replace(tiny_artifact, data=b"nothing")
    (trial,) = run_trials([broken], engine="onnxruntime-cpu", seconds=1)
    assert trial.costs is None
    assert trial.best is None
    assert trial.reason.startswith("onnxruntime ")
    assert trial.fix == "export the model again with this release"


@pytest.mark.parametrize(
    ("available", "limit", "expected"), [(None, None, None), (5, None, 5), (5, 3, 3), (None, 3, 3), (2, 3, 2)]
)
def test_memory_is_what_is_known(available: int | None, limit: int | None, expected: int | None) -> None:
    assert available_bytes(Memory(total_bytes=9, available_bytes=available, limit_bytes=limit)) == expected


def test_small_tiles_alone_tell_too_little(fake_artifact: Maker) -> None:
    trial = trial_of(fake_artifact(), "openvino", {104: 1.0})
    assert trial.is_telling
    for left_out, is_telling in (
        ((1024, "time"), True),
        ((768, "time"), False),
        ((384, "time"), False),
        ((384, "memory"), True),
    ):
        assert replace(trial, left_out=(left_out,)).is_telling == is_telling
    assert not replace(trial, costs=None).is_telling


# ---- advice


def test_of_equal_tiles_the_smaller_is_the_best(fake_artifact: Maker) -> None:
    artifact = fake_artifact()
    side = artifact.card.geometry.tile_side
    trial = trial_of(artifact, "openvino", {side(64): 64**2 * 1e-6, side(128): 128**2 * 0.99e-6, side(32): 1.0})
    assert trial.best is not None
    assert trial.best.tile_y == side(64)


def flat(artifact: Artifact, engine: str, per_pixel: float, *, best: int = 0, gain: float = 1.0) -> Trial:
    """Return a trial where each output pixel costs the same, but with tiles of a core of `best`, `gain` times less."""
    geometry = artifact.card.geometry
    seconds = {geometry.tile_side(core): core**2 * per_pixel for core in (192, 384, 768, 1024, 1536, 2048)}
    if best:
        seconds[geometry.tile_side(best)] /= gain
    return trial_of(artifact, engine, seconds)


def test_nothing_is_advised_where_it_is_done_anyway(tiny_artifact: Artifact, tmp_path: Path) -> None:
    trials = [flat(tiny_artifact, "openvino", 1e-6), flat(tiny_artifact, "onnxruntime-cpu", 1.02e-6)]
    advice = advise(trials, tiny_artifact, device="cpu", folder=tmp_path)
    assert advice is not None
    assert (advice.engine, advice.flags, advice.is_foretold) == ("openvino", (), False)
    assert advice.seconds_per_pixel == advice.own_seconds_per_pixel


@needs_both
def test_a_flag_is_advised_until_it_is_remembered(tiny_artifact: Artifact, tmp_path: Path) -> None:
    trials = [flat(tiny_artifact, "openvino", 2e-6), flat(tiny_artifact, "onnxruntime-cpu", 1e-6)]
    advice = advise(trials, tiny_artifact, device="cpu", folder=tmp_path)
    assert advice is not None
    assert (advice.engine, advice.flags) == ("onnxruntime-cpu", ("--engine", "onnxruntime-cpu"))
    assert advice.own_seconds_per_pixel == pytest.approx(2 * advice.seconds_per_pixel, rel=0.05)
    for trial in trials:
        assert trial.costs is not None
        keep_costs(tiny_artifact, trial.costs, folder=tmp_path)
    advice = advise(trials, tiny_artifact, device="cpu", folder=tmp_path)
    assert advice is not None
    assert (advice.engine, advice.flags) == ("onnxruntime-cpu", ())


def test_a_tile_is_advised_where_it_is_worth_it(tiny_artifact: Artifact, tmp_path: Path) -> None:
    geometry = tiny_artifact.card.geometry
    tile, _ = plan_tile(tiny_artifact, rule_for("openvino", "fp32"))
    best = 192 if tile != geometry.tile_side(192) else 384
    trials = [flat(tiny_artifact, "openvino", 1e-6, best=best, gain=3.0)]
    advice = advise(trials, tiny_artifact, device="cpu", folder=tmp_path)
    assert advice is not None
    assert advice.flags == ("--tile", str(geometry.tile_side(best)))
    assert advice.tile == (geometry.tile_side(best),) * 2


def test_what_was_not_run_is_foretold_and_said_to_be(fake_artifact: Maker, tmp_path: Path) -> None:
    """OpenVINO's larger tiles spend fewer operations, and it was never seen to mind their size."""
    artifact = fake_artifact(depth=4, base_width=16)
    trials = [trial_of(artifact, "openvino", {380: 0.1, 572: 0.2})]
    advice = advise(trials, artifact, device="cpu", folder=tmp_path)
    assert advice is not None
    assert advice.is_foretold
    assert max(advice.tile) > 572


def test_a_file_that_ran_on_nothing_gets_no_advice(tiny_artifact: Artifact) -> None:
    assert advise([Trial(artifact=tiny_artifact, engine="openvino")], tiny_artifact) is None
