"""What every metric of the ISBI challenges takes: truth, probability of the inside, thresholds; checked, by slice.

1. The truth is integer or bool: 0 is membrane, anything else is the inside of a cell (255, or the cell's id).
2. The probability is that of the inside, float in [0, 1], or 8 bits to be divided by 255. It is rounded to float32,
   which is what the challenge's program holds, and compared with the threshold in float64, as there.
3. Arrays are (y, x) or (z, y, x); of the latter one slice at a time is taken, so a Zarr array or a memory map as large
   as one likes is never in memory whole. All metrics are of single slices; each says how it pools them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import (
    ConfigurationError,
    MissingDependencyError,
    ShapeMismatchError,
    UnsupportedAxesError,
    UnsupportedDtypeError,
    ValueRangeError,
)

Mask = npt.NDArray[np.bool_]
Labels = npt.NDArray[Any]
Probability = npt.NDArray[np.float32]

# Summed up and not multiplied out, because the reference program does: three of these are not the nearest float.
ISBI_THRESHOLDS: tuple[float, ...] = (
    0.0, 0.1, 0.2, 0.30000000000000004, 0.4, 0.5, 0.6, 0.7, 0.7999999999999999, 0.8999999999999999,
)  # fmt: skip
"""The challenge's ten, 0.0 to 0.9; a pixel is inside a cell if its probability is strictly greater."""


class SliceReadable(Protocol):
    """An array in memory, in a file or in a store: anything with a shape and a dtype that gives slices when indexed."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents."""

    @property
    def dtype(self) -> Any:
        """Type of the elements."""

    def __getitem__(self, key: Any, /) -> Any:
        """Return a part."""


def require_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Return the thresholds, or say all that is wrong with them.

    Raises
    ------
    ConfigurationError
        If there are none, one is outside [0, 1), or they do not increase.
    """
    values = tuple(float(value) for value in thresholds)
    problems = [f"threshold {value:g} is not in [0, 1)" for value in values if not 0 <= value < 1]
    problems += [f"threshold {after:g} follows {before:g}" for before, after in pairwise(values) if not before < after]
    if not values:
        problems.append("there is no threshold")
    if problems:
        raise ConfigurationError(
            "thresholds must increase and lie in [0, 1): " + problems[0],
            *problems[1:],
            "a pixel is inside a cell if its probability is greater than the threshold; none is greater than 1",
            fix="leave them out for the challenge's ten (0.0, 0.1, ..., 0.9)",
        )
    return values


def each_slice(truth: SliceReadable, probability: SliceReadable) -> Iterator[tuple[Labels, Probability]]:
    """Yield the slices (y, x) of both, checked: true labels, and probabilities as float32.

    Raises
    ------
    ConfigurationError
        If the shapes differ, or there is no pixel.
    UnsupportedAxesError
        If they are neither (y, x) nor (z, y, x).
    UnsupportedDtypeError
        If the truth is neither integer nor bool, or the probability neither float, 8-bit nor bool.
    ValueRangeError
        If a label is negative, or a probability outside [0, 1].
    """
    _require_shapes(tuple(truth.shape), tuple(probability.shape))
    _require_dtypes(np.dtype(truth.dtype), np.dtype(probability.dtype))
    for z in range(truth.shape[0] if len(truth.shape) == 3 else 1):
        key: Any = z if len(truth.shape) == 3 else ...
        yield _as_labels(np.asarray(truth[key]), z), _as_probability(np.asarray(probability[key]), z)


def is_inside(probability: Probability, threshold: float) -> Mask:
    """Return where the probability is strictly greater, compared in float64."""
    # A Python float would be rounded to float32 first, and 0.2 as 51/255 would no longer exceed 0.2.
    inside: Mask = probability > np.float64(threshold)
    return inside


def import_ndimage() -> Any:
    """Return ``scipy.ndimage``.

    Raises
    ------
    MissingDependencyError
        If SciPy is not installed.
    """
    try:
        from scipy import ndimage
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "scipy":
            raise
        raise MissingDependencyError.of_extra(
            "scipy", extra="evaluate", purpose="finding the cells of a segmentation"
        ) from error
    return ndimage


def label_components(labels: Labels, *, neighbours: Literal[4, 8] = 4) -> npt.NDArray[np.intp]:
    """Number the connected regions of equal label of a slice (y, x) from 1; label 0 is no region.

    With eight neighbours, all that is not 0 is of one label.

    Raises
    ------
    MissingDependencyError
        If SciPy is not installed.

    Examples
    --------
    >>> label_components(np.array([[7, 7, 9], [0, 0, 9], [7, 0, 9]]))
    array([[1, 1, 2],
           [0, 0, 2],
           [3, 0, 2]])
    """
    ndimage = import_ndimage()
    mask = labels != 0
    if neighbours == 8:
        components = ndimage.label(mask, np.ones((3, 3)))[0]
    elif find_touching(labels) is None:
        components = ndimage.label(mask)[0]
    else:
        # Twice as fine: between two pixels lies one that is set only if they have one label.
        fine = np.zeros([2 * extent - 1 for extent in mask.shape], np.bool_)
        fine[::2, ::2] = mask
        fine[::2, 1::2] = mask[:, 1:] & (labels[:, 1:] == labels[:, :-1])
        fine[1::2, ::2] = mask[1:] & (labels[1:] == labels[:-1])
        components = ndimage.label(fine)[0][::2, ::2]
    return np.asarray(components, np.intp)


def find_touching(labels: Labels) -> tuple[int, int, int, int] | None:
    """Return y, x and label of a pixel, and the other label that is east or south of it; None if none touch."""
    if labels.dtype == np.bool_:
        return None
    for dy, dx in ((0, 1), (1, 0)):
        near, far = labels[: labels.shape[0] - dy, : labels.shape[1] - dx], labels[dy:, dx:]
        is_touching = (near != far) & (near != 0) & (far != 0)
        if is_touching.any():
            y, x = np.argwhere(is_touching)[0].tolist()
            return y, x, int(near[y, x]), int(far[y, x])
    return None


def _require_shapes(truth: tuple[int, ...], probability: tuple[int, ...]) -> None:
    if truth != probability:
        raise ShapeMismatchError(
            f"truth has shape {truth}, probability {probability}; they must be equal",
            "each pixel of the prediction is compared with the pixel of the truth at the same place",
            fix="crop both to the same region, or squeeze axes of extent 1",
        )
    if len(truth) not in (2, 3):
        raise UnsupportedAxesError(
            f"truth and probability have {len(truth)} axes {truth}; these metrics take (y, x) or (z, y, x)",
            "they are defined on single slices; time points and channels are evaluated one by one",
            fix="choose one channel and one time point, as in probability[t, c]",
        )
    if 0 in truth:
        raise ConfigurationError(
            f"truth and probability are empty: shape {truth}",
            "a score of no pixels means nothing",
            fix="give at least one pixel along each axis",
        )


def _require_dtypes(truth: np.dtype[Any], probability: np.dtype[Any]) -> None:
    if truth.kind not in "biu":
        raise UnsupportedDtypeError(
            f"truth has dtype {truth}, not integer or bool",
            "the truth says which pixels are inside a cell: 0 is membrane, 255 or the cell's id is inside",
            fix="give labels: (truth > 0).astype('uint8') if 0 is membrane there",
        )
    if probability.kind not in "bf" and probability != np.uint8:
        raise UnsupportedDtypeError(
            f"probability has dtype {probability}, not float, uint8 or bool",
            "it is the probability of the inside of cells, thresholded here: in [0, 1], or 8-bit and divided by 255",
            fix="divide by the largest value that stands for 1; of labels, give (labels > 0)",
        )


def _as_labels(labels: npt.NDArray[Any], z: int) -> Labels:
    if labels.dtype.kind == "i" and (lowest := int(labels.min())) < 0:
        raise ValueRangeError(
            f"truth holds the label {lowest} in slice {z}; labels are integers from 0",
            "0 is membrane; a negative label often marks pixels that were not annotated",
            fix="set those pixels to 0: truth[truth < 0] = 0",
        )
    return labels


def _as_probability(values: npt.NDArray[Any], z: int) -> Probability:
    if values.dtype == np.uint8:
        return values.astype(np.float32) / np.float32(255)
    lowest, highest = float(values.min()), float(values.max())
    if not (lowest >= 0 and highest <= 1):  # also where one of them is not a number
        raise ValueRangeError(
            f"probability goes from {lowest:g} to {highest:g} in slice {z}; it must stay in [0, 1]",
            "it is the probability of the inside of cells, not logits and not grey values",
            fix="divide by the largest value that stands for 1, or apply the sigmoid or softmax",
        )
    return values.astype(np.float32)
