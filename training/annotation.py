"""What the values of a label image mean: from numbers in a file to what is taught and scored.

1. ``classes``: a pixel's class is the position of its value among the classes. The cells that the weight map tells
   apart are the parts of `cell_class` that hang together by edges.
2. ``instances``: values number objects; an object may consist of several parts. Objects are numbered anew without gaps.
   The cells are the objects with background put between those that touch, and foreground is what is left of them.
3. ``binary``: all but 0 is foreground; the cells are its parts that hang together by edges.
4. Ignored pixels belong to no object and no cell; their class index is 0 and must not be counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import MissingDependencyError
from unet_deploy.training.data_config import DataConfig, LabelKind
from unet_deploy.training.pairing import did_you_mean
from unet_deploy.training.weight_map import separate_touching

Labels = npt.NDArray[Any]
Mask = npt.NDArray[np.bool_]

BACKGROUND = "background"
MAX_GUESSED_CLASSES = 16
"""More distinct label values than this, with no classes given, are object numbers rather than classes."""
MAX_CLASSES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRule:
    """How label values are understood; `values` is the label value of each class, empty where labels name none."""

    kind: LabelKind
    names: tuple[str, ...]
    values: tuple[int, ...] = ()
    cell_class: int | None
    ignore: int | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Annotation:
    """One understood label, arrays (y, x) as in `AnnotatedImage`."""

    label: npt.NDArray[np.uint8]
    cells: npt.NDArray[np.int32] | None
    instances: npt.NDArray[np.int32] | None
    ignored: Mask | None


def check_label_settings(config: DataConfig, problems: list[str]) -> None:
    """Note every setting about labels that cannot be, or that would be passed over in silence."""
    kind = config.label_kind
    if kind not in get_args(LabelKind):
        problems.append(f"label kind {kind!r}: one of {', '.join(get_args(LabelKind))} was expected")
    if kind == "classes":
        values = config.classes
        if values is not None:
            if not 2 <= len(values) <= MAX_CLASSES:
                problems.append(f"{len(values)} class(es) given; at least two are needed, at most {MAX_CLASSES}")
            if len(set(values.values())) < len(values):
                problems.append(f"two classes have the same label value: {dict(values)}")
            problems += [
                f"ignore: {value} is the label value of class {name!r}"
                for name, value in values.items()
                if value == config.ignore
            ]
        return
    if config.classes is not None:
        problems.append(f"classes are named, but the labels are {kind}: name none, or use --label-kind classes")
    if config.cell_class is not None:
        problems.append(f"cell class {config.cell_class!r}: labels that are {kind} have none but the foreground")
    if config.foreground == BACKGROUND:
        problems.append(f"the foreground is called {BACKGROUND!r}, as the other class is")
    if config.ignore == 0:
        problems.append(f"ignore: 0 is the background of labels that are {kind}")


def make_rule(config: DataConfig, labels: Sequence[Labels], problems: list[str]) -> LabelRule:
    """Return how labels are understood; the values of unnamed classes are taken from all `labels`."""
    if config.label_kind != "classes":
        return LabelRule(
            kind=config.label_kind, names=(BACKGROUND, config.foreground), cell_class=1, ignore=config.ignore
        )
    values = dict(config.classes) if config.classes is not None else _guess_classes(labels, config.ignore, problems)
    index: int | None = None
    if config.cell_class is not None and values:
        if config.cell_class in values:
            index = list(values).index(config.cell_class)
        else:
            hint = did_you_mean(config.cell_class, values)
            problems.append(f"cell class {config.cell_class!r} is none of the classes ({', '.join(values)}){hint}")
    return LabelRule(
        kind="classes",
        names=tuple(values),
        values=tuple(values.values()),
        cell_class=index,
        ignore=config.ignore,
    )


def understand_label(
    stem: str, label: Labels, rule: LabelRule, unannotated: Mask | None, problems: list[str]
) -> Annotation:
    """Return what a label image says; values that say nothing are noted in `problems`.

    Parameters
    ----------
    stem
        The image's, for the message.
    label
        Integer, (y, x), as in the file.
    rule
        How its values are understood.
    unannotated
        bool, (y, x): pixels to ignore besides those of the value `rule.ignore`; None is none.
    problems
        Is added to.
    """
    ignored = np.zeros(label.shape, np.bool_) if rule.ignore is None else label == rule.ignore
    if unannotated is not None:
        ignored = ignored | unannotated
    kept_ignored = ignored if rule.ignore is not None or unannotated is not None else None
    if rule.kind == "classes":
        indices = _class_indices(stem, label, rule, ignored, problems)
        inside = None if rule.cell_class is None else (indices == rule.cell_class) & ~ignored
        cells = None if inside is None else number_parts(inside, connectivity=1)
        return Annotation(label=indices, cells=cells, instances=None, ignored=kept_ignored)
    below = (label < 0) & ~ignored
    if below.any():
        problems.append(
            f"{stem}: label values below 0, the least {label[below].min()}, on {int(below.sum())} px; 0 for the "
            "background and more for all else was expected (--ignore VALUE, if such a value says nothing)"
        )
    numbers = np.where(ignored, 0, label)
    if rule.kind == "binary":
        foreground = numbers != 0
        return Annotation(
            label=foreground.astype(np.uint8),
            cells=number_parts(foreground, connectivity=1),
            instances=None,
            ignored=kept_ignored,
        )
    instances = number_anew(numbers)
    cells = separate_touching(instances)
    return Annotation(label=(cells > 0).astype(np.uint8), cells=cells, instances=instances, ignored=kept_ignored)


def number_anew(numbers: Labels) -> npt.NDArray[np.int32]:
    """Return objects numbered 1, 2, ... in the order of their numbers; 0 stays 0.

    >>> number_anew(np.array([[70000, 0, 3, 70000]])).tolist()
    [[2, 0, 1, 2]]
    """
    values, places = np.unique(numbers, return_inverse=True)
    new = np.cumsum(values > 0)
    return np.asarray(new[places].reshape(numbers.shape), np.int32)


def number_parts(array: Labels, *, connectivity: int) -> npt.NDArray[np.int32]:
    """Return the parts of equal value that hang together numbered 1, 2, ...; 0 stays 0.

    Parameters
    ----------
    array
        Boolean or integer, (y, x).
    connectivity
        1 if pixels hang together by edges, 2 if by corners too.

    Raises
    ------
    MissingDependencyError
        If scikit-image is not installed.
    """
    try:
        from skimage.measure import label
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "skimage":
            raise
        raise MissingDependencyError.of_extra("scikit-image", extra="train", purpose="telling cells apart") from error
    return np.asarray(label(array, connectivity=connectivity), np.int32)


def _guess_classes(labels: Sequence[Labels], ignore: int | None, problems: list[str]) -> dict[str, int]:
    values = sorted(set().union(*(np.unique(label).tolist() for label in labels)) - {ignore})
    if labels and not 2 <= len(values) <= MAX_GUESSED_CLASSES:
        hint = "; if they number objects, use --label-kind instances" if len(values) > MAX_GUESSED_CLASSES else ""
        problems.append(
            f"the labels hold {len(values)} distinct value(s); 2 to {MAX_GUESSED_CLASSES} were expected when no "
            f"class is named (--class NAME=VALUE); object numbers are no classes{hint}"
        )
        return {}
    if values and values[0] < 0:
        problems.append(
            f"the labels hold values below 0, the least {values[0]}: name the classes (--class NAME=VALUE), or the "
            "value that says nothing (--ignore VALUE)"
        )
    return {f"class {index}": value for index, value in enumerate(values)}


def _class_indices(
    stem: str, label: Labels, rule: LabelRule, ignored: Mask, problems: list[str]
) -> npt.NDArray[np.uint8]:
    indices = np.zeros(label.shape, np.uint8)
    left = ~ignored
    for index, value in enumerate(rule.values[:MAX_CLASSES]):
        here = (label == value) & ~ignored
        indices[here] = index
        left &= ~here
    if rule.values and left.any():
        unknown = np.unique(label[left])
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        known = ", ".join(f"{name}={value}" for name, value in zip(rule.names, rule.values, strict=True))
        problems.append(f"{stem}: label values {shown} on {int(left.sum())} px belong to no class ({known})")
    return indices
