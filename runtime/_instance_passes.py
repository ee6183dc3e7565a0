"""The passes by which objects are numbered: what a task does of one block, and what is done of all of them at once.

1. `prepare_instances` makes the arrays of ids, and a folder in which each pass leaves what the next one reads.
2. `label_task` and `join_task` look at a block, and at its faces and those of the blocks after it.
3. `merge_blocks` makes whole objects of all pieces, and numbers them.
4. `write_task` finds a block's objects again and writes their numbers.

A task may run twice or be broken off, in any order, and the result is the same.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import ReadError
from unet_deploy.geometry import Interval
from unet_deploy.runtime._atomic_file import AtomicFile
from unet_deploy.runtime._box_grid import Box, BoxGrid
from unet_deploy.runtime._instance_blocks import (
    OBJECT,
    Labels,
    checksum_of,
    label_block,
    read_faces,
    read_objects,
    summarise_block,
    write_summary,
)
from unet_deploy.runtime._instance_merge import Pairs, merge_pieces, touching_pieces, write_table
from unet_deploy.runtime._instance_output import (
    create_instances,
    write_ids,
)
from unet_deploy.runtime._instance_rule import InstanceRule
from unet_deploy.runtime.disk_space import full_disk_named
from unet_deploy.runtime.journal import FOLDER
from unet_deploy.runtime.layout import INSTANCES_NAME, OutputSpec
from unet_deploy.runtime.volume import Volume, open_volume

_STARTS, _NUMBERS = "starts.i8", "numbers.u4"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceJob:
    """Everything a worker needs to know. `folder` is where passes leave what the next one reads."""

    labels: Volume
    spec: OutputSpec
    rule: InstanceRule
    folder: Path

    @property
    def grid(self) -> BoxGrid:
        """The blocks."""
        return BoxGrid(extents=self.spec.extents, box=self.spec.block)

    def summary(self, index: int) -> Path:
        """Return where a block's summary lies."""
        return self.folder / f"{index:08d}.block"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceResult:
    """What was found: objects in all and by class name, how many were too small, and the table's path."""

    count: int
    by_class: dict[str, int]
    dropped: int
    table: Path | None
    seconds: float

    def to_object(self, rule: InstanceRule) -> dict[str, Any]:
        """Return JSON values for provenance."""
        return {**rule.to_object(), "objects": self.count, "by_class": self.by_class, "dropped": self.dropped}


def prepare_instances(spec: OutputSpec, rule: InstanceRule) -> InstanceJob:
    """Make the arrays of ids and an empty folder for the passes; what an earlier time left is deleted."""
    assert "labels" in spec.kinds, spec.kinds
    labels = open_volume(Path(spec.path) / spec.array_path("labels", 0), axes=spec.axes)
    job = InstanceJob(labels=labels, spec=spec, rule=rule, folder=Path(spec.path) / FOLDER / INSTANCES_NAME)
    shutil.rmtree(job.folder, ignore_errors=True)
    create_instances(spec)
    job.folder.mkdir(parents=True)
    return job


def label_task(job: InstanceJob, index: int) -> tuple[int, int]:
    """Find a block's objects and write down what the others need to know; the first pass.

    Returns
    -------
    tuple of int
        The block's number, and how many objects it has.
    """
    block = job.grid.at(index)
    labels = _read(job, block)
    ids, counts = label_block(labels, job.rule)
    summary = summarise_block(labels, ids, counts, block, extents=job.spec.extents, rule=job.rule)
    with full_disk_named(f"in {job.folder}"):
        write_summary(job.summary(index), summary)
    return index, sum(counts)


def starts_of(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return where the pieces of each block begin among those of all, and their number at the end."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    return starts


def number_pairs(starts: npt.NDArray[np.int64], index: int, joins: Sequence[tuple[int, Pairs]]) -> Pairs:
    """Return what `join_task` found as pairs (n, 2) of pieces among those of all blocks."""
    found = [pairs + np.array([starts[index] - 1, starts[other] - 1]) for other, pairs in joins]
    return np.concatenate(found) if found else np.empty((0, 2), np.int64)


def join_task(job: InstanceJob, index: int) -> tuple[int, list[tuple[int, Pairs]]]:
    """Return the block's number and, by later block, the pairs of local ids that touch; the second pass."""
    here = read_faces(job.summary(index))
    found: list[tuple[int, Pairs]] = []
    for step in job.rule.forward_steps:
        other = job.grid.neighbour(index, step)
        if other is None or not here[1]:
            continue
        pairs = touching_pieces(here, read_faces(job.summary(other)), step, job.rule)
        if len(pairs):
            found.append((other, pairs))
    return index, found


def merge_blocks(
    job: InstanceJob, starts: npt.NDArray[np.int64], pairs: Pairs, *, table: Path | None
) -> InstanceResult:
    """Make whole objects of what all blocks found, number them, and leave the numbers for the last pass."""
    start = time.perf_counter()
    pieces = np.zeros(starts[-1], OBJECT)
    for index in np.flatnonzero(np.diff(starts)).tolist():
        pieces[starts[index] : starts[index + 1]] = read_objects(job.summary(index))[0]
    numbered = merge_pieces(pieces, pairs, min_size=job.rule.min_size)
    with full_disk_named(f"in {job.folder}"):
        for name, values in ((_STARTS, starts.astype("<i8")), (_NUMBERS, numbered.ids.astype("<u4"))):
            with AtomicFile(job.folder / name) as file:
                file.write(values.tobytes())
    names = [c.name for c in job.spec.classes]
    if table is not None:
        with full_disk_named(f"in {table}"):
            write_table(table, numbered.objects, axes=job.spec.axes, extents=job.spec.extents, class_names=names)
    counts = np.bincount(numbered.objects["label"], minlength=len(names))
    return InstanceResult(
        count=len(numbered.objects),
        by_class={names[label]: int(counts[label]) for label in job.rule.classes},
        dropped=numbered.dropped,
        table=table,
        seconds=time.perf_counter() - start,
    )


def write_task(job: InstanceJob, index: int) -> int:
    """Find a block's objects again and write their numbers; the last pass. Return its pixels.

    Raises
    ------
    ReadError
        If the labels are not those of the first pass.
    """
    block = job.grid.at(index)
    labels = _read(job, block)
    ids, _ = label_block(labels, job.rule)
    objects, checksum = read_objects(job.summary(index))
    if checksum_of(labels, ids) != checksum:
        raise ReadError(
            f"the labels of block {index} changed while objects were numbered",
            f"in {job.labels.info.path}",
            fix="let nothing else write there, then number the objects again",
        )
    if len(objects):
        begin = int(np.fromfile(job.folder / _STARTS, "<i8", 1, offset=8 * index)[0])
        numbers = np.zeros(1 + len(objects), np.uint32)
        numbers[1:] = np.fromfile(job.folder / _NUMBERS, "<u4", len(objects), offset=4 * begin)
        write_ids(job.spec, block, numbers[ids])
    return labels.size


def _read(job: InstanceJob, block: Box) -> Labels:
    pixels = job.labels.read(t=Interval(block.t, block.t + 1), z=block.z, y=block.y, x=block.x)
    return np.asarray(pixels[0, 0], np.uint8)
