"""Segment volumes of any size with an exported network; no torch.

>>> from unet_deploy.runtime import segment, segment_array

`segment` goes from a Zarr volume to a finished OME-Zarr; `segment_array` gives a lazy Dask array for pipelines;
`Segmenter` keeps one model open for many volumes.
Importing this package costs nothing: each name is imported on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unet_deploy.runtime.artifact import Artifact, load_artifact, load_bundled_artifact
    from unet_deploy.runtime.dask_array import segment_array
    from unet_deploy.runtime.engines import CheckedEngine, Engine, EngineDescription, open_engine
    from unet_deploy.runtime.execute import Progress
    from unet_deploy.runtime.follow import Following
    from unet_deploy.runtime.images import ImageEntry, list_images
    from unet_deploy.runtime.many import ImageResult, ManyResult, segment_images
    from unet_deploy.runtime.pipeline import segment
    from unet_deploy.runtime.plan import SegmentationPlan, plan_segmentation
    from unet_deploy.runtime.preparation import default_output, prepare
    from unet_deploy.runtime.region import Region, parse_region
    from unet_deploy.runtime.results import SegmentationResult
    from unet_deploy.runtime.segmenter import Segmenter
    from unet_deploy.runtime.volume import Volume, VolumeInfo, open_volume

_HOMES = {
    "Artifact": "artifact",
    "CheckedEngine": "engines",
    "Engine": "engines",
    "EngineDescription": "engines",
    "Following": "follow",
    "ImageEntry": "images",
    "ImageResult": "many",
    "ManyResult": "many",
    "Progress": "execute",
    "Region": "region",
    "SegmentationPlan": "plan",
    "SegmentationResult": "results",
    "Segmenter": "segmenter",
    "Volume": "volume",
    "VolumeInfo": "volume",
    "default_output": "preparation",
    "list_images": "images",
    "load_artifact": "artifact",
    "load_bundled_artifact": "artifact",
    "open_engine": "engines",
    "open_volume": "volume",
    "parse_region": "region",
    "plan_segmentation": "plan",
    "prepare": "preparation",
    "segment": "pipeline",
    "segment_array": "dask_array",
    "segment_images": "many",
}

__all__ = [
    "Artifact",
    "CheckedEngine",
    "Engine",
    "EngineDescription",
    "Following",
    "ImageEntry",
    "ImageResult",
    "ManyResult",
    "Progress",
    "Region",
    "SegmentationPlan",
    "SegmentationResult",
    "Segmenter",
    "Volume",
    "VolumeInfo",
    "default_output",
    "list_images",
    "load_artifact",
    "load_bundled_artifact",
    "open_engine",
    "open_volume",
    "parse_region",
    "plan_segmentation",
    "prepare",
    "segment",
    "segment_array",
    "segment_images",
]


def __getattr__(name: str) -> Any:
    """Import on first use."""
    if name in _HOMES:
        value = getattr(importlib.import_module(f"unet_deploy.runtime.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
