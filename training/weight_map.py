"""The weight of each pixel in the loss (Ronneberger et al. 2015, section 3, equation 2).

``w(x) = w_c(x) + w_0 · exp(-(d1(x) + d2(x))² / 2σ²)``, with w_0 = 10 and σ = 5 px in the paper.

1. `separate_touching` puts background between cells that touch, so that there is something to learn.
2. `class_weights` gives w_c: it balances how often the classes occur in the training images.
3. `border_term` gives the second term, on pixels outside the cells: d1 and d2 are the Euclidean distances, in pixels,
   to the nearest and the second nearest cell, exact (scipy's distance transform). A cell further than `reach_px` adds
   less than a millionth, so each cell is looked at in a window around it: the cost follows the cells' area, not their
   number.
4. `weight_map` adds the two and puts 0 where the annotation says nothing.

Inside the cells the second term is left out: the paper's figure 3d shows it on the background alone, where it teaches
the gaps. An image with no cell or a single one has no second distance, hence no second term.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import MissingDependencyError

NEGLIGIBLE = 1e-6


def weight_map(
    label: npt.NDArray[np.uint8],
    cells: npt.NDArray[np.int32] | None,
    *,
    class_weights: Sequence[float],
    border_weight: float,
    border_sigma_px: float,
    ignored: npt.NDArray[np.bool_] | None = None,
) -> npt.NDArray[np.float32]:
    """Return the loss's weight of each pixel of one annotated image.

    Parameters
    ----------
    label
        uint8, (y, x): the class index of each pixel.
    cells
        int32, (y, x): a number for each cell, 0 elsewhere, cells already separated (`separate_touching`); None leaves
        the border term out.
    class_weights
        w_c of each class index.
    border_weight, border_sigma_px
        w_0 and σ; the paper has 10 and 5 px.
    ignored
        bool, (y, x): pixels that must not influence the training; their weight is 0.

    Returns
    -------
    numpy.ndarray
        float32, (y, x).
    """
    weights = np.asarray(class_weights, np.float32)[label]
    if cells is not None and border_weight > 0:
        weights += border_term(cells, border_weight=border_weight, border_sigma_px=border_sigma_px)
    if ignored is not None:
        weights[ignored] = 0
    return weights


def border_term(cells: npt.NDArray[Any], *, border_weight: float, border_sigma_px: float) -> npt.NDArray[np.float32]:
    """Return ``w_0 · exp(-(d1 + d2)² / 2σ²)`` outside the cells, 0 inside; float32, (y, x).

    Parameters
    ----------
    cells
        Integer, (y, x): a number for each cell, 0 elsewhere.
    border_weight, border_sigma_px
        w_0 and σ.
    """
    nearest, second = two_distances(cells, reach_px=reach_px(border_weight, border_sigma_px))
    with np.errstate(under="ignore"):
        term = border_weight * np.exp(-((nearest + second) ** 2) / (2 * border_sigma_px**2))
    term[cells > 0] = 0
    return np.asarray(term, np.float32)


def reach_px(border_weight: float, border_sigma_px: float) -> int:
    """Return the distance in pixels from which on a second cell adds less than `NEGLIGIBLE`.

    >>> reach_px(10, 5)
    29
    """
    return math.ceil(border_sigma_px * math.sqrt(2 * math.log(max(border_weight / NEGLIGIBLE, 1.0))))


def two_distances(cells: npt.NDArray[Any], *, reach_px: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return the distance of each pixel to the nearest and to the second nearest cell; float32, (y, x), in pixels.

    Distances go from pixel centre to pixel centre of the cell, and are exact up to `reach_px`; beyond, they are
    infinite.
    """
    try:
        from scipy import ndimage
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "scipy":
            raise
        raise MissingDependencyError.of_extra("scipy", extra="train", purpose="the weight map") from error
    nearest = np.full(cells.shape, np.inf, np.float32)
    second = np.full(cells.shape, np.inf, np.float32)
    inside = cells > 0
    dense = np.zeros(cells.shape, np.int32)  # numbers without gaps: scipy's list is as long as the greatest
    dense[inside] = np.unique(cells[inside], return_inverse=True)[1] + 1
    for index, box in enumerate(ndimage.find_objects(dense), start=1):
        window = tuple(
            slice(max(s.start - reach_px, 0), min(s.stop + reach_px, side))
            for s, side in zip(box, cells.shape, strict=True)
        )
        distance = ndimage.distance_transform_edt(dense[window] != index).astype(np.float32)
        distance[distance > reach_px] = np.inf
        first, next_ = nearest[window], second[window]
        np.minimum(next_, np.maximum(first, distance), out=next_)  # the second of three, the first two being in order
        np.minimum(first, distance, out=first)
    return nearest, second


def separate_touching(instances: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return the cells with background between those that touch: a line two pixels wide, one of each cell.

    A pixel becomes background if another cell lies among its eight neighbours: a morphological dilation of each cell,
    taken from all others. A cell that would vanish by that, being no thicker than the line, keeps its pixels; two such
    cells still touch.

    Parameters
    ----------
    instances
        Integer, (y, x): a number for each cell, 0 is background.

    Examples
    --------
    >>> separate_touching(np.array([[1, 1, 1, 2, 2, 2]])).tolist()
    [[1, 1, 0, 0, 2, 2]]
    """
    cells: npt.NDArray[np.int32] = np.array(instances, np.int32)
    padded = np.pad(cells, 1)
    height, width = cells.shape
    touches = np.zeros(cells.shape, np.bool_)
    for y in range(3):
        for x in range(3):
            neighbour = padded[y : y + height, x : x + width]
            touches |= (neighbour > 0) & (neighbour != cells)
    touches &= cells > 0
    left = np.setdiff1d(cells[touches], cells[~touches])
    cells[touches & ~np.isin(cells, left)] = 0
    return cells


def class_weights(class_pixels: Sequence[int], balance: float) -> tuple[float, ...]:
    """Return w_c of each class: its frequency to the power of -`balance`, scaled so that the mean over pixels is 1.

    With balance 1 every class has the same total weight; with 0 every pixel has weight 1. A class that does not occur
    has weight 0.

    >>> class_weights((300, 100), 1)
    (0.6666666666666666, 2.0)
    """
    total = sum(class_pixels)
    raw = [(n / total) ** -balance if n else 0.0 for n in class_pixels]
    mean = math.fsum(w * n / total for w, n in zip(raw, class_pixels, strict=True))
    return tuple(w / mean for w in raw)
