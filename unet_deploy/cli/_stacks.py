"""Predictions and truths as slices: Zarr, TIFF, PNG, and folders of these.

1. Whatever stands at a path becomes a `Stack`: slices (y, x) with a name and a place (t, z), read one at a time.
2. Zarr is read through the runtime, with its bounds and checks; the slices of one chunk are decoded together as long
   as they are small. TIFF is read page by page, so a file larger than memory is never in memory whole.
3. A folder is one frame a file, in the order that people count: 2 before 10.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unet_deploy.cli._image_files import FileReader, Plane, Tiff, choose_channel, count_pages, read_png
from unet_deploy.errors import NotAVolumeError, SeveralImagesError, UnsupportedAxesError, VolumeNotFoundError

if TYPE_CHECKING:
    from unet_deploy.runtime.volume import Volume

DTYPES = (
    "bool",
    *(f"{sign}{bits}" for sign in ("uint", "int") for bits in (8, 16, 32, 64)),
    "float16",
    "float32",
    "float64",
)
FILE_SUFFIXES = (".png", ".tif", ".tiff")
ZARR_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
SLAB_BYTES = 2**27
"""Slices of one chunk are read together up to this size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """Where a slice stands: `stem` is its file's, in a folder; `t` counts frames (the files of a folder), from 0."""

    t: int
    z: int = 0
    stem: str | None = None
    has_depth: bool = False

    def __str__(self) -> str:
        if self.stem is not None:
            return f"{self.stem} z={self.z}" if self.has_depth else self.stem
        return f"t={self.t} z={self.z}" if self.t else f"z={self.z}"


class Stack:
    """Slices (y, x) of one prediction, truth or image; what is common to all is None where files may differ.

    Parameters
    ----------
    where
        The path, to be shown.
    slices
        In order.
    read
        Gives the slice of a number.
    is_folder
        Whether the slices are known by the stems of their files.
    shape, dtype
        Extents (y, x) and data type of every slice, if known without reading them all.
    close
        Lets go of files.
    """

    def __init__(
        self,
        *,
        where: str,
        slices: Sequence[Slice],
        read: Callable[[int], Plane],
        is_folder: bool = False,
        shape: tuple[int, int] | None = None,
        dtype: str | None = None,
        close: Callable[[], None] | None = None,
    ) -> None:
        self.where = where
        self.slices = tuple(slices)
        self.is_folder = is_folder
        self.shape = shape
        self.dtype = dtype
        self._read = read
        self._close = close

    def __len__(self) -> int:
        return len(self.slices)

    def read(self, index: int) -> Plane:
        """Return a slice (y, x).

        Raises
        ------
        ReadError
            If it cannot be read or decoded.
        UnsupportedAxesError
            If it is a colour picture.
        """
        plane = self._read(index)
        if plane.ndim != 2:
            raise UnsupportedAxesError(
                f"slice {self.slices[index]} has the shape {plane.shape}, (y, x) with one channel was expected",
                f"in {self.where}",
                "labels and probabilities are one number a pixel; a colour picture of them cannot be scored",
                fix="save it with one channel: image[..., 0] if all channels are equal",
            )
        return plane

    def close(self) -> None:
        """Let go of open files."""
        if self._close is not None:
            self._close()


def is_zarr(path: Path) -> bool:
    """Tell whether a Zarr array or group stands at the path."""
    return any((path / name).is_file() for name in ZARR_FILES)


def open_stack(path: Path, *, axes: str | None = None, channel: int | str | None = None) -> Stack:
    """Open what stands at a path.

    Parameters
    ----------
    path
        OME-Zarr or Zarr array, TIFF file, PNG file, or folder of TIFF and PNG files.
    axes
        Axis names of a bare Zarr array.
    channel
        Which channel, by index or name, of a Zarr or TIFF that has several.

    Raises
    ------
    VolumeNotFoundError
        If there is nothing at the path.
    NotAVolumeError
        If it is something else.
    SeveralImagesError
        If two files of a folder have one stem, or a TIFF holds images of several shapes.
    ChannelError
        If it has several channels and none was chosen, or not the one chosen.
    MissingDependencyError
        If scikit-image, which brings the readers of TIFF and PNG, is not installed.
    UnetDeployError
        What `unet_deploy.runtime.open_volume` raises.
    """
    if is_zarr(path):
        return _open_zarr(path, axes=axes, channel=channel)
    if path.is_dir():
        return open_files(path, list_files(path))
    if not path.exists():
        near = sorted(child.name for child in path.parent.iterdir()) if path.parent.is_dir() else []
        close = difflib.get_close_matches(path.name, near, n=1)
        raise VolumeNotFoundError(
            f"there is nothing at {path}",
            f"looked in {path.absolute().parent}",
            fix=f"did you mean {path.parent / close[0]}?" if close else "check the path",
        )
    suffix = path.suffix.lower()
    if suffix == ".png":
        return Stack(where=str(path), slices=[Slice(t=0)], read=lambda _: read_png(path))
    if suffix in FILE_SUFFIXES:
        tiff = Tiff(path, channel=channel)
        return Stack(
            where=str(path),
            slices=[Slice(t=t, z=z, has_depth=True) for t in range(tiff.t) for z in range(tiff.z)],
            read=lambda index: tiff.read(*divmod(index, tiff.z)),
            shape=tiff.shape,
            dtype=tiff.dtype,
            close=tiff.close,
        )
    raise _no_stack(f"{path} is a file of another kind", path)


def list_files(folder: Path) -> list[Path]:
    """Return the PNG and TIFF files of a folder, in the order that people count.

    Raises
    ------
    NotAVolumeError
        If there is none.
    SeveralImagesError
        If two have one stem.
    """
    files = sorted(
        (path for path in folder.iterdir() if path.suffix.lower() in FILE_SUFFIXES and not path.name.startswith(".")),
        key=lambda path: _as_counted(path.name),
    )
    if not files:
        raise _no_stack(f"{folder} is a folder without PNG or TIFF files, and no Zarr", folder)
    by_stem: dict[str, Path] = {}
    for path in files:
        other = by_stem.setdefault(path.stem, path)
        if other is not path:
            raise SeveralImagesError(
                f"{other.name} and {path.name} have the same stem",
                f"in {folder}",
                "files of predictions and truths belong together by their stems",
                fix="give a folder with one file of each stem",
            )
    return files


def open_files(folder: Path, files: Sequence[Path]) -> Stack:
    """Make one stack of files, a frame each; raises as `open_stack`."""
    places: list[tuple[Path, int]] = []
    slices: list[Slice] = []
    for t, path in enumerate(files):
        depth = 1 if path.suffix.lower() == ".png" else count_pages(path)
        places += [(path, z) for z in range(depth)]
        slices += [Slice(t=t, z=z, stem=path.stem, has_depth=depth > 1) for z in range(depth)]
    reader = FileReader(places)
    return Stack(where=str(folder), slices=slices, read=reader.read, is_folder=True, close=reader.close)


def join_stacks(parts: Sequence[Stack], slices: Sequence[Slice], *, where: str, is_folder: bool) -> Stack:
    """Make one stack of the slices of several, under new names."""
    places = [(part, index) for part in parts for index in range(len(part))]
    assert len(places) == len(slices), (len(places), len(slices))

    def read(index: int) -> Plane:
        part, inside = places[index]
        return part.read(inside)

    return Stack(where=where, slices=slices, read=read, is_folder=is_folder)


def _as_counted(name: str) -> list[tuple[bool, int, str]]:
    """Return a key that sorts runs of digits by value.

    >>> sorted(["b10", "b9", "a"], key=_as_counted)
    ['a', 'b9', 'b10']
    """
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", name)]


def _no_stack(problem: str, path: Path) -> NotAVolumeError:
    return NotAVolumeError(
        problem,
        "a Zarr array or OME-Zarr image, a TIFF or PNG file, or a folder of these was expected",
        fix=f"check the path, or convert {path.name} to one of these",
    )


def _open_zarr(path: Path, *, axes: str | None, channel: int | str | None) -> Stack:
    from unet_deploy.runtime.volume import open_volume

    volume = open_volume(path, axes=axes, dtypes=DTYPES)
    index = choose_channel(channel, volume.extent("c"), names=volume.info.channel_names or (), where=volume.info.path)
    reader = _ZarrReader(volume, index)
    depth = volume.extent("z")
    return Stack(
        where=str(path),
        slices=[Slice(t=t, z=z, has_depth=True) for t in range(volume.extent("t")) for z in range(depth)],
        read=lambda number: reader.read(*divmod(number, depth)),
        shape=(volume.extent("y"), volume.extent("x")),
        dtype=volume.info.dtype,
    )


class _ZarrReader:
    """Reads the slices of one channel; those of one chunk together, if they are small."""

    def __init__(self, volume: Volume, channel: int) -> None:
        info = volume.info
        self._volume = volume
        self._channel = channel
        self._z = volume.extent("z")
        plane_bytes = volume.extent("y") * volume.extent("x") * np.dtype(info.dtype).itemsize
        chunk = info.chunks[info.axes.index("z")] if "z" in info.axes else 1
        divisors = [depth for depth in range(2, chunk + 1) if chunk % depth == 0]
        self._depth = max([1, *(depth for depth in divisors if depth * plane_bytes <= SLAB_BYTES)])
        self._place: tuple[int, int] | None = None
        self._slab: npt.NDArray[Any] | None = None

    def read(self, t: int, z: int) -> Plane:
        from unet_deploy.geometry import Interval

        start = z - z % self._depth
        if self._slab is None or self._place != (t, start):
            volume = self._volume
            self._slab = None  # two at a time would be twice the memory
            self._slab = volume.read(
                t=Interval(t, t + 1),
                c=[self._channel],
                z=Interval(start, min(start + self._depth, self._z)),
                y=Interval(0, volume.extent("y")),
                x=Interval(0, volume.extent("x")),
            )[0, 0]
            self._place = (t, start)
        plane: Plane = self._slab[z - start]
        return plane
