"""Exact geometry of the paper's U-Net: integers only, no arrays.

For depth d, with two valid 3x3 convolutions a level (Ronneberger et al. 2015, section 2):

1. The *divisor* is 2**d: how much the network down-samples.
2. A core that starts and ends at multiples of the divisor needs *context* = 6 * 2**d - 4 pixels before it (92 for
   d = 4), and context plus the surplus of rule 4 after it. (One pixel may see up to divisor - 1 further, by its phase.)
3. A legal input side is n = k * 2**d - 4 with n > 2 * context; its output side is n - 2 * context.
4. Max-pooling is not shift-invariant: two tiles agree on a pixel exactly only if their origins differ by a
   multiple of the divisor. So cores start at multiples of the divisor in volume coordinates, and the
   output's *surplus* (rows and columns beyond the last multiple, 4 for d >= 3) is dropped.
5. Context missing at the volume's border is mirrored without repeating the edge pixel (numpy's ``reflect``),
   repeatedly where the volume is smaller than the context.

Coordinates are absolute and intervals half-open; a window may start before 0 and end after the volume.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from unet_deploy.errors import ConfigurationError, TileNotLegalError

MAX_DEPTH = 8
"""Beyond this the context (1,532 px) exceeds any useful tile; metadata asking for more is refused."""
MAX_DIVISOR, MAX_CONTEXT = 256, 4096
"""The most of a network that pads: beyond this no tile is of use."""


@dataclass(frozen=True, slots=True, order=True)
class Interval:
    """A half-open range ``[start, stop)`` of absolute pixels along one axis.

    >>> Interval(-92, 480).size
    572
    """

    start: int
    stop: int

    def __post_init__(self) -> None:
        assert self.stop > self.start, self

    @property
    def size(self) -> int:
        """Number of pixels."""
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """The interval as a slice; only for intervals inside their array."""
        assert self.start >= 0, self
        return slice(self.start, self.stop)

    def shifted(self, by: int) -> Interval:
        """Return the interval moved by `by` pixels."""
        return Interval(self.start + by, self.stop + by)

    def clipped(self, extent: int) -> Interval:
        """Return the part inside ``[0, extent)``, which must not be empty."""
        return Interval(max(self.start, 0), min(self.stop, extent))


class Geometry:
    """What decides how a network is tiled: its divisor, its context, and the surplus that its output has.

    `UnetGeometry` is that of the paper's network, `SameGeometry` that of a network that pads its input.
    """

    __slots__ = ()

    @property
    def divisor(self) -> int:
        """Total down-sampling, in pixels: origins of tiles differ by multiples of it."""
        raise NotImplementedError

    @property
    def context(self) -> int:
        """Pixels the network needs on each side of a core."""
        raise NotImplementedError

    @property
    def surplus(self) -> int:
        """Output rows (columns) beyond the last multiple of the divisor; computed, then dropped."""
        raise NotImplementedError

    @property
    def _rest(self) -> int:
        """What a tile's side has beyond its core's."""
        return 2 * self.context + self.surplus

    @property
    def legal_sides(self) -> str:
        """Which input sides are legal, for messages.

        >>> UnetGeometry(4).legal_sides, SameGeometry(32, 96).legal_sides
        ('16·k − 4', '32·k')
        """
        short = -self._rest % self.divisor
        return f"{self.divisor}·k" + (f" − {short}" if short else "")

    @property
    def smallest_tile(self) -> int:
        """The smallest legal tile side whose core is not empty."""
        return self.tile_side(self.divisor)

    def is_legal(self, side: int) -> bool:
        """Tell whether the network takes an input side of `side` pixels: every pooling then meets an even side."""
        return side > 2 * self.context and (side - self._rest) % self.divisor == 0

    def nearest_legal(self, side: int) -> tuple[int, ...]:
        """Return the nearest legal sides with a core, below (if there is one) and above `side`."""
        below = (side - self._rest) // self.divisor * self.divisor + self._rest
        candidates = (below, below + self.divisor)
        return tuple(n for n in candidates if n >= self.smallest_tile) or (self.smallest_tile,)

    def require_legal(self, side: int, *, axis: str, flag: str = "--tile") -> int:
        """Return `side`, or say which sides would be legal.

        Raises
        ------
        TileNotLegalError
            If the side is not one of `legal_sides`, or too small to hold a core.
        """
        if self.is_legal(side) and side >= self.smallest_tile:
            return side
        nearest = self.nearest_legal(side)
        raise TileNotLegalError(
            f"tile side {side} on axis {axis} is not {self.legal_sides} with at least {self.smallest_tile}",
            f"the network reduces its input {self.divisor}-fold and needs {self.context} px of context a side",
            f"nearest legal sides: {', '.join(map(str, nearest))}",
            fix=f"{flag} {nearest[-1]}",
        )

    def output_side(self, side: int) -> int:
        """Return the output side of a legal input side."""
        assert self.is_legal(side), side
        return side - 2 * self.context

    def core_side(self, side: int) -> int:
        """Return how many of a legal input side's output pixels are kept: a multiple of the divisor."""
        return self.output_side(side) // self.divisor * self.divisor

    def tile_side(self, core: int) -> int:
        """Return the input side that yields a core of `core` pixels, a positive multiple of the divisor."""
        assert core > 0, core
        assert core % self.divisor == 0, core
        return core + self._rest

    def round_up(self, pixels: int) -> int:
        """Return the smallest positive multiple of the divisor that is at least `pixels`."""
        return max(-(-pixels // self.divisor), 1) * self.divisor

    def tile_window(self, core_start: int, tile_side: int) -> Interval:
        """Return what a tile reads whose core starts at `core_start`; it may leave the volume.

        >>> UnetGeometry(4).tile_window(0, 572)
        Interval(start=-92, stop=480)
        """
        assert core_start % self.divisor == 0, core_start
        return Interval(core_start - self.context, core_start - self.context + tile_side)

    def whole_window(self, extent: int) -> Interval:
        """Return the window of the one-pass reference: the whole mirrored extent, legal and in phase."""
        return self.tile_window(0, self.tile_side(self.round_up(extent)))


@dataclass(frozen=True, slots=True)
class UnetGeometry(Geometry):
    """What depth alone decides about a valid-convolution U-Net.

    Parameters
    ----------
    depth
        Number of 2x2 max-poolings; the paper's network has 4.

    Raises
    ------
    ConfigurationError
        If depth is not in 1..8.

    Examples
    --------
    >>> g = UnetGeometry(4)
    >>> g.divisor, g.context, g.crop_margins
    (16, 92, (4, 16, 40, 88))
    >>> g.output_side(572), g.core_side(572), g.tile_side(384)
    (388, 384, 572)
    """

    depth: int

    def __post_init__(self) -> None:
        if not 1 <= self.depth <= MAX_DEPTH:
            raise ConfigurationError(
                f"network depth {self.depth} is not in 1..{MAX_DEPTH}",
                "depth is the number of 2x2 max-poolings; the paper's network has 4",
                fix="use a depth from 1 to 8",
            )

    @property
    def divisor(self) -> int:
        """Total down-sampling: 2**depth."""
        return 1 << self.depth

    @property
    def context(self) -> int:
        """What two valid 3x3 convolutions a level cost a side: 6 * 2**depth - 4."""
        return 6 * self.divisor - 4

    @property
    def surplus(self) -> int:
        """4, and 0 where that is a multiple of the divisor."""
        return 4 % self.divisor

    @property
    def crop_margins(self) -> tuple[int, ...]:
        """Centre-crop margin of each skip connection a side, deepest level first: 4, 16, 40, 88."""
        margins: list[int] = []
        shrink = 0  # a side, in the pixels of the level just left
        for _ in range(self.depth):
            shrink = 2 * (shrink + 2)
            margins.append(shrink)
            shrink += 2
        return tuple(margins)


@dataclass(frozen=True, slots=True)
class SameGeometry(Geometry):
    """A network whose output is as large as its input, cropped by its context so that no padding is seen.

    What such a network pads at a tile's border is not the volume's content, and reaches as far as its receptive
    field does. With that border cut off, it is tiled as the paper's network is.

    Parameters
    ----------
    divisor
        Input sides must be multiples of it, and results repeat when the input moves by it.
    context
        A multiple of the divisor, at least the receptive field's reach on any side: what the crop takes off.

    Raises
    ------
    ConfigurationError
        If they cannot be those of a network.

    Examples
    --------
    >>> g = SameGeometry(32, 96)
    >>> g.output_side(448), g.core_side(448), g.tile_side(256), g.surplus
    (256, 256, 448, 0)
    """

    divisor: int
    context: int
    surplus: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if not (1 <= self.divisor <= MAX_DIVISOR and 0 <= self.context <= MAX_CONTEXT):
            raise ConfigurationError(
                f"divisor {self.divisor} and context {self.context} are not in 1..{MAX_DIVISOR} and 0..{MAX_CONTEXT}",
                "they are what a padded network is tiled by",
                fix="adopt the network again: unet-deploy adopt MODEL.onnx",
            )
        if self.context % self.divisor:
            raise ConfigurationError(
                f"context {self.context} is not a multiple of the divisor {self.divisor}",
                "tiles must begin where the network's own grid does",
                fix=f"use {-(-self.context // self.divisor) * self.divisor}",
            )


@dataclass(frozen=True, slots=True)
class AxisTile:
    """One tile along one axis, in absolute pixels: where to read, what to keep.

    `read` may leave the volume (mirror it); `keep` lies inside; `keep.start - crop` is the output's first pixel.
    """

    read: Interval
    keep: Interval
    crop: Interval
    """`keep` in coordinates of the network's output, for slicing it."""


def cover_axis(geometry: Geometry, region: Interval, tile_side: int) -> tuple[AxisTile, ...]:
    """Cover `region` with tiles of one side whose cores start at multiples of the divisor.

    The core grid starts at the multiple of the divisor at or below ``region.start``; every pixel of the region
    is kept by exactly one tile, and what it is does not depend on `tile_side` or on the region (module rule 4).

    >>> [t.keep for t in cover_axis(UnetGeometry(4), Interval(0, 512), 572)]
    [Interval(start=0, stop=384), Interval(start=384, stop=512)]
    """
    core = geometry.core_side(tile_side)
    first = region.start // geometry.divisor * geometry.divisor
    starts = range(first, region.stop, core)
    tiles: list[AxisTile] = []
    for start, stop in pairwise([*starts, starts[-1] + core]):
        keep = Interval(max(start, region.start), min(stop, region.stop))
        tiles.append(AxisTile(geometry.tile_window(start, tile_side), keep, keep.shifted(-start)))
    return tuple(tiles)


def mirror_index(index: int, extent: int) -> int:
    """Return the pixel inside ``[0, extent)`` that `index` reflects to; the edge pixel is not repeated.

    The same as ``numpy.pad(..., mode="reflect")``, for any distance and any extent >= 1.

    >>> [mirror_index(i, 3) for i in range(-4, 7)]
    [0, 1, 2, 1, 0, 1, 2, 1, 0, 1, 2]
    """
    assert extent >= 1, extent
    if extent == 1:
        return 0
    period = 2 * (extent - 1)
    position = index % period
    return position if position < extent else period - position


@lru_cache(maxsize=64)  # of a run's windows few are at a border, and many blocks have the same
def mirrored_source(window: Interval, extent: int) -> Interval:
    """Return the smallest interval of real pixels that holds everything `window` reflects to.

    >>> mirrored_source(Interval(-92, 480), 512), mirrored_source(Interval(500, 600), 512)
    (Interval(start=0, stop=480), Interval(start=423, stop=512))
    """
    if window.start >= 0 and window.stop <= extent:
        return window
    if window.size >= 2 * extent:  # at least one whole period: every pixel occurs
        return Interval(0, extent)
    sources = [mirror_index(i, extent) for i in range(window.start, window.stop)]
    return Interval(min(sources), max(sources) + 1)
