"""Labels written as a finished run leaves them, and their objects numbered in one piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from skimage.measure import label as skimage_label

from unet_deploy.card import ClassInfo
from unet_deploy.geometry import Interval
from unet_deploy.runtime.instances import InstanceRule
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.output import create_output, write_block
from unet_deploy.runtime.plan import Extents, WriteGrid

CLASSES = tuple(ClassInfo(name=name, colour="#000000") for name in ("background", "nucleus", "membrane", "debris"))
Labels = npt.NDArray[np.uint8]


def write_labels(
    path: Path,
    labels: Labels,
    block: tuple[int, int, int],
    *,
    grid: WriteGrid | None = None,
    axes: str = "tzyx",
    zarr_format: Any = 3,
) -> OutputSpec:
    """Write labels (t, z, y, x) as a finished run does."""
    t, z, y, x = labels.shape
    spec = OutputSpec(
        path=str(path),
        zarr_format=zarr_format,
        ome_version="0.5" if zarr_format == 3 else "0.4",
        kinds=("labels",),
        name="made up",
        axes=axes,
        extents=Extents(t=t, z=z, y=y, x=x),
        grid=grid or WriteGrid(chunk=block),
        block=block,
        classes=CLASSES,
        scale=(1.0,) * len(axes),
        translation=(0.0,) * len(axes),
        units=(None,) * len(axes),
    )
    create_output(spec, fingerprint={}, provenance={}, overwrite=True).close()
    for i in range(t):
        write_block(
            spec, t=i, z=Interval(0, z), y=Interval(0, y), x=Interval(0, x), labels=labels[i], probabilities=None
        )
    return spec


def whole(labels: Labels, rule: InstanceRule) -> npt.NDArray[np.int64]:
    """Number the objects of the whole volume at once by scikit-image, then drop the small and number by first pixel."""
    kept = np.where(np.isin(labels, rule.classes), labels, 0)
    planes = kept.reshape(-1, *kept.shape[2:]) if rule.dimensions == 2 else kept
    connectivity = 1 if rule.neighbours == "face" else planes.ndim - 1
    ids = np.zeros(planes.shape, np.int64)
    for i, part in enumerate(planes):
        found = skimage_label(part, connectivity=connectivity, background=0)
        ids[i] = np.where(found > 0, found + ids.max(), 0)
    flat = ids.reshape(-1)
    values, first, counts = np.unique(flat, return_index=True, return_counts=True)
    order = np.argsort(first)
    names = [v for v, n in zip(values[order], counts[order], strict=True) if v > 0 and n >= rule.min_size]
    new = np.zeros(int(flat.max()) + 1, np.int64)
    new[names] = np.arange(1, len(names) + 1)
    return new[flat].reshape(labels.shape)


def read_ids(spec: OutputSpec, level: int = 0) -> npt.NDArray[np.uint32]:
    array: Any = zarr.open_array(spec.path, path=f"labels/instances/{level}", mode="r")
    return np.asarray(array[...])
