"""Write the result: an OME-Zarr image of probabilities with its labels inside, in the input's version.

1. The store is an image (probabilities, one channel a class) with ``labels/segmentation``. When only labels are
   wanted, the root's multiscales point at the labels' own arrays, so the store opens in a viewer either way.
2. Arrays are made first, with ``unet_deploy.status = "running"`` and no multiscales: a killed run does not look
   like a result. Each task writes whole chunks or shards, so no two tasks touch one.
3. The pyramid halves y and x: mode for labels, mean for probabilities. A block's task makes the levels of which it
   holds whole chunks; the few small ones left are made at the end. Then come the metadata and the status.
"""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import ZstdCodec

from unet_deploy.errors import InputDataError, NoSpaceError, OutputBusyError, OutputExistsError, OutputPathError
from unet_deploy.geometry import Interval
from unet_deploy.runtime._zarr_metadata import read_node
from unet_deploy.runtime.journal import FOLDER, STATUSES, Journal, create_journal, remove
from unet_deploy.runtime.layout import LABELS_NAME, PROVENANCE_KEY, Kind, OutputSpec, multiscales_of, omero_of
from unet_deploy.runtime.ome import image_label_attributes

ZSTD_LEVEL = 1

STATUS_VALUES: dict[str, int] = {"done": 1, "empty": 2, "failed": 3}
"""Of the image of blocks; 0 is pending."""
_PARTIAL = re.compile(r".+\.[0-9a-f]{32}\.partial")
_NODE_FILES = ("zarr.json", ".zgroup", ".zarray")


def check_output_path(output: Path, *, volume: Path, overwrite: bool) -> None:
    """Refuse a place where writing would fail or harm something.

    Raises
    ------
    OutputPathError
        If output and volume lie inside each other, the folder is missing, or `overwrite` would delete something
        that is not a segmentation of ours.
    OutputExistsError
        If something is there and `overwrite` was not given.
    """
    here, there = output.resolve(), volume.resolve()
    if here == there or there in here.parents or here in there.parents:
        raise OutputPathError(
            f"the output {output} and the volume {volume} lie inside each other",
            "writing there would change or delete the input",
            fix=f"--output {there.parent / (there.name.split('.')[0] + '_segmentation.ome.zarr')}",
        )
    store = find_store(output)
    if store is not None:
        raise OutputPathError(
            f"the output {output} lies inside the Zarr store {store}",
            "a store is changed only by who made it",
            fix=f"--output {store.parent / (output.stem.split('.')[0] + '_segmentation.ome.zarr')}",
        )
    if not output.parent.is_dir():
        raise OutputPathError(
            f"the folder of the output {output} does not exist",
            f"{output.parent} was expected to be a folder",
            fix="create it, or choose another --output",
        )
    if output.is_symlink():
        raise OutputPathError(
            f"the output {output} is a link",
            "what it leads to would be written to, or deleted",
            fix=f"--output {output.resolve()}, or another place",
        )
    if not output.exists() or is_stillborn(output):
        return
    if not overwrite:
        _require_free(output)
    if read_provenance(output) is None:
        raise OutputPathError(
            f"{output} is no segmentation written by unet-deploy, so --overwrite does not delete it",
            f"a Zarr group with the attribute {PROVENANCE_KEY!r} was expected",
            fix="choose another --output, or remove it yourself",
        )


def remove_partial_files(output: Path) -> None:
    """Delete what a kill left of files that were being written: Zarr writes each under another name first."""
    for folder, _, names in os.walk(output):
        for name in names:
            if _PARTIAL.fullmatch(name):
                Path(folder, name).unlink(missing_ok=True)


def _require_free(output: Path) -> None:
    if output.exists() and not is_stillborn(output):
        raise OutputExistsError(
            f"the output {output} exists",
            "nothing was written",
            fix="choose another --output, or replace it with --overwrite",
        )


def is_stillborn(output: Path) -> bool:
    """Tell whether a folder holds nothing but the journal of a run that was killed before it made the store."""
    return output.is_dir() and [entry.name for entry in output.iterdir()] == [FOLDER]


@contextmanager
def full_disk_named(where: str) -> Iterator[None]:
    """Let a full disk or an exhausted quota be a `NoSpaceError`, which ends a run; other errors pass.

    Raises
    ------
    NoSpaceError
        If the system says so while the block runs.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise NoSpaceError(
            f"the disk is full: {error.strerror}", where, fix="free space, then give the same command again"
        ) from error


def find_store(path: Path) -> Path | None:
    """Return the outermost Zarr node that `path` lies inside, None if there is none."""
    nodes = [parent for parent in path.resolve().parents if any((parent / name).is_file() for name in _NODE_FILES)]
    return nodes[-1] if nodes else None


def read_provenance(path: Path) -> dict[str, Any] | None:
    """Return what a segmentation of ours says of itself; None for anything else."""
    try:
        node = read_node(path)
    except InputDataError:
        return None
    if node is None or node.kind != "group" or not node.document:  # attributes alone make no group
        return None
    found = node.attributes.get(PROVENANCE_KEY)
    return found if isinstance(found, dict) else None


def check_space(spec: OutputSpec) -> None:
    """Refuse a run whose result may not fit on the disk.

    Raises
    ------
    NoSpaceError
        If less is free than the result takes uncompressed.
    """
    free = shutil.disk_usage(Path(spec.path).resolve().parent).free
    if free < spec.raw_bytes:
        raise NoSpaceError(
            f"the result may take {spec.raw_bytes / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free",
            f"at {spec.path}; uncompressed size of {' and '.join(spec.kinds)} with pyramid",
            fix="free space, choose --output on another disk, or write less (--write labels); "
            "--no-space-check if you know that it compresses",
        )


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
        _require_free(path)
    try:
        journal = create_journal(path, fingerprint)
        for entry in path.iterdir():
            if entry.name != FOLDER:
                remove(entry)
        root = zarr.create_group(
            spec.path,
            zarr_format=spec.zarr_format,
            attributes={PROVENANCE_KEY: {**provenance, "status": "running"}},
        )
        if "labels" in spec.kinds:
            root.create_group(f"labels/{LABELS_NAME}")
        _create_status(spec)
        for kind in spec.kinds:
            for level in range(spec.n_levels):
                _create_level(spec, kind, level)
    except OutputBusyError:
        raise
    except OSError as error:
        if journal is not None:
            journal.close()
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


def count_regions(spec: OutputSpec, level: int) -> int:
    """Return in how many pieces a pass makes a pyramid level."""
    return math.prod(_region_counts(spec, level))


def downsample_region(spec: OutputSpec, level: int, index: int) -> None:
    """Make one piece of a pyramid level from the level above, and its part of the levels below that it holds."""
    extents, above = spec.level_extents(level), spec.level_extents(level - 1)
    _, nz, ny, nx = _region_counts(spec, level)
    rest, ix = divmod(index, nx)
    rest, iy = divmod(rest, ny)
    t, iz = divmod(rest, nz)
    z, y, x = (
        Interval(i * size, min((i + 1) * size, extent))
        for i, size, extent in zip((iz, iy, ix), spec.region, (extents.z, extents.y, extents.x), strict=True)
    )
    source = {
        "t": slice(t, t + 1),
        "c": slice(None),
        "z": z.slice,
        "y": slice(2 * y.start, min(2 * y.stop, above.y)),
        "x": slice(2 * x.start, min(2 * x.stop, above.x)),
    }
    values: dict[Kind, npt.NDArray[np.uint8]] = {}
    for kind in spec.kinds:
        absent = tuple(i for i, axis in enumerate("tczyx") if axis not in spec.axes_of(kind))
        read = np.asarray(_open(spec, kind, level - 1)[spec.to_layout(kind, source)])
        values[kind] = _REDUCTIONS[kind](np.expand_dims(read, absent))
    count = 1 + spec.levels_within(level, spec.region)
    _write_levels(spec, values, level=level, count=count, t=t, z=z, y=y, x=x)


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
    for deeper in range(count):
        if deeper:
            values = {kind: _REDUCTIONS[kind](array) for kind, array in values.items()}
        e = spec.level_extents(level + deeper)
        rows, columns = (
            slice(side.start >> deeper, min(-(-side.stop >> deeper), extent)) for side, extent in ((y, e.y), (x, e.x))
        )
        place = {"t": slice(t, t + 1), "c": slice(None), "z": z.slice, "y": rows, "x": columns}
        for kind, array in values.items():
            _write(spec, kind, level + deeper, place, array)


def write_status(spec: OutputSpec, journal: Journal) -> None:
    """Write what became of each block as an image of one pixel a block, (t, z, y, x); see `STATUS_VALUES`."""
    image = np.zeros(_status_shape(spec), np.uint8)
    for status in STATUSES:
        image.flat[[record.index for record in journal.with_status(status)]] = STATUS_VALUES[status]
    with full_disk_named(f"while writing the blocks' status at {spec.path}"):
        zarr.open_array(spec.path, path=FOLDER, mode="r+")[...] = image


def finish_output(spec: OutputSpec, *, provenance: Mapping[str, Any], source: str | None) -> None:
    """Write the OME metadata and the final provenance, which carries the status."""
    root = zarr.open_group(spec.path, mode="r+")
    main: Kind = "probabilities" if "probabilities" in spec.kinds else "labels"
    attributes = multiscales_of(spec, main, prefix="" if main == "probabilities" else f"labels/{LABELS_NAME}/")
    if main == "probabilities":
        target = attributes["ome"] if spec.ome_version == "0.5" else attributes
        target["omero"] = omero_of(spec.classes)
    root.attrs.update({**attributes, PROVENANCE_KEY: dict(provenance)})
    if "labels" not in spec.kinds:
        return
    listing = {"labels": [LABELS_NAME]}
    root["labels"].attrs.update({"ome": {"version": "0.5", **listing}} if spec.ome_version == "0.5" else listing)
    label_attributes = multiscales_of(spec, "labels", prefix="")
    extra = image_label_attributes(
        version=spec.ome_version, classes=[(c.name, c.colour) for c in spec.classes], source=source
    )
    if spec.ome_version == "0.5":
        label_attributes["ome"].update(extra["ome"])
    else:
        label_attributes.update(extra)
    root[f"labels/{LABELS_NAME}"].attrs.update(label_attributes)


def reduce_mode(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the most frequent value of each 2x2 cell of (..., y, x); on a tie the first in reading order.

    >>> reduce_mode(np.array([[1, 2], [3, 2]], np.uint8))
    array([[2]], dtype=uint8)
    """
    a, b, c, d = _cells(values)
    first = (a == b) | (a == c) | (a == d)
    second = (b == c) | (b == d)
    return np.where(first, a, np.where(second, b, np.where(c == d, c, a)))


def reduce_mean(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the mean of each 2x2 cell of (..., y, x), rounded half up."""
    a, b, c, d = _cells(values)
    total = a.astype(np.uint16)
    total += b
    total += c
    total += d
    total += 2
    total >>= 2
    return total.astype(np.uint8)


def _cells(values: npt.NDArray[np.uint8]) -> Sequence[npt.NDArray[np.uint8]]:
    """Return the four corners of each 2x2 cell; an odd last row or column is repeated."""
    odd_y, odd_x = values.shape[-2] % 2, values.shape[-1] % 2
    if odd_y or odd_x:
        values = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, odd_y), (0, odd_x)], mode="edge")
    return [np.ascontiguousarray(values[..., i::2, j::2]) for i in (0, 1) for j in (0, 1)]


_REDUCTIONS: dict[Kind, Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]]] = {
    "labels": reduce_mode,
    "probabilities": reduce_mean,
}


def _region_counts(spec: OutputSpec, level: int) -> tuple[int, int, int, int]:
    e = spec.level_extents(level)
    z, y, x = (-(-n // size) for n, size in zip((e.z, e.y, e.x), spec.region, strict=True))
    return e.t, z, y, x


def _status_shape(spec: OutputSpec) -> tuple[int, int, int, int]:
    e = spec.extents
    z, y, x = (-(-n // size) for n, size in zip((e.z, e.y, e.x), spec.block, strict=True))
    return e.t, z, y, x


def _create_status(spec: OutputSpec) -> None:
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
        attributes={"blocks": {"pending": 0, **STATUS_VALUES}, "block_zyx": list(spec.block)},
        write_data=False,
    )


def _create_level(spec: OutputSpec, kind: Kind, level: int) -> None:
    extents = spec.level_extents(level)
    sizes = {"t": extents.t, "c": len(spec.classes), "z": extents.z, "y": extents.y, "x": extents.x}
    chunk = dict(zip("tczyx", (1, 1, *spec.grid.chunk), strict=True))
    shard = dict(zip("tczyx", (1, 1, *spec.grid.unit), strict=True))
    is_v3 = spec.zarr_format == 3
    zarr.create_array(
        spec.path,
        name=spec.array_path(kind, level),
        shape=spec.to_layout(kind, sizes),
        chunks=spec.to_layout(kind, chunk),
        shards=spec.to_layout(kind, shard) if spec.grid.shard else None,
        dtype="uint8",
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


def _open(spec: OutputSpec, kind: Kind, level: int) -> zarr.Array[Any]:
    return zarr.open_array(spec.path, path=spec.array_path(kind, level), mode="r+")


def _write(spec: OutputSpec, kind: Kind, level: int, place: Mapping[str, slice], values: npt.NDArray[Any]) -> None:
    """Write values given as (t, c, z, y, x) where the array may lack some of the axes, each then of size 1."""
    absent = tuple(i for i, axis in enumerate("tczyx") if axis not in spec.axes_of(kind))
    with full_disk_named(f"while writing {kind} at {spec.path}"):
        _open(spec, kind, level)[spec.to_layout(kind, place)] = values.squeeze(absent)
