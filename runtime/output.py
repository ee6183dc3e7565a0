"""Write the result: an OME-Zarr image of probabilities with its labels inside, or labels in the volume's own.

1. The store is an image (probabilities, one channel a class) with ``labels/segmentation``. When only labels are
   wanted, the root's multiscales point at the labels' own arrays, so the store opens in a viewer either way. A label
   group is those labels alone, in a volume that is there (`label_group`).
2. Arrays are made first, with ``unet_deploy.status = "running"`` and no multiscales: a killed run does not look
   like a result. Each task writes whole chunks or shards, so no two tasks touch one.
3. The pyramid halves y and x: mode for labels, mean for probabilities. A block's task makes the levels of which it
   holds whole chunks; the few small ones left are made at the end. Then come the metadata and the status.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from unet_deploy.errors import OutputPathError, UnetDeployError
from unet_deploy.geometry import Interval
from unet_deploy.runtime._level_boxes import pieces_of, place_above, places_down
from unet_deploy.runtime.chunk_writer import ChunkWriter, Place, read_back
from unet_deploy.runtime.disk_space import full_disk_named
from unet_deploy.runtime.journal import FOLDER, STATUS_VALUES, Journal, create_journal, remove
from unet_deploy.runtime.label_group import begin_label_group, drop_objects, list_label
from unet_deploy.runtime.layout import LABELS_NAME, PROVENANCE_KEY, Kind, OutputSpec, multiscales_of, omero_of
from unet_deploy.runtime.ome import image_label_attributes, merge_attributes
from unet_deploy.runtime.output_paths import GROUP_FILES, require_free
from unet_deploy.runtime.pyramid import reduce_mean, reduce_mode
from unet_deploy.runtime.region import Region
from unet_deploy.runtime.timeline import span

ZSTD_LEVEL = 1

_REDUCE: dict[Kind, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    "labels": reduce_mode,
    "probabilities": reduce_mean,
}


def create_output(
    spec: OutputSpec, *, fingerprint: Mapping[str, Any], provenance: Mapping[str, Any], overwrite: bool
) -> Journal:
    """Create the store with its full-resolution arrays, marked as running, and its journal, which is returned open.

    `check_output_path` was called before. With `overwrite`, what an existing store of ours holds is deleted here, once
    its journal is locked: no other run writes there.

    Raises
    ------
    OutputExistsError
        If, without `overwrite`, something has come to lie there since it was checked.
    OutputPathError
        If the store cannot be written.
    OutputBusyError
        If another run writes there.
    """
    path = Path(spec.path)
    journal: Journal | None = None
    if not overwrite:
        require_free(path, is_label_group=spec.is_label_group)
    try:
        journal = create_journal(path, fingerprint)
        if spec.is_label_group:
            begin_label_group(spec)
        for entry in sorted(path.iterdir(), key=lambda e: e.name in GROUP_FILES):  # last what says that it is ours
            if entry.name != FOLDER:
                remove(entry)
        root = zarr.create_group(
            spec.path,
            zarr_format=spec.zarr_format,
            attributes={PROVENANCE_KEY: {**provenance, "status": "running"}},
        )
        if "labels" in spec.kinds and spec.labels_path:
            root.create_group(spec.labels_path)
        create_status(spec)
        for kind in spec.kinds:
            for level in range(spec.n_levels):
                name = spec.array_path(kind, level)
                create_array(spec, spec.path, name, kind=kind, level=level, dtype="uint8")
    except BaseException as error:
        if journal is not None:
            journal.close()
        if not isinstance(error, OSError) or isinstance(error, UnetDeployError):
            raise
        raise OutputPathError(
            f"the output {path} cannot be written: {error.strerror or error}",
            f"{type(error).__name__} at {error.filename or path}",
            fix="choose an --output where you may write",
        ) from error
    return journal


def write_block(
    spec: OutputSpec,
    *,
    t: int,
    z: Interval,
    y: Interval,
    x: Interval,
    labels: npt.NDArray[np.uint8] | None,
    probabilities: npt.NDArray[np.uint8] | None,
) -> None:
    """Write one block, labels (z, y, x) and probabilities (c, z, y, x), and its part of the pyramid."""
    values: dict[Kind, npt.NDArray[np.uint8]] = {}
    if labels is not None:
        values["labels"] = labels[None, None]
    if probabilities is not None:
        values["probabilities"] = probabilities[None]
    _write_levels(spec, values, level=0, count=1 + spec.n_block_levels, t=t, z=z, y=y, x=x)


def list_regions(spec: OutputSpec, level: int, part: Region | None = None) -> list[int]:
    """Return the pieces in which a pass makes a pyramid level: all, or those that hold something of a part.

    Parameters
    ----------
    spec, level
        Which pyramid and level.
    part
        In pixels of the finest level.
    """
    grid = pieces_of(spec, level)
    if part is None:
        return [*range(grid.n_boxes)]
    y, x = (
        None if along is None else Interval(along.start >> level, -(-along.stop >> level)) for along in (part.y, part.x)
    )
    ranges = grid.touching(Region(t=part.t, z=part.z, y=y, x=x))
    return [grid.number(place) for place in product(*ranges)]


def downsample_region(spec: OutputSpec, level: int, index: int) -> None:
    """Make one piece of a pyramid level from the level above, and its part of the levels below that it holds."""
    piece = pieces_of(spec, level).at(index)
    source = place_above(spec, level, piece)
    count = 1 + spec.levels_within(level, spec.region)
    for kind in spec.kinds:
        absent = tuple(i for i, axis in enumerate("tczyx") if axis not in spec.axes_of(kind))
        read = read_box(spec.path, spec.array_path(kind, level - 1), spec.to_layout(kind, source))
        values = {kind: _REDUCE[kind](np.expand_dims(read, absent))}
        _write_levels(spec, values, level=level, count=count, t=piece.t, z=piece.z, y=piece.y, x=piece.x)


def _write_levels(
    spec: OutputSpec,
    values: Mapping[Kind, npt.NDArray[np.uint8]],
    *,
    level: int,
    count: int,
    t: int,
    z: Interval,
    y: Interval,
    x: Interval,
) -> None:
    """Write a box of `level`, given as (t, c, z, y, x), and what it is in the levels below, `count` in all."""
    with span("write"), ChunkWriter() as writer:
        for deeper, place in places_down(spec, level=level, count=count, t=t, z=z, y=y, x=x):
            if deeper > level:
                with span("reduce"):
                    values = {kind: _REDUCE[kind](array) for kind, array in values.items()}
            for kind, array in values.items():
                with span("write pyramid" if deeper else f"write {kind}"):
                    _write(writer, spec, kind, deeper, place, array)


def write_status(spec: OutputSpec, journal: Journal) -> None:
    """Write what became of each block as an image of one pixel a block, (t, z, y, x); see `STATUS_VALUES`."""
    shape = _status_shape(spec)
    image = np.frombuffer(journal.status_values(math.prod(shape)), np.uint8).reshape(shape)
    with full_disk_named(f"while writing the blocks' status at {spec.path}"):
        zarr.open_array(spec.path, path=FOLDER, mode="r+")[...] = image


def mark_running(spec: OutputSpec, provenance: Mapping[str, Any]) -> None:
    """Say of an output that a run goes on with: what it holds is no result until that has ended, its objects least."""
    if "labels" in spec.kinds:
        drop_objects(spec)
    with full_disk_named(f"while writing the metadata at {spec.path}"):
        zarr.open_group(spec.path, mode="r+").attrs[PROVENANCE_KEY] = {**provenance, "status": "running"}


def finish_output(spec: OutputSpec, *, provenance: Mapping[str, Any], source: str | None) -> None:
    """Write the OME metadata and the final provenance, which carries the status.

    Parameters
    ----------
    spec
        The output.
    provenance
        JSON values, with the status.
    source
        Relative path from the labels to the image that was segmented, None where there is none to point at. Of a label
        group that is known: the volume that it lies in.
    """
    with full_disk_named(f"while writing the metadata at {spec.path}"):
        if spec.is_label_group:
            group = zarr.open_group(spec.path, mode="r+")
            group.attrs.update(_label_attributes(spec, "../../"))
            said = {PROVENANCE_KEY: dict(provenance)}
            list_label(spec, spec.labels_name, listed=True, attributes=said)
            group.attrs.update(said)  # last: with it, nothing is left to be done
        else:
            _finish_store(spec, provenance, source)


def _finish_store(spec: OutputSpec, provenance: Mapping[str, Any], source: str | None) -> None:
    root = zarr.open_group(spec.path, mode="r+")
    if "labels" in spec.kinds:
        root[spec.labels_path].attrs.update(_label_attributes(spec, source))
        list_label(spec, LABELS_NAME, listed=True)
    main: Kind = "probabilities" if "probabilities" in spec.kinds else "labels"
    attributes = multiscales_of(spec, main, prefix="" if main == "probabilities" else f"{spec.labels_path}/")
    if main == "probabilities":
        target = attributes["ome"] if spec.ome_version == "0.5" else attributes
        target["omero"] = omero_of(spec.classes)
    root.attrs.update({**attributes, PROVENANCE_KEY: dict(provenance)})


def _label_attributes(spec: OutputSpec, source: str | None) -> dict[str, Any]:
    classes = [(c.name, c.colour) for c in spec.classes]
    return merge_attributes(
        multiscales_of(spec, "labels", prefix=""),
        image_label_attributes(version=spec.ome_version, classes=classes, source=source),
    )


def _status_shape(spec: OutputSpec) -> tuple[int, int, int, int]:
    e = spec.extents
    z, y, x = (-(-n // size) for n, size in zip((e.z, e.y, e.x), spec.block, strict=True))
    return e.t, z, y, x


def create_status(spec: OutputSpec) -> None:
    """Make the image of the blocks' status, in the journal's folder."""
    # An array, since Zarr never lists what else is in an array's folder: the journal is no concern of a viewer.
    shape = _status_shape(spec)
    zarr.create_array(
        spec.path,
        name=FOLDER,
        shape=shape,
        chunks=tuple(min(n, 1024) for n in shape),
        dtype="uint8",
        compressors=ZstdCodec(level=ZSTD_LEVEL) if spec.zarr_format == 3 else _zstd_v2(),
        fill_value=0,
        zarr_format=spec.zarr_format,
        dimension_names=list("tzyx") if spec.zarr_format == 3 else None,
        chunk_key_encoding={"name": "default" if spec.zarr_format == 3 else "v2", "separator": "/"},
        attributes={
            "blocks": {"pending": 0} | {str(status): value for status, value in STATUS_VALUES.items()},
            "block_zyx": list(spec.block),
        },
        write_data=False,
    )


def create_array(
    spec: OutputSpec, store: str, name: str, *, kind: Kind, level: int, dtype: Literal["uint8", "uint32"]
) -> None:
    """Make the array of a level with a kind's axes, chunks and shards; nothing is written to it."""
    e = spec.level_extents(level)
    sizes = {"t": e.t, "c": len(spec.classes), "z": e.z, "y": e.y, "x": e.x}
    chunk = dict(zip("tczyx", (1, 1, *spec.grid.chunk), strict=True))
    shard = dict(zip("tczyx", (1, 1, *spec.grid.unit), strict=True))
    is_v3 = spec.zarr_format == 3
    zarr.create_array(
        store,
        name=name,
        shape=spec.to_layout(kind, sizes),
        chunks=spec.to_layout(kind, chunk),
        shards=spec.to_layout(kind, shard) if spec.grid.shard else None,
        dtype=dtype,
        compressors=ZstdCodec(level=ZSTD_LEVEL) if is_v3 else _zstd_v2(),
        fill_value=0,
        zarr_format=spec.zarr_format,
        dimension_names=list(spec.axes_of(kind)) if is_v3 else None,
        chunk_key_encoding={"name": "default" if is_v3 else "v2", "separator": "/"},
        write_data=False,
    )


def _zstd_v2() -> Any:
    import numcodecs

    return numcodecs.Zstd(level=ZSTD_LEVEL)


def _write(
    writer: ChunkWriter,
    spec: OutputSpec,
    kind: Kind,
    level: int,
    place: Mapping[str, slice],
    values: npt.NDArray[Any],
) -> None:
    """Write values given as (t, c, z, y, x) where the array may lack some of the axes, each then of size 1."""
    absent = tuple(i for i, axis in enumerate("tczyx") if axis not in spec.axes_of(kind))
    name, where = spec.array_path(kind, level), f"while writing {kind} at {spec.path}"
    write_box(writer, spec.path, name, spec.to_layout(kind, place), values.squeeze(absent), where=where)


def write_box(
    writer: ChunkWriter, store: str, name: str, place: Place, values: npt.NDArray[Any], *, where: str
) -> None:
    """Write a box of an array, by zarr what the writer does not know how to."""
    if not writer.write(Path(store, name), place, values, where=where):
        with full_disk_named(where):
            zarr.open_array(store, path=name, mode="r+")[place] = values


def read_box(store: str, name: str, place: Place) -> npt.NDArray[Any]:
    """Return a box of an array that was written, by zarr what cannot be read without."""
    found = read_back(Path(store, name), place)
    return np.asarray(zarr.open_array(store, path=name, mode="r")[place]) if found is None else found
