"""When memory runs out: told from every other failure, and survived by smaller batches, then smaller tiles.

1. Engines say it in many words; `is_out_of_memory` knows them.
2. `Rung` is how much is given to the engine at once. Below it is half the batch; at one tile, half the tile's core
   along both axes, in whole divisors. The grid that results are written on, its phase and the blocks stay, and so does
   the result.
3. A `Ladder` remembers the rung that held, for as long as its engine is open: it is climbed down once, not by block.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from typing import Any

from unet_deploy.errors import DeviceMemoryError, UnetDeployError
from unet_deploy.geometry import Geometry

logger = logging.getLogger(__name__)

_WORDS = (
    "out of memory",  # CUDA, and OpenVINO's GPU plugin
    "cudaerrormemoryallocation",
    "failed to allocate memory",  # onnxruntime's arena
    "bfcarena",
    "bad_alloc",  # C++
    "_status_alloc_failed",  # cuDNN, cuBLAS
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an engine failed for want of memory, whatever it calls that.

    >>> is_out_of_memory(RuntimeError("CUDA failure 2: out of memory ; GPU=0")), is_out_of_memory(RuntimeError("NaN"))
    (True, False)
    """
    if isinstance(error, MemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in _WORDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """Tiles of (tile_y, tile_x) input pixels in a batch of so many.

    Examples
    --------
    >>> from unet_deploy.geometry import UnetGeometry
    >>> rung = Rung(batch=4, tile_y=572, tile_x=572)
    >>> rung.words, rung.below(UnetGeometry(4)).words
    ('4 tiles of 572 × 572 px', '2 tiles of 572 × 572 px')
    >>> Rung(batch=1, tile_y=572, tile_x=204).below(UnetGeometry(4))
    Rung(batch=1, tile_y=380, tile_x=204)
    """

    batch: int
    tile_y: int
    tile_x: int

    def below(self, geometry: Geometry) -> Rung | None:
        """Return the next rung down; None where this is a single smallest tile."""
        if self.batch > 1:
            return replace(self, batch=self.batch // 2)
        y, x = (_half(geometry, side) for side in (self.tile_y, self.tile_x))
        return None if (y, x) == (self.tile_y, self.tile_x) else replace(self, tile_y=y, tile_x=x)

    @property
    def words(self) -> str:
        """The rung, for people."""
        tiles = "1 tile" if self.batch == 1 else f"{self.batch} tiles"
        return f"{tiles} of {self.tile_y} × {self.tile_x} px"

    def to_object(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"batch": self.batch, "tile": [self.tile_y, self.tile_x]}


def _half(geometry: Geometry, side: int) -> int:
    return geometry.tile_side(geometry.round_up(geometry.core_side(side) // 2))


def _reason(error: BaseException) -> str:
    """Return the words that the engine itself used."""
    if isinstance(error, UnetDeployError) and error.details:
        return error.details[0]
    return (str(error).splitlines() or ["nothing more"])[0]


class Ladder:
    """How far below what was planned an engine had to go; see the module. Safe to use from several threads."""

    def __init__(self) -> None:
        self._climbed: dict[Rung, tuple[Rung, ...]] = {}
        self._lock = threading.Lock()

    def settle(self, planned: Rung) -> Rung:
        """Return the rung to use where `planned` was planned."""
        return self.climbed(planned)[-1]

    def climbed(self, planned: Rung) -> tuple[Rung, ...]:
        """Return the rungs from `planned` down to the one in use."""
        return self._climbed.get(planned, (planned,))

    def step_down(self, planned: Rung, failed: Rung, geometry: Geometry, error: BaseException) -> None:
        """Go on with less than `failed`, aloud; another thread may have done so already.

        Raises
        ------
        DeviceMemoryError
            If `failed` is a single smallest tile.
        """
        with self._lock:
            climbed = self.climbed(planned)
            if climbed[-1] != failed:
                return
            below = failed.below(geometry)
            if below is None:
                raise DeviceMemoryError(
                    f"there is no memory even for {failed.words}, the smallest this network takes",
                    f"tried before it: {', '.join(rung.words for rung in climbed[:-1]) or 'nothing larger'}",
                    f"the engine said: {_reason(error)}",
                    fix="close what else uses the device's memory, use another device (--device cpu), or a model of "
                    "fewer channels",
                ) from error
            self._climbed[planned] = (*climbed, below)
        logger.warning(
            "memory ran out with %s; going on with %s, which gives the same result", failed.words, below.words
        )
