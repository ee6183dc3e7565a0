"""Annotated images from two folders, checked as a whole before any work.

1. Pair images and labels by file stem.
2. Read each pair; note every problem (unreadable, shape, dtype, values, constant) instead of stopping at the first.
3. Turn label values into class indices: a class's index is its position in the mapping given.
4. Split by stem into training, validation and excluded.
5. Over the training images only: mean and standard deviation, grey-value histogram, pixels of each class.

Neither validation nor excluded images influence anything the network or its card is given.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from unet_deploy.card import Histogram, InputDtype
from unet_deploy.errors import MissingDependencyError, TrainingDataError

SUFFIXES = (".png", ".tif", ".tiff")
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
HISTOGRAM_BINS = 64
MAX_GUESSED_CLASSES = 16
"""More distinct label values than this, with no classes given, are object numbers rather than classes."""
MAX_PROBLEMS_SHOWN = 30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AnnotatedImage:
    """One image with its label.

    `image` has shape (y, x) in the file's dtype, `label` shape (y, x), uint8: the class index of each pixel.
    """

    stem: str
    image: npt.NDArray[Any]
    label: npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingData:
    """Checked images, split, with the constants of the training part."""

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


def read_training_data(
    images: Path,
    labels: Path,
    *,
    classes: Mapping[str, int] | None = None,
    validation: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    smallest_side: int = 16,
) -> TrainingData:
    """Read and check a folder of images and a folder of labels.

    Parameters
    ----------
    images, labels
        Folders of PNG or TIFF files; an image and its label have the same stem. Images are (y, x), one channel,
        of uint8, uint16, int16 or float32, all of one dtype; labels are (y, x), integer.
    classes
        Class name to label value; a class's index is its position. Without it the sorted distinct values
        become ``class 0``, ``class 1``, ...
    validation
        Stems to validate on. Without it the last tenth, at least one (`last_tenth`).
    exclude
        Stems to leave out of both, such as a neighbour that looks like a validation slice.
    smallest_side
        Sides below this, in pixels, are refused.

    Raises
    ------
    TrainingDataError
        With every problem found: a folder that is not there, no images, a missing partner, a file that cannot be read,
        a dtype that is not supported, shapes that differ, values of no class, a constant image, unknown stems,
        a class that occurs nowhere, nothing left to train on.
    MissingDependencyError
        If scikit-image, which reads the files, is not installed.
    """
    problems: list[str] = []
    pairs, stems = _pair_files(images, labels, problems)
    excluded = _known_stems(exclude, stems, "excluded", problems)
    chosen = last_tenth([s for s in pairs if s not in excluded]) if validation is None else tuple(validation)
    held_out = _known_stems(chosen, stems, "validation", problems)
    problems += [f"{stem}: both validation and excluded" for stem in held_out if stem in excluded]

    raw = {stem: _read_pair(stem, *pairs[stem], smallest_side, problems) for stem in pairs if stem not in excluded}
    values = _class_values(classes, [label for _, label in filter(None, raw.values())], problems)
    annotated: list[AnnotatedImage] = []
    for stem, pair in raw.items():
        if pair is not None:
            label = _class_indices(stem, pair[1], values, problems)
            annotated.append(AnnotatedImage(stem=stem, image=pair[0], label=label))
    dtypes = sorted({a.image.dtype.name for a in annotated})
    if len(dtypes) > 1:
        problems.append(f"the images differ in dtype: {', '.join(dtypes)}; all must have one")

    training = tuple(a for a in annotated if a.stem not in held_out)
    if not training and not problems:
        problems.append(f"no image is left to train on: {len(held_out)} for validation, {len(excluded)} excluded")
    pixels = sum((np.bincount(a.label.ravel(), minlength=256) for a in training), np.zeros(256, np.int64))
    if not problems:
        problems += [
            f"class {name!r} (value {value}) occurs in no training label"
            for index, (name, value) in enumerate(values.items())
            if pixels[index] == 0
        ]
    if problems:
        raise _problems_error(problems, images, labels)

    value_range = _value_range([a.image for a in annotated])
    mean, std = _mean_and_std([a.image for a in training])
    return TrainingData(
        training=training,
        validation=tuple(a for a in annotated if a.stem in held_out),
        excluded=excluded,
        classes=tuple(values),
        dtype=_input_dtype(dtypes[0]),
        value_range=value_range,
        mean=mean,
        std=std,
        histogram=_histogram([a.image for a in training], value_range),
        class_pixels=tuple(int(n) for n in pixels[: len(values)]),
    )


def last_tenth(stems: Sequence[str]) -> tuple[str, ...]:
    """Return the last tenth of `stems`, rounded, at least one: what is validated on when nobody says.

    >>> last_tenth([f"{i:02}" for i in range(24)])
    ('22', '23')
    """
    return tuple(stems[-max(1, round(len(stems) / 10)) :])


def _pair_files(images: Path, labels: Path, problems: list[str]) -> tuple[dict[str, tuple[Path, Path]], list[str]]:
    found: list[dict[str, Path]] = []
    for kind, folder in (("images", images), ("labels", labels)):
        files: dict[str, Path] = {}
        if not folder.is_dir():
            problems.append(f"{kind}: there is no folder {folder}")
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.suffix.lower() not in SUFFIXES:
                continue
            if path.stem in files:
                problems.append(f"{path.stem}: two files of that stem in {folder}")
            files[path.stem] = path
        if folder.is_dir() and not files:
            problems.append(f"{kind}: no {', '.join(SUFFIXES)} file in {folder}")
        found.append(files)
    by_image, by_label = found
    if by_image and by_label:
        problems += [f"{s}: an image without a label" for s in by_image if s not in by_label]
        problems += [f"{s}: a label without an image" for s in by_label if s not in by_image]
    pairs = {s: (path, by_label[s]) for s, path in by_image.items() if s in by_label}
    return pairs, sorted(by_image.keys() | by_label.keys())


def _known_stems(wanted: Iterable[str], stems: Sequence[str], role: str, problems: list[str]) -> tuple[str, ...]:
    for stem in wanted:
        if stem not in stems:
            close = difflib.get_close_matches(stem, stems, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            problems.append(f"{stem}: named as {role}, but no file has that stem{hint}")
    return tuple(dict.fromkeys(wanted))


def _read_pair(
    stem: str, image_path: Path, label_path: Path, smallest_side: int, problems: list[str]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]] | None:
    before = len(problems)
    image, label = _read_image(image_path, problems), _read_image(label_path, problems)
    if image is None or label is None:
        return None
    for path, array in ((image_path, image), (label_path, label)):
        if array.ndim != 2:
            problems.append(f"{stem}: {path} has shape {array.shape}; (y, x) with one grey channel was expected")
    if label.dtype == np.bool_:
        label = label.astype(np.uint8)
    if image.dtype.name not in get_args(InputDtype):
        known = ", ".join(get_args(InputDtype))
        problems.append(f"{stem}: {image_path} is {image.dtype.name}; one of {known} was expected")
    if label.dtype.kind not in "ui":
        problems.append(f"{stem}: {label_path} is {label.dtype.name}; whole numbers were expected")
    if len(problems) > before:
        return None
    if image.shape != label.shape:
        problems.append(f"{stem}: the image is {image.shape}, its label {label.shape}")
    if min(image.shape) < smallest_side:
        problems.append(f"{stem}: {image.shape} is smaller than {smallest_side} x {smallest_side} px")
    elif not np.isfinite(image).all():
        problems.append(f"{stem}: {image_path} holds NaN or infinity")
    elif image.min() == image.max():
        problems.append(f"{stem}: {image_path} is constant ({image.flat[0]})")
    return None if len(problems) > before else (image, label)


def _read_image(path: Path, problems: list[str]) -> npt.NDArray[Any] | None:
    try:
        from skimage.io import imread
    except ModuleNotFoundError as error:
        if error.name != "skimage":
            raise
        raise MissingDependencyError.of_extra("scikit-image", extra="train", purpose="reading images") from error
    try:
        if path.suffix.lower() == ".png":
            with path.open("rb") as file:  # on any other file, the reader would try every format it has ever known
                if file.read(len(PNG_SIGNATURE)) != PNG_SIGNATURE:
                    raise ValueError("it does not start as a PNG file does")
        return np.asarray(imread(path))
    except (OSError, ValueError, SyntaxError) as error:  # Pillow raises SyntaxError for a broken PNG
        problems.append(f"{path.stem}: {path} cannot be read ({type(error).__name__}: {error})")
        return None


def _class_values(
    classes: Mapping[str, int] | None, labels: Sequence[npt.NDArray[Any]], problems: list[str]
) -> dict[str, int]:
    if classes is not None:
        if len(classes) < 2:
            problems.append(f"{len(classes)} class given; at least two are needed")
        if len(set(classes.values())) < len(classes):
            problems.append(f"two classes have the same label value: {dict(classes)}")
        return dict(classes)
    values = sorted(set().union(*(np.unique(label).tolist() for label in labels)))
    if labels and not 2 <= len(values) <= MAX_GUESSED_CLASSES:
        problems.append(
            f"the labels hold {len(values)} distinct value(s); 2 to {MAX_GUESSED_CLASSES} were expected when no "
            "class is named (--class NAME=VALUE); object numbers are no classes"
        )
        return {}
    return {f"class {index}": value for index, value in enumerate(values)}


def _class_indices(
    stem: str, label: npt.NDArray[Any], values: Mapping[str, int], problems: list[str]
) -> npt.NDArray[np.uint8]:
    indices = np.zeros(label.shape, np.uint8)
    left = np.ones(label.shape, np.bool_)
    for index, value in enumerate(values.values()):
        here = label == value
        indices[here] = index
        left &= ~here
    if values and left.any():
        unknown = np.unique(label[left])
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        known = ", ".join(f"{name}={value}" for name, value in values.items())
        problems.append(f"{stem}: label values {shown} on {int(left.sum())} px belong to no class ({known})")
    return indices


def _problems_error(problems: Sequence[str], images: Path, labels: Path) -> TrainingDataError:
    shown = list(problems[:MAX_PROBLEMS_SHOWN])
    if len(problems) > len(shown):
        shown.append(f"... and {len(problems) - len(shown)} more")
    return TrainingDataError(
        f"{len(problems)} problem(s) with the training data",
        f"images in {images}",
        f"labels in {labels}",
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
