"""Measure what an engine's output really depends on, and hold it against the context that the card declares.

1. *Impulses*: one pixel of an image is made black or white, or more so, and the outputs that change are looked up.
   Once for every position modulo the divisor, since what a pixel reaches depends on its phase; for a large divisor, as
   networks of other programs have, at some positions from the first to the last.
2. An output belongs to a cell, the smallest core (a divisor wide, at multiples of the divisor). The distance from
   a cell to the impulse is context that it needs, before it or after it. A network that has learnt to ignore its rim
   may be felt less far than declared, so a shorter reach is no fault; a longer one is.
3. *Scramble*: everything outside the declared context of one core is replaced. The core must stay what it was. This
   needs no luck with where an impulse falls.
4. What changes by less than the engine's own rounding is no dependence: fast convolutions mix neighbours and cancel
   them again, all but the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from unet_deploy.geometry import Geometry, Interval
from unet_deploy.runtime.normalise import Batch
from unet_deploy.runtime.pictures import Picture

Infer = Callable[[Batch], Batch]
Limit = Callable[[float], float]
"""The largest difference that is rounding, for the largest value that occurs."""
SCRAMBLED_CELLS = 2
"""Side of the core of step 3, in divisors."""
MAX_PHASES, SOME_PHASES = 16, 8
"""Up to that divisor every phase is tried, beyond it so many: their tiles are large."""
ROOM_CELLS = 4
"""How much further than declared an impulse can be seen to reach, both sides together, in divisors."""


class Reach(NamedTuple):
    """Pixels of context before and after a core, along one axis."""

    before: int
    after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceptiveField:
    """What was measured.

    `beyond` is the largest change that an impulse made outside its declared reach, `beyond_limit` what is rounding
    there; `scrambled` is the largest change of a core when everything outside its context was replaced.
    """

    declared: Reach
    y: Reach
    x: Reach
    impulses: int
    felt: int
    beyond: float
    beyond_limit: float
    scrambled: float
    scrambled_limit: float

    @property
    def is_within(self) -> bool:
        """Whether nothing but rounding came from outside the declared context."""
        return self.beyond <= self.beyond_limit and self.scrambled <= self.scrambled_limit  # false for NaN

    @property
    def is_exact(self) -> bool:
        """Whether the measured reach is the declared one on every side."""
        return self.y == self.x == self.declared

    def to_object(self) -> dict[str, Any]:
        """Return JSON values."""
        return {
            "declared": self.declared._asdict(),
            "y": self.y._asdict(),
            "x": self.x._asdict(),
            "impulses": self.impulses,
            "impulses_felt": self.felt,
            "beyond": self.beyond if math.isfinite(self.beyond) else None,  # JSON has no other numbers
            "beyond_limit": self.beyond_limit if math.isfinite(self.beyond_limit) else None,
            "scrambled": self.scrambled if math.isfinite(self.scrambled) else None,
            "scrambled_limit": self.scrambled_limit if math.isfinite(self.scrambled_limit) else None,
            "is_within": self.is_within,
            "is_exact": self.is_exact,
        }


class _Trace(NamedTuple):
    """Where an impulse stood along one axis, in output coordinates, and the largest change at each output there."""

    at: int
    change: npt.NDArray[np.float32]


def impulse_phases(divisor: int) -> tuple[int, ...]:
    """Return the positions modulo the divisor at which impulses stand, first and last among them.

    >>> impulse_phases(4), impulse_phases(32)
    ((0, 1, 2, 3), (0, 4, 9, 13, 18, 22, 27, 31))
    """
    if divisor <= MAX_PHASES:
        return tuple(range(divisor))
    return tuple(round(i * (divisor - 1) / (SOME_PHASES - 1)) for i in range(SOME_PHASES))


def measure_receptive_field(
    infer: Infer, geometry: Geometry, picture: Picture, *, limit: Limit, overdrive: float
) -> ReceptiveField:
    """Measure the receptive field of an open engine's `infer`; see the module.

    Parameters
    ----------
    infer
        Logits of normalised tiles.
    geometry
        What the card declares: divisor, context, surplus.
    picture
        What the impulses stand in; structure, so that few parts of the network are silent.
    limit
        What is rounding.
    overdrive
        How far beyond black and white impulses go, in multiples of the span between them: the stronger they are, the
        fewer poolings overlook them. 0 for networks that cannot compute with such values.
    """
    declared = Reach(geometry.context, geometry.context + geometry.surplus)
    side = geometry.tile_side(geometry.round_up(sum(declared) + ROOM_CELLS * geometry.divisor))
    window = Interval(-geometry.context, side - geometry.context)
    image = picture.mirrored(window, window)  # (c, side, side)
    plain = infer(picture.normalised(image))[0]  # (k, y, x)
    largest = float(np.abs(plain).max())

    middle = geometry.core_side(side) // 2 // geometry.divisor * geometry.divisor
    rows: list[_Trace] = []
    columns: list[_Trace] = []
    excess = overdrive * (picture.white - picture.black)
    for phase in impulse_phases(geometry.divisor):
        at = middle + phase
        for value in (picture.black - excess, picture.white + excess):
            changed = image.copy()
            changed[:, at + geometry.context, at + geometry.context] = value
            logits = infer(picture.normalised(changed))[0]
            largest = max(largest, float(np.abs(logits).max()))
            change = _difference(logits, plain).max(axis=0)  # (y, x)
            rows.append(_Trace(at, change.max(axis=1)))
            columns.append(_Trace(at, change.max(axis=0)))

    beyond = max(_largest_beyond(trace, geometry.divisor, declared) for trace in (*rows, *columns))
    floor = beyond if beyond <= limit(largest) else 0.0  # changes that cannot be told from rounding tell no reach
    scrambled, scrambled_largest = _scramble(infer, geometry, picture, image)
    return ReceptiveField(
        declared=declared,
        y=_reach(rows, geometry.divisor, floor),
        x=_reach(columns, geometry.divisor, floor),
        impulses=len(rows),
        felt=sum(bool((trace.change > floor).any()) for trace in rows),
        beyond=beyond,
        beyond_limit=limit(largest),
        scrambled=scrambled,
        scrambled_limit=limit(scrambled_largest),
    )


def _difference(one: Batch, other: Batch) -> npt.NDArray[np.float32]:
    """Return how far apart two outputs are; what is no number is infinitely far."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nan_to_num(np.abs(one - other), nan=np.inf))


def _contexts(trace: _Trace, divisor: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return, for each output, how far before and after its cell the impulse stands; negative on the other side."""
    start = np.arange(len(trace.change)) // divisor * divisor
    return start - trace.at, trace.at - (start + divisor - 1)


def _largest_beyond(trace: _Trace, divisor: int, declared: Reach) -> float:
    before, after = _contexts(trace, divisor)
    return float(trace.change[(before > declared.before) | (after > declared.after)].max(initial=0.0))


def _reach(traces: list[_Trace], divisor: int, floor: float) -> Reach:
    """Return the largest distances at which something changed; 0 if nothing did."""
    distances = [_contexts(trace, divisor) for trace in traces]
    felt = [trace.change > floor for trace in traces]
    return Reach(
        *(max(int(pair[i][f].max(initial=0)) for pair, f in zip(distances, felt, strict=True)) for i in (0, 1))
    )


def _scramble(
    infer: Infer, geometry: Geometry, picture: Picture, image: npt.NDArray[np.float32]
) -> tuple[float, float]:
    """Return the change of a core when all outside its context is replaced, and the largest value there."""
    size = SCRAMBLED_CELLS * geometry.divisor
    start = (geometry.core_side(image.shape[-1]) - size) // 2 // geometry.divisor * geometry.divisor
    core = np.s_[:, start : start + size, start : start + size]
    needed = np.s_[:, start : start + geometry.tile_side(size), start : start + geometry.tile_side(size)]
    results: list[Batch] = []
    for outside in (image, picture.checkerboard(*image.shape[1:]), picture.black + picture.white - image):
        tile = outside.copy()
        tile[needed] = image[needed]
        results.append(infer(picture.normalised(tile))[0][core].copy())
    change = max(float(_difference(result, results[0]).max()) for result in results[1:])
    return change, float(np.abs(results[0]).max())
