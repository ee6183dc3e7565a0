"""Which kind of scores fits what is there: by the classes of a segmentation, or by the values of three slices."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unet_deploy.cli._pairing import Paired
from unet_deploy.cli._segmented import MEMBRANE

MAX_CLASS_VALUES = 16
"""Labels above this are numbers of objects, or grey values."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Data types and values of truth and prediction in a few slices."""

    dtypes: tuple[str, str]
    values: tuple[set[int], set[int]]

    def guess(self) -> tuple[str, str]:
        """Return the kind, and why."""
        truth, prediction = self.values
        if self.dtypes[1].startswith("float"):
            return "membranes", "the prediction is float"
        are_many = [len(values) > 2 and max(values) > MAX_CLASS_VALUES for values in (truth, prediction)]
        if are_many[1] and not are_many[0] and self.dtypes[1] == "uint8":
            return "membranes", "the prediction is grey, the truth is not"
        if any(are_many):
            return "instances", f"labels above {MAX_CLASS_VALUES}"
        return "classes", f"few labels: {', '.join(map(str, sorted(truth | prediction)))}"


def peek(paired: Paired) -> Seen:
    """Look at the first slice, the last and the one between."""
    count = len(paired.pairs)
    values: tuple[set[int], set[int]] = (set(), set())
    dtypes = ["", ""]
    for index in sorted({0, count // 2, count - 1}):
        for number, plane in enumerate(paired.read(paired.pairs[index])):
            dtypes[number] = plane.dtype.name
            if plane.dtype.kind in "biu":
                values[number].update(np.unique(plane).tolist())
    return Seen(dtypes=(dtypes[0], dtypes[1]), values=values)


def kind_of_classes(
    names: tuple[str, ...],
    *,
    asked: str | None,
    has_values: bool,
    written: tuple[str, ...] = ("labels", "probabilities"),
) -> tuple[str, str]:
    """Return the kind of scores for a segmentation into the classes `names`, and why.

    Parameters
    ----------
    asked
        What the user asked for.
    has_values
        Whether the truth's values of the classes were given.
    written
        What the segmentation holds.
    """
    if asked is not None:
        return asked, "as asked"
    membranes = [name for name in names if MEMBRANE.search(name)]
    if len(membranes) == 1 and "probabilities" in written and not has_values:
        return "membranes", f"the class {membranes[0]!r}"
    return "classes", "a segmentation into classes"
