"""Numbered objects from a segmentation into classes, for scores of objects.

The runtime makes no instances. Here they are the connected components of all classes but the first, found frame by
frame in memory, and nothing is done to them but dropping small ones: the scores are those of the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unet_deploy.cli._image_files import Plane
from unet_deploy.cli._pairing import Pair, Paired
from unet_deploy.cli._planes import read_instances
from unet_deploy.metrics import number_components


class Objects:
    """The objects of paired slices, whose predictions are class labels; those of one frame are kept at a time.

    Parameters
    ----------
    paired
        Slices of one frame are parts of one volume, and an object goes on from one to the next.
    min_size
        Objects of fewer pixels are dropped.
    """

    def __init__(self, paired: Paired, *, min_size: int) -> None:
        self._paired = paired
        self._min_size = min_size
        self._frames = dict(paired.frames())
        self._planes: dict[Pair, Plane] = {}

    def read(self, pair: Pair) -> Plane:
        """Return the objects of a slice, 0 for none; raises as `read_instances` and `number_components`."""
        if pair not in self._planes:
            pairs = self._frames[pair.frame]
            labels = np.stack([read_instances(self._paired, item)[1] for item in pairs])
            objects = number_components(labels != 0, min_size=self._min_size)
            self._planes = dict(zip(pairs, objects, strict=True))
        return self._planes[pair]

    def describe(self, class_names: Sequence[str]) -> str:
        """Say how objects are made of the classes."""
        named = " and ".join(f"{name!r}" for name in class_names[1:]) or "all classes but the first"
        is_deep = any(len(pairs) > 1 for pairs in self._frames.values())
        through = ", going on from slice to slice" if is_deep else ""
        dropped = f", those below {self._min_size} px dropped" if self._min_size else ""
        return f"objects are pixels of {named} connected by their sides{through}{dropped}"
