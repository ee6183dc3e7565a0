"""From a path to the one image or array it means, or why there is none.

1. The path must be a directory with Zarr metadata, or an address that has some.
2. An array is taken as it is; a group must declare exactly one image.
3. Of several (plates, bioformats2raw series, plain groups; see `images`) one must be named, by its path inside, its
   number or its title; else the answer is the list of them.
4. A bare array's axes are what the caller says, else its own names, else what an image above says of it, else by the
   number of dimensions where that leaves no doubt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unet_deploy.errors import InputDataError, UnsupportedAxesError, UnsupportedMetadataError
from unet_deploy.runtime._directory import find_directory
from unet_deploy.runtime._remote import Location
from unet_deploy.runtime._zarr_metadata import ArrayMetadata, Node, read_node
from unet_deploy.runtime.images import choose_entry, entries_of, no_image, read_images
from unet_deploy.runtime.ome import MultiscaleImage, parse_multiscales, require_axes, require_inside

_AXES_BY_DIMENSIONS = {2: "yx", 3: "zyx", 5: "tczyx"}
_ENCLOSING_GROUPS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """The directory meant, and the array or image found there."""

    root: Location
    found: Node | MultiscaleImage


def locate(path: str | Path, image: str | None = None) -> Located:
    """Return what `path` means; raises as `unet_deploy.runtime.volume.open_volume` says."""
    root = find_directory(path)
    node, images = read_images(root)
    if image:
        return _by_name(root, node, images, image)
    if node is not None and node.kind == "array":
        return Located(root=root, found=node)
    if len(images) == 1:
        return Located(root=root, found=images[0])
    entries = entries_of(root, node, images)
    if len(entries) == 1 and entries[0].kind in ("series", "field"):
        return locate(entries[0].path)  # what writers make of a file of one image
    raise no_image(root, node, images, entries)


def _by_name(root: Location, node: Node | None, images: tuple[MultiscaleImage, ...], name: str) -> Located:
    if len(images) <= 1 and _is_inside(name):  # by its path first: a plate need not be listed to open one of its fields
        inner, declared = read_images(root / name)
        if len(declared) == 1:
            return Located(root=root / name, found=declared[0])
        if inner is not None and inner.kind == "array":
            return Located(root=root / name, found=inner)
    entries = entries_of(root, node, images)
    chosen = choose_entry(str(root), entries, name)
    if chosen.kind == "multiscale":
        return Located(root=root, found=images[entries.index(chosen)])
    return locate(chosen.path)


def _is_inside(name: str) -> bool:
    try:
        require_inside(name, "")
    except UnsupportedMetadataError:
        return False
    return True


def axes_of_array(root: Location, metadata: ArrayMetadata, *, axes: str | None) -> str:
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


def _axes_of_enclosing_image(array: Location) -> str | None:
    path = array.name
    above: list[Location] = [*array.parents]
    for group in above[:_ENCLOSING_GROUPS]:
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
