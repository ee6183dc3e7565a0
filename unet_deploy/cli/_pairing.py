"""Which slice of a prediction belongs to which slice of a truth.

1. Two folders are paired by file stem; every truth must have its prediction, and what has no truth is not scored.
2. Otherwise both have the same number of slices and are paired in order; (t, z, y, x) must be equal where both say it.
3. The Cell Tracking Challenge: ``01_RES/maskTTT.tif`` with ``01_GT/SEG/man_segTTT.tif``, or, where only single slices
   of a stack are annotated, with ``man_seg_TTT_ZZZ.tif``.

Nothing is read before all that is missing is known.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from unet_deploy.cli._image_files import LISTED, Plane
from unet_deploy.cli._stacks import Stack, open_files
from unet_deploy.errors import SeveralImagesError, ShapeMismatchError, VolumeNotFoundError
from unet_deploy.metrics.ctc import Frame, require_frames

_RESULT = re.compile(r"mask(\d+)\.tiff?", re.IGNORECASE)
CTC_IMAGE = re.compile(r"t(\d+)\.tiff?", re.IGNORECASE)
_TRUTH = re.compile(r"man_seg_?(\d+)(?:_(\d+))?\.tiff?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A slice to score: its numbers in both stacks. Slices of one frame are parts of one volume."""

    name: str
    frame: Frame
    prediction: int
    truth: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Paired:
    """Two stacks, slice by slice; `notes` say what was decided and left out."""

    prediction: Stack
    truth: Stack
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]

    def read(self, pair: Pair) -> tuple[Plane, Plane]:
        """Return a slice of truth and prediction.

        Raises
        ------
        ConfigurationError
            If their shapes differ.
        ReadError, UnsupportedAxesError
            If one cannot be read or is a colour picture.
        """
        truth, prediction = self.truth.read(pair.truth), self.prediction.read(pair.prediction)
        if truth.shape != prediction.shape:
            raise _shapes_differ(f"slice {pair.name} of ", self, truth.shape, prediction.shape)
        return truth, prediction

    def frames(self) -> Iterator[tuple[Frame, list[Pair]]]:
        """Yield each frame with its slices."""
        for frame, pairs in groupby(self.pairs, key=lambda pair: pair.frame):
            yield frame, list(pairs)


def pair_stacks(prediction: Stack, truth: Stack) -> Paired:
    """Pair two stacks.

    Raises
    ------
    VolumeNotFoundError
        If a slice of the truth has no prediction; all that lack one are named.
    ConfigurationError
        If they are paired in order and their extents differ.
    """
    if prediction.is_folder and truth.is_folder:
        paired = _pair_by_stem(prediction, truth)
    else:
        paired = _pair_in_order(prediction, truth)
    if truth.shape is not None and prediction.shape is not None and truth.shape != prediction.shape:
        raise _shapes_differ("", paired, _extents(truth), _extents(prediction))
    return paired


def _pair_by_stem(prediction: Stack, truth: Stack) -> Paired:
    by_key = {(item.stem, item.z): index for index, item in enumerate(prediction.slices)}
    missing = [str(item) for item in truth.slices if (item.stem, item.z) not in by_key]
    if missing:
        have = [str(item) for item in prediction.slices]
        raise VolumeNotFoundError(
            f"the prediction lacks {len(missing)} of {len(truth)} slices: {_listing(missing)}",
            f"truth in {truth.where}",
            f"prediction in {prediction.where}: {_listing(have)}",
            fix="give each prediction the stem of its truth, or leave those truths out",
        )
    pairs = tuple(
        Pair(name=str(item), frame=Frame(item.t), prediction=by_key[item.stem, item.z], truth=index)
        for index, item in enumerate(truth.slices)
    )
    used = {pair.prediction for pair in pairs}
    extra = [str(item) for index, item in enumerate(prediction.slices) if index not in used]
    notes = (f"not scored, for want of a truth: {_listing(extra)}",) if extra else ()
    return Paired(prediction=prediction, truth=truth, pairs=pairs, notes=notes)


def _pair_in_order(prediction: Stack, truth: Stack) -> Paired:
    if len(prediction) != len(truth):
        raise ShapeMismatchError(
            f"the truth has {len(truth)} slices, the prediction {len(prediction)}; they must be as many",
            f"truth {_describe(truth)}",
            f"prediction {_describe(prediction)}",
            fix="give the same slices of both; folders of files are paired by stem, and may hold some slices only",
        )
    pairs = tuple(
        Pair(name=str(item), frame=Frame(item.t), prediction=index, truth=index)
        for index, item in enumerate(truth.slices)
    )
    notes: tuple[str, ...] = ()
    places = [[(item.t, item.z) for item in stack.slices] for stack in (truth, prediction)]
    if len(truth) > 1 and (prediction.is_folder or truth.is_folder):
        first, last = (f"{truth.slices[i]} with {prediction.slices[i]}" for i in (0, -1))
        notes = (f"slices are compared in order: {first}, ..., {last}",)
    elif places[0] != places[1]:
        notes = ("t and z of prediction and truth differ: slices are compared in order, frames are the truth's",)
    return Paired(prediction=prediction, truth=truth, pairs=pairs, notes=notes)


def is_ctc_result(path: Path) -> bool:
    """Tell whether a folder holds ``maskTTT.tif``."""
    return path.is_dir() and any(_RESULT.fullmatch(child.name) for child in path.iterdir())


def is_ctc_truth(path: Path) -> bool:
    """Tell whether a folder, or SEG in it, holds ``man_segTTT.tif``."""
    folder = _annotation_folder(path)
    return folder.is_dir() and any(_TRUTH.fullmatch(child.name) for child in folder.iterdir())


def pair_ctc(result: Path, truth: Path, *, is_images: bool = False) -> Paired:
    """Pair a result of the Cell Tracking Challenge, or its images ``tTTT.tif``, with its annotated frames.

    Raises
    ------
    VolumeNotFoundError
        If a path is no folder, no frame is annotated, or the result lacks an annotated one.
    SeveralImagesError
        If two files are of one frame.
    ConfigurationError
        If a frame of the truth has another number of slices than its result.
    """
    pattern, first, name = (CTC_IMAGE, "01", "tTTT.tif") if is_images else (_RESULT, "01_RES", "maskTTT.tif")
    for what, path in (("folder of images" if is_images else "result", result), ("truth", truth)):
        if not path.is_dir():
            raise VolumeNotFoundError(
                f"the {what} {path} is no folder",
                f"the challenge's layout is {first}/{name} and 01_GT/SEG/man_segTTT.tif",
                fix=f"give {first} and 01_GT, or --kind instances for single files",
            )
    folder = _annotation_folder(truth)
    results = {frame.t: path for frame, (path, _) in _find(result, pattern).items()}
    annotated = _find(folder, _TRUTH)
    require_frames(annotated.keys(), [frame for frame in annotated if frame.t in results])
    times = sorted({frame.t for frame in annotated})
    prediction = open_files(result, [results[t] for t in times])
    truths = open_files(folder, [path for path, _ in annotated.values()])
    return _pair_frames(prediction, truths, times, [(frame, is_whole) for frame, (_, is_whole) in annotated.items()])


def _pair_frames(prediction: Stack, truth: Stack, times: list[int], frames: list[tuple[Frame, bool]]) -> Paired:
    first: dict[int, int] = {}
    for index, item in enumerate(prediction.slices):
        first.setdefault(times[item.t], index)
    depths = Counter(times[item.t] for item in prediction.slices)
    pages = Counter(item.t for item in truth.slices)
    pairs: list[Pair] = []
    for index, item in enumerate(truth.slices):
        frame, is_whole = frames[item.t]
        depth, z = depths[frame.t], frame.z + item.z
        if z >= depth or pages[item.t] != (depth if is_whole else 1):
            raise ShapeMismatchError(
                f"truth and prediction of frame {frame} differ in depth: {frame.z + pages[item.t]} and {depth} slices",
                f"truth {item.stem} in {truth.where}",
                f"prediction in {prediction.where}",
                fix="give the result at the depth of the images; one annotated slice is man_seg_TTT_ZZZ.tif",
            )
        name = f"T={frame.t} Z={z}" if depth > 1 else f"T={frame.t}"
        pairs.append(Pair(name=name, frame=frame, prediction=first[frame.t] + z, truth=index))
    return Paired(prediction=prediction, truth=truth, pairs=tuple(pairs), notes=())


def _annotation_folder(path: Path) -> Path:
    return path / "SEG" if (path / "SEG").is_dir() else path


def _find(folder: Path, pattern: re.Pattern[str]) -> dict[Frame, tuple[Path, bool]]:
    """Return the files by frame, and whether each is of all slices of its frame."""
    found: dict[Frame, tuple[Path, bool]] = {}
    for path in sorted(folder.iterdir()):
        if match := pattern.fullmatch(path.name):
            numbers = [int(group) for group in match.groups() if group is not None]
            frame = Frame(*numbers)
            if frame in found:
                raise SeveralImagesError(
                    f"{found[frame][0].name} and {path.name} are both of frame {frame}",
                    f"in {folder}",
                    fix="keep one of them",
                )
            found[frame] = path, len(numbers) == 1
    return dict(sorted(found.items()))


def _shapes_differ(
    what: str, paired: Paired, truth: tuple[int, ...], prediction: tuple[int, ...]
) -> ShapeMismatchError:
    return ShapeMismatchError(
        f"{what}truth and prediction differ in shape: {truth} and {prediction}",
        f"truth in {paired.truth.where}",
        f"prediction in {paired.prediction.where}",
        "each pixel of the prediction is compared with the pixel of the truth at the same place",
        fix="give both at one resolution, cropped to the same region",
    )


def _extents(stack: Stack) -> tuple[int, ...]:
    return (len(stack), *(stack.shape or ()))


def _describe(stack: Stack) -> str:
    size = " of " + " × ".join(map(str, stack.shape)) if stack.shape else ""
    return f"in {stack.where}: {_listing([str(item) for item in stack.slices])}{size}"


def _listing(names: list[str]) -> str:
    return ", ".join(names[:LISTED]) + (f" and {len(names) - LISTED} more" if len(names) > LISTED else "")
