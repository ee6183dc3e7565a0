"""PNG and TIFF files, slice by slice; the packages that decode them are imported when a file is read.

1. PNG is read by scikit-image. TIFF is not: scikit-image takes three pages for three colours.
2. Of a TIFF file, only the page asked for is read. Its axes T and C are what they say; all others are slices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import (
    ChannelError,
    MissingDependencyError,
    ReadError,
    SeveralImagesError,
    UnsupportedAxesError,
)

Plane = npt.NDArray[Any]

LISTED = 12
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def choose_channel(channel: int | str | None, count: int, *, names: Sequence[str], where: str) -> int:
    """Return the number of a channel given by number or name; of one channel, 0.

    Raises
    ------
    ChannelError
        If there are several and none was chosen, or not the one chosen.
    """
    listing = ", ".join(f"{i} ({names[i]})" if i < len(names) else str(i) for i in range(min(count, LISTED)))
    if channel is None:
        if count == 1:
            return 0
        raise ChannelError(
            f"{where} has {count} channels, one number a pixel was expected",
            f"channels: {listing}",
            fix="--probability 0, if they are probabilities; labels must have no channels",
        )
    if str(channel) in names:
        return names.index(str(channel))
    if str(channel).isdecimal() and int(channel) < count:
        return int(channel)
    raise ChannelError(f"{where} has no channel {str(channel)!r}", f"channels: {listing}", fix="--probability 0")


def read_png(path: Path) -> Plane:
    """Return a picture's pixels.

    Raises
    ------
    ReadError
        If it cannot be read.
    MissingDependencyError
        If scikit-image is not installed.
    """
    try:
        from skimage.io import imread
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "skimage":
            raise
        raise MissingDependencyError.of_extra("scikit-image", extra="evaluate", purpose="reading PNG files") from error
    try:
        with path.open("rb") as file:  # of any other file, the reader would try every format it has ever known
            is_png = file.read(len(_PNG_SIGNATURE)) == _PNG_SIGNATURE
        plane = np.asarray(imread(path)) if is_png else None
    except Exception as error:
        raise _unreadable(path, error) from error
    if plane is None:
        raise ReadError(
            f"{path} cannot be read", "it does not start as a PNG file does", fix="check the file, and write it again"
        )
    return plane


class FileReader:
    """Reads slices of files; the TIFF file read last stays open."""

    def __init__(self, places: Sequence[tuple[Path, int]]) -> None:
        self._places = places
        self._tiff: Tiff | None = None

    def read(self, index: int) -> Plane:
        """Return a slice; raises `ReadError`."""
        path, z = self._places[index]
        if path.suffix.lower() == ".png":
            return read_png(path)
        if self._tiff is None or self._tiff.path != path:
            self.close()
            self._tiff = Tiff(path)
        return self._tiff.read(*divmod(z, self._tiff.z))

    def close(self) -> None:
        """Close the file that is open."""
        if self._tiff is not None:
            self._tiff.close()
            self._tiff = None


def count_pages(path: Path) -> int:
    """Return how many slices a TIFF file has; raises as `Tiff`."""
    tiff = Tiff(path)
    tiff.close()
    return tiff.t * tiff.z


class Tiff:
    """An open TIFF file: t × z pages of one channel.

    Raises
    ------
    ReadError
        If it cannot be read.
    SeveralImagesError
        If it holds pages of several sizes.
    UnsupportedAxesError
        If it is a colour picture.
    ChannelError
        If it has several channels and none was chosen, or not the one chosen.
    MissingDependencyError
        If tifffile, which comes with scikit-image, is not installed.
    """

    def __init__(self, path: Path, *, channel: int | str | None = None) -> None:
        try:
            from tifffile import TiffFile
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "tifffile":
                raise
            raise MissingDependencyError.of_extra(
                "scikit-image", extra="evaluate", purpose="reading TIFF files"
            ) from error
        self.path = path
        try:
            self._file = TiffFile(path)
        except Exception as error:
            raise _unreadable(path, error) from error
        try:
            self._describe(channel)
        except BaseException:
            self._file.close()
            raise

    def _describe(self, channel: int | str | None) -> None:
        try:
            series = self._file.series
            shapes = [tuple(map(int, item.shape)) for item in series]
            axes = series[0].axes.upper() if shapes else ""
        except Exception as error:
            raise _unreadable(self.path, error) from error
        if len(shapes) != 1:
            raise SeveralImagesError(
                f"{self.path} holds {len(shapes)} images, one of pages of one size was expected",
                f"shapes: {', '.join(map(str, shapes[:LISTED]))}",
                fix="save each image as a file of its own",
            )
        (shape,) = shapes
        if axes[-2:] != "YX" or "S" in axes:
            raise UnsupportedAxesError(
                f"{self.path} has the axes {axes} and the shape {shape}, pages (y, x) of one channel were expected",
                "labels and probabilities are one number a pixel; a colour picture of them cannot be scored",
                fix="save it with one channel: image[..., 0] if all channels are equal",
            )
        self._lead = shape[:-2]
        self._axes = axes[:-2]
        count = math.prod(n for axis, n in zip(self._axes, self._lead, strict=True) if axis == "C")
        self._channel = choose_channel(channel, count, names=(), where=str(self.path))
        self.t = math.prod(n for axis, n in zip(self._axes, self._lead, strict=True) if axis == "T")
        self.z = math.prod(self._lead) // (count * self.t)  # Z, or pages that nobody named
        self.shape = (shape[-2], shape[-1])
        self.dtype = str(series[0].dtype)
        self._series = series[0]

    def read(self, t: int, z: int) -> Plane:
        """Return a page; raises `ReadError`."""
        rest = np.unravel_index(z, [n for a, n in zip(self._axes, self._lead, strict=True) if a not in "CT"] or [1])
        others = iter(int(i) for i in rest)
        place = tuple({"T": t, "C": self._channel}[a] if a in "CT" else next(others) for a in self._axes)
        try:
            if len(self._series.pages) == math.prod(self._lead):
                page = int(np.ravel_multi_index(place, self._lead)) if place else 0
                return np.asarray(self._series.pages[page].asarray())  # type: ignore[union-attr]  # None raises too
            # Some programs write one page and the others behind it, without a directory of their own.
            from tifffile import memmap

            return np.asarray(memmap(self.path, mode="r")[place])
        except Exception as error:
            raise _unreadable(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _unreadable(path: Path, error: Exception) -> ReadError:
    if isinstance(error, MemoryError):
        raise error  # not the file's fault
    needs_codecs = "imagecodecs" in str(error)
    return ReadError(
        f"{path} cannot be read",
        f"{type(error).__name__}: {error}",
        fix="pip install imagecodecs, or save it uncompressed"
        if needs_codecs
        else "check the file, and write it again",
    )
