"""Where the annotated images lie and how their labels are to be understood: the part of a recipe about data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LabelKind = Literal["classes", "instances", "binary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """Images, labels, and what the labels mean.

    `images` and `labels` are two folders with files of the same stems (PNG, TIFF, or Zarr stores), two stacks (a
    multi-page TIFF or a Zarr store with a z axis each), or the two folders of a Cell Tracking Challenge sequence
    (``01`` and ``01_GT``).
    `label_kind` says what a label value is: ``classes``, a class (`classes` maps names to values, background first;
    without it the sorted values are ``class 0``, ``class 1``, ...); ``instances``, the number of an object, 0 being
    background; ``binary``, nothing for 0 and foreground for all else. `foreground` names the objects' class for the
    latter two. `cell_class` names the class of ``classes`` whose connected parts the weight map tells apart, such as
    the inside of cells between membranes; without it there is no border term for ``classes``. `ignore` is a label
    value that says nothing.
    `validation` and `exclude` are stems; without `validation` a tenth, at least one, is held out: the last of the order
    for unrelated images. `is_stack` says that neighbours in the order look alike: then the held-out images are spread
    over the stack, one in the middle of each half or more, and `gap` images on either side of each are left out
    altogether. `percentiles` scales each image by two of its own percentiles first, for images that differ in
    brightness.
    """

    images: Path
    labels: Path
    label_kind: LabelKind = "classes"
    classes: Mapping[str, int] | None = None
    foreground: str = "foreground"
    cell_class: str | None = None
    ignore: int | None = None
    validation: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = field(default=())
    is_stack: bool = False
    gap: int = 1
    percentiles: tuple[float, float] | None = None
