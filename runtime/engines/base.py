"""What an engine is, and everything that is checked alike for all of them.

1. An `Engine` maps a batch of normalised tiles to logits; it knows nothing of volumes, tiles or cards.
2. A `ByteEngine` can also run a graph that begins at raw pixels and ends at the bytes that are stored, and so moves one
   byte a pixel each way; `ByteForm` says which, `runtime.composition` makes the graph.
3. `CheckedEngine` wraps one: it checks what goes in and comes out, lets one batch run at a time (so that memory is
   that of one batch, however many threads prepare and write), and replays the card's test tensor when opened.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unet_deploy.card import ModelCard
from unet_deploy.errors import TestTensorError
from unet_deploy.runtime.layout import Kind
from unet_deploy.runtime.normalise import normaliser_of_image
from unet_deploy.runtime.tolerances import TOLERANCES

Batch = npt.NDArray[np.float32]
RawBatch = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found about one engine when one was chosen; `is_taken` for the one that runs."""

    engine: str
    verdict: str
    is_taken: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineDescription:
    """What runs the network, where, in which versions, and what was found about each engine that could have."""

    engine: str
    device: str
    precision: str
    provider: str
    versions: dict[str, str]
    choice: tuple[Verdict, ...] = ()

    def to_object(self) -> dict[str, Any]:
        """Return JSON values for provenance."""
        return {
            "engine": self.engine,
            "device": self.device,
            "precision": self.precision,
            "provider": self.provider,
            "versions": self.versions,
            "choice": [{"engine": v.engine, "verdict": v.verdict} for v in self.choice],
        }


class Engine(Protocol):
    """A network that can run on some device."""

    def open(self) -> None:
        """Load the network onto the device."""

    def infer(self, batch: Batch) -> Batch:
        """Return logits (n, classes, y - 2·context, x - 2·context) for float32 (n, c, y, x)."""

    def close(self) -> None:
        """Free everything."""

    def describe(self) -> EngineDescription:
        """Say what this is; valid after `open`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an engine is to be made with.

    CPU threads of one operator (0: its own choice), the index of its GPU, and the shape (n, c, y, x) of the batches
    that will come, where that is known.
    """

    threads: int = 0
    device_index: int = 0
    batch_shape: tuple[int, int, int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteForm:
    """From raw pixels of which dtype to which results a composed graph goes."""

    dtype: str
    kinds: tuple[Kind, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ByteResult:
    """What a composed graph gives for a batch.

    `labels` is uint8 (n, y - 2·context, x - 2·context), `probabilities` uint8 (n, classes, y - 2·context,
    x - 2·context), each None if it was not asked for; `checksum` is float32 (n,), the sum of a tile's logits, which is
    no number if one of them is none.
    """

    labels: npt.NDArray[np.uint8] | None
    probabilities: npt.NDArray[np.uint8] | None
    checksum: npt.NDArray[np.float32]


class ByteEngine(Engine, Protocol):
    """An engine that can begin at raw pixels; whether it takes a form, `open_bytes` says."""

    def open_bytes(self, form: ByteForm) -> bool:
        """Get ready for raw batches; return False if this device has no such form. Valid after `open`."""

    def stream(self, batches: Iterable[RawBatch], *, gain: Batch, offset: Batch) -> Iterator[ByteResult]:
        """Yield the result of each raw batch (n, c, y, x) in order, while later ones are on their way.

        `gain` and `offset`, float32 (c,), make the network's input: value · gain + offset. A batch is read before the
        next one is asked for; a result is valid until the next one is asked for.
        """


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
        self.classes = card.network.classes
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
        self._engine.open()
        self._is_open = True
        try:
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
        """
        assert self._is_open, "the engine is not open"
        network, geometry = self._card.network, self._card.geometry
        n, channels, y, x = batch.shape
        assert batch.dtype == np.float32, batch.dtype
        assert channels == network.in_channels, batch.shape
        assert geometry.is_legal(y), batch.shape
        assert geometry.is_legal(x), batch.shape
        with self._lock:
            logits = self._engine.infer(batch)
        assert logits.shape == (n, network.classes, geometry.output_side(y), geometry.output_side(x)), logits.shape
        assert logits.dtype == np.float32, logits.dtype
        return logits

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Keep the engine to this thread: its batches follow each other, and others read and write meanwhile.

        Were two blocks to take turns batch by batch, both would come to their writing at once, with the engine idle.
        """
        with self._lock:
            yield

    def close(self) -> None:
        """Free everything; may be called twice."""
        if self._is_open:
            self._is_open = False
            self._engine.close()

    def describe(self) -> EngineDescription:
        """Say what runs the network, and how it was chosen."""
        return replace(self._engine.describe(), choice=self.choice)

    def _replay_test_tensor(self) -> None:
        tensor = self._card.test_tensor
        if tensor is None:  # a card without a file: only engines made by tests have one
            return
        description = self.describe()
        batch = np.stack([normaliser_of_image(self._card, image)(image) for image in tensor.image])
        try:
            logits = self._engine.infer(batch)
            self.test_difference = float(np.abs(logits - tensor.logits).max())
        except Exception as error:  # an engine may raise anything; here it concerns the model, not a volume
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
