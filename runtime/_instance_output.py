"""The label image of object ids: its arrays beside the labels of classes, its pyramid and its OME metadata.

1. ``labels/instances`` has the levels, chunks and shards of ``labels/segmentation``, in uint32; a level halves y and x
   and keeps the most frequent id of each 2 × 2 cell.
2. A block's task writes its ids and the levels of which it holds whole chunks; the others are made level by level.
3. The store lists the image among its labels only when all of it is there.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from unet_deploy.runtime._box_grid import Box, BoxGrid
from unet_deploy.runtime.layout import PROVENANCE_KEY, OutputSpec, multiscales_of
from unet_deploy.runtime.output import ZSTD_LEVEL, full_disk_named, reduce_mode

INSTANCES_NAME = "instances"
PATH = f"labels/{INSTANCES_NAME}"
STRIP_ROWS = 256
"""Even, so that no 2 × 2 cell is cut."""

InstanceIds = npt.NDArray[np.uint32]


def create_instances(spec: OutputSpec) -> None:
    """Create the arrays of ids in a store that exists; ids of an earlier time are deleted, and no longer listed."""
    _list(spec, listed=False)
    shutil.rmtree(Path(spec.path) / PATH, ignore_errors=True)
    root = zarr.open_group(spec.path, mode="r+")
    root.require_group("labels").create_group(INSTANCES_NAME)
    is_v3 = spec.zarr_format == 3
    chunk = dict(zip("tzyx", (1, *spec.grid.chunk), strict=True))
    shard = dict(zip("tzyx", (1, *spec.grid.unit), strict=True))
    for level in range(spec.n_levels):
        e = spec.level_extents(level)
        zarr.create_array(
            spec.path,
            name=f"{PATH}/{level}",
            shape=spec.to_layout("labels", {"t": e.t, "z": e.z, "y": e.y, "x": e.x}),
            chunks=spec.to_layout("labels", chunk),
            shards=spec.to_layout("labels", shard) if spec.grid.shard else None,
            dtype="uint32",
            compressors=ZstdCodec(level=ZSTD_LEVEL) if is_v3 else "auto",  # of version 2: Zstandard too
            fill_value=0,
            zarr_format=spec.zarr_format,
            dimension_names=list(spec.axes) if is_v3 else None,
            chunk_key_encoding={"name": "default" if is_v3 else "v2", "separator": "/"},
            write_data=False,
        )


def write_ids(spec: OutputSpec, block: Box, ids: InstanceIds) -> None:
    """Write a block's ids (z, y, x), and its part of the pyramid."""
    _write_levels(spec, ids, level=0, count=1 + spec.n_block_levels, block=block)


def downsample_ids(spec: OutputSpec, level: int, index: int) -> None:
    """Make one piece of a level from the level above, and its part of the levels below that it holds."""
    above = spec.level_extents(level - 1)
    region = _regions(spec, level).at(index)
    y, x = region.y, region.x
    rows, columns = slice(2 * y.start, min(2 * y.stop, above.y)), slice(2 * x.start, min(2 * x.stop, above.x))
    place = spec.to_layout("labels", {"t": slice(region.t, region.t + 1), "z": region.z.slice, "y": rows, "x": columns})
    read = np.asarray(_open(spec, level - 1)[place], np.uint32).reshape(region.z.size, rows.stop - rows.start, -1)
    _write_levels(spec, _halved(read), level=level, count=1 + spec.levels_within(level, spec.region), block=region)


def count_pieces(spec: OutputSpec, level: int) -> int:
    """Return in how many pieces `downsample_ids` makes a level."""
    return _regions(spec, level).n_boxes


def _regions(spec: OutputSpec, level: int) -> BoxGrid:
    return BoxGrid(extents=spec.level_extents(level), box=spec.region)


def finish_instances(spec: OutputSpec, *, provenance: Mapping[str, Any], source: str | None) -> None:
    """Write the OME metadata of the ids, and list them among the store's labels; after `finish_output`.

    Parameters
    ----------
    spec
        The store.
    provenance
        JSON values that say how objects were told apart.
    source
        Relative path to the image that was segmented, None where there is none to point at.
    """
    label: dict[str, Any] = {} if source is None else {"source": {"image": source}}
    attributes = multiscales_of(spec, "labels", prefix="")
    holder = attributes["ome"] if spec.ome_version == "0.5" else attributes
    holder["multiscales"][0]["name"] = INSTANCES_NAME
    holder["image-label"] = label if spec.ome_version == "0.5" else {"version": "0.4", **label}
    root = zarr.open_group(spec.path, mode="r+")
    root[PATH].attrs.update({**attributes, PROVENANCE_KEY: dict(provenance)})
    _list(spec, listed=True)


def _list(spec: OutputSpec, *, listed: bool) -> None:
    """Put the ids among the store's labels, or take them out."""
    labels = zarr.open_group(spec.path, mode="r+").require_group("labels")
    holder: Any = labels.attrs.get("ome", {"version": "0.5"}) if spec.ome_version == "0.5" else labels.attrs.asdict()
    names = [name for name in holder.get("labels", []) if name != INSTANCES_NAME]
    if not listed and names == holder.get("labels", []):
        return
    names += [INSTANCES_NAME] if listed else []
    labels.attrs.update({"ome": {**holder, "labels": names}} if spec.ome_version == "0.5" else {"labels": names})


def _write_levels(spec: OutputSpec, ids: InstanceIds, *, level: int, count: int, block: Box) -> None:
    for deeper in range(count):
        if deeper:
            ids = _halved(ids)
        e = spec.level_extents(level + deeper)
        rows, columns = (
            slice(side.start >> deeper, min(-(-side.stop >> deeper), extent))
            for side, extent in ((block.y, e.y), (block.x, e.x))
        )
        place = {"t": slice(block.t, block.t + 1), "z": block.z.slice, "y": rows, "x": columns}
        absent = tuple(i for i, axis in enumerate("tzyx") if axis not in spec.axes)
        with full_disk_named(f"while writing {INSTANCES_NAME} at {spec.path}"):
            _open(spec, level + deeper)[spec.to_layout("labels", place)] = ids[None].squeeze(absent)


def _halved(ids: InstanceIds) -> InstanceIds:
    """Halve y and x of ids (z, y, x), a strip at a time: comparing needs several times what is compared."""
    reduce: Any = reduce_mode  # its type says uint8; it compares values of any
    strips = [reduce(ids[:, top : top + STRIP_ROWS]) for top in range(0, ids.shape[1], STRIP_ROWS)]
    return np.concatenate(strips, axis=1)


def _open(spec: OutputSpec, level: int) -> zarr.Array[Any]:
    return zarr.open_array(spec.path, path=f"{PATH}/{level}", mode="r+")
