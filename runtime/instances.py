"""Objects of a segmented volume, numbered across blocks: ids of 32 bit for every pixel, and a table of objects.

1. *label*: each block's objects are found from its labels; what the others need of them goes to a file beside the
   output (`_instance_blocks`).
2. *join*: each block compares its faces with those of the blocks after it. The pairs that touch make whole objects,
   which are numbered by their first pixel (`_instance_merge`).
3. *write*: each block finds its objects again and writes their numbers; then comes the pyramid (`_instance_output`).

A pass is one Dask task a block, a function of the block and of what the pass before left on the disk: it may run twice
or be broken off, in any order, and the result is the same. The ids equal those of a single pass over the whole volume.
Nothing ever holds more than a block of pixels; all objects together are held once, at some 300 bytes each.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from unet_deploy.card import ClassInfo
from unet_deploy.errors import ConfigurationError, ReadError, UnknownNameError
from unet_deploy.geometry import Interval
from unet_deploy.runtime._box_grid import Box, BoxGrid
from unet_deploy.runtime._instance_blocks import (
    OBJECT,
    AtomicFile,
    Labels,
    checksum_of,
    import_scipy,
    label_block,
    read_faces,
    read_objects,
    summarise_block,
    write_summary,
)
from unet_deploy.runtime._instance_merge import Pairs, merge_pieces, touching_pieces, write_table
from unet_deploy.runtime._instance_output import (
    INSTANCES_NAME,
    count_pieces,
    create_instances,
    downsample_ids,
    finish_instances,
    write_ids,
)
from unet_deploy.runtime._instance_rule import InstanceRule, Neighbours
from unet_deploy.runtime.execute import Progress, ProgressCallback
from unet_deploy.runtime.journal import FOLDER
from unet_deploy.runtime.layout import OutputSpec
from unet_deploy.runtime.output import full_disk_named
from unet_deploy.runtime.scheduling import run_tasks
from unet_deploy.runtime.volume import Volume, open_volume

__all__ = [
    "INSTANCES_NAME",
    "InstanceJob",
    "InstanceResult",
    "InstanceRule",
    "default_table",
    "finish_instances",
    "number_instances",
    "require_rule",
]

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
        return self.folder / f"{index:08d}.npz"


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


def require_rule(
    classes: Sequence[ClassInfo],
    *,
    objects: Sequence[int | str] = (),
    dimensions: int = 2,
    neighbours: str = "face",
    min_size: int = 0,
) -> InstanceRule:
    """Return the rule that settings mean, or say all that is wrong with them.

    Parameters
    ----------
    classes
        The model's classes, background first.
    objects
        Those whose pixels are objects, by name or label; all but class 0 if there are none.
    dimensions
        2 for objects of single planes, 3 for those that go on through z.
    neighbours
        ``"face"``: pixels that share a side are of one object; ``"full"``: those that share a corner too.
    min_size
        Objects of fewer pixels are dropped.

    Raises
    ------
    UnknownNameError
        If a class has another name.
    ConfigurationError
        If a label, the dimensions, the neighbours or the size cannot be meant.

    Examples
    --------
    >>> nuclei = (ClassInfo(name="background", colour="#000000"), ClassInfo(name="nucleus", colour="#ffffff"))
    >>> require_rule(nuclei, objects=["nucleus"], min_size=20)
    InstanceRule(classes=(1,), dimensions=2, neighbours='face', min_size=20)
    """
    names = [c.name for c in classes]
    labels: list[int] = []
    problems: list[str] = []
    for item in objects or range(1, len(classes)):
        text = str(item)
        if text in names:
            labels.append(names.index(text))
        elif not re.fullmatch(r"[+-]?[0-9]+", text):
            raise UnknownNameError.of_unknown_name("class", text, names)
        elif 0 <= int(text) < len(names):
            labels.append(int(text))
        else:
            known = ", ".join(f"{index} ({name})" for index, name in enumerate(names))
            problems.append(f"class {text} does not exist: the model has {known}")
    if dimensions not in (2, 3):
        problems.append(f"objects of {dimensions} dimensions: 2 (of single planes) or 3 (through z) was expected")
    if neighbours not in get_args(Neighbours):
        problems.append(f"neighbours {neighbours!r}: {' or '.join(get_args(Neighbours))} was expected")
    if min_size < 0:
        problems.append(f"smallest object of {min_size} px: the size cannot be negative")
    if problems:
        raise ConfigurationError(
            f"objects cannot be numbered so: {problems[0]}",
            *problems[1:],
            fix="leave the setting out: every class but the first, in single planes, by shared sides, of any size",
        )
    flat: Literal[2, 3] = 2 if dimensions == 2 else 3
    touching: Neighbours = "face" if neighbours == "face" else "full"
    return InstanceRule(classes=tuple(sorted(set(labels))), dimensions=flat, neighbours=touching, min_size=min_size)


def default_table(output: Path) -> Path:
    """Return where the table of objects goes when nobody says: beside the store.

    >>> default_table(Path("brain_segmentation.ome.zarr")).as_posix()
    'brain_segmentation_objects.csv'
    """
    stem = re.sub(r"(\.ome)?\.zarr$", "", output.name)
    return output.with_name(f"{stem}_objects.csv")


def number_instances(
    spec: OutputSpec,
    rule: InstanceRule,
    client: Any,
    *,
    table: Path | None = None,
    progress: ProgressCallback | None = None,
) -> InstanceResult:
    """Number the objects of a store whose labels are finished; `finish_instances` is to follow.

    Pixels of failed blocks are no objects: they have label 0.

    Parameters
    ----------
    spec
        The store, which has labels.
    rule
        What an object is; see `require_rule`.
    client
        A ``distributed.Client``, whose workers see the store.
    table
        Where to write the objects as CSV: id, class, pixels, bounding box (half-open) and centroid, in pixels.
    progress
        Called after every task, with the stage ``"instances"``.

    Raises
    ------
    MissingDependencyError
        If SciPy is not installed.
    ReadError
        If the labels cannot be read, or change meanwhile.
    ConfigurationError
        If there are more objects than 32 bits can number.
    NoSpaceError
        If the disk is full.
    """
    start = time.perf_counter()
    import_scipy("scipy.ndimage")
    job = prepare_instances(spec, rule)
    n_blocks = job.grid.n_boxes
    total = 3 * n_blocks + sum(count_pieces(spec, level) for level in spec.passes)
    done = pixels = 0

    def step(new_pixels: int = 0) -> None:
        nonlocal done, pixels
        done, pixels = done + 1, pixels + new_pixels
        if progress is not None:
            seconds = time.perf_counter() - start
            progress(Progress(stage="instances", done=done, total=total, failed=0, pixels=pixels, seconds=seconds))

    for _ in run_tasks(client, label_task, (job,), n_blocks):
        step()
    found: list[tuple[int, list[tuple[int, Pairs]]]] = []
    for index, joins in run_tasks(client, join_task, (job,), n_blocks):
        found.append((index, joins))
        step()
    result = merge_blocks(job, found, table=table)
    for n in run_tasks(client, write_task, (job,), n_blocks):
        step(n)
    for level in spec.passes:
        for _ in run_tasks(client, downsample_ids, (spec, level), count_pieces(spec, level)):
            step()
    shutil.rmtree(job.folder, ignore_errors=True)
    return InstanceResult(
        count=result.count,
        by_class=result.by_class,
        dropped=result.dropped,
        table=result.table,
        seconds=time.perf_counter() - start,
    )


def prepare_instances(spec: OutputSpec, rule: InstanceRule) -> InstanceJob:
    """Make the arrays of ids and an empty folder for the passes; what an earlier time left is deleted."""
    assert "labels" in spec.kinds, spec.kinds
    labels = open_volume(Path(spec.path) / spec.array_path("labels", 0), axes=spec.axes)
    job = InstanceJob(labels=labels, spec=spec, rule=rule, folder=Path(spec.path) / FOLDER / INSTANCES_NAME)
    shutil.rmtree(job.folder, ignore_errors=True)
    create_instances(spec)
    job.folder.mkdir(parents=True)
    return job


def label_task(job: InstanceJob, index: int) -> int:
    """Find a block's objects and write down what the others need to know; the first pass. Return their number."""
    block = job.grid.at(index)
    labels = _read(job, block)
    ids, counts = label_block(labels, job.rule)
    summary = summarise_block(labels, ids, counts, block, extents=job.spec.extents, rule=job.rule)
    with full_disk_named(f"in {job.folder}"):
        write_summary(job.summary(index), summary)
    return sum(counts)


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
    job: InstanceJob, found: Sequence[tuple[int, list[tuple[int, Pairs]]]], *, table: Path | None
) -> InstanceResult:
    """Make whole objects of what all blocks found, number them, and leave the numbers for the last pass."""
    start = time.perf_counter()
    n_blocks = job.grid.n_boxes
    by_block = [read_objects(job.summary(index))[0] for index in range(n_blocks)]
    starts = np.zeros(n_blocks + 1, "<i8")
    np.cumsum([len(objects) for objects in by_block], out=starts[1:])
    pieces = np.concatenate(by_block) if by_block else np.empty(0, OBJECT)
    by_block.clear()
    joined = [
        np.stack([pairs[:, 0] + starts[index] - 1, pairs[:, 1] + starts[other] - 1], axis=1)
        for index, joins in found
        for other, pairs in joins
    ]
    pairs = np.concatenate(joined) if joined else np.empty((0, 2), np.int64)
    numbered = merge_pieces(pieces, pairs, min_size=job.rule.min_size)
    with full_disk_named(f"in {job.folder}"):
        for name, values in ((_STARTS, starts), (_NUMBERS, numbered.ids.astype("<u4"))):
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
