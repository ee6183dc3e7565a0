"""The training images' histogram, as something that other grey values can be compared with. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unet_deploy.card import ModelCard

FEWEST_BINS = 8
"""A histogram that lies within fewer bins is too coarse to tell shapes by."""
FARTHEST = 8
"""Values are taken to lie at most so many value ranges away: a distance need not grow for ever."""
SPAN = (0.5, 99.5)
"""The percentiles between which grey values are said to span."""

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reference:
    """The training histogram: `shares` of equal bins of `width`, the first of which begins at `low`."""

    low: float
    width: float
    shares: Floats

    @classmethod
    def of(cls, card: ModelCard) -> Reference | None:
        """Return a card's; None where it has none."""
        if card.histogram is None or not any(card.histogram.counts):
            return None
        counts = np.array(card.histogram.counts, np.float64)
        low, high = card.histogram.value_range
        return cls(low=low, width=(high - low) / counts.size, shares=counts / counts.sum())

    @property
    def spread(self) -> float:
        """The standard deviation, at least a bin's own."""
        places = np.arange(self.shares.size)
        mean = (self.shares * places).sum()
        return self.width * math.sqrt((self.shares * (places - mean) ** 2).sum() + 1 / 12)

    def percentile(self, q: float) -> float:
        """Return the grey value at a percentile, as if values were spread evenly within each bin."""
        total = np.concatenate([[0.0], self.shares.cumsum()])
        return self.low + self.width * float(np.interp(q / 100, total, np.arange(total.size)))

    def bins(self, values: Floats) -> npt.NDArray[np.int64]:
        """Return the bins that values fall into; the same bins go on below and above."""
        n = self.shares.size
        places = np.floor(np.clip((values - self.low) / self.width, -FARTHEST * n, (1 + FARTHEST) * n))
        at_end = values == self.low + self.width * n  # as numpy.histogram: the last bin has its upper end
        return np.where(at_end, n - 1, places).astype(np.int64)

    def distance(self, values: Floats, counts: Counts) -> float:
        """Return the earth mover's distance to a histogram, in units of the spread."""
        places = self.bins(values)
        first, last = min(int(places.min()), 0), max(int(places.max()) + 1, self.shares.size)
        theirs = np.bincount(places - first, weights=counts, minlength=last - first)
        ours = np.zeros(last - first)
        ours[-first : self.shares.size - first] = self.shares
        moved = np.abs(np.cumsum(theirs / theirs.sum() - ours)).sum()
        return float(moved * self.width / self.spread)

    @property
    def is_coarse(self) -> bool:
        """Whether it lies within too few bins to tell its shape."""
        return self.percentile(SPAN[1]) - self.percentile(SPAN[0]) < FEWEST_BINS * self.width

    def scaled_distance(
        self, values: Floats, counts: Counts, span: tuple[float, float], percentiles: tuple[float, float]
    ) -> float:
        """Return the distance once the grey values of `span` are brought to the training images' at two percentiles."""
        low, high = (self.percentile(q) for q in percentiles)
        return self.distance(low + (values - span[0]) / (span[1] - span[0]) * (high - low), counts)


def percentile_of(values: Floats, counts: Counts, q: float) -> float:
    """Return the percentile of values that occur so often: always one of them."""
    total = counts.cumsum()
    return float(values[np.searchsorted(total, q / 100 * total[-1])])
