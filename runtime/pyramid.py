"""What a pyramid's coarser pixels are: 2 × 2 cells of y and x, by their mode or their mean. Arrays in, arrays out.

Arrays are reduced a strip of rows at a time: comparing and adding need several times the memory of what is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Value = TypeVar("Value", bound=np.generic)

STRIP_ROWS = 128
"""Even, so that no cell is cut."""


def reduce_mode(values: npt.NDArray[Value]) -> npt.NDArray[Value]:
    """Return the most frequent value of each 2x2 cell of (..., y, x); on a tie the first in reading order.

    >>> reduce_mode(np.array([[1, 2], [3, 2]], np.uint8))
    array([[2]], dtype=uint8)
    """
    return _by_strips(values, _mode)


def reduce_mean(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Return the mean of each 2x2 cell of (..., y, x), rounded half up."""
    return _by_strips(values, _mean)


def _by_strips(
    values: npt.NDArray[Value], reduce: Callable[[npt.NDArray[Value]], npt.NDArray[Value]]
) -> npt.NDArray[Value]:
    *others, rows, columns = values.shape
    result = np.empty((*others, -(-rows // 2), -(-columns // 2)), values.dtype)
    for top in range(0, rows, STRIP_ROWS):
        result[..., top // 2 : (top + STRIP_ROWS) // 2, :] = reduce(values[..., top : top + STRIP_ROWS, :])
    return result


def _mode(values: npt.NDArray[Value]) -> npt.NDArray[Value]:
    a, b, c, d = _cells(values)
    is_first = a == b
    is_first |= a == c
    is_first |= a == d
    rest = np.flatnonzero(~is_first)  # few, but where labels are noise: along outlines
    if not rest.size:
        return a
    first, second, third, fourth = (corner.reshape(-1)[rest] for corner in (a, b, c, d))
    is_second = (second == third) | (second == fourth)
    a.reshape(-1)[rest] = np.where(is_second, second, np.where(third == fourth, third, first))
    return a


def _mean(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    upper, lower = _pairs(values)
    total = upper & 255
    total += lower & 255
    total += upper >> 8
    total += lower >> 8
    total += 2
    total >>= 2
    return total.astype(np.uint8)


def _cells(values: npt.NDArray[Value]) -> Sequence[npt.NDArray[Any]]:
    """Return the four corners of each 2x2 cell, as new arrays; an odd last row or column is repeated."""
    if values.dtype == np.uint8:
        upper, lower = _pairs(values)
        return [corner.astype(np.uint8) for corner in (upper, upper >> 8, lower, lower >> 8)]  # the low byte of each
    values = _even(values)
    return [values[..., i::2, j::2].copy() for i in (0, 1) for j in (0, 1)]


def _pairs(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint16]]:
    """Return upper and lower rows of the cells, two bytes of a row as one number, the left one low.

    A processor takes these apart many at once; every other byte it would take one by one.
    """
    pairs = np.ascontiguousarray(_even(values)).view("<u2")
    return pairs[..., 0::2, :], pairs[..., 1::2, :]


def _even(values: npt.NDArray[Value]) -> npt.NDArray[Value]:
    odd_y, odd_x = values.shape[-2] % 2, values.shape[-1] % 2
    if odd_y or odd_x:
        return np.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, odd_y), (0, odd_x)], mode="edge")
    return values
