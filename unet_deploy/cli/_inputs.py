"""From paths and flags to slices to score: what the prediction is, what to score, how to read it.

1. With a model, the images are segmented into a temporary store first, and only those that have a truth.
2. The kind is what was asked for, else what the content says: the challenge's folders, a segmentation of ours, floats,
   two values or many. Three slices are looked at, and what was chosen is said.
3. A segmentation of ours brings its class names: they say which probability is of membranes.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from unet_deploy.cli import _planes as planes
from unet_deploy.cli._evaluation import Evaluation
from unet_deploy.cli._pairing import Pair, Paired, is_ctc_result, is_ctc_truth, pair_ctc, pair_stacks
from unet_deploy.cli._stacks import Plane, Slice, Stack, is_zarr, join_stacks, open_stack
from unet_deploy.errors import ChannelError, NotAVolumeError, ValueRangeError
from unet_deploy.metrics.ctc import Frame
from unet_deploy.runtime.output import LABELS_NAME, read_provenance

Say = Callable[[str], None]

MEMBRANE = re.compile(r"membrane|border|boundary|boundaries|edge", re.IGNORECASE)
MAX_CLASS_VALUES = 16
"""More values than this are numbers of objects."""
GROUP_BYTES = 2**28
"""Images of a folder are segmented together up to this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asked for; names as its flags."""

    prediction: Path
    truth: Path
    kind: str | None
    model: Path | None
    channels: tuple[str, ...]
    input_range: tuple[float, float] | None
    device: str
    threads: int
    axes: str | None
    truth_axes: str | None
    positive: int | None
    class_values: Mapping[str, int] | None
    probability: str | None
    predicts: str | None
    per_slice: bool
    images: Path | None


@dataclass(slots=True, kw_only=True, eq=False)
class Inputs:
    """Paired slices, and how to read and draw them."""

    name: str
    kind: str
    paired: Paired
    reading: planes.Reading
    class_names: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    images: Stack | None = None
    image_of: Mapping[str, int] = field(default_factory=dict)
    _labels: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))
    _is_positive_seen: bool = False

    def read(self, pair: Pair) -> planes.PlanePair:
        """Return truth and prediction of a slice as the kind needs them; raises as the functions of `_planes`."""
        if self.kind == "membranes":
            truth, prediction = planes.read_membranes(self.paired, pair, self.reading)
            self._is_positive_seen = self._is_positive_seen or bool(truth.any())
            return truth, prediction
        if self.kind == "classes":
            return planes.read_classes(self.paired, pair, self.reading)
        return planes.read_instances(self.paired, pair)

    def require_positive_seen(self) -> None:
        """Refuse a `positive` that occurs nowhere.

        Raises
        ------
        ValueRangeError
            If all slices were read and none held it.
        """
        if self.reading.positive is not None and not self._is_positive_seen:
            raise ValueRangeError(
                f"--positive {self.reading.positive} came, and no pixel of the truth has that value",
                f"in {self.paired.truth.where}",
                fix="give the value of the inside of cells; 255 and 0 are usual",
            )

    def draw(self, pair: Pair, evaluation: Evaluation) -> Any:
        """Return the picture of a slice."""
        from unet_deploy.cli import _evaluation_pictures as pictures

        truth, prediction = self.read(pair)
        image = None if self.images is None else self.images.read(self.image_of[pair.name])
        if self.kind == "membranes":
            assert evaluation.threshold is not None
            radius = int(evaluation.details["radius"])
            return pictures.draw_membranes(
                pair.name, truth, prediction, image, threshold=evaluation.threshold, radius=radius
            )
        if self.kind == "classes":
            return pictures.draw_classes(pair.name, truth, prediction, image)
        errors = evaluation.errors[pair.frame]
        return pictures.draw_instances(pair.name, truth, prediction, image, errors=errors)
