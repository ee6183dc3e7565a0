"""What a batch costs: read from samples where an engine was measured, by rule elsewhere."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_deploy.card import Network
from unet_deploy.runtime._plan_fit import choose_tile, explain_tile, tile_choices
from unet_deploy.runtime.cost import tile_flops, weights_bytes
from unet_deploy.runtime.engine_costs import CAUTIOUS, RULES, CostModel, EngineCosts, TileSample, rule_for
from unet_deploy.runtime.plan import Extents, SegmentationPlan, plan_segmentation

SMALL = Network(depth=4, base_width=16, in_channels=1, classes=2)
PAPER = Network(depth=4, base_width=64, in_channels=1, classes=2)
MIB = 2**20


def sample(core: int, seconds: float, mib: int = 100, batch: int = 1) -> TileSample:
    side = core + 188
    return TileSample(tile_y=side, tile_x=side, batch=batch, seconds=seconds, memory_bytes=mib * MIB)


def measured(*samples: TileSample, **changes: Any) -> EngineCosts:
    return replace(
        EngineCosts(
            engine="openvino",
            device="cpu",
            precision="fp32",
            threads=0,
            versions={"openvino": "2026.4"},
            samples=samples,
            measured="2026-11-21",
        ),
        **changes,
    )


def at_rate(core: int, flops_per_s: float, mib: int = 100) -> TileSample:
    return sample(core, tile_flops(SMALL, core + 188, core + 188) / flops_per_s, mib)


def plan_of(y: int, x: int, costs: CostModel, **options: Any) -> SegmentationPlan:
    options = {"source_chunk": (1, 1024, 1024), **options}
    return plan_segmentation(SMALL, Extents(t=1, z=1, y=y, x=x), costs=costs, **options)


# Between and beyond what was measured.


def test_a_tile_that_was_measured_takes_what_it_took() -> None:
    costs = measured(sample(384, 0.05), sample(1024, 0.3), sample(2048, 1.0))
    assert costs.seconds(SMALL, 572, 572, 1) == pytest.approx(0.05)
    assert costs.seconds(SMALL, 2236, 2236, 1) == pytest.approx(1.0)


def test_between_two_the_rate_is_between_theirs() -> None:
    costs = measured(at_rate(384, 2e11), at_rate(1024, 4e11))
    rate = tile_flops(SMALL, 956, 956) / costs.seconds(SMALL, 956, 956, 1)
    share = (956**2 - 572**2) / (1212**2 - 572**2)
    assert rate == pytest.approx(2e11 + share * 2e11)


def test_beyond_the_largest_the_rate_stays_up_to_the_rules_best_core() -> None:
    costs = measured(at_rate(384, 4e11), at_rate(1024, 4e11))
    assert costs.seconds(SMALL, 2236, 2236, 1) == pytest.approx(tile_flops(SMALL, 2236, 2236) / 4e11)
    best = costs.seconds(SMALL, 2236, 2236, 1) / 2048**2
    assert costs.seconds(SMALL, 4284, 4284, 1) / 4096**2 == pytest.approx(best)


def test_nothing_is_promised_beyond_the_largest_where_no_rule_does() -> None:
    costs = measured(at_rate(384, 4e11), at_rate(1024, 4e11), engine="onnxruntime-cpu")
    largest = costs.seconds(SMALL, 1212, 1212, 1) / 1024**2
    assert costs.seconds(SMALL, 2236, 2236, 1) / 2048**2 == pytest.approx(largest)


def test_a_batch_counts_like_a_tile_of_as_many_pixels() -> None:
    costs = measured(sample(384, 0.2, batch=4))
    assert costs.seconds(SMALL, 572, 572, 4) == pytest.approx(0.2)
    assert costs.seconds(SMALL, 572, 572, 1) == pytest.approx(0.05)


def test_memory_is_a_little_more_than_was_seen_and_grows_beyond() -> None:
    costs = measured(sample(384, 0.05, 65), sample(1024, 0.3, 289))
    assert costs.memory_bytes(SMALL, 1212, 1212, 1) == pytest.approx(1.05 * 289 * MIB)
    assert costs.memory_bytes(SMALL, 204, 204, 1) == pytest.approx(1.05 * 65 * MIB)
    assert costs.memory_bytes(SMALL, 2236, 2236, 1) >= 289 * MIB * 2236**2 / 1212**2


def test_memory_that_could_not_be_seen_is_by_rule() -> None:
    costs = measured(sample(384, 0.05, 0))
    assert costs.memory_bytes(SMALL, 1212, 1212, 1) == rule_for("openvino", "fp32").memory_bytes(SMALL, 1212, 1212, 1)


def test_what_is_written_is_read_again() -> None:
    costs = measured(sample(384, 0.05), sample(1024, 0.3))
    assert EngineCosts.from_object(costs.to_object()) == costs


@pytest.mark.parametrize(
    "change",
    [
        {"samples": []},
        {"samples": [{"tile": [572], "batch": 1, "seconds": 1.0, "memory_bytes": 0}]},
        {"samples": [{"tile": [572, 572], "batch": 1, "seconds": 0, "memory_bytes": 0}]},
        {"samples": [{"tile": [572, 572], "batch": 1, "seconds": 1.0, "memory_bytes": -1}]},
        {"samples": [{"tile": [572, "572"], "batch": 1, "seconds": 1.0, "memory_bytes": 0}]},
        {"measured": "yesterday"},
        {"engine": 3},
        {"versions": {"openvino": 3}},
        {"threads": "2"},
    ],
)
def test_anything_else_is_as_if_nothing_was_measured(change: dict[str, Any]) -> None:
    assert EngineCosts.from_object({**measured(sample(384, 0.05)).to_object(), **change}) is None
    assert EngineCosts.from_object(None) is None


# Rules.


@given(st.sampled_from([*RULES.values(), CAUTIOUS]), st.sampled_from([SMALL, PAPER]), st.integers(1, 250))
def test_a_rule_never_promises_more_of_a_tile_beyond_its_best(rule: CostModel, network: Network, n: int) -> None:
    geometry = network.geometry
    best = geometry.tile_side(geometry.round_up(rule.best_core))  # type: ignore[attr-defined]
    side = geometry.tile_side(16 * n)

    def each(side: int) -> float:
        return rule.seconds(network, side, side, 1) / geometry.core_side(side) ** 2

    assert each(side) >= each(best) * (1 - 1e-9)
    assert rule.memory_bytes(network, side, side, 1) > 0


def test_an_engine_nobody_knows_gets_the_cautious_rule() -> None:
    assert rule_for(None, "fp32") is CAUTIOUS
    assert rule_for("openvino", "fp32") is not CAUTIOUS
    assert rule_for("tensorrt", "fp16").is_on_device
    assert not CAUTIOUS.is_measured
    assert "unet-deploy bench" in CAUTIOUS.words


def test_what_a_gpu_holds_is_not_in_main_memory() -> None:
    here, there = (plan_of(4096, 4096, rule, tile=(1212, 1212)) for rule in (CAUTIOUS, rule_for("tensorrt", "fp32")))
    assert here.engine_memory_bytes == there.engine_memory_bytes
    assert there.peak_memory_bytes < here.engine_memory_bytes


# What a planner makes of it.


def test_a_smaller_tile_that_was_measured_faster_is_taken_and_said() -> None:
    costs = measured(at_rate(512, 4e11), at_rate(1024, 2e11), at_rate(2048, 2e11))
    plan = plan_of(4096, 4096, costs)
    assert plan.geometry.core_side(plan.tile_y) == 512
    assert plan.reason.startswith("the fastest within 2.0 GiB for the engine, as measured here on 2026-11-21; a tile ")
    assert re.search(r"fewer operations, but takes 1\.\d\d times as long$", plan.reason), plan.reason
    ruled = plan_of(16384, 16384, CAUTIOUS).reason
    assert "for the engine, by rule of thumb (`unet-deploy bench` measures this machine); a tile keeping " in ruled
    assert ruled.endswith("fewer operations, but was not seen to be faster")
    assert plan.infer_seconds == pytest.approx(plan.flops / 4e11, rel=0.01)


def test_a_larger_tile_that_was_measured_faster_is_taken_if_it_fits() -> None:
    costs = measured(at_rate(1024, 4e11, 300), at_rate(2048, 4e11, 1100))
    assert plan_of(16384, 16384, costs).tile_y == 2236
    assert plan_of(16384, 16384, replace(costs, budget_bytes=500 * MIB)).tile_y == 1212
    assert plan_of(16384, 16384, costs, max_memory_bytes=1024 * MIB).tile_y <= 1452
    assert "1024 MiB hold" in plan_of(16384, 16384, costs, max_memory_bytes=1024 * MIB).reason


def test_a_larger_tile_must_earn_the_memory_that_it_touches() -> None:
    costs = measured(at_rate(1024, 4e11, 300), at_rate(2048, 4e11, 1100))
    short = plan_of(4096, 4096, costs)
    assert short.tile_y == 1212
    assert "fewer operations, but it touches more memory than a run as short as this repays" in short.reason
    assert plan_of(16384, 16384, costs).tile_y == 2236


def test_of_two_as_fast_the_smaller_is_taken() -> None:
    costs = measured(sample(1024, 0.25), sample(2048, 0.999, 1100))
    assert plan_of(4096, 4096, costs).tile_y == 1212


@given(st.integers(1, 9000), st.integers(1, 9000), st.integers(1, 1100))
def test_no_choice_is_beaten_by_another(y: int, x: int, chunk: int) -> None:
    unit = (1, SMALL.geometry.round_up(chunk), SMALL.geometry.round_up(chunk))
    choices = tile_choices(SMALL, Extents(t=1, z=1, y=y, x=x), unit, CAUTIOUS, batch=1)
    fitting = [choice for choice in choices if choice.memory_bytes <= 2**30]
    chosen = choose_tile(choices, 2**30, network=SMALL, batch=1)
    assert chosen.seconds <= 1.01 * min(choice.seconds for choice in fitting)
    assert all(size % u == 0 for size, u in zip(chosen.block, unit, strict=True))
    assert explain_tile(chosen, choices, 2**30, network=SMALL, costs=CAUTIOUS).startswith("the fastest within 1.0 GiB")
    assert chosen.flops(SMALL) == chosen.tiles * tile_flops(SMALL, chosen.core[0] + 188, chosen.core[1] + 188)


def test_weights_are_part_of_what_an_engine_holds() -> None:
    rule = rule_for("onnxruntime-cpu", "fp32")
    assert rule.memory_bytes(PAPER, 204, 204, 1) > 2 * weights_bytes(PAPER)
