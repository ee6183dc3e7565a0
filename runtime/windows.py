"""Mirrored windows: the pixels a block needs, wherever its window lies.

1. Of a window, only the part that kept pixels depend on is *needed*; the rest exists to keep tiles at one shape.
2. `WindowPlan` says which real pixels that takes (one box, read once) and how to spread them over the window:
   mirrored at the volume's border, the last needed row repeated where nothing depends on it.
3. Tiles are then views of the window; nothing is read or mirrored twice within a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.geometry import AxisTile, Geometry, Interval, mirror_index, mirrored_source
from unet_deploy.runtime.timeline import span


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """How to fill one axis of a window from real pixels.

    `source` is what to read, inside the volume. Where the window needs no mirroring, `index` is None; otherwise it
    holds, for each pixel of the window, its position within `source`.
    """

    window: Interval
    source: Interval
    index: tuple[int, ...] | None


def needed_window(geometry: Geometry, region: Interval) -> Interval:
    """Return what the pixels of a region depend on, along an axis; it may leave the volume.

    >>> from unet_deploy.geometry import UnetGeometry
    >>> needed_window(UnetGeometry(4), Interval(512, 1000))
    Interval(start=420, stop=1104)
    """
    first = region.start // geometry.divisor * geometry.divisor
    last = -(-region.stop // geometry.divisor) * geometry.divisor
    return Interval(first - geometry.context, last + geometry.context + geometry.surplus)


def plan_window(geometry: Geometry, tiles: Sequence[AxisTile], extent: int) -> WindowPlan:
    """Plan the window that covers `tiles`, along an axis of `extent` pixels.

    >>> from unet_deploy.geometry import cover_axis
    >>> from unet_deploy.geometry import UnetGeometry
    >>> g = UnetGeometry(1)
    >>> plan = plan_window(g, cover_axis(g, Interval(0, 10), 26), 10)
    >>> plan.window, plan.source, plan.index[:9]
    (Interval(start=-8, stop=18), Interval(start=0, stop=10), (8, 7, 6, 5, 4, 3, 2, 1, 0))
    """
    window = Interval(tiles[0].read.start, tiles[-1].read.stop)
    needed = needed_window(geometry, Interval(tiles[0].keep.start, tiles[-1].keep.stop))
    source = mirrored_source(needed, extent)
    if needed == window == source:
        return WindowPlan(window, source, None)
    return WindowPlan(window, source, _find_positions(window, needed.stop - 1, extent, source.start))


@lru_cache(maxsize=64)  # of a run's windows few are at a border, and many blocks have the same
def _find_positions(window: Interval, last: int, extent: int, first: int) -> tuple[int, ...]:
    """Return where within a source that begins at `first` the pixels of a window come from."""
    return tuple(mirror_index(min(i, last), extent) - first for i in range(window.start, window.stop))


def spread(pixels: npt.NDArray[Any], y: WindowPlan, x: WindowPlan) -> npt.NDArray[Any]:
    """Return the window's pixels from the box that was read.

    Parameters
    ----------
    pixels
        (..., y, x) of any dtype, exactly ``y.source`` × ``x.source``.

    Returns
    -------
    numpy.ndarray
        (..., y, x) of the same dtype, exactly ``y.window`` × ``x.window``; `pixels` itself where nothing is mirrored.
    """
    assert pixels.shape[-2:] == (y.source.size, x.source.size), (pixels.shape, y.source, x.source)
    with span("mirror"):
        if y.index is not None:
            pixels = np.take(pixels, y.index, axis=-2)
        if x.index is not None:
            pixels = np.take(pixels, x.index, axis=-1)
    return pixels
