"""Objects within one block: its connected components, what is known of each, and its outermost pixels.

1. Each class that counts is labelled by itself (`scipy.ndimage.label`), so that two classes never merge; the local ids
   of a block go on from class to class.
2. The rows of the block are cut into *runs* of one id. Pixels, bounding box, sum of coordinates and first pixel of
   every object come from its runs, in whole numbers of the volume's own coordinates.
3. The ids on the block's faces are kept, so that objects can be joined across blocks without their pixels
   (`_instance_merge`).

Everything is a function of the labels, the rule and the block's place: a block may be done again, by anybody.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import MissingDependencyError
from unet_deploy.runtime._atomic_file import AtomicFile
from unet_deploy.runtime._box_grid import Box
from unet_deploy.runtime._instance_rule import InstanceRule
from unet_deploy.runtime.plan import Extents

Labels = npt.NDArray[np.uint8]
Ids = npt.NDArray[np.int32]

OBJECT = np.dtype(
    [
        ("label", "u1"),  # its class
        ("pixels", "<i8"),
        ("first", "<i8"),  # the first of its pixels, counted in C order through (t, z, y, x)
        ("start", "<i4", 3),  # bounding box by (z, y, x), half-open
        ("stop", "<i4", 3),
        ("sum", "<i8", 3),  # of its pixels' coordinates
    ]
)
"""What is known of an object, or of the piece of one that lies in a block."""
STRIP_PIXELS = 2**20
"""So many pixels are cut into runs at a time."""
ZLIB_LEVEL = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockSummary:
    """What the other blocks need to know of one.

    `objects` (of `OBJECT`) has entry i for local id i + 1. `faces` has, by axis of (z, y, x) that objects go on
    through, the ids on the block's first and last plane across it; it is empty where the block has no object.
    `checksum` is of the labels and local ids.
    """

    objects: npt.NDArray[np.void]
    faces: dict[int, tuple[Ids, Ids]]
    checksum: int


def label_block(labels: Labels, rule: InstanceRule) -> tuple[Ids, tuple[int, ...]]:
    """Number the objects of a block by itself.

    Parameters
    ----------
    labels
        uint8 (z, y, x), the class of each pixel.
    rule
        What an object is; its `min_size` is for whole objects, so it does not matter here.

    Returns
    -------
    ids
        int32 of the same shape, 0 background.
    counts
        Number of objects of each of the rule's classes; the ids are in this order.

    Raises
    ------
    MissingDependencyError
        If SciPy is not installed.

    Examples
    --------
    >>> ids, counts = label_block(np.array([[[1, 0, 2, 2], [0, 1, 1, 2]]], np.uint8), InstanceRule(classes=(1, 2)))
    >>> ids[0], counts
    (array([[1, 0, 3, 3],
           [0, 2, 2, 3]], dtype=int32), (2, 1))
    """
    ndimage = import_scipy("scipy.ndimage")
    structure = _touching(rule)
    ids = np.zeros(labels.shape, np.int32)
    counts: list[int] = []
    for label in rule.classes:
        mask = labels == label
        if not mask.any():
            counts.append(0)
            continue
        if not any(counts):
            counts.append(int(ndimage.label(mask, structure=structure, output=ids)))
            continue
        found = np.empty(labels.shape, np.int32)
        count = int(ndimage.label(mask, structure=structure, output=found))
        np.add(found, sum(counts), out=ids, where=mask)
        counts.append(count)
    return ids, tuple(counts)


def summarise_block(
    labels: Labels, ids: Ids, counts: Sequence[int], block: Box, *, extents: Extents, rule: InstanceRule
) -> BlockSummary:
    """Return what the other blocks need to know of a labelled one; `ids` and `counts` are of `label_block`."""
    objects = np.zeros(sum(counts), OBJECT)
    objects["label"] = np.repeat(np.array(rule.classes, np.uint8), counts)
    checksum = checksum_of(labels, ids)
    if not len(objects):
        return BlockSummary(objects=objects, faces={}, checksum=checksum)
    _measure(ids, objects, block, extents)
    planes = {axis: np.moveaxis(ids, axis, 0) for axis in rule.joined}
    faces = {axis: (np.ascontiguousarray(p[0]), np.ascontiguousarray(p[-1])) for axis, p in planes.items()}
    return BlockSummary(objects=objects, faces=faces, checksum=checksum)


def checksum_of(labels: Labels, ids: Ids) -> int:
    """Return a number that changes with the labels and with the numbering of a block."""
    return zlib.crc32(np.ascontiguousarray(ids).data, zlib.crc32(np.ascontiguousarray(labels).data))


def _touching(rule: InstanceRule) -> npt.NDArray[np.bool_]:
    """Return which of the 3 × 3 × 3 pixels around one touch it."""
    steps = np.abs(np.indices((3, 3, 3)) - 1)
    is_touching = steps.sum(axis=0) <= (1 if rule.neighbours == "face" else 3)
    return np.asarray(is_touching & (steps[0] == 0) if rule.dimensions == 2 else is_touching)


def _measure(ids: Ids, objects: npt.NDArray[np.void], block: Box, extents: Extents) -> None:
    """Fill in pixels, first pixel, bounding box and sums from the runs."""
    _, height, width = ids.shape
    n = len(objects)
    origin = block.z.start, block.y.start, block.x.start
    pixels = np.zeros(n, np.int64)
    first = np.full(n, np.iinfo(np.int64).max)
    start = [np.full(n, np.iinfo(np.int64).max) for _ in range(3)]
    stop = [np.zeros(n, np.int64) for _ in range(3)]
    total = [np.zeros(n, np.int64) for _ in range(3)]
    rows = ids.reshape(-1, width)
    step = max(STRIP_PIXELS // width, 1)
    for top in range(0, len(rows), step):
        which, row, begin, length = _runs(rows[top : top + step])
        row += top
        z, y, x = row // height + origin[0], row % height + origin[1], begin + origin[2]
        np.add.at(pixels, which, length)
        np.minimum.at(first, which, ((block.t * extents.z + z) * extents.y + y) * extents.x + x)
        np.add.at(total[0], which, z * length)
        np.add.at(total[1], which, y * length)
        np.add.at(total[2], which, x * length + length * (length - 1) // 2)
        for axis, (low, high) in enumerate(((z, z + 1), (y, y + 1), (x, x + length))):
            np.minimum.at(start[axis], which, low)
            np.maximum.at(stop[axis], which, high)
    objects["pixels"], objects["first"] = pixels, first
    for axis in range(3):
        objects["start"][:, axis], objects["stop"][:, axis] = start[axis], stop[axis]
        objects["sum"][:, axis] = total[axis]


def _runs(rows: Ids) -> tuple[npt.NDArray[np.int64], ...]:
    """Return the runs of objects in rows (n, x): index of the object, row, first column, length."""
    changes = np.ones(rows.shape, np.bool_)
    np.not_equal(rows[:, 1:], rows[:, :-1], out=changes[:, 1:])
    begin = np.flatnonzero(changes)
    length = np.diff(begin, append=rows.size)
    which = rows.reshape(-1)[begin]
    is_object = which > 0
    begin, length = begin[is_object], length[is_object]
    row, column = np.divmod(begin, rows.shape[1])
    return which[is_object].astype(np.int64) - 1, row, column, length


def write_summary(path: Path, summary: BlockSummary) -> None:
    """Write a summary to a file that is either whole or not there: a line of JSON, the objects, the faces."""
    # Not as .npz: numpy parses the header of each array as Python, which in two threads fails now and then (3.11).
    objects = zlib.compress(summary.objects.tobytes(), ZLIB_LEVEL)
    faces = zlib.compress(b"".join(face.tobytes() for pair in summary.faces.values() for face in pair), ZLIB_LEVEL)
    head = {
        "checksum": summary.checksum,
        "bytes": [len(objects), len(faces)],
        "faces": [[axis, *pair[0].shape] for axis, pair in summary.faces.items()],
    }
    with AtomicFile(path) as file:
        file.write(json.dumps(head).encode() + b"\n" + objects + faces)


def read_objects(path: Path) -> tuple[npt.NDArray[np.void], int]:
    """Return the objects and the checksum of a summary."""
    with path.open("rb") as file:
        head = json.loads(file.readline())
        return _objects(file.read(head["bytes"][0])), head["checksum"]


def read_faces(path: Path) -> tuple[npt.NDArray[np.uint8], dict[int, tuple[Ids, Ids]]]:
    """Return the class of each object, and the faces of a summary."""
    with path.open("rb") as file:
        head = json.loads(file.readline())
        objects = _objects(file.read(head["bytes"][0]))
        values = np.frombuffer(zlib.decompress(file.read(head["bytes"][1])), "<i4")
    faces: dict[int, tuple[Ids, Ids]] = {}
    for axis, height, width in head["faces"]:
        first, last, values = np.split(values, [height * width, 2 * height * width])
        faces[axis] = first.reshape(height, width), last.reshape(height, width)
    return objects["label"].copy(), faces


def _objects(data: bytes) -> npt.NDArray[np.void]:
    return np.frombuffer(zlib.decompress(data), OBJECT)


def import_scipy(name: Literal["scipy.ndimage", "scipy.sparse", "scipy.sparse.csgraph"]) -> Any:
    """Import a part of SciPy.

    Raises
    ------
    MissingDependencyError
        If SciPy is not installed.
    """
    try:
        if name == "scipy.ndimage":
            import scipy.ndimage as module
        elif name == "scipy.sparse":
            import scipy.sparse as module
        else:
            import scipy.sparse.csgraph as module
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "scipy":
            raise
        raise MissingDependencyError.of_extra("scipy", extra="instances", purpose="numbering objects") from error
    return module
