"""Blocks that a run wrote shortly before its machine went down, looked at before the next run counts on them.

A kill takes nothing that was written; a power cut may. The journal is forced to the disk line by line, but chunks are
not: that would be a wait for each of thousands of files, for something that hardly ever happens.

1. Only where the machine was started since the journal's last line was anything lost.
2. Systems keep what is written for half a minute at most, so the last blocks of the journal are looked at. One is whole
   if its finest level can be read and gives the figures that the journal has of it; it is then written once more from
   there, which mends its part of the pyramid.
3. One that is not is forgotten by the journal: the run makes it again.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import NoSpaceError
from unet_deploy.runtime.journal import BlockRecord, Journal
from unet_deploy.runtime.layout import Kind, OutputSpec
from unet_deploy.runtime.measures import count_classes, mean_confidence
from unet_deploy.runtime.output import read_box, write_block
from unet_deploy.runtime.plan import Block, SegmentationPlan

logger = logging.getLogger(__name__)

Bytes = npt.NDArray[np.uint8]

LAST_BLOCKS = 256
"""So many are looked at: the work of some minutes, as one is that of a second or so; of a few workers, of one."""


def forget_lost_blocks(journal: Journal, spec: OutputSpec, plan: SegmentationPlan) -> int:
    """Look at the last blocks of a run that broke off, where they may have been lost, and forget those that were.

    Parameters
    ----------
    journal
        Of that run, open.
    spec, plan
        What it writes, and where its blocks lie.

    Returns
    -------
    int
        How many were.

    Raises
    ------
    NoSpaceError
        If the disk is full.
    """
    if not has_restarted_since(journal.path):
        return 0
    latest = [record for record in journal.latest(LAST_BLOCKS) if record.status != "failed"]
    lost = [record.index for record in latest if not _mend(spec, plan.block(record.index), record)]
    if lost:
        journal.forget(lost)
        logger.warning(
            "this machine went down while the run wrote; blocks that never reached the disk, and are made again: %d",
            len(lost),
        )
    return len(lost)


def has_restarted_since(file: Path) -> bool:
    """Tell whether this machine was started after a file was last written to."""
    return file.stat().st_mtime < time.time() - time.monotonic()


def _mend(spec: OutputSpec, block: Block, record: BlockRecord) -> bool:
    """Write a block's part of the pyramid once more, and tell whether the block is whole: else there is no use."""
    try:
        labels = _read(spec, "labels", block)[0] if "labels" in spec.kinds else None
        probabilities = _read(spec, "probabilities", block) if "probabilities" in spec.kinds else None
        if not _is_whole(record, labels, probabilities):
            return False
        write_block(spec, t=block.t, z=block.z, y=block.y, x=block.x, labels=labels, probabilities=probabilities)
    except NoSpaceError:
        raise
    except Exception as error:  # a chunk without bytes, or with others: zarr and its codecs raise anything
        logger.info("block %d: %s: %s", block.index, type(error).__name__, error)
        return False
    return True


def _read(spec: OutputSpec, kind: Kind, block: Block) -> Bytes:
    """Return a block of the finest level, (c, z, y, x)."""
    classes = len(spec.classes) if kind == "probabilities" else 1
    place = {"t": slice(block.t, block.t + 1), "c": slice(0, classes), "z": block.z.slice}
    box = spec.to_layout(kind, {**place, "y": block.y.slice, "x": block.x.slice})
    values = read_box(spec.path, spec.array_path(kind, 0), box)
    return values.reshape(classes, block.z.size, block.y.size, block.x.size)


def _is_whole(record: BlockRecord, labels: Bytes | None, probabilities: Bytes | None) -> bool:
    """Tell whether what was read is what the journal says was written: a chunk that is absent reads as 0."""
    if labels is not None and count_classes(labels, len(record.class_counts)) != record.class_counts:
        return False
    if probabilities is None:
        return True
    classes = len(probabilities)
    sums = probabilities.sum(axis=0, dtype=np.uint16)  # 255, but that each class was rounded by itself
    are_all_there = 255 - classes <= int(sums.min()) and int(sums.max()) <= 255 + classes
    return (
        are_all_there
        and record.confidence is not None
        and math.isclose(mean_confidence(probabilities), record.confidence, abs_tol=1e-5)
    )
