"""What looks wrong with annotated images but need not be: said before training, in plain words, with the image's name.

1. Images whose annotated pixels are all of one class, the background most of all; images ignored as a whole.
2. A class that no validation image has: its score would mean nothing.
3. Whole-number grey values that use less than a quarter of what the data type holds, such as 12 bits in uint16.
4. An image much brighter or darker than the others (`find_outliers`), unless images are scaled by percentiles.
5. Percentiles of an image that are one grey value, so that it is not scaled.
6. Object numbers that stand for far-apart things (`count_scattered`), and masks that were taken for object numbers.

Each rule looks at training and validation images; none of them changes what is trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unet_deploy.training.annotation import number_parts
from unet_deploy.training.data_config import DataConfig

if TYPE_CHECKING:
    from unet_deploy.training.data import AnnotatedImage  # which imports this module

NAMES_SHOWN = 5
USED_SHARE = 1 / 4
OUTLIER_SCORE = 6.0
LEAST_IMAGES_COMPARED = 4
SCATTER_RATIO = 2.0
SCATTERED_SHARE = 0.01


def find_warnings(
    training: Sequence[AnnotatedImage],
    validation: Sequence[AnnotatedImage],
    *,
    classes: Sequence[str],
    std: float,
    config: DataConfig,
) -> Iterator[str]:
    """Yield one line for each warning; `std` is that of the training images' grey values."""
    images = [*training, *validation]
    yield from _of_one_class(images, classes)
    yield from _missing_in_validation(validation, classes)
    yield from _narrow_range(images)
    if config.percentiles is None:
        means = {a.stem: float(a.image.mean(dtype=np.float64)) for a in images}
        median = float(np.median(list(means.values())))
        for stem in find_outliers(means, least=std / 2):
            yield (
                f"{stem}: its mean grey value is {means[stem]:.4g}, the median of the images' is {median:.4g}: is its "
                "contrast inverted, or its exposure another? --percentiles 1,99.8 makes exposures alike"
            )
    else:
        flat = [a.stem for a in images if a.grey_range is not None and a.grey_range[0] == a.grey_range[1]]
        if flat:
            yield f"{_some(flat)}: both percentiles are one grey value, so the grey values are not scaled"
    if config.label_kind == "instances":
        yield from _objects(images)


def find_outliers(means: Mapping[str, float], *, least: float) -> tuple[str, ...]:
    """Return the stems of images whose mean is far from the others'.

    The rule: further from the median of the means than 6 robust standard deviations (1.4826 times the median
    distance from it) and than `least`; among fewer than 4 images none.

    >>> find_outliers({"a": 10, "b": 11, "c": 12, "d": 80}, least=5)
    ('d',)
    """
    if len(means) < LEAST_IMAGES_COMPARED:
        return ()
    distance = np.abs(np.array(list(means.values())) - np.median(list(means.values())))
    limit = max(OUTLIER_SCORE * 1.4826 * float(np.median(distance)), least)
    return tuple(stem for stem, far in zip(means, distance, strict=True) if far > limit)


def count_scattered(instances: npt.NDArray[Any]) -> tuple[int, int]:
    """Return how many objects consist of far-apart parts, and how many objects there are.

    The rule: the box around all parts of an object has a diagonal more than twice as long as the diagonals of the
    boxes around each of its parts (8-connected) together, as two nuclei of one number in different corners have.

    >>> count_scattered(np.array([[1, 0, 0, 0, 0, 0, 1, 2, 0, 2]]))
    (1, 2)
    """
    parts = number_parts(instances, connectivity=2)
    from skimage.measure import regionprops

    boxes: dict[int, list[tuple[int, ...]]] = {}
    for region in regionprops(parts):
        boxes.setdefault(int(instances[tuple(region.coords[0])]), []).append(region.bbox)
    scattered = 0
    for of_one in boxes.values():
        if len(of_one) == 1:
            continue
        corners = np.array(of_one)  # (parts, 4): from y, x; to y, x
        whole = np.hypot(*(corners[:, 2:].max(axis=0) - corners[:, :2].min(axis=0)))
        sides = corners[:, 2:] - corners[:, :2]
        scattered += bool(whole > SCATTER_RATIO * np.hypot(sides[:, 0], sides[:, 1]).sum())
    return scattered, len(boxes)


def _of_one_class(images: Sequence[AnnotatedImage], classes: Sequence[str]) -> Iterator[str]:
    only: dict[int | None, list[str]] = {}
    for one in images:
        found = np.unique(one.label if one.ignored is None else one.label[~one.ignored])
        if found.size < 2:
            only.setdefault(int(found[0]) if found.size else None, []).append(one.stem)
    for index, stems in only.items():
        if index is None:
            yield f"{_some(stems)}: every pixel is ignored"
        else:
            lead = "no foreground: " if index == 0 else ""
            yield f"{_some(stems)}: {lead}every annotated pixel is {classes[index]!r}"


def _missing_in_validation(validation: Sequence[AnnotatedImage], classes: Sequence[str]) -> Iterator[str]:
    seen = {
        int(index)
        for one in validation
        for index in np.unique(one.label if one.ignored is None else one.label[~one.ignored])
    }
    for index, name in enumerate(classes):
        if index not in seen:
            yield f"class {name!r} is in no validation image: the scores say nothing about it; choose others"


def _narrow_range(images: Sequence[AnnotatedImage]) -> Iterator[str]:
    dtype = images[0].image.dtype
    if dtype.kind not in "ui":
        return
    largest, limit = max(int(a.image.max()) for a in images), int(np.iinfo(dtype).max)
    if largest < limit * USED_SHARE:
        bits = max(largest, 1).bit_length()
        yield (
            f"the largest grey value of all images is {largest}, below 2**{bits} = {2**bits}, but {dtype.name} reaches "
            f"{limit}: images to segment must come from the same camera settings, not be stretched to the full range"
        )


def _objects(images: Sequence[AnnotatedImage]) -> Iterator[str]:
    scattered, objects, first = 0, 0, ""
    for one in images:
        assert one.instances is not None
        far, count = count_scattered(one.instances)
        scattered, objects = scattered + far, objects + count
        first = first or (one.stem if far else "")
    if objects and scattered / objects >= SCATTERED_SHARE:
        yield (
            f"{scattered} of {objects} objects ({scattered / objects:.1%}) consist of parts that lie far apart, first "
            f"in {first}: has one number been given to several objects?"
        )


def find_masks(labels: Mapping[str, npt.NDArray[Any]]) -> Iterator[str]:
    """Yield a warning if labels that should number objects hold a single value besides 0.

    That value is 255, or has several parts (8-connected) in one image; one object an image is no reason to warn.

    Parameters
    ----------
    labels
        Integer, (y, x), by stem; ignored pixels already 0.
    """
    values = set().union(*(np.unique(one).tolist() for one in labels.values())) - {0}
    if len(values) != 1:
        return
    (value,) = values
    if value != 255 and all(number_parts(one > 0, connectivity=2).max() < 2 for one in labels.values()):
        return
    yield (
        f"the labels hold only 0 and {value}, so all that is not background is one object of each image: of masks, "
        "use --label-kind binary"
    )


def _some(stems: Sequence[str]) -> str:
    more = f" and {len(stems) - NAMES_SHOWN} more" if len(stems) > NAMES_SHOWN else ""
    return ", ".join(stems[:NAMES_SHOWN]) + more
