"""The level nearest to the pixel size trained at: by ratio, within a limit, and never by a guess."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_deploy.errors import UnsupportedMetadataError
from unet_deploy.runtime.levels import MAX_RATIO, choose_level, pixel_size_nm
from unet_deploy.runtime.volume import Level, VolumeInfo


def make_info(*scales: tuple[float, ...] | None, axes: str = "zyx", unit: str | None = "nanometer") -> VolumeInfo:
    levels = tuple(
        Level(path=str(i), shape=(8,) * len(axes), chunks=(8,) * len(axes), shards=None, scale=s, translation=None)
        for i, s in enumerate(scales)
    )
    return VolumeInfo(
        path="/data/em.zarr",
        array_path="0",
        zarr_format=3,
        ome_version="0.5",
        name="em",
        axes=axes,
        shape=(8,) * len(axes),
        dtype="uint8",
        chunks=(8,) * len(axes),
        shards=None,
        scale=levels[0].scale,
        translation=None,
        units=(unit,) * len(axes),
        fill_value=0,
        codecs=(),
        channel_names=None,
        levels=levels,
        level=0,
    )


PYRAMID = make_info((50, 2, 2), (50, 4, 4), (50, 8, 8), (50, 16, 16))


@pytest.mark.parametrize(
    ("wanted", "level"),
    [((2, 2), 0), ((4, 4), 1), ((7.9, 8.2), 2), ((3, 3), 1), ((2.8, 2.8), 0), ((2.84, 2.84), 1), ((20, 20), 3)],
)
def test_the_nearest_by_ratio_is_chosen(wanted: tuple[float, float], level: int) -> None:
    assert choose_level(PYRAMID, wanted) == level


def test_of_two_equally_near_the_finer_is_chosen() -> None:
    assert choose_level(PYRAMID, (8**0.5, 8**0.5)) == 0


def test_the_open_level_does_not_matter() -> None:
    assert choose_level(replace(PYRAMID, level=3, array_path="3", scale=(50, 16, 16)), (4, 4)) == 1


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("micrometer", 1e3), ("angstrom", 0.1), ("millimeter", 1e6), ("µm", 1e3), ("μm", 1e3), ("nanometer", 1)],
)
def test_units_are_lengths(unit: str, factor: float) -> None:
    info = make_info((1, 2, 4), unit=unit)
    assert pixel_size_nm(info) == pytest.approx((2 * factor, 4 * factor))
    assert choose_level(info, (2 * factor, 4 * factor)) == 0


def test_the_size_is_that_of_y_and_x_of_the_level_asked_for() -> None:
    info = make_info((1, 9, 2, 3), (1, 9, 4, 6), axes="tzyx")
    assert pixel_size_nm(info) == (2, 3)
    assert pixel_size_nm(info, 1) == (4, 6)


@pytest.mark.parametrize(
    "info",
    [
        make_info(None, None),
        make_info((1, 2, 2), unit=None),
        make_info((1, 2, 2), unit="pixel"),
        replace(PYRAMID, units=None),
        replace(PYRAMID, levels=tuple(replace(level, shape=None) for level in PYRAMID.levels)),
    ],
)
def test_an_unknown_size_is_no_guess(info: VolumeInfo) -> None:
    with pytest.raises(UnsupportedMetadataError, match="the volume's pixel size is unknown") as caught:
        choose_level(info, (4, 4))
    assert caught.value.details == ("in /data/em.zarr", "trained at 4 × 4 nm")
    assert caught.value.fix == "choose the level with --level"


@pytest.mark.parametrize(("wanted", "nearest", "off"), [((1, 1), 0, "2"), ((50, 50), 3, "3.12"), ((4, 16), 2, "2")])
def test_no_level_near_enough_is_said_with_all_sizes(wanted: Any, nearest: int, off: str) -> None:
    with pytest.raises(UnsupportedMetadataError, match=r"no level has pixels near .* nm, what the model") as caught:
        choose_level(PYRAMID, wanted)
    assert len(caught.value.details) == 5
    assert f"level {nearest}: " in caught.value.details[1 + nearest]
    assert caught.value.details[1 + nearest].endswith(f"off by {off}")
    assert caught.value.fix.endswith(f"insist with --level {nearest}")
    assert choose_level(PYRAMID, wanted, max_ratio=4.01) == nearest


def test_an_absent_level_is_not_chosen() -> None:
    absent = tuple(replace(level, shape=None) if i == 1 else level for i, level in enumerate(PYRAMID.levels))
    with pytest.raises(UnsupportedMetadataError, match="no level has pixels near 4 × 4 nm") as caught:
        choose_level(replace(PYRAMID, levels=absent), (4, 4))
    assert len(caught.value.details) == 4


@given(st.floats(2, 16), st.floats(0.01, 100))
def test_a_halving_pyramid_always_has_a_level_and_scale_does_not_matter(wanted: float, factor: float) -> None:
    level = choose_level(PYRAMID, (wanted, wanted))
    best = min(max(wanted / s, s / wanted) for s in (2, 4, 8, 16))
    assert max(wanted / (2 * 2**level), 2 * 2**level / wanted) == pytest.approx(best)
    assert best <= 2**0.5 + 1e-9 < MAX_RATIO
    scaled = make_info(*(tuple(factor * s for s in level.scale or ()) for level in PYRAMID.levels))
    assert choose_level(scaled, (wanted * factor,) * 2) in (level, level + 1)  # rounding may turn a tie
