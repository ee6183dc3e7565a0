"""From a path to the one image or array it means, or why there is none.

1. The path must be a local directory with Zarr metadata.
2. An array is taken as it is; a group must declare exactly one image.
3. Anything else (plates, bioformats2raw series, plain groups) is answered with the paths that would work.
4. A bare array's axes are what the caller says, else its own names, else what an image above says of it, else by the
   number of dimensions where that leaves no doubt.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unet_deploy.errors import (
    InputDataError,
    NotAVolumeError,
    SeveralImagesError,
    UnsupportedAxesError,
    VolumeNotFoundError,
)
from unet_deploy.runtime._zarr_metadata import ArrayMetadata, Node, read_node
from unet_deploy.runtime.ome import MultiscaleImage, parse_multiscales, require_axes

_AXES_BY_DIMENSIONS = {2: "yx", 3: "zyx", 5: "tczyx"}
_LISTED = 8
_SCANNED_DIRECTORIES = 2000
_ENCLOSING_GROUPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """The directory meant, and the array or image found there."""

    root: Path
    found: Node | MultiscaleImage


def locate(path: str | Path) -> Located:
    """Return what `path` means; raises as `unet_deploy.runtime.volume.open_volume` says."""
    root = _local_directory(path)
    node = read_node(root)
    if node is not None and node.kind == "array":
        return Located(root=root, found=node)
    images = () if node is None else parse_multiscales(node.attributes, where=str(root))
    if len(images) == 1:
        return Located(root=root, found=images[0])
    if images:
        paths = [image.levels[0].path for image in images]
        raise _several(root, paths, f"the group declares {len(images)} images; the finest array of each:")
    inside, arrays = _find_inside(root)
    if node is not None and "bioformats2raw.layout" in node.attributes and len(inside) == 1:
        return locate(root / inside[0])  # what bioformats2raw writes for a file of one image
    raise _no_image(root, node, inside, arrays)


def axes_of_array(root: Path, metadata: ArrayMetadata, *, axes: str | None) -> str:
    """Return a bare array's axes: `axes` if given, else by its names, by the image that lists it, by its dimensions."""
    shape, ndim = metadata.shape, len(metadata.shape)
    guess = _AXES_BY_DIMENSIONS.get(ndim, "czyx")
    where = "--axes" if axes is not None else f"the axis names of {root}"
    given: Sequence[str] | None = axes
    if axes is None and metadata.names is not None:
        given = [name or "(unnamed)" for name in metadata.names]
    elif axes is None:
        given = _axes_of_enclosing_image(root)
    if given is not None:
        joined = require_axes(given, where=where, fix=f"say what they are: --axes {guess}")
        if len(joined) == ndim:
            return joined
        raise UnsupportedAxesError(
            f"{len(joined)} axes {joined} came for an array of {ndim} dimensions",
            f"{root} has the shape {list(shape)}",
            fix=f"--axes {guess}",
        )
    if ndim == 4:
        raise UnsupportedAxesError(
            "an array of 4 axes without names came; they could be czyx, tzyx or tcyx",
            f"{root} has the shape {list(shape)}",
            fix="--axes czyx, --axes tzyx or --axes tcyx",
        )
    if ndim == 3 and shape[2] <= 4 < min(shape[:2]):
        raise UnsupportedAxesError(
            f"an array of shape {list(shape)} without axis names came; it looks like y, x, channel",
            f"{root}: a subset of t, c, z, y, x in this order was expected",
            fix="rewrite it with its channels first (numpy.moveaxis), or, if they are not channels, --axes zyx",
        )
    return guess


def _axes_of_enclosing_image(array: Path) -> str | None:
    path = array.name
    for group in list(array.parents)[:_ENCLOSING_GROUPS]:
        try:
            node = read_node(group)
            images = () if node is None else parse_multiscales(node.attributes, where=str(group))
        except InputDataError:
            return None  # the array was asked for by its own path just because its image cannot be read
        for image in images:
            if path in (level.path for level in image.levels):
                return image.axes
        path = f"{group.name}/{path}"
    return None


def _local_directory(path: str | Path) -> Path:
    text = str(path)
    root = Path(path).absolute()
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) and not root.exists():
        raise VolumeNotFoundError(
            f"{text} is a URL; this release reads local volumes only",
            fix="copy or mount the volume, and give its local path",
        )
    if not root.exists():
        near = sorted(child.name for child in root.parent.iterdir()) if root.parent.is_dir() else []
        close = difflib.get_close_matches(root.name, near, n=1)
        raise VolumeNotFoundError(
            f"there is nothing at {text}",
            f"looked in {root.parent}" if near else f"{root.parent} is no directory, or empty",
            fix=f"did you mean {root.parent / close[0]}?" if close else "check the path",
        )
    if not root.is_dir():
        raise NotAVolumeError(
            f"{text} is a file, the directory of a Zarr array or OME-Zarr image was expected",
            "Zarr in a ZIP file and TIFF are not read by this release",
            fix="unpack the ZIP file, or convert the image to OME-Zarr (bioformats2raw IN.tif OUT.zarr)",
        )
    return root


def _several(root: Path, paths: Sequence[str], why: str) -> SeveralImagesError:
    return SeveralImagesError(
        f"{root} holds several images, one was expected",
        why,
        *_listing(paths),
        fix=f"give the path of one: unet-deploy segment {root / paths[0]}",
    )


def _no_image(root: Path, node: Node | None, images: list[str], arrays: list[str]) -> InputDataError:
    found = images or arrays
    if len(images) > 1:
        return _several(root, images, f"found {len(images)} images:")
    what = "a Zarr group without an OME-Zarr image" if node is not None else "a directory without Zarr metadata"
    return NotAVolumeError(
        f"{root} is {what}, an array or an image was expected",
        *([f"{'images' if images else 'arrays'} found inside:", *_listing(found)] if found else ["it holds no array"]),
        fix=f"give the path of one: unet-deploy segment {root / found[0]}" if found else "check the path",
    )


def _listing(paths: Sequence[str]) -> list[str]:
    more = len(paths) - _LISTED
    return [*paths[:_LISTED], *([f"and {more} more"] if more > 0 else [])]


def _find_inside(root: Path) -> tuple[list[str], list[str]]:
    """Return the relative paths of images, and of arrays outside images."""
    images: list[str] = []
    arrays: list[str] = []
    queue = list(_children(root))  # directories without metadata are entered too: writers leave groups out
    for _ in range(_SCANNED_DIRECTORIES):
        if not queue:
            break
        directory = queue.pop(0)
        try:
            node = read_node(directory)
        except InputDataError:
            continue  # this list helps to choose; what is broken is said when it is chosen
        path = directory.relative_to(root).as_posix()
        if node is not None and node.kind == "array":
            arrays.append(path)
        elif node is not None and _is_image(node):
            images.append(path)
        else:
            queue[:0] = _children(directory)
    return images, arrays


def _is_image(node: Node) -> bool:
    ome = node.attributes.get("ome")
    return "multiscales" in (ome if isinstance(ome, dict) else node.attributes)


def _children(directory: Path) -> Iterator[Path]:
    try:
        found = [child for child in directory.iterdir() if not child.name.startswith(".") and child.is_dir()]
    except OSError:
        return
    yield from sorted(found, key=lambda p: (not p.name.isdecimal(), len(p.name) if p.name.isdecimal() else 0, p.name))
