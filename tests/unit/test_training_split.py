"""Validation images and gaps are chosen by stem; numbers missing from a stack count as neighbours."""

from __future__ import annotations

import itertools

import pytest

from unet_deploy.training.split import last_tenth, middles, split_stems

ISBI = [f"{i:02}" for i in range(30) if i not in {11, 12, 13, 26, 27, 28}]


def names(count: int) -> list[str]:
    return [f"{i:02}" for i in range(count)]


def test_of_unrelated_images_the_last_tenth_is_held_out() -> None:
    split = split_stems(names(24), validation=None, exclude=("23",), is_stack=False, gap=1)
    assert split.validation == ("21", "22")
    assert split.excluded == ("23",)
    assert last_tenth(names(30)) == ("27", "28", "29")
    assert last_tenth(["a"]) == ("a",)


@pytest.mark.parametrize("count", [2, 3, 7, 24, 30, 100])
def test_both_halves_of_a_stack_are_validated_on(count: int) -> None:
    held_out = middles(names(count))
    assert len(held_out) == max(2, round(count / 10))
    halves = {int(stem) >= count / 2 for stem in held_out}
    assert halves == {False, True}
    steps = {int(b) - int(a) for a, b in itertools.pairwise(held_out)}
    assert max(steps) - min(steps) <= 1


def test_the_gap_of_a_stack_is_measured_in_numbers_of_the_files() -> None:
    split = split_stems(ISBI, validation=("14", "24", "05"), exclude=("29",), is_stack=True, gap=2)
    assert split.validation == ("14", "24", "05")
    assert split.excluded == ("29", "03", "04", "06", "07", "15", "16", "22", "23", "25")
    assert split.gap == split.excluded[1:]  # 10 is four numbers from 14, though two files


def test_a_held_out_neighbour_is_not_left_out() -> None:
    split = split_stems(names(8), validation=("03", "04"), exclude=(), is_stack=True, gap=1)
    assert split.excluded == ("02", "05")


def test_series_of_other_names_are_no_neighbours_and_order_is_by_number() -> None:
    stems = ["a1", "a2", "a10", "b1", "b2"]
    assert split_stems(stems, validation=("a2",), exclude=(), is_stack=True, gap=1).excluded == ("a1",)
    assert split_stems(stems, validation=("b1",), exclude=(), is_stack=True, gap=1).excluded == ("b2",)
    assert split_stems(stems, validation=None, exclude=(), is_stack=True, gap=0).validation == ("a2", "b1")


def test_without_numbers_the_order_counts() -> None:
    stems = ["a", "b", "c", "d1", "e"]
    assert split_stems(stems, validation=("c",), exclude=("b",), is_stack=True, gap=1).excluded == ("b", "d1")


def test_unknown_stems_are_passed_on() -> None:
    split = split_stems(names(4), validation=("9x",), exclude=("none",), is_stack=True, gap=1)
    assert (split.validation, split.excluded) == (("9x",), ("none",))
    assert split_stems((), validation=None, exclude=(), is_stack=True, gap=1).validation == ()
    assert split_stems((), validation=None, exclude=(), is_stack=False, gap=1).validation == ()
