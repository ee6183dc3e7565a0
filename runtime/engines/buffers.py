"""Arrays that are used again: memory that the system gives for the first time takes longer to get than to fill."""

from __future__ import annotations

from collections import deque

import numpy as np

from unet_deploy.runtime.engines.base import Batch

MOST = 2
"""One is read by the engine while the other is filled."""


class Buffers:
    """Batches' memory for the next ones, of this block or another; safe to use from several threads.

    >>> buffers = Buffers()
    >>> first = buffers.take((1, 1, 4, 4))
    >>> buffers.give(first)
    >>> buffers.take((1, 1, 4, 4)) is first
    True
    """

    def __init__(self) -> None:
        self._free: deque[Batch] = deque(maxlen=MOST)  # what comes when it is full drives out the oldest

    def take(self, shape: tuple[int, ...]) -> Batch:
        """Return float32 of a shape, whose values are anything; the caller's until it is given back, if ever."""
        try:
            buffer = self._free.pop()
        except IndexError:
            return np.empty(shape, np.float32)
        return buffer if buffer.shape == shape else np.empty(shape, np.float32)

    def give(self, buffer: Batch) -> None:
        """Take back what nobody reads or writes any more."""
        self._free.append(buffer)
