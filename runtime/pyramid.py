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
    first = (a == b) | (a == c) | (a == d)
    second = (b == c) | (b == d)
    chosen: npt.NDArray[Any] = np.where(first, a, np.where(second, b, np.where(c == d, c, a)))
    return chosen


def _mean(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    a, b, c, d = _cells(values)
    total = a.astype(np.uint16)
    total += b
    total += c
    total += d
    total += 2
    total >>= 2
    return total.astype(np.uint8)


def _cells(values: npt.NDArray[Value]) -> Sequence[npt.NDArray[Value]]:
    """Return the four corners of each 2x2 cell; an odd last row or column is repeated."""
    odd_y, odd_x = values.shape[-2] % 2, values.shape[-1] % 2
    if odd_y or odd_x:
        values = np.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, odd_y), (0, odd_x)], mode="edge")
    return [np.ascontiguousarray(values[..., i::2, j::2]) for i in (0, 1) for j in (0, 1)]
