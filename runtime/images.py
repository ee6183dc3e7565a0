"""The images inside a store, each with the name by which it is opened.

1. A group that declares several multiscale images has them by name, or by number where names are missing or repeated.
2. A plate has the fields of its wells as ``A/1/0``, a well as ``0``: what the metadata lists, in its order.
3. A bioformats2raw store has its series by number, and their own names as titles.
4. A TIFF file has its series by number, an OME-TIFF with their names as titles.
5. Any other group has the images found by looking into it; the labels inside an image are not among them.

What is listed was not opened: an image that is damaged, or that only the metadata knows, says so when it is opened, so
that a loop over all images of a plate cannot leave one out without a word. A well that is not there is listed too.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unet_deploy.errors import (
    InputDataError,
    NotAVolumeError,
    SeveralImagesError,
    UnknownNameError,
    VolumeNotFoundError,
)
from unet_deploy.runtime._directory import find_directory
from unet_deploy.runtime._remote import Location, RemoteDirectory
from unet_deploy.runtime._tiff import is_tiff, series_names
from unet_deploy.runtime._zarr_metadata import Node, read_node
from unet_deploy.runtime.ome import MultiscaleImage, parse_multiscales, require_inside

ImageKind = Literal["image", "array", "multiscale", "series", "field", "nested"]

_SCANNED_DIRECTORIES = 2000
_LISTED = 8
_LAYOUT = "bioformats2raw.layout"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEntry:
    """One image of a store: ``open_volume(store, image=entry.name)`` opens it.

    Parameters
    ----------
    name
        Unique in the store; "" where the path itself is the image or array.
    path
        The image's own group, which is also the store's where one group declares several.
    kind
        What the store says it is: the path itself (``image``, ``array``), one of several in a group
        (``multiscale``), a bioformats2raw ``series``, a ``field`` of a well, or one found inside (``nested``).
    title
        The image's own name, if it was looked at and has one.
    """

    name: str
    path: str
    kind: ImageKind
    title: str | None = None


def list_images(path: str | Path) -> tuple[ImageEntry, ...]:
    """List the images at a path: one for an image or array, more for plates, wells, series and plain groups.

    Parameters
    ----------
    path
        As for `open_volume`.

    Returns
    -------
    tuple of ImageEntry
        At least one; ``open_volume(path, image=entry.name)`` opens each. Nothing but metadata was read, so one that
        is damaged or absent fails when it is opened.

    Raises
    ------
    VolumeNotFoundError
        If there is nothing at the path.
    NotAVolumeError
        If there is no image.
    UnsupportedMetadataError, UnsupportedAxesError, UnboundedMetadataError, ReadError
        If metadata cannot be read or honoured.
    """
    if is_tiff(Path(path)):
        return _series_of_tiff(Path(path).absolute())
    root = find_directory(path)
    node, images = read_images(root)
    entries = entries_of(root, node, images)
    if not entries:
        raise no_image(root, node, images, entries)
    return entries


def _series_of_tiff(file: Path) -> tuple[ImageEntry, ...]:
    titles = series_names(file)
    names = [""] if len(titles) == 1 else [str(index) for index in range(len(titles))]
    kind: ImageKind = "image" if len(titles) == 1 else "series"
    return tuple(
        ImageEntry(name=name, path=str(file), kind=kind, title=title) for name, title in zip(names, titles, strict=True)
    )


def choose_entry(where: str, entries: Sequence[ImageEntry], name: str | None) -> ImageEntry:
    """Return the entry of a name or title.

    Raises
    ------
    SeveralImagesError
        If no name is given and there are several.
    UnknownNameError
        If there is none of that name, or several of that title.
    """
    if not name:
        if len(entries) == 1:
            return entries[0]
        raise SeveralImagesError(
            f"{where} holds several images, one was expected",
            f"found {len(entries)} images:",
            *listing(entries),
            fix=f"name one: --image {_shell(entries[0].name)} (in Python: image={entries[0].name!r})",
        )
    chosen = [entry for entry in entries if entry.name == name] or [entry for entry in entries if entry.title == name]
    if len(chosen) == 1:
        return chosen[0]
    names = [entry.name for entry in entries if entry.name]
    within = [known for known in names if known.startswith(f"{name.rstrip('/')}/")]  # a well, of which fields are named
    close = within or difflib.get_close_matches(name, names, n=1) or names[:1]
    raise UnknownNameError(
        f"{where} holds {'several images' if chosen else 'no image'} called {name!r}",
        *(["it holds:", *listing(entries)] if names else ["it is an image or array itself"]),
        fix=f"did you mean {close[0]!r}?" if close else "leave the image's name out",
    )


def read_images(root: Location) -> tuple[Node | None, tuple[MultiscaleImage, ...]]:
    """Return the Zarr node at a directory, and the images that a group declares; raises as `list_images`."""
    node = read_node(root)
    if node is None or node.kind == "array":
        return node, ()
    return node, parse_multiscales(node.attributes, where=str(root))


def entries_of(root: Location, node: Node | None, images: tuple[MultiscaleImage, ...]) -> tuple[ImageEntry, ...]:
    """Return what a directory holds, whose documents were read and say that `images` are declared in it.

    Raises
    ------
    UnsupportedMetadataError
        If a plate's, well's or series' metadata is not what it must be.
    """
    if node is not None and node.kind == "array":
        return (ImageEntry(name="", path=str(root), kind="array"),)
    if len(images) == 1:
        return (ImageEntry(name="", path=str(root), kind="image", title=images[0].name),)
    if images:
        titles = [image.name for image in images]
        names = titles if len({*titles, None}) == len(titles) + 1 else [str(index) for index in range(len(titles))]
        return tuple(
            ImageEntry(name=name or "", path=str(root), kind="multiscale", title=title)
            for name, title in zip(names, titles, strict=True)
        )
    if node is not None:
        holder = _holder(node.attributes)
        if _paths_of(holder.get("plate"), "wells"):
            return tuple(_fields_of_plate(root, holder["plate"]))
        if _paths_of(holder.get("well"), "images"):
            return tuple(_fields_of_well(root, holder["well"], prefix=""))
        if _LAYOUT in holder or _LAYOUT in node.attributes:
            found = tuple(_series(root))
            if found:
                return found
    return tuple(ImageEntry(name=path, path=str(root / path), kind="nested") for path in find_inside(root)[0])


def find_inside(root: Location) -> tuple[list[str], list[str]]:
    """Return the relative paths of images, and of arrays outside images."""
    images: list[str] = []
    arrays: list[str] = []
    queue = list(_children(root, ""))  # directories without metadata are entered too: writers leave groups out
    for _ in range(_SCANNED_DIRECTORIES):
        if not queue:
            break
        path = queue.pop(0)
        try:
            node = read_node(root / path)
        except InputDataError:
            continue  # whether this was meant as an image cannot be known
        if node is not None and node.kind == "array":
            arrays.append(path)
        elif node is not None and "multiscales" in _holder(node.attributes):
            images.append(path)
        else:
            queue[:0] = _children(root / path, f"{path}/")
    return images, arrays


def no_image(
    root: Location, node: Node | None, images: Sequence[MultiscaleImage], entries: Sequence[ImageEntry]
) -> InputDataError:
    """Return the error for a directory that does not say which one image is meant."""
    if len(entries) > 1:
        first = entries[0]
        finest = f"/{images[0].levels[0].path}" if images else ""  # a command takes one path, which is an array's here
        return SeveralImagesError(
            f"{root} holds several images, one was expected",
            f"{'the group declares' if images else 'found'} {len(entries)} images:",
            *listing(entries),
            *_said_of_scene(node),
            fix=f"name one: --image {_shell(first.name)}, or, where a command has no --image, give its path: "
            f"{first.path}{finest} (in Python: image={first.name!r})",
        )
    if node is None and not entries and isinstance(root, RemoteDirectory):
        return VolumeNotFoundError(
            f"there is no Zarr metadata at {root}, or it may not be read",
            "looked for zarr.json, .zarray, .zgroup and .zattrs; TIFF is not read from an address",
            fix="check the address"
            + ("" if root.url.startswith("http") else "; for a public bucket, set AWS_SKIP_SIGNATURE=true"),
        )
    nested = [entry.name for entry in entries]
    found = nested or find_inside(root)[1]
    what = "a Zarr group without an OME-Zarr image" if node is not None else "a directory without Zarr metadata"
    return NotAVolumeError(
        f"{root} is {what}, an array or an image was expected",
        *([f"{'images' if nested else 'arrays'} found inside:", *_shorten(found)] if found else ["it holds no array"]),
        fix=f"give the path of one: unet-deploy segment {root / found[0]}" if found else "check the path",
    )


def _shell(name: str) -> str:
    return name if re.fullmatch(r"[\w./-]+", name) else f'"{name}"'


def listing(entries: Sequence[ImageEntry]) -> list[str]:
    """Return one line an image, and how many more there are."""
    has_titles = [entry.title not in (None, entry.name) for entry in entries]
    return _shorten([f"{e.name} ({e.title})" if has else e.name for e, has in zip(entries, has_titles, strict=True)])


def _shorten(lines: Sequence[str]) -> list[str]:
    more = len(lines) - _LISTED
    return [*lines[:_LISTED], *([f"and {more} more"] if more > 0 else [])]


def _said_of_scene(node: Node | None) -> list[str]:
    scene = _holder(node.attributes).get("scene") if node is not None else None
    steps = scene.get("coordinateTransformations") if isinstance(scene, dict) else None
    kinds = sorted({str(step.get("type")) for step in steps or () if isinstance(step, dict)})
    return (
        [f"how the scene places them ({', '.join(kinds)}) is not applied: each has its own coordinates"]
        if kinds
        else []
    )


def _fields_of_plate(root: Location, plate: Mapping[str, Any]) -> Iterator[ImageEntry]:
    for path in _paths_of(plate, "wells"):
        name = require_inside(path, str(root))
        try:
            node = read_node(root / name)
        except InputDataError:
            node = None  # it says why when it is opened
        well = _holder(node.attributes).get("well") if node is not None else None
        if isinstance(well, dict) and _paths_of(well, "images"):
            yield from _fields_of_well(root / name, well, prefix=f"{name}/")
        else:  # which fields it should have is not known, so that it stands for them
            yield ImageEntry(name=name, path=str(root / name), kind="field")


def _fields_of_well(root: Location, well: Mapping[str, Any], *, prefix: str) -> Iterator[ImageEntry]:
    for path in _paths_of(well, "images"):
        name = require_inside(path, str(root))
        yield ImageEntry(name=prefix + name, path=str(root / name), kind="field")


def _series(root: Location) -> Iterator[ImageEntry]:
    listing = read_node(root / "OME")
    declared = _holder(listing.attributes).get("series") if listing is not None else None
    if isinstance(declared, list) and declared:
        names = [require_inside(path, str(root / "OME")) for path in declared]
    else:
        names = [name for name in _children(root, "") if name.isdecimal()] or _count_up(root)
    for name in names:
        yield ImageEntry(name=name, path=str(root / name), kind="series", title=_title(root / name))


def _count_up(root: Location) -> list[str]:
    """Return the numbers from 0 that are there, on a server that cannot list."""
    names: list[str] = []
    while len(names) < _SCANNED_DIRECTORIES and read_node(root / str(len(names))) is not None:
        names.append(str(len(names)))
    return names


def _title(directory: Location) -> str | None:
    try:
        node = read_node(directory)
    except InputDataError:
        return None  # it says why when it is opened
    entries = _holder(node.attributes).get("multiscales") if node is not None else None
    first = entries[0] if isinstance(entries, list) and entries else None
    name = first.get("name") if isinstance(first, dict) else None
    return name if isinstance(name, str) and name else None


def _paths_of(holder: object, key: str) -> list[object]:
    """Return the paths of a plate's wells or a well's images, none if it lists none."""
    entries = holder.get(key) if isinstance(holder, dict) else None
    return [entry.get("path") if isinstance(entry, dict) else None for entry in entries or ()]


def _holder(attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return where OME-Zarr's own attributes stand: since 0.5 under one key."""
    ome = attributes.get("ome")
    return ome if isinstance(ome, dict) else attributes


def _children(directory: Location, prefix: str) -> list[str]:
    """Return the directories inside, as they would be counted, with `prefix` before their names."""
    if isinstance(directory, RemoteDirectory):
        return _by_number(directory.children(), prefix)
    try:
        found = [child.name for child in directory.iterdir() if not child.name.startswith(".") and child.is_dir()]
    except OSError:
        return []
    return _by_number(found, prefix)


def _by_number(names: list[str], prefix: str) -> list[str]:
    ordered = sorted(names, key=lambda n: (not n.isdecimal(), len(n) if n.isdecimal() else 0, n))
    return [prefix + name for name in ordered]
