"""Label values become classes, objects and cells as each kind of label says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("skimage", reason="the extra 'train' is not installed")

from unet_deploy.training.annotation import (
    Annotation,
    check_label_settings,
    make_rule,
    number_anew,
    understand_label,
)
from unet_deploy.training.data_config import DataConfig


def config(**settings: Any) -> DataConfig:
    return DataConfig(images=Path("images"), labels=Path("labels"), **settings)


def understand(label: np.ndarray, unannotated: np.ndarray | None = None, **settings: Any) -> Annotation:
    problems: list[str] = []
    check_label_settings(config(**settings), problems)
    annotation = understand_label("one", label, make_rule(config(**settings), [label], problems), unannotated, problems)
    assert problems == []
    return annotation


def test_instances_are_numbered_densely_and_parted_where_they_touch() -> None:
    label = np.zeros((6, 12), np.uint16)
    label[:, 1:5], label[:, 5:9], label[0, 11] = 70, 65000, 70  # the third box is a part of object 70
    got = understand(label, label_kind="instances")
    assert got.instances is not None
    assert got.cells is not None
    assert got.instances.dtype == got.cells.dtype == np.int32
    assert np.array_equal(np.unique(got.instances), [0, 1, 2])
    assert np.array_equal(got.instances == 1, label == 70)
    assert not got.cells[:, 4:6].any()
    assert np.array_equal(got.cells[:, 1:4], np.ones((6, 3)))
    assert np.array_equal(got.label, got.cells > 0)
    assert got.ignored is None


def test_binary_cells_hang_together_by_edges() -> None:
    label = np.array([[0, 255, 7, 0], [0, 0, 0, 1]], np.uint8)
    got = understand(label, label_kind="binary")
    assert got.instances is None
    assert got.cells is not None
    assert got.cells.tolist() == [[0, 1, 1, 0], [0, 0, 0, 2]]
    assert got.label.tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]


def test_classes_have_cells_only_where_their_class_is_named() -> None:
    label = np.array([[255, 0, 255], [255, 0, 9]], np.uint8)
    settings = {"classes": {"inside": 255, "membrane": 0}, "ignore": 9}
    got = understand(label, **settings, cell_class="inside")
    assert got.cells is not None
    assert got.cells.tolist() == [[1, 0, 2], [1, 0, 0]]
    assert got.label.tolist() == [[0, 1, 0], [0, 1, 0]]
    assert got.ignored is not None
    assert got.ignored.tolist() == [[False] * 3, [False, False, True]]
    assert understand(label, **settings).cells is None
    membrane = understand(label, **settings, cell_class="membrane")
    assert membrane.cells is not None
    assert membrane.cells.tolist() == [[0, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize("kind", ["instances", "binary"])
def test_ignored_pixels_belong_to_nothing(kind: str) -> None:
    label = np.zeros((4, 8), np.int32)
    label[1:3, 1:7] = 5
    label[:, 4:] = -7
    unannotated = np.zeros((4, 8), np.bool_)
    unannotated[0, 0] = unannotated[1, 1] = True
    got = understand(label, unannotated, label_kind=kind, ignore=-7)
    assert got.ignored is not None
    assert np.array_equal(got.ignored, unannotated | (label == -7))
    for array in (got.label, got.cells, got.instances):
        if array is not None:
            assert not array[got.ignored].any()
            assert array[2, 2] == 1


def test_numbers_of_any_size_are_made_dense() -> None:
    assert number_anew(np.array([[2**63, 0, 1]], np.uint64)).tolist() == [[2, 0, 1]]
    assert number_anew(np.full((2, 2), 7)).tolist() == [[1, 1], [1, 1]]
    assert not number_anew(np.zeros((2, 2), np.uint8)).any()


def test_classes_that_are_not_named_are_the_values_but_for_the_ignored_one() -> None:
    problems: list[str] = []
    rule = make_rule(config(ignore=200), [np.array([[0, 10, 200]]), np.array([[0, 30]])], problems)
    assert (rule.names, rule.values, rule.cell_class) == (("class 0", "class 1", "class 2"), (0, 10, 30), None)
    assert make_rule(config(cell_class="class 1"), [np.array([[0, 10]])], problems).cell_class == 1
    assert problems == []
    make_rule(config(), [np.arange(17)[None]], problems)
    assert "17 distinct value(s)" in problems[0]
    assert "if they number objects, use --label-kind instances" in problems[0]
    make_rule(config(), [np.zeros((2, 2), np.uint8)], problems)
    assert "1 distinct value(s); 2 to 16 were expected" in problems[1]
    assert "--label-kind" not in problems[1]


def test_the_foreground_has_the_name_it_was_given() -> None:
    rule = make_rule(config(label_kind="instances", foreground="nucleus"), [], [])
    assert (rule.names, rule.cell_class) == (("background", "nucleus"), 1)


def test_too_many_classes() -> None:
    problems: list[str] = []
    check_label_settings(config(classes={str(i): i for i in range(257)}), problems)
    assert problems == ["257 class(es) given; at least two are needed, at most 256"]
