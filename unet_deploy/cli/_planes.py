"""What the values of a slice mean: labels, instances, or the probability of the inside of cells; checked by slice.

The metrics check too, but know neither the slice's name nor the flag that would help.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from unet_deploy.cli._image_files import LISTED, Plane
from unet_deploy.cli._pairing import Pair, Paired
from unet_deploy.errors import UnsupportedDtypeError, ValueRangeError

PlanePair = tuple[Plane, Plane]
"""Truth and prediction."""
MAX_CLASS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How values are understood.

    `positive` is the truth's value of the inside of cells (membranes) or of class 1 (classes); `class_values` the
    truth's values of the classes, in order. `predicts` says what the probability is of, `is_mask` that an 8-bit
    prediction holds 0 and 1, not 0 to 255.
    """

    positive: int | None = None
    class_values: Mapping[str, int] | None = None
    predicts: Literal["interior", "membrane"] = "interior"
    is_mask: bool = False


def read_membranes(paired: Paired, pair: Pair, reading: Reading) -> PlanePair:
    """Return the truth, 0 for membrane, and the probability of the inside: bool, uint8 or float in [0, 1].

    Raises
    ------
    UnsupportedDtypeError
        If the truth is not integer, or the prediction neither 8-bit nor float.
    ValueRangeError
        If a probability is outside [0, 1].
    """
    truth, prediction = paired.read(pair)
    _require_labels(truth, pair, what="truth", where=paired.truth.where)
    if reading.positive is not None:
        truth = truth == reading.positive
    _require_probability(prediction, pair, where=paired.prediction.where)
    if prediction.dtype == np.uint8 and reading.is_mask:
        if (highest := int(prediction.max())) > 1:
            raise ValueRangeError(
                f"slice {pair.name} of the prediction holds {highest}; the slices seen first hold only 0 and 1",
                f"in {paired.prediction.where}",
                "8-bit probabilities go from 0 to 255, a mask has two values",
                fix="save all slices alike: masks of 0 and 255, or probabilities",
            )
        prediction = prediction > 0
    if reading.predicts == "membrane":
        if prediction.dtype == np.bool_:
            prediction = ~prediction
        else:
            prediction = (255 if prediction.dtype == np.uint8 else 1) - prediction
    return truth, prediction


def read_classes(paired: Paired, pair: Pair, reading: Reading) -> PlanePair:
    """Return the class of each pixel, true and predicted.

    Raises
    ------
    UnsupportedDtypeError
        If one is not integer.
    ValueRangeError
        If a value is no class.
    """
    truth, prediction = paired.read(pair)
    _require_labels(truth, pair, what="truth", where=paired.truth.where)
    _require_labels(prediction, pair, what="prediction", where=paired.prediction.where)
    if reading.positive is not None:
        truth = truth == reading.positive
    elif reading.class_values is not None:
        truth = _to_classes(truth, reading.class_values, pair, where=paired.truth.where)
    for what, labels, where in (
        ("truth", truth, paired.truth.where),
        ("prediction", prediction, paired.prediction.where),
    ):
        if labels.dtype != np.bool_ and (highest := int(labels.max(initial=0))) > MAX_CLASS:
            raise ValueRangeError(
                f"slice {pair.name} of the {what} holds the label {highest}, classes are 0..{MAX_CLASS}",
                f"in {where}",
                "labels that high are numbers of objects rather than classes",
                fix="--kind instances",
            )
    return truth, prediction


def read_instances(paired: Paired, pair: Pair) -> PlanePair:
    """Return the object of each pixel, true and predicted, 0 for none.

    Raises
    ------
    UnsupportedDtypeError
        If one is not integer.
    ValueRangeError
        If a label is negative.
    """
    truth, prediction = paired.read(pair)
    _require_labels(truth, pair, what="truth", where=paired.truth.where)
    _require_labels(prediction, pair, what="prediction", where=paired.prediction.where)
    return truth, prediction


def require_common_labels(truth: set[int], prediction: set[int], *, names: Sequence[str], paired: Paired) -> None:
    """Refuse class maps that speak of different classes, such as masks of 1 and of 255.

    Raises
    ------
    ValueRangeError
        If the prediction's classes are known and the truth holds others, or one is a mask of 255 and the other is not.
    """
    is_unknown = bool(names) and bool(truth - set(range(len(names))))
    is_mask_of_other = bool(truth - {0}) and bool(prediction - {0}) and 255 in (truth ^ prediction)
    if not is_unknown and not (is_mask_of_other and not truth & prediction - {0}):
        return
    values = sorted(truth)
    shown = names or [f"class {label}" for label in sorted(prediction)]
    flags = " ".join(f"--class '{name}={value}'" for name, value in zip(shown, reversed(values), strict=False))
    classes = f": {', '.join(f'{i} {name}' for i, name in enumerate(names))}" if names else ""
    raise ValueRangeError(
        f"the truth holds the labels {_listing(values)}, the prediction {_listing(sorted(prediction))}",
        f"truth in {paired.truth.where}",
        f"prediction in {paired.prediction.where}{classes}",
        "a label must mean the same class in both",
        fix=f"say which value of the truth is which class, in the prediction's order: {flags}",
    )


def _require_labels(labels: npt.NDArray[Any], pair: Pair, *, what: str, where: str) -> None:
    if labels.dtype.kind not in "biu":
        raise UnsupportedDtypeError(
            f"slice {pair.name} of the {what} is {labels.dtype}, whole numbers were expected",
            f"in {where}",
            "labels say which class or object each pixel belongs to",
            fix="save labels as whole numbers; probabilities are scored with --kind membranes"
            if what == "prediction"
            else "save the labels as whole numbers, such as uint8 or uint16",
        )
    if labels.dtype.kind == "i" and labels.size and (lowest := int(labels.min())) < 0:
        raise ValueRangeError(
            f"slice {pair.name} of the {what} holds the label {lowest}; labels are whole numbers from 0",
            f"in {where}",
            "a negative label often marks pixels that were not annotated",
            fix="give those pixels a label from 0",
        )


def _require_probability(values: npt.NDArray[Any], pair: Pair, *, where: str) -> None:
    if values.dtype.kind not in "bf" and values.dtype != np.uint8:
        raise UnsupportedDtypeError(
            f"slice {pair.name} of the prediction is {values.dtype}, probabilities were expected",
            f"in {where}",
            "probabilities are float in [0, 1] or 8-bit in 0..255",
            fix="divide by the largest value and save as float32; labels are scored with --kind classes or instances",
        )
    if values.dtype.kind == "f":
        lowest, highest = float(values.min()), float(values.max())
        if not (lowest >= 0 and highest <= 1):  # also where one is not a number
            raise ValueRangeError(
                f"slice {pair.name} of the prediction goes from {lowest:g} to {highest:g}, not within [0, 1]",
                f"in {where}",
                "probabilities were expected, not logits and not grey values",
                fix="divide by the largest value that stands for 1, or apply the sigmoid or softmax",
            )


def _to_classes(truth: Plane, values: Mapping[str, int], pair: Pair, *, where: str) -> npt.NDArray[np.uint8]:
    classes = np.zeros(truth.shape, np.uint8)
    is_known = np.zeros(truth.shape, np.bool_)
    for index, value in enumerate(values.values()):
        here = truth == value
        classes[here] = index
        is_known |= here
    if not is_known.all():
        unknown = np.unique(truth[~is_known]).tolist()
        raise ValueRangeError(
            f"slice {pair.name} of the truth holds {_listing(unknown)} on {np.sum(~is_known):,} px, which is no class",
            f"in {where}",
            f"classes: {', '.join(f'{name}={value}' for name, value in values.items())}",
            fix=f"--class NAME={unknown[0]}",
        )
    return classes


def _listing(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:LISTED])) + (", ..." if len(values) > LISTED else "") or "none"
