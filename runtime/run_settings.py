"""What a run was asked to do, once it is checked, and what was learnt of its volume before the first block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unet_deploy.runtime.drift import Finding
from unet_deploy.runtime.engines import EngineDescription
from unet_deploy.runtime.engines.cache import EngineRequest
from unet_deploy.runtime.execute import ProgressCallback
from unet_deploy.runtime.follow import Following
from unet_deploy.runtime.instances import InstanceRule
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.normalise import Normaliser
from unet_deploy.runtime.place import Place
from unet_deploy.runtime.preparation import Preparation
from unet_deploy.runtime.profile import Timeline
from unet_deploy.runtime.region import Region
from unet_deploy.runtime.statistics import VolumeStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run that was checked and planned, and whose engine is open. Fields are as the parameters of `segment`."""

    ready: Preparation
    place: Place
    spec: OutputSpec
    rule: InstanceRule | None
    """What an object is, where objects are to be numbered."""
    table: Path | None
    request: EngineRequest
    engine: EngineDescription
    threads: int
    region: Region | None
    following: Following | None
    input_range: tuple[float, float] | None
    is_strict: bool
    retry_failed: bool
    min_free_bytes: int
    should_stop: Callable[[], bool]
    should_pause: Callable[[], bool]
    progress: ProgressCallback | None
    started: float
    """By `time.perf_counter`."""
    timeline: Timeline | None = None
    """Takes what each thread does when, where that is asked for."""

    @property
    def is_followed(self) -> bool:
        """Whether the volume is still being written."""
        return self.following is not None or bool(self.ready.volume.info.grows)

    @property
    def cache_bytes(self) -> int:
        """What a process may keep of decoded chunks: nothing of a volume that is still being written."""
        return 0 if self.is_followed else self.ready.plan.cache_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was learnt of the volume's grey values: how they differ from training's, and how they are normalised."""

    normaliser: Normaliser
    statistics: VolumeStatistics | None
    findings: tuple[Finding, ...] | None
    """None where the volume was not compared."""
    seconds: float
