"""Annotated images, checked as a whole before any work.

1. Pair images and labels: files of one stem, slices of two stacks, frames of a Cell Tracking Challenge sequence.
2. Split by stem into training, validation and excluded, which are not read.
3. Read each pair; note every problem (unreadable, shape, dtype, values, constant) instead of stopping at the first.
4. Understand the labels: class of each pixel, objects, cells to tell apart, pixels to ignore.
5. Over the training images only: mean and standard deviation, grey-value histogram, pixels of each class.
6. Look for what need not be wrong but should be known before training.

Neither validation nor excluded images influence anything the network or its card is given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from unet_deploy.card import Histogram, InputDtype
from unet_deploy.errors import TrainingDataError
from unet_deploy.percentiles import percentile_range, scale_by_range
from unet_deploy.training.annotation import LabelRule, check_label_settings, make_rule, understand_label
from unet_deploy.training.cell_tracking import find_frames, is_cell_tracking, largest_radius, unannotated_area
from unet_deploy.training.data_config import DataConfig
from unet_deploy.training.data_warnings import find_masks, find_warnings
from unet_deploy.training.image_files import PlaneReader
from unet_deploy.training.pairing import Pair, Pairs, check_stems, find_pairs
from unet_deploy.training.split import Split, split_stems

HISTOGRAM_BINS = 64
MAX_PROBLEMS_SHOWN = 30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnnotatedImage:
    """One image with its annotation; all arrays have shape (y, x).

    `image` has the file's dtype; `label`, uint8, is the class index of each pixel. `cells`, int32, numbers the cells
    that the weight map tells apart, already separated, 0 elsewhere; None without a border term. `instances`, int32, are
    the objects as annotated, which a segmentation is scored against; None where the labels do not number any.
    `ignored`, bool, is what the annotation leaves open. `grey_range` are the grey values at the data's percentiles;
    None without these.
    """

    stem: str
    image: npt.NDArray[Any]
    label: npt.NDArray[np.uint8]
    cells: npt.NDArray[np.int32] | None = None
    instances: npt.NDArray[np.int32] | None = None
    ignored: npt.NDArray[np.bool_] | None = None
    grey_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingData:
    """Checked images, split, with the constants of the training part.

    `percentiles` are those that each image is scaled by before `mean` and `std`, which then are of the scaled training
    images; None leaves the grey values as they are. `cell_class` is the index of the class whose components the weight
    map tells apart. `class_pixels` counts training pixels that are not ignored; the constants count all of them.
    """

    training: tuple[AnnotatedImage, ...]
    validation: tuple[AnnotatedImage, ...]
    excluded: tuple[str, ...]
    classes: tuple[str, ...]
    dtype: InputDtype
    value_range: tuple[float, float]
    mean: float
    std: float
    histogram: Histogram
    class_pixels: tuple[int, ...]
    percentiles: tuple[float, float] | None = None
    cell_class: int | None = None
    warnings: tuple[str, ...] = ()


def normalise(annotated: AnnotatedImage, *, mean: float, std: float) -> npt.NDArray[np.float32]:
    """Return the image as the network is given it, float32, (y, x): scaled by percentiles if any, then standardised."""
    if annotated.grey_range is None:
        values = annotated.image.astype(np.float32)
    else:
        values = scale_by_range(annotated.image, annotated.grey_range)
    return np.asarray((values - np.float32(mean)) / np.float32(std), np.float32)


def read_training_data(config: DataConfig, *, smallest_side: int = 16) -> TrainingData:
    """Read and check the images and annotations that `config` names.

    Images have one channel, of uint8, uint16, int16 or float32, all of one dtype; labels are integer.

    Parameters
    ----------
    config
        Where the files lie, what their labels mean, and how they are split.
    smallest_side
        Sides below this, in pixels, are refused.

    Returns
    -------
    TrainingData
        Images in the order of their stems; `excluded` holds those that `config` names, then the gaps of a stack.

    Raises
    ------
    TrainingDataError
        With every problem found: settings that cannot be or contradict the labels, a path that is not there, no
        images, a missing partner, a file that cannot be read, colours, a dtype that is not supported, shapes or counts
        that differ, values of no class or below 0, a constant image, unknown stems, a class that occurs nowhere, no
        objects, nothing left to train or validate on.
    MissingDependencyError
        If scikit-image, which reads the files, is not installed.
    """
    problems: list[str] = []
    _check_settings(config, problems)
    reader = PlaneReader()
    pairs = _find(config, reader, problems)
    split = split_stems(
        tuple(pairs.by_stem),
        validation=config.validation,
        exclude=config.exclude,
        is_stack=config.is_stack,
        gap=config.gap,
    )
    _check_split(split, pairs, config, problems)

    raw: dict[str, _Raw] = {}
    for stem, pair in pairs.by_stem.items():
        if stem not in split.excluded:
            read = _read_pair(stem, pair, reader, smallest_side, problems)
            if read is not None:
                raw[stem] = read
    dtypes = sorted({one.image.dtype.name for one in raw.values()})
    if len(dtypes) > 1:
        problems.append(f"the images differ in dtype: {', '.join(dtypes)}; all must have one")
    rule = make_rule(config, [one.label for one in raw.values()], problems)
    annotated = _annotate(raw, split, rule, config, problems)
    training = tuple(a for a in annotated if a.stem not in split.validation)
    validation = tuple(a for a in annotated if a.stem in split.validation)
    pixels = _count_pixels(training)
    if not problems:
        problems += _missing_classes(pixels, rule)
    if problems:
        raise _problems_error(list(dict.fromkeys(problems)), config)

    value_range = _value_range([a.image for a in annotated])
    mean, std = _mean_and_std([_scaled(a) for a in training])
    warnings: list[str] = []
    if rule.kind == "instances":
        warnings += find_masks({s: np.where(r.label == rule.ignore, 0, r.label) for s, r in raw.items()})
    grey_std = std if config.percentiles is None else 0.0
    warnings += find_warnings(training, validation, classes=rule.names, std=grey_std, config=config)
    return TrainingData(
        training=training,
        validation=validation,
        excluded=split.excluded,
        classes=rule.names,
        dtype=_input_dtype(dtypes[0]),
        value_range=value_range,
        mean=mean,
        std=std,
        histogram=_histogram([a.image for a in training], value_range),
        class_pixels=tuple(int(n) for n in pixels[: len(rule.names)]),
        percentiles=config.percentiles,
        cell_class=rule.cell_class,
        warnings=tuple(warnings),
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Raw:
    """A pair as it was read, arrays (y, x)."""

    image: npt.NDArray[Any]
    label: npt.NDArray[Any]
    markers: npt.NDArray[Any] | None


def _check_settings(config: DataConfig, problems: list[str]) -> None:
    check_label_settings(config, problems)
    if config.gap < 0:
        problems.append(f"gap {config.gap}: a number of images, 0 or more, was expected")
    if config.percentiles is not None and not 0 <= config.percentiles[0] < config.percentiles[1] <= 100:
        problems.append(f"percentiles {config.percentiles}: two of 0..100, the lower first, were expected")
    if is_cell_tracking(config.labels) and config.label_kind != "instances":
        problems.append(
            f"{config.labels} is of the Cell Tracking Challenge, whose labels number the cells, but the label kind is "
            f"{config.label_kind}: use --label-kind instances"
        )


def _find(config: DataConfig, reader: PlaneReader, problems: list[str]) -> Pairs:
    if is_cell_tracking(config.labels):
        return find_frames(config.images, config.labels, problems)
    return find_pairs(config.images, config.labels, reader, problems)


def _check_split(split: Split, pairs: Pairs, config: DataConfig, problems: list[str]) -> None:
    check_stems(config.exclude, pairs.stems, "excluded", problems)
    check_stems(split.validation, pairs.stems, "validation", problems)
    problems += [f"{stem}: both validation and excluded" for stem in split.validation if stem in split.excluded]
    if config.validation == ():
        problems.append("no image to validate on is named; name one, or none at all to have some chosen")
    left = [s for s in pairs.by_stem if s not in split.validation and s not in split.excluded]
    if pairs.by_stem and not left:
        count = f"{len(split.validation)} for validation, {len(split.excluded)} excluded"
        hint = f", {len(split.gap)} of them as neighbours in the stack: choose with --validate, or a smaller --gap"
        problems.append(f"no image is left to train on: {count}{hint if split.gap else ''}")


def _read_pair(stem: str, pair: Pair, reader: PlaneReader, smallest_side: int, problems: list[str]) -> _Raw | None:
    before = len(problems)
    image, label = reader.read(pair.image, problems), reader.read(pair.label, problems)
    markers = None if pair.markers is None else reader.read(pair.markers, problems)
    if image is None or label is None:
        return None
    if label.dtype == np.bool_:
        label = label.astype(np.uint8)
    if image.dtype.name not in get_args(InputDtype):
        known = ", ".join(get_args(InputDtype))
        problems.append(f"{stem}: {pair.image} is {image.dtype.name}; one of {known} was expected")
    for source, array in ((pair.label, label), (pair.markers, markers)):
        if array is not None and array.dtype.kind not in "ui":
            whole = " holding whole numbers" if array.dtype.kind == "f" and (array == np.trunc(array)).all() else ""
            problems.append(
                f"{stem}: {source} is {array.dtype.name}{whole}; an integer type was expected: save it as uint8 or "
                "uint16"
            )
    if image.shape != label.shape:
        problems.append(f"{stem}: the image is {image.shape}, its label {label.shape}")
    elif markers is not None and markers.shape != label.shape:
        problems.append(f"{stem}: the label is {label.shape}, its markers are {markers.shape}")
    if min(image.shape) < smallest_side:
        problems.append(f"{stem}: {image.shape} is smaller than {smallest_side} x {smallest_side} px")
    elif image.dtype.kind == "f" and not np.isfinite(image).all():
        problems.append(f"{stem}: {pair.image} holds NaN or infinity")
    elif image.min() == image.max():
        problems.append(f"{stem}: {pair.image} is constant ({image.flat[0]})")
    return None if len(problems) > before else _Raw(image=image, label=label, markers=markers)


def _annotate(
    raw: Mapping[str, _Raw], split: Split, rule: LabelRule, config: DataConfig, problems: list[str]
) -> list[AnnotatedImage]:
    """Understand each label; with bad settings or paths, only look for more problems."""
    unannotated: dict[str, npt.NDArray[np.bool_]] = {}
    cells = {
        stem: np.where(one.label == rule.ignore, 0, one.label) for stem, one in raw.items() if one.markers is not None
    }
    if cells:
        radius = largest_radius([array for stem, array in cells.items() if stem not in split.validation])
        for stem, array in cells.items():
            markers = raw[stem].markers
            assert markers is not None
            unannotated[stem] = unannotated_area(array, markers, radius=radius)
    annotated: list[AnnotatedImage] = []
    for stem, one in raw.items():
        said = understand_label(stem, one.label, rule, unannotated.get(stem), problems)
        can_scale = config.percentiles is not None and not problems
        annotated.append(
            AnnotatedImage(
                stem=stem,
                image=one.image,
                label=said.label,
                cells=said.cells,
                instances=said.instances,
                ignored=said.ignored,
                grey_range=percentile_range(one.image, config.percentiles)
                if can_scale and config.percentiles is not None
                else None,
            )
        )
    return annotated


def _count_pixels(images: Sequence[AnnotatedImage]) -> npt.NDArray[np.int64]:
    """Return how many pixels that are not ignored each class index has."""
    labels = (a.label.ravel() if a.ignored is None else a.label[~a.ignored] for a in images)
    return sum((np.bincount(label, minlength=256) for label in labels), np.zeros(256, np.int64))


def _missing_classes(pixels: npt.NDArray[np.int64], rule: LabelRule) -> list[str]:
    missing = [index for index in range(len(rule.names)) if pixels[index] == 0]
    if rule.kind == "classes":
        return [
            f"class {rule.names[index]!r} (value {rule.values[index]}) occurs in no training label" for index in missing
        ]
    if missing == [1]:
        what = "objects" if rule.kind == "instances" else "foreground"
        return [f"the training labels hold no {what}: every pixel is 0"]
    return [f"the training labels hold no {rule.names[index]}" for index in missing]


def _scaled(annotated: AnnotatedImage) -> npt.NDArray[Any]:
    return annotated.image if annotated.grey_range is None else normalise(annotated, mean=0, std=1)


def _problems_error(problems: Sequence[str], config: DataConfig) -> TrainingDataError:
    shown = list(problems[:MAX_PROBLEMS_SHOWN])
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    return TrainingDataError(
        f"{len(problems)} problem(s) with the training data",
        f"images in {config.images}",
        f"labels in {config.labels}",
        *shown,
        fix="correct these files or settings, or leave an image out with --exclude STEM",
    )


def _input_dtype(name: str) -> InputDtype:
    for dtype in get_args(InputDtype):
        if dtype == name:
            known: InputDtype = dtype
            return known
    raise AssertionError(name)


def _value_range(images: Sequence[npt.NDArray[Any]]) -> tuple[float, float]:
    dtype = images[0].dtype
    if dtype.kind in "ui":
        return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    return float(min(i.min() for i in images)), float(max(i.max() for i in images))


def _mean_and_std(images: Sequence[npt.NDArray[Any]]) -> tuple[float, float]:
    count = sum(image.size for image in images)
    mean = math.fsum(float(image.sum(dtype=np.float64)) for image in images) / count
    square = math.fsum(float(np.square(image.astype(np.float64) - mean).sum()) for image in images) / count
    return mean, math.sqrt(square)


def _histogram(images: Sequence[npt.NDArray[Any]], value_range: tuple[float, float]) -> Histogram:
    counts = sum((np.histogram(i, HISTOGRAM_BINS, value_range)[0] for i in images), np.zeros(HISTOGRAM_BINS, np.int64))
    return Histogram(value_range=value_range, counts=tuple(int(n) for n in counts))
