"""Images and labels from PNG and TIFF files and Zarr stores, as arrays (y, x) or stacks of them (z, y, x).

1. `is_store` and `stem_of` say what a path is; `Source` is one plane: a file or store, or one slice of a stack.
2. Each format gives an array with the letters of its axes: PNG by scikit-image, TIFF by tifffile with all its pages (to
   scikit-image three pages are three colours), a Zarr array or the first level of an OME-Zarr image by zarr.
3. Axes of length 1 fall away. What is left must be y and x, in a stack one more before them; colours are refused.

A problem is noted in a list, with the path in it, instead of raised: the caller shows all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unet_deploy.errors import MissingDependencyError

Array = npt.NDArray[Any]
Loaded = tuple[Array, str]
"""An array and the letter of each of its axes: Y, X, C or S (channels), any other for pages."""

TIFF_SUFFIXES = (".tif", ".tiff")
SUFFIXES = (".png", *TIFF_SUFFIXES, ".zarr")
STORE_FILES = ("zarr.json", ".zarray", ".zgroup")
STACKS_KEPT = 3
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where one plane (y, x) lies: a file or store, of a stack its slice `z`."""

    path: Path
    z: int | None = None

    def __str__(self) -> str:
        return str(self.path) if self.z is None else f"{self.path}, slice {self.z}"


class PlaneReader:
    """Reads planes; keeps the stacks it read last, so that the slices of one are read once."""

    def __init__(self) -> None:
        self._stacks: dict[Path, Array | None] = {}

    def read(self, source: Source, problems: list[str]) -> Array | None:
        """Return the pixels (y, x); None after noting why not."""
        if source.z is None:
            return read_image(source.path, problems)
        stack = self.read_stack(source.path, problems)
        if stack is None:
            return None
        if source.z >= len(stack):
            problems.append(f"{source.path} has {len(stack)} slice(s); slice {source.z} was expected")
            return None
        plane: Array = stack[source.z]
        return plane

    def read_stack(self, path: Path, problems: list[str]) -> Array | None:
        """Return a stack's pixels (z, y, x); None after noting why not, once."""
        if path not in self._stacks:
            while len(self._stacks) >= STACKS_KEPT:
                del self._stacks[next(iter(self._stacks))]
            self._stacks[path] = read_stack(path, problems)
        return self._stacks[path]


def is_store(path: Path) -> bool:
    """Tell whether a folder is a Zarr array or group."""
    return any((path / name).is_file() for name in STORE_FILES)


def is_stack(path: Path) -> bool:
    """Tell whether a path is one that holds a stack: a TIFF file or a Zarr store."""
    return is_store(path) or (path.is_file() and path.suffix.lower() in TIFF_SUFFIXES)


def stem_of(path: Path) -> str:
    """Return the name that an image and its label share.

    >>> stem_of(Path("a/00.png")), stem_of(Path("00.ome.zarr"))
    ('00', '00')
    """
    return path.stem.removesuffix(".ome")


def read_image(path: Path, problems: list[str]) -> Array | None:
    """Return the pixels (y, x) of a file or store with one image; None after noting why not."""
    loaded = _load(path, problems)
    if loaded is None:
        return None
    array, axes = loaded
    if axes == "YX":
        return array
    if axes[-2:] == "YX" and len(axes) == 3 and axes[0] not in "CS":
        problems.append(
            f"{stem_of(path)}: {path} has {array.shape[0]} pages, one (y, x) was expected; of a stack, give the files "
            "themselves, not their folders"
        )
    else:
        problems.append(_describe_axes(path, array, axes))
    return None


def read_stack(path: Path, problems: list[str]) -> Array | None:
    """Return the pixels (z, y, x) of a multi-page TIFF or a store; None after noting why not."""
    loaded = _load(path, problems)
    if loaded is None:
        return None
    array, axes = loaded
    if axes[-2:] == "YX" and len(axes) <= 3 and axes[0] not in "CS":
        return array.reshape(-1, *array.shape[-2:])
    problems.append(_describe_axes(path, array, axes))
    return None


def _describe_axes(path: Path, array: Array, axes: str) -> str:
    text = f"{stem_of(path)}: {path} has shape {array.shape}"
    channels = math.prod(n for axis, n in zip(axes, array.shape, strict=True) if axis in "CS")
    if "S" in axes and channels in {3, 4}:
        return f"{text}, which is RGB; one grey channel (y, x) was expected: convert it to grey, or keep one channel"
    if channels > 1:
        return f"{text}: {channels} channels; one (y, x) was expected: keep one channel"
    return f"{text} with the axes {axes.lower()}; (y, x) was expected, of a stack (z, y, x)"


def _load(path: Path, problems: list[str]) -> Loaded | None:
    read_file: Callable[[Path], Loaded | str] = _load_png if path.suffix.lower() == ".png" else _load_tiff
    try:
        loaded = _load_zarr(path) if path.is_dir() else read_file(path)
    except (MemoryError, ImportError):
        raise  # not the file's fault
    except Exception as error:  # the decoders raise whatever their libraries do: zlib's, Zarr's and TIFF's own errors
        loaded = f"{type(error).__name__}: {error}"
    if isinstance(loaded, str):
        problems.append(f"{stem_of(path)}: {path} cannot be read ({loaded})")
        return None
    array, axes = loaded
    if array.ndim > 2 and array.shape[-1] in {3, 4} and axes[-2:] == "YX":
        axes = f"{axes[:-3]}YXS"  # no image is three pixels wide: its writer did not say that these are colours
    kept = [i for i, n in enumerate(array.shape) if n > 1 or axes[i] in "YX"]
    squeezed = array.reshape([array.shape[i] for i in kept])
    native = squeezed.astype(squeezed.dtype.newbyteorder("="), copy=False)
    return np.ascontiguousarray(native), "".join(axes[i] for i in kept)


def _load_png(path: Path) -> Loaded | str:
    try:
        from skimage.io import imread
    except ModuleNotFoundError as error:
        raise _translate_missing(error, "skimage") from error
    with path.open("rb") as file:  # of any other file, the reader would try every format it has ever known
        if file.read(len(_PNG_SIGNATURE)) != _PNG_SIGNATURE:
            return "it does not start as a PNG file does"
    array = np.asarray(imread(path))
    return array, "YX" if array.ndim == 2 else "YXS"


def _load_tiff(path: Path) -> Loaded | str:
    try:
        from tifffile import TiffFile
    except ModuleNotFoundError as error:
        raise _translate_missing(error, "tifffile") from error
    with TiffFile(path) as file:
        series = list(file.series)
        shapes = sorted({tuple(map(int, one.shape)) for one in series})
        if len(shapes) != 1:
            return f"it holds images of {len(shapes)} sizes, {', '.join(map(str, shapes[:5]))}; one was expected"
        arrays = [np.asarray(one.asarray()) for one in series]
        axes = str(series[0].axes).upper()
    return (arrays[0], axes) if len(arrays) == 1 else (np.stack(arrays), f"I{axes}")


def _load_zarr(path: Path) -> Loaded | str:
    import zarr

    node = zarr.open(str(path), mode="r")
    names: list[str] = []
    if isinstance(node, zarr.Group):
        attributes: dict[str, Any] = node.attrs.asdict()
        images = attributes.get("ome", attributes).get("multiscales")
        if not images:
            return "it is a Zarr group without an OME-Zarr image; give the path of the array inside"
        names = [str(axis["name"] if isinstance(axis, dict) else axis) for axis in images[0].get("axes", ())]
        node = node[images[0]["datasets"][0]["path"]]
    if not isinstance(node, zarr.Array):
        return "it is no Zarr array"
    names = names or _dimension_names(node)
    if not names:
        names = list("tczyx"[-node.ndim :]) if node.ndim != 4 else list("czyx")
    if len(names) != node.ndim or [name.lower() for name in names[-2:]] != ["y", "x"]:
        return f"its axes are {', '.join(names)} of shape {node.shape}; y and x were expected last"
    return np.asarray(node[...]), "".join(name[:1].upper() for name in names)


def _dimension_names(array: Any) -> list[str]:
    names = getattr(array.metadata, "dimension_names", None) or ()  # of Zarr version 3
    return [str(name) for name in names] if all(names) else []


def _translate_missing(error: ModuleNotFoundError, package: str) -> ModuleNotFoundError:
    if (error.name or "").partition(".")[0] != package:
        return error
    return MissingDependencyError.of_extra("scikit-image", extra="train", purpose="reading images")
