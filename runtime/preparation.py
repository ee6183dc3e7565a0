"""Everything that is checked and planned before a run begins; nothing is written here."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from unet_deploy.card import ModelCard
from unet_deploy.errors import ChannelError
from unet_deploy.runtime._remote import RemoteDirectory, as_location
from unet_deploy.runtime.artifact import Artifact, load_bundled_artifact
from unet_deploy.runtime.engine_costs import CostModel
from unet_deploy.runtime.expected_costs import expect_costs
from unet_deploy.runtime.layout import Kind, OutputSpec
from unet_deploy.runtime.levels import choose_level
from unet_deploy.runtime.normalise import Normaliser, choose_normaliser, needs_statistics
from unet_deploy.runtime.output_paths import find_store
from unet_deploy.runtime.plan import Extents, SegmentationPlan, plan_segmentation
from unet_deploy.runtime.planned import PlannedArtifact, load_model, settle_engine_name
from unet_deploy.runtime.statistics import bytes_to_measure
from unet_deploy.runtime.timeline import span
from unet_deploy.runtime.volume import Volume, VolumeInfo, open_volume

_MOST_WORD_BYTES = 80


def default_output(volume: str | Path, image: str | None = None) -> Path:
    """Return where a segmentation goes when nobody says: beside the volume, or beside the store that it lies in.

    >>> default_output("data/brain.ome.zarr").as_posix()
    'data/brain_segmentation.ome.zarr'

    One of several images is in the name, as if it was given by its own path.

    >>> default_output("data/plate.zarr", "A/1/0").as_posix()
    'data/plate_A_1_0_segmentation.ome.zarr'

    That of an address goes to the working directory.

    >>> default_output("s3://bucket/plate.zarr/A/1").as_posix()
    'plate_A_1_segmentation.ome.zarr'
    """
    words = _words_of(image or "")
    place = as_location(volume)
    if isinstance(place, RemoteDirectory):
        return Path("_".join((*place.stem_and_inside, *words, "segmentation")) + ".ome.zarr")
    path = Path(volume)
    store = find_store(path)
    inside = () if store is None else path.resolve().relative_to(store).parts
    root = store or (path if path.name not in ("", "..") else path.resolve())
    stem = re.sub(r"(\.ome)?\.(zarr|tiff?)$", "", root.name, flags=re.IGNORECASE) or root.name
    return root.parent / ("_".join((stem, *inside, *words, "segmentation")) + ".ome.zarr")


def _words_of(image: str) -> tuple[str, ...]:
    """Return the words of an image's name that can stand in a file's; a title may be any text."""
    words = (re.sub(r'[<>:"|?*\x00-\x1f]', "-", word).strip(" .") for word in re.split(r"[/\\]", image))
    return tuple(_cut(word) for word in words if word)


def _cut(word: str) -> str:
    """Return a word that fits into a file's name; a long one by its start and a number that changes with all of it."""
    raw = word.encode("utf-8", "replace")
    if len(raw) <= _MOST_WORD_BYTES:
        return word
    return f"{raw[:_MOST_WORD_BYTES].decode('utf-8', 'ignore')}-{zlib.crc32(raw):08x}"


def prepare(
    volume: str | Path,
    *,
    model: str | Path | Artifact | None = None,
    image: str | None = None,
    channels: Sequence[int | str] = (),
    axes: str | None = None,
    level: int | None = None,
    tile: tuple[int, int] | None = None,
    batch: int = 1,
    memory_bytes: int | None = None,
    max_memory_bytes: int | None = None,
    input_range: tuple[float, float] | None = None,
    tta: bool = False,
    costs: CostModel | None = None,
) -> Preparation:
    """Open and check everything a run needs, and plan it; nothing is written. Parameters as in `segment`.

    `costs` are of the engine that will run; None for the one that ``device="auto"`` will most likely come to.
    """
    artifact = resolve_model(model)
    with span("open volume"):
        opened, level_choice = open_for(artifact.card, volume, image=image, level=level, axes=axes)
    card, info = artifact.card, opened.info
    chosen = choose_channels(info, card, channels)
    normaliser = (
        None
        if needs_statistics(card, input_range=input_range)
        else choose_normaliser(card, info.dtype, input_range=input_range, source=info.path)
    )
    with span("plan"):
        plan = plan_volume(
            opened,
            artifact,
            costs=expect_costs(artifact) if costs is None else costs,
            tile=tile,
            batch=batch,
            memory_bytes=memory_bytes,
            max_memory_bytes=max_memory_bytes,
            tta=tta,
        )
    if tta:  # half of the copies of a tile are turned; an engine plan may be for upright ones only
        n, c, y, x = plan.batch_shape
        settle_engine_name(artifact, None, (n, c, x, y))
    return Preparation(
        volume=opened,
        artifact=artifact,
        channels=chosen,
        normaliser=normaliser,
        plan=plan,
        level_choice=level_choice,
        default_output=default_output(volume, image),
    )


def open_for(
    card: ModelCard, volume: str | Path, *, image: str | None = None, level: int | None = None, axes: str | None = None
) -> tuple[Volume, str | None]:
    """Open a volume at the level that a model is for, and say why that one; None where there was nothing to choose.

    Parameters
    ----------
    card
        The model's card, which may say the pixel size that it was trained at.
    volume, image, axes
        As for `open_volume`.
    level
        A level to insist on.

    Raises
    ------
    InputDataError, UsageError
        As `open_volume`.
    """
    opened = open_volume(volume, image=image, level=level or 0, axes=axes)
    if level is not None:
        return opened, None
    choice = choose_level(opened.info, card.input.pixel_size_nm)
    if choice.level != opened.info.level:
        opened = open_volume(volume, image=image, level=choice.level, axes=axes)
    return opened, choice.reason


def plan_volume(
    volume: Volume, artifact: Artifact, *, costs: CostModel, tile: tuple[int, int] | None, **options: Any
) -> SegmentationPlan:
    """Return the plan of a volume; `options` are those of `plan_segmentation` that the volume does not decide."""
    info = volume.info
    return plan_for(
        artifact,
        partial(
            plan_segmentation,
            artifact.card.network,
            Extents(t=volume.extent("t"), z=volume.extent("z"), y=volume.extent("y"), x=volume.extent("x")),
            source_chunk=_spatial(info, info.chunks),
            source_shard=None if info.shards is None else _spatial(info, info.shards),
            source_chunk_t=dict(zip(info.axes, info.chunks, strict=True)).get("t", 1),
            bytes_per_value=np.dtype(info.dtype).itemsize,
            costs=costs,
            **options,
        ),
        tile=tile,
    )


def plan_for(
    artifact: Artifact, make: Callable[..., SegmentationPlan], *, tile: tuple[int, int] | None
) -> SegmentationPlan:
    """Return the plan that `make` makes with a tile, or with its own choice of one.

    An engine plan takes only the tiles it was built for: where nobody says, its own choice is kept within them.
    """
    plan = make(tile=tile)
    if tile is not None or not isinstance(artifact, PlannedArtifact):
        return plan
    profiles = artifact.plan.manifest.profiles
    fitting = [p for p in profiles if p.minimum[0] <= plan.batch <= p.maximum[0]]
    if not fitting or any(profile.holds(plan.batch_shape) for profile in profiles):
        return plan  # where none fits, opening the engine says so
    largest = max(fitting, key=lambda p: p.maximum[2] * p.maximum[3])
    y, x = (
        min(max(side, low), high)
        for side, low, high in zip(plan.batch_shape[2:], largest.minimum[2:], largest.maximum[2:], strict=True)
    )
    return make(tile=(y, x))


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """A run that was checked and planned, but not begun.

    `normaliser` is None where the card asks for percentiles of the volume, which are yet to be measured. `level_choice`
    says which level of a pyramid was taken and why, where nobody asked for one and there are several. `default_output`
    is where the result goes when nobody says.
    """

    volume: Volume
    artifact: Artifact
    channels: tuple[int, ...]
    normaliser: Normaliser | None
    plan: SegmentationPlan
    level_choice: str | None
    default_output: Path

    @property
    def statistics_bytes(self) -> int:
        """Raw bytes that will be read to measure the volume's percentiles, before anything is segmented."""
        return 0 if self.normaliser is not None else bytes_to_measure(self.volume, self.channels)

    def output_spec(self, output: Path, kinds: tuple[Kind, ...], *, is_label_group: bool = False) -> OutputSpec:
        """Return what the output will be: a store, or a group among the volume's own labels."""
        info = self.volume.info
        axes = info.axes.replace("c", "")
        keep = [i for i, axis in enumerate(info.axes) if axis != "c"]
        scale = info.scale or (1.0,) * len(info.axes)
        translation = info.translation or (0.0,) * len(info.axes)
        units = info.units or (None,) * len(info.axes)
        return OutputSpec(
            path=str(output.absolute()),  # a worker elsewhere has another current folder
            zarr_format=2 if info.zarr_format == 2 else 3,
            ome_version="0.4" if info.zarr_format == 2 else "0.5",
            kinds=kinds,
            name=info.name,
            axes=axes,
            extents=self.plan.extents,
            grid=self.plan.grid,
            block=self.plan.block_shape,
            classes=self.artifact.card.classes,
            scale=tuple(scale[i] for i in keep),
            translation=tuple(translation[i] for i in keep),
            units=tuple(units[i] for i in keep),
            is_label_group=is_label_group,
            volume_levels=len(info.levels) if is_label_group else None,
        )


def resolve_model(model: str | Path | Artifact | None) -> Artifact:
    """Return the model given, the one at a path or of a bundled name, or the bundled one of last resort."""
    if isinstance(model, Artifact):
        return model
    with span("open model"):
        return load_bundled_artifact() if model is None else load_model(model)


def choose_channels(info: VolumeInfo, card: ModelCard, channels: Sequence[int | str]) -> tuple[int, ...]:
    """Return the volume's channels that the model gets, in the model's order.

    Raises
    ------
    ChannelError
        If their number is not the model's, or one does not exist.
    """
    wanted = card.network.in_channels
    count = info.shape[info.axes.index("c")] if "c" in info.axes else 1
    names = info.channel_names or ()
    listing = ", ".join(f"{i} ({names[i]})" if i < len(names) else str(i) for i in range(min(count, 12)))
    chosen: list[int] = []
    for channel in channels:
        if channel in names:
            chosen.append(names.index(str(channel)))
        elif re.fullmatch(r"[0-9]{1,9}", str(channel)) and int(channel) < count:
            chosen.append(int(channel))
        else:
            raise ChannelError(
                f"the volume has no channel {channel!r}",
                f"channels of {info.path}: {listing}",
                fix="--channel 0",
            )
    if not channels and count == wanted:
        return tuple(range(count))
    if len(chosen) != wanted:
        came = f"{len(chosen)} were chosen" if channels else f"the volume has {count}"
        flags = " ".join(f"--channel {i}" for i in range(min(wanted, count)))
        raise ChannelError(
            f"the model takes {wanted} channel(s) ({', '.join(card.input.channels)}), {came}",
            f"channels of {info.path}: {listing}",
            fix=flags if count >= wanted else "use a model trained on these channels",
        )
    return tuple(chosen)


def _spatial(info: VolumeInfo, sizes: Sequence[int]) -> tuple[int, int, int]:
    by_axis = dict(zip(info.axes, sizes, strict=True))
    return by_axis.get("z", 1), by_axis["y"], by_axis["x"]
