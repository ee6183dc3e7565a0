"""The numbers of DESIGN section 4, and the text of what geometry refuses."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from unet_deploy.errors import ConfigurationError, TileNotLegalError
from unet_deploy.geometry import (
    MAX_DEPTH,
    AxisTile,
    Interval,
    UnetGeometry,
    cover_axis,
    mirror_index,
    mirrored_source,
)

PAPER = UnetGeometry(4)
DEPTHS = range(1, MAX_DEPTH + 1)


@dataclasses.dataclass
class Sizes:
    """What a walk through the layers meets: the output's side, and each skip's side with the side it is cropped to."""

    output: int
    skips: list[tuple[int, int]]


def walk(depth: int, side: int) -> Sizes | None:
    """Return the sizes of a valid-convolution U-Net layer by layer, None where it cannot be; knows no formula."""
    levels: list[int] = []
    for _ in range(depth):
        side = side - 2 - 2
        if side <= 0 or side % 2:
            return None
        levels.append(side)
        side //= 2
    side = side - 2 - 2
    skips: list[tuple[int, int]] = []
    for level in reversed(levels):
        if side <= 0:
            return None
        side *= 2
        skips.append((level, side))
        side = side - 2 - 2
    return Sizes(side, skips) if side > 0 else None


def test_the_paper() -> None:
    assert (PAPER.divisor, PAPER.context, PAPER.surplus) == (16, 92, 4)
    assert PAPER.crop_margins == (4, 16, 40, 88)
    assert (PAPER.output_side(572), PAPER.core_side(572), PAPER.tile_side(384)) == (388, 384, 572)
    assert PAPER.smallest_tile == 204
    assert walk(4, 572) == Sizes(388, [(64, 56), (136, 104), (280, 200), (568, 392)])  # figure 1 of the paper


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_side_is_legal_when_a_walk_through_the_layers_ends_well(depth: int) -> None:
    geometry = UnetGeometry(depth)
    for side in range(1, 2 * geometry.context + 5 * geometry.divisor):
        sizes = walk(depth, side)
        assert geometry.is_legal(side) == (sizes is not None), side
        if sizes is not None:
            assert geometry.output_side(side) == sizes.output == side - 2 * geometry.context
            assert geometry.crop_margins == tuple((skip - up) // 2 for skip, up in sizes.skips)
            assert all((skip - up) % 2 == 0 for skip, up in sizes.skips)


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_tile_of_a_core_is_the_smallest_legal_one_that_holds_it(depth: int) -> None:
    geometry = UnetGeometry(depth)
    for core in range(geometry.divisor, 6 * geometry.divisor, geometry.divisor):
        tile = geometry.tile_side(core)
        assert geometry.is_legal(tile)
        assert geometry.core_side(tile) == core
        assert geometry.output_side(tile) - core == geometry.surplus
        assert not any(
            geometry.is_legal(side) and geometry.core_side(side) >= core
            for side in range(tile - geometry.divisor, tile)
        )
    assert geometry.smallest_tile == geometry.tile_side(geometry.divisor)


@pytest.mark.parametrize("depth", DEPTHS)
def test_nearest_legal_sides(depth: int) -> None:
    geometry = UnetGeometry(depth)
    legal = [n for n in range(geometry.smallest_tile, geometry.smallest_tile + 9 * geometry.divisor) if walk(depth, n)]
    for side in range(1, legal[-1]):
        below = [n for n in legal if n <= side]
        above = [n for n in legal if n > side]
        assert geometry.nearest_legal(side) == (*below[-1:], above[0])


@pytest.mark.parametrize("depth", [0, -1, 9, 10**9])
def test_a_depth_out_of_range_is_refused(depth: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"^network depth {depth} is not in 1\.\.8\n") as caught:
        UnetGeometry(depth)
    assert "the paper's network has 4" in str(caught.value)
    assert "fix: use a depth from 1 to 8" in str(caught.value)


def test_an_illegal_tile_is_told_its_legal_neighbours() -> None:
    with pytest.raises(TileNotLegalError, match=r"^tile side 250 on axis x is not 16·k − 4") as caught:
        PAPER.require_legal(250, axis="x")
    assert str(caught.value) == (
        "tile side 250 on axis x is not 16·k − 4 with at least 204\n"
        "  the network reduces its input 16-fold and needs 92 px of context a side\n"
        "  nearest legal sides: 236, 252\n"
        "  fix: --tile 252"
    )


@pytest.mark.parametrize("side", [-4, 0, 12, 188, 203])
def test_a_tile_without_a_core_is_refused(side: int) -> None:
    # 188 passes every pooling and yields 4 px of output, none of which makes a multiple of 16.
    with pytest.raises(TileNotLegalError, match=r"nearest legal sides: 204\n  fix: --patch 204$"):
        PAPER.require_legal(side, axis="y", flag="--patch")


@pytest.mark.parametrize("side", [204, 252, 572])
def test_a_legal_tile_is_given_back(side: int) -> None:
    assert PAPER.require_legal(side, axis="y") == side


def test_the_advice_is_legal() -> None:
    for side in range(1, 700):
        if not (PAPER.is_legal(side) and PAPER.core_side(side)):
            with pytest.raises(TileNotLegalError, match=rf"^tile side {side} on axis x") as caught:
                PAPER.require_legal(side, axis="x")
            advised = int(caught.value.fix.split()[-1])
            assert PAPER.require_legal(advised, axis="x") == advised


def test_round_up() -> None:
    assert [PAPER.round_up(n) for n in (0, 1, 15, 16, 17, 512, 513)] == [16, 16, 16, 16, 32, 512, 528]


def test_windows() -> None:
    assert PAPER.tile_window(0, 572) == Interval(-92, 480)
    assert PAPER.tile_window(384, 572) == Interval(292, 864)
    assert PAPER.whole_window(512) == Interval(-92, 512 + 92 + 4)
    assert PAPER.whole_window(1) == Interval(-92, 112)


def test_an_interval() -> None:
    interval = Interval(-92, 480)
    assert interval.size == 572
    assert interval.shifted(92) == Interval(0, 572)
    assert interval.clipped(100) == Interval(0, 100)
    assert Interval(3, 5).slice == slice(3, 5)
    assert Interval(0, 2) < Interval(0, 3) < Interval(1, 2)


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: Interval(5, 5),
        lambda: Interval(5, 4),
        lambda: Interval(-1, 4).slice,
        lambda: Interval(10, 20).clipped(10),
        lambda: PAPER.output_side(573),
        lambda: PAPER.tile_side(388),
        lambda: PAPER.tile_side(0),
        lambda: PAPER.tile_window(8, 572),
        lambda: mirror_index(0, 0),
    ],
)
def test_our_own_invariants_hold(misuse) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(AssertionError):
        misuse()


def test_the_paper_tiles_a_slice_of_isbi() -> None:
    # The last core is cut to the region; its window is not, so every tile has one shape.
    assert cover_axis(PAPER, Interval(0, 512), 572) == (
        AxisTile(read=Interval(-92, 480), keep=Interval(0, 384), crop=Interval(0, 384)),
        AxisTile(read=Interval(292, 864), keep=Interval(384, 512), crop=Interval(0, 128)),
    )


def test_a_region_off_the_grid_keeps_the_phase() -> None:
    assert cover_axis(PAPER, Interval(100, 300), 252) == (
        AxisTile(read=Interval(4, 256), keep=Interval(100, 160), crop=Interval(4, 64)),
        AxisTile(read=Interval(68, 320), keep=Interval(160, 224), crop=Interval(0, 64)),
        AxisTile(read=Interval(132, 384), keep=Interval(224, 288), crop=Interval(0, 64)),
        AxisTile(read=Interval(196, 448), keep=Interval(288, 300), crop=Interval(0, 12)),
    )


def test_the_edge_pixel_is_not_repeated() -> None:
    assert [mirror_index(i, 4) for i in range(-4, 8)] == [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]
    assert np.pad(np.arange(4), 4, mode="reflect").tolist() == [mirror_index(i, 4) for i in range(-4, 8)]


def test_what_a_window_beyond_the_border_reads() -> None:
    assert mirrored_source(Interval(10, 20), 512) == Interval(10, 20)
    assert mirrored_source(Interval(-92, 480), 512) == Interval(0, 480)
    assert mirrored_source(Interval(500, 600), 512) == Interval(423, 512)
    assert mirrored_source(Interval(600, 610), 512) == Interval(413, 423)
    assert mirrored_source(Interval(-92, 112), 1) == Interval(0, 1)


def test_geometry_is_a_plain_value() -> None:
    assert UnetGeometry(3) == UnetGeometry(3) != UnetGeometry(4)
    assert hash(UnetGeometry(3)) == hash(UnetGeometry(3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        UnetGeometry(3).depth = 4  # type: ignore[misc]
