"""Segmentations of ours as predictions: finished ones, and those made on the spot with ``--model``.

1. A store says itself whether it is finished, which classes it has and what was written.
2. Images of a folder are copied into temporary Zarr stores, those of one size together, and segmented; a Zarr volume is
   segmented as it is. Only images that have a truth are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unet_deploy.cli._report import show_progress
from unet_deploy.cli._stacks import Slice, Stack, is_zarr, join_stacks, open_stack
from unet_deploy.errors import ChannelError, NotAVolumeError, UsageError
from unet_deploy.percentiles import PercentileSearch, scale_by_range
from unet_deploy.runtime.layout import LABELS_NAME
from unet_deploy.runtime.output_paths import read_provenance

if TYPE_CHECKING:
    from unet_deploy.runtime.artifact import Artifact
    from unet_deploy.runtime.execute import ProgressCallback

MEMBRANE = re.compile(r"membrane|border|boundary|boundaries", re.IGNORECASE)
GROUP_BYTES = 2**28
"""Images of a folder are segmented together up to this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segmentation:
    """One or more stores of ours that make up one prediction; `slices` name theirs if they come from a folder."""

    where: str
    stores: tuple[Path, ...]
    class_names: tuple[str, ...]
    kinds: tuple[str, ...]
    slices: tuple[Slice, ...] | None = None

    @property
    def membrane_class(self) -> int | None:
        """The class whose name says that it is membrane; None if none or several do."""
        found = [index for index, name in enumerate(self.class_names) if MEMBRANE.search(name)]
        return found[0] if len(found) == 1 else None

    def choose_class(self, asked: str | None) -> int:
        """Return the class whose probability is scored: the one asked for, else the membrane.

        Raises
        ------
        ChannelError
            If there is no such class, or none was asked for and no name says which is membrane.
        """
        names = self.class_names
        if asked in names:
            return names.index(asked)
        if asked is not None and asked.isdecimal() and int(asked) < len(names):
            return int(asked)
        if asked is None and self.membrane_class is not None:
            return self.membrane_class
        raise ChannelError(
            f"the segmentation has no class {asked!r}"
            if asked is not None
            else "no class of the segmentation is called membrane or border",
            f"classes of {self.where}: {', '.join(f'{index} {name}' for index, name in enumerate(names))}",
            fix="--probability 0 --predicts interior, if class 0 is the inside of cells",
        )

    def open_labels(self) -> Stack:
        """Open the classes of pixels; raises `NotAVolumeError` if they were not written."""
        self._require("labels", kind="membranes")
        return self._join([open_stack(store / "labels" / LABELS_NAME) for store in self.stores])

    def open_probabilities(self, index: int) -> Stack:
        """Open the probability of a class; raises `NotAVolumeError` if they were not written."""
        self._require("probabilities", kind="classes")
        return self._join([open_stack(store, channel=index) for store in self.stores])

    def _require(self, what: str, *, kind: str) -> None:
        if what not in self.kinds:
            raise NotAVolumeError(
                f"{self.where} holds no {what}",
                f"it was written with --write {' --write '.join(self.kinds)}",
                fix=f"segment again with --write {what}, or score --kind {kind}",
            )

    def _join(self, parts: Sequence[Stack]) -> Stack:
        slices = self.slices if self.slices is not None else parts[0].slices
        is_folder = any(item.stem is not None for item in slices)
        shapes = {part.shape for part in parts}
        joined = join_stacks(parts, slices, where=self.where, is_folder=is_folder)
        joined.shape = shapes.pop() if len(shapes) == 1 else None
        joined.dtype = parts[0].dtype
        return joined


def read_segmentation(path: Path, *, say: Callable[[str], None]) -> Segmentation | None:
    """Return the segmentation of ours at a path, None if it is something else.

    Raises
    ------
    NotAVolumeError
        If it is not finished.
    """
    made = read_provenance(path) if is_zarr(path) else None
    if made is None:
        return None
    if made.get("status") == "running":
        raise NotAVolumeError(
            f"{path} is no result: it is being written, or its run was killed",
            f"started {made.get('started')}",
            fix=f"wait for it, or run unet-deploy segment again with --output {path} --overwrite",
        )
    if made.get("status") != "complete":
        say(f"prediction: {len(made.get('failed_blocks', []))} block(s) of {path} failed; they are scored as 0")
    names = tuple(map(str, made.get("model", {}).get("classes", ())))
    kinds = tuple(map(str, made.get("parameters", {}).get("write", ("labels", "probabilities"))))
    return Segmentation(where=str(path), stores=(path,), class_names=names, kinds=kinds)


def segment_images(
    images: Stack,
    wanted: Sequence[int],
    volume: Path | None,
    *,
    artifact: Artifact,
    write: str,
    folder: Path,
    options: dict[str, Any],
) -> Segmentation:
    """Segment a volume, or the wanted slices of other images, into `folder`.

    Parameters
    ----------
    images, wanted
        The images, and the numbers of those to segment.
    volume
        The images' Zarr store, if they are one: it is segmented whole.
    artifact, write
        The model, and what to make: labels or probabilities.
    folder
        An empty one.
    options
        Further keywords of `unet_deploy.runtime.segment`.

    Raises
    ------
    UnetDeployError
        What `unet_deploy.runtime.segment` raises.
    """
    from unet_deploy.cli.demo import write_volume
    from unet_deploy.runtime.pipeline import segment

    stores: list[Path] = []

    def run(source: Path, keywords: dict[str, Any], progress: ProgressCallback) -> None:
        store = folder / f"segmentation_{len(stores)}.ome.zarr"
        segment(source, model=artifact, output=store, write=(write,), progress=progress, **keywords)
        stores.append(store)

    with show_progress() as progress:
        if volume is not None:
            run(volume, options, progress)
        else:
            if options["channels"] or options["axes"]:
                raise UsageError(
                    "--channel or --axes came with images that are no Zarr",
                    f"{images.where} has one channel, and its axes are known",
                    fix="leave them out",
                )
            percentiles = artifact.card.normalisation.percentiles
            if percentiles is not None and options["input_range"] is None:
                images, options = _scaled(images, percentiles), {**options, "input_range": (0.0, 1.0)}
            for number, group in enumerate(_groups(images, wanted)):
                source = folder / f"images_{number}.ome.zarr"
                write_volume(source, group)
                run(source, options, progress)
    return Segmentation(
        where=f"{images.where}, segmented by {artifact.card.name}"
        + (" over turned and mirrored images" if options["tta"] else ""),
        stores=tuple(stores),
        class_names=tuple(item.name for item in artifact.card.classes),
        kinds=(write,),
        slices=images.slices if volume is not None else tuple(images.slices[index] for index in wanted),
    )


def _scaled(images: Stack, percentiles: tuple[float, float]) -> Stack:
    """Return the images scaled as the model scales a volume: those of each file together, then 0..1 is the range.

    Files of a folder are volumes of their own, in whatever stores they are segmented together.
    """
    found: dict[str | None, tuple[float, float]] = {}

    def read(index: int) -> npt.NDArray[Any]:
        stem = images.slices[index].stem
        if stem not in found:
            found.clear()  # slices come in order
            found[stem] = _measure(
                images, [i for i, item in enumerate(images.slices) if item.stem == stem], percentiles
            )
        return scale_by_range(images.read(index), found[stem])

    return Stack(where=images.where, slices=images.slices, read=read, is_folder=images.is_folder)


def _measure(images: Stack, indices: Sequence[int], percentiles: tuple[float, float]) -> tuple[float, float]:
    """Return the grey values at the percentiles of some slices, read one by one."""
    where = f"{images.where}, {images.slices[indices[0]]}"
    sizes, dtypes = zip(*((plane.size, plane.dtype) for plane in map(images.read, indices)), strict=True)
    search = PercentileSearch.begin(str(np.result_type(*dtypes)), sum(sizes), percentiles, source=where)
    while not search.is_done:
        search = search.narrowed(reduce(np.add, (search.count(images.read(i), source=where) for i in indices)))
    return search.values


def _groups(images: Stack, wanted: Sequence[int]) -> Iterator[npt.NDArray[Any]]:
    """Yield stacks (z, y, x) of consecutive images of one shape and data type."""
    group: list[npt.NDArray[Any]] = []
    for index in wanted:
        image = images.read(index)
        if group and (
            (image.shape, image.dtype) != (group[0].shape, group[0].dtype) or len(group) * image.nbytes >= GROUP_BYTES
        ):
            yield np.stack(group)
            group = []
        group.append(image)
    if group:
        yield np.stack(group)
