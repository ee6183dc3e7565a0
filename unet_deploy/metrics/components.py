"""Numbered objects from a mask: its connected components, and nothing else.

1. Pixels that share a side are of one object: 4 neighbours in a slice (y, x), 6 in a volume (z, y, x).
2. Objects of fewer pixels than `min_size` become background; those that stay are numbered from 1, in scanning order.

There is no other post-processing, so that the scores of such objects are those of the network.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import ConfigurationError
from unet_deploy.metrics._isbi_input import import_ndimage


def require_scipy() -> None:
    """Find out, before any work, whether cells can be told apart at all.

    Raises
    ------
    MissingDependencyError
        If SciPy is not installed.
    """
    import_ndimage()


def number_components(mask: npt.NDArray[np.bool_], *, min_size: int = 0) -> npt.NDArray[np.int32]:
    """Number the connected components of a mask.

    Parameters
    ----------
    mask
        bool (y, x) or (z, y, x).
    min_size
        Components of fewer pixels are dropped.

    Returns
    -------
    numpy.ndarray
        int32 instances of the same shape, 0 background.

    Raises
    ------
    ConfigurationError
        If `min_size` is negative.
    MissingDependencyError
        If SciPy is not installed.

    Examples
    --------
    >>> number_components(np.array([[1, 0, 1, 1], [0, 1, 0, 1]], bool))
    array([[1, 0, 2, 2],
           [0, 3, 0, 2]], dtype=int32)
    >>> number_components(np.array([[1, 0, 1, 1], [0, 1, 0, 1]], bool), min_size=2)
    array([[0, 0, 1, 1],
           [0, 0, 0, 1]], dtype=int32)
    """
    if min_size < 0:
        raise ConfigurationError(
            f"smallest object of {min_size} px: the size cannot be negative",
            "connected components of fewer pixels become background",
            fix="min_size=0 keeps them all",
        )
    ndimage = import_ndimage()
    components = np.empty(mask.shape, np.int32)
    count = ndimage.label(mask, output=components)
    if min_size > 1:
        is_kept = np.bincount(components.ravel(), minlength=count + 1) >= min_size
        is_kept[0] = False
        new = np.zeros(count + 1, np.int32)
        new[is_kept] = np.arange(1, is_kept.sum() + 1, dtype=np.int32)
        components = new[components]
    return components
