"""An engine with everything that is checked alike for all of them.

1. What goes in and comes out has the shapes and types it must have.
2. One batch runs at a time, so that memory is that of one batch, however many threads prepare and write. Raw batches
   of several threads follow each other in one stream (`runtime.engines.feed`).
3. The card's test tensor is replayed when the engine is opened, and again from raw pixels where those are to be used.
4. However an engine says that memory ran out, it becomes a `DeviceMemoryError` here; `ladder` remembers what held.
5. `answers` are what it said of constant tiles; they go when it is closed. `buffers` are for its inputs.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np

from unet_deploy.card import ModelCard
from unet_deploy.errors import DeviceMemoryError, RequirementError, TestTensorError
from unet_deploy.geometry import Geometry
from unet_deploy.runtime.engines.base import (
    Batch,
    ByteForm,
    ByteResult,
    Engine,
    EngineDescription,
    RawBatch,
    Verdict,
)
from unet_deploy.runtime.engines.buffers import Buffers
from unet_deploy.runtime.engines.constant_tiles import ConstantAnswers
from unet_deploy.runtime.engines.feed import Feed, Load
from unet_deploy.runtime.engines.memory import Ladder, is_out_of_memory
from unet_deploy.runtime.normalise import normaliser_of_image, to_labels, to_probabilities
from unet_deploy.runtime.tolerances import TOLERANCES


class CheckedEngine:
    """An engine with the checks that are the same for all.

    Parameters
    ----------
    engine
        The engine, not yet open.
    card
        The card of the network it will run.
    """

    def __init__(self, engine: Engine, card: ModelCard) -> None:
        self._engine = engine
        self._card = card
        self._lock = threading.RLock()
        self._is_open = False
        self._forms: dict[ByteForm, bool] = {}
        self._form: ByteForm | None = None  # the last that was opened
        self._feed = Feed()
        self.classes = card.network.classes
        self.geometry: Geometry = card.geometry
        self.ladder = Ladder()
        self.answers = ConstantAnswers()
        self.buffers = Buffers()
        self.passes = 1
        self.choice: tuple[Verdict, ...] = ()
        """How this engine came to be chosen; set by `open_engine`."""
        self.test_difference = 0.0
        """Largest difference to the card's expected logits on this device, set by `open`."""

    def open(self) -> CheckedEngine:
        """Load the network and replay the test tensor.

        Raises
        ------
        TestTensorError
            If this device computes something else than the network's parent did.
        """
        with self._telling_memory("the device has no memory for the network"):  # nor can the engine describe itself yet
            self._engine.open()
        self._is_open = True
        try:
            with self._telling_memory():
                self._replay_test_tensor()
        except BaseException:
            self.close()
            raise
        return self

    def infer(self, batch: Batch) -> Batch:
        """Run one batch; safe to call from several threads.

        Parameters
        ----------
        batch
            float32 (n, c, y, x), normalised; y and x legal sides.

        Returns
        -------
        numpy.ndarray
            float32 logits (n, classes, y - 2·context, x - 2·context).

        Raises
        ------
        DeviceMemoryError
            If the device has no memory for it. What else the engine raises passes through.
        """
        shape = self._require_batch(batch, "float32")
        with self.reserved(), self._telling_memory():
            logits = self._engine.infer(batch)
        assert logits.shape == shape, logits.shape
        assert logits.dtype == np.float32, logits.dtype
        return logits

    def open_bytes(self, form: ByteForm) -> bool:
        """Get ready for raw batches; False if the engine does not take them. Cheap when asked again.

        Raises
        ------
        TestTensorError
            If results from raw pixels are not those from normalised ones.
        """
        assert self._is_open, "the engine is not open"
        if not self._forms.get(form, True) or not hasattr(self._engine, "open_bytes"):
            return False
        if form == self._form:  # said without waiting for the engine, which another block may have
            return True
        with self.reserved(), self._telling_memory():
            self._form = None
            is_taken = bool(self._engine.open_bytes(form))
            if is_taken and form not in self._forms:
                self._replay_bytes(form)
            self._forms[form] = is_taken
            self._form = form if is_taken else None
            return is_taken

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
        """Run raw batches, and return when the last result was taken; `open_bytes` comes first.

        Those of another thread may be computed before and after, in one stream: safe to call from several threads.

        Parameters
        ----------
        batches
            Begins them, as `stream` takes them; asked for in any thread. Where the stream failed while another thread's
            were on their way, too, they are begun anew, alone.
        form, gain, offset
            As of `stream`.
        n_batches
            How many they are.
        take
            Called with the number and the result of each, in order, in any thread. A result is valid until it returns.

        Raises
        ------
        DeviceMemoryError
            If the device has no memory for a batch; results before it were taken.
        """
        load = Load(form=form, gain=gain, offset=offset, batches=batches(), n_batches=n_batches, take=take)
        try:
            self._feed.run(load, self._lock, self._start)
        except MemoryError:  # it will be tried with less
            raise
        except Exception:  # an engine may raise anything
            if load.is_alone:
                raise
            with self.reserved():
                for number, result in enumerate(self._start(load, batches())):
                    take(number, result)

    def stream(
        self, batches: Iterable[RawBatch], form: ByteForm, *, gain: Batch, offset: Batch
    ) -> Iterator[ByteResult]:
        """Yield the result of each raw batch in order; `open_bytes` comes first, and the engine is `reserved`.

        Parameters
        ----------
        batches
            Raw (n, c, y, x) of the form's dtype; y and x legal sides. Each is read before the next is asked for.
        form
            What was opened.
        gain, offset
            float32 (c,): the network's input is value · gain + offset.

        Raises
        ------
        DeviceMemoryError
            If the device has no memory for a batch.
        """
        shapes: deque[tuple[int, ...]] = deque()

        def checked() -> Iterator[RawBatch]:
            for batch in batches:
                shapes.append(self._require_batch(batch, form.dtype))
                yield batch

        streamer: Any = self._engine
        with self._telling_memory(), closing(streamer.stream(checked(), gain=gain, offset=offset)) as results:
            for result in results:
                _require_result(result, form, shapes.popleft())
                yield result
        assert not shapes, "the engine has kept results"

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep the engine to this thread: its batches follow each other, and others read and write meanwhile.

        Were two blocks to take turns batch by batch, both would come to their writing at once, with the engine idle.
        """
        with self._lock:
            self._feed.pause()
            yield

    def close(self) -> None:
        """Free everything; may be called twice."""
        if self._is_open:
            with self.reserved():
                self._is_open = False
                self.answers.clear()
                self._engine.close()

    def describe(self) -> EngineDescription:
        """Say what runs the network, and how it was chosen."""
        return replace(self._engine.describe(), choice=self.choice)

    def _start(self, load: Load, batches: Iterator[RawBatch]) -> Iterator[ByteResult]:
        """Begin a stream; another form may have been opened since the load came into line."""
        is_taken = self.open_bytes(load.form)
        assert is_taken, load.form
        return self.stream(batches, load.form, gain=load.gain, offset=load.offset)

    def _require_batch(self, batch: RawBatch, dtype: str) -> tuple[int, ...]:
        """Return the shape of a batch's logits."""
        assert self._is_open, "the engine is not open"
        network, geometry = self._card.network, self._card.geometry
        n, channels, y, x = batch.shape
        assert batch.dtype == np.dtype(dtype), batch.dtype
        assert channels == network.in_channels, batch.shape
        assert geometry.is_legal(y), batch.shape
        assert geometry.is_legal(x), batch.shape
        return n, network.classes, geometry.output_side(y), geometry.output_side(x)

    @contextmanager
    def _telling_memory(self, headline: str | None = None) -> Iterator[None]:
        try:
            yield
        except DeviceMemoryError:
            raise
        except Exception as error:  # each engine has its own words
            if not is_out_of_memory(error):
                raise
            if headline is None:
                said = self._engine.describe()
                headline = f"{said.engine} ran out of memory on {said.device}"
            raise DeviceMemoryError(
                headline,
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}",
                fix="a smaller tile (--tile) or batch (--batch), or another device (--device cpu)",
            ) from error

    def _replay_test_tensor(self) -> None:
        tensor = self._card.test_tensor
        if tensor is None:  # a card without a file: only engines made by tests have one
            return
        description = self.describe()
        batch = np.stack([normaliser_of_image(self._card, image)(image) for image in tensor.image])
        try:
            logits = self._engine.infer(batch)
            self.test_difference = float(np.abs(logits - tensor.logits).max())
        except RequirementError:  # it says what is missing
            raise
        except Exception as error:  # an engine may raise anything; here it concerns the model, not a volume
            if is_out_of_memory(error):
                raise
            raise TestTensorError(
                f"{description.engine} on {description.device} cannot run the model's test tensor",
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}",
                f"model: {self._card.name}",
                fix="use another device (--device cpu), or export the model again with this release",
            ) from error
        tolerance = TOLERANCES[description.engine, description.precision]
        limit = tolerance.limit(float(np.abs(tensor.logits).max()))
        if not self.test_difference <= limit:  # also true for NaN
            raise TestTensorError(
                f"{description.engine} on {description.device} does not compute what the model's parent computed",
                f"test tensor: largest difference {self.test_difference:.3g}, at most {limit:.3g} was expected",
                f"model: {self._card.name}, precision {description.precision}; {tolerance.why}",
                fix="use another device (--device cpu), or update its driver and runtime, and report this",
            )

    def _replay_bytes(self, form: ByteForm) -> None:
        """Require of the test tensor's pixels that raw they give what they give normalised, up to rounding."""
        tensor = self._card.test_tensor
        if tensor is None:
            return
        description = self._engine.describe()
        tolerance = TOLERANCES[description.engine, description.precision]
        streamer: Any = self._engine
        for image in tensor.image:
            with np.errstate(invalid="ignore"):  # what does not fit becomes something else: any pixels will do
                raw = image.astype(form.dtype)
            normaliser = normaliser_of_image(self._card, image)
            logits = self._engine.infer(normaliser(raw)[None])[0]
            gain, offset = normaliser.gain_and_offset()
            (result,) = streamer.stream(iter([raw[None]]), gain=gain, offset=offset)
            _require_result(result, form, (1, *logits.shape))
            slack = 2 * tolerance.limit(float(np.abs(logits).max()))
            ranked = np.sort(logits, axis=0)
            is_plain = ranked[-1] - ranked[-2] > slack  # elsewhere it is a tie, as far as rounding goes
            wrong = 0
            if result.labels is not None:
                wrong += int((result.labels[0] != to_labels(logits))[is_plain].sum())
            if result.probabilities is not None:
                difference = np.abs(result.probabilities[0].astype(np.int16) - to_probabilities(logits.copy()))
                wrong += int((difference > 1 + 64 * slack).sum())  # 255 levels, and at most 1/4 a unit of logits
            if wrong or not np.isfinite(result.checksum).all():
                raise TestTensorError(
                    f"{description.engine} on {description.device} does not give for raw pixels what it gives for "
                    "normalised ones",
                    f"test tensor as {form.dtype}: {wrong} of {logits.size} values differ by more than rounding",
                    f"model: {self._card.name}, precision {description.precision}",
                    fix="use another device (--device cpu), or update its driver and runtime, and report this",
                )


def _require_result(result: ByteResult, form: ByteForm, shape: tuple[int, ...]) -> None:
    n, classes, y, x = shape
    expected = {"labels": (n, y, x), "probabilities": (n, classes, y, x)}
    for kind, came in (("labels", result.labels), ("probabilities", result.probabilities)):
        assert (came is not None) == (kind in form.kinds), (kind, form)
        assert came is None or (came.shape == expected[kind] and came.dtype == np.uint8), (came.shape, came.dtype)
    assert result.checksum.shape == (n,), result.checksum.shape
