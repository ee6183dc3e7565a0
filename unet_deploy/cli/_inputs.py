"""From paths and flags to slices to score: what the prediction is, what to score, how to read it.

1. With a model, the images are segmented into a temporary store first, and only those that have a truth.
2. The kind is what was asked for, else what the content says: the challenge's folders, a segmentation of ours, floats,
   two values or many. Three slices are looked at, and what was chosen is said.
3. A segmentation of ours brings its class names: they say which probability is of membranes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from unet_deploy.cli import _options as flags
from unet_deploy.cli import _planes as planes
from unet_deploy.cli._evaluation import Evaluation
from unet_deploy.cli._evaluation_pictures import SlicePicture, draw_classes, draw_instances, draw_membranes
from unet_deploy.cli._kinds import Seen, kind_of_classes, peek
from unet_deploy.cli._objects import Objects
from unet_deploy.cli._pairing import CTC_IMAGE, Pair, Paired, is_ctc_result, is_ctc_truth, pair_ctc, pair_stacks
from unet_deploy.cli._segmented import MEMBRANE, Segmentation, read_segmentation, segment_images
from unet_deploy.cli._stacks import Stack, is_zarr, open_files, open_stack
from unet_deploy.errors import UsageError, ValueRangeError, VolumeNotFoundError
from unet_deploy.metrics.components import require_scipy
from unet_deploy.metrics.ctc import Frame

Say = Callable[[str], None]


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
    engine: str | None
    threads: int
    trust_engine: bool
    axes: str | None
    truth_axes: str | None
    positive: int | None
    class_values: Mapping[str, int] | None
    probability: str | None
    predicts: str | None
    per_slice: bool
    images: Path | None
    tta: bool
    min_size: int


@dataclass(slots=True, kw_only=True, eq=False)
class Inputs:
    """Paired slices, and how to read and draw them."""

    name: str
    kind: str
    paired: Paired
    reading: planes.Reading
    class_names: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    objects: Objects | None = None
    """Makes the predicted objects, where the prediction is classes."""
    images: Stack | None = None
    image_of: Mapping[str, int] = field(default_factory=dict)
    _is_positive_seen: bool = False

    def read(self, pair: Pair) -> planes.PlanePair:
        """Return truth and prediction of a slice as the kind needs them; raises as the functions of `_planes`."""
        if self.kind == "membranes":
            truth, prediction = planes.read_membranes(self.paired, pair, self.reading)
            self._is_positive_seen = self._is_positive_seen or bool(truth.any())
            return truth, prediction
        if self.kind == "classes":
            return planes.read_classes(self.paired, pair, self.reading)
        truth, prediction = planes.read_instances(self.paired, pair)
        return truth, prediction if self.objects is None else self.objects.read(pair)

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

    def draw(self, pair: Pair, evaluation: Evaluation) -> SlicePicture:
        """Return the picture of a slice."""
        truth, prediction = self.read(pair)
        image = None if self.images is None else self.images.read(self.image_of[pair.name])
        if self.kind == "membranes":
            assert evaluation.threshold is not None
            radius = int(evaluation.details["radius"])
            return draw_membranes(pair.name, truth, prediction, image, threshold=evaluation.threshold, radius=radius)
        if self.kind == "classes":
            return draw_classes(pair.name, truth, prediction, image)
        return draw_instances(pair.name, truth, prediction, image, errors=evaluation.errors[pair.frame])


def open_inputs(request: Request, stack: ExitStack, *, say: Say) -> Inputs:
    """Open, pair and understand what is to be scored; `stack` closes and removes what was opened and made.

    Raises
    ------
    UnetDeployError
        Whatever is wrong with the paths, the flags or the model.
    """
    is_ctc = request.kind == "ctc" or (
        request.kind is None
        and request.model is None
        and is_ctc_result(request.prediction)
        and is_ctc_truth(request.truth)
    )
    if is_ctc and request.model is None:
        return _open_ctc(request, stack, say=say)
    if request.model is not None:
        return _open_segmented_now(request, stack, say=say)
    truth = _open_truth(request, stack, say=say)
    segmentation = read_segmentation(request.prediction, say=say)
    if segmentation is not None:
        return _of_segmentation(request, segmentation, truth, stack, say=say)
    prediction = open_stack(request.prediction, axes=request.axes, channel=request.probability)
    stack.callback(prediction.close)
    paired = pair_stacks(prediction, truth)
    seen = peek(paired)
    kind, why = (request.kind, "as asked") if request.kind is not None else seen.guess()
    if kind == "classes":
        _require_common_labels(request, paired, seen, names=())
    predicts: Literal["interior", "membrane"] = "membrane" if request.predicts == "membrane" else "interior"
    reading = planes.Reading(
        positive=request.positive,
        class_values=request.class_values,
        predicts=predicts,
        is_mask=seen.dtypes[1] == "uint8" and seen.values[1] == {0, 1},
    )
    return _finish(
        request, paired, kind, why, reading, class_names=tuple(request.class_values or ()), stack=stack, say=say
    )


def _open_truth(request: Request, stack: ExitStack, *, say: Say) -> Stack:
    segmentation = read_segmentation(request.truth, say=say)
    truth = (
        segmentation.open_labels() if segmentation is not None else open_stack(request.truth, axes=request.truth_axes)
    )
    stack.callback(truth.close)
    return truth


def _open_ctc(request: Request, stack: ExitStack, *, say: Say) -> Inputs:
    paired = pair_ctc(request.prediction, request.truth)
    for opened in (paired.prediction, paired.truth):
        stack.callback(opened.close)
    why = "as asked" if request.kind is not None else "maskTTT.tif and man_segTTT.tif"
    return _finish(request, paired, "ctc", why, planes.Reading(), class_names=(), stack=stack, say=say)


def _pair_images(request: Request, volume: Path | None, stack: ExitStack, *, say: Say) -> Paired:
    """Pair images with their truth: what does not fit is said before the work."""
    if request.kind == "ctc":
        paired = pair_ctc(request.prediction, request.truth, is_images=True)
        for opened in (paired.prediction, paired.truth):
            stack.callback(opened.close)
        return paired
    truth = _open_truth(request, stack, say=say)
    first = (request.channels[0] if request.channels else 0) if volume is not None else None
    images = open_stack(request.prediction, axes=request.axes, channel=first)
    stack.callback(images.close)
    return pair_stacks(images, truth)


def _open_segmented_now(request: Request, stack: ExitStack, *, say: Say) -> Inputs:
    volume = request.prediction if request.kind != "ctc" and is_zarr(request.prediction) else None
    artifact = flags.load_model(request.model, trust_engine=request.trust_engine)
    paired = _pair_images(request, volume, stack, say=say)
    images = paired.prediction
    names = tuple(item.name for item in artifact.card.classes)
    kind, why = kind_of_classes(names, asked=request.kind, has_values=request.class_values is not None)
    if kind != "classes":
        require_scipy()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="unet-deploy-", ignore_cleanup_errors=True)))
    segmentation = segment_images(
        images,
        [pair.prediction for pair in paired.pairs],
        volume,
        artifact=artifact,
        write="probabilities" if kind == "membranes" else "labels",
        folder=folder,
        options={
            "channels": request.channels,
            "axes": request.axes,
            "input_range": request.input_range,
            "device": request.device,
            "engine": request.engine,
            "threads": request.threads,
            "tta": request.tta,
        },
    )
    inputs = _of_segmentation(replace(request, kind=kind), segmentation, paired, stack, say=say, why=why)
    inputs.name = artifact.card.name
    inputs.images = images
    inputs.image_of = {pair.name: pair.prediction for pair in paired.pairs}
    return inputs


def _of_segmentation(
    request: Request, segmentation: Segmentation, truth: Stack | Paired, stack: ExitStack, *, say: Say, why: str = ""
) -> Inputs:
    """Open a segmentation of ours; `truth` is paired with the images that were segmented, if they were just now."""
    names = segmentation.class_names
    kind, reason = kind_of_classes(
        names, asked=request.kind, has_values=request.class_values is not None, written=segmentation.kinds
    )
    predicts: Literal["interior", "membrane"] = "interior"
    if kind == "membranes":
        index = segmentation.choose_class(request.probability)
        is_membrane = request.predicts == "membrane" or (
            request.predicts is None and MEMBRANE.search(names[index]) is not None
        )
        predicts = "membrane" if is_membrane else "interior"
        prediction = segmentation.open_probabilities(index)
        what = f"probability of {names[index]!r}"
    else:
        prediction, what = segmentation.open_labels(), "labels"
    stack.callback(prediction.close)
    if isinstance(truth, Paired) and kind == "ctc":  # names of the challenge's images are not those of its truth
        pairs = tuple(replace(pair, prediction=index) for index, pair in enumerate(truth.pairs))
        paired = replace(truth, prediction=prediction, pairs=pairs)
    else:
        paired = pair_stacks(prediction, truth.truth if isinstance(truth, Paired) else truth)
    if kind == "classes":
        _require_common_labels(request, paired, peek(paired), names=names)
    reading = planes.Reading(positive=request.positive, class_values=request.class_values, predicts=predicts)
    return _finish(request, paired, kind, why or reason, reading, class_names=names, stack=stack, say=say, what=what)


def _require_common_labels(request: Request, paired: Paired, seen: Seen, *, names: tuple[str, ...]) -> None:
    if request.positive is None and request.class_values is None:
        planes.require_common_labels(*seen.values, names=names, paired=paired)


def _finish(
    request: Request,
    paired: Paired,
    kind: str,
    why: str,
    reading: planes.Reading,
    *,
    class_names: tuple[str, ...],
    stack: ExitStack,
    say: Say,
    what: str = "",
) -> Inputs:
    if request.per_slice:
        pairs = tuple(replace(pair, frame=Frame(index)) for index, pair in enumerate(paired.pairs))
        paired = replace(paired, pairs=pairs)
    if request.kind is None:
        say(f"kind: {kind} ({why}); choose with --kind")
    for note in paired.notes:
        say(f"note: {note}")
    objects = _make_objects(request, paired, kind, what)
    if objects is not None:
        what = f"{what}; {objects.describe(class_names)}"
        say(objects.describe(class_names))
    frames = f" in {len({p.frame for p in paired.pairs})} frame(s)" if kind in ("instances", "ctc") else ""
    facts = (
        ("prediction", f"{paired.prediction.where}: {_describe_prediction(kind, reading, what)}"),
        ("truth", f"{paired.truth.where}: {_describe_truth(kind, reading, class_names)}"),
        ("scored", f"{kind} ({why}), {len(paired.pairs)} slice(s){frames}"),
    )
    inputs = Inputs(
        name=request.prediction.name or request.prediction.resolve().name,
        kind=kind,
        paired=paired,
        reading=reading,
        class_names=class_names,
        facts=facts,
        objects=objects,
    )
    if request.images is not None:
        _open_images(request.images, inputs, stack)
    return inputs


def _make_objects(request: Request, paired: Paired, kind: str, what: str) -> Objects | None:
    """Return what numbers the objects of a segmentation of ours, which alone says `what` it is."""
    if kind not in ("instances", "ctc"):
        return None
    if what:
        return Objects(paired, min_size=request.min_size)
    if request.min_size:
        raise UsageError(
            f"--min-size {request.min_size} came, and the objects of the prediction are numbered already",
            f"in {paired.prediction.where}",
            "it drops small ones of the objects that are made here, of a model's classes",
            fix="leave it out",
        )
    return None


def _describe_prediction(kind: str, reading: planes.Reading, what: str) -> str:
    if kind != "membranes":
        return what or "labels"
    is_membrane = reading.predicts == "membrane"
    return (what or "probability") + (", taken as 1 - p for" if is_membrane else ", taken for") + " the inside of cells"


def _describe_truth(kind: str, reading: planes.Reading, names: tuple[str, ...]) -> str:
    if kind == "membranes":
        return f"{'all but 0' if reading.positive is None else reading.positive} is the inside of cells"
    if kind == "classes":
        if reading.positive is not None:
            return f"{reading.positive} is class 1, all else class 0"
        values = reading.class_values or {name: index for index, name in enumerate(names)}
        return ", ".join(f"{value} is {name}" for name, value in values.items()) or "labels"
    return "objects by number"


def _open_images(path: Path, inputs: Inputs, stack: ExitStack) -> None:
    paired = inputs.paired
    if inputs.kind != "ctc":
        images = open_stack(path)
        of = pair_stacks(images, paired.truth)
        inputs.image_of = {mine.name: theirs.prediction for mine, theirs in zip(paired.pairs, of.pairs, strict=True)}
    else:
        files = {int(m[1]): p for p in sorted(path.glob("*")) if (m := CTC_IMAGE.fullmatch(p.name))}
        missing = sorted({pair.frame.t for pair in paired.pairs} - files.keys())
        if missing:
            raise VolumeNotFoundError(
                f"the images lack frame T={missing[0]}",
                f"{path} was expected to hold tTTT.tif",
                fix="give the folder 01 of the challenge's layout, or leave --images out",
            )
        images = open_files(path, list(files.values()))
        times = list(files)
        places = {(times[item.t], item.z): index for index, item in enumerate(images.slices)}
        inputs.image_of = {
            pair.name: places.get((pair.frame.t, paired.prediction.slices[pair.prediction].z), 0)
            for pair in paired.pairs
        }
    inputs.images = images
    stack.callback(images.close)
