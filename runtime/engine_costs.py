"""What batches cost on an engine: measured on this machine, or a rule of thumb. Pure.

1. `EngineCosts` holds samples: seconds and memory of batches of some tiles, measured here (`unet-deploy bench`).
2. Between samples, operations per second and bytes per pixel go linearly with the number of pixels of a batch. Beyond
   the largest they stay; and beyond that and the rule's best core, a larger tile is promised to save nothing.
3. Where nothing was measured, `RULES` say how many feature maps an engine was seen to hold, and up to which core a
   larger one was seen to be faster (docs/experiments.md). Seconds by a rule only rank tiles; they are no estimate.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol

from unet_deploy._json_reader import Reader, is_number
from unet_deploy.card import AnyNetwork
from unet_deploy.geometry import Geometry
from unet_deploy.runtime.cost import FEATURE_MAPS_HELD, tile_flops, tile_memory_bytes, weights_bytes

NOMINAL_FLOPS_PER_S = 3e11
"""Of two cores with AVX-512."""
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
DEFAULT_BUDGET_BYTES = 2 * 2**30
"""What an engine may hold in main memory, unless something else is said."""


class CostModel(Protocol):
    """What a planner asks of an engine."""

    @property
    def budget_bytes(self) -> int:
        """What the engine may hold, unless something else is said."""

    @property
    def is_on_device(self) -> bool:
        """Whether it holds that in a device's own memory, and not in main memory."""

    @property
    def is_measured(self) -> bool:
        """Whether seconds are seconds of this machine."""

    @property
    def words(self) -> str:
        """Where the figures come from, for people."""

    def seconds(self, network: AnyNetwork, tile_y: int, tile_x: int, batch: int) -> float:
        """Return the seconds of one batch, or what ranks as they do."""

    def memory_bytes(self, network: AnyNetwork, tile_y: int, tile_x: int, batch: int) -> int:
        """Return what the engine holds for batches of that shape, its weights included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleOfThumb:
    """What is expected of an engine that was not measured on this machine.

    `maps_held` are feature maps of the top level, in float32; `weights_held` copies of the weights. No core of more
    than `best_core` pixels a side was seen to be faster.
    """

    maps_held: float
    weights_held: float
    best_core: int
    budget_bytes: int = DEFAULT_BUDGET_BYTES
    is_on_device: bool = False

    @property
    def is_measured(self) -> bool:
        """It was not."""
        return False

    @property
    def words(self) -> str:
        """Where the figures come from."""
        return "by rule of thumb (`unet-deploy bench` measures this machine)"

    def seconds(self, network: AnyNetwork, tile_y: int, tile_x: int, batch: int) -> float:
        """Return what ranks tiles: operations, of which larger tiles than the best save none."""
        geometry = network.geometry
        best = geometry.tile_side(geometry.round_up(self.best_core))
        least = tile_flops(network, best, best) * _kept(geometry, tile_y, tile_x) / _kept(geometry, best, best)
        return batch * max(tile_flops(network, tile_y, tile_x), least) / NOMINAL_FLOPS_PER_S

    def memory_bytes(self, network: AnyNetwork, tile_y: int, tile_x: int, batch: int) -> int:
        """Return about how much the engine holds, rather too much than too little."""
        activations = tile_memory_bytes(network, tile_y, tile_x, batch, maps_held=self.maps_held)
        return activations + round(self.weights_held * weights_bytes(network))


RULES: dict[tuple[str, str], RuleOfThumb] = {
    ("onnxruntime-cpu", "fp32"): RuleOfThumb(maps_held=7.5, weights_held=2, best_core=1024),
    ("openvino", "fp32"): RuleOfThumb(maps_held=3, weights_held=4, best_core=2048),
    ("openvino", "fp16"): RuleOfThumb(maps_held=4, weights_held=3, best_core=2048),
    ("openvino", "int8"): RuleOfThumb(maps_held=2, weights_held=1, best_core=2048),
}
"""By engine and precision; measured with benchmarks/tiles.py at width 16 and 64."""
CAUTIOUS = RuleOfThumb(maps_held=FEATURE_MAPS_HELD, weights_held=2, best_core=1024)
"""Of an engine that is not in `RULES`."""
ON_DEVICE = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
"""Engines that hold what they hold in a GPU's memory; how much has not been measured yet."""


def rule_for(engine: str | None, precision: str) -> RuleOfThumb:
    """Return the rule of an engine; a cautious one where there is none, or which engine is not known."""
    if engine in ON_DEVICE:
        return replace(CAUTIOUS, is_on_device=True)
    return RULES.get((engine or "", precision), CAUTIOUS)


@dataclass(frozen=True, slots=True, kw_only=True)
class TileSample:
    """One batch as it was measured.

    `seconds` is the median. `memory_bytes` is how far the process grew from before the engine was opened, so weights
    are in it; 0 where that could not be seen.
    """

    tile_y: int
    tile_x: int
    batch: int
    seconds: float
    memory_bytes: int

    @property
    def pixels(self) -> int:
        """Input pixels of the batch, channels aside."""
        return self.tile_y * self.tile_x * self.batch


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCosts:
    """What batches of a network cost on one engine of one machine, as measured.

    Parameters
    ----------
    engine, device, precision, threads, versions
        What was measured; threads 0 for the engine's own choice.
    samples
        At least one.
    measured
        The date, ISO 8601.
    budget_bytes
        What the engine may hold; no part of what was measured.
    """

    engine: str
    device: str
    precision: str
    threads: int
    versions: Mapping[str, str]
    samples: tuple[TileSample, ...]
    measured: str
    budget_bytes: int = DEFAULT_BUDGET_BYTES

    def __post_init__(self) -> None:
        assert self.samples, self

    @property
    def is_on_device(self) -> bool:
        """Whether the engine holds its memory in a device's own."""
        return self.device != "cpu"

    @property
    def is_measured(self) -> bool:
        """It was."""
        return True

    @property
    def words(self) -> str:
        """Where the figures come from."""
        return f"as measured here on {self.measured}"

    def seconds(self, network: AnyNetwork, tile_y: int, tile_x: int, batch: int) -> float:
        """Return the estimated seconds of one batch.

        Parameters
        ----------
        network
            The network's sizes.
        tile_y, tile_x, batch
            The batch's shape, in pixels and tiles.
        """
        flops = batch * tile_flops(network, tile_y, tile_x)
        rates = [(s.pixels, s.batch * tile_flops(network, s.tile_y, s.tile_x) / s.seconds) for s in self.samples]
        rate = _between(rates, tile_y * tile_x * batch)
        seconds = flops / rate
        geometry, largest = network.geometry, max(self.samples, key=lambda s: s.pixels)
        best = geometry.tile_side(geometry.round_up(rule_for(self.engine, self.precision).best_core))
        seen = (best, best) if best**2 > largest.pixels else (largest.tile_y, largest.tile_x)
        if tile_y * tile_x > seen[0] * seen[1]:
            each = tile_flops(network, *seen) / rate / _kept(geometry, *seen)
            seconds = max(seconds, each * batch * _kept(geometry, tile_y, tile_x))
        return seconds

    def memory_bytes(self, network: AnyNetwork, tile_y: int, tile_x: int, batch: int) -> int:
        """Return about how much the engine holds in main memory, weights included; what was seen, and a little more."""
        pixels = tile_y * tile_x * batch
        seen = [(s.pixels, float(s.memory_bytes)) for s in self.samples if s.memory_bytes]
        if not seen:
            return rule_for(self.engine, self.precision).memory_bytes(network, tile_y, tile_x, batch)
        most = max(n for n, _ in seen)
        each = max(size / n for n, size in seen if 2 * n >= most)
        return round(MEMORY_MARGIN * (_between(seen, pixels) if pixels <= most else max(each * pixels, seen[-1][1])))

    def to_object(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "engine": self.engine,
            "device": self.device,
            "precision": self.precision,
            "threads": self.threads,
            "versions": dict(self.versions),
            "measured": self.measured,
            "samples": [
                {
                    "tile": [s.tile_y, s.tile_x],
                    "batch": s.batch,
                    "seconds": s.seconds,
                    "memory_bytes": s.memory_bytes,
                }
                for s in self.samples
            ],
        }

    @classmethod
    def from_object(cls, value: object) -> EngineCosts | None:
        """Return what `to_object` gave; None where the value is anything else."""
        reader = Reader(value, "")
        entries = reader.take("samples", "samples", lambda v: isinstance(v, list) and len(v) > 0) or []
        samples = tuple(_take_sample(Reader(entry, "", reader.problems)) for entry in entries)
        engine, device, precision = (reader.take_text(name) for name in ("engine", "device", "precision"))
        versions = reader.take_object("versions")
        named = {name: versions.take_text(name) for name in versions.data}
        threads = reader.take_int("threads", 0, 2**16)
        measured = reader.take("measured", "a date", lambda v: isinstance(v, str) and _DATE.fullmatch(v) is not None)
        reader.finish()
        if reader.problems:
            return None
        return cls(
            engine=engine,
            device=device,
            precision=precision,
            threads=threads,
            versions=named,
            samples=samples,
            measured=measured,
        )


MEMORY_MARGIN = 1.05
"""What was seen once may be a little more the next time."""


def _take_sample(reader: Reader) -> TileSample:
    """Return a sample, which is none if the reader has noted a problem."""
    tile = reader.take_numbers("tile", positive=True, length=2) or (1, 1)
    seconds = reader.take("seconds", "a time", lambda v: is_number(v) and 0 < v < 1e6)
    sample = TileSample(
        tile_y=tile[0],
        tile_x=tile[1],
        batch=reader.take_int("batch", 1, 2**16),
        seconds=seconds,
        memory_bytes=reader.take_int("memory_bytes", 0, 2**50),
    )
    if not all(type(side) is int and side < 2**31 for side in tile):
        reader.note("tile", "whole pixels were expected")
    reader.finish()
    return sample


def _kept(geometry: Geometry, tile_y: int, tile_x: int) -> int:
    """Return the pixels of a tile's core."""
    return geometry.core_side(tile_y) * geometry.core_side(tile_x)


def _between(points: Sequence[tuple[int, float]], at: int) -> float:
    """Return the value at a place between points, linearly; that of the outermost beyond them."""
    points = sorted(points)
    if at <= points[0][0]:
        return points[0][1]
    for (left, low), (right, high) in pairwise(points):
        if at <= right:
            return high if right == left else low + (high - low) * (at - left) / (right - left)
    return points[-1][1]
