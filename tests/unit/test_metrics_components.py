"""Objects from a mask: what is connected, what is dropped, and how they are numbered."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("scipy", reason="the extra 'evaluate' is not installed")

from unet_deploy.errors import ConfigurationError
from unet_deploy.metrics.components import number_components


def mask(*rows: str) -> npt.NDArray[np.bool_]:
    return np.array([[letter == "#" for letter in row] for row in rows])


def test_pixels_that_share_a_side_are_one_object() -> None:
    found = number_components(mask("##..#", ".#.#.", "...##"))
    assert found.tolist() == [[1, 1, 0, 0, 2], [0, 1, 0, 3, 0], [0, 0, 0, 3, 3]]
    assert found.dtype == np.int32


def test_in_a_volume_objects_go_on_from_slice_to_slice() -> None:
    volume = np.stack([mask("#..", "..."), mask("#..", "..#"), mask("...", "#.#")])
    found = number_components(volume)
    assert found[:, 0, 0].tolist() == [1, 1, 0]
    assert found[:, 1, 2].tolist() == [0, 2, 2]
    assert found[2, 1, 0] == 3  # diagonal to the first along z


@pytest.mark.parametrize(
    ("min_size", "sizes"), [(0, [3, 1, 2]), (1, [3, 1, 2]), (2, [3, 2]), (3, [3]), (4, []), (10**9, [])]
)
def test_small_ones_are_dropped_and_the_others_numbered_without_a_gap(min_size: int, sizes: list[int]) -> None:
    found = number_components(mask("###.#", "......"[:5], "##..."), min_size=min_size)
    assert np.bincount(found.ravel(), minlength=1)[1:].tolist() == sizes
    assert found.dtype == np.int32


@pytest.mark.parametrize("shape", [(0, 3), (3, 3), (2, 3, 3)])
def test_nothing_is_no_object(shape: tuple[int, ...]) -> None:
    for min_size in (0, 5):
        found: Any = number_components(np.zeros(shape, bool), min_size=min_size)
        assert found.shape == shape
        assert not found.any()


def test_a_negative_size_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"smallest object of -1 px: the size cannot be negative"):
        number_components(mask("#"), min_size=-1)
