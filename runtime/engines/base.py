"""What an engine is.

1. An `Engine` maps a batch of normalised tiles to logits; it knows nothing of volumes, tiles or cards.
2. A `ByteEngine` can also run a graph that begins at raw pixels and ends at the bytes that are stored, and so moves one
   byte a pixel each way; `ByteForm` says which, `runtime.composition` makes the graph.
3. `runtime.engines.checked` wraps either, with the checks that are the same for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unet_deploy.runtime.layout import Kind

Batch = npt.NDArray[np.float32]
RawBatch = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was found about one engine when one was chosen; `is_taken` for the one that runs.

    One that was not even tried, since another comes before it, is not `is_tried`.
    """

    engine: str
    verdict: str
    is_taken: bool = False
    is_tried: bool = True


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
        """Return logits (n, classes, y - 2·context, x - 2·context) for float32 (n, c, y, x).

        They are the caller's: another thread labels them while the next batch is computed.
        """

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
