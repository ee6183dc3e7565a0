"""Objects across blocks: which pieces touch, what whole objects they make, and their numbers.

1. `touching_pieces` compares the faces of two blocks that touch: pairs of pieces of one class with touching pixels.
2. Pieces that are joined by pairs are one object (`scipy.sparse.csgraph.connected_components`). Pixels and sums add up,
   boxes are united, its first pixel is the first of all.
3. Objects that are large enough are numbered from 1 by their first pixel in C order through (t, z, y, x): whatever the
   blocks, their order and the workers were, the numbers are the same, and those of a single pass over the volume.

What this holds is some 300 bytes for each piece, never a pixel.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import ConfigurationError
from unet_deploy.runtime._atomic_file import AtomicFile
from unet_deploy.runtime._instance_blocks import OBJECT, Ids, import_scipy
from unet_deploy.runtime._instance_rule import InstanceRule, Step
from unet_deploy.runtime.plan import Extents

MAX_OBJECTS = 2**32 - 1
"""More have no uint32 each."""
ROWS_AT_ONCE = 65536
_MOST_HEADER_BYTES = 256

Faces = dict[int, tuple[Ids, Ids]]
Pairs = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NumberedObjects:
    """The objects of a volume.

    `objects` (of `OBJECT`) has entry i for id i + 1. `ids` has the id of every piece, 0 for one whose object is too
    small; of those there are `dropped`.
    """

    objects: npt.NDArray[np.void]
    ids: npt.NDArray[np.uint32]
    dropped: int


def touching_pieces(
    here: tuple[npt.NDArray[np.uint8], Faces],
    there: tuple[npt.NDArray[np.uint8], Faces],
    step: Step,
    rule: InstanceRule,
) -> Pairs:
    """Return the pairs of local ids (n, 2), ascending, whose pixels touch across two blocks.

    Parameters
    ----------
    here, there
        The class of each object and the faces of a block, and of the block a step away.
    step
        (z, y, x), one of the rule's `forward_steps`.
    rule
        What an object is.
    """
    across = next(axis for axis in range(3) if step[axis])
    if across not in here[1] or across not in there[1]:
        return np.empty((0, 2), np.int64)
    a, b = here[1][across][1], there[1][across][0]
    shifts: list[tuple[int, ...]] = []
    for i, axis in enumerate(axis for axis in range(3) if axis != across):
        if step[axis]:
            first, last = slice(0, 1), slice(-1, None)
            a = a[_at(i, last if step[axis] > 0 else first)]
            b = b[_at(i, first if step[axis] > 0 else last)]
        goes_on = not step[axis] and axis in rule.joined and rule.neighbours == "full"
        shifts.append((-1, 0, 1) if goes_on else (0,))
    found = [np.empty(0, np.int64)]
    for shift in product(*shifts):
        near = a[tuple(slice(max(-s, 0), n - max(s, 0)) for s, n in zip(shift, a.shape, strict=True))]
        far = b[tuple(slice(max(s, 0), n - max(-s, 0)) for s, n in zip(shift, b.shape, strict=True))]
        both = (near > 0) & (far > 0)
        found.append(np.unique(near[both].astype(np.int64) << 32 | far[both]))
    packed = np.unique(np.concatenate(found))
    pairs: Pairs = np.stack([packed >> 32, packed & 0xFFFFFFFF], axis=1)
    is_of_one_class = here[0][pairs[:, 0] - 1] == there[0][pairs[:, 1] - 1]
    return np.asarray(pairs[is_of_one_class], np.int64)


def _at(axis: int, part: slice) -> tuple[slice, slice]:
    return (part, slice(None)) if axis == 0 else (slice(None), part)


def merge_pieces(
    pieces: npt.NDArray[np.void], pairs: Pairs, *, min_size: int, max_objects: int = MAX_OBJECTS
) -> NumberedObjects:
    """Make whole objects of the pieces of all blocks, and number them.

    Parameters
    ----------
    pieces
        Of `OBJECT`, all blocks after each other.
    pairs
        Indices (n, 2) of pieces that are of one object.
    min_size
        Objects of fewer pixels are dropped.
    max_objects
        More cannot be numbered.

    Raises
    ------
    ConfigurationError
        If there are more.
    """
    group = _group(len(pieces), pairs)
    order = np.argsort(group, kind="stable")
    begin = np.flatnonzero(np.diff(group[order], prepend=-1))
    whole = np.zeros(len(begin), OBJECT)
    if len(begin):
        whole["label"] = pieces["label"][order[begin]]
        for name, unite in (
            ("pixels", np.add),
            ("sum", np.add),
            ("first", np.minimum),
            ("start", np.minimum),
            ("stop", np.maximum),
        ):
            whole[name] = unite.reduceat(pieces[name][order], begin, axis=0)
    kept = np.flatnonzero(whole["pixels"] >= min_size)
    kept = kept[np.argsort(whole["first"][kept])]
    if len(kept) > max_objects:
        raise ConfigurationError(
            f"{len(kept):,} objects came, at most {max_objects:,} can be numbered",
            "an id is 32 bits",
            fix=f"drop specks: a smallest object of more than {min_size} px",
        )
    id_of_group = np.zeros(len(whole), np.uint32)
    id_of_group[kept] = np.arange(1, len(kept) + 1, dtype=np.uint32)
    return NumberedObjects(objects=whole[kept], ids=id_of_group[group], dropped=len(whole) - len(kept))


def _group(n_pieces: int, pairs: Pairs) -> npt.NDArray[np.int64]:
    """Return a number from 0 for each piece: the same for those of one object."""
    if not len(pairs):
        return np.arange(n_pieces)
    sparse, csgraph = import_scipy("scipy.sparse"), import_scipy("scipy.sparse.csgraph")
    links = sparse.coo_matrix((np.ones(len(pairs), np.uint8), pairs.T), shape=(n_pieces, n_pieces))
    _, group = csgraph.connected_components(links, directed=False)
    return np.asarray(group, np.int64)


def table_columns(axes: str) -> tuple[str, ...]:
    """Return the columns of the table of objects, for a volume of these axes.

    >>> table_columns("zyx")
    ('id', 'class', 'pixels', 'z_start', 'z_stop', 'y_start', 'y_stop', 'x_start', 'x_stop', 'z', 'y', 'x')
    """
    spatial = [axis for axis in "zyx" if axis in axes]
    boxes = [f"{axis}_{end}" for axis in spatial for end in ("start", "stop")]
    return ("id", "class", "pixels", *(["t"] if "t" in axes else []), *boxes, *spatial)


def is_table(path: Path) -> bool:
    """Tell whether a file begins as a table of objects does: it may be replaced by another."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        first = file.readline(_MOST_HEADER_BYTES)
    return first in {",".join(table_columns(axes)).encode() + b"\r\n" for axes in ("yx", "zyx", "tyx", "tzyx")}


def write_table(
    path: Path, objects: npt.NDArray[np.void], *, axes: str, extents: Extents, class_names: Sequence[str]
) -> None:
    """Write the table of objects as CSV: one an object, in pixels of the volume, the centroid in columns z, y, x."""
    present = [i for i, axis in enumerate("zyx") if axis in axes]
    with AtomicFile(path) as raw:
        file = io.TextIOWrapper(raw, encoding="utf-8", newline="")
        rows = csv.writer(file)
        rows.writerow(table_columns(axes))
        for begin in range(0, len(objects), ROWS_AT_ONCE):
            part = objects[begin : begin + ROWS_AT_ONCE]
            columns: list[list[object]] = [
                [*range(begin + 1, begin + 1 + len(part))],
                [class_names[label] for label in part["label"].tolist()],
                part["pixels"].tolist(),
            ]
            if "t" in axes:
                columns.append((part["first"] // (extents.z * extents.y * extents.x)).tolist())
            for i in present:
                columns += [part["start"][:, i].tolist(), part["stop"][:, i].tolist()]
            for i in present:
                centre = part["sum"][:, i] / part["pixels"]
                columns.append([f"{value:.3f}" for value in centre.tolist()])
            rows.writerows(zip(*columns, strict=True))
        file.flush()
        file.detach()
