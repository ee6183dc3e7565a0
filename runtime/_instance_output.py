"""The label image of object ids: its arrays beside the labels of classes, its pyramid and its OME metadata.

1. ``labels/instances`` has the levels, chunks and shards of ``labels/segmentation``, in uint32; a level halves y and x
   and keeps the most frequent id of each 2 × 2 cell. The ids of a label group ``NAME`` go to ``NAME_instances`` beside
   it.
2. A block's task writes its ids and the levels of which it holds whole chunks; the others are made level by level.
3. The image is listed among the labels only when all of it is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from unet_deploy.errors import OutputPathError
from unet_deploy.runtime._box_grid import Box
from unet_deploy.runtime._level_boxes import pieces_of, place_above, places_down
from unet_deploy.runtime.chunk_writer import ChunkWriter
from unet_deploy.runtime.disk_space import full_disk_named
from unet_deploy.runtime.journal import FOLDER, remove
from unet_deploy.runtime.label_group import drop_objects, is_made_for, list_label
from unet_deploy.runtime.layout import INSTANCES_NAME, PROVENANCE_KEY, OutputSpec, multiscales_of
from unet_deploy.runtime.output import create_array, read_box, write_box
from unet_deploy.runtime.pyramid import reduce_mode

InstanceIds = npt.NDArray[np.uint32]


def create_instances(spec: OutputSpec) -> None:
    """Create the arrays of ids beside labels that exist; ids of an earlier time are deleted, and no longer listed.

    Raises
    ------
    OutputPathError
        If, beside a label group, something has come to lie there that is not ours.
    """
    folder = Path(spec.instances_path)
    if spec.is_label_group and folder.exists() and not is_made_for(folder, spec.labels_name):
        raise OutputPathError(
            f"the objects of {spec.labels_name} would go to {folder}, where something else is",
            "it was not made by unet-deploy for these labels, so it is never replaced",
            fix="move it away, then give the same command again",
        )
    drop_objects(spec)
    with full_disk_named(f"while making {folder}"):
        # Made elsewhere, then moved: what a kill left of a group in its place would not be known as ours.
        begun = Path(spec.path) / FOLDER / "begun"
        if begun.exists():
            remove(begun)
        said = {"status": "running", "instances_of": spec.labels_name}
        zarr.create_group(str(begun), zarr_format=spec.zarr_format, attributes={PROVENANCE_KEY: said})
        for level in range(spec.n_levels):
            create_array(spec, str(begun), str(level), kind="labels", level=level, dtype="uint32")
        begun.replace(folder)


def write_ids(spec: OutputSpec, block: Box, ids: InstanceIds) -> None:
    """Write a block's ids (z, y, x), and its part of the pyramid."""
    _write_levels(spec, ids, level=0, count=1 + spec.n_block_levels, block=block)


def downsample_ids(spec: OutputSpec, level: int, index: int) -> None:
    """Make one piece of a level from the level above, and its part of the levels below that it holds."""
    piece = pieces_of(spec, level).at(index)
    source = place_above(spec, level, piece)
    found = read_box(spec.instances_path, str(level - 1), spec.to_layout("labels", source))
    read = np.asarray(found, np.uint32).reshape(piece.z.size, source["y"].stop - source["y"].start, -1)
    _write_levels(spec, reduce_mode(read), level=level, count=1 + spec.levels_within(level, spec.region), block=piece)


def count_pieces(spec: OutputSpec, level: int) -> int:
    """Return in how many pieces `downsample_ids` makes a level."""
    return pieces_of(spec, level).n_boxes


def finish_instances(spec: OutputSpec, *, provenance: Mapping[str, Any], source: str | None) -> None:
    """Write the OME metadata of the ids, and list them among the labels; before `finish_output`, whose status is last.

    Parameters
    ----------
    spec
        The store.
    provenance
        JSON values that say how objects were told apart.
    source
        Relative path to the image that was segmented, None where there is none to point at; of a label group, known.
    """
    source = "../../" if spec.is_label_group else source
    label: dict[str, Any] = {} if source is None else {"source": {"image": source}}
    attributes = multiscales_of(spec, "labels", prefix="")
    folder = Path(spec.instances_path)
    holder = attributes["ome"] if spec.ome_version == "0.5" else attributes
    holder["multiscales"][0]["name"] = folder.name
    holder["image-label"] = label if spec.ome_version == "0.5" else {"version": "0.4", **label}
    with full_disk_named(f"while writing the metadata at {folder}"):
        said = {**provenance, "instances_of": spec.labels_name}
        zarr.open_group(str(folder), mode="r+").attrs.update({**attributes, PROVENANCE_KEY: said})
        list_label(spec, folder.name, listed=True)


def _write_levels(spec: OutputSpec, ids: InstanceIds, *, level: int, count: int, block: Box) -> None:
    absent = tuple(i for i, axis in enumerate("tzyx") if axis not in spec.axes)
    with ChunkWriter() as writer:
        for deeper, place in places_down(spec, level=level, count=count, t=block.t, z=block.z, y=block.y, x=block.x):
            if deeper > level:
                ids = reduce_mode(ids)
            write_box(
                writer,
                spec.instances_path,
                str(deeper),
                spec.to_layout("labels", place),
                ids[None].squeeze(absent),
                where=f"while writing {INSTANCES_NAME} at {spec.path}",
            )
