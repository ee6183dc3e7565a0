"""What geometry promises for every extent, tile and region, checked against numpy and an integer network."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from hypothesis import assume, given
from hypothesis import strategies as st

from unet_deploy.geometry import (
    MAX_DEPTH,
    AxisTile,
    Geometry,
    Interval,
    SameGeometry,
    UnetGeometry,
    cover_axis,
    mirror_index,
    mirrored_source,
)

Ints = npt.NDArray[np.int64]

padded = st.tuples(st.integers(0, 6), st.integers(0, 9)).map(
    lambda pair: SameGeometry(1 << pair[0], pair[1] << pair[0])
)
geometries: st.SearchStrategy[Geometry] = st.one_of(st.integers(1, MAX_DEPTH).map(UnetGeometry), padded)
extents = st.one_of(st.integers(1, 8), st.integers(1, 300))


@st.composite
def windows(draw: st.DrawFn) -> Interval:
    start = draw(st.integers(-700, 700))
    return Interval(start, start + draw(st.integers(1, 900)))


@st.composite
def coverings(draw: st.DrawFn) -> tuple[Geometry, Interval, int]:
    """Draw a geometry, a region of a volume and a legal tile side."""
    geometry = draw(geometries)
    start = draw(st.integers(0, 2000))
    region = Interval(start, start + draw(st.integers(1, 2000)))
    return geometry, region, geometry.tile_side(draw(st.integers(1, 40)) * geometry.divisor)


# -- mirroring


@given(extent=extents, before=st.integers(0, 400), after=st.integers(0, 400))
def test_mirroring_is_that_of_numpy(extent: int, before: int, after: int) -> None:
    expected = np.pad(np.arange(extent), (before, after), mode="reflect")
    assert [mirror_index(i, extent) for i in range(-before, extent + after)] == expected.tolist()


@given(window=windows(), extent=extents)
def test_the_source_is_exactly_what_the_window_reflects_to(window: Interval, extent: int) -> None:
    sources = {mirror_index(i, extent) for i in range(window.start, window.stop)}
    assert mirrored_source(window, extent) == Interval(min(sources), max(sources) + 1)
    assert sources == set(range(min(sources), max(sources) + 1))  # so reading the hull reads nothing in vain


# -- covering


@given(coverings())
def test_every_pixel_is_kept_exactly_once_and_in_order(covering: tuple[Geometry, Interval, int]) -> None:
    geometry, region, side = covering
    tiles = cover_axis(geometry, region, side)
    edges = [region.start, *(tile.keep.stop for tile in tiles)]
    assert [(tile.keep.start, tile.keep.stop) for tile in tiles] == list(itertools.pairwise(edges))
    assert edges[-1] == region.stop


@given(coverings())
def test_every_tile_is_in_phase_and_of_one_side(covering: tuple[Geometry, Interval, int]) -> None:
    geometry, region, side = covering
    for tile in cover_axis(geometry, region, side):
        core_start = tile.read.start + geometry.context
        assert core_start % geometry.divisor == 0
        assert tile.read.size == side
        assert tile.crop == tile.keep.shifted(-core_start)
        assert 0 <= tile.crop.start < tile.crop.stop <= geometry.core_side(side)


@given(coverings())
def test_a_kept_pixel_has_its_whole_context_in_the_window(covering: tuple[Geometry, Interval, int]) -> None:
    geometry, region, side = covering
    for tile in cover_axis(geometry, region, side):
        assert tile.read.start <= tile.keep.start - geometry.context
        assert tile.keep.stop + geometry.context <= tile.read.stop


@given(coverings())
def test_no_tile_is_in_vain(covering: tuple[Geometry, Interval, int]) -> None:
    geometry, region, side = covering
    first = region.start // geometry.divisor * geometry.divisor
    assert len(cover_axis(geometry, region, side)) == -(-(region.stop - first) // geometry.core_side(side))


@given(depth=st.integers(1, MAX_DEPTH), extent=st.integers(1, 5000))
def test_the_whole_is_one_tile(depth: int, extent: int) -> None:
    geometry = UnetGeometry(depth)
    whole = geometry.whole_window(extent)
    assert geometry.is_legal(whole.size)
    (tile,) = cover_axis(geometry, Interval(0, extent), whole.size)
    assert (tile.read, tile.keep) == (whole, Interval(0, extent))


# -- tiled == whole, with a network whose arithmetic is exact


def network(signal: Ints, depth: int) -> Ints:
    """Run a one-dimensional valid-convolution U-Net in integers modulo a prime: any wrong pixel shows."""
    weights = itertools.count(2)

    def convolve_twice(x: Ints) -> Ints:
        for _ in range(2):
            w = next(weights)
            x = (x[:-2] * w + x[1:-1] * (w + 3) + x[2:] * (w + 7) + 1) % 65521
        return x

    skips: list[Ints] = []
    for _ in range(depth):
        signal = convolve_twice(signal)
        assert len(signal) % 2 == 0
        skips.append(signal)
        signal = signal.reshape(-1, 2).max(axis=1)
    signal = convolve_twice(signal)
    for skip in reversed(skips):
        margin = (len(skip) - 2 * len(signal)) // 2
        signal = convolve_twice(np.repeat(signal, 2) * 5 + skip[margin : len(skip) - margin])
    return signal


def read(signal: Ints, window: Interval) -> Ints:
    return signal[[mirror_index(i, len(signal)) for i in range(window.start, window.stop)]]


def run(signal: Ints, geometry: Geometry, tiles: tuple[AxisTile, ...]) -> dict[int, int]:
    """Return the network's result at every pixel kept."""
    results: dict[int, int] = {}
    for tile in tiles:
        kept = network(read(signal, tile.read), geometry.depth)[tile.crop.slice]
        results.update(zip(range(tile.keep.start, tile.keep.stop), kept.tolist(), strict=True))
    return results


@st.composite
def signals(draw: st.DrawFn) -> Ints:
    extent = draw(st.one_of(st.integers(1, 12), st.integers(1, 400)))
    return np.random.default_rng(draw(st.integers(0, 2**32))).integers(0, 65521, extent)


@given(signal=signals(), depth=st.integers(1, 4), cores=st.tuples(st.integers(1, 9), st.integers(1, 9)), data=st.data())
def test_tiled_equals_whole(signal: Ints, depth: int, cores: tuple[int, int], data: st.DataObject) -> None:
    geometry = UnetGeometry(depth)
    extent = len(signal)
    whole = run(signal, geometry, cover_axis(geometry, Interval(0, extent), geometry.whole_window(extent).size))
    assert set(whole) == set(range(extent))
    first, second = (geometry.tile_side(core * geometry.divisor) for core in cores)
    assert run(signal, geometry, cover_axis(geometry, Interval(0, extent), first)) == whole
    # Neither does a pixel depend on the region it was computed in, nor on that region's tile.
    start = data.draw(st.integers(0, extent - 1))
    region = Interval(start, data.draw(st.integers(start + 1, extent)))
    part = run(signal, geometry, cover_axis(geometry, region, second))
    assert part == {i: whole[i] for i in range(region.start, region.stop)}


@given(seed=st.integers(0, 2**32), depth=st.integers(1, 4), shift=st.integers(1, 15))
def test_out_of_phase_is_not_equal(seed: int, depth: int, shift: int) -> None:
    """Without this the test above could pass with a network that does not care."""
    geometry = UnetGeometry(depth)
    assume(shift % geometry.divisor)
    signal = np.random.default_rng(seed).integers(0, 65521, 400)
    whole = run(signal, geometry, cover_axis(geometry, Interval(0, 400), geometry.whole_window(400).size))
    side = geometry.tile_side(64)
    moved = Interval(shift - geometry.context, shift - geometry.context + side)
    shifted = network(read(signal, moved), depth)[:64].tolist()
    assert sum(value != whole[shift + i] for i, value in enumerate(shifted)) > 16
