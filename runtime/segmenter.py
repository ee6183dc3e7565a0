"""One model, opened once, for many volumes: what a pipeline keeps while images come in.

1. The model is read and checked when the segmenter is made; its engine is opened at the first volume, and stays open.
2. The Dask client is made, or connected, at first need, and stays too.
3. Everything is as in `segment` and `segment_array`; what is given there goes before what the segmenter was made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.dask_array import segment_array, segment_pixels
from unet_deploy.runtime.dask_client import connect
from unet_deploy.runtime.engine_costs import CAUTIOUS
from unet_deploy.runtime.engines.cache import EngineFactory, drop_engines
from unet_deploy.runtime.expected_costs import expect_costs
from unet_deploy.runtime.pipeline import SegmentationResult, segment
from unet_deploy.runtime.plan import count_in_flight
from unet_deploy.runtime.preparation import resolve_model


class Segmenter:
    """Segments one volume after the other with one model. Close it, or use it as a context.

    Parameters
    ----------
    model
        As of `segment`.
    scheduler, scheduler_file, device, engine, threads, tile, batch, max_memory_bytes, tta, input_range, engine_factory
        As of `segment`, for all volumes.

    Raises
    ------
    ModelError
        If the model is missing, damaged or not ours.

    Examples
    --------
    >>> import numpy as np
    >>> from unet_deploy.runtime import Segmenter
    >>> with Segmenter("nuclei", input_range=(0, 255)) as segmenter:
    ...     labels = segmenter.segment_pixels(np.zeros((64, 96), np.uint8))
    >>> labels.shape, labels.dtype
    ((64, 96), dtype('uint8'))
    """

    def __init__(
        self,
        model: str | Path | Artifact | None = None,
        *,
        scheduler: Any | None = None,
        scheduler_file: str | Path | None = None,
        device: str = "auto",
        engine: str | None = None,
        threads: int = 0,
        tile: tuple[int, int] | None = None,
        batch: int = 1,
        max_memory_bytes: int | None = None,
        tta: bool = False,
        input_range: tuple[float, float] | None = None,
        engine_factory: EngineFactory | None = None,
    ) -> None:
        self.artifact = resolve_model(model)
        self._scheduler, self._scheduler_file = scheduler, scheduler_file
        self._options: dict[str, Any] = {
            "device": device,
            "engine": engine,
            "threads": threads,
            "tile": tile,
            "batch": batch,
            "max_memory_bytes": max_memory_bytes,
            "tta": tta,
            "input_range": input_range,
            "engine_factory": engine_factory,
        }
        self._held = ExitStack()
        self._client: Any | None = None

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine, and the client if it is not the caller's; may be called twice."""
        self._held.close()
        self._client = None
        drop_engines(self.artifact)

    def segment(self, volume: str | Path, **options: Any) -> SegmentationResult:
        """Segment a volume into a store; parameters, result and errors as of `segment`."""
        if self._client is None:
            self._client = self._held.enter_context(
                connect(self._scheduler, self._scheduler_file, threads=self._count_in_flight(options))
            )
        return segment(
            volume, model=self.artifact, scheduler=self._client, keep_engine=True, **{**self._options, **options}
        )

    def segment_array(self, array: Any, **options: Any) -> Any:
        """Return the lazy segmentation of a Dask array; parameters and errors as of `segment_array`."""
        return segment_array(array, model=self.artifact, **{**self._options, **options})

    def segment_pixels(self, pixels: npt.NDArray[Any], **options: Any) -> npt.NDArray[np.uint8]:
        """Return the segmentation of an array in memory; parameters and errors as of `segment_array`."""
        return segment_pixels(pixels, model=self.artifact, **{**self._options, **options})

    def _count_in_flight(self, options: Mapping[str, Any]) -> int:
        asked = {**self._options, **options}
        if asked["engine_factory"] is not None:
            return count_in_flight(CAUTIOUS)
        asked = {name: asked[name] for name in ("device", "engine", "threads")}
        return count_in_flight(expect_costs(self.artifact, **asked))
