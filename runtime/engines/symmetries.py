"""The mean over the 8 symmetries of the square (``--tta``): turned and mirrored inputs, results turned back.

1. The network runs on each tile as it is, mirrored along y, along x, along both, and on the transposes of these four:
   together the 4 quarter turns with and without a mirror. (The paper averages over 7 turned copies; section 3.1.)
2. Each result is turned back and the logits are added in this order; their sum times 1/8, which is exact in floating
   point, is the result.
3. One copy runs at a time, so memory is that of the plain network. A tile that is not square has its sides exchanged
   in half of the copies; both sides are legal, so its transpose is.

Why this is as seamless as the plain network. A pixel's result depends on where the pooling grid lies. Every tile, and
the window of one pass over the whole plane, starts at a core's start minus the context, 6·2**d - 4, and has a side
n = k·2**d - 4 (`unet_deploy.geometry`). So it starts at 4 and stops at 0 modulo the divisor, in volume coordinates, on
both axes and whatever its size. In a mirrored copy the grid is counted from the stop, which is therefore the same grid
for every tile; transposing exchanges the axes, whose grids are alike. So each of the 8 results is a function of the
position in the volume alone, and so is their mean. What a mirrored copy sees of the volume is not more than
`runtime.windows` provides: a kept pixel below a multiple a of the divisor depends on nothing from a + context + surplus
on, in either direction of counting.

The test tensor is replayed through the plain network: this is a way of using it, not another network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np

from unet_deploy.geometry import Geometry
from unet_deploy.runtime.cost import TTA_PASSES
from unet_deploy.runtime.engines.base import Batch, ByteForm, ByteResult, EngineDescription, RawBatch
from unet_deploy.runtime.engines.buffers import Buffers
from unet_deploy.runtime.engines.constant_tiles import ConstantAnswers
from unet_deploy.runtime.engines.memory import Ladder


class TileEngine(Protocol):
    """What turns tiles into logits: a `CheckedEngine`, or one averaged over symmetries.

    `ladder` is its memory's, `answers` what it said of constant tiles, `buffers` are for its inputs, and `passes` is
    how often the network runs for one.
    """

    classes: int
    geometry: Geometry
    ladder: Ladder
    answers: ConstantAnswers
    buffers: Buffers
    passes: int

    def infer(self, batch: Batch) -> Batch:
        """Return logits (n, classes, y - 2·context, x - 2·context) for float32 (n, c, y, x)."""

    def open_bytes(self, form: ByteForm) -> bool:
        """Tell whether raw batches are taken, and get ready for them."""

    def feed(
        self,
        batches: Callable[[], Iterator[RawBatch]],
        form: ByteForm,
        *,
        n_batches: int,
        take: Callable[[int, ByteResult], None],
        gain: Batch,
        offset: Batch,
    ) -> None:
        """Run raw batches; see `CheckedEngine.feed`."""

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep the engine to this thread."""
        yield

    def describe(self) -> EngineDescription:
        """Say what runs the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symmetry:
    """Mirror along y, along x, then transpose: each of the 8 symmetries of the square is one such choice.

    Examples
    --------
    >>> quarter = Symmetry(mirrors_y=False, mirrors_x=True, transposes=True)
    >>> image = np.arange(6).reshape(2, 3)
    >>> quarter.apply(image).tolist()
    [[2, 5], [1, 4], [0, 3]]
    >>> quarter.undo(quarter.apply(image)).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """

    mirrors_y: bool
    mirrors_x: bool
    transposes: bool

    def apply(self, images: Batch) -> Batch:
        """Return a view of (..., y, x), turned."""
        images = images[..., :: -1 if self.mirrors_y else 1, :: -1 if self.mirrors_x else 1]
        return images.swapaxes(-2, -1) if self.transposes else images

    def undo(self, images: Batch) -> Batch:
        """Return a view of (..., y, x), turned back."""
        images = images.swapaxes(-2, -1) if self.transposes else images
        return images[..., :: -1 if self.mirrors_y else 1, :: -1 if self.mirrors_x else 1]


SYMMETRIES = tuple(
    Symmetry(mirrors_y=mirrors_y, mirrors_x=mirrors_x, transposes=transposes)
    for transposes, mirrors_y, mirrors_x in product((False, True), repeat=3)
)
"""All 8, the identity first."""

assert len(SYMMETRIES) == TTA_PASSES


class SymmetricEngine:
    """An open engine, averaged over `SYMMETRIES`.

    Parameters
    ----------
    engine
        The engine; it stays the caller's, and open.
    """

    def __init__(self, engine: TileEngine) -> None:
        self._engine = engine
        self.classes = engine.classes
        self.geometry = engine.geometry
        self.ladder = engine.ladder  # one copy runs at a time: what holds the plain network holds this
        self.answers = engine.answers  # told apart by the passes
        self.buffers = engine.buffers
        self.passes = TTA_PASSES

    def infer(self, batch: Batch) -> Batch:
        """Return the mean logits of a batch of tiles, as `CheckedEngine.infer` does the plain ones."""
        total: Batch | None = None
        with self._engine.reserved():
            for symmetry in SYMMETRIES:
                turned = np.ascontiguousarray(symmetry.apply(batch))
                logits = symmetry.undo(self._engine.infer(turned))
                if total is None:
                    total = logits.copy()  # to be added to
                else:
                    total += logits
        assert total is not None
        total *= np.float32(1 / TTA_PASSES)
        return total

    def open_bytes(self, form: ByteForm) -> bool:  # noqa: ARG002  # no form can be taken
        """Tell that raw batches cannot be taken: the mean is one of logits, which bytes are not."""
        return False

    def feed(  # `open_bytes` says that it is not to be used
        self,
        batches: Callable[[], Iterator[RawBatch]],  # noqa: ARG002
        form: ByteForm,  # noqa: ARG002
        *,
        n_batches: int,  # noqa: ARG002
        take: Callable[[int, ByteResult], None],  # noqa: ARG002
        gain: Batch,  # noqa: ARG002
        offset: Batch,  # noqa: ARG002
    ) -> None:
        """Not to be used, as `open_bytes` says."""
        raise AssertionError("the mean over symmetries has no byte form")

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep the engine to this thread."""
        with self._engine.reserved():
            yield

    def describe(self) -> EngineDescription:
        """Say what runs the network."""
        return self._engine.describe()
