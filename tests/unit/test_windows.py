"""A window holds what numpy's reflect would put there, and is made of nothing beyond the halo."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unet_deploy.geometry import AxisTile, Geometry, Interval, UnetGeometry, cover_axis
from unet_deploy.runtime.windows import WindowPlan, plan_window, spread


class Axis(NamedTuple):
    """A region along one axis, and the tiles that cover it."""

    geometry: Geometry
    extent: int
    region: Interval
    tiles: tuple[AxisTile, ...]

    @property
    def plan(self) -> WindowPlan:
        return plan_window(self.geometry, self.tiles, self.extent)

    @property
    def needed(self) -> int:
        """Return up to where kept pixels depend on the window: the last cell's end, its context and the surplus."""
        g = self.geometry
        return -(-self.region.stop // g.divisor) * g.divisor + g.context + g.surplus


@st.composite
def axes(draw: st.DrawFn, geometry: Geometry | None = None) -> Axis:
    g = geometry or UnetGeometry(draw(st.integers(1, 4)))
    extent = draw(st.one_of(st.integers(1, 8), st.integers(1, 400)))
    start = draw(st.integers(0, extent - 1))
    region = Interval(start, draw(st.integers(start + 1, extent)))
    tile = g.tile_side(draw(st.integers(1, 12)) * g.divisor)
    return Axis(g, extent, region, cover_axis(g, region, tile))


@st.composite
def planes(draw: st.DrawFn) -> tuple[Axis, Axis]:
    geometry = UnetGeometry(draw(st.integers(1, 4)))
    return draw(axes(geometry)), draw(axes(geometry))


def covered(tiles: tuple[AxisTile, ...]) -> Interval:
    return Interval(min(t.read.start for t in tiles), max(t.read.stop for t in tiles))


@given(planes())
@settings(max_examples=150)
def test_a_window_is_what_numpy_reflects(plane: tuple[Axis, Axis]) -> None:
    y, x = plane
    volume = np.random.default_rng(0).integers(0, 2**16, (2, y.extent, x.extent), dtype=np.uint16)
    source = volume[:, y.plan.source.slice, x.plan.source.slice]
    window = spread(source, y.plan, x.plan)

    whole = [covered(axis.tiles) for axis in plane]
    padding = [(max(-w.start, 0), max(w.stop - a.extent, 0)) for w, a in zip(whole, plane, strict=True)]
    expected = np.pad(volume, [(0, 0), *padding], mode="reflect")
    places = [w.shifted(p[0]).slice for w, p in zip(whole, padding, strict=True)]
    expected = expected[:, places[0], places[1]]
    assert window.shape == expected.shape
    assert window.dtype == np.uint16

    rows, columns = (axis.needed - w.start for axis, w in zip(plane, whole, strict=True))
    np.testing.assert_array_equal(window[:, :rows, :columns], expected[:, :rows, :columns])


@given(axes())
@settings(max_examples=300)
def test_nothing_is_read_beyond_the_halo(axis: Axis) -> None:
    source, g = axis.plan.source, axis.geometry
    reach = g.context + g.surplus + g.divisor
    assert 0 <= source.start < source.stop <= axis.extent
    assert source.start >= axis.region.start - reach
    assert source.stop <= axis.region.stop + reach


@given(axes())
@settings(max_examples=300)
def test_all_of_the_source_is_used(axis: Axis) -> None:
    plan = axis.plan
    assert plan.window == covered(axis.tiles)
    if plan.index is None:
        assert plan.source == plan.window
    else:
        assert len(plan.index) == plan.window.size
        assert set(plan.index) == set(range(plan.source.size))


@given(axes())
@settings(max_examples=300)
def test_what_only_fills_the_last_tile_is_not_read(axis: Axis) -> None:
    # A larger tile makes a larger window, never a larger read.
    g = axis.geometry
    huge = plan_window(g, cover_axis(g, axis.region, g.tile_side(40 * g.divisor)), axis.extent)
    exact = plan_window(g, cover_axis(g, axis.region, g.tile_side(g.divisor)), axis.extent)
    assert huge.source == exact.source == axis.plan.source


def test_nothing_is_copied_when_nothing_is_mirrored() -> None:
    g = UnetGeometry(2)
    plan = plan_window(g, cover_axis(g, Interval(40, 72), g.tile_side(16)), 200)
    assert (plan.window, plan.source, plan.index) == (Interval(20, 92), Interval(20, 92), None)
    pixels = np.zeros((3, 72, 72), np.uint8)
    assert np.shares_memory(spread(pixels, plan, plan), pixels)


def test_one_mirrored_axis_leaves_the_other_alone() -> None:
    g = UnetGeometry(1)
    inner = plan_window(g, cover_axis(g, Interval(20, 30), g.tile_side(10)), 100)
    border = plan_window(g, cover_axis(g, Interval(0, 10), g.tile_side(10)), 100)
    pixels = np.arange(26 * 18).reshape(26, 18)
    window = spread(pixels, inner, border)
    assert (border.source, border.window) == (Interval(0, 18), Interval(-8, 18))
    np.testing.assert_array_equal(window, np.pad(pixels, ((0, 0), (8, 0)), mode="reflect"))


def test_a_volume_of_one_pixel_fills_any_window() -> None:
    g = UnetGeometry(4)
    plan = plan_window(g, cover_axis(g, Interval(0, 1), g.smallest_tile), 1)
    assert plan.source == Interval(0, 1)
    window = spread(np.full((1, 1, 1), 7, np.float32), plan, plan)
    assert window.shape == (1, g.smallest_tile, g.smallest_tile)
    assert (window == 7).all()


def test_the_pixels_must_be_the_source() -> None:
    g = UnetGeometry(1)
    plan = plan_window(g, cover_axis(g, Interval(0, 10), g.tile_side(10)), 10)
    with pytest.raises(AssertionError):
        spread(np.zeros((10, 11)), plan, plan)
