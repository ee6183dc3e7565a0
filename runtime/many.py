"""Segment each image of a store, one after the other: the fields of a plate, the series of a file.

1. *Which*: those that the store's metadata lists, or those named. Each has an output of its own, whose name is that of
   the store and the image; no two are the same on any file system.
2. *Finished before*: an output that is complete, and was made of this image, with this model and these parameters, is
   left as it is. So the same command goes on with a plate where it was killed.
3. *Run*: one `Segmenter` for all, so that the engine and the Dask client are made once.
4. An image that cannot be read or ends with failed blocks is written down, and the others go on; at the end an error
   lists them. What would fail for every image (the model, the device, a full disk, a wrong setting) ends the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unet_deploy.errors import (
    InputDataError,
    InterruptedRunError,
    NoSpaceError,
    PartialResultError,
    UnetDeployError,
    UsageError,
)
from unet_deploy.runtime._image_outputs import choose_outputs, file_beside, make_folder, require_same_origin
from unet_deploy.runtime.images import ImageEntry, choose_entry, list_images
from unet_deploy.runtime.journal import read_journal
from unet_deploy.runtime.output_paths import read_provenance
from unet_deploy.runtime.results import SegmentationResult
from unet_deploy.runtime.segmenter import Segmenter

LISTED_KINDS = ("field", "series", "multiscale")
"""What a store says to be its images. Those just found by looking into folders may be anything, results too."""
_LISTED_ERRORS = 10

Outcome = Literal["done", "found", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageResult:
    """What became of one image: segmented now, found finished, or failed.

    `result` is there where it was segmented now, `error` where it failed.
    """

    image: ImageEntry
    output: Path
    outcome: Outcome
    result: SegmentationResult | None = None
    error: UnetDeployError | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ManyResult:
    """What became of all images, in their order."""

    results: tuple[ImageResult, ...]

    def count(self, outcome: Outcome) -> int:
        """Return how many images ended so."""
        return sum(found.outcome == outcome for found in self.results)


def _nothing(_: object) -> None:
    """Do nothing."""


def listed_images(volume: str | Path) -> tuple[ImageEntry, ...]:
    """Return the images that a store lists, where there are several; none for one image, an array or plain folders.

    Raises
    ------
    InputDataError
        As `list_images`.
    """
    entries = list_images(volume)
    return entries if len(entries) > 1 and all(entry.kind in LISTED_KINDS for entry in entries) else ()


def segment_images(
    volume: str | Path,
    *,
    images: Sequence[str] | None = None,
    output_folder: str | Path | None = None,
    on_start: Callable[[ImageEntry], None] = _nothing,
    on_result: Callable[[ImageResult], None] = _nothing,
    segmenter: Segmenter | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Any,
) -> ManyResult:
    """Segment each image of a plate, a series or a file, or those named; the same call goes on with what is missing.

    Parameters
    ----------
    volume
        A plate, well, bioformats2raw store, TIFF file or other store of images, as for `list_images`.
    images
        Names or titles as `list_images` gives them; all if None.
    output_folder
        Where the outputs go, made if it is not there; beside the store if None.
    on_start, on_result
        Called before and after each image.
    segmenter
        One to use, which stays open; else one is made of the options.
    overwrite
        Replace earlier segmentations, finished ones too.
    retry_failed
        Run the failed blocks of earlier runs again.
    should_stop
        Asked before each image and each block.
    **options
        As of `segment`, the same for all images. A `table` and a `profile` get the image's name into theirs.

    Returns
    -------
    ManyResult
        Where nothing failed.

    Raises
    ------
    PartialResultError
        If images failed; the others are done. `on_result` was given each.
    InterruptedRunError
        If `should_stop` said so before the last image was done.
    ModelError, RequirementError, NoSpaceError
        As `segment`: they would be the same for the next image.
    UsageError
        As `segment`, before the first image is done; later ones are that image's.
    InputDataError
        If the store cannot be read, or the folder of the outputs cannot be made; and that of the first image, where
        each has one that the same flag would mend.
    """
    listed = entries = list_images(volume)
    if images is not None:
        entries = tuple(dict.fromkeys(choose_entry(str(volume), listed, name) for name in images))
    places = choose_outputs(volume, listed, None if output_folder is None else Path(output_folder))
    output_of = dict(zip(listed, places, strict=True))  # the same whichever of the images are asked for
    results: list[ImageResult] = []
    with ExitStack() as held:
        if segmenter is None:
            made_with = {name: options.pop(name) for name in ("scheduler", "scheduler_file") if name in options}
            segmenter = held.enter_context(Segmenter(options.pop("model", None), **made_with))
        if output_folder is not None:
            make_folder(Path(output_folder))
        for entry in entries:
            output = output_of[entry]
            if should_stop():
                raise _stopped(results, len(entries))
            on_start(entry)
            try:
                found = _segment_one(
                    segmenter,
                    volume,
                    entry,
                    output,
                    overwrite=overwrite,
                    retry_failed=retry_failed,
                    should_stop=should_stop,
                    **options,
                )
            except InterruptedRunError as error:
                raise _stopped(results, len(entries)) from error
            except NoSpaceError:
                raise
            except (InputDataError, PartialResultError, UsageError) as error:
                if isinstance(error, UsageError) and all(found.outcome == "failed" for found in results):
                    raise  # a setting that suits no image so far is a wrong setting
                found = ImageResult(image=entry, output=output, outcome="failed", error=error)
            results.append(found)
            on_result(found)
    _require_all(results)
    return ManyResult(results=tuple(results))


def _segment_one(
    segmenter: Segmenter,
    volume: str | Path,
    entry: ImageEntry,
    output: Path,
    *,
    overwrite: bool,
    retry_failed: bool,
    **options: Any,
) -> ImageResult:
    """Segment an image, or find that it is finished; raises as `segment`."""
    place: dict[str, Any] = {"output": output}
    if options.get("into_labels") is not None:
        place = {}
        output = Path(entry.path) / "labels" / str(options["into_labels"])
    if options.get("table") is not None:
        options["table"] = file_beside(Path(options["table"]), output)
    if options.get("profile") is not None:
        options["profile"] = file_beside(Path(options["profile"]), output)
    made = None if overwrite else read_provenance(output)
    if made is not None and made.get("status") == "complete":
        require_same_origin(made, output, segmenter.artifact, volume, entry, options)
        return ImageResult(image=entry, output=output, outcome="found")
    result = segmenter.segment(
        volume,
        image=entry.name or None,
        overwrite=overwrite,
        retry_failed=retry_failed and made is not None and _has_failed(output),
        **place,
        **options,
    )
    return ImageResult(image=entry, output=result.output, outcome="done", result=result)


def _has_failed(output: Path) -> bool:
    """Tell whether blocks of an earlier run failed there; raises as `read_journal`."""
    journal = read_journal(output)
    return journal is not None and journal.count("failed") > 0


def _stopped(results: Sequence[ImageResult], n_images: int) -> InterruptedRunError:
    return InterruptedRunError(
        f"stopped after {len(results)} of {n_images} images",
        *_lines_of(results),
        fix="give the same command again: it goes on where it was",
    )


def _require_all(results: Sequence[ImageResult]) -> None:
    """Say which images failed.

    Raises
    ------
    PartialResultError
        If any did.
    """
    lines = _lines_of(results)
    if not lines:
        return
    alike = shared_error([found.error for found in results])
    if alike is not None:
        raise alike
    failed = sum(found.outcome == "failed" for found in results)
    has_holes = any(isinstance(found.error, PartialResultError) for found in results)
    raise PartialResultError(
        f"{failed} of {len(results)} images failed{'; the others are done' if failed < len(results) else ''}",
        *lines,
        fix="mend the cause, then give the same command again"
        + (" with --retry-failed" if has_holes else "")
        + ": what is finished stays as it is",
    )


def shared_error(errors: Sequence[UnetDeployError | None]) -> UnetDeployError | None:
    """Return the first error of images, where every image has one and the same flag would mend them; None where not.

    A channel that is to be chosen is not the fault of each field of a plate.
    """
    first = errors[0] if errors else None
    if first is None or not first.fix.startswith("--"):
        return None
    is_shared = all(error is not None and (error.code, error.fix) == (first.code, first.fix) for error in errors)
    return first if is_shared else None


def _lines_of(results: Sequence[ImageResult]) -> list[str]:
    failed = [(found.image.name, found.error) for found in results if found.error is not None]
    lines = [f"{name}: [{error.code}] {error.headline}" for name, error in failed[:_LISTED_ERRORS]]
    more = len(failed) - len(lines)
    return [*lines, *([f"and {more} more"] if more else [])]
