"""The weight map is the paper's equation 2, worked out by hand on small images."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("scipy", reason="the extra 'train' is not installed")

from unet_deploy.training.weight_map import (
    border_term,
    class_weights,
    reach_px,
    separate_touching,
    two_distances,
    weight_map,
)


def cells_of(*rows: str) -> npt.NDArray[np.int32]:
    """Return cells drawn as text: a digit is a cell's number, a dot is background."""
    return np.array([[0 if c == "." else int(c) for c in row] for row in rows], np.int32)


def paper_term(cells: npt.NDArray[Any], border_weight: float = 10, border_sigma_px: float = 5) -> Any:
    return border_term(cells, border_weight=border_weight, border_sigma_px=border_sigma_px)


def test_a_gap_between_two_cells_by_hand() -> None:
    term = paper_term(cells_of("11..222"))
    gap = 10 * math.exp(-((1 + 2) ** 2) / 50)
    assert term.tolist() == [pytest.approx([0, 0, gap, gap, 0, 0, 0])]
    assert term.dtype == np.float32


def test_distances_are_euclidean_and_to_the_nearest_two_of_three_cells() -> None:
    cells = np.zeros((9, 9), np.int32)
    cells[0, 0], cells[4, 8], cells[8, 0] = 1, 2, 3
    nearest, second = two_distances(cells, reach_px=29)
    assert nearest[4, 4] == 4
    assert second[4, 4] == pytest.approx(math.hypot(4, 4))
    assert (nearest[4, 0], second[4, 0]) == (4, 4)
    assert (nearest[0, 0], second[0, 0]) == (0, 8)


@pytest.mark.parametrize("cells", [cells_of("......"), cells_of("..11.."), cells_of("111111")])
def test_without_a_second_cell_there_is_no_border_term(cells: npt.NDArray[np.int32]) -> None:
    assert not paper_term(cells).any()


def test_cells_at_the_images_edge_and_cells_that_fill_it() -> None:
    assert paper_term(cells_of("1....2"))[0, 1] == pytest.approx(10 * math.exp(-((1 + 4) ** 2) / 50))
    assert not paper_term(cells_of("111222", "333444")).any()  # no background, nothing to teach


def test_numbers_need_not_be_consecutive() -> None:
    cells = cells_of("1.2..3", "1.2..3")
    sparse = np.array([0, 7, 2**31 - 1, 1_000_000], np.int32)[cells]  # as long a list would be 16 GiB
    assert np.array_equal(paper_term(sparse), paper_term(cells))


def test_parts_of_one_cell_are_one_cell() -> None:
    assert not paper_term(cells_of("1...1")).any()
    assert paper_term(cells_of("1...1....2"))[0, 2] == pytest.approx(10 * math.exp(-((2 + 7) ** 2) / 50))


def test_the_reach_leaves_out_less_than_a_millionth() -> None:
    assert reach_px(10, 5) == 29
    assert 10 * math.exp(-(29**2) / 50) < 1e-6 < 10 * math.exp(-(28**2) / 50)
    assert reach_px(0, 5) == 0
    far = np.zeros((1, 40), np.int32)
    far[0, 0], far[0, -1] = 1, 2
    assert 0 < paper_term(far, border_sigma_px=9).max() < 10 * math.exp(-(39**2) / 200)


def test_moving_the_cells_moves_the_term() -> None:
    cells = np.zeros((100, 110), np.int32)
    cells[35:42, 40:50], cells[44:50, 43:48], cells[36:40, 55:70] = 1, 2, 3
    moved = np.roll(cells, (9, -6), (0, 1))
    assert np.array_equal(np.roll(paper_term(cells), (9, -6), (0, 1)), paper_term(moved))


def test_the_map_adds_class_weight_and_border_term_and_leaves_out_what_is_ignored() -> None:
    cells = cells_of("11..22")
    label = (cells > 0).astype(np.uint8)
    ignored = np.array([[False, True, False, True, False, False]])
    arguments: dict[str, Any] = {"class_weights": (0.5, 2.0), "border_weight": 10, "border_sigma_px": 5}
    gap = 0.5 + 10 * math.exp(-9 / 50)
    came = weight_map(label, cells, **arguments, ignored=ignored)
    assert came.dtype == np.float32
    assert came.tolist() == [pytest.approx([2, 0, gap, 0, 2, 2])]
    assert weight_map(label, cells, **{**arguments, "border_weight": 0}).tolist() == [[2, 2, 0.5, 0.5, 2, 2]]
    assert weight_map(label, None, **arguments).tolist() == [[2, 2, 0.5, 0.5, 2, 2]]


def test_class_weights_run_from_equal_pixels_to_equal_classes() -> None:
    assert class_weights((300, 100), 0) == (1, 1)
    plain = class_weights((300, 100), 1)
    assert [w * share for w, share in zip(plain, (0.75, 0.25), strict=True)] == pytest.approx([0.5, 0.5])
    root = class_weights((300, 100), 0.5)
    assert root[1] / root[0] == pytest.approx(math.sqrt(3))
    assert class_weights((300, 0, 100), 1)[1] == 0


@pytest.mark.parametrize("balance", [0, 0.3, 1])
def test_the_mean_class_weight_over_pixels_is_one(balance: float) -> None:
    pixels = (812_345, 30_112, 1_907)
    weights = class_weights(pixels, balance)
    assert math.fsum(w * n for w, n in zip(weights, pixels, strict=True)) / sum(pixels) == pytest.approx(1)


def test_touching_cells_get_a_line_of_background() -> None:
    assert separate_touching(cells_of("111222")).tolist() == cells_of("11..22").tolist()
    corner = separate_touching(cells_of("11.", "11.", "..2", "..2"))  # by a corner: these touch too
    assert corner.tolist() == cells_of("11.", "1..", "...", "..2").tolist()
    apart = cells_of("11.22", "11.22")
    assert separate_touching(apart).tolist() == apart.tolist()


def test_a_cell_no_thicker_than_the_line_stays() -> None:
    thin = separate_touching(cells_of("1112333", "1112333"))
    assert thin.tolist() == cells_of("11.2.33", "11.2.33").tolist()
    both = cells_of("12", "12")
    assert separate_touching(both).tolist() == both.tolist()


def test_cells_of_any_integer_type_and_the_original_is_left_alone() -> None:
    cells = np.array([[1, 1, 700, 700]], np.uint16)
    separated = separate_touching(cells)
    assert (separated.dtype, separated.tolist()) == (np.int32, [[1, 0, 0, 700]])
    assert cells.tolist() == [[1, 1, 700, 700]]


def test_five_hundred_cells_take_a_fraction_of_a_second() -> None:
    y, x = np.mgrid[:512, :512]
    cells = separate_touching(np.where((y % 22 < 20) & (x % 22 < 20), (y // 22) * 24 + x // 22 + 1, 0))
    numbers = np.unique(cells)[1:]
    assert len(numbers) >= 500
    started = time.perf_counter()
    term = paper_term(cells)
    assert time.perf_counter() - started < 5  # a tenth of that where nothing else runs
    assert term[21, 21] > 0


def test_without_scipy_the_extra_is_named() -> None:
    script = (
        "import sys; sys.modules['scipy'] = None\n"
        "import numpy as np\n"
        "from unet_deploy.training.weight_map import border_term\n"
        "from unet_deploy.errors import MissingDependencyError\n"
        "try:\n"
        "    border_term(np.eye(3, dtype=np.int32), border_weight=1, border_sigma_px=1)\n"
        "except MissingDependencyError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "scipy" in said
    assert "the weight map" in said
    assert "unet-deploy[train]" in said
