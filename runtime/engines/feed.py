"""One stream of raw batches through an engine for all blocks: the device goes from one to the next without a pause.

1. A block's batches are a `Load`. It is put at the end of the line, before its thread waits for the engine.
2. Whoever has the engine moves the stream on until its own load is done. The stream asks for batches ahead of its
   results: after a load's last it takes the first of the next, so the device has work when the engine changes hands.
3. Results come in the order of the batches, and go to their load at once, by whichever thread moves the stream.
4. `pause` takes no more batches and waits for those on their way; what is left of the loads follows in a new stream.
5. An error of the engine ends the loads that had a batch on its way: which of these it means cannot be told. Where
   there was none, whoever moves the stream has it. An error of a load ends that load alone.

At 200 megapixels a second a block takes 20 ms. To end its stream, wake the next thread, fill its first batch and copy
that took 1.5 ms of these, and longer where other threads are busy (benchmarks/device_wait.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from unet_deploy.runtime.engines.base import Batch, ByteForm, ByteResult, RawBatch


@dataclass(slots=True, kw_only=True, eq=False)
class Load:
    """A block's raw batches, and what takes the result of each, with its number; both in any thread, one at a time.

    A batch is read before the next is asked for; a result is valid while it is taken.
    """

    form: ByteForm
    gain: Batch
    offset: Batch
    batches: Iterator[RawBatch]
    n_batches: int
    take: Callable[[int, ByteResult], None]
    n_taken: int = 0
    error: BaseException | None = None
    is_alone: bool = True
    """Whether the error is its own: no other load had a batch on its way."""
    key: tuple[ByteForm, bytes, bytes] = field(init=False)
    """What loads of one stream have in common."""

    def __post_init__(self) -> None:
        self.key = self.form, self.gain.tobytes(), self.offset.tobytes()

    @property
    def is_done(self) -> bool:
        """Tell whether nothing more is to be taken."""
        return self.error is not None or self.n_taken == self.n_batches


Start = Callable[[Load, Iterator[RawBatch]], Iterator[ByteResult]]


class Feed:
    """The line of an engine's loads, and their stream."""

    def __init__(self) -> None:
        self._line: deque[Load] = deque()  # of loads with batches yet to be asked for
        self._sent: deque[Load] = deque()  # whose the batches on their way are
        self._stream: Iterator[ByteResult] | None = None
        self._is_pausing = False

    def run(self, load: Load, engine: AbstractContextManager[object], start: Start) -> None:
        """See a load done.

        Parameters
        ----------
        load
            The load; what it or its stream raises is raised here.
        engine
            Keeps the engine to the thread that entered it.
        start
            Begins a stream for a load and those like it, from their batches.
        """
        self._line.append(load)
        try:
            with engine:
                try:
                    while not load.is_done:
                        self._move(start)
                finally:
                    if load in self._line:
                        self._line.remove(load)
                if not self._line and not self._sent:
                    self.pause()  # nobody comes after: the stream is at its end
        except BaseException as error:
            load.error = error  # whoever moves the stream passes it over
            raise
        if load.error is not None:
            raise load.error

    def pause(self) -> None:
        """Wait for the batches on their way, and end the stream; the caller has the engine."""
        self._is_pausing = True
        try:
            while self._stream is not None:
                self._move(None)
        finally:
            self._is_pausing = False

    def _move(self, start: Start | None) -> None:
        """Take one result, or find the stream at its end; begin one where there is none."""
        try:
            if self._stream is None:
                assert start is not None
                self._stream = self._begin(start)
                return
            result = next(self._stream)
        except StopIteration:
            self._stream = None
            assert not self._sent, "the engine has kept results"
            return
        except BaseException as error:
            self._stream = None
            lost = {id(load): load for load in self._sent}
            self._sent.clear()
            for load in lost.values():
                load.error, load.is_alone = load.error or error, len(lost) == 1
            if not lost or not isinstance(error, Exception):
                raise
            return
        load = self._sent.popleft()
        if load.error is not None:
            return
        try:
            load.take(load.n_taken, result)
        except Exception as error:  # it concerns the load, whose thread may be another
            load.error = error
        load.n_taken += 1

    def _begin(self, start: Start) -> Iterator[ByteResult]:
        while self._line[0].is_done:
            self._line.popleft()
        first = self._line[0]
        self._sent.append(first)  # where the stream cannot even begin, it has the error
        stream = start(first, self._batches(first))
        self._sent.pop()
        return stream

    def _batches(self, first: Load) -> Iterator[RawBatch]:
        """Yield the batches of the loads in line, as long as they are like the first."""
        while self._line and not self._is_pausing:
            load = self._line[0]
            if load.error is None and load.key != first.key:
                return
            try:
                batch = None if load.error is not None else next(load.batches, None)
            except Exception as error:  # it concerns that load
                load.error, batch = error, None
            if batch is None:
                self._line.popleft()
                continue
            self._sent.append(load)
            yield batch
