"""Percentiles of grey values: one definition, for a training image in memory and for a volume streamed from a disk.

1. The percentile q of n values is the one of rank floor(q / 100 · (n - 1)), counted from 0 in ascending order: always
   a value that occurs (numpy's ``method="lower"``), computed in whole numbers from q as it is written in decimal.
2. Every data type is mapped to unsigned keys of as many bits that sort like its values.
3. The rank is found digit by digit, 16 bits each, the highest first: count the next digit of all keys that begin like
   the one sought, and step to where the counts reach the rank. 8 and 16 bit take one pass, 32 bit two.
4. Counts of parts add up to those of the whole. So the result is exact, and the same bit for bit however the values
   were cut into parts; the memory is that of 65,536 counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import UnsupportedDtypeError, ValueRangeError

DIGIT_BITS = 16
PART_VALUES = 2**20
"""So many values are counted at a time: counting needs 8 bytes for each."""

Pixels = npt.NDArray[Any]
Counts = npt.NDArray[np.int64]


def percentile_range(
    image: Pixels, percentiles: tuple[float, float], *, source: str = "the image"
) -> tuple[float, float]:
    """Return the grey values at two percentiles of one channel.

    Parameters
    ----------
    image
        Any shape and number type; all values are taken together.
    percentiles
        Two of 0..100, low first.
    source
        What the image is, for the message.

    Returns
    -------
    tuple of float
        Two values of the image; equal if it is constant, or nearly so (see `span_of`).

    Raises
    ------
    ValueRangeError
        If the image holds NaN or infinity.
    UnsupportedDtypeError
        If its values are no real numbers of at most 64 bit.

    Examples
    --------
    >>> percentile_range(np.arange(1001, dtype=np.uint16), (1, 99.8))
    (10.0, 998.0)
    """
    image = np.asarray(image)
    search = PercentileSearch.begin(str(image.dtype), image.size, percentiles, source=source)
    while not search.is_done:
        search = search.narrowed(search.count(image, source=source))
    return search.values


def scale_by_percentiles(
    image: Pixels, percentiles: tuple[float, float], *, source: str = "the image"
) -> npt.NDArray[np.float32]:
    """Return one channel scaled so that its own percentiles become 0 and 1; float32, the shape as it was.

    Parameters and exceptions as of `percentile_range`.

    >>> scale_by_percentiles(np.array([2, 3, 4, 10], np.uint8), (0, 100)).tolist()
    [0.0, 0.125, 0.25, 1.0]
    """
    return scale_by_range(image, percentile_range(image, percentiles, source=source))


def scale_by_range(image: Pixels, grey_range: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Return one channel scaled so that the two grey values become 0 and 1; float32, the shape as it was."""
    return np.asarray((np.asarray(image, np.float64) - grey_range[0]) / span_of(grey_range), np.float32)


def span_of(grey_range: tuple[float, float]) -> float:
    """Return what a range's width is divided by: 1 where its ends are one value, so that a constant volume is 0.

    >>> span_of((10.0, 250.0)), span_of((7.0, 7.0))
    (240.0, 1.0)
    """
    low, high = grey_range
    return high - low if high > low else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PercentileSearch:
    """The search for two percentiles of one channel, whose values pass by once for each digit.

    `ranks` are counted among the values that begin with the `prefixes` found in `passed` passes.
    """

    dtype: str
    ranks: tuple[int, int]
    prefixes: tuple[int, int] = (0, 0)
    passed: int = 0

    @classmethod
    def begin(
        cls, dtype: str, count: int, percentiles: tuple[float, float], *, source: str = "the image"
    ) -> PercentileSearch:
        """Return the search among `count` values of a data type; see `percentile_range`."""
        kind = np.dtype(dtype)
        if kind.kind not in "buif" or kind.itemsize > 8:
            raise UnsupportedDtypeError(
                f"{kind.name} came, numbers of at most 64 bit were expected to take percentiles of",
                f"in {source}",
                fix="convert it to uint8, uint16, int16 or float32",
            )
        low, high = percentiles
        assert 0 <= low < high <= 100, percentiles
        assert count > 0, "no values came"
        return cls(dtype=kind.newbyteorder("=").str, ranks=(rank_of(low, count), rank_of(high, count)))

    @property
    def n_passes(self) -> int:
        """How often all values must pass by."""
        return -(-np.dtype(self.dtype).itemsize * 8 // DIGIT_BITS)

    @property
    def is_done(self) -> bool:
        """Whether the values are found."""
        return self.passed == self.n_passes

    def count(self, values: Pixels, *, source: str) -> Counts:
        """Return how often each next digit occurs among the values that begin with each prefix: (prefixes, digits).

        Counts of parts are to be added. Refuses NaN and infinity as `percentile_range`.
        """
        starts = sorted(set(self.prefixes))
        counts = np.zeros((len(starts), 1 << min(DIGIT_BITS, self._bits)), np.int64)
        for part in _parts(values):
            if self.passed == 0:
                _require_finite(part, source)
            keys = _to_keys(part, self.dtype)
            shift = self._bits - min(DIGIT_BITS, self._bits) * (self.passed + 1)
            heads = keys if shift == 0 else keys >> keys.dtype.type(shift)  # everything down to the next digit
            for index, prefix in enumerate(starts):
                chosen = heads if self.passed == 0 else heads[heads >> heads.dtype.type(DIGIT_BITS) == prefix]
                digits = chosen & heads.dtype.type(counts.shape[1] - 1)
                counts[index] += np.bincount(digits.astype(np.intp), minlength=counts.shape[1])
        return counts

    def narrowed(self, counts: Counts) -> PercentileSearch:
        """Return the search with one more digit known, from the counts of all values."""
        starts = sorted(set(self.prefixes))
        found: list[tuple[int, int]] = []
        for rank, prefix in zip(self.ranks, self.prefixes, strict=True):
            total = counts[starts.index(prefix)].cumsum()
            digit = int(np.searchsorted(total, rank, side="right"))
            assert digit < total.size, "fewer values passed by than were announced"
            found.append((rank - (int(total[digit - 1]) if digit else 0), prefix * counts.shape[1] + digit))
        (low, first), (high, last) = found
        return PercentileSearch(dtype=self.dtype, ranks=(low, high), prefixes=(first, last), passed=self.passed + 1)

    @property
    def values(self) -> tuple[float, float]:
        """The grey values at the percentiles, once done."""
        assert self.is_done, self
        low, high = _from_keys(self.prefixes, self.dtype)
        return low, high

    @property
    def _bits(self) -> int:
        return np.dtype(self.dtype).itemsize * 8


def rank_of(percentile: float, count: int) -> int:
    """Return the rank, from 0, of a percentile of `count` values.

    >>> rank_of(99.8, 1001)  # in binary fractions it would be 997
    998
    """
    return math.floor(Fraction(repr(float(percentile))) * (count - 1) / 100)


def _parts(values: Pixels) -> Iterator[Pixels]:
    flat = values.reshape(-1)
    for start in range(0, flat.size, PART_VALUES):
        yield flat[start : start + PART_VALUES]


def _require_finite(values: Pixels, source: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueRangeError(
            "grey values that are no numbers came, where the percentiles of all were to be taken",
            f"{source} holds NaN or infinity",
            fix="replace them by a grey value",
        )


def _to_keys(values: Pixels, dtype: str) -> Pixels:
    """Return unsigned integers of the values' size that sort like the values."""
    native = np.ascontiguousarray(values, dtype=dtype)
    bits = native.dtype.itemsize * 8
    keys: Pixels = native.view(f"u{native.dtype.itemsize}")
    sign = keys.dtype.type(1 << (bits - 1))
    if native.dtype.kind == "i":
        keys = keys ^ sign
    if native.dtype.kind == "f":  # negative numbers sort backwards: all their bits are turned
        keys = np.where(keys & sign, ~keys, keys | sign)
    return keys


def _from_keys(keys: Sequence[int], dtype: str) -> list[float]:
    """Return the values of keys made by `_to_keys`."""
    kind = np.dtype(dtype)
    unsigned = np.array(keys, f"u{kind.itemsize}")
    sign = unsigned.dtype.type(1 << (kind.itemsize * 8 - 1))
    if kind.kind == "i":
        unsigned = unsigned ^ sign
    if kind.kind == "f":
        unsigned = np.where(unsigned & sign, unsigned ^ sign, ~unsigned)
    return [float(value) + 0.0 for value in unsigned.view(kind)]  # + 0.0: no negative zero
