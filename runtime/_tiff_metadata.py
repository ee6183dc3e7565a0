"""What OME-XML and ImageJ's metadata say of pixel sizes and channels; texts and numbers only.

1. Lengths keep the unit they are given in, under OME-Zarr's name; one without a unit that is a length is unknown.
2. What is odd about a size or a name is no reason to refuse the pixels: it is then unknown.
3. A document type declaration is not parsed: entities could grow without bound.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree

_UNITS = {
    "nm": "nanometer",
    "nanometer": "nanometer",
    "um": "micrometer",
    "µm": "micrometer",  # micro sign
    "μm": "micrometer",  # Greek mu
    "\\u00B5m": "micrometer",  # as ImageJ escapes it
    "micron": "micrometer",
    "microns": "micrometer",
    "micrometer": "micrometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "dm": "decimeter",
    "m": "meter",
    "pm": "picometer",
    "Å": "angstrom",  # the letter
    "\N{ANGSTROM SIGN}": "angstrom",
    "in": "inch",
    "inch": "inch",
    "s": "second",
    "sec": "second",
    "ms": "millisecond",
    "min": "minute",
    "h": "hour",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TiffSize:
    """What is known of an image: size and unit of a step along each axis that has them, and its channels' names."""

    scale: Mapping[str, tuple[float, str]] = field(default_factory=dict)
    channel_names: tuple[str, ...] | None = None


def ome_sizes(text: str) -> tuple[TiffSize, ...]:
    """Return what OME-XML says of each of its images, in order; nothing where it is no XML or has a DOCTYPE."""
    if re.search(r"<!\s*(DOCTYPE|ENTITY)", text):
        return ()
    try:
        root = ElementTree.fromstring(text)  # noqa: S314  # without entities
    except (ElementTree.ParseError, ValueError):
        return ()
    return tuple(_of_pixels(pixels) for image in root.iterfind("{*}Image") for pixels in image.iterfind("{*}Pixels"))


def _of_pixels(pixels: ElementTree.Element) -> TiffSize:
    scale = {}
    for axis in "xyz":
        name = f"PhysicalSize{axis.upper()}"
        found = _length(pixels.get(name), pixels.get(f"{name}Unit", "µm"))
        if found is not None:
            scale[axis] = found
    interval = _length(pixels.get("TimeIncrement"), pixels.get("TimeIncrementUnit", "s"))
    if interval is not None:
        scale["t"] = interval
    names = [channel.get("Name") for channel in pixels.iterfind("{*}Channel")]
    has_names = any(names)
    return TiffSize(
        scale=scale, channel_names=tuple(name or str(i) for i, name in enumerate(names)) if has_names else None
    )


def imagej_size(metadata: Mapping[str, Any], tags: Mapping[str, Any]) -> TiffSize:
    """Return what ImageJ says: pixels a unit in the tags XResolution and YResolution, the rest in its description."""
    unit = str(metadata.get("unit", ""))
    scale = {}
    for axis, tag in (("x", "XResolution"), ("y", "YResolution")):
        resolution = tags.get(tag)
        if isinstance(resolution, tuple) and len(resolution) == 2 and resolution[0]:
            scale[axis] = _length(resolution[1] / resolution[0], unit)
    scale["z"] = _length(metadata.get("spacing"), unit)
    scale["t"] = _length(metadata.get("finterval"), "s")
    return TiffSize(scale={axis: found for axis, found in scale.items() if found is not None})


def _length(value: object, unit: str) -> tuple[float, str] | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # text, number or none
    except (TypeError, ValueError):
        return None
    name = _UNITS.get(unit)
    return (number, name) if name is not None and math.isfinite(number) and number > 0 else None
