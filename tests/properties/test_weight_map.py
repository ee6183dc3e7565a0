"""The fast weight map is the plain one: a distance transform of the whole image for each cell, sorted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

ndimage = pytest.importorskip("scipy.ndimage", reason="the extra 'train' is not installed")

from unet_deploy.training.weight_map import border_term, separate_touching  # noqa: E402

TOLERANCE = 2e-6
"""A millionth for cells beyond the reach, as much again for float32 below 10."""


def plain_term(cells: npt.NDArray[Any], border_weight: float, border_sigma_px: float) -> npt.NDArray[np.float64]:
    numbers = [n for n in np.unique(cells) if n > 0]
    if len(numbers) < 2:
        return np.zeros(cells.shape)
    distances = np.sort([ndimage.distance_transform_edt(cells != n) for n in numbers], axis=0)
    term = border_weight * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * border_sigma_px**2))
    return np.where(cells > 0, 0, term)


def chebyshev_gaps(cells: npt.NDArray[Any]) -> dict[tuple[int, int], int]:
    """Return for each pair of cells the greatest of row and column distance between their nearest pixels."""
    places = {int(n): np.argwhere(cells == n) for n in np.unique(cells) if n > 0}
    return {
        (a, b): int(np.abs(places[a][:, None] - places[b][None]).max(axis=2).min())
        for a in places
        for b in places
        if a < b
    }


@st.composite
def scattered(draw: st.DrawFn) -> npt.NDArray[np.int32]:
    """Rectangles at random, some over others, in an image that may be a line."""
    shape = draw(st.tuples(st.integers(1, 70), st.integers(1, 70)))
    cells = np.zeros(shape, np.int32)
    for number in draw(st.lists(st.integers(1, 5000), max_size=8)):
        y, x = draw(st.integers(0, shape[0] - 1)), draw(st.integers(0, shape[1] - 1))
        cells[y : y + draw(st.integers(1, 12)), x : x + draw(st.integers(1, 12))] = number
    return cells


crowded = arrays.arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 3))
blocks = crowded.map(lambda cells: np.kron(cells, np.ones((4, 4), np.int32)))


@given(
    cells=scattered() | crowded | blocks, border_weight=st.sampled_from([0.5, 10, 60]), sigma=st.sampled_from([1, 5])
)
@settings(max_examples=60)
def test_the_border_term_is_the_plain_one(cells: npt.NDArray[np.int32], border_weight: float, sigma: float) -> None:
    came = border_term(cells, border_weight=border_weight, border_sigma_px=sigma)
    expected = plain_term(cells, border_weight, sigma)
    assert np.abs(came - expected).max() <= TOLERANCE * max(border_weight / 10, 1)


@given(cells=crowded | blocks | scattered())
@settings(max_examples=60)
def test_separating_removes_only_pixels_of_touching_cells_and_no_cell(cells: npt.NDArray[np.int32]) -> None:
    separated = separate_touching(cells)
    gone = separated != cells
    assert not separated[gone].any()
    assert np.array_equal(np.unique(separated[separated > 0]), np.unique(cells[cells > 0]))
    for y, x in np.argwhere(gone):
        around = cells[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        assert ((around > 0) & (around != cells[y, x])).any()


@given(cells=blocks)
@settings(max_examples=60)
def test_thick_cells_do_not_touch_any_more_and_stay_as_they_are_then(cells: npt.NDArray[np.int32]) -> None:
    separated = separate_touching(cells)
    assert all(gap >= 2 for gap in chebyshev_gaps(separated).values())  # a pixel of background or more, diagonals too
    for axis in (0, 1):  # and two where they met
        ahead, behind = np.delete(cells, 0, axis), np.delete(cells, -1, axis)
        meets = (ahead != behind) & (ahead > 0) & (behind > 0)
        assert not np.delete(separated, 0, axis)[meets].any()
        assert not np.delete(separated, -1, axis)[meets].any()
    assert np.array_equal(separate_touching(separated), separated)
