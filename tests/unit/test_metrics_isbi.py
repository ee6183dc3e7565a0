"""Pixel error, Rand error, V_Rand and V_info on what can be counted in the head; and the text of what they refuse."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("scipy", reason="the extra 'evaluate' is not installed")

import unet_deploy.metrics
from unet_deploy.errors import (
    ConfigurationError,
    MissingDependencyError,
    ShapeMismatchError,
    UnsupportedAxesError,
    UnsupportedDtypeError,
    ValueRangeError,
)
from unet_deploy.metrics import (
    ISBI_THRESHOLDS,
    PixelCounter,
    PixelPairs,
    RandCounter,
    VCounter,
    WarpingCounter,
    isbi_scores,
    pixel_error,
    rand_error,
    v_scores,
    warping_error,
)
from unet_deploy.metrics._isbi_input import label_components
from unet_deploy.metrics.pairs import count_pairs
from unet_deploy.metrics.vrand import information_score, thin

Score = Callable[..., Any]
Counter = Callable[[], Any]
every_metric = pytest.mark.parametrize("score", [pixel_error, rand_error, warping_error, v_scores, isbi_scores])
every_counter = pytest.mark.parametrize("make", [PixelCounter, RandCounter, WarpingCounter, VCounter])

TRUTH = np.array([[255, 255, 0, 255], [255, 255, 0, 255]], np.uint8)
HALF = (0.5,)


class OneSliceAtATime:
    """A stack that cannot be read but by whole slices, as one in a store too large to load."""

    def __init__(self, stack: npt.NDArray[Any]) -> None:
        self._stack = stack
        self.shape = stack.shape
        self.dtype = stack.dtype
        self.read: list[int] = []

    def __getitem__(self, key: Any, /) -> Any:
        assert isinstance(key, int)
        self.read.append(key)
        return self._stack[key]


def test_the_thresholds_are_added_up() -> None:
    added, total = [], 0.0
    while len(added) < 10:
        added.append(total)
        total += 0.1
    assert list(ISBI_THRESHOLDS) == added


def test_pixels_are_counted() -> None:
    (row,) = pixel_error(TRUTH, np.array([[0.9, 0.4, 0.6, 0.9], [0.9, 0.9, 0.1, 0.2]]), thresholds=HALF).rows
    found = (row.true_positives, row.false_positives, row.false_negatives, row.true_negatives)
    assert found == (4, 1, 2, 1)
    assert (row.precision, row.recall, row.disagreement) == (4 / 5, 4 / 6, 3 / 8)
    assert row.f == pytest.approx(8 / 11)


def test_a_probability_must_be_greater_than_the_threshold() -> None:
    # 0.2 is below float32's 0.2, so 51 of 255 is inside at 0.2 in the challenge's program; and 0.5 is not at 0.5.
    assert pixel_error(np.ones((1, 1), bool), np.array([[51]], np.uint8), thresholds=(0.2,)).error == 0
    assert pixel_error(np.ones((1, 1), bool), np.array([[0.2]]), thresholds=(0.2,)).error == 0
    assert pixel_error(np.ones((1, 1), bool), np.array([[0.5]]), thresholds=HALF).error == 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, bool, np.uint8])
def test_probabilities_come_in_many_types(dtype: type) -> None:
    prediction = TRUTH if dtype is np.uint8 else (TRUTH > 0).astype(dtype)
    assert pixel_error(TRUTH, prediction).error == 0


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_labels_come_in_many_types(dtype: type) -> None:
    labels = np.array([[1, 1, 0, 2], [1, 1, 0, 2]]).astype(dtype)
    assert isbi_scores(labels, TRUTH) == isbi_scores(TRUTH, TRUTH)


def test_the_lowest_of_equal_thresholds_is_the_best() -> None:
    scores = isbi_scores(TRUTH, TRUTH)
    best = (scores.pixel.best, scores.rand.best, scores.warping.best, scores.v.best_v_rand, scores.v.best_v_info)
    assert [row.threshold for row in best] == [0.0] * 5


def test_each_best_has_its_own_threshold() -> None:
    prediction = np.array([[0.9, 0.9, 0.3, 0.35], [0.9, 0.2, 0.3, 0.35]])
    scores = pixel_error(TRUTH, prediction, thresholds=(0.0, 0.32, 0.5))
    assert (scores.best.threshold, scores.lowest_disagreement) == (0.32, 1 / 8)
    assert rand_error(TRUTH, prediction, thresholds=(0.0, 0.32, 0.5)).best.threshold == 0.32


def test_membrane_inside_a_cell_is_cells_of_one_pixel() -> None:
    truth = np.ones((1, 4), np.uint8)
    (row,) = rand_error(truth, np.array([[1.0, 1.0, 0.0, 0.0]]), thresholds=HALF).rows
    assert row.pairs == PixelPairs(both=4 + 2, prediction=4 + 2, truth=16, total=16)
    assert (row.pairs.precision, row.pairs.recall, row.rand_index) == (1, 6 / 16, 6 / 16)


def test_touching_labels_are_different_cells() -> None:
    truth = np.array([[1, 1, 2, 2]])
    (row,) = rand_error(truth, np.ones((1, 4)), thresholds=HALF).rows
    assert (row.pairs.precision, row.pairs.recall) == (8 / 16, 1)


def test_regions_of_equal_label_are_numbered() -> None:
    labels = np.array([[5, 5, 9, 0], [9, 5, 9, 9], [9, 9, 5, 5], [0, 5, 0, 5]])
    assert label_components(labels).tolist() == [[1, 1, 2, 0], [3, 1, 2, 2], [3, 3, 4, 4], [0, 5, 0, 4]]
    assert label_components(labels > 0).tolist() == [[1, 1, 1, 0], [1] * 4, [1] * 4, [0, 1, 0, 1]]
    assert label_components(np.eye(3, dtype=bool), neighbours=8).tolist() == np.eye(3).tolist()
    large = np.array([[2**63 + 5, 2**63 + 6, 0, 3]], np.uint64)
    assert label_components(large).tolist() == [[1, 2, 0, 3]]


def test_cells_that_touch_by_a_corner_are_different() -> None:
    diagonal = np.eye(2, dtype=np.uint8)
    (row,) = rand_error(diagonal, diagonal.astype(float), thresholds=HALF).rows
    assert row.pairs == PixelPairs(both=2, prediction=2, truth=2, total=4)


def test_pairs_add_up() -> None:
    one = PixelPairs(both=1, prediction=2, truth=3, total=4)
    assert one + one == PixelPairs(both=2, prediction=4, truth=6, total=8)
    assert PixelPairs().f == PixelPairs().index == 1
    assert PixelPairs(both=0, prediction=2, truth=2, total=4).f == 0


def test_thinning_leaves_a_line() -> None:
    inside = np.zeros((3, 9), bool)
    inside[:, 0] = inside[:, 8] = True
    assert thin(inside).tolist() == [[1, 1, 1, 1, 0, 2, 2, 2, 2]] * 3


def test_thinning_an_even_gap_puts_the_line_on_one_side() -> None:
    (row,) = thin(np.array([[True, False, False, True]]))
    assert sorted(row.tolist()) == [0, 1, 1, 2] or sorted(row.tolist()) == [0, 1, 2, 2]


def thin_slowly(inside: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Flood by the definition: places are (x, y), and those that wait their turn are looked up, not marked."""
    labels = {(x, y): int(label) for (y, x), label in np.ndenumerate(label_components(inside)) if label}
    every = [(x, y) for x in range(inside.shape[1]) for y in range(inside.shape[0])]

    def beside(place: tuple[int, int]) -> list[tuple[int, int]]:
        x, y = place
        return [near for near in ((x - 1, y), (x, y - 1), (x + 1, y), (x, y + 1)) if near in every]

    queue = [place for place in every if place not in labels and any(near in labels for near in beside(place))]
    for place in queue:
        queue += [near for near in beside(place) if near not in labels and near not in queue]
        segments = {labels[near] for near in beside(place) if labels.get(near)}
        labels[place] = segments.pop() if len(segments) == 1 else 0
    return [[labels[x, y] for x in range(inside.shape[1])] for y in range(inside.shape[0])]


@pytest.mark.parametrize("seed", range(20))
def test_thinning_takes_pixels_in_their_turn(seed: int) -> None:
    inside = np.random.default_rng(seed).random((11, 13)) > 0.93
    inside[5, 6] = True
    assert thin(inside).tolist() == thin_slowly(inside)


def test_thinning_nothing_gives_one_segment() -> None:
    assert thin(np.zeros((2, 2), bool)).tolist() == [[1, 1], [1, 1]]
    assert thin(np.ones((2, 2), bool)).tolist() == [[1, 1], [1, 1]]


def test_a_thick_membrane_costs_nothing_after_thinning() -> None:
    truth = np.array([[1, 1, 1, 0, 2, 2, 2]])
    prediction = np.array([[0.9, 0.9, 0, 0, 0, 0.9, 0.9]])
    scores = isbi_scores(truth, prediction, thresholds=HALF)
    assert scores.rand.error > 0.1
    assert (scores.v.v_rand, scores.v.v_info) == (1, 1)


def test_v_info_by_hand() -> None:
    # Two halves against quarters: one bit shared, of entropies 1 and 2.
    truth = np.array([[1, 1, 2, 2]])
    prediction = np.array([[3, 4, 5, 6]])
    assert information_score(count_pairs(truth, prediction)) == pytest.approx(2 / 3)
    assert information_score(count_pairs(truth, np.zeros_like(truth))) == pytest.approx(2 / 3)


def test_slices_without_a_cell_do_not_count_in_means() -> None:
    truth = np.stack([TRUTH, np.zeros_like(TRUTH)])
    prediction = np.stack([TRUTH, np.full_like(TRUTH, 255)])
    alone, both = v_scores(TRUTH, TRUTH, thresholds=HALF), v_scores(truth, prediction, thresholds=HALF)
    assert both == alone
    assert rand_error(truth, prediction, thresholds=HALF) == rand_error(TRUTH, TRUTH, thresholds=HALF)


@every_metric
def test_a_slice_is_a_stack_of_one(score: Score) -> None:
    prediction = np.array([[0.9, 0.4, 0.6, 0.9], [0.9, 0.9, 0.1, 0.2]])
    assert score(TRUTH, prediction) == score(TRUTH[None], prediction[None])


def test_a_stack_is_read_by_slice_and_once() -> None:
    truth, prediction = OneSliceAtATime(np.stack([TRUTH] * 3)), OneSliceAtATime(np.stack([TRUTH] * 3))
    done: list[int] = []
    isbi_scores(truth, prediction, on_slice=done.append)
    assert truth.read == prediction.read == [0, 1, 2]
    assert done == [1, 2, 3]


@every_counter
def test_parts_make_the_whole(make: Counter) -> None:
    truth = np.stack([TRUTH, TRUTH[::-1], TRUTH[:, ::-1]])
    prediction = np.random.default_rng(7).random(truth.shape)
    whole, parts = make(), make()
    whole.add(truth, prediction)
    for one_truth, one_prediction in zip(truth, prediction, strict=True):
        parts.add(one_truth, one_prediction)
    assert whole.scores() == parts.scores()


@every_counter
def test_no_slice_has_no_score(make: Counter) -> None:
    with pytest.raises(ConfigurationError, match="no slice was added; scores need at least one"):
        make().scores()


@every_metric
def test_shapes_that_differ(score: Score) -> None:
    with pytest.raises(ShapeMismatchError, match=r"truth has shape \(2, 4\), probability \(2, 5\); they must be equal"):
        score(TRUTH, np.zeros((2, 5)))


@every_metric
@pytest.mark.parametrize("shape", [(4,), (2, 2, 2, 2)])
def test_axes_that_are_no_slices(score: Score, shape: tuple[int, ...]) -> None:
    with pytest.raises(
        UnsupportedAxesError, match=rf"have {len(shape)} axes .*these metrics take \(y, x\) or \(z, y, x\)"
    ):
        score(np.zeros(shape, np.uint8), np.zeros(shape))


@every_metric
@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 4), (2, 4, 0)])
def test_no_pixel(score: Score, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="truth and probability are empty"):
        score(np.zeros(shape, np.uint8), np.zeros(shape))


@every_metric
def test_float_labels(score: Score) -> None:
    with pytest.raises(UnsupportedDtypeError, match="truth has dtype float64, not integer or bool"):
        score(TRUTH / 255, TRUTH)


@every_metric
@pytest.mark.parametrize("dtype", ["uint16", "int64"])
def test_labels_for_probabilities(score: Score, dtype: str) -> None:
    with pytest.raises(UnsupportedDtypeError, match=f"probability has dtype {dtype}, not float, uint8 or bool"):
        score(TRUTH, TRUTH.astype(dtype))


@every_metric
def test_negative_labels(score: Score) -> None:
    with pytest.raises(ValueRangeError, match="truth holds the label -1 in slice 0; labels are integers from 0"):
        score(np.array([[1, -1]]), np.zeros((1, 2)))


@every_metric
@pytest.mark.parametrize(
    ("value", "text"), [(1.5, "from 0 to 1.5"), (-0.25, "from -0.25 to 0"), (np.nan, "nan"), (np.inf, "from 0 to inf")]
)
def test_probabilities_outside(score: Score, value: float, text: str) -> None:
    prediction = np.zeros((2, 2, 4))
    prediction[1, 0, 0] = value
    with pytest.raises(ValueRangeError, match=rf"probability goes .*{text}.* in slice 1; it must stay in \[0, 1\]"):
        score(np.stack([TRUTH, TRUTH]), prediction)


@every_metric
@pytest.mark.parametrize(
    ("thresholds", "text"),
    [
        ((), "there is no threshold"),
        ((0.5, 0.4), "threshold 0.4 follows 0.5"),
        ((0.5, 0.5), "threshold 0.5 follows 0.5"),
        ((-0.1, 0.5), r"threshold -0.1 is not in \[0, 1\)"),
        ((0.5, 1.0), r"threshold 1 is not in \[0, 1\)"),
        ((float("nan"),), r"threshold nan is not in \[0, 1\)"),
    ],
)
def test_thresholds(score: Score, thresholds: tuple[float, ...], text: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"thresholds must increase and lie in \[0, 1\): .*{text}"):
        score(TRUTH, TRUTH, thresholds=thresholds)


def test_all_that_is_wrong_with_thresholds_is_said_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        pixel_error(TRUTH, TRUTH, thresholds=(2, 0.5, 0.4))
    shown = str(caught.value)
    assert "threshold 2 is not in" in shown
    assert "threshold 0.5 follows 2" in shown
    assert "threshold 0.4 follows 0.5" in shown


class Without(MetaPathFinder):
    """Python in which importing a module fails for want of another."""

    def __init__(self, module: str, missing: str) -> None:
        self._module, self._missing = module, missing

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        if fullname == self._module:
            raise ModuleNotFoundError(f"No module named '{self._missing}'", name=self._missing)


def hide(monkeypatch: pytest.MonkeyPatch, *, missing: str) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "meta_path", [Without("scipy", missing), *sys.meta_path])


@pytest.mark.parametrize("missing", ["scipy", "scipy.ndimage"])
def test_a_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, missing=missing)
    with pytest.raises(MissingDependencyError, match=r"finding the cells .* needs the package 'scipy'") as caught:
        label_components(TRUTH)
    assert "pip install 'unet-deploy[evaluate]'" in str(caught.value)


def test_another_missing_package_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, missing="pooch")
    with pytest.raises(ModuleNotFoundError, match="No module named 'pooch'") as caught:
        label_components(TRUTH)
    assert not isinstance(caught.value, MissingDependencyError)


def test_the_package_is_imported_by_name_and_loads_nothing_heavy() -> None:
    script = (
        "import sys, unet_deploy.metrics as metrics\n"
        "loaded = [name for name in sys.modules if name.startswith('unet_deploy.metrics.')]\n"
        "from unet_deploy.metrics import isbi_scores\n"
        "print(loaded, [name for name in ('scipy', 'skimage', 'torch', 'numba') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[] []"


def test_every_name_of_the_package_can_be_had() -> None:
    for name in unet_deploy.metrics.__all__:
        assert getattr(unet_deploy.metrics, name) is not None
    with pytest.raises(AttributeError, match=r"module 'unet_deploy\.metrics' has no attribute 'dice'"):
        _ = unet_deploy.metrics.dice
