"""Objects of a segmented volume, numbered across blocks: ids of 32 bit for every pixel, and a table of objects.

1. *label*: each block's objects are found from its labels; what the others need of them goes to a file beside the
   output (`_instance_blocks`).
2. *join*: each block compares its faces with those of the blocks after it. The pairs that touch make whole objects,
   which are numbered by their first pixel (`_instance_merge`).
3. *write*: each block finds its objects again and writes their numbers; then comes the pyramid (`_instance_output`).

A pass is one Dask task a block, a function of the block and of what the pass before left on the disk
(`_instance_passes`). The ids equal those of a single pass over the whole volume.
Nothing ever holds more than a block of pixels; all objects together are held once, at some 300 bytes each, and a block
costs the coordinator 16 bytes.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from unet_deploy.card import ClassInfo
from unet_deploy.errors import (
    ConfigurationError,
    InterruptedRunError,
    OutputExistsError,
    OutputPathError,
    UnknownNameError,
)
from unet_deploy.runtime._instance_blocks import import_scipy
from unet_deploy.runtime._instance_merge import is_table
from unet_deploy.runtime._instance_output import count_pieces, downsample_ids, finish_instances
from unet_deploy.runtime._instance_passes import (
    InstanceJob,
    InstanceResult,
    join_task,
    label_task,
    merge_blocks,
    number_pairs,
    prepare_instances,
    starts_of,
    write_task,
)
from unet_deploy.runtime._instance_rule import InstanceRule, Neighbours
from unet_deploy.runtime.execute import Progress, ProgressCallback
from unet_deploy.runtime.layout import INSTANCES_NAME, OutputSpec
from unet_deploy.runtime.output_paths import find_store
from unet_deploy.runtime.scheduling import run_tasks

__all__ = [
    "INSTANCES_NAME",
    "InstanceJob",
    "InstanceResult",
    "InstanceRule",
    "check_objects_table",
    "default_table",
    "finish_instances",
    "number_instances",
    "require_rule",
    "require_scipy",
]


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
    """Return where the table of objects goes when nobody says: beside the store, or the volume that the labels are in.

    >>> default_table(Path("brain_segmentation.ome.zarr")).as_posix()
    'brain_segmentation_objects.csv'
    """
    store = find_store(output)
    place = output if store is None else store
    inside = () if store is None else output.resolve().relative_to(store).parts
    stem = re.sub(r"(\.ome)?\.zarr$", "", place.name)
    return place.with_name("_".join((stem, *(part for part in inside if part != "labels"), "objects")) + ".csv")


def check_objects_table(table: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a place where the table of objects cannot be written or would harm something.

    Parameters
    ----------
    table
        What `default_table` gave: nobody named it, so that what lies there may be anything.
    overwrite
        Whether a table of objects that is there may be replaced. Nothing else ever is.

    Raises
    ------
    OutputPathError
        If something else is there, or the folder cannot be written to.
    OutputExistsError
        If a table is there and `overwrite` was not given.
    """
    if not os.access(table.parent, os.W_OK):
        raise OutputPathError(
            f"the table of objects {table} cannot be written",
            f"you may not write in {table.parent}",
            fix="write to a store of its own with --output, in a folder where you may write",
        )
    if not os.path.lexists(table):
        return
    if not is_table(table):
        raise OutputPathError(
            f"the table of objects would go to {table}, where something else is",
            "it is no table of objects written by unet-deploy, so it is never replaced",
            fix="move it away, or choose another --output",
        )
    if not overwrite:
        raise OutputExistsError(
            f"the table of objects {table} exists",
            "nothing was written",
            fix="move it away, choose another --output, or replace it with --overwrite",
        )


def require_scipy() -> None:
    """Find out, before any work, whether objects can be numbered at all.

    Raises
    ------
    MissingDependencyError
        If SciPy is not installed.
    """
    import_scipy("scipy.ndimage")


def number_instances(
    spec: OutputSpec,
    rule: InstanceRule,
    client: Any,
    *,
    table: Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    progress: ProgressCallback | None = None,
) -> InstanceResult:
    """Number the objects of labels that are finished; `finish_instances` is to follow.

    Pixels of failed blocks are no objects: they have label 0. A run that is killed here begins with the first pass
    again: the labels stay as they are, and ids are listed nowhere before `finish_instances`.

    Parameters
    ----------
    spec
        The output, which has labels.
    rule
        What an object is; see `require_rule`.
    client
        A ``distributed.Client``, whose workers see the store.
    table
        Where to write the objects as CSV: id, class, pixels, bounding box (half-open) and centroid, in pixels.
    should_stop
        Asked before each task; once it says so, those in flight are finished and no other begun.
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
    InterruptedRunError
        If `should_stop` said so.
    """
    start = time.perf_counter()
    require_scipy()
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

    def run(
        task: Callable[..., Any],
        shared: tuple[Any, ...],
        numbers: range | npt.NDArray[Any],
        take: Callable[[Any], None],
    ) -> None:
        came = 0
        with closing(run_tasks(client, task, shared, map(int, numbers), should_stop=should_stop)) as results:
            for result in results:
                came += 1
                take(result)
        if came < len(numbers):
            raise InterruptedRunError(
                "stopped while objects were numbered",
                f"the labels in {spec.path} are finished, their objects are not",
                fix="the same command numbers them from the start; --overwrite starts anew",
            )

    counts = np.zeros(n_blocks, np.int64)

    def take_count(result: tuple[int, int]) -> None:
        counts[result[0]] = result[1]
        step()

    run(label_task, (job,), range(n_blocks), take_count)
    starts = starts_of(counts)
    occupied = np.flatnonzero(counts)
    done += n_blocks - len(occupied)  # those without objects touch nothing
    pairs = bytearray()

    def take_pairs(result: tuple[int, Any]) -> None:
        pairs.extend(number_pairs(starts, *result).tobytes())
        step()

    run(join_task, (job,), occupied, take_pairs)
    result = merge_blocks(job, starts, np.frombuffer(pairs, np.int64).reshape(-1, 2), table=table)
    run(write_task, (job,), range(n_blocks), step)
    for level in spec.passes:
        run(downsample_ids, (spec, level), range(count_pieces(spec, level)), lambda _: step())
    shutil.rmtree(job.folder, ignore_errors=True)
    return InstanceResult(
        count=result.count,
        by_class=result.by_class,
        dropped=result.dropped,
        table=result.table,
        seconds=time.perf_counter() - start,
    )
