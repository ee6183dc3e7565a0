"""An engine in exact integer arithmetic, with the real network's receptive field and pooling grid.

It is the specification of tiling: an integer U-Net of the same depth (valid 3x3 convolutions, 2x2 max-pooling,
doubling, constant crops) on numbers modulo 2**16. What it computes for a pixel depends on exactly the pixels, and on
exactly the phase, that the real network depends on, and two ways of computing it agree to the last bit or are wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.card import Network
from unet_deploy.runtime.engines.base import Batch, ByteForm, ByteResult, EngineDescription, RawBatch
from unet_deploy.runtime.normalise import to_labels, to_probabilities

NAME = "fake"
MODULUS = 1 << 16
_TAPS = ((3, 5, 7), (11, 13, 17), (19, 23, 29))  # odd, all different: no pixel can hide behind another

IntegerMap = npt.NDArray[np.int64]


class FakeEngine:
    """See the module. `calls` counts batches and `shapes` collects their shapes, for tests.

    With `takes_bytes` it begins at raw pixels too, of any dtype, and has `AHEAD` batches on their way.
    """

    AHEAD = 2

    def __init__(self, network: Network, *, takes_bytes: bool = False) -> None:
        self._network = network
        self._takes_bytes = takes_bytes
        self._form: ByteForm | None = None
        self.calls = 0
        self.streamed = 0
        self.shapes: set[tuple[int, ...]] = set()

    def open(self) -> None:
        """Do nothing."""

    def infer(self, batch: Batch) -> Batch:
        """Return whole numbers below 2**16 as float32 logits, which holds them exactly."""
        self.calls += 1
        self.shapes.add(batch.shape)
        values = np.rint(batch).astype(np.int64)
        weights = np.arange(1, 2 * values.shape[1], 2)[:, None, None]
        result = self._run((values * weights).sum(axis=1))
        classes = [(result * (2 * k + 1) + 977 * k) % MODULUS for k in range(self._network.classes)]
        return np.stack(classes, axis=1).astype(np.float32)

    def open_bytes(self, form: ByteForm) -> bool:
        """Take any form, if it was made so."""
        self._form = form
        return self._takes_bytes

    def stream(self, batches: Iterable[RawBatch], *, gain: Batch, offset: Batch) -> Iterator[ByteResult]:
        """Yield results in order, each after later batches were read."""
        waiting: deque[RawBatch] = deque()
        for batch in batches:
            waiting.append(batch.copy())
            if len(waiting) > self.AHEAD:
                yield self._to_bytes(waiting.popleft(), gain, offset)
        while waiting:
            yield self._to_bytes(waiting.popleft(), gain, offset)

    def close(self) -> None:
        """Do nothing."""

    def describe(self) -> EngineDescription:
        """Say what this is."""
        return EngineDescription(engine=NAME, device="cpu", precision="fp32", provider="numpy", versions={})

    def _to_bytes(self, raw: RawBatch, gain: Batch, offset: Batch) -> ByteResult:
        assert self._form is not None
        self.streamed += 1
        logits = self.infer(raw.astype(np.float32) * gain[:, None, None] + offset[:, None, None])
        kinds = self._form.kinds
        return ByteResult(
            labels=np.stack([to_labels(one) for one in logits]) if "labels" in kinds else None,
            probabilities=np.stack([to_probabilities(one) for one in logits]) if "probabilities" in kinds else None,
            checksum=logits.sum(axis=(1, 2, 3)),
        )

    def _run(self, x: IntegerMap) -> IntegerMap:
        skips: list[IntegerMap] = []
        for level in range(self._network.depth + 1):
            if level:
                x = _pool(x)
            x = _convolve(_convolve(x))  # (n, y - 4, x - 4)
            skips.append(x)
        skips.pop()
        for margin in self._network.geometry.crop_margins:
            up = x.repeat(2, axis=1).repeat(2, axis=2)  # (n, 2y, 2x)
            skip = skips.pop()[:, margin:-margin, margin:-margin]
            x = _convolve(_convolve(3 * skip + 5 * up))
        return x


def _convolve(x: IntegerMap) -> IntegerMap:
    height, width = x.shape[1] - 2, x.shape[2] - 2
    total: Any = sum(
        tap * x[:, dy : dy + height, dx : dx + width] for dy, row in enumerate(_TAPS) for dx, tap in enumerate(row)
    )
    return np.asarray(total % MODULUS)


def _pool(x: IntegerMap) -> IntegerMap:
    n, height, width = x.shape
    return np.asarray(x.reshape(n, height // 2, 2, width // 2, 2).max(axis=(2, 4)))
