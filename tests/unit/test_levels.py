"""The level nearest to the pixel size trained at: by ratio, said in words, and never by a guess."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unet_deploy.runtime.levels import (
    MAX_RATIO,
    LevelChoice,
    choose_level,
    level_sizes_nm,
    pixel_size_nm,
    ratio_of,
)
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
    assert choose_level(PYRAMID, wanted).level == level


def test_of_two_equally_near_the_finer_is_chosen() -> None:
    assert choose_level(PYRAMID, (8**0.5, 8**0.5)).level == 0


def test_the_open_level_does_not_matter() -> None:
    assert choose_level(replace(PYRAMID, level=3, array_path="3", scale=(50, 16, 16)), (4, 4)).level == 1


def test_what_was_chosen_is_said() -> None:
    assert choose_level(PYRAMID, (4.4, 4.4)).reason == "level 1 of 4: 4 nm is nearest to the 4.4 nm trained at"
    assert choose_level(PYRAMID, (1, 2)).reason == "level 0 of 4: 2 nm is nearest to the 1 × 2 nm trained at"


@pytest.mark.parametrize("wanted", [(1, 1), (0.001, 0.001), (50, 50), (1e9, 1e9), (4, 16)])
def test_however_far_the_nearest_is_it_is_chosen(wanted: tuple[float, float]) -> None:
    nearest = choose_level(PYRAMID, wanted).level
    ratios = [ratio_of(size, wanted) for size in level_sizes_nm(PYRAMID).values()]
    assert ratios[nearest] == min(ratios) > MAX_RATIO  # of which the drift guard speaks


@pytest.mark.parametrize(
    ("unit", "factor"),
    [
        ("micrometer", 1e3),
        ("angstrom", 0.1),
        ("millimeter", 1e6),
        ("inch", 2.54e7),
        ("µm", 1e3),
        ("μm", 1e3),
        ("nanometer", 1),
    ],
)
def test_units_are_lengths(unit: str, factor: float) -> None:
    info = make_info((1, 2, 4), unit=unit)
    assert pixel_size_nm(info) == pytest.approx((2 * factor, 4 * factor))
    assert level_sizes_nm(info) == {0: pixel_size_nm(info)}


def test_the_size_is_that_of_y_and_x_of_the_level_asked_for() -> None:
    info = make_info((1, 9, 2, 3), (1, 9, 4, 6), axes="tzyx")
    assert pixel_size_nm(info) == (2, 3)
    assert pixel_size_nm(info, 1) == (4, 6)


@pytest.mark.parametrize(
    "info",
    [
        make_info(None, None),
        make_info((1, 2, 2), (1, 4, 4), unit=None),
        make_info((1, 2, 2), (1, 4, 4), unit="pixel"),
        make_info((1, 0, 2), (1, 0, 4)),
        replace(PYRAMID, units=None),
    ],
)
def test_an_unknown_size_is_no_guess(info: VolumeInfo) -> None:
    assert pixel_size_nm(info) is None
    chosen = choose_level(info, (4, 4))
    assert (chosen.level, chosen.reason) == (0, None)


def test_a_model_that_does_not_say_its_size_gets_the_finest() -> None:
    chosen = choose_level(PYRAMID, None)
    assert chosen.level == 0
    assert chosen.reason is None


def test_one_level_is_no_choice() -> None:
    for wanted in ((4, 4), (400, 400), None):
        assert choose_level(make_info((1, 4, 4)), wanted) == LevelChoice(level=0, reason=None)


def test_an_absent_level_is_not_chosen() -> None:
    def without(*gone: int) -> VolumeInfo:
        levels = (replace(level, shape=None) if i in gone else level for i, level in enumerate(PYRAMID.levels))
        return replace(PYRAMID, levels=tuple(levels))

    assert choose_level(without(1), (4, 4)).level == 0
    assert choose_level(without(1), (4.1, 4.1)).level == 2
    assert choose_level(without(0), None).level == 1
    assert choose_level(without(0, 1, 2), (4, 4)) == LevelChoice(level=3, reason=None)
    assert choose_level(without(0, 1, 2, 3), (4, 4)) == LevelChoice(level=0, reason=None)  # opening it says so


@given(st.floats(2, 16), st.floats(0.01, 100))
def test_a_halving_pyramid_always_has_a_level_and_scale_does_not_matter(wanted: float, factor: float) -> None:
    level = choose_level(PYRAMID, (wanted, wanted)).level
    best = min(max(wanted / s, s / wanted) for s in (2, 4, 8, 16))
    assert max(wanted / (2 * 2**level), 2 * 2**level / wanted) == pytest.approx(best)
    assert best <= 2**0.5 + 1e-9 < MAX_RATIO
    scaled = make_info(*(tuple(factor * s for s in level.scale or ()) for level in PYRAMID.levels))
    assert choose_level(scaled, (wanted * factor,) * 2).level in (level, level + 1)  # rounding may turn a tie
