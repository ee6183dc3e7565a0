"""OME-Zarr metadata as plain values, read and written; no Zarr, no arrays, no files.

1. `parse_multiscales` reads the attributes of a group: versions 0.4 and 0.5 fully, 0.1 to 0.3 with unknown pixel size,
   drafts of 0.6 where they say no more than 0.5 could (`_ome_06`).
2. Scales and translations are composed in the order given, the image's after the dataset's (OME-Zarr 0.4, section 3.4).
   Anything else a transformation could be (rotation, affine, a path) is refused by name, never ignored.
3. Axes must be a subset of t, c, z, y, x in that order, with y and x.
4. `multiscales_attributes` and `image_label_attributes` are the inverse: attributes for a group that we write.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from unet_deploy.errors import UnsupportedAxesError
from unet_deploy.runtime._ome_06 import FIX, entry_as_05, is_version_06, refuse, show

OmeVersion = Literal["0.4", "0.5"]
Attributes = dict[str, Any]

AXES = "tczyx"
READ_VERSIONS = ("0.1", "0.2", "0.3", "0.4", "0.5", "0.6")
MAX_LEVELS = 64
_AXIS_TYPES = {"t": "time", "c": "channel", "z": "space", "y": "space", "x": "space"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelTransform:
    """One array of a pyramid: its path inside the group and physical = index * scale + translation.

    Scale and translation have one number an axis, in the axes' units; None where the metadata does not say.
    """

    path: str
    scale: tuple[float, ...] | None
    translation: tuple[float, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MultiscaleImage:
    """One entry of ``multiscales``; `levels` go from the finest to the coarsest."""

    version: str
    name: str | None
    axes: str
    units: tuple[str | None, ...]
    levels: tuple[LevelTransform, ...]
    channel_names: tuple[str, ...] | None


def require_axes(names: Sequence[str], *, where: str, fix: str) -> str:
    """Return the axis names joined, or say why they cannot be read.

    Raises
    ------
    UnsupportedAxesError
        If they are not a subset of t, c, z, y, x in that order, each at most once, with y and x.

    Examples
    --------
    >>> require_axes(["z", "y", "x"], where="here", fix="")
    'zyx'
    """
    places = [AXES.find(name) if len(name) == 1 else -1 for name in names]
    is_ordered = all(low < high for low, high in pairwise(places))
    if -1 not in places and is_ordered and {"y", "x"} <= set(names):
        return "".join(names)
    if sorted(names) in (["c", "x", "y"], ["c", "x", "y", "z"]) and names[-1] == "c":
        wanted = ", ".join(sorted(names, key=AXES.find))
        fix = f"rewrite the array with its axes as {wanted} (numpy.moveaxis), one channel a chunk"
    raise UnsupportedAxesError(
        f"axes {', '.join(names) or '(none)'} came, a subset of t, c, z, y, x in this order with y and x was expected",
        f"in {where}",
        fix=fix,
    )


def parse_multiscales(attributes: Mapping[str, Any], *, where: str) -> tuple[MultiscaleImage, ...]:
    """Read the images a group's attributes declare.

    Parameters
    ----------
    attributes
        The group's attributes (``.zattrs``, or ``attributes`` in ``zarr.json``).
    where
        The group's path, for messages.

    Returns
    -------
    tuple of MultiscaleImage
        Empty if the group is no OME-Zarr image.

    Raises
    ------
    UnsupportedMetadataError
        If the version is unknown, a transformation is not scale, translation or identity, a number cannot be, or a
        dataset's path leaves the group.
    UnsupportedAxesError
        If the axes are not a subset of t, c, z, y, x in that order.
    """
    ome = attributes.get("ome")
    if isinstance(ome, dict):  # 0.5 and later: everything stands under one key, with its version
        version = _require_version(ome.get("version"), where)
        return _parse_images(ome, version=version, where=where)
    return _parse_images(attributes, version=None, where=where)


def _parse_images(container: Mapping[str, Any], *, version: str | None, where: str) -> tuple[MultiscaleImage, ...]:
    entries = container.get("multiscales", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise refuse(f"multiscales is {show(entries)}, a list of objects was expected", where)
    channel_names = _parse_channel_names(container.get("omero"))
    return tuple(
        _parse_image(entry, version=version or _entry_version(entry, where), channel_names=channel_names, where=where)
        for entry in entries
    )


def _entry_version(entry: Mapping[str, Any], where: str) -> str:
    version = entry.get("version")
    if version is None and isinstance(entry.get("axes"), list):  # the version is a SHOULD up to 0.4; the axes tell it
        return "0.3" if all(isinstance(axis, str) for axis in entry["axes"]) else "0.4"
    return _require_version(version, where)


def _require_version(version: object, where: str) -> str:
    if isinstance(version, str) and (version in READ_VERSIONS or is_version_06(version)):
        return version
    raise refuse(f"OME-Zarr version {show(version)} came, one of {', '.join(READ_VERSIONS)} was expected", where)


def _parse_image(
    entry: Mapping[str, Any], *, version: str, channel_names: tuple[str, ...] | None, where: str
) -> MultiscaleImage:
    if is_version_06(version):
        entry = entry_as_05(entry, where=where)
    axes, units = _parse_axes(entry.get("axes"), version=version, where=where)
    datasets = entry.get("datasets")
    if not isinstance(datasets, list) or not 1 <= len(datasets) <= MAX_LEVELS:
        raise refuse(f"datasets is {show(datasets)}, a list of 1 to {MAX_LEVELS} levels was expected", where)
    levels = []
    for dataset in datasets:
        path = require_inside(dataset.get("path") if isinstance(dataset, dict) else None, where)
        level = f"{where}, level {path!r}"
        steps = [*_transformations(dataset, level), *_transformations(entry, where)]
        scale, translation = _compose(steps, axes=axes, where=level) if steps else (None, None)
        levels.append(LevelTransform(path=path, scale=scale, translation=translation))
    name = entry.get("name")
    return MultiscaleImage(
        version=version,
        name=name if isinstance(name, str) and name else None,
        axes=axes,
        units=units,
        levels=tuple(levels),
        channel_names=channel_names,
    )


def _parse_axes(axes: object, *, version: str, where: str) -> tuple[str, tuple[str | None, ...]]:
    if axes is None and version in ("0.1", "0.2"):
        return AXES, (None,) * len(AXES)  # five axes by definition
    if not isinstance(axes, list) or not 2 <= len(axes) <= len(AXES):
        raise refuse(f"axes is {show(axes)}, a list of 2 to {len(AXES)} axes was expected", where)
    entries = [{"name": axis} if isinstance(axis, str) else axis for axis in axes]
    if not all(isinstance(axis, dict) and isinstance(axis.get("name"), str) for axis in entries):
        raise refuse(f"axes is {show(axes)}, objects with a name were expected", where)
    names = require_axes([axis["name"] for axis in entries], where=where, fix="rewrite the image with those axes")
    for axis in entries:
        kind = axis.get("type")
        if kind not in (None, _AXIS_TYPES[axis["name"]]):
            raise UnsupportedAxesError(
                f"axis {axis['name']} has the type {show(kind)}, {_AXIS_TYPES[axis['name']]!r} was expected",
                f"in {where}",
                fix=FIX,
            )
    units = [axis.get("unit") for axis in entries]
    return names, tuple(unit if isinstance(unit, str) and unit else None for unit in units)


def _transformations(holder: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    steps = holder.get("coordinateTransformations")
    if steps is None:
        return []
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise refuse(f"coordinateTransformations is {show(steps)}, a list of objects was expected", where)
    return steps


def _compose(
    steps: Sequence[Mapping[str, Any]], *, axes: str, where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scale, translation = [1.0] * len(axes), [0.0] * len(axes)
    for step in steps:
        kind = step.get("type")
        if kind == "identity":
            continue
        if kind not in ("scale", "translation"):
            raise refuse(f"transformation {show(kind)} came, scale or translation was expected", where)
        values = step.get(kind)
        if not isinstance(values, list) or len(values) != len(axes) or not all(map(_is_number, values)):
            raise refuse(f"{kind} is {show(values)}, one number for each axis {axes} was expected", where)
        if kind == "scale":
            if min(values) <= 0:
                raise refuse(f"scale is {show(values)}, positive numbers were expected", where)
            scale = [s * v for s, v in zip(scale, values, strict=True)]
            translation = [t * v for t, v in zip(translation, values, strict=True)]
        else:
            translation = [t + v for t, v in zip(translation, values, strict=True)]
    return tuple(map(float, scale)), tuple(map(float, translation))


def _parse_channel_names(omero: object) -> tuple[str, ...] | None:
    # Display metadata: what is missing or odd about it is no reason to refuse the pixels.
    channels = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(channels, list) or not all(isinstance(channel, dict) for channel in channels):
        return None
    labels = [channel.get("label") for channel in channels]
    return tuple(label if isinstance(label, str) and label else str(i) for i, label in enumerate(labels)) or None


def require_inside(path: object, where: str) -> str:
    """Return a path without its last slash, or refuse one that leaves the group.

    Raises
    ------
    UnsupportedMetadataError
        If it is no text, absolute, or leads upwards.
    """
    if isinstance(path, str):
        parts = path.rstrip("/").split("/")
        if all(part not in ("", ".", "..") and not set(part) & set("\\:\0") for part in parts):
            return "/".join(parts)
    raise refuse(f"path {show(path)} came, a relative path inside the group was expected", where)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def multiscales_attributes(
    *,
    version: OmeVersion,
    name: str,
    axes: str,
    units: Sequence[str | None] | None,
    levels: Sequence[LevelTransform],
    type_: Literal["mode", "mean"],
) -> Attributes:
    """Return the attributes that make a group an OME-Zarr image.

    Parameters
    ----------
    version
        "0.4" (for Zarr v2) or "0.5" (for Zarr v3).
    name
        The image's name.
    axes
        A subset of ``tczyx`` in that order.
    units
        One an axis, None where unknown; written for space and time axes only.
    levels
        The pyramid, finest first; a scale that is None is written as ones, as the format requires one.
    type_
        How the coarser levels were made from the finer.

    Returns
    -------
    dict
        Top-level attributes; with 0.5 all of them under ``ome``.
    """
    axis_entries = []
    for index, axis in enumerate(axes):
        entry = {"name": axis, "type": _AXIS_TYPES[axis]}
        unit = units[index] if units is not None else None
        if unit is not None and axis != "c":
            entry["unit"] = unit
        axis_entries.append(entry)
    multiscale = {
        "name": name,
        "axes": axis_entries,
        "datasets": [_dataset(level, ndim=len(axes)) for level in levels],
        "type": type_,
    }
    if version == "0.4":
        return {"multiscales": [{"version": version, **multiscale}]}
    return {"ome": {"version": version, "multiscales": [multiscale]}}


def _dataset(level: LevelTransform, *, ndim: int) -> Attributes:
    scale = level.scale if level.scale is not None else (1.0,) * ndim
    assert len(scale) == ndim, level
    steps: list[Attributes] = [{"type": "scale", "scale": list(scale)}]
    if level.translation is not None:
        assert len(level.translation) == ndim, level
        steps.append({"type": "translation", "translation": list(level.translation)})
    return {"path": level.path, "coordinateTransformations": steps}


def image_label_attributes(
    *, version: OmeVersion, classes: Sequence[tuple[str, str]], source: str | None
) -> Attributes:
    """Return the attributes that make an OME-Zarr image a label image.

    Parameters
    ----------
    version
        As the image's.
    classes
        Name and ``#rrggbb`` colour of each class; its index is its label.
    source
        Relative path from this group to the image that was segmented, None where there is none to point at.

    Returns
    -------
    dict
        Top-level attributes, to be merged with `multiscales_attributes` by `merge_attributes`.
    """
    label: Attributes = {
        "colors": [{"label-value": value, "rgba": _rgba(colour)} for value, (_, colour) in enumerate(classes)],
        "properties": [{"label-value": value, "name": name} for value, (name, _) in enumerate(classes)],
    }
    if source is not None:
        label["source"] = {"image": source}
    if version == "0.4":
        return {"image-label": {"version": version, **label}}
    return {"ome": {"version": version, "image-label": label}}


def merge_attributes(*parts: Attributes) -> Attributes:
    """Return the union of attributes, joining what stands under ``ome``.

    >>> merge_attributes({"ome": {"version": "0.5", "a": 1}}, {"ome": {"version": "0.5", "b": 2}, "c": 3})
    {'ome': {'version': '0.5', 'a': 1, 'b': 2}, 'c': 3}
    """
    merged: Attributes = {}
    for part in parts:
        for key, value in part.items():
            merged[key] = {**merged.get("ome", {}), **value} if key == "ome" else value
    return merged


def _rgba(colour: str) -> list[int]:
    assert len(colour) == 7, colour
    assert colour[0] == "#", colour
    return [*bytes.fromhex(colour[1:]), 255]
