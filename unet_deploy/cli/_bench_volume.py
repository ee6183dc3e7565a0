"""What ``bench`` does with a volume: how long each engine would take for it, and a few of its blocks for real.

1. The volume is opened and checked before anything is measured, so that a wrong path costs no minute.
2. Each engine's plan is made with what was just measured of it.
3. As many blocks from the middle as there is time for are segmented into a temporary folder, with the engine open and
   warm: what is left beside the engine's own speed is reading, writing and everything between.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unet_deploy.cli._images import each_run_silent
from unet_deploy.cli._report import format_seconds
from unet_deploy.errors import UnetDeployError

if TYPE_CHECKING:
    from unet_deploy.runtime.advice import Advice
    from unet_deploy.runtime.artifact import Artifact
    from unet_deploy.runtime.plan import SegmentationPlan
    from unet_deploy.runtime.preparation import Preparation
    from unet_deploy.runtime.region import Region
    from unet_deploy.runtime.trials import Trial

MOST_BLOCKS = 4
USABLE = 0.7
"""Of the time that is left, what the blocks may take; the engine is opened and warmed up before."""
WARM_UP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeTrial:
    """A volume that was opened and checked for a model; `reading` are the keywords of that."""

    ready: Preparation
    reading: Mapping[str, Any]

    def run(
        self,
        trials: Sequence[Trial],
        advices: Sequence[Advice],
        *,
        device: str,
        threads: int,
        seconds: float,
        say: Callable[[str], None],
    ) -> dict[str, Any]:
        """Return the estimates of all engines, and what a few blocks took on the one that is advised."""
        from unet_deploy.runtime.replanning import replan

        artifact = self.ready.artifact
        plans = {
            trial.engine: replan(self.ready, costs=trial.costs).plan
            for trial in trials
            if trial.artifact is artifact and trial.costs is not None
        }
        info, extents = self.ready.volume.info, self.ready.plan.extents
        found: dict[str, Any] = {
            "path": info.path,
            "pixels": extents.pixels,
            "blocks": self.ready.plan.n_blocks,
            "engines": [
                {
                    "engine": name,
                    "precision": artifact.card.precision,
                    "tile": [plan.tile_y, plan.tile_x],
                    "seconds": plan.infer_seconds,
                    "peak_memory_bytes": plan.peak_memory_bytes,
                }
                for name, plan in sorted(plans.items(), key=lambda item: item[1].infer_seconds)
            ],
            "tried": None,
            "why_not": "",
        }
        chosen = next((advice.engine for advice in advices if advice.artifact is artifact), None)
        if chosen is None:
            return {**found, "why_not": "no engine ran the model"}
        plan = plans[chosen]
        per_pixel = plan.infer_seconds / extents.pixels
        blocks = int(USABLE * seconds / (per_pixel * plan.block(0).pixels))
        count = min(blocks, MOST_BLOCKS, plan.block_counts[3])
        if count < 1:
            took = format_seconds(per_pixel * plan.block(0).pixels)
            return {**found, "why_not": f"a block takes about {took}, more than there is time for (--seconds)"}
        say(f"segmenting {count} block(s) of {info.path} into a temporary folder")
        try:
            tried = self._segment(plan, middle(plan, count), engine=chosen, device=device, threads=threads)
        except UnetDeployError as error:  # the run itself says more, and this one has its measurements to show
            return {**found, "why_not": error.headline}
        return {**found, "tried": {**tried, "engine": chosen, "engine_pixels_per_second": 1 / per_pixel}}

    def _segment(
        self, plan: SegmentationPlan, region: Region, *, engine: str, device: str, threads: int
    ) -> dict[str, Any]:
        import numpy as np

        from unet_deploy.runtime.engines.cache import EngineRequest, drop_engine, get_engine
        from unet_deploy.runtime.pipeline import segment

        artifact = self.ready.artifact
        request = EngineRequest(
            artifact=artifact, device=device, engine=engine, threads=threads, batch_shape=plan.batch_shape
        )
        try:
            for _ in range(WARM_UP):
                get_engine(request).infer(np.zeros(plan.batch_shape, np.float32))
            with (
                each_run_silent(),  # how the volume differs is for a run to say, with the grey values that it will have
                tempfile.TemporaryDirectory(prefix="unet-deploy-", ignore_cleanup_errors=True) as folder,
            ):
                result = segment(
                    self.ready.volume.info.path,
                    output=Path(folder) / "bench.ome.zarr",
                    model=artifact,
                    region=region,
                    tile=(plan.tile_y, plan.tile_x),
                    device=device,
                    engine=engine,
                    threads=threads,
                    keep_engine=True,
                    **self._reading(),
                )
        finally:
            drop_engine(request)
        return {
            "blocks": result.plan.count(region),
            "empty_blocks": result.n_empty,
            "pixels": result.pixels,
            "seconds": result.seconds["blocks"],
            "pixels_per_second": result.pixels / result.seconds["blocks"],
        }

    def _reading(self) -> dict[str, Any]:
        """Return how the volume is read; with any grey values where a pass over all of it would be needed for them."""
        if self.ready.normaliser is not None:
            return dict(self.reading)
        return {**self.reading, "input_range": (0.0, 255.0)}


def try_volume(volume: Path, artifact: Artifact, reading: Mapping[str, Any]) -> VolumeTrial:
    """Open and check a volume for a model; keywords and exceptions as of `prepare`."""
    from unet_deploy.runtime.preparation import prepare

    return VolumeTrial(ready=prepare(volume, model=artifact, **reading), reading=reading)


def middle(plan: SegmentationPlan, count: int) -> Region:
    """Return the region of so many neighbouring blocks along x from the middle of a volume, without its thin edge."""
    from unet_deploy.geometry import Interval
    from unet_deploy.runtime.region import Region

    t, z, y, x = (max((n - 1) // 2, 0) for n in plan.block_counts)
    x = min(x, plan.block_counts[3] - count)
    _, nz, ny, nx = plan.block_counts
    first, last = (plan.block(((t * nz + z) * ny + y) * nx + column) for column in (x, x + count - 1))
    return Region(t=Interval(t, t + 1), z=first.z, y=first.y, x=Interval(first.x.start, last.x.stop))
