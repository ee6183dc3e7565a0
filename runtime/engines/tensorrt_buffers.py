"""Memory for a batch on its way: of the GPU, and page-locked on the host, where the GPU copies by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.runtime.engines.tensorrt_cudart import Bytes, Cuda
from unet_deploy.runtime.engines.tensorrt_network import Shape

Array = npt.NDArray[Any]


class Buffer:
    """Memory for one tensor, on both sides of the bus; it grows, and never shrinks."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self._array: Bytes | None = None
        self.n_bytes = 0
        self.device = 0
        self.host = 0

    def reserve(self, n_bytes: int) -> None:
        """Make room for so much; what was there before is lost."""
        if n_bytes <= self.n_bytes:
            return
        self.free()
        self.device = self._cuda.allocate(n_bytes, purpose="a batch on its way")
        self.host, self._array = self._cuda.allocate_pinned(n_bytes)
        self.n_bytes = n_bytes

    def view(self, shape: Shape, dtype: np.dtype[Any]) -> Array:
        """Return the host memory as an array."""
        assert self._array is not None
        return self._array[: n_bytes_of(shape, dtype)].view(dtype).reshape(shape)

    def free(self) -> None:
        """Give the memory back."""
        device, host = self.device, self.host
        self.device = self.host = self.n_bytes = 0
        self._array = None
        try:
            if device:
                self._cuda.free(device)
        finally:
            if host:
                self._cuda.free_pinned(host)


@dataclass(slots=True, kw_only=True, eq=False)
class Slot:
    """What one batch needs on its way."""

    buffers: dict[str, Buffer]
    copied_in: Any = None
    computed: Any = None
    copied_out: Any = None
    graph: Any = None
    shapes: dict[str, Shape] = field(default_factory=dict)


def n_bytes_of(shape: Shape, dtype: np.dtype[Any]) -> int:
    """Return how many bytes an array needs."""
    return int(np.prod(shape)) * dtype.itemsize
