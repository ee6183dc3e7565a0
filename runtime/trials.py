"""Which engine, precision and tile is the fastest on this machine: what `unet-deploy bench` tries, and what it advises.

1. The precisions of a network are the files beside it that its export wrote: ``model.fp16.onnx``, ``model.int8.onnx``.
2. The first file gets half of the time, the others share the rest; what one does not need they have. On each, the
   engines of the device that are installed take turns, tile by tile from the smallest on: what else the machine does
   meanwhile strikes all of them alike.
3. Where not all have time for a tile, the fastest goes on alone. Tiles that would not fit into the memory there is are
   left out too; both is said.
4. The advice is what differs from what a segmentation does by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from unet_deploy.card import Precision
from unet_deploy.errors import UnetDeployError
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engine_costs import EngineCosts, TileSample, rule_for
from unet_deploy.runtime.engine_plan import Flavour
from unet_deploy.runtime.engines.choice import NO_GPU, EngineKind, candidates, parse_device
from unet_deploy.runtime.machine import Gpus, Memory, ask_driver, read_memory
from unet_deploy.runtime.measuring import PATIENCE_S, EngineProbe
from unet_deploy.runtime.planned import PlannedArtifact, load_model, settle_engine_name
from unet_deploy.runtime.survey import ORIGINS, install_command, installed_versions

CORES = (192, 384, 768, 1024, 1536, 2048)
"""Sides of the cores tried."""
TELLING_CORE = 768
"""A core that must have been run, unless memory forbids it, for the rest to be foretold: small ones tell too little."""
MEMORY_SHARE = 0.6
"""Of the memory that is available, what a tile may take that is tried."""
BUILDING_S = 900.0
"""How long TensorRT may take to build its engine, once for a machine."""
WORTH = 0.05
"""A smaller gain is not worth a flag: the next measurement may say otherwise."""
WORTH_A_MODEL = 0.2
"""Nor a smaller one another file, whose results are others."""
BUSY = 0.25
"""Of the processor's time; where other programs take more, the speeds measured are not the machine's own."""
TOO_BUSY = 0.5
"""Where they take more than that, the engines' speeds cannot even be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What became of one file on one engine: its costs, or the reason and fix why there are none.

    `left_out` are the cores that were not run, each with the reason.
    """

    artifact: Artifact
    engine: str
    costs: EngineCosts | None = None
    reason: str = ""
    fix: str = ""
    left_out: tuple[tuple[int, str], ...] = ()

    def rate(self, sample: TileSample) -> float:
        """Return the output pixels a second of one of its samples."""
        geometry = self.artifact.card.geometry
        return sample.batch * geometry.core_side(sample.tile_y) * geometry.core_side(sample.tile_x) / sample.seconds

    @property
    def best(self) -> TileSample | None:
        """The sample with the most pixels a second; of those within `WORTH` of it the smallest tile."""
        if self.costs is None:
            return None
        most = max(map(self.rate, self.costs.samples))
        good = [sample for sample in self.costs.samples if self.rate(sample) >= most * (1 - WORTH / 2)]
        return min(good, key=lambda sample: sample.pixels)

    @property
    def is_telling(self) -> bool:
        """Whether enough was measured to choose tiles by: with small ones alone, larger ones would never be chosen."""
        return self.costs is not None and all(core > TELLING_CORE or why != "time" for core, why in self.left_out)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the result: a file's network on an engine with one tile, and its time relative to the best of all."""

    trial: Trial
    sample: TileSample
    pixels_per_second: float
    relative_time: float


def find_siblings(artifact: Artifact) -> tuple[tuple[Artifact, ...], tuple[str, ...]]:
    """Return an artifact and the same network in other precisions, from the files beside it; and what was left out.

    Parameters
    ----------
    artifact
        What was read from a file; a bundled network has none beside it.
    """
    path = Path(artifact.source)
    found, notes = [artifact], []
    stem = path.name.removesuffix(".onnx")
    if not path.is_file() or stem == path.name:
        return (artifact,), ()
    base = next((stem.removesuffix(f".{p}") for p in get_args(Precision) if stem.endswith(f".{p}")), stem)
    names = [f"{base}.onnx", *(f"{base}.{precision}.onnx" for precision in ("int8", "fp16"))]
    for name in names:
        beside = path.with_name(name)
        if name == path.name or not beside.is_file():
            continue
        try:
            other = load_model(beside)
        except UnetDeployError as error:
            notes.append(f"{beside}: {error.headline}")
            continue
        if is_same_network(other, artifact):
            found.append(other)
        else:
            notes.append(f"{beside}: made from another network than {path.name}")
    return tuple(found), tuple(notes)


def split_by_use(
    artifacts: Sequence[Artifact], *, device: str, ask: Callable[[], Gpus] = ask_driver
) -> tuple[list[Artifact], list[Artifact]]:
    """Return the files that may be faster here than the first, which is one of them, and those that cannot be.

    A CPU computes fp16 in fp32.
    """
    has_gpu = parse_device(device)[0] != "cpu" and bool(ask().found)
    split: tuple[list[Artifact], list[Artifact]] = ([], [])
    for index, artifact in enumerate(artifacts):
        split[index > 0 and artifact.card.precision == "fp16" and not has_gpu].append(artifact)
    return split


def is_same_network(one: Artifact, other: Artifact) -> bool:
    """Tell whether two files hold the same weights, perhaps in different precisions."""
    return (one.card.parent_sha256 or one.sha256) == (other.card.parent_sha256 or other.sha256)


def run_trials(
    artifacts: Sequence[Artifact],
    *,
    device: str = "auto",
    engine: str | None = None,
    threads: int = 0,
    cores: Sequence[int] = CORES,
    seconds: float,
    memory: Memory | None = None,
    ask: Callable[[], Gpus] = ask_driver,
    say: Callable[[str], object] | None = None,
) -> tuple[Trial, ...]:
    """Measure each artifact on each engine that is installed, within about the time given.

    Parameters
    ----------
    artifacts
        What to run, the most important first.
    device, engine, threads
        As for `open_engine`.
    cores
        Sides of the cores to try, in pixels; rounded up to what the network takes.
    seconds
        What all may take. A slow engine's first tile is not broken off for it.
    memory, ask
        What memory there is, and what tells which GPUs there are; asked of the system by default.
    say
        Where given, is told what is being measured.

    Raises
    ------
    UsageError
        If `device` or `engine` is no name, or the engine does not run on the device.
    """
    kinds_of = [  # what cannot be meant is told before anything is measured
        candidates(device, settle_engine_name(artifact, engine, None), precision=artifact.card.precision)
        for artifact in artifacts
    ]
    deadline = time.monotonic() + seconds
    limit = available_bytes(memory or read_memory())
    trials: list[Trial] = []
    for index, (artifact, kinds) in enumerate(zip(artifacts, kinds_of, strict=True)):
        refused = {kind.name: _refuse(artifact, kind, ask) for kind in kinds}
        names = [name for name, refusal in refused.items() if refusal is None]
        others = len(artifacts) - 1 - index
        share = max(deadline - time.monotonic(), 0.0) / (1 + min(others, 1) if index == 0 else 1 + others)
        turns = Turns(artifact, device=device, threads=threads, sides=tile_sides(artifact, cores), limit_bytes=limit)
        if share > 0 or index == 0:
            if names and say is not None:
                say(f"{artifact.card.precision} on {', '.join(names)} ({index + 1} of {len(artifacts)})")
            turns.run(names, seconds=share)
        trials += [refusal or turns.outcome(name) for name, refusal in refused.items()]
    return tuple(trials)


def available_bytes(memory: Memory) -> int | None:
    """Return the memory that a process may take, as far as the system tells."""
    known = [n for n in (memory.available_bytes, memory.limit_bytes) if n is not None]
    return min(known, default=None)


def _refuse(artifact: Artifact, kind: EngineKind, ask: Callable[[], Gpus]) -> Trial | None:
    """Return why an engine is not even tried, None if it is."""
    origin = ORIGINS[kind.name]
    if kind.device == "cuda" and not ask().found:
        return Trial(
            artifact=artifact, engine=kind.name, reason=NO_GPU, fix="install the GPU's driver, if there is one"
        )
    if not installed_versions(origin.packages):
        fix = install_command(origin.extra, origin.packages[0])
        return Trial(artifact=artifact, engine=kind.name, reason="not installed", fix=fix)
    return None


def tile_sides(artifact: Artifact, cores: Sequence[int]) -> tuple[int, ...]:
    """Return the sides of the tiles to try: legal ones for such cores, and of those what an engine plan takes."""
    geometry = artifact.card.geometry
    sides = sorted({geometry.tile_side(geometry.round_up(core)) for core in cores})
    if not isinstance(artifact, PlannedArtifact):
        return tuple(sides)
    channels, profiles = artifact.card.network.in_channels, artifact.plan.manifest.profiles
    taken = [side for side in sides if any(profile.holds((1, channels, side, side)) for profile in profiles)]
    return tuple(taken or sides)  # where none is, opening the engine says what would be


class Turns:
    """Engines that take turns on the tiles of one file.

    Parameters
    ----------
    artifact, device, threads
        As for `EngineProbe`.
    sides
        Of the tiles, growing.
    limit_bytes
        The memory there is, None if it is not known.
    """

    def __init__(
        self, artifact: Artifact, *, device: str, threads: int, sides: Sequence[int], limit_bytes: int | None
    ) -> None:
        self._artifact, self._device, self._threads, self._sides = artifact, device, threads, sides
        self._limit = None if limit_bytes is None else MEMORY_SHARE * limit_bytes
        self._probes: dict[str, EngineProbe] = {}
        self._errors: dict[str, UnetDeployError] = {}
        self._fitting: dict[str, list[int]] = {}

    def run(self, names: Sequence[str], *, seconds: float) -> None:
        """Measure engines for about so long; each runs the smallest tile, however long that takes."""
        deadline = time.monotonic() + seconds
        with ExitStack() as stack:
            for name in names:
                self._open(name, stack)
            if set(names) & set(get_args(Flavour)):  # which may have built engines for minutes
                deadline = time.monotonic() + seconds
            playing = list(self._probes)
            for side in self._sides:
                playing = self._take_turns(playing, side, deadline)

    def _open(self, name: str, stack: ExitStack) -> None:
        network, rule = self._artifact.card.network, rule_for(name, self._artifact.card.precision)
        fitting = [
            side
            for side in self._sides
            if self._limit is None or rule.memory_bytes(network, side, side, 1) <= self._limit
        ]
        self._fitting[name] = fitting or [self._sides[0]]
        largest = self._fitting[name][-1]
        try:
            self._probes[name] = stack.enter_context(
                EngineProbe(
                    self._artifact,
                    engine=name,
                    device=self._device,
                    threads=self._threads,
                    largest=(largest, largest),
                    patience_s=BUILDING_S if name in get_args(Flavour) else PATIENCE_S,
                )
            )
        except UnetDeployError as error:
            self._errors[name] = error

    def _take_turns(self, playing: list[str], side: int, deadline: float) -> list[str]:
        """Run one tile on each engine that plays; return those that go on to the next."""
        fitting = [name for name in playing if side in self._fitting[name]]
        needed = {name: self._probes[name].foretell((side, side)) for name in fitting}
        left = max(deadline - time.monotonic(), 0.0)
        if sum(needed.values()) > left:
            fastest = min(fitting, key=lambda name: self._probes[name].samples[-1].seconds)
            fitting = playing = [fastest] if needed[fastest] < left else []
        for index, name in enumerate(fitting):
            left = max(deadline - time.monotonic(), 0.0)
            try:
                self._probes[name].measure((side, side), seconds=left / (len(fitting) - index))
            except UnetDeployError as error:
                self._errors[name] = error
                playing = [other for other in playing if other != name]
        return playing

    def outcome(self, name: str) -> Trial:
        """Return what became of an engine."""
        trial = Trial(artifact=self._artifact, engine=name)
        error, probe = self._errors.get(name), self._probes.get(name)
        if probe is None or not probe.samples:
            reason = "there was no time" if error is None else "; ".join([error.headline, *error.details[:1]])
            return replace(trial, reason=reason, fix="--seconds 120" if error is None else error.fix)
        geometry, ran = self._artifact.card.geometry, {sample.tile_y for sample in probe.samples}
        why = "time" if error is None else error.headline
        return replace(
            trial,
            costs=probe.costs(),
            left_out=tuple(
                (geometry.core_side(side), why if side in self._fitting[name] else "memory")
                for side in self._sides
                if side not in ran
            ),
        )


def rank(trials: Sequence[Trial]) -> tuple[Row, ...]:
    """Return every sample of every trial, the fastest first."""
    pairs = [(trial, sample) for trial in trials if trial.costs is not None for sample in trial.costs.samples]
    rates = [trial.rate(sample) for trial, sample in pairs]
    most = max(rates, default=0.0)
    rows = [
        Row(trial=trial, sample=sample, pixels_per_second=rate, relative_time=most / rate)
        for (trial, sample), rate in zip(pairs, rates, strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: -row.pixels_per_second))
