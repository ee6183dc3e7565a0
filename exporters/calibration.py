"""Tiles to quantise on and to show parity on: of the user's own volume or images, or drawn by formula.

1. A volume is opened, checked and normalised as a run would (`runtime.preparation`); of a folder of PNG and TIFF files
   each image is a whole volume of its own, as in training.
2. Tiles are those a run would cut, borders mirrored. Which ones is drawn with a fixed seed: equal data, equal tiles.
   Tiles of one grey value say nothing of a range, and are passed over.
3. Three quarters are for calibration, the rest for parity: a graph is proved on tiles it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.card import ModelCard
from unet_deploy.errors import ChannelError, NotAVolumeError, ReadError, ValueRangeError
from unet_deploy.geometry import AxisTile, Geometry, Interval, cover_axis
from unet_deploy.percentiles import percentile_range
from unet_deploy.runtime.artifact import Artifact
from unet_deploy.runtime.engines.base import Batch
from unet_deploy.runtime.normalise import Normaliser, choose_normaliser
from unet_deploy.runtime.preparation import prepare
from unet_deploy.runtime.scheduling import connect
from unet_deploy.runtime.statistics import measure_volume
from unet_deploy.runtime.windows import plan_window, spread
from unet_deploy.sample import em_like_volume
from unet_deploy.training.image_files import TIFF_SUFFIXES, is_store, read_stack

N_TILES = 16
N_SAMPLE_TILES = 4
CORE = 384
"""Pixels a tile keeps, rounded up to what the depth allows: 572 px a tile for the paper's network."""
SEED = 20150518  # the paper's date on arXiv
IMAGE_SUFFIXES = (".png", *TIFF_SUFFIXES)
_SHOWN = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationSource:
    """Where the user's data lies, and how it is to be read; the words are those of `runtime.segment`."""

    path: Path
    channels: tuple[int | str, ...] = ()
    axes: str | None = None
    level: int = 0
    input_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tiles:
    """Normalised float32 tiles (1, c, y, x), and in words what they are of."""

    data: str
    tiles: tuple[Batch, ...]

    @property
    def calibration(self) -> tuple[Batch, ...]:
        """Those to measure ranges on: three quarters."""
        return self.tiles[: max(1, 3 * len(self.tiles) // 4)]

    @property
    def parity(self) -> tuple[Batch, ...]:
        """Those to compare on: the rest, or the only one."""
        return self.tiles[len(self.calibration) :] or self.tiles


def read_tiles(source: CalibrationSource, parent: Artifact, *, count: int = N_TILES) -> Tiles:
    """Return tiles of a volume, or of a folder of images.

    Parameters
    ----------
    source
        A Zarr volume, a folder of PNG or TIFF files of one channel, or one such file.
    parent
        The fp32 artifact that the tiles are for.
    count
        How many to draw; less come where there are less.

    Raises
    ------
    InputDataError
        As `runtime.preparation.prepare` of a volume.
    NotAVolumeError
        If it is a folder without images and no Zarr.
    ChannelError
        If the model takes several channels and the images have one.
    ReadError
        If a file cannot be read, or is no image of one channel.
    ValueRangeError
        If the dtype is another than trained on and no range is given, or no tile shows anything.
    """
    path = source.path
    files = _find_images(path)
    drawn = _draw_of_images(files, source, parent.card, count) if files else _draw_of_volume(source, parent, count)
    tiles = []
    for tile in drawn:
        if not np.isfinite(tile).all():
            raise ValueRangeError(
                "grey values that are no numbers came to calibrate on",
                f"{path} holds NaN or infinity",
                fix="replace them by a grey value",
            )
        if tile.min() < tile.max():
            tiles.append(tile)
        if len(tiles) == count:
            break
    if not tiles:
        raise ValueRangeError(
            f"every tile drawn from {path} has one grey value",
            "the range of grey values is what calibration is for",
            fix="--calibrate a volume or images that show what will be segmented",
        )
    return Tiles(data=f"{path.name or path.resolve().name}, {_sizes(tiles)}", tiles=tuple(tiles))


def draw_sample(card: ModelCard, *, count: int = N_SAMPLE_TILES) -> Tiles:
    """Return tiles of the procedural sample (`unet_deploy.sample`), standardised as the training images were."""
    side = tile_side(card.geometry)
    channels = card.network.in_channels
    planes = em_like_volume(shape=(count * channels, side, side)).astype(np.float32)
    standard = (planes - planes.mean()) / planes.std()
    tiles = [np.ascontiguousarray(tile[None]) for tile in standard.reshape(count, channels, side, side)]
    return Tiles(data=f"the procedural sample, {_sizes(tiles)}", tiles=tuple(tiles))


def tile_side(geometry: Geometry) -> int:
    """Return the side of the tiles."""
    return geometry.tile_side(geometry.round_up(CORE))


def _find_images(path: Path) -> list[Path]:
    """Return the image files at a path, sorted; none if it is a volume, or nothing."""
    if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
        return [path]
    if not path.is_dir() or is_store(path):
        return []
    entries = sorted(path.iterdir())
    files = [e for e in entries if e.suffix.lower() in IMAGE_SUFFIXES and not e.name.startswith(".") and e.is_file()]
    if not files:
        raise NotAVolumeError(
            f"{path} holds no PNG or TIFF files, and is no Zarr volume",
            f"{len(entries)} other entries are there",
            fix="--calibrate VOLUME.zarr, or a folder of images like those that will be segmented",
        )
    return files


def _draw_of_volume(source: CalibrationSource, parent: Artifact, count: int) -> Iterator[Batch]:
    """Yield tiles of a volume, some more than asked for: constant ones will be passed over."""
    card = parent.card
    side = tile_side(card.geometry)
    ready = prepare(
        source.path,
        model=parent,
        channels=source.channels,
        axes=source.axes,
        level=source.level,
        tile=(side, side),
        memory_bytes=2**40,  # the tile is given, and these runs are over before memory matters
        input_range=source.input_range,
    )
    volume, normalise = ready.volume, ready.normaliser
    if normalise is None:
        assert card.normalisation.percentiles is not None
        with connect(None) as client:
            found = measure_volume(volume, ready.channels, card.normalisation.percentiles, client)
        normalise = choose_normaliser(
            card, volume.info.dtype, input_range=None, source=volume.info.path, measured=found.ranges
        )
    extents = tuple(volume.extent(axis) for axis in "tzyx")
    covers = [cover_axis(card.geometry, Interval(0, extent), side) for extent in extents[2:]]
    shape = (*extents[:2], *map(len, covers))
    for number in _draw(int(np.prod(shape)), 4 * count):
        t, z, row, column = (int(i) for i in np.unravel_index(number, shape))

        def read(y: Interval, x: Interval, t: int = t, z: int = z) -> npt.NDArray[Any]:
            at = Interval(t, t + 1), Interval(z, z + 1)
            pixels: npt.NDArray[Any] = volume.read(t=at[0], z=at[1], y=y, x=x, c=ready.channels)[0, :, 0]
            return pixels

        yield _cut(card.geometry, (covers[0][row], covers[1][column]), (extents[2], extents[3]), read, normalise)


def _draw_of_images(files: Sequence[Path], source: CalibrationSource, card: ModelCard, count: int) -> Iterator[Batch]:
    """Yield tiles of image files, from as many of them as there are tiles to draw."""
    if card.network.in_channels != 1:
        raise ChannelError(
            f"the model takes {card.network.in_channels} channels ({', '.join(card.input.channels)}), images have one",
            f"in {source.path}",
            fix="--calibrate a Zarr volume with these channels",
        )
    chosen = [files[i] for i in sorted(_draw(len(files), count))]
    planes = [(file, plane) for file in chosen for plane in _read_planes(file)]
    side = tile_side(card.geometry)
    places = [
        (number, y, x)
        for number, (_, plane) in enumerate(planes)
        for y in cover_axis(card.geometry, Interval(0, plane.shape[0]), side)
        for x in cover_axis(card.geometry, Interval(0, plane.shape[1]), side)
    ]
    for place in _draw(len(places), 4 * count):
        number, y, x = places[place]
        file, plane = planes[number]

        def read(y: Interval, x: Interval, plane: npt.NDArray[Any] = plane) -> npt.NDArray[Any]:
            return plane[None, y.slice, x.slice]

        normalise = _normaliser(plane, file, source, card)
        yield _cut(card.geometry, (y, x), (plane.shape[0], plane.shape[1]), read, normalise)


def _normaliser(plane: npt.NDArray[Any], file: Path, source: CalibrationSource, card: ModelCard) -> Normaliser:
    percentiles = card.normalisation.percentiles
    measured = None
    if percentiles is not None and source.input_range is None:
        measured = [percentile_range(plane, percentiles, source=str(file))]
    return choose_normaliser(
        card, plane.dtype.name, input_range=source.input_range, source=str(file), measured=measured
    )


def _read_planes(file: Path) -> npt.NDArray[Any]:
    """Return the pages of a file, (z, y, x)."""
    problems: list[str] = []
    stack = read_stack(file, problems)
    if stack is None:
        raise ReadError(
            f"{file} cannot be calibrated on",
            *problems[:_SHOWN],
            fix="--calibrate a folder of grey images only, or a Zarr volume",
        )
    return stack


def _cut(
    geometry: Geometry,
    tile: tuple[AxisTile, AxisTile],
    extents: tuple[int, int],
    read: Callable[[Interval, Interval], npt.NDArray[Any]],
    normalise: Normaliser,
) -> Batch:
    """Return one tile as a run would give it to the network: (1, c, y, x)."""
    y, x = (plan_window(geometry, [one], extent) for one, extent in zip(tile, extents, strict=True))
    return np.ascontiguousarray(spread(normalise(read(y.source, x.source)), y, x)[None])


def _draw(total: int, count: int) -> list[int]:
    """Return up to `count` different numbers below `total`, in an order that depends on nothing else."""
    chosen = np.random.default_rng(SEED).choice(total, size=min(total, count), replace=False)
    return [int(i) for i in chosen]


def _sizes(tiles: Sequence[Batch]) -> str:
    return f"{len(tiles)} tile(s) of {tiles[0].shape[-2]} x {tiles[0].shape[-1]} px"
