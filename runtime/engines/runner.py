"""From a tile's raw pixels to labels and probabilities in their place: on the host, or by an engine that takes bytes.

1. A `TileWork` carries both maps: the raw pixels, as a view of the window, and the views that its results go to.
2. `HostRunner` normalises here, has the engine compute logits, and turns them into bytes here: the next tile and the
   last one, while the engine has one between them.
3. `ByteRunner` sends raw pixels and gets bytes; the engine computes while later tiles are gathered and earlier ones
   written, and goes on with the next block's without a pause (`engines.feed`). Bytes cannot hold a NaN: a tile whose
   logits do not sum to a number goes through the host once more, which then says whether a pixel that is kept is meant.
4. `choose_runner` takes the second where the engine offers it, if need be for the same pixels as float32. Its input is
   value · gain + offset in float32, which loses what `MAX_OFFSET` bounds; a volume of tiny contrast on a high pedestal
   is normalised on the host.
5. `answer_constant_tiles` comes before either: tiles of one grey value never join a batch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from unet_deploy.runtime.engines.base import Batch, ByteForm, ByteResult
from unet_deploy.runtime.engines.constant_tiles import Answer, AnswerKey, constant_values
from unet_deploy.runtime.engines.symmetries import TileEngine
from unet_deploy.runtime.layout import Kind
from unet_deploy.runtime.machine import give_way
from unet_deploy.runtime.normalise import Normaliser, is_finite, to_labels, to_probabilities
from unet_deploy.runtime.timeline import carried, marker, span

Result = TypeVar("Result")
Bytes = npt.NDArray[np.uint8]
AS_FLOAT = ("uint16", "int16", "float16")
"""What float32 holds without loss: an engine that takes no such pixels may take them as that."""
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

    def write(self, labels: Bytes | None, probabilities: Bytes | None) -> None:
        """Put what is kept of a whole tile's labels (y, x) and probabilities (classes, y, x) into its place."""
        if self.labels is not None and labels is not None:
            self.labels[:] = labels[self.crop]
        if self.probabilities is not None and probabilities is not None:
            self.probabilities[:] = probabilities[:, *self.crop]


class Runner(Protocol):
    """What computes tiles."""

    def reserved(self) -> AbstractContextManager[None]:
        """Keep the engine to this thread for a block, where its batches would else take turns with another's."""

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

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep the engine."""
        with ExitStack() as held:
            with span("wait"):
                held.enter_context(self._engine.reserved())
            with span("hold"):
                yield

    def run(self, groups: Iterable[Sequence[TileWork]]) -> Iterator[TileWork]:
        """Compute the tiles; see `Runner`."""
        prepare = carried(partial(next, self._normalised(groups), None), "normalise")
        labelled: Future[list[TileWork]] | None = None
        with ThreadPoolExecutor(1, "beside", initializer=give_way) as beside:
            following = beside.submit(prepare)
            found = _wait_for(following, "normalise")
            while found is not None:
                group, inputs = found
                following = beside.submit(prepare)
                with span("infer", is_device=True):
                    outputs = self._engine.infer(inputs)
                self._engine.buffers.give(inputs)
                if labelled is not None:
                    yield from _wait_for(labelled, "label")
                labelled = beside.submit(carried(_label_all, "label"), group, outputs)
                del outputs  # gone when they are labelled
                found = _wait_for(following, "normalise")
            if labelled is not None:
                yield from _wait_for(labelled, "label")

    def _normalised(self, groups: Iterable[Sequence[TileWork]]) -> Iterator[tuple[Sequence[TileWork], Batch]]:
        """Yield each group with its input."""
        for group in groups:
            inputs = self._engine.buffers.take((len(group), *group[0].raw.shape))
            for work, place in zip(group, inputs, strict=True):
                self._normaliser(work.raw, out=place)
            yield group, inputs


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

    def reserved(self) -> AbstractContextManager[None]:
        """Keep nothing: blocks follow each other in the engine's line."""
        return nullcontext()

    def run(self, groups: Iterable[Sequence[TileWork]]) -> Iterator[TileWork]:
        """Compute the tiles; see `Runner`."""
        gain, offset = self._normaliser.gain_and_offset()
        every, suspect = [*groups], list[TileWork]()
        sent_at: deque[float] = deque()
        mark = marker()  # for this block, in whatever thread

        def take(number: int, result: ByteResult) -> None:
            mark("infer", sent_at.popleft(), time.perf_counter())
            with span("label"):
                for i, work in enumerate(every[number]):
                    if not np.isfinite(result.checksum[i]):
                        suspect.append(work)
                        continue
                    work.write(
                        None if result.labels is None else result.labels[i],
                        None if result.probabilities is None else result.probabilities[i],
                    )

        batches = partial(self._gather, every, sent_at)
        with span("infer"):  # or wait for others, and gather and label for them
            self._engine.feed(batches, self._form, n_batches=len(every), take=take, gain=gain, offset=offset)
        if suspect:
            yield from HostRunner(self._engine, self._normaliser).run([work] for work in suspect)

    def _gather(self, groups: Iterable[Sequence[TileWork]], sent_at: deque[float]) -> Iterator[npt.NDArray[Any]]:
        batch: npt.NDArray[Any] | None = None
        sent_at.clear()  # it may be the second time
        for group in groups:
            if batch is None or batch.shape[0] < len(group):
                batch = np.empty((len(group), *group[0].raw.shape), self._form.dtype)
            with span("gather"):
                for work, place in zip(group, batch, strict=False):
                    place[:] = work.raw
            sent_at.append(time.perf_counter())
            yield batch[: len(group)]  # read before the next is asked for


def _wait_for(done: Future[Result], name: str) -> Result:
    """Return what the thread beside does, when it has; meanwhile the engine waits for that."""
    with span(name):
        return done.result()


def _label_all(group: Sequence[TileWork], outputs: Batch) -> list[TileWork]:
    """Write the results of a batch; return the tiles whose logits are not all numbers."""
    return [work for work, output in zip(group, outputs, strict=True) if not _label(work, output)]


def _label(work: TileWork, output: Batch) -> bool:
    """Write a tile's result from its logits; False, and nothing, where they are not all numbers."""
    logits = output[:, *work.crop]
    if not is_finite(logits):
        return False
    if work.labels is not None:
        work.labels[:] = to_labels(logits)
    if work.probabilities is not None:
        to_probabilities(logits, out=work.probabilities)
    return True


def choose_runner(engine: TileEngine, normaliser: Normaliser, *, dtype: str, kinds: Sequence[Kind]) -> Runner:
    """Return what computes tiles of `dtype`; see the module."""
    _, offset = normaliser.gain_and_offset()
    if np.abs(offset).max() <= MAX_OFFSET:
        for sent in (dtype, "float32") if dtype in AS_FLOAT else (dtype,):
            form = ByteForm(dtype=sent, kinds=tuple(kinds))
            if engine.open_bytes(form):
                return ByteRunner(engine, normaliser, form)
    return HostRunner(engine, normaliser)


def answer_constant_tiles(
    works: Iterable[TileWork],
    *,
    engine: TileEngine,
    normaliser: Normaliser,
    kinds: Sequence[Kind],
    runner: Runner | None = None,
) -> list[TileWork]:
    """Write the results of constant tiles from the engine's answers; return the other tiles, in order.

    Parameters
    ----------
    works
        Tiles of one shape and dtype.
    engine, normaliser, kinds
        What is to be known of them, and by what.
    runner
        What `choose_runner` gave for these. A tile whose answer is not known yet is sent through it, alone; without a
        runner it is left, and the engine is not touched.

    Returns
    -------
    list of TileWork
        Those that are not constant, those whose answer holds no numbers, and, without a runner, is not known.
    """
    left: list[TileWork] = []
    for work in works:
        values = constant_values(work.raw)
        answer: Answer | None = None
        if values is not None:
            key = AnswerKey(
                shape=work.raw.shape,
                dtype=work.raw.dtype.str,
                values=values,
                normaliser=normaliser,
                kinds=tuple(kinds),
                passes=engine.passes,
            )
            answer = engine.answers.find(key)
            if answer is None and runner is not None:
                answer = _ask(work.raw, engine, kinds, runner)
                engine.answers.keep(key, answer)
        if answer is None or not answer.is_number:
            left.append(work)
        else:
            work.write(answer.labels, answer.probabilities)
    return left


def _ask(raw: npt.NDArray[Any], engine: TileEngine, kinds: Sequence[Kind], runner: Runner) -> Answer:
    """Return what the network says of a whole tile, sent alone."""
    y, x = (engine.geometry.output_side(side) for side in raw.shape[1:])
    labels = np.empty((y, x), np.uint8) if "labels" in kinds else None
    probabilities = np.empty((engine.classes, y, x), np.uint8) if "probabilities" in kinds else None
    whole = TileWork(z=0, raw=raw, crop=(slice(y), slice(x)), labels=labels, probabilities=probabilities)
    if list(runner.run([[whole]])):
        return Answer(labels=None, probabilities=None, is_number=False)
    return Answer(labels=labels, probabilities=probabilities)
