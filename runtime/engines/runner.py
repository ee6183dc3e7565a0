"""From a tile's raw pixels to labels and probabilities in their place: on the host, or by an engine that takes bytes.

1. A `TileWork` carries both maps: the raw pixels, as a view of the window, and the views that its results go to.
2. `HostRunner` normalises here, has the engine compute logits, and turns them into bytes here.
3. `ByteRunner` sends raw pixels and gets bytes; the engine computes while later tiles are gathered and earlier ones
   written. Bytes cannot hold a NaN: a tile whose logits do not sum to a number goes through the host once more, which
   then says whether a pixel that is kept is meant.
4. `choose_runner` takes the second where the engine offers it. Its input is value · gain + offset in float32, which
   loses what `MAX_OFFSET` bounds; a volume of tiny contrast on a high pedestal is normalised on the host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unet_deploy.runtime.engines.base import Batch, ByteForm
from unet_deploy.runtime.engines.symmetries import TileEngine
from unet_deploy.runtime.layout import Kind
from unet_deploy.runtime.normalise import Normaliser, is_finite, to_labels, to_probabilities

Bytes = npt.NDArray[np.uint8]
MAX_OFFSET = 256.0
"""Of normalised values, which are of the order of 1: float32 has then 16 bits left below the point."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TileWork:
    """One tile: `raw` (c, y, x) to read, what to keep of its output, and where to write that.

    `labels` (y, x) and `probabilities` (classes, y, x) are views of the result, None for what is not wanted; `z` is the
    plane within the block.
    """

    z: int
    raw: npt.NDArray[Any]
    crop: tuple[slice, slice]
    labels: Bytes | None
    probabilities: Bytes | None


class Runner(Protocol):
    """What computes tiles."""

    def run(self, groups: Iterable[Sequence[TileWork]]) -> Iterator[TileWork]:
        """Compute the tiles, a group a batch, and write their results; yield those whose logits are not all numbers."""


class HostRunner:
    """Normalises and labels on the host.

    Parameters
    ----------
    engine, normaliser
        What turns raw tiles into logits.
    """

    def __init__(self, engine: TileEngine, normaliser: Normaliser) -> None:
        self._engine, self._normaliser = engine, normaliser

    def run(self, groups: Iterable[Sequence[TileWork]]) -> Iterator[TileWork]:
        """Compute the tiles; see `Runner`."""
        inputs: Batch | None = None
        for group in groups:
            if inputs is None or inputs.shape[0] < len(group):
                inputs = np.empty((len(group), *group[0].raw.shape), np.float32)
            for work, place in zip(group, inputs, strict=False):
                self._normaliser(work.raw, out=place)
            for work, output in zip(group, self._engine.infer(inputs[: len(group)]), strict=True):
                logits = output[:, *work.crop]
                if not is_finite(logits):
                    yield work
                    continue
                if work.labels is not None:
                    work.labels[:] = to_labels(logits)
                if work.probabilities is not None:
                    to_probabilities(logits, out=work.probabilities)


class ByteRunner:
    """Has the engine do everything.

    Parameters
    ----------
    engine, normaliser
        An engine that has opened `form`, and what its input is normalised by.
    form
        What goes in, and what comes out.
    """

    def __init__(self, engine: TileEngine, normaliser: Normaliser, form: ByteForm) -> None:
        self._engine, self._normaliser, self._form = engine, normaliser, form

    def run(self, groups: Iterable[Sequence[TileWork]]) -> Iterator[TileWork]:
        """Compute the tiles; see `Runner`."""
        gain, offset = self._normaliser.gain_and_offset()
        sent: deque[Sequence[TileWork]] = deque()
        suspect: list[TileWork] = []
        for result in self._engine.stream(self._gather(groups, sent), self._form, gain=gain, offset=offset):
            for i, work in enumerate(sent.popleft()):
                if not np.isfinite(result.checksum[i]):
                    suspect.append(work)
                    continue
                if work.labels is not None and result.labels is not None:
                    work.labels[:] = result.labels[i][work.crop]
                if work.probabilities is not None and result.probabilities is not None:
                    work.probabilities[:] = result.probabilities[i][:, *work.crop]
        assert not sent
        yield from HostRunner(self._engine, self._normaliser).run([work] for work in suspect)

    def _gather(
        self, groups: Iterable[Sequence[TileWork]], sent: deque[Sequence[TileWork]]
    ) -> Iterator[npt.NDArray[Any]]:
        batch: npt.NDArray[Any] | None = None
        for group in groups:
            if batch is None or batch.shape[0] < len(group):
                batch = np.empty((len(group), *group[0].raw.shape), self._form.dtype)
            for work, place in zip(group, batch, strict=False):
                place[:] = work.raw
            sent.append(group)
            yield batch[: len(group)]  # read before the next is asked for


def choose_runner(engine: TileEngine, normaliser: Normaliser, *, dtype: str, kinds: Sequence[Kind]) -> Runner:
    """Return what computes tiles of `dtype`; see the module."""
    _, offset = normaliser.gain_and_offset()
    form = ByteForm(dtype=dtype, kinds=tuple(kinds))
    if np.abs(offset).max() <= MAX_OFFSET and engine.open_bytes(form):
        return ByteRunner(engine, normaliser, form)
    return HostRunner(engine, normaliser)
